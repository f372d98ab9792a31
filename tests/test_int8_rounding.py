"""Weights as int8 codes: the codes are those of exact arithmetic, and a model's bytes and values follow from them."""
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny_gpt import batch, make

from minillm.conversion.rounding import int8_rows, round_to_int8
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT16, FLOAT32
from minillm.rounding import round_to, widen

TINY = float(FLOAT32.tiny)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
matrices = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=finite)


def exact_codes(weight, scale):
    """Half to even in rational arithmetic; Python's round does just that to a Fraction."""
    steps = [Fraction(float(s)) for s in scale]
    return np.array([[round(Fraction(float(w)) / s) for w in row] for row, s in zip(weight, steps, strict=True)])


def check(weight):
    """Every code against rational arithmetic, and how far a value may be from its weight."""
    rows = int8_rows(weight)
    assert (rows.codes.dtype, rows.scale.dtype, rows.scale.shape) == (np.int8, np.float32, (len(weight),))
    assert np.array_equal(rows.codes, exact_codes(weight, rows.scale))                   # so no code had to saturate either
    assert abs(rows.codes.astype(int)).max(initial=0) <= 127
    step = rows.scale.astype(np.float64)[:, None]
    bound = step / 2 + 127 * step * FLOAT32.roundoff                                     # half a step, and code x scale is rounded
    assert np.all(abs(rows.values().astype(np.float64) - weight) <= bound)
    return rows


@given(matrices)
def test_codes_are_those_of_exact_arithmetic(weight):
    check(weight)


@given(hnp.arrays(np.float32, (3, 5), elements=st.floats(-1, 1, width=32)), st.integers(-140, 120))
def test_rows_of_any_size_have_exact_codes(weight, power):
    check(np.ldexp(weight, power))


@given(matrices)
def test_the_largest_of_a_row_has_code_127_and_the_scale_is_a_127th_of_it(weight):
    rows = int8_rows(weight)
    for row, codes, scale in zip(weight, rows.codes, rows.scale, strict=True):
        top = abs(row).max()
        if 127 * TINY <= top < 2.0**127:
            assert scale == np.float32(top) / np.float32(127)
            assert codes[abs(row).argmax()] == math.copysign(127, row[abs(row).argmax()])


def test_what_lies_just_beside_a_half_is_not_rounded_onto_it_first():
    # the float32 quotient of these is a half, the exact one is not: found by searching all neighbours of (k + 1/2) scale
    scale = np.float32(1.9) / np.float32(127)
    near = [np.nextafter(np.float32((k + 0.5) * float(scale)), np.float32(end)) for k in range(127) for end in (0, 9)]
    near += [np.float32((k + 0.5) * float(scale)) for k in range(127)]
    twice = [w for w in near if Fraction(float(np.rint(w / scale))) != round(Fraction(float(w)) / Fraction(float(scale)))]
    assert len(twice) > 10
    check(np.array([[1.9, *near]], np.float32))


def test_ties_go_to_the_even_code():
    rows = check(np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]], np.float32))
    assert rows.codes.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126]]


def test_a_row_of_zeros_has_codes_0_and_scale_1():
    rows = check(np.array([[0.0, -0.0], [1.0, 0.0]], np.float32))
    assert rows.codes.tolist() == [[0, 0], [127, 0]]
    assert rows.scale[0] == 1


def test_a_row_is_not_scaled_by_its_neighbours():
    big, small = np.array([[1e30, -3e29]], np.float32), np.array([[1e-30, -3e-31]], np.float32)
    together = int8_rows(np.concatenate([big, small])).codes
    assert together.tolist() == [*int8_rows(big).codes.tolist(), *int8_rows(small).codes.tolist()] == [[127, -38], [127, -38]]


@pytest.mark.parametrize("top", [FLOAT32.max, 127 * TINY, 126 * TINY, TINY, TINY / 3, FLOAT32.smallest_subnormal])
def test_huge_and_tiny_rows(top):
    rows = check(np.array([[top, -top, top / 3, 0]], np.float32))
    assert np.isfinite(rows.values()).all()
    assert rows.scale[0] >= TINY


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(value):
    with pytest.raises(MiniLLMError, match="int8 cannot hold: this model has diverged"):
        int8_rows(np.array([[1.0, value], [2.0, 3.0]], np.float32))


def test_bytes_are_a_code_for_each_weight_and_a_scale_for_each_row():
    assert int8_rows(np.ones((3, 5), np.float32)).nbytes == 3 * 5 + 3 * 4


@pytest.mark.parametrize("recipe", ["float32", "float16", "float16-mixed"])
def test_a_model_is_replaced_by_what_its_codes_stand_for(recipe):
    model = make(recipe)
    before = {p.name: p.data for p in model.parameters()}
    after, float32 = round_to_int8(model)
    sizes = 0
    for p in model.parameters():
        wide = widen(before[p.name], np.float32)
        expected = int8_rows(wide) if p.ndim == 2 else None
        sizes += expected.nbytes if expected else wide.nbytes
        assert p.data.dtype == p.format.storage
        assert np.array_equal(p.data, round_to(expected.values(), p.format) if expected else before[p.name])
        assert (p.data is before[p.name]) == (p.ndim < 2)
    assert (after, float32) == (sizes, sum(4 * b.size for b in before.values()))


def test_a_trained_head_hardly_notices():
    model = make("float32", bias=False)
    loss = model.loss(*batch()).item()
    round_to_int8(model)
    # each weight of N(0, 0.02) moves by at most half of max|row| / 127, so a logit of 32 such terms by less than a hundredth
    assert 0 < abs(model.loss(*batch()).item() - loss) < 0.01


def test_float16_weights_stay_on_float16s_grid():
    model = make("float16")
    round_to_int8(model)
    assert all(p.format is FLOAT16 and p.data.dtype == np.float16 for p in model.parameters())
