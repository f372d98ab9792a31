"""Microscaling products: every block's scale by its definition, blocks that do not see each other, exactness, derived bounds."""
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.formats import FLOAT4_E2M1, FLOAT8_E4M3, FLOAT8_E5M2
from minillm.precision.block_scaling import MXFP8_DOWN, MXFP8_UP, block_quantized, exponents
from minillm.testing import dot_bound

FORMATS = pytest.mark.parametrize("format", [FLOAT8_E4M3, FLOAT8_E5M2, FLOAT4_E2M1], ids=str)
BOTH = pytest.mark.parametrize("products", [MXFP8_DOWN, MXFP8_UP], ids=lambda p: p.name)
DIRECTION = pytest.mark.parametrize("up", [False, True], ids=["down", "up"])
f = np.float32
AMAX = st.one_of(st.floats(2.0**-110, 2.0**127, width=32), st.integers(-110, 127).map(lambda n: 2.0**n),
                 st.integers(-110, 118).map(lambda n: 1.75 * 2.0**n))           # the maxima of E4M3 and E5M2 are 1.75 2^n


def power(exponent):
    return Fraction(2) ** int(exponent)


@FORMATS
@given(amax=AMAX)
def test_the_scale_is_by_its_definition(format, amax):
    amax = f(amax)
    down, up = (exponents(np, amax, format, direction) for direction in (False, True))
    top = Fraction(format.max)
    emax = math.frexp(format.max)[1] - 1                       # of the largest value: 8 for E4M3, 15 for E5M2, 2 for E2M1
    assert power(down + emax) <= Fraction(float(amax)) < power(down + emax + 1)
    assert top * power(up - 1) < Fraction(float(amax)) <= top * power(up)
    assert up - down in (0, 1)


@DIRECTION
def test_scales_end_where_e8m0_ends(up):
    for amax in (1e-45, 2.0**-126, 3e38):
        assert -127 <= exponents(np, f(amax), FLOAT8_E5M2, up) <= 127
    assert exponents(np, f(1e-45), FLOAT8_E5M2, up) == -127


@DIRECTION
@FORMATS
def test_values_of_the_grid_times_powers_of_two_are_kept(format, up):
    grid = format.values()
    blocks = np.zeros((3, 32), np.float32)
    for row, exponent in enumerate((-20, 0, 13)):
        blocks[row] = np.random.default_rng(row).choice(grid, 32) * f(2.0**exponent)
        blocks[row, 0] = format.max * 2.0**exponent
    assert block_quantized(np, blocks, format, up).tobytes() == (blocks + f(0)).tobytes()


@DIRECTION
@FORMATS
@given(st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_every_value_is_within_its_bound(format, up, K, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, K), np.float32) * np.exp2(rng.integers(-12, 12, (2, K))).astype(np.float32)
    q = block_quantized(np, x, format, up)
    assert (q.shape, q.dtype) == (x.shape, np.float32)
    for begin in range(0, K, 32):
        part, found = (a[:, begin:begin + 32].astype(float) for a in (x, q))
        scale = np.exp2(exponents(np, abs(part).max(-1, keepdims=True).astype(f), format, up))
        saturated = np.maximum(abs(part) - format.max * scale, 0)              # 0 with `up`
        bound = np.maximum(format.roundoff * abs(part), format.smallest_subnormal / 2 * scale) + saturated
        assert (abs(found - part) <= bound).all()
        assert not (up and saturated.any())


def test_blocks_do_not_see_each_other():
    x = np.random.default_rng(0).standard_normal((4, 96), np.float32)
    other = x.copy()
    other[2, 40] = 1e6
    before, after = (block_quantized(np, a, FLOAT8_E4M3) for a in (x, other))
    changed = before != after
    assert changed[2, 32:64].sum() > 16                        # all but this value are now far below its scale
    changed[2, 32:64] = False
    assert not changed.any()


@DIRECTION
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_block_that_is_not_finite_is_nan_and_no_other(up, value):
    x = np.ones((2, 64), np.float32)
    x[0, 40] = value
    q = block_quantized(np, x, FLOAT8_E4M3, up)
    assert np.isnan(q[0, 32:]).all()
    assert (q[0, :32] == 1).all()
    assert (q[1] == 1).all()


# --- products

@BOTH
@pytest.mark.parametrize("which", ["forward", "input_gradient", "weight_gradient"])
def test_a_product_of_values_on_the_grid_is_exact(products, which):
    rng = np.random.default_rng(1)
    whole = np.array([v for v in FLOAT8_E4M3.values() if v == int(v)])         # 64 products below 448^2 stay below 2^24
    a, b = rng.choice(whole, (5, 64)), rng.choice(whole, (64, 7))
    a[:, ::32], b[::32] = 448, -448
    found = getattr(products, which)(np, a * f(2.0**-9), b * f(2.0**5), 0)
    assert (found.astype(float) * 2.0**4 == a.astype(np.int64) @ b.astype(np.int64)).all()


@BOTH
@pytest.mark.parametrize("K", [1, 31, 64, 100])
def test_blocks_of_both_operands_run_along_the_summed_dimension(products, K):
    rng = np.random.default_rng(K)
    # a wide spread: which values are lost depends on where blocks begin and end
    a, b = (rng.standard_normal(shape, np.float32) * np.exp2(rng.integers(-20, 1, shape)).astype(np.float32)
            for shape in ((3, 6, K), (3, K, 5)))
    up = products is MXFP8_UP
    qa, qb = block_quantized(np, a, FLOAT8_E4M3, up), block_quantized(np, b.swapaxes(1, 2), FLOAT8_E4M3, up).swapaxes(1, 2)
    found = products.forward(np, a, b, 0)
    assert found.dtype == np.float32
    assert (abs(found - qa.astype(float) @ qb.astype(float)) <= dot_bound(qa, qb)).all()


@BOTH
def test_zeros_and_empty_operands(products):
    assert not products.forward(np, np.zeros((2, 40), np.float32), np.ones((40, 3), np.float32), 0).any()
    for M, K, N in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        empty = products.forward(np, np.ones((M, K), np.float32), np.ones((K, N), np.float32), 0)
        assert (empty.shape, empty.dtype) == ((M, N), np.float32)


def test_float64_goes_through_for_oracles():
    a = np.random.default_rng(3).standard_normal((3, 40))
    found = MXFP8_UP.forward(np, a, a.T, 0)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, MXFP8_UP.forward(np, f(a), f(a).T, 0), rtol=0, atol=1e-4)       # float32 against float64
