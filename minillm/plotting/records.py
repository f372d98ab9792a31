"""What the figures are drawn from: plain numbers, of which None and NaN mean "not measured" and are left out."""
import math
import os
from collections.abc import Sequence

import numpy as np

from minillm.errors import MiniLLMError

PathLike = str | os.PathLike[str]
Points = tuple[np.ndarray, np.ndarray]


def is_number(value: float | None) -> bool:
    """Whether there is a finite number."""
    return value is not None and math.isfinite(value)


def finite_points(steps: Sequence[int] | None, values: Sequence[float | None] | None) -> Points:
    """The points that can be drawn, in the order of the steps."""
    steps, values = steps or [], values or []
    if len(steps) != len(values):
        raise MiniLLMError(f"a figure was given {len(steps)} steps and {len(values)} values: give one value a step")
    pairs = sorted((step, value) for step, value in zip(steps, values, strict=True) if is_number(value))
    return np.array([step for step, _ in pairs], float), np.array([value for _, value in pairs], float)


def percent(share: float) -> str:
    """A share as text: two digits where it is small."""
    return f"{100 * share:.2g} %" if share < 0.01 else f"{100 * share:.1f} %"
