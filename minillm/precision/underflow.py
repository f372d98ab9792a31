"""What rounding does to a step's numbers: observers for `minillm.watch`, and the microscope that sees every op.

with watch(microscope := Microscope(), model.blocks[2].mlp):
    trainer.advance()
for row in microscope.rows(): ...
"""
from collections import Counter

import numpy as np

from minillm.autograd.context import Address
from minillm.autograd.watching import Event
from minillm.formats import Format
from minillm.precision.tally import Tally, exponent_counts


class ZeroedCotangents:
    """The share of cotangent values that were not zero and became zero in their rounding, over all cotangent values."""

    def __init__(self):
        self.zeroed, self.size = 0, 0

    def __call__(self, event: Event) -> None:
        if event.phase == "backward":
            self.size += event.exact.size
            if event.format.bits < 32:
                self.zeroed += int(np.count_nonzero((event.exact != 0) & (event.rounded == 0)))

    @property
    def share(self) -> float:
        return self.zeroed / max(self.size, 1)


class ExponentHistogram:
    """How many cotangent values have which exponent, floor(log2 |g|), before they are rounded; zeros under "zero".

    Exponents are read from the bits: floor(log2(x)) in floating point is wrong just below most powers of two.
    """

    def __init__(self):
        self.counts = Counter()

    def __call__(self, event: Event) -> None:
        if event.phase == "backward":
            self.counts.update(exponent_counts(event.exact))
            self.counts["zero"] += int(np.count_nonzero(event.exact == 0))


class FirstNotFinite:
    """The first rounding of a step whose result was infinite or NaN: which phase, which op, and whether the rounding did it."""

    def __init__(self):
        self.phase: str | None = None
        self.address: Address | None = None
        self.format: Format | None = None
        self.by_rounding = False

    def __call__(self, event: Event) -> None:
        if self.phase is None and not np.isfinite(event.rounded).all():
            self.phase, self.address, self.format = event.phase, event.address, event.format
            self.by_rounding = bool(np.isfinite(event.exact).all())

    def __str__(self) -> str:
        if self.phase is None:
            return "every value was finite"
        how = f"overflow in rounding to {self.format.name}" if self.by_rounding else "not finite as computed"
        return f"{self.phase} {self.address} ({how})"


class Microscope:
    """Counts, of every op and every leaf, what each of its roundings did: forward, backward, accumulate and update.

    `step` is written into the rows; whoever watches several steps counts it up between them. Micro-batches of a step add up.
    """

    def __init__(self, step: int = 0):
        self.step, self.tallies, self.first = step, {}, FirstNotFinite()

    def __call__(self, event: Event) -> None:
        at = self.step, event.phase, event.address, event.format
        if at not in self.tallies:
            self.tallies[at] = Tally(event.format)
        self.tallies[at].add(event)
        if self.first.phase is None and self.tallies[at].not_finite:
            self.first(event)

    def rows(self) -> list[dict]:
        """Plain records in the order in which addresses were first seen: where, and what Tally.record says.

        {"step", "phase", "scope", "op", "number", "format", "values", "zeroed", "subnormal", "saturated", "overflowed",
        "infinite", "nan", "lost", "largest", "headroom", "error", "exponents"}. A leaf's gradient has its name as scope.
        """
        return [{"step": step, "phase": phase, "scope": address.scope, "op": address.op, "number": address.number, **tally.record()}
                for (step, phase, address, _), tally in self.tallies.items()]
