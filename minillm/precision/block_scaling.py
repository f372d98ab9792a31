"""Products of operands in microscaling formats: every 32 values along the summed dimension share a scale that is a power of two.

OCP Microscaling Formats (MX) 1.0, sections 5 and 6.3; Rouhani et al. 2023, arXiv 2310.10537. A tensor and its transpose have other
blocks and so other values: each product quantizes its operands anew from what it is given, as Transformer Engine keeps two copies.
"""
import functools
import math

from minillm.autograd.rules.products import PRODUCTS, Products, dot
from minillm.formats import E8M0, FLOAT8_E4M3, Format
from minillm.rounding import round_to

BLOCK = 32
LARGEST_EXPONENT = E8M0.bias       # of a scale: 2^-127 ... 2^127 and NaN


def exponents(xp, amax, format: Format, up: bool):
    """The exponents of the scales for blocks of these largest values, integers.

    floor(log2 amax) less that of the format's largest value, as OCP has it: values above it saturate. With `up`, the least power
    of two that brings amax to no more than it, as Transformer Engine has it: none does. Both from frexp, exactly.
    """
    part, exponent = xp.frexp(amax)                                            # 0.5 <= part < 1, as its counterpart
    largest, end = math.frexp(format.max)
    return xp.clip(exponent - end + (up & (part > largest)), -LARGEST_EXPONENT, LARGEST_EXPONENT)


def block_quantized(xp, x, format: Format, up: bool = False):
    """Values of shape (..., K), each block of 32 along K rounded to the format times its scale; the same shape and type.

    A block with an infinity or a NaN becomes NaN, as a scale of NaN makes it. K is filled up with zeros to whole blocks.
    """
    K = x.shape[-1]
    if not x.size:
        return x
    filled = xp.zeros((*x.shape[:-1], -(-K // BLOCK) * BLOCK), x.dtype)
    filled[..., :K] = x
    blocks = filled.reshape(*x.shape[:-1], -1, BLOCK)                          # (..., K/32, 32)
    amax = abs(blocks).max(-1, keepdims=True)
    finite = xp.isfinite(amax)
    exponent = exponents(xp, xp.where(finite, amax, 1), format, up)
    scaled = xp.clip(xp.ldexp(blocks, -exponent), -format.max, format.max)
    values = xp.ldexp(round_to(scaled, format).astype(x.dtype, copy=False), exponent)
    return xp.where(finite, values, xp.nan).reshape(filled.shape)[..., :K]


def block_product(format: Format, up: bool, xp, a, b, key):
    """(..., M,K) (..., K,N) -> (..., M,N) f32: both operands in blocks along K, float32 accumulate."""
    b = block_quantized(xp, b.swapaxes(-1, -2), format, up).swapaxes(-1, -2)
    return dot(xp, block_quantized(xp, a, format, up), b, key)


def microscaling(name: str, format: Format, up: bool = False) -> Products:
    """The same in all three products."""
    product = functools.partial(block_product, format, up)
    return Products(name, product, product, product)


MXFP8_DOWN, MXFP8_UP = microscaling("mxfp8-down", FLOAT8_E4M3), microscaling("mxfp8-up", FLOAT8_E4M3, up=True)
PRODUCTS |= {products.name: products for products in (MXFP8_DOWN, MXFP8_UP)}
