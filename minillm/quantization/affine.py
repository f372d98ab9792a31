"""Affine quantization: numbers as integers of a grid, Q(x) = round(x / S + Z), so that x is about S (Q - Z).

S, the scale, is one step of the grid; Z, the zero point, is the code of 0. Jacob et al. 2018, arXiv 1712.05877, section 2.1. Where
the field disagrees (which way halves go, whether Z is added before or after rounding, 127 or 127.5), a scheme says which it is.
"""
import math
from dataclasses import dataclass

import numpy as np

from minillm.errors import MiniLLMError, unknown
from minillm.formats import FLOAT32, Format
from minillm.rounding import round_to

GRANULARITIES = ("tensor", "channel", "group", "token")


def half_up(v):
    """Round to whole numbers, halves up; v + 0.5 would round the number just below a half onto the next one."""
    whole = np.floor(v)
    return whole + (v - whole >= 0.5)


def half_away(v):
    """Round to whole numbers, halves away from zero."""
    return np.copysign(half_up(np.abs(v)), v)


HALVES = {"half_even": np.rint, "half_up": half_up, "half_away": half_away}


@dataclass(frozen=True)
class Grid:
    """The integers lowest ... highest that a code may be, at most eight bits."""

    lowest: int
    highest: int

    def __post_init__(self):
        if not -128 <= self.lowest <= 0 < self.highest <= 127:
            raise MiniLLMError(f"a grid of {self.lowest} ... {self.highest}: it must hold 0 and 1 and lie in -128 ... 127")

    @property
    def bits(self) -> int:
        return (self.highest - self.lowest).bit_length()


