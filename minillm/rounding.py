"""The only place where a value is rounded, and where random bits come from.

`round_to` works on bit patterns, never on floor(log2(x)), which is wrong just below most powers of two. A float64 input is rounded
from its own bits: through float32 it would be rounded twice.
"""
import functools
import math
import re

import numpy as np

from minillm import kernels
from minillm.backend import array_module
from minillm.errors import MiniLLMError, unknown
from minillm.formats import E8M0, FLOAT32, Format

ROUNDINGS = ("nearest_even", "nearest_away", "toward_zero", "up", "down", "stochastic")


@functools.cache
def check_rounding(rounding: str) -> tuple[str, int]:
    """The mode and its random bits: "stochastic_8" draws 8 of them, "stochastic" 32. MiniLLMError for an unknown one."""
    found = re.fullmatch(r"stochastic_([1-9]|[12]\d|3[0-2])", rounding)
    if rounding not in ROUNDINGS and not found:
        raise unknown("rounding", rounding, (*ROUNDINGS, "stochastic_8"))
    return ("stochastic", int(found[1])) if found else (rounding, 32)


def round_to(x, format: Format, rounding: str = "nearest_even", key: int | None = None, overwrite: bool = False):
    """Round floating values into a format, each to one of the two values of the format that are next to it.

    x: array of any shape and byte order, float16, float32 or float64, or a Python float. Returns an array of `format.storage`;
    x itself if there is nothing to round. rounding: one of ROUNDINGS, or "stochastic_n" with n random bits instead of 32.
    overwrite: nobody needs x any more, so that its memory may, but need not, hold the result.

    A stochastic one needs a `key` of 64 bits, from which and from each value's place in x its bits come. It takes the larger size
    with the probability of x's place between the two, cut to n bits: with few of them sizes come out too small, by less than 2^-n
    of the distance.

    Signed zeros keep their sign where the format has them, subnormals are kept, NaN stays NaN (quiet) or becomes what `format.nan`
    says. Beyond the largest value the nearest and stochastic modes give what `format.overflow` says, as IEEE 754 has it; modes that
    round towards 0 there stop at the largest value. An infinity stays one where the format has it. What is below 0 where there is
    no sign, and 0 where there is no zero, is NaN, or the least value where there is no NaN. MiniLLMError for integers, long
    doubles, an unknown rounding, and a stochastic one without a key.
    """
    mode, random = check_rounding(rounding)
    x = floats(x, format)
    if mode == "stochastic":
        key = check_key(key, f"{rounding} rounding to {format.name}")
    if x.dtype == format.storage and not format.simulated:
        return x
    if x.dtype == np.float16:
        x = widen(x, np.float32)
    if mode == "nearest_even" and not format.simulated:
        return to_native(x, format)
    compiled = x.dtype == np.float32 and isinstance(x, np.ndarray) and kernels.enabled()
    if compiled and format is E8M0 and mode == "nearest_even":
        return kernels.load("rounding").to_block_scales(x)
    if compiled and has_kernel(format):
        return to_native(kernels.load("rounding").to_grid(x, format, mode, random, key or 0, overwrite), format)
    if format.tiny < np.finfo(x.dtype).tiny or np.finfo(x.dtype).bits < np.finfo(format.storage).bits:
        x = widen(x, np.float64)                 # exact: 2^-127, the least block scale, is subnormal in float32
    return to_native(to_grid(x, format, mode, random, key), format)


@functools.cache
def has_kernel(format: Format) -> bool:
    """Whether the compiled loops cover a format: a sign, a zero, float32's normal range, and a spacing to add 2^23 of."""
    return format.signed and format.zero and format.storage is not np.float64 and format.tiny >= FLOAT32.tiny \
        and 2.0**23 * format.smallest <= FLOAT32.max


def check_key(key: int | None, what: str) -> int:
    """The key as Python's integer; MiniLLMError unless it is a whole number of 64 bits."""
    if key is None:
        raise MiniLLMError(f"{what} needs a key: give a number, a new one for each array")
    if not isinstance(key, int | np.integer) or not 0 <= key < 2**64:
        raise MiniLLMError(f"{what} has the key {key!r}: give a whole number from 0 to 2^64 - 1")
    return int(key)


def floats(x, format):
    """X as an array of native float16, float32 or float64; anything else has no bits that could be rounded."""
    if type(x) is np.ndarray and x.dtype.char in "efd" and x.dtype.isnative:
        return x
    if isinstance(x, np.generic) or not hasattr(x, "dtype"):
        x = np.asarray(x)
    if x.dtype.kind != "f" or x.dtype.itemsize > 8:
        raise MiniLLMError(f"cannot round {x.dtype} to {format.name}: convert it to float32 first, e.g. x.astype(np.float32)")
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def to_native(x, format):
    """X in the type of `format.storage`, rounded to nearest even where that is narrower; NaN keeps its upper digits and is quieted.

    NumPy's conversion rounds on bit patterns, once. Where x is on the format's grid already, nothing is left to round.
    """
    if x.dtype == format.storage:
        return x
    if (x.dtype, format.storage) == (np.float32, np.float16) and isinstance(x, np.ndarray) and kernels.enabled():
        return kernels.load("rounding").to_float16(x)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        y = np.asarray(x.astype(format.storage))
    nan = np.isnan(y)
    if y.dtype == np.float16 and nan.any():
        size = np.asarray(x)[nan]
        payload = size.view(np.uint32) >> 13 if x.dtype == np.float32 else (size.view(np.uint64) >> 42).astype(np.uint32)
        sign = np.signbit(size).astype(np.uint16) << 15
        y.view(np.uint16)[nan] = sign | 0x7E00 | (payload & 0x1FF).astype(np.uint16)
    return y


