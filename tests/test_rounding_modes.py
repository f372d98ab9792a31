"""Every format in every mode against exact fractions; what each mode promises; kernels on and off."""
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from number_cases import HALVES, RANDOM, SIMULATED, SPECIAL, bits, every_edge, some, ties

from minillm.errors import MiniLLMError
from minillm.formats import E8M0, FLOAT4_E2M1, FLOAT8_E4M3, FLOAT8_E5M2, FLOAT16, FLOAT32, INT8, Format, format_named
from minillm.rounding import ROUNDINGS, round_to, to_grid, widen
from minillm.testing import FLOAT64, exact_neighbours, exact_round, rounding_bound
from minillm.testing.exact import MODES

KEY = 0x0123456789ABCDEF
ONE_ODD_SIGN = [f for f in SIMULATED if f.signed and not f.integer]            # whose values come in pairs of either sign
OPPOSITE = {"up": "down", "down": "up"}


def normal(format, count, wide):
    """Gaussian values that fill a format, and its type where that is too narrow for them."""
    with np.errstate(over="ignore"):
        return (np.random.default_rng(5).standard_normal(count) * format.max / 4).astype(wide)


def wrong(got, expected):
    """Where two arrays differ in value or sign; NaN is like NaN."""
    same = (got == expected) & (np.signbit(got) == np.signbit(expected))
    return ~(same | (np.isnan(got) & np.isnan(expected)))


@pytest.mark.parametrize("format", SIMULATED, ids=str)
@pytest.mark.parametrize("wide", [np.float32, np.float64])
def test_every_mode_is_that_of_exact_fractions(format, wide, kernels):
    x = np.concatenate([some(every_edge(format, wide), 120), SPECIAL.astype(wide), some(RANDOM, 20).astype(wide),
                        normal(format, 20, wide)])
    for mode in MODES:
        got, expected = round_to(x, format, mode), np.array([exact_round(v, format, mode) for v in x.tolist()])
        assert got.dtype == format.storage
        bad = wrong(got, expected)
        assert not bad.any(), (mode, x[bad][:5], got[bad][:5], expected[bad][:5])


@pytest.mark.parametrize("format", SIMULATED, ids=str)
def test_kernels_give_the_bits_of_numpy_in_every_mode(format, monkeypatch):
    x = np.concatenate([HALVES.astype(np.float32), RANDOM[:2**14], every_edge(format, np.float32)[:2**16],
                        normal(format, 2**12, np.float32)])
    for mode in (*ROUNDINGS, "stochastic_1", "stochastic_7"):
        results = []
        for state in ("on", "off"):
            monkeypatch.setenv("MINILLM_KERNELS", state)
            results.append(round_to(x, format, mode, KEY))
        assert np.array_equal(*map(bits, results)), mode


