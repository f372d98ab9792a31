"""Batches from the examples of one task or of several, those of about the same length together."""
from collections.abc import Sequence

import numpy as np

from minillm.data.tasks import Example
from minillm.errors import MiniLLMError

POOL = 16                # batches that are drawn together and sorted by length, so that little of each is padding
SAMPLING = ("size", "uniform")


class Mixture:
    """Examples of several tasks. `sampling` says how often each task is drawn: "size", "uniform", or a temperature.

    At temperature t a task of n examples weighs n^(1/t): 1 is by size, and the larger, the more even. Raffel et al. 2019, arXiv
    1910.10683, section 3.5.2.
    """

    def __init__(self, tasks: Sequence[Sequence[Example]], sampling: str = "size"):
        self.tasks, sizes = tasks, np.array([len(examples) for examples in tasks], np.float32)
        weights = sizes ** np.float32(1 / temperature(sampling))
        self.shares = weights / weights.sum(dtype=np.float32)                                  # (tasks,) f32

    def batch(self, size: int, key: tuple[int, int, int]) -> list[Example]:
        """`size` examples, drawn with replacement: a pure function of (seed, step, micro-batch)."""
        seed, step, micro = key
        rng = np.random.default_rng((4, seed, step // POOL, micro, POOL))
        ends = np.cumsum(self.shares, dtype=np.float32)
        task = np.minimum(np.searchsorted(ends, rng.random(POOL * size, np.float32), "right"), len(ends) - 1)
        pool = [self.tasks[t][int(u * len(self.tasks[t]))] for t, u in zip(task, rng.random(POOL * size), strict=True)]
        pool.sort(key=lambda example: (len(example.source) // 8, len(example.target)))
        first = rng.permutation(POOL)[step % POOL] * size
        return pool[first:first + size]


def temperature(sampling: str) -> float:
    """The temperature that a word stands for, or a number; MiniLLMError otherwise."""
    try:
        found = {"size": 1.0, "uniform": float("inf")}.get(sampling) or float(sampling)
    except ValueError:
        found = 0.0
    if not found > 0:
        raise MiniLLMError(f"sampling is {sampling!r}: give {', '.join(SAMPLING)} or a temperature above 0")
    return found