def to_grid(x, format: Format, mode: str = "nearest_even", random: int = 32, key: int | None = None):
    """The value of the format that a mode takes for each x, from the bit patterns of x; in the type of x.

    x: float32 or float64, with `format.tiny` among its normal values. This is the specification that kernels are tested against.
    """
    xp = array_module(x)
    word, digits = (xp.uint32, 23) if x.dtype == xp.float32 else (xp.uint64, 52)
    width, bits_of = 8 * x.itemsize, lambda value: xp.asarray(value, x.dtype).view(word)
    x = xp.ascontiguousarray(x).reshape(x.shape)
    size = x.view(word) & word(2 ** (width - 1) - 1)
    negative = x.view(word) != size
    exponent, smallest = xp.maximum(size >> word(digits), word(1)), bits_of(format.smallest)
    lowest = bits_of(format.tiny) >> word(digits)                # below tiny, values have the distance that they have there
    drop = word(digits - format.mantissa_bits) + lowest - xp.minimum(exponent, lowest)         # digits that fall away
    drop = xp.minimum(drop, word(digits))
    low = (size < smallest) & (smallest >= word(1 << digits))    # between 0 and the smallest value, with no digit to stay
    below = xp.where(low, word(0), size >> drop << drop)
    above = xp.where(low, smallest, below + (word(1) << drop))   # a carry moves into the exponent
    part = (size & (word(1) << drop) - word(1)) << word(width - 1) - drop << word(1)           # of the way up, in 2^-width
    short = (smallest >> word(digits)) - xp.minimum(exponent, smallest >> word(digits))        # binades
    in_low = (size & word(2**digits - 1)) + word(1 << digits) * (size >= word(1 << digits)) << word(width - 1 - digits)
    in_low = in_low << (short == 0).astype(word) >> xp.minimum(xp.maximum(short, word(1)) - word(1), word(width - 1))
    part = xp.where(low, in_low, part)
    odd = ~low & ((drop == word(digits)) | (size >> drop & word(1) == word(1)))
    goes_up = {
        "nearest_even": lambda: (part > word(2 ** (width - 1))) | (part == word(2 ** (width - 1))) & odd,
        "nearest_away": lambda: part >= word(2 ** (width - 1)),
        "toward_zero": lambda: xp.zeros(x.shape, bool),
        "up": lambda: ~negative & (size != below), "down": lambda: negative & (size != below),
        "stochastic": lambda: random_bits(xp, key, x.shape) >> xp.uint32(32 - random) < part >> word(width - random),
    }[mode]()
    result = beyond_the_ends(xp, xp.where(goes_up, above, below), size, negative, format, mode, bits_of, digits)
    return xp.asarray(result.view(x.dtype))                      # NumPy makes a scalar of a result without axes


def beyond_the_ends(xp, result, size, negative, format: Format, mode: str, bits_of, digits: int):
    """Overflow, infinities, NaN and zeros as the format has them; result and size are bit patterns without a sign."""
    infinity, largest, nan = bits_of(xp.inf), bits_of(format.max), bits_of(xp.nan)
    if format.lowest != -format.max:
        largest = xp.where(negative, bits_of(-format.lowest), largest)
    stops = (mode == "toward_zero") | (mode == "up") & negative | (mode == "down") & ~negative
    end = {"infinity": infinity, "nan": nan, "saturate": largest}[format.overflow]
    result = xp.where(result > largest, xp.where(stops & (size < infinity), largest, end), result)
    if not format.zero:
        result = xp.maximum(result, bits_of(format.smallest))
        result = xp.where(size == 0, nan, result) if format.has_nan else result
    if format.specials == "ieee":
        result = xp.where(size == infinity, infinity, result)
    if not format.signed:
        result = xp.where(negative & (size > 0), nan if format.has_nan else bits_of(format.lowest), result)
    drop = nan.dtype.type(digits - max(format.mantissa_bits, 1))
    quiet = (size | nan) >> drop << drop
    instead = quiet if format.has_nan else largest * 0 if format.nan == "zero" else bits_of(format.max)
    signed = format.signed & negative & (format.has_negative_zero | (result > 0)) & (format.has_nan | (size <= infinity))
    result = xp.where(size > infinity, instead, result)
    return result | signed.astype(result.dtype) << nan.dtype.type(8 * nan.itemsize - 1)


def widen(x, compute):
    """A narrow array in the type that ops compute in: exact. x itself if it has that type already."""
    if x.dtype == compute:
        return x
    if x.dtype == np.float16 and compute == np.float32 and isinstance(x, np.ndarray) and kernels.enabled():
        return kernels.load("rounding").to_float32(x)
    with np.errstate(invalid="ignore"):          # a NaN that was not quiet
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
