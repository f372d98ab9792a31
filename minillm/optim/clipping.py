"""The norm of all gradients, which is the finite check too, and what it is clipped by."""
from collections.abc import Iterable

import numpy as np

from minillm import kernels
from minillm.rounding import widen


def global_norm(gradients: Iterable[np.ndarray], factor: float = 1.0) -> float:
    """The 2-norm of all gradients times `factor`, accumulated in float32; not finite if any of them is not: it is the check too.

    Values are multiplied before they are squared: scaled by 2^16 a float32 square could overflow where the gradient does not.
    """
    kernel = kernels.load("optimizers").sum_of_squares if kernels.enabled() else None
    with np.errstate(all="ignore"):
        total, factor = np.float32(0), np.float32(factor)                      # the inverse of a scale of 2^-149 is infinite
        for g in gradients:
            if kernel and g.size:
                total += kernel(g, factor)
            else:
                total += np.square(widen(g, np.float32) * factor).sum(dtype=np.float32)
        return float(np.sqrt(total))


def clip_factor(norm: float, clip: float) -> float:
    """What gradients of this norm are multiplied by, so that it is at most `clip`; 0 means no clipping."""
    return min(1.0, clip / (norm + 1e-6)) if clip else 1.0
