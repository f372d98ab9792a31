"""What it is to have few labels: some of the examples, but all of the classes."""
from collections.abc import Hashable, Sequence

import numpy as np

from minillm.errors import MiniLLMError


def few_labels(labels: Sequence[Hashable], number: int, seed: int = 0) -> np.ndarray:
    """Where `number` labels stand that are kept, in order, (number,) int64: drawn at random, one of each class among them.

    MiniLLMError where there are more classes, or fewer labels.
    """
    order = np.random.default_rng((seed, number)).permutation(len(labels))
    first = {labels[i]: i for i in reversed(order)}                            # where each class is drawn first
    if not len(first) <= number <= len(labels):
        raise MiniLLMError(f"{number} labels of {len(labels)} in {len(first)} classes: ask for one of each class or more, and "
                           "for no more than there are")
    each = list(first.values())
    others = order[~np.isin(order, each)]
    return np.sort(np.concatenate([each, others[:number - len(each)]]))
