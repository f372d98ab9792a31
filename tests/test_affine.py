"""Affine quantization: codes, zero points and packing are those of exact arithmetic, whatever the scheme."""
from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minillm.errors import MiniLLMError
from minillm.formats import FLOAT16, FLOAT32
from minillm.quantization.affine import (
    GRANULARITIES,
    HALVES,
    INT4,
    TERNARY,
    Grid,
    Scheme,
    codes_of,
    grid,
    quantize,
    quantize_with,
    scale_and_zero_point,
)
from minillm.quantization.error import error_of, sqnr_db
from minillm.quantization.packing import pack, unpack

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
grids = st.builds(grid, st.integers(2, 8), st.booleans())
arrays = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=3, max_side=7), elements=finite)


@st.composite
def schemes(draw, ndim=2):
    return Scheme(draw(grids), draw(st.booleans()), draw(st.sampled_from(GRANULARITIES)), draw(st.integers(-ndim, ndim - 1)),
                  draw(st.integers(1, 5)), draw(st.sampled_from(sorted(HALVES))), draw(st.booleans()), draw(st.booleans()),
                  draw(st.sampled_from([FLOAT32, FLOAT16])))


def exact_half(v: Fraction, halves: str) -> int:
    """A fraction rounded to a whole number, by its definition."""
    if halves == "half_even":
        return round(v)
    if halves == "half_up":
        return floor(v + Fraction(1, 2))
    return floor(abs(v) + Fraction(1, 2)) * (1 if v >= 0 else -1)


def exact_code(x, scale, zero, scheme: Scheme) -> int:
    """Q(x) = round(x / S + Z) in rational numbers, and its clamp."""
    quotient = Fraction(float(x)) / Fraction(float(scale))
    code = exact_half(quotient + zero, scheme.halves) if scheme.zero_point_inside else exact_half(quotient, scheme.halves) + zero
    return min(max(code, scheme.grid.lowest), scheme.grid.highest)


@given(st.data())
def test_codes_are_those_of_exact_arithmetic(data):
    x = data.draw(arrays)
    scheme = data.draw(schemes(x.ndim))
    q = quantize(x, scheme)
    rows, codes = scheme.rows(x), scheme.rows(q.codes)
    zeros = np.zeros(q.scale.size, int) if q.zero_point is None else q.zero_point.ravel().astype(int)
    expected = [[exact_code(v, s, int(z), scheme) for v in row] for row, s, z in zip(rows, q.scale.ravel(), zeros, strict=True)]
    filled = scheme.rows(np.ones(x.shape, bool))                               # where a group was filled up there is no code
    assert (codes.dtype, q.shape, q.scale.shape) == (np.int8, x.shape, scheme.scale_shape(x.shape))
    assert np.array_equal(codes[filled], np.array(expected).reshape(codes.shape)[filled])


@given(st.data())
def test_ties_go_where_the_scheme_says(data):
    scheme = data.draw(schemes())
    zero = data.draw(st.integers(scheme.grid.lowest, scheme.grid.highest))
    power = data.draw(st.integers(-20, 20))
    x = np.ldexp(np.arange(-300, 300, dtype=np.float32) / 2, power)                        # whole and half steps
    got = codes_of(x, np.float32(2.0**power), np.int8(zero), scheme)
    assert got.tolist() == [exact_code(v, 2.0**power, zero, scheme) for v in x]


def test_a_zero_point_outside_the_rounding_differs_at_every_tie_to_even_where_it_is_odd():
    ties = np.arange(-40, 40, dtype=np.float32) + np.float32(0.5)
    inside, outside = (codes_of(ties, np.float32(1), np.int8(3), Scheme(zero_point_inside=where)) for where in (True, False))
    assert (inside != outside).all()
    even = [codes_of(ties, np.float32(1), np.int8(4), Scheme(zero_point_inside=where)) for where in (True, False)]
    assert np.array_equal(*even)


