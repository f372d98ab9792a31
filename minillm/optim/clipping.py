"""The norm of all gradients, which is the finite check too, and what it is clipped by."""
from collections.abc import Iterable

import numpy as np

from minillm import kernels
from minillm.rounding import widen


def global_norm(gradients: Iterable[np.ndarray], factor: float = 1.0) -> float:
    """The 2-norm of all gradients times `factor`, accumulated in float32; not finite if any of them is not: it is the check too.

    Values are multiplied before they are squared: scaled by 2^16 a float32 square could overflow where the gradient does not.
    """
    sum_of_squares = kernels.load("optimizers").sum_of_squares if kernels.enabled() else sum_of_squares_of
    together = {}
    for g in gradients:
        if g.size:
            together.setdefault(g.dtype, []).append(g)
    with np.errstate(all="ignore"):
        factor = np.float32(factor)                                            # the inverse of a scale of 2^-149 is infinite
        return float(np.sqrt(sum((sum_of_squares(group, factor) for group in together.values()), np.float32(0))))


def sum_of_squares_of(gradients: list[np.ndarray], factor: np.float32) -> np.float32:
    """The sum of (g factor)^2, accumulated in float32: what the kernel stands in for."""
    return sum((np.square(widen(g, np.float32) * factor).sum(dtype=np.float32) for g in gradients), np.float32(0))


def clip_factor(norm: float, clip: float) -> float:
    """What gradients of this norm are multiplied by, so that it is at most `clip`; 0 means no clipping."""
    return min(1.0, clip / (norm + 1e-6)) if clip else 1.0
