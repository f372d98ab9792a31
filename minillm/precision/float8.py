"""Products whose operands are rounded to eight bits, each tensor scaled by what it holds now: "per-tensor current scaling".

Weights and activations are E4M3 (maximum 448), cotangents E5M2 (57344); the sum is float32, and both scales are undone after it.
The scale is that of Transformer Engine's Float8CurrentScaling (common/recipe/recipe_common.cuh): maximum / amax.
Micikevicius et al. 2022, arXiv 2209.05433, section 3.
"""
import functools

from minillm.autograd.rules.products import PRODUCTS, Products, dot
from minillm.formats import FLOAT8_E4M3, FLOAT8_E5M2, FLOAT32, Format
from minillm.rounding import round_to


def current_scale(xp, x, format: Format, power_of_two: bool = False):
    """What x is multiplied by so that its largest value becomes the format's: maximum / amax, a number of x's type.

    1 where the largest value is 0, infinite or NaN; float32's maximum where the quotient would be infinite (amax below 2^-119).
    With `power_of_two` it is rounded down to one: then scaling and its undoing are exact.
    """
    amax = abs(x).max()
    if not 0 < amax < xp.inf:                                    # NaN is not, either
        return x.dtype.type(1)
    scale = x.dtype.type(min(format.max / max(amax, format.max / FLOAT32.max), FLOAT32.max))
    return xp.ldexp(x.dtype.type(1), xp.frexp(scale)[1] - 1) if power_of_two else scale


def quantized(xp, x, format: Format, power_of_two: bool = False):
    """(x scaled and rounded to the format's grid, the scale); an array of x's type.

    Saturating: what lies beyond the maximum, infinity too, becomes the maximum. NaN stays NaN.
    """
    scale = current_scale(xp, x, format, power_of_two) if x.size else x.dtype.type(1)
    clipped = xp.clip(x * scale, -format.max, format.max)        # the largest value may have been scaled to just above it
    return round_to(clipped, format).astype(x.dtype, copy=False), scale


def float8_product(a_format: Format, b_format: Format, power_of_two: bool, xp, a, b, key):
    """(..., M,K) (..., K,N) -> (..., M,N) f32: operands rounded to eight bits, float32 accumulate, scales undone last."""
    (a, a_scale), (b, b_scale) = quantized(xp, a, a_format, power_of_two), quantized(xp, b, b_format, power_of_two)
    return dot(xp, a, b, key) * ((1 / a_scale) * (1 / b_scale))               # one after the other would overflow between them


def current_scaling(name: str, power_of_two: bool = False) -> Products:
    """E4M3 against E4M3 forward; in both backward products the cotangent, which comes first, is E5M2."""
    forward, backward = (functools.partial(float8_product, cotangent_or_x, FLOAT8_E4M3, power_of_two)
                         for cotangent_or_x in (FLOAT8_E4M3, FLOAT8_E5M2))
    return Products(name, forward, input_gradient=backward, weight_gradient=backward)


FLOAT8_CURRENT = current_scaling("float8-current")
FLOAT8_CURRENT_POWER_OF_TWO = current_scaling("float8-current-power-of-two", power_of_two=True)
PRODUCTS |= {products.name: products for products in (FLOAT8_CURRENT, FLOAT8_CURRENT_POWER_OF_TWO)}
