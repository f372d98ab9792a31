"""Adam with decoupled weight decay."""
import numpy as np

from minillm import kernels
from minillm.autograd.watching import watched
from minillm.formats import Format
from minillm.optim.optimizer import Optimizer
from minillm.rounding import widen


class AdamW(Optimizer):
    """Adam with decoupled weight decay, on parameters of two axes or more only. Loshchilov and Hutter, arXiv 1711.05101, alg. 2.

    eps is added in float32, whatever the state's format: float16 would make 1e-8 a zero. What follows weight_decay is the
    Optimizer's: state_format, update, seed.
    """

    slots, unsigned = ("m", "v"), ("v",)

    def __init__(self, parameters, betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-8, weight_decay: float = 0.1,
                 *how, **named):
        super().__init__(parameters, *how, **named)
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay

    def constants(self, decays, lr):
        """What one update multiplies by, as float32: 1 - beta1, 1 - beta2, both bias corrections, eps, lr, decay."""
        b1, b2 = self.betas
        return tuple(map(np.float32, (1 - b1, 1 - b2, 1 / (1 - b1**self.steps), 1 / (1 - b2**self.steps), self.eps, lr,
                                      1 - lr * self.weight_decay * decays)))

    def update_all(self, names, gradients, lr, factor):
        """Those whose formats a kernel knows in one call of it for all arrays of the same types, the others one by one."""
        if not self.fuses():
            super().update_all(names, gradients, lr, factor)
            return
        together = {}
        for name in names:
            p = self.parameters[name]
            known = p.size and not p.format.simulated
            together.setdefault((p.data.dtype, gradients[name].dtype) if known else None, []).append(name)
        for types, group in together.items():
            update = self.update_fused if types else super().update_all
            update(group, gradients, lr, factor)

    def fuses(self) -> bool:
        """Whether the kernel stands in where it knows a parameter's format: it keeps float16 and float32, and writes to nearest."""
        native = isinstance(self.state_format, Format) and not self.state_format.simulated
        return native and self.how == "nearest_even" and kernels.enabled() and not watched()

    def update(self, name, p, gradient, lr, factor):
        c1, c2, unbias1, unbias2, eps, lr, decay = self.constants(p.ndim > 1, lr)
        m, v = (self.recall(slot, name) for slot in self.slots)
        g = widen(gradient, np.float32) * factor
        m = self.keep("m", name, m + c1 * (g - m))
        v = self.keep("v", name, v + c2 * (g * g - v))
        update = (m * unbias1) / (np.sqrt(v * unbias2) + eps)
        self.write(name, p, self.weight(name, p) * decay - lr * update)

    def update_fused(self, names, gradients, lr, factor):
        """One pass of a kernel; what it multiplies by is the same for all parameters that decay, and for all that do not."""
        parameters, moments = [self.parameters[n] for n in names], [[self.state[slot][n] for n in names] for slot in self.slots]
        both = np.array([(factor, *self.constants(decays, lr)) for decays in (False, True)], np.float32)
        numbers = both[[int(p.ndim > 1) for p in parameters]]                  # (parameters,8) f32
        weights = kernels.load("optimizers").adamw([p.data for p in parameters], [gradients[n] for n in names], *moments, numbers)
        for p, weight in zip(parameters, weights, strict=True):
            p.data = weight
