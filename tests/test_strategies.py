"""What the strategies draw is what they say."""
import builtins
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from number_cases import SIMULATED

from minillm.errors import MiniLLMError
from minillm.formats import E8M0, FLOAT8_E4M3, FLOAT16, FLOAT32, INT8
from minillm.rounding import round_to
from minillm.testing import exact_neighbours
from minillm.testing import strategies as draw

NAMED = [f for f in SIMULATED if f.bits <= 32 and f.name == f.name.replace(" ", "")]
ANY = st.sampled_from(NAMED)


@given(st.data(), ANY)
def test_values_are_on_the_grid(data, format):
    value = data.draw(draw.values(format))
    assert math.isfinite(value)
    assert round_to(value, format) == value


@given(draw.arrays(FLOAT8_E4M3, (2, 3)), draw.arrays(FLOAT16, 4, draw.subnormals(FLOAT16)))
def test_arrays_have_shape_and_storage(a, b):
    assert (a.shape, a.dtype, b.shape, b.dtype) == ((2, 3), np.float32, (4,), np.float16)
    assert np.array_equal(round_to(a, FLOAT8_E4M3), a)


@given(st.data(), ANY.filter(lambda f: f.zero))
def test_ties_are_in_the_middle(data, format):
    middle = data.draw(draw.ties(format, nudges=(0,)))
    below, above = exact_neighbours(abs(Fraction(middle)), format)
    assert 2 * abs(Fraction(middle)) == below + above
    assert below < above
    nudged = data.draw(draw.ties(format))
    assert any(round_to(nudged, format, mode) != nudged for mode in ("up", "down"))


@given(st.data(), ANY)
def test_edges_lie_at_the_ends(data, format):
    x = abs(data.draw(draw.edges(format)))
    ends = [0, format.smallest / 2, format.smallest, format.tiny, 1, format.max, -format.lowest, 2 * format.max, math.inf]
    beyond = format.max < x < 2.2 * (format.max + format.ulp(format.max))
    assert beyond or x == 5e-324 or any(x == e or math.isclose(x, e, rel_tol=1e-9) for e in ends)


@given(draw.subnormals(FLOAT16))
def test_subnormals_are_below_tiny(x):
    assert abs(x) < FLOAT16.tiny


@given(st.data(), st.sampled_from([f for f in NAMED if f.exponent_bits > 4 - f.subnormals and f.bits > 6]))
def test_the_small_one_of_a_swamping_pair_is_lost(data, format):
    large, small = data.draw(draw.swamping_pairs(format))
    assert round_to(np.float64(large) + small, format) == large
    assert small != 0
    assert {large, small} <= {float(round_to(v, format)) for v in (large, small)}


@given(draw.outlier_channels(FLOAT16, 8, 6, outliers=2))
def test_outliers_stand_in_a_few_channels(x):
    assert x.shape == (8, 6)
    assert x.dtype == np.float16
    assert (np.abs(x).max(0) > 1).sum() <= 2
    assert np.abs(x).max() <= 64


@given(draw.outlier_channels(FLOAT8_E4M3, 4, 4, outliers=4, factor=1e4))
def test_outliers_do_not_overflow(x):
    assert np.all(np.isfinite(x))


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(MiniLLMError, match="e8m0 has no zero"):
        draw.subnormals(E8M0)
    with pytest.raises(MiniLLMError, match="no value of int8 swamps another"):
        draw.swamping_pairs(INT8)
    with pytest.raises(MiniLLMError, match="5 outlier channels among 4"):
        draw.outlier_channels(FLOAT32, 2, 4, outliers=5)


@pytest.mark.parametrize("strategy", [draw.values, draw.ties, draw.edges, draw.subnormals, draw.swamping_pairs])
def test_without_hypothesis_one_line_says_what_to_install(strategy, monkeypatch):
    really = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("hypothesis"):
            raise ImportError(name)
        return really(name, *args, **kwargs)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MiniLLMError, match=r"pip install minillm\[test\]"):
        strategy(FLOAT16)
