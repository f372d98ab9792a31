"""Real multipliers in integers: M = m 2^(s - 31) with an int32 mantissa m and a shift s, and x M rounded to an integer.

An int32 accumulator becomes a code of another scale by one such product. Jacob et al. 2018, arXiv 1712.05877, section 2.2. Two
roundings are in use. "double", of gemmlowp and TensorFlow Lite: the 64-bit product loses 31 bits, halves going up, and the result
the remaining ones, halves going away from zero. "single": both at once, halves going up. Integers saturate, they never wrap.
"""
from typing import NamedTuple

import numpy as np

from minillm.errors import MiniLLMError, unknown
from minillm.quantization.affine import half_away

LOWEST, HIGHEST = -2**31, 2**31 - 1


class Multiplier(NamedTuple):
    """mantissa int32, 2^30 <= |m| < 2^31, or 0; shift int8, -31 ... 30. One of each, or one for each channel."""

    mantissa: np.ndarray
    shift: np.ndarray


def multiplier(real) -> Multiplier:
    """A real number, or an array of them, as mantissa and shift; below 2^-32 it is 0. A mantissa is rounded, halves away from zero.

    MiniLLMError for 2^30 and beyond, and for what is not finite.
    """
    real = np.asarray(real, np.float64)
    if not (np.abs(real) < 2**30 - 1).all():
        raise MiniLLMError(f"a multiplier of {np.abs(real).max():g}: it must be below 2^30, so two scales are too far apart; "
                           "look for weights or activations that are much too large or too small")
    fraction, shift = np.frexp(real)                                           # 0.5 <= |fraction| < 1
    mantissa = half_away(fraction * 2**31).astype(np.int64)
    full = np.abs(mantissa) == 2**31
    mantissa, shift = np.where(full, mantissa // 2, mantissa), shift + full
    large = shift >= -31
    return Multiplier(np.where(large, mantissa, 0).astype(np.int32), np.where(large, shift, 0).astype(np.int8))


def multiply(x: np.ndarray, by: Multiplier, rounding: str = "single") -> np.ndarray:
    """Integers x that fit into 32 bits times a multiplier, broadcast: whole numbers that fit into 32 bits, held as int64."""
    if rounding not in ROUNDINGS:
        raise unknown("rounding", rounding, ROUNDINGS)
    return ROUNDINGS[rounding](x.astype(np.int64), by.mantissa.astype(np.int64), by.shift.astype(np.int64))


def requantize(x: np.ndarray, by: Multiplier, highest: int, rounding: str = "single") -> np.ndarray:
    """Integers x times a multiplier as codes of -highest ... highest, saturating: int8 where these fit, else int32."""
    return np.clip(multiply(x, by, rounding), -highest, highest).astype(np.int8 if highest <= 127 else np.int32)


def single(x, mantissa, shift):
    """One rounding: the product is below 2^62, so that adding half of what is shifted out, at most 2^61, cannot overflow."""
    out = 31 - shift
    return saturate((x * mantissa + (1 << (out - 1))) >> out)


def double(x, mantissa, shift):
    """Two: gemmlowp's SaturatingRoundingDoublingHighMul, which ARM has as SQRDMULH, and its RoundingDivideByPOT."""
    high = saturate((saturate(x << np.maximum(shift, 0)) * mantissa + 2**30) >> 31)
    out = np.maximum(-shift, 0)
    half = (1 << out) >> 1
    return np.sign(high) * ((np.abs(high) + half) >> out)


def saturate(x):
    return np.clip(x, LOWEST, HIGHEST)


ROUNDINGS = {"single": single, "double": double}
