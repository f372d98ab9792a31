"""Matrix products whose accumulator has any format, in any order and rounding: loops for precision/accumulation.py, the same bits.

A row of the result is summed at a time, in float64 registers whose values lie on the format's grid. To round to nearest, add and
subtract 2^52 times the distance of the format's values there: float64 itself rounds, ties to even. The other modes start from that.
Threads share rows, nothing else, so that bits do not depend on their number.
"""
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.extending import intrinsic

from minillm.kernels.rounding import random_bits
from minillm.kernels.scalars import JIT

NEAREST_EVEN, NEAREST_AWAY, TOWARD_ZERO, UP, DOWN, STOCHASTIC, BOUNDED = range(7)       # BOUNDED: to_nearest serves
MODES = {"nearest_even": NEAREST_EVEN, "nearest_away": NEAREST_AWAY, "toward_zero": TOWARD_ZERO, "up": UP, "down": DOWN,
         "stochastic": STOCHASTIC}
EXPONENT = np.int64(0x7FF0000000000000)
# A product of two float32 values is exact in float64, so that one rounding of the fused sum is the rounding of the sum.
FUSED = JIT | {"fastmath": {"contract"}}
SMALL = 2**18                      # terms that one thread has summed before another has started


def _bitcast(source, target, kind):
    @intrinsic
    def operation(typingctx, value):
        return target(source), lambda context, builder, signature, args: builder.bitcast(args[0], kind)
    return operation


double_bits = _bitcast(types.float64, types.int64, ir.IntType(64))
bits_double = _bitcast(types.int64, types.float64, ir.DoubleType())


@njit(inline="always")
def two_sum(x, y):
    """The sum x + y and its exact error (Knuth); no error where the sum is not finite."""
    total = x + y
    back = total - x
    error = (x - (total - back)) + (y - back)
    return total, error if abs(error) > 0.0 else 0.0


@njit(inline="always")
def odd_sum(x, y):
    """The sum x + y rounded to odd in float64: precision/accumulation.py says why."""
    total, error = two_sum(x, y)
    pattern = double_bits(total)
    short = np.int64((error != 0.0) & ((error < 0.0) != (total < 0.0)))
    return bits_double((pattern - short) | np.int64(error != 0.0))


@njit(inline="always")
def to_nearest(x, grid):
    """Nearest even in a format with subnormals, of a value that cannot overflow; zero loses its sign."""
    shift = max(bits_double(double_bits(x) & EXPONENT), grid[0]) * grid[11]          # 1.5 2^52 times the distance of values at x
    return (x + shift) - shift


@njit(**JIT)
def to_any(x, mode, random, grid):
    """Any mode, any format with a sign and a zero; `random` in (0, 1] is what a stochastic mode draws. Zero loses its sign."""
    tiny, smallest, eps, cap = grid[0], grid[1], grid[2], grid[3]
    size = abs(x)
    unit = smallest if size < tiny else min(bits_double(double_bits(size) & EXPONENT), cap) * eps   # between values of the format
    shift, negative = unit * 2.0**52, x < 0.0
    near = (size + shift) - shift
    below = near - (unit if near > size else 0.0)
    part = (size - below) / unit                                 # of the way up, exact
    goes_up = near > below
    if mode == NEAREST_AWAY:
        goes_up = part >= 0.5
    elif mode == TOWARD_ZERO:
        goes_up = False
    elif mode == UP:
        goes_up = (not negative) & (part > 0.0)
    elif mode == DOWN:
        goes_up = negative & (part > 0.0)
    elif mode == STOCHASTIC:
        goes_up = part >= random
    result = below + (unit if goes_up else 0.0)
    largest, end, infinite = (grid[7], grid[8], grid[9]) if negative else (grid[4], grid[5], grid[6])
    stops = (mode == TOWARD_ZERO) | ((mode == UP) & negative) | ((mode == DOWN) & (not negative))
    result = (largest if stops else end) if result > largest else result
    result = infinite if size == np.inf else result
    return grid[10] if x != x else -result if negative else result


@njit(**JIT)
def draw(index, key, grid):
    """The number in (0, 1] that part of the way up must reach: random bits and one more, in 2^-n."""
    bits = random_bits(index, np.uint32(key & np.uint64(0xFFFFFFFF)), np.uint32(key >> np.uint64(32)))
    return (np.float64(np.uint32(bits >> np.uint32(grid[13]))) + 1.0) * grid[12]


@njit(inline="always")
def added(x, y, index, key, grid, mode, odd):
    """The sum x + y, rounded once; `odd`: whether the float64 sum must be rounded to odd for that."""
    exact = odd_sum(x, y) if odd else x + y
    if mode == BOUNDED:
        return to_nearest(exact, grid)
    return to_any(exact, mode, draw(index, key, grid) if mode == STOCHASTIC else 0.0, grid)


