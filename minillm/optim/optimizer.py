"""What optimizers share: parameters by name, a state array for each slot, and how new values are stored.

Optimizers compute in float32 and round each stored value once: moments into the format of the optimizer state, weights into that
of the parameter. `factor` unscales and clips on the way, so that gradients are read once.

Where the parameter is the float32 master, nothing is lost in writing it. Where it is narrow, an update below half an ulp of its
weight would be: `update` says what is done about that. Zamirai et al. 2020, Revisiting BFloat16 Training, arXiv 2010.06192.
"""
from collections.abc import Iterable

import numpy as np

from minillm.autograd.context import Address, Context
from minillm.autograd.tensor import Tensor
from minillm.autograd.watching import tell, watched
from minillm.errors import MiniLLMError, unknown
from minillm.formats import FLOAT32, Format
from minillm.optim.eight_bit import SMALLEST, BlockMap
from minillm.rounding import round_to, widen

UPDATES = ("nearest_even", "stochastic", "kahan")


class Optimizer:
    """Named parameters, a state array for each of them and slot, and writing results through round_to.

    state_format: that of the moments, a Format or a BlockMap. update: how a weight is written, "nearest_even", "stochastic" (bits
    from `seed`, the attempt and the parameter's name), or "kahan" (to nearest, and what rounding took is kept beside it in the
    weight's own format, and added back at the next update).
    """

    slots: tuple[str, ...] = ()
    unsigned: tuple[str, ...] = ()           # slots whose values are never negative

    def __init__(self, parameters: Iterable[Tensor], state_format: Format | BlockMap = FLOAT32, update: str = "nearest_even",
                 seed: int = 0):
        parameters = list(parameters)
        self.parameters = {p.name: p for p in parameters}
        self.state_format, self.how, self.seed, self.steps, self.attempt = state_format, update, seed, 0, 0
        if None in self.parameters or len(self.parameters) < len(parameters):
            raise MiniLLMError("an optimizer needs parameters that each have a name of their own: Tensor(data, format, name=...)")
        if update not in UPDATES:
            raise unknown("update", update, UPDATES)
        self.state = {slot: {} for slot in self.slots}
        for slot in self.slots:
            for name, p in self.parameters.items():
                self.put(slot, name, np.zeros(p.shape, np.float32))
        if update == "kahan":
            self.state["compensation"] = {n: np.zeros(p.shape, p.format.storage) for n, p in self.parameters.items()
                                          if p.format is not FLOAT32}

    def step(self, gradients: dict, lr: float, factor: float = 1.0, attempt: int | None = None) -> None:
        """Update every parameter that has a gradient; `factor` multiplies all gradients first.

        `attempt`: the number of this one, from 0, skipped ones included, which random bits come from; the number of steps if None.
        """
        self.attempt = self.steps if attempt is None else attempt
        self.steps += 1
        with np.errstate(all="ignore"):
            given = [name for name in self.parameters if name in gradients]
            for name in given:
                if gradients[name].shape != self.parameters[name].shape:
                    raise MiniLLMError(f"the gradient of {name} has shape {gradients[name].shape}, "
                                       f"the parameter {self.parameters[name].shape}")
            self.update_all(given, gradients, lr, np.float32(factor))

    def update_all(self, names, gradients, lr, factor):
        for name in names:
            self.update(name, self.parameters[name], gradients[name], lr, factor)

    def update(self, name, p, gradient, lr, factor):
        raise NotImplementedError

    # state

    def format_of(self, slot: str, name: str) -> Format | None:
        """The format of a state array; None for codes and what belongs to them, which are as they are stored."""
        if slot == "compensation":
            return self.parameters[name].format
        if isinstance(self.state_format, Format):
            return self.state_format
        return FLOAT32 if self.parameters[name].size < SMALLEST else None

    def recall(self, slot: str, name: str) -> np.ndarray:
        """A moment as it was kept, float32."""
        if self.format_of(slot, name):
            return widen(self.state[slot][name], np.float32)
        return self.state_format.decode(self.state[slot][name], self.state[f"{slot}_largest"][name], slot not in self.unsigned)

    def put(self, slot: str, name: str, exact: np.ndarray) -> None:
        """Round a moment into its format, or into codes, and hold it."""
        if format := self.format_of(slot, name):
            self.state[slot][name] = round_to(exact, format)
            return
        codes, largest = self.state_format.encode(exact, slot not in self.unsigned)
        self.state[slot][name], self.state.setdefault(f"{slot}_largest", {})[name] = codes, largest

    def keep(self, slot: str, name: str, exact: np.ndarray) -> np.ndarray:
        """Hold a new moment, and show it to whoever watches as "update"; what is used further is what was kept.

        In eight bits it is what was to be kept, as published: where v has become 0 and m has not, m / eps would be the update.
        """
        self.put(slot, name, exact)
        format = self.format_of(slot, name)
        if watched():                        # what codes stand for are float32 numbers
            rounded = self.state[slot][name] if format else self.recall(slot, name)
            tell("update", Address(name, slot, 0), exact, rounded, format or FLOAT32)
        return self.recall(slot, name) if format else exact

    # weights

    def weight(self, name: str, p: Tensor) -> np.ndarray:
        """A weight in float32, together with what rounding took from it at the last update, where that is kept."""
        w, lost = widen(p.data, np.float32), self.state.get("compensation", {}).get(name)
        return w if lost is None else w + widen(lost, np.float32)

    def write(self, name: str, p: Tensor, exact: np.ndarray) -> None:
        """Store a new weight; its compensation, if it has one, is what rounding takes from it now."""
        how = "stochastic" if self.how == "stochastic" else "nearest_even"
        p.data = self.rounded("weight", name, exact, p.format, how, p.data)
        if name in self.state.get("compensation", {}):
            lost = exact - widen(p.data, np.float32)             # exact: both have few digits more than their difference
            self.state["compensation"][name] = self.rounded("compensation", name, lost, p.format)

    def rounded(self, slot, name, exact, format, rounding="nearest_even", before=None):
        """Through round_to, and shown to whoever watches as "update"; with a weight, the array that it had before."""
        address = Address(name, slot, 0)
        key = Context(self.seed, step=self.attempt).key(address, "update") if rounding == "stochastic" else None
        rounded = round_to(exact, format, rounding, key)
        if watched():
            tell("update", address, exact, rounded, format, before=before)
        return rounded
