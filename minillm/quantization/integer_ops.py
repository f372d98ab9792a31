"""What stands between a transformer's products, in integers alone: softmax, layer norm, and the products themselves.

A sum of squares and its root by Newton's method, and exp by a polynomial of degree two: Kim et al. 2021, I-BERT, arXiv 2101.01321.
Numbers with a fraction are integers in a unit of 2^-16 or so, which each function names.
"""
import numpy as np

from minillm import kernels
from minillm.quantization.fixed_point import Multiplier, multiply

FRACTION = 16                                    # bits behind the point of exp's argument
LN2 = round(0.6931471805599453 * 2**FRACTION)
# exp(p) = 0.3585 ((p + 1.353)^2 + 0.344 / 0.3585) on -ln 2 ... 0, I-BERT's equation 13; the factor in front cancels in a softmax
B, C = round(1.353 * 2**FRACTION), round(0.344 / 0.3585 * 2**(2 * FRACTION))
ONE = B * B + C                                  # what stands for exp(0)
NORM_FRACTION, ROOT_FRACTION = 30, 4


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(..., M,K) (..., K,N) int8 -> (..., M,N) int32, exact; without kernels by NumPy's loop over int32, which is slow."""
    if kernels.enabled():
        return kernels.load("matmul").matmul_int8(a, b)
    return np.matmul(a.astype(np.int32), b.astype(np.int32))


def divide(a: np.ndarray, b) -> np.ndarray:
    """The whole number nearest to a / b, halves up; int64, b positive."""
    return (2 * a + b) // (2 * b)


def square_root(n: np.ndarray) -> np.ndarray:
    """The largest whole number whose square is at most n, int64 of 0 ... 2^62, by Newton's method from above."""
    root = np.full_like(n, 1 << -(-int(n.max(initial=1)).bit_length() // 2))
    while True:
        lower = (root + n // np.maximum(root, 1)) >> 1
        if (lower >= root).all():
            return root
        root = np.minimum(root, lower)


def exponential(x: np.ndarray) -> np.ndarray:
    """The exponential of x <= 0, int64 in units of 2^-16: int64 of 0 ... ONE, where ONE stands for 1. Off by 0.002 at most."""
    halvings = np.minimum(-x // LN2, 62)
    p = x + halvings * LN2                                                     # -ln 2 < p <= 0
    return ((p + B) ** 2 + C) >> halvings


def softmax_codes(scores: np.ndarray, visible: np.ndarray, by: Multiplier, rounding: str) -> np.ndarray:
    """The exponential of each visible score (..., N) less the largest of its row, as codes of 0 ... 127; hidden ones are 0.

    `by` brings scores int32 to units of 2^-16. A softmax is these codes over their sum, but values may be multiplied by the codes
    first and divided by the sum after: so shares add up to 1, and a row of many small ones has all codes, too.
    """
    hidden = np.int32(-2**31 + 1)
    top = np.where(visible, scores, hidden).max(-1, keepdims=True)
    below = multiply(np.where(visible, scores - top, 0), by, rounding)         # <= 0
    return np.where(visible, divide(exponential(below) * 127, ONE), 0).astype(np.int8)


def normalized(x: np.ndarray, eps: np.ndarray) -> np.ndarray:
    """Rows (..., C) to mean 0 and sum of squares 1, int32 in units of 2^-30; eps: int64, what is added to the sum of squares.

    x: int32 of b bits; nothing overflows while 2 b + log2 C < 55.
    """
    x = x.astype(np.int64)
    x = x - divide(x.sum(-1, keepdims=True, dtype=np.int64), x.shape[-1])
    squares = (x * x).sum(-1, keepdims=True, dtype=np.int64) + eps
    root = np.maximum(square_root(squares << 2 * ROOT_FRACTION), 1)            # in units of 2^-4
    return divide(x << NORM_FRACTION + ROOT_FRACTION, root).astype(np.int32)
