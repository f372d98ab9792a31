"""Text with errors in it: what a model makes of it says how much it leans on each single token."""
import numpy as np

from minillm.errors import MiniLLMError, unknown

ERRORS = ("typos", "dropped", "swapped")


def with_errors(ids: np.ndarray, kind: str, rate: float, vocabulary: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs with errors and the true token behind each, from a text ids (n,) without any; a pure function of its arguments.

    typos: another token in place of one in 1 / rate; dropped: one in 1 / rate is missing; swapped: one in 1 / rate has changed
    places with the next. Models are asked for what really follows, so that the targets hold no errors.
    """
    if kind not in ERRORS:
        raise unknown("kind of error", kind, ERRORS)
    if not 0 <= rate < 1 or len(ids) < 2 or vocabulary < 2:
        raise MiniLLMError(f"errors at a rate of {rate} in {len(ids)} tokens of {vocabulary}: a rate from 0 to below 1, two tokens")
    rng, inputs, targets = np.random.default_rng(seed), ids[:-1].copy(), ids[1:]
    hit = rng.random(len(inputs)) < rate
    if kind == "typos":
        inputs[hit] = (inputs[hit] + rng.integers(1, vocabulary, int(hit.sum()))) % vocabulary
    elif kind == "dropped":
        inputs, targets = inputs[~hit], targets[~hit]
    else:
        at = np.flatnonzero(hit[:-1] & ~np.roll(hit, 1)[:-1])                  # none twice
        inputs[at], inputs[at + 1] = inputs[at + 1], inputs[at]
    return inputs.astype(np.int32), targets.astype(np.int32)
