"""Every rule: gradients in float64 and float32, one rounding into float16, no array written to; and the edges of each."""
import ast
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rule_cases import CASES, RNG, normal

from minillm.autograd.check import check_float32, check_gradient
from minillm.autograd.context import Context
from minillm.autograd.rule import RULES, Rule
from minillm.autograd.rules import products
from minillm.autograd.tensor import Tensor, apply, backward, tensor
from minillm.errors import MiniLLMError, MixedFormats
from minillm.formats import BFLOAT16, FLOAT16, FLOAT32
from minillm.precision.recipe import Recipe
from minillm.quantization import fake_quant  # its rules are in the table only once it is imported
from minillm.rounding import round_to
from minillm.testing import FLOAT64, after_rounding, dot_bound, gamma, rounding_bound, sum_bound

every_rule = pytest.mark.parametrize("name", CASES)
STRAIGHT_THROUGH = [rule.name for rule in vars(fake_quant).values() if isinstance(rule, Rule)]
STRAIGHT_THROUGH += ["gumbel_sample"]     # no derivative: test_fake_quant, test_gan
OPS = Recipe("float32").bind(0)


def leaves(name, inputs, format, read_only=False):
    """The inputs of a rule with floating arrays as leaves, named by their place."""
    rule, made = RULES[name], []
    for i, (x, what) in enumerate(zip(inputs, RULES[name].names(len(inputs)), strict=False)):
        if isinstance(x, np.ndarray):
            floating = x.dtype.kind == "f" and what not in rule.plain
            x = round_to(x, format) if floating else x.copy()
            x.flags.writeable = not read_only
            x = Tensor(x, format, name=str(i)) if floating else x
        made.append(x)
    return made


def run(name, inputs, static, format, **options):
    """Leaves, result, and gradients of the sum of the result."""
    made = leaves(name, inputs, format, **options)
    y = apply(RULES[name], *made, context=Context(), **static)
    return made, y, backward(y.sum())


def leaf(values, format=FLOAT32, name="x"):
    return tensor(np.asarray(values, np.float32), format, name=name)


def same_bits(a, b):
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()


# all rules alike

def test_no_rule_is_left_out():
    assert CASES.keys() == RULES.keys()


@pytest.mark.parametrize("name", [name for name in CASES if name not in STRAIGHT_THROUGH])
def test_gradient_against_a_central_difference(name):
    for inputs, static in CASES[name]:
        check_gradient(RULES[name], *inputs, **static)


@pytest.mark.parametrize("name", [name for name in CASES if name != "gumbel_sample"])       # its noise is larger than its inputs
def test_float32_gradient_against_float64(name, kernels):
    for inputs, static in CASES[name]:
        check_float32(RULES[name], *inputs, **static)


@every_rule
@pytest.mark.parametrize("format", [FLOAT16, BFLOAT16], ids=str)
def test_narrow_result_is_the_float32_result_rounded_once(name, format, kernels):
    for inputs, static in CASES[name]:
        made, y, _ = run(name, inputs, static, format)
        wide = [Tensor(x.data.astype(np.float32), FLOAT32) if isinstance(x, Tensor) else x for x in made]
        same_bits(y.data, round_to(apply(RULES[name], *wide, context=Context(), **static).data, format))


@every_rule
@pytest.mark.parametrize("format", [FLOAT16, BFLOAT16, FLOAT32, FLOAT64], ids=str)
def test_results_and_gradients_have_format_and_shape_of_the_inputs(name, format, kernels):
    for inputs, static in CASES[name]:
        made, y, gradients = run(name, inputs, static, format)
        assert (y.format, y.data.dtype) == (format, format.storage)
        differentiated = [x for x in made if isinstance(x, Tensor)]
        assert gradients.keys() == {x.name for x in differentiated}
        for x in differentiated:
            assert (gradients[x.name].dtype, gradients[x.name].shape) == (format.storage, x.shape)
            same_bits(gradients[x.name], round_to(gradients[x.name].astype(format.compute), format))