def _sequential(mode, odd):
    @njit(**(JIT if odd else FUSED))
    def loop(a, b, out, first, last, sizes, keys, grid):
        M, K, N = a.shape[1], a.shape[2], b.shape[2]
        total = np.empty(N)
        for r in range(first, last):
            z, i = r // M, r % M
            total[:] = 0.0
            for k in range(K):
                x, row, key = a[z, i, k], b[z, k], keys[k if mode == STOCHASTIC else 0]
                for j in range(N):
                    total[j] = added(total[j], x * row[j], r * N + j, key, grid, mode, odd)
            for j in range(N):
                out[z, i, j] = total[j] + 0.0
    return loop


def _chunked(mode, odd):
    @njit(**(JIT if odd else FUSED))
    def loop(a, b, out, first, last, sizes, keys, grid):
        M, K, N, chunk = a.shape[1], a.shape[2], b.shape[2], sizes[0]
        total, part = np.empty(N), np.empty(N)
        for r in range(first, last):
            z, i, n = r // M, r % M, 0
            total[:] = 0.0
            for start in range(0, K, chunk):
                part[:] = 0.0
                for k in range(start, min(start + chunk, K)):
                    x, row, key = a[z, i, k], b[z, k], keys[n if mode == STOCHASTIC else 0]
                    for j in range(N):
                        part[j] = added(part[j], x * row[j], r * N + j, key, grid, mode, odd)
                    n += 1
                key = keys[n if mode == STOCHASTIC else 0]
                for j in range(N):
                    total[j] = added(total[j], part[j], r * N + j, key, grid, mode, odd)
                n += 1
            for j in range(N):
                out[z, i, j] = total[j] + 0.0
    return loop


def _pairwise(mode, odd):
    @njit(**(JIT if odd else FUSED))
    def loop(a, b, out, first, last, sizes, keys, grid):
        M, K, N = a.shape[1], a.shape[2], b.shape[2]
        held = np.empty((66, N))                 # sums of 2^n terms, each longer than the next; below them a zero
        for r in range(first, last):
            z, i, n, depth = r // M, r % M, 0, 1
            held[0] = 0.0
            for k in range(K + 1):
                if k < K:
                    x, row = a[z, i, k], b[z, k]
                    for j in range(N):
                        held[depth, j] = x * row[j]
                    depth += 1
                m = k + 1
                while (depth > 1) if k == K else (m % 2 == 0):               # two of one length; in the end whatever is left
                    depth, m, key = depth - 1, m // 2, keys[n if mode == STOCHASTIC else 0]
                    for j in range(N):
                        held[depth - 1, j] = added(held[depth - 1, j], held[depth, j], r * N + j, key, grid, mode, odd)
                    n += 1
            for j in range(N):
                out[z, i, j] = held[0, j] + 0.0
    return loop


