"""Fake quantization and products of codes: values are those of a conversion, gradients go straight through, steps are learned."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny_gpt import batch, make, objective_of

from minillm.autograd.context import Context
from minillm.autograd.rule import RULES
from minillm.autograd.rules.products import PRODUCTS
from minillm.autograd.tensor import Tensor, apply, backward, tensor
from minillm.conversion.rounding import int8_rows
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32
from minillm.precision.recipe import QUANTIZERS, Recipe
from minillm.quantization import products
from minillm.quantization.affine import INT4, PER_ROW, Scheme, grid, quantize
from minillm.quantization.fake_quant import FASTER, Fake, Lsq, count_of, shared_steps, steps_of
from minillm.quantization.products import codes_of_rows, int8_product, quantized_product
from minillm.recipes import PRESETS, from_json, to_json
from minillm.testing import dot_bound
from minillm.training.trainer import training_step

numbers = st.floats(-1e3, 1e3, width=32)
matrices = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=numbers)
QUANTIZED = ("int8-qat", "int4-qat", "int8-switchback", "bitnet-b1.58")


def leaf(x, name="x"):
    return tensor(np.asarray(x, np.float32), FLOAT32, name=name)


def fake(x, scheme):
    ops = Recipe("float32").bind(0)
    return Fake(scheme)(ops, x, "x")


@given(matrices, st.integers(2, 8), st.booleans(), st.sampled_from(["tensor", "channel", "token"]))
def test_values_are_those_of_the_codes_of_a_conversion(x, bits, symmetric, granularity):
    scheme = Scheme(grid(bits), symmetric, granularity)
    converted = quantize(x, scheme)
    faked, step = fake(leaf(x), scheme).data, converted.scale.reshape(-1, 1)
    steps = scheme.rows(abs(faked.astype(np.float64) - converted.values())) / step
    place = scheme.rows(x) / step.astype(np.float64)
    beside_a_tie = abs(place - np.floor(place) - 0.5) < 2**-15         # a float32 quotient and sum, both below 2^8, err by 2^-16
    # the value is rounded once in each, after it a conversion's is on the other side of a tie or the same
    assert np.all((steps <= 2**-15) | (beside_a_tie & (steps <= 1 + 2**-15)))


def test_the_gradient_of_fake_quantization_is_that_of_leaving_it_out():
    x, g = np.random.default_rng(0).standard_normal((2, 5, 8), np.float32)
    y = fake(leaf(x), Scheme(INT4, granularity="channel"))
    assert not np.array_equal(y.data, x)
    assert np.array_equal(backward((y * tensor(g, FLOAT32)).sum())["x"], g)


def learned(x, step, g, lowest=-8, highest=7):
    y = apply(RULES["lsq"], leaf(x), leaf(step, "step"), context=Context(), lowest=lowest, highest=highest)
    found = backward((y * tensor(np.asarray(g, np.float32), FLOAT32)).sum())
    return y.data, found["x"], found["step"]


def test_a_learned_step_has_the_slope_of_its_paper():
    """Inside the grid round(v) - v, beyond it the end of the grid, times 1 / sqrt(values x highest); x has slope 1 inside only."""
    x, g = [[0.25, 1.75, -10, 30]], [[1, 2, 4, 8]]
    y, dx, ds = learned(x, [0.5], g)
    assert y.tolist() == [[0, 2, -4, 3.5]]                             # v = 0.5, 3.5 to even, -20, 60
    assert dx.tolist() == [[1, 2, 0, 0]]
    assert ds[0] == pytest.approx((1 * -0.5 + 2 * 0.5 + 4 * -8 + 8 * 7) / np.sqrt(4 * 7), rel=1e-6)


@given(st.data())
def test_the_slope_of_a_step_is_that_of_rounding_held_fixed(data):
    """Beside the rounding, which is held as a constant, the rule is differentiable: a difference in float64 says so."""
    x = data.draw(hnp.arrays(np.float32, 6, elements=st.floats(-4, 4, width=32)))
    step = np.float32(data.draw(st.floats(0.125, 1, width=32)))
    _, _, ds = learned(x, [step], np.ones(6))
    v = x.astype(np.float64) / step

    def held(s):
        inside = (v > -8) & (v < 7)
        return np.where(inside, x + (np.rint(v) - v) * s, np.clip(v, -8, 7) * s).sum()
    slope = (held(float(step) + 1e-4) - held(float(step) - 1e-4)) / 2e-4
    near = np.rint(v.astype(np.float32)) != np.rint(v)                 # the float32 quotient lies on a tie
    assert near.any() or ds[0] * np.sqrt(6 * 7) == pytest.approx(slope, rel=1e-4, abs=1e-4)


def test_steps_are_made_in_the_first_pass_under_the_name_of_their_parameter():
    model = make("int4-qat")
    assert not model.ops.learned
    model.loss(*batch())
    table = model.tokens.weight
    names = {f"{p.name}.log_share" for p in model.parameters() if p.ndim == 2}
    assert set(model.ops.learned) == names                             # a tied table has one set of steps, not two
    runs = Scheme(granularity="group").scale_shape(table.shape)
    assert model.ops.learned["tokens.weight.log_share"].shape == (np.prod(runs),)


def shared(x, log_share, g):
    y = apply(RULES["share_of_range"], leaf(x), leaf(log_share, "l"), context=Context(), lowest=-8, highest=7)
    found = backward((y * tensor(np.asarray(g, np.float32), FLOAT32)).sum())
    return y.data, found["x"], found["l"]


def test_a_learned_share_begins_with_the_whole_range_and_gradients_go_straight_through():
    x = np.random.default_rng(0).standard_normal((3, 8), np.float32)
    g = np.random.default_rng(1).standard_normal((3, 8), np.float32)
    whole = shared(x, np.zeros(3), g)
    assert np.array_equal(whole[0], fake(leaf(x), Scheme(INT4, granularity="channel")).data)
    half = shared(x, np.full(3, np.log(0.5) / FASTER), g)
    assert abs(half[0]).max() < 0.6 * abs(whole[0]).max()                  # -8 of half the steps
    for _, dx, _ in (whole, half):
        assert np.array_equal(dx, g)                                       # of what is clipped, too


@given(st.data())
def test_the_slope_of_a_share_is_that_of_the_step_it_makes(data):
    """LSQ's slope of a step, times that of the step by what is learned, which is FASTER steps; here nothing is clipped."""
    x = data.draw(hnp.arrays(np.float32, 6, elements=st.floats(-4, 4, width=32)))
    log_share = data.draw(st.floats(2**-10, 2**-6, width=32))
    step = shared_steps(np, x, np.array([log_share], np.float32), 7)[0]
    _, _, by_step = learned(x, step, np.ones(6))
    _, _, by_share = shared(x, [log_share], np.ones(6))
    assert by_share[0] == pytest.approx(by_step[0] * step[0] * FASTER, rel=1e-5, abs=1e-5)


