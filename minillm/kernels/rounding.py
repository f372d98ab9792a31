"""Whole arrays between formats: float32 to float16 and back, float32 to the bfloat16 grid."""
import numpy as np
from numba import njit

from minillm.kernels.scalars import JIT, bits, bits_float, float_bits, load, store


@njit(**JIT)
def _copy(x, out):
    for i in range(x.size):
        store(out, i, load(x, i))


@njit(**JIT)
def _bfloat16(x, out):
    for i in range(x.size):
        b = float_bits(x[i])
        nearest = np.int32((b + 0x7FFF + ((b >> 16) & 1)) & -0x10000)        # half an ulp, ties to even
        quiet = np.int32((b | 0x400000) & -0x10000)
        out[i] = bits_float(quiet if (b & 0x7FFFFFFF) > 0x7F800000 else nearest)


def _each(kernel, x, dtype):
    """Run a loop over the values of x in whatever order they lie, into a new array of the same layout."""
    if not (x.flags.c_contiguous or x.flags.f_contiguous):
        x = np.ascontiguousarray(x)
    out = np.empty_like(x, dtype)
    kernel(bits(x.ravel("K")), bits(out.ravel("K")))
    return out


def to_float16(x: np.ndarray) -> np.ndarray:
    """float32 rounded to float16, nearest even."""
    return _each(_copy, x, np.float16)


def to_float32(x: np.ndarray) -> np.ndarray:
    """float16 widened to float32: exact."""
    return _each(_copy, x, np.float32)


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 rounded to the bfloat16 grid, nearest even, stored in float32."""
    return _each(_bfloat16, x, np.float32)
