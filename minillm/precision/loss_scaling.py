"""Loss scaling: the loss is multiplied by S before the backward pass, and gradients divided by S after it.

Small cotangents then lie above float16's smallest subnormal, 2^-24. S is a power of two, so that nothing else changes: the
multiplication and the division are exact. Micikevicius et al. 2018, arXiv 1710.03740, section 3.2.
"""
import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from minillm.errors import MiniLLMError, unknown
from minillm.formats import FLOAT32


@dataclass(frozen=True)
class LossScaling:
    """How a recipe scales its loss. `growth_interval` counts clean steps in a row; `floor` is what halving stops at.

    The defaults are those of PyTorch's GradScaler and of Apex, except the floor: without one a run of overflows takes the scale
    to exactly 0, where it stays. `floor` and `ceiling` may be None, for none. The fields after them are there for the published
    scalers that lack a guard: `checked`: grow only where float32 can hold the result; `in_float32`: the scale itself is rounded
    to float32, as PyTorch and Keras keep it, while Apex has Python's 64 bits.
    """

    initial: float = 65536.0
    dynamic: bool = True
    growth: float = 2.0
    backoff: float = 0.5
    growth_interval: int = 2000
    floor: float | None = 1.0
    ceiling: float | None = None
    checked: bool = True
    in_float32: bool = False

    def __post_init__(self):
        for f in dataclasses.fields(self):
            check_kind(f.name, getattr(self, f.name), f.type)
        check_scale(self.initial)
        if not self.dynamic:
            return
        if not (math.inf > self.growth >= 1 > self.backoff > 0 and self.growth_interval >= 1
                and (self.floor is None or FLOAT32.tiny <= self.floor <= self.initial)
                and (self.ceiling is None or self.initial <= self.ceiling <= FLOAT32.max)):
            raise MiniLLMError(f"{self}: needs growth >= 1, 0 < backoff < 1, growth_interval >= 1, {FLOAT32.tiny:.3g} <= floor "
                               f"<= initial <= ceiling <= {FLOAT32.max:.3g} (None for no floor or no ceiling)")

    def held(self, scale: float) -> float:
        """A new scale as the scaler stores it."""
        if not self.in_float32:
            return scale
        with np.errstate(all="ignore"):
            return float(np.float32(scale))


def check_kind(name: str, value, kind) -> None:
    """Settings also come from JSON: numbers, truth values and None, each where it belongs."""
    if kind is bool or isinstance(value, bool):
        fits = kind is bool and isinstance(value, bool)
    else:
        fits = isinstance(value, int if kind is int else kind | int)
    if not fits:
        raise MiniLLMError(f"loss scaling: {name} is {value!r}: it must be of type {getattr(kind, '__name__', kind)}")


def check_scale(scale: float) -> None:
    """A scale multiplies in float32 and its inverse does too: neither may be 0 or infinite there."""
    if not FLOAT32.tiny <= scale <= FLOAT32.max:
        raise MiniLLMError(f"loss scale {scale} is not a positive normal float32: choose a power of two such as 65536")


NO_SCALING = LossScaling(1.0, dynamic=False)


def static_scale(scale: float) -> LossScaling:
    """A scale that stays what it is."""
    return LossScaling(scale, dynamic=False)


# The scalers that others have published, as they are; what they lack is what the clinic shows.
SCALERS = {
    "minillm": LossScaling(),
    "pytorch": LossScaling(floor=None, in_float32=True),                                  # torch.amp.GradScaler
    "apex-amp": LossScaling(floor=None, ceiling=2.0**24),                                 # apex.amp.scaler.LossScaler
    "apex-fp16-utils": LossScaling(2.0**32, growth_interval=1000, checked=False),         # apex.fp16_utils.DynamicLossScaler
    "keras": LossScaling(2.0**15, floor=None, checked=False, in_float32=True),            # keras LossScaleOptimizer, version 3
    "fixed": static_scale(1024.0),
}


def scaler_named(name: str) -> LossScaling:
    """The published scaler of this name; MiniLLMError names the nearest one otherwise."""
    if name not in SCALERS:
        raise unknown("loss scaler", name, SCALERS)
    return SCALERS[name]


@dataclass
class LossScaler:
    """The state of loss scaling in a run: the scale of the next step, and how many steps in a row were clean."""

    how: LossScaling
    scale: float = 0.0
    clean_steps: int = 0

    def __post_init__(self):
        self.scale = self.scale or self.how.initial

    @property
    def at_floor(self) -> bool:
        """Whether halving cannot help any more."""
        return not self.how.dynamic or self.scale <= (self.how.floor or 0.0)

    @property
    def inverse(self) -> float:
        """What unscales gradients: 1 / scale; infinite where the scale has sunk to 0."""
        return 1 / self.scale if self.scale else math.inf

    def update(self, finite: bool) -> None:
        """After each step: back off at once after an overflow, grow after `growth_interval` clean steps, as far as it may."""
        if not self.how.dynamic:
            return
        if not finite:
            self.scale, self.clean_steps = self.how.held(max(self.scale * self.how.backoff, self.how.floor or 0.0)), 0
            return
        self.clean_steps += 1
        if self.clean_steps >= self.how.growth_interval:
            self.scale, self.clean_steps = self.grown(), 0

    def grown(self) -> float:
        """The next larger scale, or the present one where that is not to be had."""
        grown = self.how.held(min(self.scale * self.how.growth, self.how.ceiling or math.inf))
        return grown if grown <= FLOAT32.max or not self.how.checked else self.scale

    def state(self) -> dict:
        """What a checkpoint keeps."""
        return {"scale": self.scale, "clean_steps": self.clean_steps}

    def load(self, state: dict) -> None:
        scale = float(state["scale"])
        if (self.how.floor is not None and self.how.checked) or not scale >= 0:          # the others may be at 0 or infinity
            check_scale(scale)
        self.scale, self.clean_steps = scale, int(state["clean_steps"])