@given(st.data())
def test_no_value_within_the_range_is_off_by_more_than_half_a_step(data):
    x = data.draw(arrays) / np.float32(2)                  # beyond 2^127 a scale is held down, so that two steps below 0 are finite
    scheme = Scheme(data.draw(grids), data.draw(st.booleans()), "channel", halves=data.draw(st.sampled_from(sorted(HALVES))))
    q = quantize(x, scheme)
    step = q.scale.astype(np.float64).reshape(-1, 1)
    # half a step; where Z was rounded an end of the range may lie half a step beyond the grid; and the value S (Q - Z) is rounded
    bound = step / 2 * (1 if scheme.symmetric else 2) + 256 * step * FLOAT32.roundoff
    assert np.all(abs(scheme.rows(q.values()).astype(np.float64) - scheme.rows(x)) <= bound)


@given(arrays, grids)
def test_zero_stays_zero(x, grid_):
    for symmetric in (True, False):
        q = quantize(np.where(abs(x) > 1, x, np.float32(0)), Scheme(grid_, symmetric))
        assert not q.values()[abs(x) <= 1].any()


def test_integers_saturate():
    scheme = Scheme(grid(8, narrow=False))
    far = np.array([-np.inf, -1e30, -129, -128.5, 127.5, 128, 300, 1e30, np.inf], np.float32)
    assert codes_of(far, np.float32(1), None, scheme).tolist() == [-128] * 4 + [127] * 5


@pytest.mark.parametrize(("half_range", "scale"), [(False, 1 / 127), (True, 1 / 127.5)])
def test_a_scale_is_a_127th_or_half_of_a_255th(half_range, scale):
    found, _ = scale_and_zero_point(np.float32([-1]), np.float32([0.5]), Scheme(grid(8, False), half_range=half_range))
    assert found == np.float32(scale)


def test_with_half_the_range_both_ends_are_ties_of_which_one_saturates():
    q = quantize(np.float32([127.5, -127.5]), Scheme(grid(8, False), half_range=True))
    assert (q.scale, q.codes.tolist()) == (1, [127, -128])


def test_rows_of_zeros_have_scale_1_and_lose_nothing():
    for symmetric in (True, False):
        q = quantize(np.zeros((2, 3), np.float32), Scheme(symmetric=symmetric, granularity="channel"))
        assert q.scale.tolist() == [1, 1]
        assert not q.values().any()


@pytest.mark.parametrize("value", [5.0, -5.0, 1e-45, -3e38])
def test_a_constant_has_a_scale_and_keeps_its_value(value):
    x = np.full((2, 3), value, np.float32)
    q = quantize(x, Scheme(grid(8, False), symmetric=False))
    assert np.all(abs(q.values().astype(np.float64) - x) <= q.scale.astype(np.float64) * 0.5001)


def test_a_range_as_wide_as_float32_has_a_finite_scale():
    q = quantize(np.float32([[-FLOAT32.max, FLOAT32.max]]), Scheme(grid(8, False), symmetric=False))
    assert np.isfinite(q.scale)
    assert np.isfinite(q.values()).all()


@pytest.mark.parametrize(("value", "says"), [(np.nan, "range ends at nan"), (np.inf, "range ends at inf"), (-np.inf, "at -inf")])
def test_what_is_not_finite_has_no_range(value, says):
    with pytest.raises(MiniLLMError, match=says):
        quantize(np.float32([[1, value]]))


def test_nan_has_no_code_even_with_a_scale():
    with pytest.raises(MiniLLMError, match="1 of 2 values are NaN"):
        quantize_with(np.float32([[1, np.nan]]), np.float32([1]), None, Scheme())


def test_an_outlier_takes_the_whole_tensor_but_only_its_own_row():
    x = np.float32([[1e30, 1], [0.5, 1]])
    assert quantize(x).codes.tolist() == [[127, 0], [0, 0]]
    assert quantize(x, Scheme(granularity="channel")).codes.tolist() == [[127, 0], [64, 127]]


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 3), (2, 0, 4)])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_empty_arrays_have_no_codes(shape, granularity):
    if granularity == "tensor" or shape:
        q = quantize(np.zeros(shape, np.float32), Scheme(granularity=granularity))
        assert q.values().shape == shape
        assert q.scale.shape == Scheme(granularity=granularity).scale_shape(shape)


def test_channels_are_those_of_the_axis():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for axis in range(-3, 3):
        q = quantize(x, Scheme(granularity="channel", axis=axis))
        others = tuple(i for i in range(3) if i != axis % 3)
        assert np.array_equal(q.scale, x.max(others) / np.float32(127))
        assert np.array_equal(np.rint(x / q.scale.reshape([-1 if i == axis % 3 else 1 for i in range(3)])), q.codes)