@every_rule
def test_no_rule_writes_to_its_inputs(name, kernels_off):                    # those of kernels: test_kernels.py
    for inputs, static in CASES[name]:
        run(name, inputs, static, FLOAT32, read_only=True)                    # the cotangent of a sum is read-only, too


def test_rules_import_no_numpy():
    folder = Path(products.__file__).parent
    assert len(list(folder.glob("*.py"))) >= 7
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in getattr(node, "names", ())]
            assert not {n.partition(".")[0] for n in names} & {"numpy", "cupy", "numba"}, path.name


@pytest.mark.parametrize("name", ["gain", "shift"])
def test_wide_inputs_stay_wide_and_get_wide_gradients(name):
    x, gain, shift = leaf(normal(3, 8), FLOAT16), leaf(normal(8), name="gain"), leaf(normal(8), name="shift")
    y = OPS.layer_norm(x, gain, shift)
    gradients = backward(y.sum())
    assert y.format is FLOAT16
    assert (gradients["x"].dtype, gradients[name].dtype) == (np.float16, np.float32)


# shapes by chance

UNARY = ["cast", "neg", "exp", "tanh", "sigmoid", "relu", "gelu", "sum", "mean"]
BINARY = ["add", "sub", "mul", "div", "where"]
odd_shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@pytest.mark.parametrize("name", UNARY)
@given(shape=odd_shapes, format=st.sampled_from([FLOAT16, FLOAT32]))
def test_any_shape(name, shape, format):
    x = leaf(np.full(shape, 0.5), format)
    y = apply(RULES[name], x, context=Context())
    assert y.shape == (() if name in ("sum", "mean") else shape)
    assert backward(y.sum())["x"].shape == shape


@pytest.mark.parametrize("name", BINARY)
@given(shapes=hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, min_side=0, max_side=3))
def test_any_two_shapes_that_broadcast(name, shapes):
    a, b = (leaf(np.full(s, 0.5), name=str(i)) for i, s in enumerate(shapes.input_shapes))
    inputs = (a, b) if name != "where" else (np.ones(shapes.result_shape, bool), a, b)
    y = apply(RULES[name], *inputs, context=Context())
    gradients = backward(y.sum())
    assert y.shape == shapes.result_shape
    repeats = [math.prod(y.shape) / max(a.size, 1), math.prod(y.shape) / max(b.size, 1)]
    assert (gradients["0"].shape, gradients["1"].shape) == shapes.input_shapes
    if name == "add":
        assert np.all(gradients["0"] == repeats[0])
        assert np.all(gradients["1"] == repeats[1])


@given(shapes=hnp.mutually_broadcastable_shapes(signature="(m,k),(k,n)->(m,n)", max_dims=2, min_side=0, max_side=4))
def test_any_product(shapes):
    a, b = (leaf(RNG.standard_normal(s), name=str(i)) for i, s in enumerate(shapes.input_shapes))
    y = a @ b
    exact = a.data.astype(np.float64) @ b.data.astype(np.float64)
    assert y.shape == shapes.result_shape
    assert np.all(abs(y.data - exact) <= dot_bound(a.data, b.data))
    assert tuple(g.shape for _, g in sorted(backward(y.sum()).items())) == shapes.input_shapes


@given(B=st.integers(0, 3), Tq=st.integers(0, 5), Tk=st.integers(1, 5), H=st.integers(1, 3), D=st.integers(1, 3),
       causal=st.booleans())
@settings(max_examples=60)
def test_any_attention(B, Tq, Tk, H, D, causal):
    q, k, v = (leaf(RNG.standard_normal((B, T, H * D)), name=n) for n, T in zip("qkv", (Tq, Tk, Tk), strict=True))
    y = OPS.attention(q, k, v, heads=H, causal=causal)
    assert y.shape == q.shape
    assert all(np.isfinite(g).all() for g in backward(y.sum()).values())


