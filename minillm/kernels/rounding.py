"""Whole arrays between formats: float32 to float16 and back, and to the grid of any other format in any rounding."""
import functools

import numpy as np
from numba import njit

from minillm.kernels.launch import TASK, many_in_pool
from minillm.kernels.scalars import JIT, bits, bits_float, float_bits, load, store
from minillm.kernels.tasks import shares

LEAST = 8192


@njit(**TASK)
def _copy(task, x, out, each):
    x, out = x[task * each:(task + 1) * each], out[task * each:(task + 1) * each]
    for i in range(x.size):
        store(out, i, load(x, i))


@njit(**JIT)
def _copy_pool(tasks, x, out, each):
    many_in_pool(_copy, tasks, (x, out, each))


def _run(pool, x, out, *rest):
    """Flat arrays, in tasks of at least 8192 values: 3 to 10 us each."""
    each, tasks = shares(x.size, LEAST)
    pool(tasks, x, out, each, *rest)


def _each(kernel, x, dtype):
    """Run a loop over the values of x in whatever order they lie, into a new array of the same layout."""
    if x.flags.c_contiguous:
        out = np.empty(x.shape, dtype)
        kernel(bits(x.reshape(-1)), bits(out.reshape(-1)))
        return out
    if not x.flags.f_contiguous:
        x = np.ascontiguousarray(x)
    out = np.empty_like(x, dtype)
    kernel(bits(x.ravel("K")), bits(out.ravel("K")))
    return out


def _copied(x, out):
    _run(_copy_pool, x, out)


def to_float16(x: np.ndarray) -> np.ndarray:
    """float32 rounded to float16, nearest even."""
    return _each(_copied, x, np.float16)


def to_float32(x: np.ndarray) -> np.ndarray:
    """float16 widened to float32: exact."""
    return _each(_copied, x, np.float32)


@njit(inline="always")
def _shortened(value, drop):
    """A float32 without its last `drop` digits, nearest even: a carry moves into the exponent, and past the largest is infinity."""
    pattern, kept = float_bits(value), np.int32(np.int32(-1) << drop)
    half = np.int32(np.int32(np.int32(1) << np.int32(drop - 1)) - 1 + np.int32(np.int32(pattern >> drop) & 1))
    quiet = np.int32(np.int32(pattern | 0x400000) & kept)
    return bits_float(quiet if np.int32(pattern & 0x7FFFFFFF) > 0x7F800000 else np.int32(np.int32(pattern + half) & kept))


@njit(**TASK)
def _shorten(task, x, out, each, digits, in_place):
    x, out, drop = x[task * each:(task + 1) * each], out[task * each:(task + 1) * each], np.int32(digits)
    if in_place:                                 # a loop of its own: where x and out may overlap, nothing is vectorised
        for i in range(x.size):
            out[i] = _shortened(out[i], drop)
    else:
        for i in range(x.size):
            out[i] = _shortened(x[i], drop)


@njit(**JIT)
def _shorten_pool(tasks, x, out, each, digits, in_place):
    many_in_pool(_shorten, tasks, (x, out, each, digits, in_place))


@njit(**JIT)
def _block_scales(x, out):
    for i in range(x.size):
        pattern = float_bits(x[i])               # without mantissa a tie goes up; 2^-127, 0x400000, is subnormal in float32
        nearest = np.int32(np.int32(pattern + 0x400000) & ~0x7FFFFF) if pattern >= 0x600000 else np.int32(0x400000)
        out[i] = bits_float(nearest if (pattern > 0) & (pattern < 0x7F400000) else np.int32(0x7FC00000))


def to_block_scales(x: np.ndarray) -> np.ndarray:
    """float32 rounded to E8M0's powers of two, nearest even, stored in float32; NaN for what is not above 0, or too large."""
    return _each(_block_scales, x, np.float32)


