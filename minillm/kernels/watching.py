"""One pass over the values of a rounding, before and after it: what became zero, subnormal, the largest value, infinite, NaN.

The NumPy twin, which says what is counted, is minillm.precision.tally; both give the same bits.
"""
import numpy as np
from numba import njit

from minillm.kernels.scalars import JIT, bits, bits_float, float_bits, load

BLOCK, LANES = 4096, 16
INFINITY = np.int32(0x7F800000)


@njit(**JIT)
def _fates(exact, rounded, tiny, beyond, counts):
    for start in range(0, exact.size, BLOCK):            # 32-bit counts of a block, so that it vectorises
        x, y = exact[start:start + BLOCK], rounded[start:start + BLOCK]
        zeroed = subnormal = saturated = overflowed = infinite = nan = most = np.int32(0)
        for i in range(x.size):
            size, after = np.int32(float_bits(x[i]) & 0x7FFFFFFF), np.int32(float_bits(load(y, i)) & 0x7FFFFFFF)
            finite = size < INFINITY
            zeroed = np.int32(zeroed + np.int32((size > 0) & (after == 0)))
            subnormal = np.int32(subnormal + np.int32((after > 0) & (after < tiny)))
            saturated = np.int32(saturated + np.int32((size >= beyond) & finite & (after < INFINITY)))
            overflowed = np.int32(overflowed + np.int32(finite & (after >= INFINITY)))
            infinite = np.int32(infinite + np.int32(after == INFINITY))
            nan = np.int32(nan + np.int32(after > INFINITY))
            most = max(most, size if finite else np.int32(0))
        counts[0] += zeroed
        counts[1] += subnormal
        counts[2] += saturated
        counts[3] += overflowed
        counts[4] += infinite
        counts[5] += nan
        counts[6] = max(counts[6], most)


@njit(**JIT)
def _exponents(exact, histogram):
    each = np.zeros(4 * 256, np.int32)                   # four, so that an addition need not wait for the one before it
    whole = exact.size // 4 * 4
    for i in range(0, whole, 4):
        for lane in range(4):
            each[np.uint32(lane * 256) | np.uint32(float_bits(exact[i + lane]) >> 23) & np.uint32(255)] += 1
    for i in range(whole, exact.size):
        each[np.uint32(float_bits(exact[i]) >> 23) & np.uint32(255)] += 1
    for code in range(1, 256):
        for lane in range(4):
            histogram[code + 23] += each[lane * 256 + code]
    if each[0] + each[256] + each[512] + each[768]:      # zeros, and subnormals of float32: made normal by 2^32
        for i in range(exact.size):
            size = np.int32(float_bits(exact[i]) & 0x7FFFFFFF)
            if size < 0x800000:
                place = np.int32(float_bits(bits_float(size) * np.float32(2.0**32)) >> 23) - 9 if size else np.int32(0)
                histogram[place] += 1


@njit(inline="always")
def _finite(x, y):
    """Both as doubles, 0 if either is not finite."""
    fine = (float_bits(x) & 0x7FFFFFFF < INFINITY) & (float_bits(y) & 0x7FFFFFFF < INFINITY)
    return np.float64(x if fine else np.float32(0)), np.float64(y if fine else np.float32(0))


@njit(**JIT)
def _squares(exact, rounded, errors, sizes):
    whole = exact.size // LANES * LANES
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            before, after = _finite(exact[start + lane], load(rounded, start + lane))
            errors[lane] += (after - before) * (after - before)
            sizes[lane] += before * before
    for i in range(whole, exact.size):
        before, after = _finite(exact[i], load(rounded, i))
        errors[i - whole] += (after - before) * (after - before)
        sizes[i - whole] += before * before


def tally(exact: np.ndarray, rounded: np.ndarray, tiny: int, beyond: int, counts, histogram, errors, sizes) -> None:
    """Add what is found to counts (7,), histogram (279,) int64, errors and sizes (16,); exact float32, rounded that or float16.

    tiny and beyond: bit patterns of the smallest normal value and of the first that lies beyond the format.
    """
    exact, rounded = bits(exact.reshape(-1)), bits(rounded.reshape(-1))
    _fates(exact, rounded, np.int32(tiny), np.int32(beyond), counts)
    _exponents(exact, histogram)
    _squares(exact, rounded, errors, sizes)