def test_first_steps_are_those_of_the_paper():
    ops = Recipe("float32").bind(0)
    Lsq(Scheme(grid(4, narrow=False)))(ops, leaf([[1, -2], [3, 0]], "w"), "linear.weight")
    assert steps_of(ops.learned["w.log_step"].data) == pytest.approx(2 * 1.5 / np.sqrt(7), rel=1e-6)


@pytest.mark.parametrize("recipe", QUANTIZED)
def test_training_moves_every_weight_and_every_step_and_lowers_the_loss(recipe):
    first, model = make(recipe), make(recipe)
    for each in (first, model):
        each.loss(*batch())                                            # makes the steps
    objective = objective_of(model)
    losses = [training_step(objective, [batch()], step, lr=1e-2).loss for step in range(30)]
    assert losses[-1] < losses[0] - 0.5
    for before, after in zip(first.parameters(), model.parameters(), strict=True):
        assert not np.array_equal(before.data, after.data), before.name
    for name, step in model.ops.learned.items():
        assert not np.array_equal(step.data, first.ops.learned[name].data), name


def test_int8_qat_computes_with_what_conversion_makes_of_its_weights():
    model = make("int8-qat")
    seen = {}

    def remember(ops, x, name):
        y = Fake(PER_ROW)(ops, x, name)
        seen[name] = y.data
        return y
    model.ops.recipe.quantizers["linear.weight"] = remember
    try:
        model.loss(*batch())
    finally:
        model.ops.recipe.quantizers["linear.weight"] = Fake(PER_ROW)
    for p in model.parameters():
        if p.name in seen:
            assert np.array_equal(seen[p.name], int8_rows(p.data).values()), p.name


def test_places_can_be_left_out():
    ops = PRESETS["bitnet-b1.58"].bind(0)
    assert not ops.plan(RULES["linear"], "head", 2).touched
    assert len(ops.plan(RULES["linear"], "block0.mlp.up", 2).touched) == 2


def test_a_recipe_of_json_leaves_places_out():
    """The head, which is the last layer, and the first block: what is left is the second block, as if it alone were named."""
    some = from_json({"name": "some", "quantizers": {"linear.weight": "int4-groups", "head/linear.weight": "none",
                                                     "block0/linear.weight": "none"}})
    assert from_json(to_json(some)) == some
    losses = [make(recipe).loss(*batch()).item()
              for recipe in (some, Recipe("one", quantizers={"block1/linear.weight": QUANTIZERS["int4-groups"]}), "float32")]
    assert losses[0] == losses[1] != losses[2]