@njit(inline="always")
def random_bits(i, low, high):
    """rounding.random_bits for the value at i."""
    z = np.uint32(np.uint32(i) * np.uint32(0x9E3779B9) + low)
    z = np.uint32(np.uint32((z ^ (z >> np.uint32(16))) * np.uint32(0x85EBCA6B)) ^ high)
    z = np.uint32(np.uint32((z ^ (z >> np.uint32(13))) * np.uint32(0xC2B2AE35)) ^ high)
    z = np.uint32(np.uint32((z ^ (z >> np.uint32(15))) * np.uint32(0x27D4EB2F)) ^ high)
    return np.uint32(z ^ (z >> np.uint32(16)))


@njit(inline="always")
def _finished(result, pattern, stops, positive, negatives, nan, minus_zero):
    """rounding.beyond_the_ends for one value: the pattern without a sign and that of the unrounded value, to the rounded float."""
    size = np.int32(pattern & 0x7FFFFFFF)
    largest, end, of_infinity = negatives if pattern < 0 else positive
    result = (largest if stops else end) if result > largest else result
    result = of_infinity if size == 0x7F800000 else result
    result = np.int32(result | (pattern & np.int32(-0x80000000) if (minus_zero != 0) | (result > 0) else np.int32(0)))
    kept, instead = nan
    return bits_float(np.int32(np.int32((pattern | 0x400000) & kept) | instead) if size > 0x7F800000 else result)


@njit(inline="always")
def _nearest(size, drop, tiny, evenly):
    """The pattern of the value nearest to a size, ties to even, were there no end to the exponents."""
    mask = np.int32(np.int32(np.int32(1) << drop) - 1)
    odd = np.int32((np.int32(size >> drop) | np.int32(drop == 23)) & np.int32(drop > 0))       # the leading 1 alone is odd
    normal = np.int32(np.int32(size + (mask >> 1) + odd) & ~mask)
    near = float_bits((bits_float(size) + evenly) - evenly)                  # below tiny: the adder itself rounds, ties to even
    return normal if size >= tiny else near


@njit(**TASK)
def _nearest_even(task, x, out, each, mantissa, lowest, positive, negatives, nan, minus_zero, evenly):
    """Nearest even. Most arrays lie within the ends of their format: 2048 values that do not are done again with care."""
    x, out = x[task * each:(task + 1) * each], out[task * each:(task + 1) * each]
    drop, tiny = np.int32(23 - mantissa), np.int32(lowest << 23)
    inside = min(positive[0], negatives[0])
    for start in range(0, x.size, 2048):
        block, rounded, most = x[start:start + 2048], out[start:start + 2048], np.int32(0)
        for i in range(block.size):
            pattern = float_bits(block[i])
            size = np.int32(pattern & 0x7FFFFFFF)
            most = max(most, size)
            result = _nearest(size, drop, tiny, evenly)
            sign = np.int32(pattern & np.int32(-0x80000000))
            rounded[i] = bits_float(np.int32(result | (sign if (minus_zero != 0) | (result > 0) else np.int32(0))))
        if most > inside:
            for i in range(block.size):
                pattern = float_bits(block[i])
                result = _nearest(np.int32(pattern & 0x7FFFFFFF), drop, tiny, evenly)
                rounded[i] = _finished(result, pattern, False, positive, negatives, nan, minus_zero)


@njit(**JIT)
def _nearest_even_pool(tasks, x, out, each, mantissa, lowest, positive, negatives, nan, minus_zero, evenly):
    many_in_pool(_nearest_even, tasks, (x, out, each, mantissa, lowest, positive, negatives, nan, minus_zero, evenly))