def grid(bits: int, narrow: bool = True) -> Grid:
    """The signed integers of `bits` bits; `narrow` leaves the lowest out, so that both sides are alike: -127 ... 127."""
    if not 2 <= bits <= 8:
        raise MiniLLMError(f"a grid of {bits} bits: 2 to 8 are possible")
    return Grid(-(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1)


INT8, INT4, TERNARY = grid(8), grid(4), grid(2)                  # -127 ... 127, -7 ... 7, -1 ... 1


@dataclass(frozen=True)
class Scheme:
    """How an array becomes codes.

    granularity: one scale for the whole "tensor", one for each index of `axis` ("channel"), for each `group` neighbours along the
    last axis ("group"), or for each row of the last axis ("token").
    zero_point_inside: round(x / S + Z), the formula; else round(x / S) + Z: halves to even then differ wherever Z is odd.
    half_range: a symmetric scale is max|x| over half the grid's length (127.5 for -128 ... 127), not over its highest code (127).
    """

    grid: Grid = INT8
    symmetric: bool = True
    granularity: str = "tensor"
    axis: int = 0
    group: int = 32
    halves: str = "half_even"
    zero_point_inside: bool = True
    half_range: bool = False
    scale_format: Format = FLOAT32

    def __post_init__(self):
        for kind, value, known in (("granularity", self.granularity, GRANULARITIES), ("rounding of halves", self.halves, HALVES)):
            if value not in known:
                raise unknown(kind, value, known)
        if self.group < 1:
            raise MiniLLMError(f"a group of {self.group}: it must have at least 1 value")

    def rows(self, x: np.ndarray) -> np.ndarray:
        """An array as (S,n): a row for each scale. Groups at the end of an axis are filled up with zeros, which no range minds."""
        if self.granularity == "tensor":
            return x.reshape(1, -1)
        if self.granularity == "channel":
            moved = np.moveaxis(x, self.axis, 0)
            return moved.reshape(len(moved), math.prod(moved.shape[1:]))
        if self.granularity == "token":
            return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        K, missing = x.shape[-1], -x.shape[-1] % self.group
        filled = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x
        return filled.reshape(math.prod(x.shape[:-1]) * (K + missing) // self.group, self.group)

    def array(self, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """What `rows` was made of: (S,n) back to `shape`."""
        if self.granularity == "channel":
            moved = (shape[self.axis], *(n for i, n in enumerate(shape) if i != self.axis % len(shape)))
            return np.moveaxis(rows.reshape(moved), 0, self.axis)
        if self.granularity == "group":
            return rows.reshape(*shape[:-1], -(-shape[-1] // self.group) * self.group)[..., :shape[-1]]
        return rows.reshape(shape)

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scales of an array: () for a tensor, (N,) for channels, (N, K / group), or that of tokens."""
        return {"tensor": (), "channel": shape[self.axis:][:1], "token": shape[:-1],
                "group": (*shape[:-1], -(-shape[-1] // self.group)) if shape else ()}[self.granularity]


PER_TENSOR = Scheme()
PER_ROW = Scheme(granularity="channel")


@dataclass(frozen=True)
class Quantized:
    """Codes int8 in the shape of what they stand for; scales, and zero points int8 or None, in the scheme's scale_shape."""

    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray | None
    scheme: Scheme

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def nbytes(self) -> int:
        """What it takes in a file: codes packed to their bits, scales in their format, zero points."""
        codes = -(-self.codes.size * self.scheme.grid.bits // 8)
        scales = self.scale.size * self.scheme.scale_format.bits // 8
        return codes + scales + (0 if self.zero_point is None else self.zero_point.nbytes)

    def values(self) -> np.ndarray:
        """The float32 values that the codes stand for: S (Q - Z), one rounding."""
        rows = self.scheme.rows(self.codes).astype(np.float32)                             # (S,n) f32
        if self.zero_point is not None:
            rows -= self.zero_point.reshape(-1, 1)
        return self.scheme.array(rows * self.scale.reshape(-1, 1).astype(np.float32), self.shape)


def quantize(x: np.ndarray, scheme: Scheme = PER_TENSOR, low=None, high=None) -> Quantized:
    """An array as codes on the range low ... high, (S,) each; without one, on the range that each row of it has.

    Beyond the range codes saturate. MiniLLMError for NaN, and for a range that is not finite.
    """
    if low is None:
        low, high = extent(scheme.rows(x))
    return quantize_with(x, *scale_and_zero_point(low, high, scheme), scheme)


def extent(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest value of each row (S,n), 0 among them, so that 0 has a code."""
    return rows.min(-1, initial=0), rows.max(-1, initial=0)


def scale_and_zero_point(low, high, scheme: Scheme) -> tuple[np.ndarray, np.ndarray | None]:
    """Scales (S,) in the scheme's format, and zero points (S,) int8 or None, that bring low ... high onto the grid.

    A range of nothing but 0 has scale 1. MiniLLMError for one that is not finite.
    """
    low, high = np.minimum(np.float32(low), np.float32(0)), np.maximum(np.float32(high), np.float32(0))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        wrong = low[~np.isfinite(low)] if not np.isfinite(low).all() else high[~np.isfinite(high)]
        raise MiniLLMError(f"a range ends at {np.ravel(wrong)[0]}, which no scale can hold: look for what was not finite, "
                           "or take an observer that clips")
    if scheme.symmetric:
        steps = (scheme.grid.highest - scheme.grid.lowest) / 2 if scheme.half_range else scheme.grid.highest
        return as_scale(np.maximum(-low, high) / np.float32(steps), -scheme.grid.lowest, scheme.scale_format), None
    levels = np.float32(scheme.grid.highest - scheme.grid.lowest)
    scale = as_scale(high / levels - low / levels, levels, scheme.scale_format)    # high - low may be beyond float32
    zero_point = np.clip(HALVES[scheme.halves](scheme.grid.lowest - low / scale), scheme.grid.lowest, scheme.grid.highest)
    return scale, zero_point.astype(np.int8)


def as_scale(scale: np.ndarray, steps: int = 127, format: Format = FLOAT32) -> np.ndarray:
    """A scale that can be divided by, rounded to its format: 1 for 0; not so small that it lacks digits; finite, and `steps` of it.

    The quotient by float16's few subnormal digits is as exact as any, since it is taken in float32.
    """
    least = format.tiny if format is FLOAT32 else format.smallest
    most = min(np.nextafter(np.float32(FLOAT32.max / steps), np.float32(0)), np.float32(format.max))
    return round_to(np.where(scale > 0, np.clip(scale, np.float32(least), most), np.float32(1)), format)


def quantize_with(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None, scheme: Scheme) -> Quantized:
    """An array as codes with scales and zero points that are given, (S,) or in the scheme's scale_shape."""
    shape = scheme.scale_shape(x.shape)
    codes = codes_of(scheme.rows(x), scale.reshape(-1, 1), None if zero_point is None else zero_point.reshape(-1, 1), scheme)
    return Quantized(np.ascontiguousarray(scheme.array(codes, x.shape)).reshape(x.shape), scale.reshape(shape),
                     None if zero_point is None else zero_point.reshape(shape), scheme)


def codes_of(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None, scheme: Scheme) -> np.ndarray:
    """The codes of x, int8, as exact arithmetic has them; all broadcast. Saturating; MiniLLMError for NaN."""
    if np.isnan(x).any():
        raise MiniLLMError(f"{np.isnan(x).sum()} of {x.size} values are NaN, which has no code: find where they came from first")
    quotient = np.divide(x, scale, dtype=np.float64)     # in float32, what lies just beside a half would be rounded onto it first
    halves = HALVES[scheme.halves]
    if zero_point is None:
        code = halves(quotient)
    else:
        code = halves(quotient + zero_point) if scheme.zero_point_inside else halves(quotient) + zero_point
    return np.clip(code, scheme.grid.lowest, scheme.grid.highest).astype(np.int8)
