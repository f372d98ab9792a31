"""Formats: what they derive from their bits agrees with NumPy's and ml_dtypes' own words, and with every value one by one."""
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from number_cases import PEERS, SMALL

from minillm.errors import MiniLLMError
from minillm.formats import (
    BFLOAT16,
    E8M0,
    FLOAT4_E2M1,
    FLOAT8_E4M3,
    FLOAT16,
    FLOAT32,
    FORMATS,
    INT4,
    INT8,
    Format,
    format_named,
)
from minillm.testing import FLOAT64, exact_decode

INFO = {FLOAT16: np.finfo(np.float16), FLOAT32: np.finfo(np.float32), FLOAT64: np.finfo(np.float64),
        BFLOAT16: ml_dtypes.finfo(ml_dtypes.bfloat16)}


@pytest.mark.parametrize("format", INFO, ids=str)
def test_constants_are_those_of_the_type(format):
    info = INFO[format]
    assert (format.bits, format.exponent_bits, format.mantissa_bits) == (info.bits, info.iexp or info.nexp, info.nmant)
    assert (format.max, format.tiny, format.eps) == (float(info.max), float(info.tiny), float(info.eps))
    assert format.smallest_subnormal == float(info.smallest_subnormal)
    assert format.roundoff == format.eps / 2
    assert format.bias == 1 - info.minexp


def test_every_format_has_its_own_words():
    assert FLOAT64 not in FORMATS.values()                                    # the oracle's format is no choice of a recipe
    assert all(format_named(name) is format for name, format in FORMATS.items())
    assert (FLOAT16.max, FLOAT16.tiny, FLOAT16.smallest_subnormal) == (65504, 2**-14, 2**-24)


def test_bytes_of_a_format_and_bytes_of_its_storage_are_told_apart():
    assert [f.simulated for f in (FLOAT32, FLOAT16, BFLOAT16, FLOAT64)] == [False, False, True, False]
    assert [f.nbytes(3) for f in (FLOAT32, FLOAT16, BFLOAT16)] == [12, 6, 6]
    assert np.dtype(BFLOAT16.storage).itemsize == 4


def test_an_unknown_format_names_the_nearest():
    with pytest.raises(MiniLLMError, match="unknown format 'flaot16': did you mean 'float16'"):
        format_named("flaot16")


# --- what a format derives, against its values one by one

def enumerated(format):
    """Every finite value, sorted, from the meaning of each code."""
    values = (exact_decode(code, format) for code in range(2**format.bits))
    return sorted({Fraction(v) for v in values if math.isfinite(v)})


TINY_FORMATS = [f for f in SMALL if f.bits <= 10]


@pytest.mark.parametrize("format", TINY_FORMATS, ids=str)
def test_values_are_those_of_its_codes(format):
    values, listed = enumerated(format), format.values()
    assert [Fraction(v) for v in listed.tolist()] == values
    assert listed.dtype == np.float32
    assert (format.max, format.lowest) == (values[-1], values[0])
    assert format.smallest == min(v for v in values if v > 0)


@pytest.mark.parametrize("format", SMALL, ids=str)
def test_every_value_has_its_neighbours_and_its_ulp(format):
    values = format.values().astype(np.float64)
    at = np.arange(len(values)) if len(values) < 300 else np.random.default_rng(0).integers(1, len(values) - 1, 300)
    for i in at:
        v, below, above = values[i], values[i - 1] if i else -math.inf, values[i + 1] if i + 1 < len(values) else math.inf
        assert format.neighbours(v) == (below, above)
        if above < math.inf and v >= 0:
            assert format.ulp(v) == format.ulp(-v) == above - v
            middle = (v + above) / 2
            assert format.neighbours(middle) == (v, above)
            assert format.ulp(middle) == above - v
    top = values[-1]
    assert format.neighbours(1.5 * top)[0] == top
    assert format.neighbours(-1e38 if format.max < 1e38 else -3.4e38)[0] == -math.inf


@pytest.mark.parametrize("format", PEERS, ids=str)
def test_constants_are_those_of_ml_dtypes(format):
    info = ml_dtypes.finfo(PEERS[format])
    assert (format.bits, format.max, format.lowest) == (info.bits, float(info.max), float(info.min))
    assert (format.tiny, format.smallest_subnormal) == (float(info.smallest_normal), float(info.smallest_subnormal))
    assert format.eps == float(info.eps)