def _grid(mode):
    """The loop for another mode: rounding.to_grid, value by value, on bit patterns without a sign."""
    away, up, down, stochastic, toward_zero = (mode == m for m in ("nearest_away", "up", "down", "stochastic", "toward_zero"))

    @njit(**JIT)
    def loop(x, out, mantissa, lowest, smallest, positive, negatives, nan, minus_zero, evenly, coarse, low_key, high_key):
        for i in range(x.size):
            pattern = float_bits(x[i])
            size, negative = np.int32(pattern & 0x7FFFFFFF), pattern < 0
            exponent = max(np.int32(size >> 23), np.int32(1))
            drop = np.int32(min(np.int32(23 - mantissa + max(np.int32(lowest - exponent), np.int32(0))), np.int32(23)))
            low = (size < smallest) & (smallest >= 0x800000)
            mask = np.int32(np.int32(np.int32(1) << drop) - 1)
            below = np.int32(0) if low else np.int32(size & ~mask)
            above = smallest if low else np.int32(below + mask + 1)
            short = np.uint32(min(np.int32(max(np.int32((smallest >> 23) - exponent), np.int32(0))), np.int32(31)))
            digits = np.uint32((size & 0x7FFFFF) | 0x800000) if size >= 0x800000 else np.uint32(size)
            in_low = np.uint32(np.uint32(digits << np.uint32(8 + (short == 0))) >> (max(short, np.uint32(1)) - np.uint32(1)))
            part = np.uint32(np.uint32(np.uint32(size & mask) << np.uint32(31 - drop)) << np.uint32(1))
            part = in_low if low else part                       # of the way from below to above, in 2^-32
            goes_up = away & (part >= np.uint32(1 << 31))
            if up:
                goes_up = (not negative) & (size != below)
            if down:
                goes_up = negative & (size != below)
            if stochastic:
                goes_up = np.uint32(random_bits(i, low_key, high_key) >> coarse) < np.uint32(part >> coarse)
            stops = toward_zero | (up & negative) | (down & (not negative))
            out[i] = _finished(above if goes_up else below, pattern, stops, positive, negatives, nan, minus_zero)
    return loop


LOOPS = {mode: _grid(mode) for mode in ("nearest_away", "toward_zero", "up", "down", "stochastic")}


@functools.cache
def shortens(format) -> bool:
    """Whether a format is float32 with fewer digits and nothing else, as bfloat16 and tf32 are: its ends need no care."""
    same = (format.exponent_bits, format.bias, format.specials, format.overflow) == (8, 127, "ieee", "infinity")
    return same and format.subnormals and format.mantissa_bits < 23


@functools.cache
def _facts(format):
    """What the loops are told of a format, as bit patterns."""
    def pattern(value):
        return np.float32(value).view(np.int32)

    def ends(negative):
        return tuple(map(pattern, format.ends(negative)))

    nan = np.int32(-1 << 23 - max(format.mantissa_bits, 1)), np.int32(0)                      # its upper digits stay
    if not format.has_nan:
        nan = np.int32(0), pattern(0 if format.nan == "zero" else format.max)
    evenly = np.float32(2.0**23 * format.smallest)               # next to it, float32 values are `smallest` apart
    return {"mantissa": np.int32(format.mantissa_bits), "lowest": np.int32(pattern(format.tiny) >> 23),
            "smallest": pattern(format.smallest), "positive": ends(False), "negatives": ends(True), "nan": nan,
            "minus_zero": format.has_negative_zero, "evenly": evenly}


def shorten(x: np.ndarray, digits: int, overwrite: bool = False) -> np.ndarray:
    """float32 without its last `digits` bits, 1 to 22, nearest even; in the memory of x itself where that may be overwritten."""
    if overwrite and x.flags.c_contiguous and x.flags.writeable:
        flat = bits(x.reshape(-1))
        _run(_shorten_pool, flat, flat, digits, True)
        return x
    return _each(lambda flat, out: _run(_shorten_pool, flat, out, digits, False), x, np.float32)


def to_grid(x: np.ndarray, format, mode: str, random: int, key: int, overwrite: bool = False) -> np.ndarray:
    """float32 rounded into a format with a sign and a zero that float32 arrays hold, in any mode; stored in float32."""
    if mode == "nearest_even" and shortens(format):
        return shorten(x, 23 - format.mantissa_bits, overwrite)
    if mode == "nearest_even":
        facts = [fact for name, fact in _facts(format).items() if name != "smallest"]
        return _each(lambda values, out: _run(_nearest_even_pool, values, out, *facts), x, np.float32)
    bits_drawn = np.uint32(32 - random), np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32)
    if mode == "stochastic":
        x = np.ascontiguousarray(x).reshape(x.shape)                         # a value's bits come from its place in C's order
    return _each(lambda values, out: LOOPS[mode](values, out, *_facts(format).values(), *bits_drawn), x, np.float32)
