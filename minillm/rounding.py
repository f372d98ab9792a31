"""The only place where a value is rounded, and where random bits come from.

`round_to` works on bit patterns, never on floor(log2(x)), which is wrong just below most powers of two. A float64 input is rounded
from its own bits: through float32 it would be rounded twice.
"""
import math

import numpy as np

from minillm import kernels
from minillm.backend import array_module
from minillm.errors import MiniLLMError, unknown
from minillm.formats import BFLOAT16, FLOAT16, Format

ROUNDINGS = ("nearest_even",)

_KERNELS = {FLOAT16: "to_float16", BFLOAT16: "to_bfloat16"}


def round_to(x, format: Format, rounding: str = "nearest_even", key: int | None = None):
    """Round floating values into a format: each to its nearest value, ties to even; beyond the largest, infinity.

    x: array of any shape and byte order, float16, float32 or float64, or a Python float. Returns an array of `format.storage`;
    x itself if there is nothing to round. NaN stays NaN (quiet), signed zeros keep their sign, subnormals are kept. `key` is
    for roundings that draw random bits. Raises MiniLLMError for integers, long doubles and an unknown rounding.
    """
    if rounding not in ROUNDINGS:
        raise unknown("rounding", rounding, ROUNDINGS)
    x = floats(x, format)
    if x.dtype == format.storage and not format.simulated:
        return x
    if x.dtype == np.float32 and format in _KERNELS and isinstance(x, np.ndarray) and kernels.enabled():
        return getattr(kernels.load("rounding"), _KERNELS[format])(x)
    if x.dtype == np.float16:
        x = widen(x, np.float32)
    if format.simulated:
        return nearest_even(x, format).astype(format.storage, copy=False)
    return x if x.dtype == format.storage else _to_native(x, format)


def floats(x, format):
    """X as an array of native float16, float32 or float64; anything else has no bits that could be rounded."""
    if isinstance(x, np.generic) or not hasattr(x, "dtype"):
        x = np.asarray(x)
    if x.dtype.kind != "f" or x.dtype.itemsize > 8:
        raise MiniLLMError(f"cannot round {x.dtype} to {format.name}: convert it to float32 first, e.g. x.astype(np.float32)")
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def _to_native(x, format):
    """NumPy's own conversion, which rounds on bit patterns, once; NaN keeps its upper digits and is quieted, as processors do."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        y = np.asarray(x.astype(format.storage))
    nan = np.isnan(y)
    if format is FLOAT16 and nan.any():
        size = np.asarray(x)[nan]
        payload = size.view(np.uint32) >> 13 if x.dtype == np.float32 else (size.view(np.uint64) >> 42).astype(np.uint32)
        sign = np.signbit(size).astype(np.uint16) << 15
        y.view(np.uint16)[nan] = sign | 0x7E00 | (payload & 0x1FF).astype(np.uint16)
    return y


def nearest_even(x, format: Format):
    """The value of a binary format nearest to each x, ties to even, on the bit patterns of x; in the type of x.

    x: float32 or float64, wider than the format. This is the specification that kernels are tested against.
    """
    xp = array_module(x)
    word, digits, bias = (xp.uint32, 23, 127) if x.dtype == xp.float32 else (xp.uint64, 52, 1023)
    implicit, infinity = word(1 << digits), word(2 * bias + 1 << digits)
    x = xp.ascontiguousarray(x).reshape(x.shape)
    sign = x.view(word) & word(1 << (8 * x.itemsize - 1))
    size = x.view(word) ^ sign
    exponent = xp.maximum(size >> word(digits), word(1))                      # a subnormal has the exponent of the smallest normal
    significand = (size & (implicit - word(1))) | (implicit * (size >= implicit))
    lowest = xp.maximum(exponent, word(bias + 1 - format.bias))               # below the format's tiny, more digits do not fit
    drop = xp.minimum(word(digits - format.mantissa_bits) + (lowest - exponent), word(digits + 2))
    half, odd = word(1) << (drop - word(1)), (significand >> drop) & word(1)
    kept = (significand + half - word(1) + odd) >> drop << drop               # nearest, ties to even
    result = xp.where(kept == 0, word(0), (exponent << word(digits)) + kept - implicit)      # a carry moves into the exponent
    largest = xp.asarray(format.max, x.dtype).view(word)
    result = xp.where(result > largest, infinity, result)
    quiet = size | word(1 << (digits - 1))
    result = xp.where(size > infinity, quiet >> word(digits - format.mantissa_bits) << word(digits - format.mantissa_bits), result)
    return xp.asarray((result | sign).view(x.dtype))              # NumPy makes a scalar of a result without axes


def widen(x, compute):
    """A narrow array in the type that ops compute in: exact. x itself if it has that type already."""
    if x.dtype == compute:
        return x
    if x.dtype == np.float16 and compute == np.float32 and isinstance(x, np.ndarray) and kernels.enabled():
        return kernels.load("rounding").to_float32(x)
    y = x.astype(compute)
    if x.dtype == np.float16 and compute == np.float32:
        nan = y != y
        if nan.any():
            y.view(np.uint32)[nan] |= np.uint32(0x400000)        # quiet, as processors do and NumPy does not
    return y


def random_bits(xp, key: int, shape):
    """32 random bits for each element, from (key, index) alone: no state, no order, no threads.

    key: 64 bits. A multiply-xorshift hash of the index (constants of MurmurHash3 and xxHash), both halves of the key mixed in.
    """
    z = xp.arange(math.prod(shape), dtype=xp.uint32) * xp.uint32(0x9E3779B9) + xp.uint32(key & 0xFFFFFFFF)
    for multiplier, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13), (0x27D4EB2F, 15)):
        z = (z ^ (z >> xp.uint32(shift))) * xp.uint32(multiplier) ^ xp.uint32(key >> 32)
    return (z ^ (z >> xp.uint32(16))).reshape(shape)             # shape, uint32