@given(shape=hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4), data=st.data(), keepdims=st.booleans())
def test_any_axes_of_a_reduction(shape, data, keepdims):
    axes = st.integers(-len(shape), len(shape) - 1)
    axis = data.draw(st.none() | axes | st.lists(axes, unique_by=lambda a: a % len(shape)).map(tuple))
    for name, reference in {"sum": np.sum, "mean": np.mean, "max": np.max}.items():
        x = leaf(RNG.standard_normal(shape))
        y = apply(RULES[name], x, context=Context(), axis=axis, keepdims=keepdims)
        wanted = reference(x.data.astype(np.float64), axis, keepdims=keepdims)
        assert y.shape == wanted.shape
        assert np.all(abs(y.data - wanted) <= sum_bound(x.data, axis, keepdims=keepdims))          # more than enough for a mean
        total = backward(y.sum())["x"].sum(dtype=np.float64)
        assert abs(total - y.size * (x.size / y.size if name == "sum" else 1)) <= gamma(x.size, FLOAT32) * x.size


# elementwise

def test_pow_at_zero():
    at_zero = {2.0: (0, 0), 1.0: (0, 1), 0.0: (1, 0), 3: (0, 0), 0.5: (0, math.inf), -1.0: (math.inf, -math.inf)}
    for exponent, (value, slope) in at_zero.items():
        x = leaf([0.0])
        y = x**exponent
        assert y.item() == value
        assert backward(y.sum())["x"].item() == slope
    x, e = leaf([0.0, 2.0]), leaf([2.0, 3.0], name="e")
    assert np.allclose(backward((x**e).sum())["e"], [0, 8 * math.log(2)])


def test_pow_of_a_negative_base_by_a_number_has_a_gradient():
    assert backward((leaf([-2.0]) ** 3).sum())["x"].item() == 12


def test_where_takes_no_gradient_from_the_side_that_is_not_taken():
    x, z = leaf([1.0, 2.0]), leaf([math.inf, math.nan], name="z")
    gradients = backward(OPS.where(np.array([True, True]), x, z).sum())
    assert gradients["x"].tolist() == [1, 1]
    assert gradients["z"].tolist() == [0, 0]


def test_where_takes_numbers():
    y = OPS.where(np.array([True, False]), leaf([1.0, 2.0], FLOAT16), -math.inf)
    assert y.data.tolist() == [1, -math.inf]
    assert y.format is FLOAT16


def test_sigmoid_and_its_gradient_never_overflow():
    x = leaf([-1e4, -100, 0, 100, 1e4])
    y = OPS.sigmoid(x)
    assert y.data.tolist() == pytest.approx([0, 3.8e-44, 0.5, 1, 1], abs=1e-44)
    assert np.isfinite(backward(y.sum())["x"]).all()


def test_dropout_keeps_the_expectation_and_draws_the_same_mask_twice():
    n, rate = 100_000, 0.3
    x = leaf(np.ones(n))
    y = OPS.dropout(x, rate=rate)
    same_bits(backward(y.sum())["x"], y.data)
    deviation = math.sqrt(n * rate * (1 - rate)) / (1 - rate)
    assert abs(y.data.sum(dtype=np.float64) - n) < 6 * deviation
    assert set(np.unique(y.data)) == {0, np.float32(1) / np.float32(0.7)}


def test_dropout_keeps_nothing_and_its_mask_depends_on_step_and_place_only():
    x = leaf(np.ones(64), FLOAT16)

    def drawn(step, format=FLOAT16, seed=0):
        ops = Recipe("r").bind(seed)
        ops.context.begin(step)
        x = leaf(np.ones(64), format)
        return [ops.dropout(x, rate=0.5).data != 0 for _ in range(2)]
    node = OPS.dropout(x, rate=0.5).node
    assert set(node.kept) == {"rate", "key"}
    assert np.array_equal(drawn(1), drawn(1, FLOAT32))
    assert not np.array_equal(drawn(1), drawn(2))
    assert not np.array_equal(drawn(1), drawn(1, seed=1))
    assert not np.array_equal(*drawn(1))


