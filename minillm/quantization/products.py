"""Products of int8 codes, exact in int32: each row of the one operand and each column of the other with a scale of its own.

In training: SwitchBack (Wortsman et al. 2023, arXiv 2304.13013, algorithm 1) has the forward and the input-gradient product in
int8 and leaves the weight gradient, whose sum runs over all tokens, in float32. Its weights have one scale; here each column has.
"""
import numpy as np

from minillm import kernels
from minillm.autograd.rules.products import PRODUCTS, Products, dot
from minillm.quantization.affine import as_scale

EXACT = 1040                       # so many products of two codes, each at most 127^2, have sums below 2^24


def codes_of_rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values (..., K) float32 as int8 codes, half to even, and a scale (..., 1) float32 for each row, max|row| / 127.

    A row that is not finite has codes of 0 and a scale of NaN, so that it makes NaN of whatever is computed from it.
    """
    top = np.abs(x).max(-1, keepdims=True, initial=0)                                     # (..., 1) f32
    finite = np.isfinite(top)
    scale = as_scale(top / np.float32(127))
    codes = np.rint(np.where(finite, x, np.float32(0)) / scale).astype(np.int8)
    return codes, np.where(finite, scale, np.float32(np.nan))


def int8_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(..., M,K) (..., K,N) -> (..., M,N) int32, exact, for codes of -127 ... 127.

    Without kernels as float32 products over 1040 values of k at a time: all sums on the way are whole numbers below 2^24.
    """
    if kernels.enabled():
        return kernels.load("matmul").matmul_int8(a, b)
    total = np.int32(0)
    for k in range(0, a.shape[-1], EXACT):
        part = a[..., k:k + EXACT].astype(np.float32) @ b[..., k:k + EXACT, :].astype(np.float32)
        total = total + part.astype(np.int32)
    return total if a.shape[-1] else np.zeros(np.matmul(a, b).shape, np.int32)


def quantized_product(xp, a, b, key):
    """(..., M,K) (..., K,N) -> (..., M,N) float32: operands to codes, int32 accumulate, both scales multiplied in last."""
    (a, a_scale), (b, b_scale) = codes_of_rows(a), codes_of_rows(b.swapaxes(-1, -2))
    return int8_product(a, b.swapaxes(-1, -2)).astype(np.float32) * a_scale * b_scale.swapaxes(-1, -2)


def switched(name: str, forward: bool = False, input_gradient: bool = False, weight_gradient: bool = False) -> Products:
    """Products of which those that are named are in int8."""
    return Products(name, *(quantized_product if int8 else dot for int8 in (forward, input_gradient, weight_gradient)))


SWITCHBACK = switched("int8-switchback", forward=True, input_gradient=True)
PRODUCTS |= {products.name: products for products in (
    SWITCHBACK, switched("int8-forward", forward=True), switched("int8-input-gradient", input_gradient=True),
    switched("int8-weight-gradient", weight_gradient=True), switched("int8-all", True, True, True))}
