"""Products of eight-bit operands: the scale in every case that has a name, exactness where it must be, a derived error bound."""
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_gpt import batch, make

from minillm.autograd.rule import RULES
from minillm.autograd.tensor import apply, backward, tensor
from minillm.formats import FLOAT8_E4M3, FLOAT8_E5M2, FLOAT32
from minillm.precision.float8 import FLOAT8_CURRENT, FLOAT8_CURRENT_POWER_OF_TWO, current_scale, current_scaling, quantized
from minillm.testing import dot_bound, gamma

BOTH = pytest.mark.parametrize("format", [FLOAT8_E4M3, FLOAT8_E5M2], ids=str)
VARIANTS = pytest.mark.parametrize("products", [FLOAT8_CURRENT, FLOAT8_CURRENT_POWER_OF_TWO], ids=lambda p: p.name)
f = np.float32


# --- the scale

@BOTH
@pytest.mark.parametrize(("values", "scale"), [
    ([0.0, -0.0], None), ([math.inf, 1.0], None), ([1.0, -math.inf], None), ([math.nan, 1.0], None), ([math.nan, math.inf], None),
    ([1.0, -0.25], 1.0), ([-3.0, 2.0], 3.0), ([2.0**-30], 2.0**-30), ([3e38], 3e38),
])
def test_the_scale_brings_the_largest_value_to_the_formats_largest(format, values, scale):
    found = current_scale(np, f(values), format)
    assert found.dtype == np.float32
    # one correctly rounded division; 1 where the largest value is 0 or not finite
    assert found == (1 if scale is None else f(format.max) / f(scale))


@BOTH
@pytest.mark.parametrize("amax", [1e-45, 2.0**-126, 1e-37])
def test_a_scale_beyond_float32_stops_at_its_maximum(format, amax):
    expected = min(format.max / float(f(amax)), FLOAT32.max)
    assert current_scale(np, f([amax]), format) == f(expected)
    values, scale = quantized(np, f([amax]), format)
    assert np.isfinite(values).all()
    assert math.isfinite(1 / scale)


@BOTH
@given(amax=st.floats(2.0**-100, 2.0**120, width=32))
def test_a_scale_that_is_a_power_of_two_is_the_next_one_below(format, amax):
    free, power = (current_scale(np, f([amax]), format, p) for p in (False, True))
    assert power.dtype == np.float32
    assert math.frexp(power)[0] == 0.5
    assert power <= free < 2 * power


# --- the grid

@BOTH
@given(st.lists(st.floats(-2.0**100, 2.0**100, width=32), min_size=1, max_size=20))
def test_what_is_quantized_lies_on_the_grid_and_its_largest_value_at_its_end(format, values):
    q, _ = quantized(np, f(values), format)
    assert q.dtype == np.float32
    assert np.isin(abs(q), format.values()).all()
    if max(map(abs, values)) > 2.0**-100:
        assert abs(q).max() == format.max


@BOTH
@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("exponent", [-20, 0, 13])
def test_values_of_the_scaled_grid_are_kept_as_they_are(format, power_of_two, exponent):
    grid = format.values() * f(2.0**exponent)
    q, scale = quantized(np, grid, format, power_of_two)
    # the grid's largest value is 1.75 2^n: its scale is 2^-exponent exactly
    assert scale == 2.0**-exponent
    assert (q / scale).tobytes() == (grid + f(0)).tobytes()


@BOTH
def test_values_that_are_not_finite_saturate_or_stay_nan(format):
    q, scale = quantized(np, f([math.inf, -math.inf, math.nan, 1e30, 1.0, -0.0]), format)
    assert (scale, q[4], q[5]) == (1, 1, 0)
    assert q[[0, 1, 3]].tolist() == [format.max, -format.max, format.max]
    assert np.isnan(q[2])
    assert np.signbit(q[5])


@BOTH
def test_rounding_is_ml_dtypes(format):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind = {FLOAT8_E4M3: ml_dtypes.float8_e4m3fn, FLOAT8_E5M2: ml_dtypes.float8_e5m2}[format]
    x = np.random.default_rng(0).standard_normal(10_000, np.float32)
    q, scale = quantized(np, x, format)
    expected = np.clip(x * scale, -f(format.max), f(format.max)).astype(kind).astype(np.float32)
    assert q.tobytes() == expected.tobytes()


# --- the product

@VARIANTS
def test_a_product_of_values_on_the_grid_is_exact(products):
    rng = np.random.default_rng(1)
    whole = np.array([v for v in FLOAT8_E4M3.values() if v == int(v)])           # up to 448, so 32 products stay below 2^24
    a, b = rng.choice(whole, (5, 32)), rng.choice(whole, (32, 7))
    a[0, 0] = b[0, 0] = 448
    exact = a.astype(np.int64) @ b.astype(np.int64)
    found = products.forward(np, a * f(2.0**-9), b * f(2.0**5), 0)
    assert (found.astype(float) * 2.0**4 == exact).all()


def operand_error(x, format):
    """How far a quantized operand may lie from x: once to the grid, and in float32 twice for the scale, once scaled."""
    scale = format.max / abs(x).max()
    return (format.roundoff + 2 * gamma(4, FLOAT32)) * abs(x) + format.smallest_subnormal / 2 / (scale / 2)


def product_error(a, b, a_format, b_format):
    a, b = a.astype(float), b.astype(float)
    da, db = operand_error(a, a_format), operand_error(b, b_format)
    sums = dot_bound(abs(a) + da, abs(b) + db) + gamma(3, FLOAT32) * ((abs(a) + da) @ (abs(b) + db))
    return da @ abs(b) + abs(a) @ db + da @ db + sums