@pytest.mark.parametrize("rate", [0.0, 1 - 2**-33, 0.5])
def test_dropout_at_the_ends_of_its_rate(rate):
    y = OPS.dropout(leaf(np.ones(1000)), rate=rate)
    assert np.isfinite(y.data).all()
    assert np.count_nonzero(y.data) == pytest.approx(1000 * (1 - rate), abs=6 * math.sqrt(1000 * rate * (1 - rate)))


# reductions and moving

def test_equal_maxima_share_the_cotangent():
    x = leaf([[2.0, 5.0, 5.0], [1.0, 0.0, -1.0], [3.0, 3.0, 3.0]])
    gradient = backward(OPS.max(x, axis=1).sum())["x"]
    third = np.float32(1) / np.float32(3)
    assert gradient.tolist() == [[0, 0.5, 0.5], [1, 0, 0], [third, third, third]]


def test_a_float16_sum_is_accumulated_in_float32_along_every_axis():
    for axis, shape in ((0, (4096, 2)), (1, (2, 4096)), (None, (64, 64))):
        assert np.all(OPS.sum(leaf(np.ones(shape), FLOAT16), axis=axis).data == 4096)
    assert OPS.mean(leaf(np.full((8192, 2), 60000.0), FLOAT16), axis=0).data.tolist() == [60000, 60000]


def test_broadcast_cotangents_are_accumulated_in_float32():
    x, bias = leaf(np.ones((4096, 2)), FLOAT16), leaf(np.zeros(2), FLOAT16, name="bias")
    assert backward((x + bias).sum())["bias"].tolist() == [4096, 4096]
    weight = leaf(np.eye(2), FLOAT16, name="w")
    assert backward(OPS.linear(x.detach(), weight, bias).sum())["bias"].tolist() == [4096, 4096]


def test_a_slice_by_ids_says_to_use_embedding():
    for index in ([0, 1], np.array([0, 1]), np.array([True, False]), 0.5):
        with pytest.raises(MiniLLMError, match="use embedding"):
            leaf(normal(3, 2))[index]


def test_rows_used_often_are_summed_in_float32():
    weight = leaf(np.zeros((3, 2)), FLOAT16)
    gradient = backward(OPS.embedding(weight, np.full((64, 64), 1)).sum())["x"]
    assert gradient.dtype == np.float16
    assert gradient.tolist() == [[0, 0], [4096, 4096], [0, 0]]                # one by one in float16 it would be 2048


@pytest.mark.parametrize("ids", [[3], [-1], [0, 99]])
def test_an_id_out_of_range_is_an_error(ids):
    with pytest.raises(MiniLLMError, match=r"ids must lie in 0 \.\.\. 2"):
        OPS.embedding(leaf(normal(3, 2)), np.array(ids))


def test_concat_gives_each_part_its_own_cotangent():
    parts = [leaf(np.zeros((2, n)), name=str(n)) for n in (1, 3, 2)]
    y = OPS.concat(*parts, axis=1) * Tensor(np.arange(12, dtype=np.float32).reshape(2, 6))
    gradients = backward(y.sum())
    assert [gradients[str(n)][0].tolist() for n in (1, 3, 2)] == [[0], [1, 2, 3], [4, 5]]


# softmax, normalizing

def test_softmax_of_rows_that_see_nothing_or_are_huge():
    x = leaf([[1.0, 2.0, 3.0], [60000.0, 60000.0, -60000.0], [-math.inf, 0.0, -math.inf]])
    seen = np.array([[False] * 3, [True] * 3, [True] * 3])
    y = OPS.softmax(x, seen)
    assert y.data.tolist() == [[0, 0, 0], [0.5, 0.5, 0], [0, 1, 0]]
    assert np.isfinite(backward((y * Tensor(np.float32([1, 2, 3]))).sum())["x"]).all()


def test_layer_norm_of_halves_does_not_overflow(kernels):
    x = leaf([[300.0, 100.0, -200.0, 250.0]], FLOAT16)                        # times 64 the variance is no float16
    y = OPS.layer_norm(x * 64, leaf(np.ones(4), FLOAT16, name="gain"))
    wide = x.data.astype(np.float64) * 64
    exact = (wide - wide.mean()) / wide.std()
    assert np.all(abs(y.data - exact) <= after_rounding(exact, gamma(32, FLOAT32) * abs(exact).max(), FLOAT16))


