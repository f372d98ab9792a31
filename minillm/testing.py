"""Oracles and derived error bounds, for our tests and for users'. FLOAT64 exists only here.

Bounds hold where nothing overflows. They come from the format alone: unit roundoff u, number of terms K, smallest subnormal.
"""
import numpy as np

from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32, Format

FLOAT64 = Format("float64", 11, 52, np.float64, np.float64)


def gamma(K: int, format: Format) -> float:
    """The largest relative error of K roundings in a row, K u / (1 - K u). Higham 2002, lemma 3.1.

    MiniLLMError where K u reaches 1 and nothing can be said.
    """
    Ku = K * format.roundoff
    if Ku >= 1:
        raise MiniLLMError(f"{K} roundings in {format.name} have no error bound: K times the unit roundoff is {Ku:g}")
    return Ku / (1 - Ku)


def rounding_bound(y, format: Format) -> np.ndarray:
    """The largest error of one rounding of y to nearest: u |y|, and half a smallest subnormal below the normal range."""
    return format.roundoff * np.abs(np.asarray(y, np.float64)) + format.smallest_subnormal / 2


def sum_bound(x, axis=None, out_format: Format = FLOAT32, accumulator: Format = FLOAT32, keepdims: bool = False) -> np.ndarray:
    """The largest error of x.sum(axis) in any order, rounded into `out_format` at last. Higham 2002, section 4.2."""
    x = np.asarray(x, np.float64)
    y = x.sum(axis, keepdims=keepdims)
    return after_rounding(y, gamma(x.size // max(y.size, 1), accumulator) * np.abs(x).sum(axis, keepdims=keepdims), out_format)


def dot_bound(a, b, out_format: Format = FLOAT32, accumulator: Format = FLOAT32) -> np.ndarray:
    """The largest error of a @ b, (..., M,K) (..., K,N), summed in any order and rounded into `out_format` at last.

    u_out |y| + gamma_K |a| |b|, with half a smallest subnormal for the result and for each product. Higham 2002, section 3.5.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    K, floor = a.shape[-1], accumulator.smallest_subnormal / 2
    return after_rounding(a @ b, gamma(K, accumulator) * (np.abs(a) @ np.abs(b)) + K * floor, out_format)


def after_rounding(y, error, format: Format) -> np.ndarray:
    """The largest error of a value that was within `error` of y before it was rounded into the format."""
    return error + rounding_bound(np.abs(y) + error, format)


def ulp_distance(a, b) -> np.ndarray:
    """How many steps from one value to the next lie between a and b, arrays of one floating type; int64.

    -0 and 0 are 0 apart, NaN and NaN too; NaN and a number are 2^63 - 1 apart.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != b.dtype or a.dtype.kind != "f" or a.dtype.itemsize > 4:
        raise MiniLLMError(f"ulp_distance takes two float16 or two float32 arrays, not {a.dtype} and {b.dtype}")
    apart = np.abs(line_up(a) - line_up(b))
    return np.where(np.isnan(a) | np.isnan(b), np.where(np.isnan(a) & np.isnan(b), 0, 2**63 - 1), apart)


def line_up(x) -> np.ndarray:
    """Integers in the order of the values, one apart from each to the next."""
    bits = np.ascontiguousarray(x).view(f"i{x.itemsize}").reshape(x.shape).astype(np.int64)
    return np.where(bits < 0, -(2 ** (8 * x.itemsize - 1)) - bits, bits)
