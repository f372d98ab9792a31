"""Stochastic gradient descent."""
import numpy as np

from minillm.optim.optimizer import Optimizer
from minillm.rounding import widen


class SGD(Optimizer):
    """Stochastic gradient descent with momentum: b = momentum b + g, w = w - lr b. Decoupled decay on matrices only.

    What follows weight_decay is the Optimizer's: state_format, update, seed.
    """

    slots = ("momentum",)

    def __init__(self, parameters, momentum: float = 0.9, weight_decay: float = 0.0, *how, **named):
        super().__init__(parameters, *how, **named)
        self.momentum, self.weight_decay = momentum, weight_decay

    def update(self, name, p, gradient, lr, factor):
        f = np.float32
        b = self.recall("momentum", name)
        b = self.keep("momentum", name, f(self.momentum) * b + widen(gradient, f) * factor)
        decay = f(1 - lr * self.weight_decay * (p.ndim > 1))
        self.write(name, p, self.weight(name, p) * decay - f(lr) * b)