@pytest.mark.parametrize("shapes", [((4,), (4,)), ((1,), (8,)), ((1, 8), (8,)), ((8,), (1,)), ((), (8,)), ((9,), (8,))])
def test_gain_and_shift_must_have_one_value_a_channel(shapes, kernels):
    gain, shift = (leaf(np.ones(s), name=str(i)) for i, s in enumerate(shapes))
    with pytest.raises(MiniLLMError, match=r"it must have shape \(8,\)"):
        OPS.layer_norm(leaf(normal(2, 8)), gain, shift)
    if shapes[0] != (8,):
        with pytest.raises(MiniLLMError, match=r"it must have shape \(8,\)"):
            OPS.rms_norm(leaf(normal(2, 8)), gain)


# attention

def attention_bound(q, k, v, seen, heads, format=FLOAT32, between=None):
    """The largest error of attention on exact inputs: that of the scores, twice, relative, and a float32 sum over the keys.

    Higham's bounds for each product; exp and log count as four roundings each (NumPy's are off by less than 4 ulp). `between` is
    the format of scores and probabilities where they are tensors of their own.
    """
    q, k, v = (products.heads_of(a.astype(np.float64), heads) for a in (q, k, v))
    D, Tk = q.shape[-1], k.shape[-2]
    scale, turned = D**-0.5, k.swapaxes(-1, -2)
    raw, size = q @ turned, abs(q) @ abs(turned)
    error = gamma(D + 2, FLOAT32) * size * scale
    if between:
        error += rounding_bound(raw, between) * scale + rounding_bound(abs(raw * scale) + error, between)
    scores = np.where(seen, raw * scale, -np.inf)
    e = np.exp(scores - np.maximum(scores.max(-1, keepdims=True), -1e300))
    p = e / np.maximum(e.sum(-1, keepdims=True), 1e-300)
    worst = np.where(seen, error, 0).max(-1, keepdims=True)
    relative = np.exp(2 * worst) - 1 + gamma(2 * Tk + 20, FLOAT32)
    total = relative * (p @ abs(v)) + (rounding_bound(p, between) * (p > 0) @ abs(v) if between else 0)
    return p @ v, after_rounding(p @ v, total, format)


CAUSAL = np.tri(5, dtype=bool)
SEEN = {"causal": CAUSAL, "masked": CAUSAL & (RNG.random((2, 1, 5, 5)) < 0.7), "none": np.zeros((5, 5), bool)}


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("format", [FLOAT32, FLOAT16], ids=str)
@pytest.mark.parametrize("composed", [False, True])
def test_attention_is_within_its_bound_fused_and_composed(seen, format, composed):
    ops = Recipe("twin", composed=("attention",) if composed else ()).bind(0)
    q, k, v = (leaf(normal(2, 5, 8), format, name) for name in "qkv")
    mask = None if seen == "causal" else SEEN[seen]
    y = ops.attention(q, k, v, mask, heads=2, causal=seen != "none")
    between = FLOAT16 if composed and format is FLOAT16 else None
    exact, bound = attention_bound(q.data, k.data, v.data, SEEN[seen], 2, format, between)
    assert np.all(abs(products.heads_of(y.data, 2) - exact) <= bound)
    assert all(np.isfinite(g).all() for g in backward(y.sum()).values())


def test_the_composed_twin_rounds_in_between_and_the_fused_rule_does_not():
    q, k, v = (leaf(normal(2, 5, 8), FLOAT16, name) for name in "qkv")
    composed = Recipe("twin", composed=("attention",)).bind(0).attention(q, k, v, heads=2)
    fused = OPS.attention(q, k, v, heads=2)
    assert not np.array_equal(composed.data, fused.data)
    assert composed.node.rule.name == "reshape"
    exact, bound = attention_bound(q.data, k.data, v.data, SEEN["causal"], 2, FLOAT16)
    assert np.all(abs(products.heads_of(fused.data, 2) - exact) <= bound)


