"""The bounds hold for every order of summation, are nearly reached by the worst case, and never pass what is wrong."""
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minillm.errors import MiniLLMError
from minillm.formats import BFLOAT16, FLOAT16, FLOAT32
from minillm.rounding import round_to
from minillm.testing import FLOAT64, dot_bound, gamma, rounding_bound, sum_bound, ulp_distance

values = st.floats(-80, 80, width=32)                          # nothing overflows in float16: 7 * 80^2 < 65504


def test_gamma():
    assert gamma(1, FLOAT32) == 2**-24 / (1 - 2**-24)
    assert gamma(0, FLOAT16) == 0
    assert gamma(2047, FLOAT16) == 2047
    with pytest.raises(MiniLLMError, match="2048 roundings in float16 have no error bound"):
        gamma(2048, FLOAT16)


@pytest.mark.parametrize("format", [FLOAT16, BFLOAT16, FLOAT32], ids=str)
@given(st.floats(-60000, 60000) | st.floats(-1e-7, 1e-7))
def test_one_rounding_stays_within_its_bound(format, value):
    assert abs(round_to(np.array([value]), format).astype(np.float64)[0] - value) <= rounding_bound(value, format)


def test_one_rounding_reaches_its_bound():
    for tie, subnormal in ((1 + 2**-11, False), (2**-25, True)):
        error = abs(round_to(np.array(tie), FLOAT16).item() - tie)
        assert error == (2**-25 if subnormal else 2**-11)
        assert 0.5 < error / rounding_bound(tie, FLOAT16) <= 1


@given(hnp.arrays(np.float32, st.integers(1, 40), elements=values), st.randoms(use_true_random=False))
def test_a_sum_in_any_order_stays_within_its_bound(x, order):
    exact = x.astype(np.float64).sum()
    shuffled = np.array(order.sample(list(x), len(x)), np.float32)
    assert abs(np.cumsum(shuffled, dtype=np.float32)[-1] - exact) <= sum_bound(x)
    assert abs(round_to(shuffled.sum(keepdims=True), FLOAT16).astype(np.float64) - exact) <= sum_bound(x, out_format=FLOAT16)


def test_swamping_reaches_a_tenth_of_the_bound():
    x = np.append(np.float32(1), np.full(1000, 2**-24, np.float32))           # added one by one each is lost
    error = abs(float(np.cumsum(x)[-1]) - x.astype(np.float64).sum())
    assert error == 1000 * 2**-24
    assert 0.1 < error / sum_bound(x) <= 1


@given(hnp.arrays(np.float32, (3, 7), elements=values), hnp.arrays(np.float32, (7, 2), elements=values))
def test_a_product_stays_within_its_bound(a, b):
    exact = a.astype(np.float64) @ b.astype(np.float64)
    assert np.all(abs(a @ b - exact) <= dot_bound(a, b))
    assert np.all(abs(round_to(a @ b, FLOAT16) - exact) <= dot_bound(a, b, FLOAT16))


def test_products_below_the_smallest_subnormal_are_within_the_bound():
    a, b = np.full((1, 8), 2.0**-75, np.float32), np.full((8, 1), 1.9 * 2.0**-76, np.float32)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    assert (a @ b).item() == 0 < exact.item() <= dot_bound(a, b).item()


def test_a_half_accumulator_breaks_the_bound_of_a_float32_one():
    x = np.ones(4096, np.float16)
    assert abs(float(np.cumsum(x)[-1]) - 4096) > 100 * sum_bound(x, out_format=FLOAT16)


def test_bounds_along_an_axis_have_its_shape():
    x = np.ones((3, 4), np.float32)
    assert sum_bound(x, 0).shape == (4,)
    assert sum_bound(x, 1, keepdims=True).shape == (3, 1)
    assert dot_bound(x, x.T, FLOAT16).shape == (3, 3)
    assert np.allclose(sum_bound(x, 0), (gamma(3, FLOAT32) + 2**-24) * 3, rtol=1e-6)


@given(st.floats(-60000, 60000, width=16), st.integers(0, 20))
def test_steps_are_counted(value, steps):
    x = y = np.array([value], np.float16)
    for _ in range(steps):
        y = np.nextafter(y, np.float16(math.inf))
    assert ulp_distance(x, y) == ulp_distance(y, x) == steps


def test_distances_at_the_edges():
    def distance(a, b):
        return ulp_distance(np.float32([a]), np.float32([b])).item()
    assert distance(-0.0, 0.0) == distance(math.nan, math.nan) == 0
    assert distance(-1e-45, 1e-45) == 2
    assert distance(3.4028235e38, math.inf) == 1
    assert distance(math.nan, 0.0) == 2**63 - 1
    assert distance(-math.inf, math.inf) == 2 * 0x7F800000
    with pytest.raises(MiniLLMError, match="not float64 and float32"):
        ulp_distance(np.ones(1), np.ones(1, np.float32))


def test_the_oracle_computes_in_float64():
    assert (FLOAT64.bits, FLOAT64.compute, FLOAT64.simulated) == (64, np.float64, False)
