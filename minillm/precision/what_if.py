"""What if: from one float32 step, the values that every other format would have lost, at every loss scale.

Each array is sorted by size once, and the sizes at which a format's fate changes are looked up in it. So all formats and 41 scales
cost one sort, and every count is exact: a histogram of exponents could not say it, since the limits of the subnormals and of the
largest value are no powers of two, and rounding anew would take a pass over all values for each format and scale.
"""
import math
from collections.abc import Iterable

import numpy as np

from minillm.autograd.watching import Event
from minillm.errors import MiniLLMError
from minillm.formats import DIALECTS, FLOAT32, FORMATS, Format
from minillm.precision.master_weights import lost_updates
from minillm.precision.tally import first_beyond
from minillm.rounding import round_to, widen

SCALES = tuple(range(-16, 25))                   # powers of two of the loss scale
SCALED = ("backward", "accumulate")              # phases whose values a loss scale multiplies
FORMATS_ASKED = tuple(f for f in FORMATS.values() if f not in DIALECTS and not f.integer and f.signed)


def limits(format: Format) -> tuple[float, float, float]:
    """The least sizes that nearest-even rounding makes a value other than 0, a normal value, and too large."""
    if format.integer or not format.signed or not format.zero:
        raise MiniLLMError(f"{format.name} is no format for gradients: ask for a floating format with a sign, such as float16")
    survives = math.nextafter(format.smallest / 2, math.inf)                 # the tie goes to 0, which is even
    normal = format.tiny - format.smallest_subnormal / 2 if format.smallest < format.tiny else survives
    return survives, normal, first_beyond(format)


class WhatIf:
    """An observer of one step: how many of the values before their rounding each format would make zero, subnormal, too large.

    Cotangents and sums of gradients are counted at every loss scale 2^k, k in `scales`, whatever `loss_scale` the watched step had;
    all else as it is. Values that were 0 before are not counted as zeroed, those that are not finite as nothing. The loss and its
    cotangent are left out: one number each, as large as the scale.
    """

    def __init__(self, formats: Iterable[Format] = FORMATS_ASKED, loss_scale: float = 1.0, scales: Iterable[int] = SCALES):
        self.formats, self.scales = tuple(formats), tuple(scales)
        own = np.array([limits(f) for f in self.formats])[:, None, :]                    # (F,1,3)
        power = -np.array(self.scales, np.int32)[None, :, None]                          # (1,S,1)
        self.limits = {True: least_float32(np.ldexp(own, power) * loss_scale), False: least_float32(own)}
        self.counts, self.values = {}, {}
        self.lost, self.weights = dict.fromkeys(self.formats, 0.0), 0

    def __call__(self, event: Event) -> None:
        if np.size(event.exact) == 1 and event.phase in ("forward", "backward") and event.address.op != "gradient":
            return                                                           # the loss, as large as the scale that multiplies it
        at, bounds = (event.phase, event.address), self.limits[event.phase in SCALED]
        sizes = np.sort(np.abs(np.ravel(event.exact)))                       # NaN comes last
        finite, zeros = np.searchsorted(sizes, np.float32(np.inf)), np.searchsorted(sizes, np.float32(0), "right")
        below = np.minimum(np.searchsorted(sizes, bounds.ravel()), finite).reshape(bounds.shape)
        found = np.stack([np.maximum(below[..., 0] - zeros, 0), below[..., 1] - below[..., 0], finite - below[..., 2]], -1)
        self.counts[at] = self.counts.get(at, 0) + found                     # (F,S,3): zeroed, subnormal, overflowed
        self.values[at] = self.values.get(at, 0) + sizes.size
        if event.before is not None:
            self.weights += sizes.size
            for format in self.formats:
                self.lost[format] += sizes.size * lost_in(format, event)

    def rows(self) -> list[dict]:
        """Shares by kind of value, format and scale.

        {"kind", "format", "log2_scale", "values", "zeroed", "subnormal", "overflowed"}. kind: a phase, or of updates "update/m",
        "update/v", "update/weight". log2_scale: None where a scale changes nothing.
        """
        kinds = list(dict.fromkeys(kind_of(*at) for at in self.counts))
        return [row for kind in kinds for row in self.shares(kind, [at for at in self.counts if kind_of(*at) == kind])]

    def shares(self, kind: str, places: list) -> list[dict]:
        """The rows of some places taken together."""
        values = max(sum(self.values[at] for at in places), 1)
        shares = sum(self.counts[at] for at in places) / values
        scales = self.scales if places[0][0] in SCALED else (None,)
        return [{"kind": kind, "format": format.name, "log2_scale": scale, "values": values,
                 **dict(zip(("zeroed", "subnormal", "overflowed"), shares[i, j].tolist(), strict=True))}
                for i, format in enumerate(self.formats) for j, scale in enumerate(scales)]

    def lost_updates(self) -> dict[str, float]:
        """The share of weights, by format, for which weight + update rounds back to the weight, were the weight kept in it."""
        return {format.name: lost / max(self.weights, 1) for format, lost in self.lost.items()}


def kind_of(phase, address) -> str:
    return f"update/{address.op}" if phase == "update" else phase


def least_float32(sizes: np.ndarray) -> np.ndarray:
    """The least float32 that is at least so large; infinity beyond float32."""
    return round_to(sizes, FLOAT32, "up")


def lost_in(format: Format, event: Event) -> float:
    """The share of one parameter's updates that would be lost if its weights were in this format."""
    before = widen(np.asarray(event.before), np.float32)
    kept = widen(round_to(before, format), np.float32)
    with np.errstate(all="ignore"):
        return lost_updates(kept, kept + (event.exact - before), format)