@pytest.mark.parametrize("format", SIMULATED, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_monotone_idempotent_and_odd_where_the_mode_is(format, mode, kernels):
    x = np.sort(np.concatenate([some(every_edge(format, np.float32), 2000), normal(format, 500, np.float32)]))
    x = x if format.signed else x[x >= 0]
    y = round_to(x, format, mode).astype(np.float64)
    if format.has_nan:                                                         # 0 without a zero, and overflow to NaN
        x, y = x[~np.isnan(y)], y[~np.isnan(y)]
    assert np.all(y[1:] >= y[:-1])
    finite = y[np.isfinite(y)]
    assert np.array_equal(bits(round_to(finite, format, mode).astype(np.float64)), bits(finite))
    if format in ONE_ODD_SIGN:
        mirrored = -round_to(-x, format, OPPOSITE.get(mode, mode)).astype(np.float64)
        assert not wrong(mirrored, y)[(y != 0) | format.has_negative_zero].any()


@pytest.mark.parametrize("format", [f for f in SIMULATED if f.subnormals and f.zero], ids=str)
def test_errors_stay_within_half_an_ulp_or_a_whole_one(format):
    x = normal(format, 2000, np.float64)
    x = np.abs(x[np.abs(x) < format.max])
    ulp = np.array([format.ulp(v) for v in x])
    for mode in MODES:
        error = np.abs(round_to(x, format, mode).astype(np.float64) - x)
        share = (error / ulp).max()
        print(f"{format.name} {mode}: the worst error of 2000 values is {share:.3f} ulp")
        assert share <= (0.5 if mode.startswith("nearest") else 1)
        assert share > 0.3
    nearest = round_to(x, format).astype(np.float64)
    assert format.integer or np.all(np.abs(nearest - x) <= rounding_bound(x, format))


@pytest.mark.parametrize("format", SIMULATED, ids=str)
def test_what_is_on_the_grid_stays_there_in_every_mode(format, kernels):
    values = some(every_edge(format, np.float64), 3000)
    values = np.unique(round_to(values, format))
    values = values[np.isfinite(values)]
    for mode in ROUNDINGS:
        assert np.array_equal(bits(round_to(values.astype(np.float64), format, mode, KEY)), bits(values))


@pytest.mark.parametrize("format", [FLOAT8_E4M3, FLOAT8_E5M2, FLOAT16, FLOAT4_E2M1], ids=str)
@pytest.mark.parametrize("nudge", [-1, 1])
def test_a_double_beside_a_tie_is_rounded_once(format, nudge, kernels):
    middle = ties(format)
    middle = some(middle[np.abs(middle) < format.max], 500)
    x = np.nextafter(middle, nudge * np.inf)                                   # float32 would make ties of all of them
    assert np.array_equal(round_to(x, format).astype(np.float64), [exact_round(v, format) for v in x.tolist()])
    assert not np.array_equal(round_to(x.astype(np.float32), format), round_to(x, format))


@given(value=st.floats(width=64), mode=st.sampled_from(MODES), exponent_bits=st.integers(2, 8), mantissa_bits=st.integers(1, 20),
       specials=st.sampled_from(["ieee", "nan", "fnuz", "none"]), subnormals=st.booleans(), scale=st.integers(-20, 20))
def test_formats_that_anybody_may_build(value, mode, exponent_bits, mantissa_bits, specials, subnormals, scale):
    bias = 2 ** (exponent_bits - 1) - 1 + (2 if exponent_bits > 5 else scale)
    try:
        format = Format("any", exponent_bits, mantissa_bits, bias=bias, specials=specials, subnormals=subnormals)
    except MiniLLMError:                                                       # of float32's own range, or beyond it
        return
    for x in (np.array([value]), np.array([value * format.smallest]) if math.isfinite(value) else np.zeros(1)):
        expected = np.array([exact_round(x.item(), format, mode)])
        assert not wrong(round_to(x, format, mode), expected).any()


# --- dialects, by hand

def becomes(name, *values, mode="nearest_even"):
    return round_to(np.array(values, np.float32), format_named(name), mode).tolist()


def test_five_things_that_e4m3_means():
    assert becomes("float8_e4m3", 448, 464) == [448, 448]
    assert all(map(math.isnan, becomes("float8_e4m3", 465, 500, -math.inf)))
    assert becomes("float8_e4m3_saturate", 465, 500, math.inf, -math.inf) == [448, 448, 448, -448]
    assert becomes("float8_e4m3_max240", 247, 248, 500, -math.inf) == [240, math.inf, math.inf, -math.inf]
    assert becomes("float8_e4m3_max480", 448, 465, 500, -math.inf, math.nan) == [448, 480, 480, -480, 480]
    assert becomes("float8_e4m3_fnuz", 240) == [240]
    assert math.isnan(becomes("float8_e4m3_fnuz", 248)[0])
    assert math.copysign(1, becomes("float8_e4m3_fnuz", -0.0)[0]) == math.copysign(1, becomes("float8_e4m3_fnuz", -1e-9)[0]) == 1


def test_modes_that_round_towards_zero_at_the_end_stop_there():
    for mode, ends in {"toward_zero": (448, -448), "down": (448, None), "up": (None, -448)}.items():
        for got, end in zip(becomes("float8_e4m3", 1e30, -1e30, mode=mode), ends, strict=True):
            assert got == end or (end is None and math.isnan(got))
    assert becomes("float8_e5m2", 1e30, -1e30, mode="up") == [math.inf, -57344]


def test_without_subnormals_there_are_zero_and_the_smallest_normal_value_only():
    t = 2.0**-14
    assert becomes("float16_flush", t / 2, 1.001 * t / 2, -0.75 * t, t) == [0, t, -t, t]
    assert becomes("float16_flush", 1e-30, mode="up") == [t]
    assert becomes("float16_flush", 0.999 * t, mode="toward_zero") == [0]


def test_whole_numbers_end_at_128_below_and_127_above():
    assert becomes("int8", -128.4, -127.5, -0.5, 0.5, 1.5, 126.5, 127.4, 1e9, -math.inf, math.nan) == \
        [-128, -128, 0, 0, 2, 126, 127, 127, -128, 0]
    assert becomes("int4", -9, -7.5, 7.5) == [-8, -8, 7]
    assert math.copysign(1, becomes("int8", -0.4)[0]) == 1


def test_block_scales_have_neither_zero_nor_sign():
    assert becomes("e8m0", 1.49, 1.5, 3, 1e-45, 2e38) == [1, 2, 4, 2.0**-127, 2.0**127]
    assert all(map(math.isnan, becomes("e8m0", 0, -0.0, -1, math.inf, math.nan)))
    assert Format("no zero, no NaN", 3, 2, specials="none", zero=False).smallest == \
        round_to(0.0, Format("no zero, no NaN", 3, 2, specials="none", zero=False)).item()


# --- any input

@pytest.mark.parametrize("format", SIMULATED, ids=str)
@pytest.mark.parametrize("mode", ROUNDINGS)
def test_any_layout_and_byte_order(format, mode, kernels):
    x = np.random.default_rng(3).standard_normal((4, 6, 5)).astype(np.float32)
    expected = round_to(x, format, mode, KEY)
    assert expected.dtype == format.storage
    assert np.array_equal(bits(round_to(np.asfortranarray(x), format, mode, KEY)), bits(expected))
    assert np.array_equal(bits(round_to(x.astype(">f4"), format, mode, KEY)), bits(expected))
    wider = np.zeros((8, 6, 10), np.float32)
    wider[::2, :, ::2] = x
    assert np.array_equal(bits(round_to(wider[::2, :, ::2], format, mode, KEY)), bits(expected))
    assert round_to(x[:, :0], format, mode, KEY).shape == (4, 0, 5)
    single = round_to(x[0, 0, 0, ...], format, mode, KEY)
    assert type(single) is np.ndarray
    assert single.shape == ()
    assert np.array_equal(bits(single), bits(expected)[0, 0, 0])
    assert np.array_equal(bits(round_to(float(x[0, 0, 0]), format, mode, KEY)), bits(single))


@pytest.mark.parametrize("format", SIMULATED, ids=str)
def test_halves_are_rounded_like_the_same_numbers_in_float32(format, kernels):
    for mode in ROUNDINGS:
        if format.storage is not np.float16 or format.simulated:               # else there is nothing to round
            wide = round_to(widen(HALVES, np.float32), format, mode, KEY)
            assert np.array_equal(bits(round_to(HALVES, format, mode, KEY)), bits(wide))


@pytest.mark.parametrize("values", [np.arange(3), np.array([True]), 3, np.array(["1"]), np.longdouble([1.5]), None, [1, 2]])
@pytest.mark.parametrize("format", [FLOAT8_E4M3, INT8, E8M0, FLOAT32], ids=str)
def test_what_has_no_float_bits_is_refused(values, format, kernels):
    with pytest.raises(MiniLLMError, match=f"cannot round .* to {format.name}"):
        round_to(values, format)


def test_the_specification_takes_no_kernel():
    x = some(every_edge(FLOAT8_E4M3, np.float32), 1000)
    assert np.array_equal(bits(to_grid(x, FLOAT8_E4M3)), bits(round_to(x, FLOAT8_E4M3)))


def test_an_unknown_mode_of_the_oracle_is_named():
    with pytest.raises(MiniLLMError, match="unknown exact rounding 'nearest'"):
        exact_round(1.0, FLOAT16, "nearest")
    assert exact_neighbours(Fraction(1, 3), FLOAT4_E2M1) == (0, Fraction(1, 2))
    assert exact_round(Fraction(1, 3), FLOAT64) == 1 / 3
