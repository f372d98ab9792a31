"""Exact oracles on fractions.Fraction: what a format's code means, what a value rounds to, sums and dot products.

All of it follows from what sign, exponent and mantissa mean, value by value. Nothing is shared with the arithmetic on bit patterns
that it judges.
"""
import math
from collections.abc import Iterable
from fractions import Fraction

from minillm.errors import MiniLLMError, unknown
from minillm.formats import Format

MODES = ("nearest_even", "nearest_away", "toward_zero", "up", "down")


def power(exponent: int) -> Fraction:
    """2^exponent, exactly."""
    return Fraction(2) ** exponent


def exact_decode(code: int, format: Format) -> Fraction | float:
    """The value of a code: a Fraction, or a float where it is -0, infinite or NaN."""
    sign, below = divmod(code, 2 ** (format.exponent_bits + format.mantissa_bits))
    if format.integer:
        return (code - 2**format.bits * sign) * power(1 - format.bias - format.mantissa_bits)
    exponent, fraction = divmod(below, 2**format.mantissa_bits)
    if format.specials == "ieee" and exponent == 2**format.exponent_bits - 1:
        return math.nan if fraction else -math.inf if sign else math.inf
    if format.specials == "nan" and below == 2 ** (format.exponent_bits + format.mantissa_bits) - 1:
        return math.nan
    if format.specials == "fnuz" and sign and not below:
        return math.nan
    if exponent == 0 and format.zero:
        size = fraction * power(1 - format.bias - format.mantissa_bits) * format.subnormals
    else:
        size = (1 + fraction * power(-format.mantissa_bits)) * power(exponent - format.bias)
    return -0.0 if sign and not size else -size if sign else size


def largest(format: Format, negative: bool = False) -> Fraction:
    """The size of the largest finite value, or of the least negative one."""
    codes = 2 ** (format.exponent_bits + format.mantissa_bits)
    if format.integer:
        return abs(exact_decode(codes, format)) if negative and format.signed else exact_decode(codes - 1, format)
    last = {"ieee": codes - 2**format.mantissa_bits - 1, "nan": codes - 2}.get(format.specials, codes - 1)
    return exact_decode(last, format)


def exact_neighbours(size: Fraction, format: Format) -> tuple[Fraction, Fraction]:
    """The values on either side of a size >= 0, were there no end to the exponents; both are the size if it is a value."""
    lowest = (1 if format.zero else 0) - format.bias
    if size < power(lowest):
        if not format.zero:
            return power(lowest), power(lowest)
        if not format.subnormals:
            return Fraction(0), power(lowest) if size else Fraction(0)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < power(exponent)                                         # floor(log2(size)), exactly
    step = power(max(exponent, lowest) - format.mantissa_bits)
    below = size // step * step
    return below, below if below == size else below + step


def exact_round(value: Fraction | float, format: Format, mode: str = "nearest_even") -> float:
    """The value that a rounding mode must give: a float, with the sign of a zero; `round_to` is tested against this.

    value: a Fraction, or a float where infinities, NaN or the sign of a zero matter. Stochastic rounding has no single answer:
    `exact_neighbours` gives the two, and the value's place between them the probability. MiniLLMError for an unknown mode.
    """
    if mode not in MODES:
        raise unknown("exact rounding", mode, MODES)
    if isinstance(value, float) and math.isnan(value):
        return nan_becomes(format)
    negative = math.copysign(1, value) < 0
    if negative and value and not format.signed:
        return math.nan if format.has_nan else float(exact_decode(0, format))
    size = rounded_size(abs(value), format, mode, negative)
    return -size if negative and (size or format.has_negative_zero) else size


def nan_becomes(format: Format) -> float:
    """NaN, or what stands for it in a format that has none."""
    if format.specials != "none":
        return math.nan
    return 0.0 if format.nan == "zero" else float(largest(format))


def rounded_size(size: Fraction | float, format: Format, mode: str, negative: bool) -> float:
    """What a size becomes, with the ends of the format; `negative` is the sign that it has."""
    end = {"infinity": math.inf, "nan": math.nan}.get(format.overflow, float(largest(format, negative)))
    if size == math.inf:
        return math.inf if format.specials == "ieee" else end
    if not size and not format.zero:
        return math.nan if format.has_nan else float(exact_decode(0, format))
    below, above = exact_neighbours(Fraction(size), format)
    chosen = above if below != above and goes_up(Fraction(size), below, above, format, mode, negative) else below
    if chosen <= largest(format, negative):
        return float(chosen)
    return float(largest(format, negative)) if mode == "toward_zero" or mode == ("up" if negative else "down") else end


def goes_up(size, below, above, format: Format, mode: str, negative: bool) -> bool:
    """Whether a mode takes the larger of the two sizes."""
    if mode in ("toward_zero", "up", "down"):
        return mode == ("down" if negative else "up")
    if size - below != above - size:
        return size - below > above - size
    # a tie: a last digit that is 0 is even, and so is 0 itself
    return mode == "nearest_away" or (below > 0 and below / (above - below) % 2 == 1)


def finite(values: Iterable[float]) -> list[Fraction]:
    """Numbers as fractions, exactly; MiniLLMError for one that is infinite or NaN."""
    values = [v if isinstance(v, Fraction) else float(v) for v in values]
    if not all(isinstance(v, Fraction) or math.isfinite(v) for v in values):
        raise MiniLLMError("an exact sum takes finite numbers only: this one has an infinity or NaN")
    return list(map(Fraction, values))


def exact_sum(values: Iterable[float]) -> Fraction:
    """The sum without any rounding, of an array's elements or of any numbers."""
    return sum(finite(values.ravel() if hasattr(values, "ravel") else values), Fraction(0))


def exact_dot(a: Iterable[float], b: Iterable[float]) -> Fraction:
    """The dot product of two vectors, (K,) and (K,), without any rounding; MiniLLMError where their lengths differ."""
    a, b = finite(a), finite(b)
    if len(a) != len(b):
        raise MiniLLMError(f"a dot product takes vectors of one length, not of {len(a)} and {len(b)}")
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))