def test_ends_that_papers_print():
    ends = {"float8_e4m3": (448, 2**-6, 2**-9), "float8_e5m2": (57344, 2**-14, 2**-16), "float6_e3m2": (28, 0.25, 0.0625),
            "float6_e2m3": (7.5, 1, 0.125), "float4_e2m1": (6, 1, 0.5), "float8_e4m3_max240": (240, 2**-6, 2**-9),
            "float8_e4m3_max480": (480, 2**-6, 2**-9), "tf32": (2.0**128 - 2.0**117, 2**-126, 2**-136)}
    for name, (largest, tiny, least) in ends.items():
        format = format_named(name)
        assert (format.max, format.tiny, format.smallest_subnormal) == (largest, tiny, least), name
    assert (INT8.max, INT8.lowest, INT4.max, INT4.lowest) == (127, -128, 7, -8)
    assert (E8M0.max, E8M0.lowest, E8M0.signed, E8M0.zero) == (2.0**127, 2.0**-127, False, False)
    assert FLOAT4_E2M1.values().tolist() == [-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]


def test_wide_formats_do_not_list_their_values():
    with pytest.raises(MiniLLMError, match=r"float32 has 2\^32 codes"):
        FLOAT32.values()


@pytest.mark.parametrize("what", ["ulp", "neighbours"])
@pytest.mark.parametrize("x", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_has_no_ulp(what, x):
    with pytest.raises(MiniLLMError, match="give a finite number"):
        getattr(FLOAT16, what)(x)


def test_ulp_far_beyond_the_ends():
    assert FLOAT16.ulp(1.7e308) == 2.0 ** (1023 - 10)
    assert FLOAT16.ulp(0) == FLOAT16.ulp(5e-324) == 2**-24
    assert E8M0.ulp(0) == 2**-127
    assert FLOAT4_E2M1.neighbours(1e300) == (6, math.inf)


# --- absurd ones

@pytest.mark.parametrize(("fields", "says"), [
    ((9, 3), "9 exponent and 3 mantissa bits: float32 holds 0 to 8"), ((5, 24), "24 mantissa bits"), ((-1, 3), "-1 exponent"),
    ((4, -2), "-2 mantissa"), ((2.5, 3), "2.5 exponent"), ((4, 3, np.float32, np.float32, 1000), "bias 1000"),
    ((8, 3, np.float32, np.float32, 100), "values that float32 does not hold"), ((4, 3, np.float16, np.float32, 40), "float16"),
    ((0, 7), "integer format"), ((0, 1, np.float32, np.float32, None, "fnuz"), "integer format"), ((5, 0), "tell NaN from inf"),
    ((1, 0, np.float32, np.float32, None, "nan"), "no value above 0"),
])
def test_formats_that_cannot_be(fields, says):
    with pytest.raises(MiniLLMError, match=says):
        Format("absurd", *fields)


@pytest.mark.parametrize(("changes", "says"), [
    ({"specials": "iee"}, "unknown specials 'iee': did you mean 'ieee'"), ({"overflow": "wrap"}, "unknown overflow 'wrap'"),
    ({"specials": "none", "overflow": "nan"}, "has no nan for an overflow"), ({"overflow": "infinity"}, "has no infinity"),
    ({"specials": "fnuz", "signed": False}, "no code of -0"), ({"nan": "inf"}, "cannot make 'inf' of NaN"),
    ({"zero": False, "nan": "zero"}, "cannot make 'zero' of NaN"), ({"bias": 0.5}, "cannot be|bias|bits"),
    ({"exponent_bits": 1, "specials": "ieee", "subnormals": False}, "no value above 0"),
])
def test_dialects_that_cannot_be(changes, says):
    with pytest.raises(MiniLLMError, match=says):
        FLOAT8_E4M3.dialect("absurd", **changes)


def test_a_name_builds_any_format_and_the_same_one_each_time():
    assert format_named("e5m7") is format_named("e5m7")
    assert (format_named("e5m7").bits, format_named("e5m7").max) == (13, (2 - 2**-7) * 2.0**15)
    for name in ("e9m3", "e5m24", "e5m0"):
        with pytest.raises(MiniLLMError, match=f"format {name}"):
            format_named(name)
    with pytest.raises(MiniLLMError, match="unknown format 'e0m7'"):
        format_named("e0m7")


def test_a_dialect_keeps_what_it_does_not_change():
    saturating = FLOAT8_E4M3.dialect("mine", overflow="saturate")
    assert (saturating.max, saturating.bias, saturating.specials, saturating.overflow) == (448, 7, "nan", "saturate")
    assert FLOAT8_E4M3.dialect("mine", specials="ieee").overflow == "infinity"
