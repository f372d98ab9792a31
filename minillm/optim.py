"""SGD with momentum, AdamW, the cosine schedule, and clipping by global norm.

Optimizers compute in float32 and round each stored value once: moments into the format of the optimizer state, weights into that
of the parameter. `factor` unscales and clips on the way, so that gradients are read once.
"""
import math
from collections.abc import Iterable

import numpy as np

from minillm import kernels
from minillm.autograd.context import Address
from minillm.autograd.tensor import Tensor
from minillm.autograd.watching import tell, watched
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32, Format
from minillm.rounding import round_to, widen


def cosine_schedule(step: int, steps: int, lr: float, min_lr: float, warmup: int) -> float:
    """The learning rate of optimizer attempt `step` (from 0): linear warm-up, then half a cosine from lr to min_lr at `steps`."""
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    along = min(1.0, (step - warmup) / max(1, steps - warmup))
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * along)) / 2


def global_norm(gradients: Iterable[np.ndarray], factor: float = 1.0) -> float:
    """The 2-norm of all gradients times `factor`, accumulated in float32; not finite if any of them is not: it is the check too.

    Values are multiplied before they are squared: scaled by 2^16 a float32 square could overflow where the gradient does not.
    """
    total = np.float32(0)
    with np.errstate(all="ignore"):
        for g in gradients:
            if kernels.enabled() and g.size:
                total += kernels.load("optimizers").sum_of_squares(g, np.float32(factor))
            else:
                total += np.square(widen(g, np.float32) * np.float32(factor)).sum(dtype=np.float32)
        return float(np.sqrt(total))


def clip_factor(norm: float, clip: float) -> float:
    """What gradients of this norm are multiplied by, so that it is at most `clip`; 0 means no clipping."""
    return min(1.0, clip / (norm + 1e-6)) if clip else 1.0


class Optimizer:
    """What optimizers share: named parameters, a state array for each and slot, and writing results through round_to."""

    slots: tuple[str, ...] = ()

    def __init__(self, parameters: Iterable[Tensor], state_format: Format = FLOAT32):
        parameters = list(parameters)
        self.parameters = {p.name: p for p in parameters}
        self.state_format, self.steps = state_format, 0
        if None in self.parameters or len(self.parameters) < len(parameters):
            raise MiniLLMError("an optimizer needs parameters that each have a name of their own: Tensor(data, format, name=...)")
        self.state = {slot: {n: np.zeros(p.shape, state_format.storage) for n, p in self.parameters.items()} for slot in self.slots}

    def step(self, gradients: dict, lr: float, factor: float = 1.0) -> None:
        """Update every parameter that has a gradient; `factor` multiplies all gradients first."""
        self.steps += 1
        with np.errstate(all="ignore"):
            for name, p in self.parameters.items():
                if name in gradients:
                    if gradients[name].shape != p.shape:
                        raise MiniLLMError(f"the gradient of {name} has shape {gradients[name].shape}, the parameter {p.shape}")
                    self.update(name, p, gradients[name], lr, np.float32(factor))

    def update(self, name, p, gradient, lr, factor):
        raise NotImplementedError

    def keep(self, slot: str, name: str, exact: np.ndarray) -> np.ndarray:
        """Round a new state into its format and keep it; what is used further is what was kept."""
        self.state[slot][name] = self.rounded(slot, name, exact, self.state_format)
        return widen(self.state[slot][name], np.float32)

    def rounded(self, slot, name, exact, format, before=None):
        """Through round_to, and shown to whoever watches as "update"; with a weight, the array that it had before."""
        rounded = round_to(exact, format)
        if watched():
            tell("update", Address(name, slot, 0), exact, rounded, format, before=before)
        return rounded


class SGD(Optimizer):
    """Stochastic gradient descent with momentum: b = momentum b + g, w = w - lr b. Decoupled decay on matrices only."""

    slots = ("momentum",)

    def __init__(self, parameters, momentum: float = 0.9, weight_decay: float = 0.0, state_format: Format = FLOAT32):
        super().__init__(parameters, state_format)
        self.momentum, self.weight_decay = momentum, weight_decay

    def update(self, name, p, gradient, lr, factor):
        f = np.float32
        b = widen(self.state["momentum"][name], f)
        b = self.keep("momentum", name, f(self.momentum) * b + widen(gradient, f) * factor)
        w = widen(p.data, f)
        decay = f(1 - lr * self.weight_decay * (p.ndim > 1))
        p.data = self.rounded("weight", name, w * decay - f(lr) * b, p.format, p.data)


class AdamW(Optimizer):
    """Adam with decoupled weight decay, on parameters of two axes or more only. Loshchilov and Hutter, arXiv 1711.05101, alg. 2.

    eps is added in float32, whatever the state's format: float16 would make 1e-8 a zero.
    """

    slots = ("m", "v")

    def __init__(self, parameters, betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-8, weight_decay: float = 0.1,
                 state_format: Format = FLOAT32):
        super().__init__(parameters, state_format)
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay

    def constants(self, p, lr):
        """What one update multiplies by, as float32: 1 - beta1, 1 - beta2, both bias corrections, eps, lr, decay."""
        b1, b2 = self.betas
        return tuple(map(np.float32, (1 - b1, 1 - b2, 1 / (1 - b1**self.steps), 1 / (1 - b2**self.steps), self.eps, lr,
                                      1 - lr * self.weight_decay * (p.ndim > 1))))

    def update(self, name, p, gradient, lr, factor):
        if kernels.enabled() and not watched() and p.size and not (p.format.simulated or self.state_format.simulated):
            p.data = kernels.load("optimizers").adamw(p.data, gradient, self.state["m"][name], self.state["v"][name], factor,
                                                      *self.constants(p, lr))
            return
        c1, c2, unbias1, unbias2, eps, lr, decay = self.constants(p, lr)
        m, v = (widen(self.state[slot][name], np.float32) for slot in self.slots)
        g = widen(gradient, np.float32) * factor
        m = self.keep("m", name, m + c1 * (g - m))
        v = self.keep("v", name, v + c2 * (g * g - v))
        update = (m * unbias1) / (np.sqrt(v * unbias2) + eps)
        p.data = self.rounded("weight", name, widen(p.data, np.float32) * decay - lr * update, p.format, p.data)