def test_a_group_at_the_end_may_be_short():
    x = np.float32([[1, 2, 3, 4, 5]])
    q = quantize(x, Scheme(granularity="group", group=2))
    assert np.array_equal(q.scale, np.float32([[2, 4, 5]]) / np.float32(127))
    assert q.codes.tolist() == [[64, 127, 95, 127, 127]]


@given(grids, hnp.array_shapes(max_dims=3, max_side=9), st.integers(0, 2**32 - 1))
def test_packed_codes_come_back(grid_, shape, seed):
    codes = np.random.default_rng(seed).integers(grid_.lowest, grid_.highest + 1, shape).astype(np.int8)
    packed = pack(codes, grid_)
    assert packed.nbytes == -(-codes.size * grid_.bits // 8)
    assert np.array_equal(unpack(packed, grid_, shape), codes)


def test_two_codes_of_four_bits_are_one_byte_the_first_in_the_high_half():
    assert pack(np.int8([-7, 7, 0]), INT4).tolist() == [0x0E, 0x70]


def test_a_code_off_the_grid_and_a_missing_byte_are_found():
    with pytest.raises(MiniLLMError, match="code 8 on a grid of -7"):
        unpack(np.uint8([0xFF]), INT4, (2,))
    with pytest.raises(MiniLLMError, match="3 codes of 4 bits are 2 bytes"):
        unpack(np.uint8([0]), INT4, (3,))


def test_bytes_are_those_of_the_bits():
    x = np.ones((8, 64), np.float32)
    assert quantize(x, Scheme(granularity="channel")).nbytes == 8 * 64 + 8 * 4
    assert quantize(x, Scheme(INT4, granularity="group", scale_format=FLOAT16)).nbytes == 8 * 64 // 2 + 8 * 2 * 2
    assert quantize(x, Scheme(INT4, symmetric=False, granularity="group", scale_format=FLOAT16)).nbytes == 8 * 32 + 8 * 2 * 3
    assert quantize(x, Scheme(TERNARY)).nbytes == 8 * 64 // 4 + 4


@pytest.mark.parametrize(("make", "says"), [
    (lambda: grid(9), "9 bits: 2 to 8"), (lambda: Grid(1, 5), "must hold 0 and 1"), (lambda: Grid(-200, 5), "-200"),
    (lambda: Scheme(granularity="row"), "unknown granularity 'row'"), (lambda: Scheme(halves="up"), "did you mean 'half_up'"),
    (lambda: Scheme(group=0), "a group of 0")])
def test_wrong_schemes_are_named(make, says):
    with pytest.raises(MiniLLMError, match=says):
        make()


def test_error_counts_what_was_clipped_and_how_far():
    x = np.float32([[0.4, 1.5, 3.0, -9.0]])
    error = error_of(x, quantize_with(x, np.float32([1]), None, Scheme(grid(3))))           # codes 0, 2, 3, -3
    assert error.worst_steps == 6
    assert error.clipped == 0.25
    exact, noise = 0.16 + 2.25 + 9 + 81, 0.16 + 0.25 + 36
    assert error.sqnr_db == pytest.approx(10 * np.log10(exact / noise), abs=1e-6)          # 0.4 is no float32


@pytest.mark.parametrize(("exact", "found", "db"), [([1, 2], [1, 2], np.inf), ([0, 0], [0, 1], -np.inf), ([0], [0], np.inf)])
def test_signal_to_noise_has_its_limits(exact, found, db):
    assert sqnr_db(np.float32(exact), np.float32(found)) == db


def test_eight_bits_of_a_normal_sample_have_about_40_db_and_every_bit_is_worth_6():
    x = np.random.default_rng(0).standard_normal((64, 1024), np.float32)
    db = [sqnr_db(x, quantize(x, Scheme(grid(bits), granularity="channel")).values()) for bits in (8, 7, 6, 5)]
    step = 3.3 / 127                                       # the largest of 1024 has 3.3 deviations; noise is step^2 / 12
    assert db[0] == pytest.approx(10 * np.log10(12 / step**2), abs=1)
    assert np.diff(db) == pytest.approx(-6.02, abs=0.3)    # 20 log10 2; 63 steps instead of 63.5 make it a little more