def _blocked(mode, odd):
    @njit(**(JIT if odd else FUSED))
    def loop(a, b, out, first, last, sizes, keys, grid):
        M, K, N, block, promote = a.shape[1], a.shape[2], b.shape[2], sizes[1], sizes[2]
        total, wide, high, low = np.empty(N), np.empty(N), np.empty(N), np.empty(N)
        for r in range(first, last):
            z, i = r // M, r % M
            total[:] = 0.0
            wide[:] = 0.0
            for start in range(0, K, block):
                high[:] = 0.0
                low[:] = 0.0
                for k in range(start, min(start + block, K)):
                    x, row = a[z, i, k], b[z, k]
                    for j in range(N):
                        high[j], error = two_sum(high[j], x * row[j])
                        low[j] += error
                key = keys[start // block if mode == STOCHASTIC else 0]
                for j in range(N):
                    both, error = two_sum(total[j], high[j])
                    below = odd_sum(low[j], error) if abs(both) < np.inf else 0.0
                    total[j] = added(both, below, r * N + j, key, grid, mode, odd)
                if promote > 0 and ((start + block) % promote == 0 or start + block >= K):
                    for j in range(N):
                        wide[j] = np.float64(np.float32(odd_sum(wide[j], total[j])))
                        total[j] = 0.0
            for j in range(N):
                out[z, i, j] = (wide[j] if promote > 0 else total[j]) + 0.0
    return loop


def _kahan(mode, odd):
    @njit(**(JIT if odd else FUSED))
    def loop(a, b, out, first, last, sizes, keys, grid):
        M, K, N = a.shape[1], a.shape[2], b.shape[2]
        total, lost = np.empty(N), np.empty(N)
        for r in range(first, last):
            z, i = r // M, r % M
            total[:] = 0.0
            lost[:] = 0.0
            for k in range(K):
                x, row, n = a[z, i, k], b[z, k], 4 * k if mode == STOCHASTIC else 0
                step = 1 if mode == STOCHASTIC else 0
                for j in range(N):
                    at, old = r * N + j, total[j]
                    y = added(x * row[j], -lost[j], at, keys[n], grid, mode, odd)
                    new = added(old, y, at, keys[n + step], grid, mode, odd)
                    moved = added(new, -old, at, keys[n + 2 * step], grid, mode, odd)
                    lost[j] = added(moved, -y, at, keys[n + 3 * step], grid, mode, odd)
                    total[j] = new
            for j in range(N):
                out[z, i, j] = total[j] + 0.0
    return loop


def _neumaier(mode, odd):
    @njit(**(JIT if odd else FUSED))
    def loop(a, b, out, first, last, sizes, keys, grid):
        M, K, N = a.shape[1], a.shape[2], b.shape[2]
        total, lost = np.empty(N), np.empty(N)
        for r in range(first, last):
            z, i = r // M, r % M
            total[:] = 0.0
            lost[:] = 0.0
            for k in range(K):
                x, row, n = a[z, i, k], b[z, k], 4 * k if mode == STOCHASTIC else 0
                step = 1 if mode == STOCHASTIC else 0
                for j in range(N):
                    at, old, term = r * N + j, total[j], x * row[j]
                    new = added(old, term, at, keys[n], grid, mode, odd)
                    large, small = (old, term) if abs(old) >= abs(term) else (term, old)
                    moved = added(large, -new, at, keys[n + step], grid, mode, odd)
                    short = added(moved, small, at, keys[n + 2 * step], grid, mode, odd)
                    lost[j] = added(lost[j], short, at, keys[n + 3 * step], grid, mode, odd)
                    total[j] = new
            key = keys[4 * K if mode == STOCHASTIC else 0]
            for j in range(N):
                out[z, i, j] = added(total[j], lost[j], r * N + j, key, grid, mode, odd) + 0.0
    return loop


ORDERS = {"sequential": _sequential, "chunked": _chunked, "pairwise": _pairwise, "blocked": _blocked, "kahan": _kahan,
          "neumaier": _neumaier}
LOOPS = {(order, mode, True): make(mode, True) for order, make in ORDERS.items() for mode in (BOUNDED, *MODES.values())}
LOOPS |= {(order, BOUNDED, False): ORDERS[order](BOUNDED, False) for order in ("sequential", "chunked")}


def grid_of(format, random: int) -> tuple:
    """What the loops need to know of a format, and of a stochastic mode with so many random bits."""
    nan = np.nan if format.has_nan else 0.0 if format.nan == "zero" else format.max
    eps, cap = 2.0**-format.mantissa_bits, 2.0 ** (np.frexp(format.max)[1] + 1)      # beyond the cap all is overflow
    return (format.tiny, format.smallest, eps, cap, *format.ends(), *format.ends(negative=True), nan, 1.5 * 2.0**52 * eps,
            2.0**-random, float(32 - random))


def largest_sum(a, b, format, roundings: int) -> float:
    """No sum of products, nor any part of one, is larger than this (Cauchy and Schwarz); infinite where a value is, or NaN."""
    if not a.size or not b.size:
        return 0.0
    exact = np.sqrt((a * a).sum(-1, dtype=np.float64).max() * (b * b).sum(-2, dtype=np.float64).max())
    most = 4 * exact * np.exp(min(roundings * format.eps, 700.0)) + roundings * format.smallest
    return float(most) if most < np.inf else np.inf


def digits(x) -> int:
    """No value of x, float32, has more significant bits than this: the lowest bit of a mantissa that any of them has set."""
    used = int(np.bitwise_or.reduce(x.view(np.uint32), axis=None)) & 0x7FFFFF
    return 24 - (used & -used).bit_length() + 1 if used else 1


def float64_will_do(a, b, format) -> bool:
    """Whether sums that float64 rounds can be rounded once more, to nearest even, with the bits of one rounding.

    The argument is in precision/accumulation.py: short products, and a format whose range float64 spans.
    """
    return format.max * 4 <= format.smallest * 2.0**51 and digits(a) + digits(b) + format.mantissa_bits + 1 <= 46


def matmul(a, b, out, order: str, format, mode: str, random: int, sizes: tuple[int, int, int], keys) -> None:
    """(Z,M,K) (Z,K,N) -> out (Z,M,N), all float32 in one piece."""
    short = float64_will_do(a, b, format)
    a, b = a.astype(np.float64), b.astype(np.float64)            # exact, and so are products
    roundings = (1 if order == "sequential" else 4) * (a.shape[2] + 1)
    mode, odd = MODES[mode], True
    if mode == NEAREST_EVEN and format.subnormals and largest_sum(a, b, format, roundings) <= format.max:
        mode, odd = BOUNDED, not (short and order in ("sequential", "chunked"))
    loop, grid, rows = LOOPS[order, mode, odd], grid_of(format, random), out.shape[0] * out.shape[1]
    threads = min(config.NUMBA_NUM_THREADS, rows) if out.size * a.shape[2] >= SMALL else 1
    ends = [rows * t // threads for t in range(threads + 1)]

    def share(t):
        loop(a, b, out, ends[t], ends[t + 1], sizes, keys, grid)

    if threads == 1:
        return share(0)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(share, range(threads)))
