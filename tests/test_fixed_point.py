"""Products by a mantissa and a shift: both roundings equal oracles in Python's integers, at every extreme, tie and sign."""
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minillm.errors import MiniLLMError
from minillm.quantization.fixed_point import HIGHEST, LOWEST, ROUNDINGS, Multiplier, multiplier, multiply, requantize

NUMBERS = st.integers(LOWEST, HIGHEST) | st.integers(-2000, 2000) | st.sampled_from([LOWEST, LOWEST + 1, -1, 0, 1, HIGHEST])
MANTISSAS = st.integers(2**30, 2**31 - 1) | st.sampled_from([2**30, 2**30 + 1, 3 * 2**29, 2**31 - 1])
SHIFTS = st.integers(-31, 30)
SIGNS = st.sampled_from([1, -1])


def clamp(x):
    return max(LOWEST, min(HIGHEST, x))


# --- oracles: Python's integers, as the programs that use these roundings write them

def mantissa_and_shift(real):
    """real = m / 2^31 2^s, m rounded, halves away from zero."""
    exact, s = abs(Fraction(real)), 0
    if exact == 0:
        return 0, 0
    while exact >= 1:
        exact, s = exact / 2, s + 1
    while exact < Fraction(1, 2):
        exact, s = exact * 2, s - 1
    m = math.floor(exact * 2**31 + Fraction(1, 2))
    m, s = (2**30, s + 1) if m == 2**31 else (m, s)
    return (m if real > 0 else -m, s) if s >= -31 else (0, 0)


def single_oracle(x, m, s):
    return clamp(math.floor(Fraction(x * m) * Fraction(2) ** (s - 31) + Fraction(1, 2)))


def toward_zero(a, b):
    """Division as C has it."""
    return abs(a) // b if a >= 0 else -(abs(a) // b)


def double_oracle(x, m, s):
    """gemmlowp, fixedpoint.h: SaturatingRoundingDoublingHighMul, then RoundingDivideByPOT."""
    product = clamp(x * 2 ** max(s, 0)) * m
    high = clamp(toward_zero(product + (2**30 if product >= 0 else 1 - 2**30), 2**31))
    out = max(-s, 0)
    mask = 2**out - 1
    return (high >> out) + int(high & mask > (mask >> 1) + (high < 0))


ORACLES = {"single": single_oracle, "double": double_oracle}


@given(st.floats(2.0**-40, 2.0**29) | st.floats(0.4999999, 0.5000001) | st.floats(0.9999999998, 1.0), SIGNS)
@example(1 - 2.0**-33, 1)                        # rounds to 2^31, which is halved
@example(2.0**-32, 1)
@example(2.0**-33, -1)                           # 0
def test_a_multiplier_is_the_nearest_mantissa(real, sign):
    found = multiplier(sign * real)
    assert (int(found.mantissa), int(found.shift)) == mantissa_and_shift(sign * real)
    assert (found.mantissa.dtype, found.shift.dtype) == (np.int32, np.int8)
    assert found.mantissa == 0 or 2**30 <= abs(int(found.mantissa)) < 2**31


@pytest.mark.parametrize("rounding", ROUNDINGS)
@given(x=NUMBERS, m=MANTISSAS, s=SHIFTS, sign=SIGNS)
@example(x=LOWEST, m=2**31 - 1, s=30, sign=1)
@example(x=LOWEST, m=2**31 - 1, s=30, sign=-1)
@example(x=-1, m=2**30, s=0, sign=1)             # -1/2
@example(x=-3, m=2**30, s=-1, sign=1)
@example(x=-5, m=3 * 2**29, s=-31, sign=1)
def test_a_product_equals_the_oracle(rounding, x, m, s, sign):
    by = Multiplier(np.int32(sign * m), np.int8(s))
    assert int(multiply(np.array(x, np.int32), by, rounding)) == ORACLES[rounding](x, sign * m, s)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_tie_of_small_numbers(rounding):
    x = np.arange(-300, 301, dtype=np.int32)
    for m in (2**30, 3 * 2**29):
        for s in range(-9, 3):
            found = multiply(x, Multiplier(np.int32(m), np.int8(s)), rounding)
            assert found.tolist() == [ORACLES[rounding](int(each), m, s) for each in x]


def test_the_two_roundings_differ():
    """A quarter of -6 is -3/2: -1 once halves go up. Half of it is -3, and half of that goes away from zero."""
    x, quarter = np.array([-6, -2, 2, 6], np.int32), multiplier(0.25)
    assert multiply(x, quarter, "single").tolist() == [-1, 0, 1, 2]
    assert multiply(x, quarter, "double").tolist() == [-2, -1, 1, 2]
    part = Multiplier(np.int32(2**30), np.int8(-3))                           # 1/16: 23/16 is 1; but 23/2 is 12, and 12/8 is 2
    assert [int(multiply(np.int32(23), part, rounding)) for rounding in ("single", "double")] == [1, 2]


@pytest.mark.parametrize("rounding", ROUNDINGS)
@given(x=st.integers(-2**24, 2**24), real=st.floats(2.0**-20, 64))
def test_a_product_is_nearly_the_real_one(rounding, x, real):
    """A mantissa is off by half of 2^-30 of itself; one rounding costs a half, two cost one."""
    error = abs(int(multiply(np.array(x, np.int32), multiplier(real), rounding)) - x * Fraction(real))
    assert error <= Fraction(1, 2) * (1 if rounding == "single" else 2) + abs(x) * Fraction(real) * Fraction(1, 2**31)


def test_each_channel_has_its_own():
    x, real = np.arange(-50, 50, dtype=np.int32).reshape(20, 5), np.array([0.1, 0.2, -0.3, 2.0**-40, 700])
    found = multiply(x, multiplier(real))
    assert np.array_equal(found, np.stack([multiply(x[:, i], multiplier(r)) for i, r in enumerate(real)], axis=1))
    assert not found[:, 3].any()


def test_codes_saturate_and_never_wrap():
    x = np.array([LOWEST, -1000, -128, 127, 128, 1000, HIGHEST], np.int32)
    one = multiplier(1.0)
    assert requantize(x, one, 127).tolist() == [-127, -127, -127, 127, 127, 127, 127]
    assert requantize(x, one, 127).dtype == np.int8
    assert requantize(x, multiplier(2.0**20), 2**15 - 1).tolist() == [-32767] * 3 + [32767] * 4
    assert requantize(x, one, HIGHEST).dtype == np.int32
    assert requantize(x, one, HIGHEST).tolist() == [-HIGHEST, *x[1:].tolist()]


@pytest.mark.parametrize("real", [2.0**30, -(2.0**31), 1e30, math.inf, math.nan])
def test_what_no_shift_holds_is_refused(real):
    with pytest.raises(MiniLLMError, match="two scales are too far apart"):
        multiplier(np.array([1.0, real]))


def test_an_unknown_rounding_is_refused():
    with pytest.raises(MiniLLMError, match="did you mean 'single'"):
        multiply(np.zeros(1, np.int32), multiplier(1), "singel")
