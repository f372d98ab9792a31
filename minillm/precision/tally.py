"""What one rounding did to its values, counted from bit patterns: the records that the microscope keeps."""
import functools
import math
from dataclasses import dataclass, field

import numpy as np

from minillm import kernels
from minillm.autograd.watching import Event
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32, Format

LANES = 16                     # sums side by side, so that the kernel and its twin add in one order
INFINITY = 0x7F800000          # as a pattern of float32 without a sign; NaN lies above it
FATES = ("zeroed", "subnormal", "saturated", "overflowed", "infinite", "nan")
LOWEST = -149                  # the exponent of float32's smallest subnormal, in the histogram's place 1


def first_beyond(format: Format) -> float:
    """The least size that nearest-even rounding takes beyond the format; the tie counts where the largest value is odd.

    Without a mantissa every value is odd: its one digit is a 1.
    """
    tie, odd = format.max + format.ulp(format.max) / 2, format.code_below(format.max) % 2 or format.mantissa_bits == 0
    return tie if odd else math.nextafter(tie, math.inf)


def exponent_counts(x: np.ndarray) -> dict[int, int]:
    """How many values have which exponent, floor(log2 |x|), read from the bits; zeros and what is not finite are left out."""
    exponents = np.frexp(x[np.isfinite(x) & (x != 0)])[1] - 1        # frexp gives 0.5 <= m < 1
    found, counts = np.unique(exponents, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def pattern_from(size: float) -> int:
    """The bits of the least float32 that is at least `size`; those of infinity where there is none."""
    if size > FLOAT32.max:
        return INFINITY
    near = np.float32(size)
    return int(near.view(np.int32)) + (float(near) < size)


@functools.cache
def ends(format: Format) -> tuple[int, int]:
    """Bit patterns of the smallest normal value and of the first size that lies beyond the format."""
    return pattern_from(format.tiny), pattern_from(first_beyond(format))


@dataclass
class Tally:
    """Counts of all roundings at one address in one phase. `histogram`: how many values have exponent -149 + i at place i + 1.

    Its first place holds zeros, its last what is not finite. `errors` and `sizes`: sums of squares of rounded - exact and of exact,
    each in 16 parts, over values that are finite before and after. `largest`: the pattern of the largest finite size.
    """

    format: Format
    values: int = 0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(len(FATES) + 1, np.int64))
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(279, np.int64))
    errors: np.ndarray = field(default_factory=lambda: np.zeros(LANES, np.float64))
    sizes: np.ndarray = field(default_factory=lambda: np.zeros(LANES, np.float64))
    lost: int = 0

    def add(self, event: Event) -> None:
        """Count one rounding."""
        exact, rounded = np.asarray(event.exact), np.asarray(event.rounded)
        if exact.dtype != np.float32 or rounded.dtype not in (np.float16, np.float32):
            raise MiniLLMError(f"the microscope counts roundings of float32 values, not of {exact.dtype} to {rounded.dtype}: "
                               "watch a run in float32 or narrower formats")
        count = kernels.load("watching").tally if kernels.enabled() else tally
        count(exact, rounded, *ends(self.format), self.counts, self.histogram, self.errors, self.sizes)
        self.values += exact.size
        if event.before is not None and self.format.bits < 32:
            before = np.asarray(event.before)
            self.lost += int(np.count_nonzero((rounded == before) & (exact != before)))

    @property
    def not_finite(self) -> bool:
        """Whether any value was infinite or NaN after its rounding."""
        return bool(self.counts[4] + self.counts[5])

    def record(self) -> dict:
        """Plain data: counts by their names, and what follows from them. None where there is no number.

        "headroom": bits from the largest finite size to the format's largest value, below 0 beyond it. "error": root mean square of
        rounded - exact, over that of exact. "exponents": {exponent: count}, and "zero": the values that were 0 before.
        """
        largest = float(np.int32(self.counts[-1]).view(np.float32))
        found = np.flatnonzero(self.histogram[1:-1])
        size = math.fsum(self.sizes)
        return {"format": self.format.name, "values": self.values,
                **dict(zip(FATES, self.counts[:-1].tolist(), strict=True)), "lost": self.lost,
                "largest": largest, "headroom": math.log2(self.format.max) - math.log2(largest) if largest else None,
                "error": math.sqrt(math.fsum(self.errors) / size) if size else None,
                "exponents": {int(i) + LOWEST: int(self.histogram[1 + i]) for i in found} | {"zero": int(self.histogram[0])}}


def tally(exact: np.ndarray, rounded: np.ndarray, tiny: int, beyond: int, counts, histogram, errors, sizes) -> None:
    """The kernel's twin, in NumPy: add what is found to the arrays of a Tally.

    tiny and beyond: bit patterns of the smallest normal value and of the first that lies beyond the format.
    """
    x, y = np.ravel(exact), np.ravel(rounded).astype(np.float32)
    size, after = (a.view(np.int32) & 0x7FFFFFFF for a in (x, y))
    finite = size < INFINITY
    fates = ((size > 0) & (after == 0), (after > 0) & (after < tiny), (size >= beyond) & finite & (after < INFINITY),
             finite & (after >= INFINITY), after == INFINITY, after > INFINITY)
    counts[:-1] += [np.count_nonzero(fate) for fate in fates]
    counts[-1] = max(counts[-1], size[finite].max(initial=0))
    exponents = np.frexp(x)[1] - 1                                   # from the bits; 0.5 <= its fraction < 1
    places = np.where(size == 0, 0, np.where(finite, exponents - LOWEST + 1, len(histogram) - 1))
    histogram += np.bincount(places, minlength=len(histogram))
    fine = finite & (after < INFINITY)
    x, y = (np.where(fine, a, 0).astype(np.float64) for a in (x, y))
    for sums, values in ((errors, y - x), (sizes, x)):
        squares = np.zeros(-(-x.size // LANES) * LANES, np.float64)
        squares[:x.size] = np.square(values)
        np.add.reduce(np.vstack([sums, squares.reshape(-1, LANES)]), axis=0, out=sums)       # row by row, in order
