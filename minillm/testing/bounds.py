"""How far a computed result may lie from the exact one, derived from the format alone: for our tests and for users'.

Bounds hold where nothing overflows. They come from the unit roundoff u, the number of terms and the smallest subnormal; additions
need no term for underflow, since a sum that is subnormal is exact. Inputs are float64 or narrower and taken as exact.
"""
import math

import numpy as np

from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32, Format


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


def scaled_sum_bound(x, axis, error: float) -> np.ndarray:
    """`error` times the sum of sizes, which every bound of a sum is."""
    return error * np.abs(np.asarray(x, np.float64)).sum(axis)


def pairwise_bound(x, axis=None, accumulator: Format = FLOAT32, leaf: int = 1) -> np.ndarray:
    """The largest error of a sum by halves, whose pieces of at most `leaf` terms are summed one by one.

    A term goes through leaf - 1 additions there and ceil(log2(n / leaf)) above. Higham 1993, "The accuracy of floating point
    summation", section 3; NumPy sums a contiguous float32 axis so, and is well below the bound with leaf = 128.
    """
    n = terms(x, axis)
    depth = min(leaf, n) - 1 + math.ceil(math.log2(max(n / leaf, 1)))
    return scaled_sum_bound(x, axis, gamma(max(depth, 0), accumulator))


def chunked_bound(x, chunk: int, axis=None, accumulator: Format = FLOAT32, outer: Format | None = None) -> np.ndarray:
    """The largest error of a sum of sums of `chunk` terms each, the sums added one by one in `outer` (default: `accumulator`).

    A term goes through chunk - 1 additions and then ceil(n / chunk) - 1. Blanchard, Higham and Mary 2020, "A class of fast and
    accurate summation algorithms", section 3. If `outer` is narrower, the partial sums are rounded into it once more.
    """
    n, outer = terms(x, axis), outer or accumulator
    if chunk < 1:
        raise MiniLLMError(f"a chunk of {chunk} terms has no sum: give at least 1")
    inside, across = min(chunk, n) - 1, -(-n // chunk) - 1 + (outer.roundoff > accumulator.roundoff)
    if outer is accumulator:
        return scaled_sum_bound(x, axis, gamma(max(inside + across, 0), accumulator))
    both = (1 + gamma(max(inside, 0), accumulator)) * (1 + gamma(max(across, 0), outer)) - 1
    return scaled_sum_bound(x, axis, both)


def kahan_bound(x, axis=None, accumulator: Format = FLOAT32) -> np.ndarray:
    """The largest error of Kahan's compensated sum: u |sum| + (2 u + 10 n u^2) sum of |x|, where n u <= 1/64.

    First order: u for y = x - c and u for (s - before) - y, at each term; u |sum| for the last addition, which is not compensated.
    Second order, with |s| <= 1.05 sum of |x|: u |c| <= 3 u^2 |s|, u^2 |s| for the error's own rounding and 4 u^2 |s| for what c
    adds to the differences, together 8 u^2 |s| a term. Kahan 1965; Higham 2002, section 4.3, gives the order of the terms.
    """
    n, u = terms(x, axis), accumulator.roundoff
    if n * u > 1 / 64:
        raise MiniLLMError(f"Kahan's sum of {n} terms in {accumulator.name} has no bound: n times the unit roundoff is {n * u:g}, "
                           "beyond 1/64")
    return u * np.abs(np.asarray(x, np.float64).sum(axis)) + scaled_sum_bound(x, axis, 2 * u + 10 * n * u * u)


def neumaier_bound(x, axis=None, accumulator: Format = FLOAT32) -> np.ndarray:
    """The largest error of Neumaier's compensated sum: u |sum| + gamma_(n-1)^2 times the sum of sizes.

    Ogita, Rump and Oishi 2005, "Accurate sum and dot product", proposition 4.5 (their Sum2 gives the same result).
    """
    n, x = terms(x, axis), np.asarray(x, np.float64)
    return accumulator.roundoff * np.abs(x.sum(axis)) + scaled_sum_bound(x, axis, gamma(max(n - 1, 0), accumulator) ** 2)


def terms(x, axis) -> int:
    """How many terms each sum along an axis, or over all, has."""
    shape = np.shape(x)
    return math.prod(shape) if axis is None else shape[axis]


def softmax_bound(x, out_format: Format = FLOAT32, accumulator: Format = FLOAT32, exp_ulps: float = 3) -> np.ndarray:
    """The largest error of softmax along the last axis, computed as exp(x - max) / sum in `accumulator`, then rounded.

    The difference is rounded, which exp turns into a relative error of e^(u |x - max|) - 1; exp errs by `exp_ulps` ulps (NumPy's in
    float32: at most 2.52) and may flush what is below `tiny` to 0; the sum, of n terms, and the division do the rest. After
    Blanchard, Higham and Higham 2021, "Accurately computing the log-sum-exp and softmax functions", section 4, whose first-order
    step is left out here.
    """
    x, u = np.asarray(x, np.float64), accumulator.roundoff
    below = x - x.max(-1, keepdims=True)                                       # (..., n)
    exact = np.exp(below)
    off = (1 + 2 * exp_ulps * u) * np.exp(np.where(exact > 0, u * -below, 0)) - 1            # of each exp, relative
    error = off * exact + np.where(exact < 2 * accumulator.tiny, 2 * accumulator.tiny, 0)       # and absolute
    total = exact.sum(-1, keepdims=True)
    g = gamma(x.shape[-1] - 1, accumulator)
    least = total - (error.sum(-1, keepdims=True) * (1 + g) + g * total)                     # the smallest computed sum
    y = exact / total
    return after_rounding(y, (exact + error) / least * (1 + u) + accumulator.smallest_subnormal / 2 - y, out_format)


def layer_norm_bound(x, gain=1.0, shift=0.0, eps: float = 1e-5, out_format: Format = FLOAT32,
                     accumulator: Format = FLOAT32) -> np.ndarray:
    """The largest error of (x - mean) / sqrt(variance + eps) * gain + shift along the last axis, in `accumulator`, then rounded.

    Two passes: mean first, then the mean of squared differences. The mean errs by gamma_n times the mean size, which enters every
    difference and, through their squares, the variance (Higham 2002, section 1.9); square root, reciprocal, two products and a sum
    round once each. Infinite where the variance's own error is as large as it is.
    """
    x, gain, shift = (np.asarray(v, np.float64) for v in (x, gain, shift))
    n, u = x.shape[-1], accumulator.roundoff

    def mean(v):
        return v.mean(-1, keepdims=True)

    off = gamma(n, accumulator) * mean(np.abs(x))                              # of the mean: n - 1 additions, one division
    d = np.abs(x - mean(x))
    d_off = off + u * (d + off)                                                # of each difference
    variance, g = mean(d * d), gamma(n + 1, accumulator)
    squares = mean(2 * d * d_off + d_off**2)
    v_off = squares * (1 + g) + g * variance + accumulator.smallest_subnormal
    with_eps = variance + eps
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = (v_off + u * eps + u * (with_eps + v_off + u * eps)) / with_eps          # eps is rounded too
        rstd_off = np.where(relative < 1, (1 - np.minimum(relative, 1)) ** -0.5 * (1 + u) / (1 - u), np.inf)
        rstd = 1 / np.sqrt(with_eps)
        error = np.abs(gain) * rstd * ((d + d_off) * rstd_off * (1 + u) ** 2 - d) + 3 * accumulator.smallest_subnormal
        y = (x - mean(x)) * rstd * gain + shift
    return after_rounding(y, error + u * (np.abs(y) + error), out_format)
