"""Loss scaling: the loss is multiplied by S before the backward pass, and gradients divided by S after it.

Small cotangents then lie above float16's smallest subnormal, 2^-24. S is a power of two, so that nothing else changes: the
multiplication and the division are exact. Micikevicius et al. 2018, arXiv 1710.03740, section 3.2.
"""
import math
from dataclasses import dataclass

from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32


@dataclass(frozen=True)
class LossScaling:
    """How a recipe scales its loss. `growth_interval` counts clean steps in a row; `floor` is what halving stops at.

    The defaults are those of PyTorch's GradScaler and of Apex, except the floor: without one a run of overflows takes the scale
    to exactly 0, where it stays.
    """

    initial: float = 65536.0
    dynamic: bool = True
    growth: float = 2.0
    backoff: float = 0.5
    growth_interval: int = 2000
    floor: float = 1.0

    def __post_init__(self):
        check_scale(self.initial)
        if self.dynamic and not (math.inf > self.growth >= 1 > self.backoff > 0 and self.growth_interval >= 1
                                 and FLOAT32.tiny <= self.floor <= self.initial):
            raise MiniLLMError(f"{self}: needs growth >= 1, 0 < backoff < 1, growth_interval >= 1 and {FLOAT32.tiny:.3g} <= floor "
                               f"<= initial")


def check_scale(scale: float) -> None:
    """A scale multiplies in float32 and its inverse does too: neither may be 0 or infinite there."""
    if not FLOAT32.tiny <= scale <= FLOAT32.max:
        raise MiniLLMError(f"loss scale {scale} is not a positive normal float32: choose a power of two such as 65536")


NO_SCALING = LossScaling(1.0, dynamic=False)


def static_scale(scale: float) -> LossScaling:
    """A scale that stays what it is."""
    return LossScaling(scale, dynamic=False)


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
        return not self.how.dynamic or self.scale <= self.how.floor

    def update(self, finite: bool) -> None:
        """After each step: back off at once after an overflow, grow after `growth_interval` clean steps if the result is finite."""
        if not self.how.dynamic:
            return
        if not finite:
            self.scale, self.clean_steps = max(self.scale * self.how.backoff, self.how.floor), 0
            return
        self.clean_steps += 1
        if self.clean_steps >= self.how.growth_interval:
            grown = self.scale * self.how.growth
            self.scale, self.clean_steps = grown if grown <= FLOAT32.max else self.scale, 0

    def state(self) -> dict:
        """What a checkpoint keeps."""
        return {"scale": self.scale, "clean_steps": self.clean_steps}

    def load(self, state: dict) -> None:
        check_scale(float(state["scale"]))
        self.scale, self.clean_steps = float(state["scale"]), int(state["clean_steps"])