@pytest.mark.parametrize("mask", [None, SEEN["masked"]], ids=["causal", "masked"])
def test_composed_and_fused_attention_have_the_same_gradient(mask):
    ops = Recipe("twin", composed=("attention",)).bind(0)
    inputs = [normal(2, 5, 8) for _ in range(3)]

    def composed(q, k, v):
        return ops.attention(q, k, v, mask, heads=2)
    for check in (check_gradient, check_float32):
        check(composed, *inputs)
        check(lambda q, k, v: OPS.attention(q, k, v, mask, heads=2), *inputs)


def test_a_query_that_sees_nothing_gets_zero_and_finite_gradients():
    q, k, v = (leaf(normal(1, 3, 4), name=name) for name in "qkv")
    mask = np.array([[True, True, True], [False, False, False], [True, True, True]])
    y = OPS.attention(q, k, v, mask, heads=2)
    assert y.data[0, 1].tolist() == [0] * 4
    gradients = backward(y.sum())
    assert gradients["q"][0, 1].tolist() == [0] * 4
    assert all(np.isfinite(g).all() and g.any() for g in gradients.values())


def test_a_cached_query_stands_at_the_right():
    q, k, v = (leaf(normal(2, 6, 8), name=name) for name in "qkv")
    whole = OPS.attention(q, k, v, heads=2).data
    exact, bound = attention_bound(q.data, k.data, v.data, np.tri(6, dtype=bool), 2)
    for last in range(1, 6):
        part = OPS.attention(Tensor(q.data[:, -last:]), k, v, heads=2).data
        assert np.all(abs(products.heads_of(part, 2) - exact[:, :, -last:]) <= bound[:, :, -last:])
        assert part.shape == whole[:, -last:].shape


def test_heads_must_divide_the_channels(kernels):
    q = leaf(normal(1, 4, 6))
    with pytest.raises(MiniLLMError, match="4 heads do not divide 6 channels"):
        OPS.attention(q, q, q, heads=4)


def test_values_may_have_other_channels_than_keys(kernels):
    q, v = leaf(normal(1, 4, 6)), leaf(normal(1, 4, 2), name="v")
    y = OPS.attention(q, q, v, heads=2)
    assert y.shape == (1, 4, 2)
    assert backward(y.sum())["v"].shape == (1, 4, 2)


def test_a_later_key_changes_no_earlier_result():
    q, k, v = (leaf(normal(1, 4, 4), name=name) for name in "qkv")
    before = OPS.attention(q, k, v, heads=2).data
    for x in (k, v):
        x.data = x.data.copy()
        x.data[0, -1] += 1
    after = OPS.attention(q, k, v, heads=2).data
    same_bits(before[:, :-1], after[:, :-1])
    assert not np.array_equal(before[:, -1], after[:, -1])


# losses

@pytest.mark.parametrize("ignore", [-1, 2, 100])
def test_ignored_targets_count_neither_in_the_loss_nor_in_its_gradient(ignore):
    logits, targets = normal(5, 4), np.array([0, ignore, 3, ignore, 1])
    x = leaf(logits)
    loss = OPS.cross_entropy(x, targets, ignore=ignore)
    counted = targets != ignore
    rest = OPS.cross_entropy(leaf(logits[counted]), targets[counted])
    assert loss.item() == pytest.approx(rest.item(), rel=gamma(32, FLOAT32))
    gradient = backward(loss)["x"]
    assert not gradient[~counted].any()
    assert gradient[counted].any(1).all()


def test_cross_entropy_of_huge_logits():
    loss = OPS.cross_entropy(leaf([[60000.0, 0, -60000.0], [0.0, -math.inf, -math.inf]]), np.array([0, 0]))
    assert loss.item() == 0
    assert OPS.cross_entropy(leaf([[0.0, 60000.0]]), np.array([0])).item() == 60000