def test_ternary_weights_are_three_values_of_the_mean_size():
    w = np.random.default_rng(0).standard_normal((16, 16), np.float32)
    y = apply(RULES["ternarize"], leaf(w), context=Context()).data
    assert sorted(set(y.ravel().tolist())) == pytest.approx([-abs(w).mean(), 0, abs(w).mean()], rel=1e-6)


def test_groups_must_divide_a_row_unless_it_is_shorter():
    scheme = Scheme(INT4, granularity="group")
    assert [count_of(leaf(np.zeros((3, K))), scheme, "w") for K in (7, 32, 64)] == [3, 3, 6]
    with pytest.raises(MiniLLMError, match="w has rows of 48, which groups of 32 do not divide"):
        count_of(leaf(np.zeros((3, 48))), scheme, "w")


@pytest.mark.parametrize("K", [0, 1, 7, 1040, 1041, 2100])
@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_products_of_codes_are_exact(K, leading, kernels):
    rng = np.random.default_rng(K)
    a, b = rng.integers(-127, 128, (*leading, 3, K), np.int8), rng.integers(-127, 128, (*leading, K, 5), np.int8)
    assert np.array_equal(int8_product(a, b), np.matmul(a.astype(np.int64), b.astype(np.int64)))


@pytest.mark.parametrize("sign", [1, -1])
def test_where_float32_sums_are_no_longer_exact_ours_are(sign, kernels):
    """At K = 1041 the largest sum of products is above 2^24, where float32 knows even numbers only."""
    a, b = np.full((1, 1041), 127, np.int8), np.full((1041, 1), sign * 127, np.int8)
    exact = sign * 1041 * 127 * 127
    assert int8_product(a, b)[0, 0] == exact
    assert int(np.float32(exact)) != exact


def test_a_product_of_codes_is_near_the_product(kernels):
    a, b = np.random.default_rng(0).standard_normal((2, 64, 64), np.float32)
    y = quantized_product(np, a, b, 0)
    steps = abs(a).max(1, keepdims=True) / 127, abs(b).max(0, keepdims=True) / 127
    # each value is off by half a step at most: |a| step_b / 2 + |b| step_a / 2 + a quarter of both, and float32's own errors
    bound = abs(a).sum(1, keepdims=True) * steps[1] / 2 + abs(b).sum(0, keepdims=True) * steps[0] / 2 + 16 * steps[0] * steps[1]
    exact = a.astype(np.float64) @ b
    assert np.all(abs(y - exact) <= bound + dot_bound(a.astype(np.float64), b.astype(np.float64), FLOAT32))
    assert abs(y - exact).max() > bound.min() / 100


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_makes_its_row_or_column_nan(value, kernels):
    a, b = np.ones((3, 4), np.float32), np.ones((4, 5), np.float32)
    a[1, 2], b[0, 3] = value, value
    wrong = np.isnan(quantized_product(np, a, b, 0))
    assert wrong[1].all()
    assert wrong[:, 3].all()
    assert wrong.sum() == 5 + 3 - 1


def test_codes_of_rows_of_nothing():
    codes, scale = codes_of_rows(np.zeros((2, 0), np.float32))
    assert (codes.shape, scale.tolist()) == ((2, 0), [[1], [1]])


@pytest.mark.parametrize(("name", "expected"), [
    ("int8-forward", [1, 0, 0]), ("int8-input-gradient", [0, 1, 0]), ("int8-weight-gradient", [0, 0, 1]), ("int8-all", [1, 1, 1]),
    ("int8-switchback", [1, 1, 0])])
def test_each_switch_makes_its_own_product_int8(name, expected, monkeypatch):
    """Which of the three results differ from those of float32 products, and how many products of codes were made."""
    made = []
    monkeypatch.setattr(products, "int8_product", lambda a, b, real=int8_product: made.append(1) or real(a, b))
    rng = np.random.default_rng(0)
    x, w, g = (rng.standard_normal(s, np.float32) for s in ((6, 8), (4, 8), (6, 4)))

    def results(kind):
        y = apply(RULES["linear"], leaf(x), leaf(w, "w"), context=Context(), products=PRODUCTS[kind])
        found = backward((y * Tensor(g, FLOAT32)).sum())
        return y.data, found["x"], found["w"]
    differs = [int(not np.array_equal(ours, exact)) for ours, exact in zip(results(name), results("float32"), strict=True)]
    assert differs == expected
    assert len(made) == sum(expected)