@VARIANTS
@pytest.mark.parametrize("spread", [0, 8, 30])
@pytest.mark.parametrize(("which", "first"), [("forward", FLOAT8_E4M3), ("input_gradient", FLOAT8_E5M2),
                                              ("weight_gradient", FLOAT8_E5M2)])
def test_the_error_of_a_product_is_within_the_bound_of_its_formats(products, spread, which, first):
    rng = np.random.default_rng(spread)
    a, b = (rng.standard_normal(shape, np.float32) * np.exp2(rng.integers(-spread, 1, shape)).astype(np.float32)
            for shape in ((6, 64), (64, 5)))
    found = getattr(products, which)(np, a, b, 0)
    share = abs(found - a.astype(float) @ b.astype(float)) / product_error(a, b, first, FLOAT8_E4M3)
    print(f"{share.max():.3f} of the bound")
    assert found.dtype == np.float32
    assert share.max() < 1


@pytest.mark.parametrize(("which", "first"), [("forward", FLOAT8_E4M3), ("weight_gradient", FLOAT8_E5M2)])
def test_operands_halfway_between_values_come_near_the_bound(which, first):
    # 1 + u is halfway between 1 and the next value and goes to the even 1; the largest values make the scales powers of two
    a = np.full((1, 64), 1 + first.roundoff, np.float32)
    b = np.full((64, 1), 1 + FLOAT8_E4M3.roundoff, np.float32)
    a[0, 0], b[0, 0] = first.max / 2.0**8, FLOAT8_E4M3.max / 2.0**8
    found = getattr(current_scaling("new"), which)(np, a, b, 0)
    share = abs(found - a.astype(float) @ b.astype(float)) / product_error(a, b, first, FLOAT8_E4M3)
    assert 0.1 < share.max() < 1


def test_a_scale_is_undone_whatever_its_size():
    a, b = f([[3e38, 1e38]]), f([[1e-38], [1e-38]])                              # the product of both scales is beyond float32
    exact = float(a[0] @ b[:, 0].astype(float))
    for found in (FLOAT8_CURRENT.forward(np, a, b, 0), FLOAT8_CURRENT.forward(np, b.T, a.T, 0)):
        assert abs(found.item() - exact) <= 2.2 * FLOAT8_E4M3.roundoff * exact   # two operands, each within u


@VARIANTS
@pytest.mark.parametrize("which", ["forward", "input_gradient", "weight_gradient"])
def test_zeros_empty_operands_and_nan(products, which):
    product = getattr(products, which)
    zero, one = np.zeros((2, 3), np.float32), np.ones((3, 4), np.float32)
    assert product(np, zero, one, 0).tolist() == np.zeros((2, 4)).tolist()
    assert product(np, one.T, zero.T, 0).tolist() == np.zeros((4, 2)).tolist()
    for M, K, N in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        empty = product(np, np.ones((M, K), np.float32), np.ones((K, N), np.float32), 0)
        assert (empty.shape, empty.dtype) == ((M, N), np.float32)
    spoiled = zero.copy()
    spoiled[1, 2] = math.nan
    found = product(np, spoiled, one, 0)
    assert np.isnan(found[1]).all()
    assert (found[0] == 0).all()


@VARIANTS
def test_only_the_cotangent_is_e5m2(products):
    # 1.125 is a value of E4M3 and not of E5M2; the largest values keep the scales powers of two
    x, w, g = f([[1.125, 448]]), f([[1.125, 448]]), f([[1.125, 57344]])
    assert products.forward(np, x, w.T, 0) == 1.125**2 + 448**2
    assert products.input_gradient(np, g, w.T, 0) == f(1 * 1.125 + 448 * 57344)
    assert products.weight_gradient(np, g.T, x, 0).tolist() == [[1 * 1.125, 1 * 448], [57344 * 1.125, 57344 * 448]]


# --- in a model

def test_linear_rounds_operands_in_all_three_products():
    rng = np.random.default_rng(2)
    x, w, g = (rng.standard_normal(shape, np.float32) for shape in ((6, 8), (5, 8), (6, 5)))
    y = apply(RULES["linear"], tensor(x, name="x"), tensor(w, name="w"), products=FLOAT8_CURRENT)
    gradients = backward((y * tensor(g)).sum())
    assert y.data.tobytes() == FLOAT8_CURRENT.forward(np, x, w.T, 0).tobytes()
    assert gradients["x"].tobytes() == FLOAT8_CURRENT.input_gradient(np, g, w, 0).tobytes()
    assert gradients["w"].tobytes() == FLOAT8_CURRENT.weight_gradient(np, g.T, x, 0).tobytes()
    assert not np.array_equal(y.data, x @ w.T)


def test_float64_goes_through_for_oracles():
    a = np.random.default_rng(3).standard_normal((3, 4))
    found = FLOAT8_CURRENT.forward(np, a, a.T, 0)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, FLOAT8_CURRENT.forward(np, f(a), f(a).T, 0), rtol=0, atol=1e-5)      # float32 against float64


def test_a_scale_of_the_whole_tensor_lets_later_tokens_change_earlier_logits():
    # the one recipe that is not causal to the last bit: the largest value of a tensor may be that of a later token
    model, (ids, _) = make("float8-current"), batch()
    changed = ids.copy()
    changed[:, 7] = (changed[:, 7] + 1) % 19
    before, after = (model(i).data for i in (ids, changed))
    early, late = abs(after - before)[:, :7].mean(), abs(after - before)[:, 7:].mean()
    assert 0 < early < late / 4