@pytest.mark.parametrize(("targets", "options", "message"), [
    ([0, 4, 1], {}, r"targets must lie in 0 \.\.\. 3, found 0 \.\.\. 4"),
    ([0, -1, 1], {}, r"found -1 \.\.\. 1"),
    ([-1, 4, -1], {"ignore": -1}, r"found 4 \.\.\. 4"),
    ([7, 7, 7], {"ignore": 7}, "every target is the ignored one"),
    ([0, 1], {}, r"the targets have shape \(2,\), they must have \(3,\)"),
    ([0], {}, r"the targets have shape \(1,\)"),
    ([[0, 1, 2]], {}, r"the targets have shape \(1, 3\)"),
])
def test_targets_that_make_no_sense(targets, options, message):
    with pytest.raises(MiniLLMError, match=message):
        OPS.cross_entropy(leaf(normal(3, 4)), np.array(targets), **options)


def test_binary_targets_must_have_the_shape_of_the_logits():
    for op in (OPS.bce, OPS.bce_with_logits):
        with pytest.raises(MiniLLMError, match=r"the targets have shape \(4,\), they must have \(4, 1\)"):
            op(leaf(abs(normal(4, 1)) / 10), np.ones(4))


@given(hnp.arrays(np.float64, st.integers(1, 8), elements=st.floats(-5, 5)), st.randoms(use_true_random=False))
def test_bce_on_probabilities_is_bce_on_logits_while_nothing_saturates(values, chance):
    targets = np.array([chance.choice([0.0, 0.25, 1.0]) for _ in values])
    x = [tensor(values, FLOAT64, name="x") for _ in range(2)]
    losses = OPS.bce(OPS.sigmoid(x[0]), targets), OPS.bce_with_logits(x[1], targets)
    allowed = gamma(32 + len(values), FLOAT64) * 300                          # 1 - p cancels down to 1 / 150 at a logit of 5
    assert abs(losses[0].item() - losses[1].item()) <= allowed
    assert np.all(abs(backward(losses[0])["x"] - backward(losses[1])["x"]) <= allowed)


def test_probabilities_saturate_in_float16_where_logits_do_not():
    x = leaf([10.0], FLOAT16)
    assert OPS.bce(OPS.sigmoid(x), np.zeros(1)).item() == math.inf            # sigmoid(10) = 0.99995 rounds to 1
    assert OPS.bce_with_logits(x, np.zeros(1)).item() == 10


# the table itself

def test_too_many_inputs_are_an_error_and_not_dropped():
    x = leaf(normal(3))
    for call in (lambda: OPS.add(x, x, x), lambda: apply(RULES["add"], x, x, x), lambda: OPS.linear(x, x, x, x)):
        with pytest.raises(MiniLLMError, match=r"takes x, .* not [34] inputs"):
            call()


def test_a_plain_input_is_no_tensor():
    with pytest.raises(MiniLLMError, match="embedding: ids is a plain array"):
        OPS.embedding(leaf(normal(3, 2)), leaf([1.0], name="ids"))


def test_concat_of_two_formats_is_an_error():
    with pytest.raises(MixedFormats, match="concat: float16 and float32 do not mix"):
        OPS.concat(leaf([1.0], FLOAT16), leaf([1.0], name="z"))


@pytest.mark.parametrize("name", ["forward", "input_gradient", "weight_gradient"])
def test_each_of_the_three_products_is_used_where_its_name_says(name):
    """With one product doubled, exactly its own results double."""
    def results(made):
        ops = Recipe("p", products={"*": made}).bind(0)
        y = ops.linear(leaf(np.ones((3, 4))), leaf(np.full((5, 4), 2), name="w"))
        gradients = backward(y.sum())
        return {"forward": y.data, "input_gradient": gradients["x"], "weight_gradient": gradients["w"]}
    doubled = products.Products("doubled", **{name: lambda xp, x, z, key: 2 * (x @ z)})
    plain, changed = results(products.FLOAT32_PRODUCTS), results(doubled)
    for result in plain:
        assert np.array_equal(changed[result], plain[result] * (2 if result == name else 1))
