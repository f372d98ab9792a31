"""The dispatcher and the backward pass: formats, one rounding, what is kept, addresses, keys, watching."""
import contextlib
import gc
import math
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_gpt import batch, make

from minillm.autograd.context import PLAIN, Address, Context, current_scope, scope
from minillm.autograd.kernels import KERNELS
from minillm.autograd.rule import RULES, rule
from minillm.autograd.tensor import Tensor, apply, backward, tensor
from minillm.autograd.watching import watch, watched
from minillm.errors import MiniLLMError, MixedFormats
from minillm.formats import BFLOAT16, FLOAT16, FLOAT32
from minillm.optim import AdamW
from minillm.precision.recipe import Recipe
from minillm.recipes import PRESETS
from minillm.rounding import round_to
from minillm.testing import FLOAT64


def leaf(values, format=FLOAT32, name="x"):
    return tensor(np.asarray(values, np.float32), format, name=name)


@pytest.fixture
def new_rule():
    """Makes rules that leave the table when the test is over."""
    before = set(RULES)
    yield rule
    for name in RULES.keys() - before:
        del RULES[name]


def bits(arrays):
    return {name: (a.dtype, a.shape, np.ascontiguousarray(a).tobytes()) for name, a in arrays.items()}


# tensors and what may meet

def test_a_tensor_is_an_array_and_its_format():
    x = leaf([[1, 2, 3]], FLOAT16)
    assert (x.shape, x.ndim, x.size, len(x), x.needs_gradient) == ((1, 3), 2, 3, 1, True)
    assert not x.detach().needs_gradient
    assert x.detach().data is x.data
    assert repr(x) == "Tensor([[1., 2., 3.]], FLOAT16, name='x')"
    assert leaf([7.5]).item() == 7.5


@pytest.mark.parametrize(("data", "format"), [
    (np.ones(2), FLOAT32), (np.ones(2, int), FLOAT32), (np.ones(2, np.float32), FLOAT16), (np.ones(2, np.float16), BFLOAT16),
    (np.ones(2, np.float32).astype(">f4"), FLOAT32), (np.ones(2, bool), FLOAT16)])
def test_an_array_of_another_type_is_refused(data, format):
    with pytest.raises(MiniLLMError, match=f"a {format.name} tensor holds .* arrays, not "):
        Tensor(data, format)


def test_numbers_and_arrays_become_tensors_rounded_once():
    assert tensor([1, 2.5]).data.dtype == np.float32
    assert tensor(np.float64(0.1)).data.item() == np.float32(0.1)
    assert tensor([1 + 2**-11 + 2**-30], FLOAT16).item() == 1 + 2**-10        # through float32 it would be 1
    assert tensor(np.array([1 + 2**-11 + 2**-30]), FLOAT16).item() == 1 + 2**-10
    assert tensor([0.1], FLOAT64).item() == 0.1
    for ids in (np.arange(3), np.array([True])):
        with pytest.raises(MiniLLMError, match="cannot round"):
            tensor(ids)


def test_a_tensor_has_a_truth_value_only_if_it_has_one_element():
    assert leaf([2.0])
    assert not leaf([[0.0]])
    for values in ([], [1.0, 1.0], [[0.0, 1.0]]):
        with pytest.raises(MiniLLMError, match="no truth value"):
            bool(leaf(values))


@pytest.mark.parametrize(("a", "b"), [(FLOAT16, FLOAT32), (FLOAT32, FLOAT16), (FLOAT16, BFLOAT16), (FLOAT64, FLOAT32)])
@pytest.mark.parametrize("op", ["add", "matmul", "concat"])
def test_two_formats_do_not_mix_and_the_error_shows_the_cast(a, b, op):
    x, z = leaf(np.ones((2, 2)), a), leaf(np.ones((2, 2)), b, name="z")
    with pytest.raises(MixedFormats) as error:
        apply(RULES[op], x, z, context=Context())
    wide, narrow = sorted((a, b), key=lambda f: -f.bits)
    assert f"{op}: {a.name} and {b.name} do not mix" in str(error.value)
    assert f"x.to({wide!r}) of the {narrow.name} one" in str(error.value)
    assert (x.to(b) + z if a.bits < b.bits else x + z.to(a)).format is max((a, b), key=lambda f: f.bits)


def test_wide_inputs_may_be_wider_but_not_narrower():
    wide, narrow = leaf(np.ones(4)), leaf(np.ones(4), FLOAT16, name="narrow")
    ops = Recipe("plain").bind(0)
    assert ops.layer_norm(narrow, wide).format is FLOAT16
    for gain in (leaf(np.ones(4), FLOAT16, "gain"), leaf(np.ones(4), BFLOAT16, "gain")):
        with pytest.raises(MixedFormats, match=f"float32 and {gain.format.name} do not mix"):
            ops.layer_norm(wide, gain)
    with pytest.raises(MixedFormats, match="float16 and bfloat16"):           # as many bits are not more
        ops.layer_norm(narrow, leaf(np.ones(4), BFLOAT16, "gain"))


def test_a_number_enters_in_the_compute_format():
    x = leaf([0.0], FLOAT16)
    with watching() as events:
        assert (x + 1e-8).data.dtype == np.float16
    assert events[0].exact.item() == np.float32(1e-8)                         # it is 0 only in the result
    assert (leaf([2**-12], FLOAT16) * 1e-8 * 1e8).item() == 0
    assert (leaf([2.0], FLOAT16) * (1 + 2**-12) * 4096).item() == 8192        # 8194 rounded to float16
    for number in (2, True, np.float32(2), np.float64(2), np.int64(2)):
        assert (x + number).format is FLOAT16
        assert (number + x).format is FLOAT16


@pytest.mark.parametrize("array", [np.ones(2, np.float32), np.ones(()), np.ones(2, int), [1.0, 1.0]])
def test_arrays_and_tensors_do_not_mix(array):
    x = leaf([1.0, 2.0])
    for meet in (lambda: x + array, lambda: array + x, lambda: x @ array, lambda: array * x):
        with pytest.raises(MiniLLMError, match="not a Tensor: make one with"):
            meet()


def test_numpy_makes_no_array_of_tensors():
    x = leaf([1.0, 2.0])
    for function in (np.asarray, lambda x: np.array([x, x]), lambda x: np.dot(np.ones(2), x), lambda x: np.concatenate([x, x])):
        with pytest.raises(MiniLLMError, match=r"pass its \.data"):
            function(x)
    with pytest.raises(TypeError, match="does not support ufuncs"):
        np.exp(x)


def test_an_op_without_tensors_is_an_error():
    with pytest.raises(MiniLLMError, match="add needs a Tensor"):
        apply(RULES["add"], 1.0, 2.0)


def test_operators_are_the_rules_of_their_names():
    x, z = leaf([[1.0, 2.0], [3.0, 5.0]]), leaf([[2.0, 2.0], [4.0, 4.0]], name="z")
    a, b = x.data, z.data
    for got, wanted in (
            (x + z, a + b), (1 + x, 1 + a), (x - z, a - b), (1 - x, 1 - a), (x * z, a * b), (3 * x, 3 * a), (x / z, a / b),
            (1 / z, 1 / b), (x**2, a**2), (-x, -a), (x @ z, a @ b), (x[0], a[0]), (x[:, 1:], a[:, 1:]),
            (x.sum(), a.sum()), (x.sum(0), a.sum(0)), (x.mean(1, keepdims=True), a.mean(1, keepdims=True)), (x.max(), a.max()),
            (x.reshape(4), a.reshape(4)), (x.reshape((1, 4)), a.reshape(1, 4)), (x.reshape(-1, 1), a.reshape(-1, 1)),
            (x.transpose(), a.T), (x.transpose(1, 0), a.T), (x.transpose((1, 0)), a.T)):
        assert np.array_equal(got.data, wanted)
    assert [row.data.tolist() for row in x] == a.tolist()
    assert x.to(FLOAT32) is x
    assert x.to(FLOAT16).data.dtype == np.float16


# the backward pass

def test_cotangents_are_added_not_overwritten():
    x = leaf([3.0])
    assert backward((x * x).sum())["x"].item() == 6
    x = leaf([3.0])
    assert backward((x * x * x + x).sum())["x"].item() == 28
    x = leaf([3.0])
    y = x + x
    assert backward((y * y + y).sum())["x"].item() == 4 * 2 * 3 + 2


@given(st.lists(st.sampled_from("ab"), max_size=12))
def test_diamonds_give_the_product_of_their_edges(edges):
    y = leaf([1.0])
    wanted = 1
    for edge in edges:                           # each node is used two or three times
        y, wanted = (y + y, wanted * 2) if edge == "a" else (y + y * 2, wanted * 3)
    if edges:
        assert y.item() == wanted
        assert backward(y.sum())["x"].item() == wanted


def test_a_chain_of_20000_ops_needs_no_recursion():
    y = leaf([0.0])
    for _ in range(20_000):
        y = y + 1
    assert y.item() == 20_000
    assert backward(y)["x"].item() == 1


def test_infinities_of_both_signs_may_meet():                                  # NaN, and not a warning
    x = tensor(1.0, name="x")
    assert np.isnan(backward(x * math.inf - x * math.inf)["x"])


def test_a_second_walk_is_an_error():
    loss = (leaf([1.0]) * 2).sum()
    backward(loss)
    with pytest.raises(MiniLLMError, match="walked already"):
        backward(loss)


def test_a_second_walk_over_a_shared_part_is_an_error(kernels):
    for op in ("exp", "gelu"):
        shared = apply(RULES[op], leaf([1.0]), context=Context())
        first, second = shared.sum(), (shared * 2).sum()
        backward(first)
        with pytest.raises(MiniLLMError, match=f"a part of this graph, up to {op}, was walked already: add the losses"):
            backward(second)


def test_only_one_value_can_be_walked_from():
    with pytest.raises(MiniLLMError, match=r"a loss of one value, not of shape \(2,\)"):
        backward(leaf([1.0, 2.0]) * 2)
    assert backward(leaf([[3.0]]) * 2)["x"].tolist() == [[2]]


def test_what_was_not_recorded_cannot_be_walked():
    ops = Recipe("r").bind(0)
    x = leaf([1.0, 2.0])
    with ops.context.no_record():
        y = ops.mul(x, 2)
    assert y.node is None
    for loss in (ops.sum(y), leaf([1.0], name=None) * 2, x.detach().sum(), leaf([1.0])):
        with pytest.raises(MiniLLMError, match="never recorded"):
            backward(loss)
    assert ops.context.record
    with pytest.raises(ZeroDivisionError), ops.context.no_record():
        raise ZeroDivisionError
    assert ops.context.record


def test_detach_stops_the_gradient():
    x = leaf([3.0])
    assert backward((x * x.detach()).sum())["x"].item() == 3


def test_two_leaves_of_one_name_are_an_error_and_one_used_twice_is_not():
    with pytest.raises(MiniLLMError, match="two leaves are named 'x'"):
        backward((leaf([1.0]) + leaf([2.0])).sum())
    x = leaf([1.0])
    assert backward((x + x).sum())["x"].item() == 2


def test_a_rule_without_a_vjp_says_so(new_rule):
    @new_rule
    def one_way_test(xp, x):
        return x
    with pytest.raises(MiniLLMError, match="one_way_test has no vjp: detach"):
        backward(apply(one_way_test, leaf([1.0]), context=Context()).sum())


@pytest.mark.parametrize(("wrong", "found"), [
    (lambda xp, g, x: (g[:1],), r"float32 \(1,\)"), (lambda xp, g, x: (g.astype(np.float64),), r"float64 \(3,\)"),
    (lambda xp, g, x: (None,), "nothing"), (lambda xp, g, x: (g.astype(np.float16),), r"float16 \(3,\)")])
def test_a_vjp_that_gives_a_wrong_shape_or_type_is_named(new_rule, wrong, found):
    @new_rule
    def careless_test(xp, x):
        return x * 2
    careless_test.vjp(wrong)
    with pytest.raises(MiniLLMError, match=rf"the vjp of careless_test gives {found} for a value of shape \(3,\)"):
        backward(apply(careless_test, leaf([1.0, 2.0, 3.0]), context=Context()).sum())


def test_two_rules_of_one_name_are_an_error(new_rule):
    with pytest.raises(MiniLLMError, match="there is a rule 'add' already"):
        @new_rule
        def add(xp, x):
            return x


# rounding of cotangents

def test_cotangents_of_halves_are_summed_in_float32_and_rounded_once():
    """1 + 2^-12 and -1 arrive: their sum is 2^-12, but 0 if each is rounded first."""
    x = leaf([1.0], FLOAT16)
    h = x * 1.0
    loss = (h * (1 + 2**-12)).to(FLOAT32) + (h * -1.0).to(FLOAT32)
    assert backward(loss.sum())["x"].item() == 2**-12


def test_a_sum_of_halves_rounded_after_each_term_would_be_another():
    """1 + 2^-11 + 2^-11 one by one in float16 stays 1: each is a tie."""
    x = leaf([1.0], FLOAT16)
    loss = x * 1.0 + x * 2**-11 + x * 2**-11
    assert backward(loss.to(FLOAT32).sum())["x"].item() == 1 + 2**-10


def test_a_cotangent_has_the_format_of_its_tensor():
    """float32 -> float16 -> float32: the tensors in the middle round their cotangents, the others do not."""
    x = leaf([2.0])
    loss = ((x.to(FLOAT16) * 1.0).to(FLOAT32) * (1 + 2**-15)).sum()
    with watching() as events:
        gradient = backward(loss)["x"]
    assert (gradient.dtype, gradient.item()) == (np.float32, 1)
    assert [(e.address.op, e.format) for e in events] == [
        ("sum", FLOAT32), ("mul", FLOAT32), ("cast", FLOAT32), ("mul", FLOAT16), ("cast", FLOAT16), ("gradient", FLOAT32)]


def test_a_recipe_may_name_another_format_for_cotangents():
    def gradient(cotangents):
        ops = Recipe("c", cotangents=cotangents).bind(0)
        x = leaf([1.0], FLOAT16)
        return backward(ops.sum(ops.mul(ops.cast(ops.mul(x, 1.0), FLOAT32), 2.0**-30)))["x"]
    assert gradient(None).item() == 0                                          # 2^-30 is no half
    wide = gradient(FLOAT32)
    assert (wide.dtype, wide.item()) == (np.float16, 0)                        # the leaf's own gradient is a half in any case
    ops = Recipe("c", cotangents=BFLOAT16).bind(0)
    x = leaf([1.0])
    y = ops.mul(ops.cast(x, FLOAT16), 1.0)
    assert backward(ops.sum(ops.mul(ops.cast(y, FLOAT32), 2.0**-30)))["x"].item() == 2.0**-30


# what is kept

KEPT = {"add": {"x_shape", "z_shape"}, "relu": {"y"}, "exp": {"y"}, "mul": {"x", "z"}, "sum": {"x_shape", "axis", "keepdims"},
        "cast": set(), "layer_norm": {"x", "gain", "mean", "rstd"}, "softmax": {"y", "axis"}, "dropout": {"rate", "key"},
        "attention": {"q", "k", "v", "top", "total", "mask", "heads", "causal", "products", "key"}}
INPUTS = {"add": 2, "mul": 2, "attention": 3}


@pytest.mark.parametrize("name", KEPT)
def test_only_what_the_vjp_names_is_kept_and_halves_stay_halves(name, kernels):
    inputs = [leaf(np.ones((1, 2, 4)), FLOAT16, str(i)) for i in range(INPUTS.get(name, 1))]
    inputs += [leaf(np.ones(4), name="gain")] * (name == "layer_norm")
    static = {"attention": {"heads": 2}, "dropout": {"rate": 0.5}}.get(name, {})
    node = apply(RULES[name], *inputs, context=Context(), **static).node
    assert node.kept.keys() == KEPT[name] == RULES[name].reads
    for what, value in node.kept.items():
        if isinstance(value, np.ndarray) and what not in ("mean", "rstd", "lse", "top", "total", "gain"):
            assert value.dtype == np.float16
        if what in ("mean", "rstd", "lse", "top", "total"):
            assert (value.dtype, value.shape[-1]) == (np.float32, 1)           # row statistics, no matrix


def test_a_kept_input_is_the_array_itself_and_no_copy():
    x, w = leaf(np.ones((2, 3)), FLOAT16), leaf(np.ones((3, 2)), FLOAT16, "w")
    node = (x @ w).node
    assert node.kept["x"] is x.data
    assert node.kept["z"] is w.data
    assert node.parents == (x, w)                                              # leaves are pointed at, arrays of other nodes never


def test_a_node_does_not_hold_the_arrays_of_its_parents():
    x = leaf(np.ones(1000))
    middle = x + 1
    alive = weakref.ref(middle.data)
    y = (middle + 1).sum()                                                     # adding needs no values
    del middle
    assert alive() is None
    assert backward(y)["x"].sum() == 1000


def test_the_graph_is_freed_while_it_is_walked(new_rule):
    seen = []

    @new_rule
    def look_test(xp, x):
        return x + 0

    @look_test.vjp
    def _(xp, g):
        seen.append([ref() is None for ref in refs])
        return (g,)

    middle = apply(RULES["exp"], apply(look_test, leaf(np.ones(10)), context=Context()), context=Context())
    loss = (middle * 2).sum()
    refs = [weakref.ref(middle.node.kept["y"]), weakref.ref(loss.node.parents[0].kept["z"])]
    del middle
    assert [ref() is None for ref in refs] == [False, False]
    backward(loss)
    assert seen == [[True, True]]
    assert (loss.node.kept, loss.node.parents) == (None, ())


def test_a_walked_graph_leaves_nothing_to_the_garbage_collector():
    gc.collect()
    gc.disable()
    try:
        x = leaf(np.ones(10))
        y = x * x
        alive = weakref.ref(y.data)
        loss = (y * y).sum()
        del y
        backward(loss)
        assert alive() is None
    finally:
        gc.enable()


# addresses and keys

def test_ops_are_numbered_by_name_in_their_scope():
    context, x = Context(), leaf([1.0])
    with watching() as events:
        for _ in range(2):
            apply(RULES["exp"], x, context=context)
            with scope("block0"), scope("mlp"), scope(""):
                assert current_scope() == "block0.mlp"
                apply(RULES["exp"], x, context=context)
                apply(RULES["neg"], x, context=context)
    assert [str(e.address) for e in events] == ["exp", "block0.mlp/exp", "block0.mlp/neg",
                                                "exp#1", "block0.mlp/exp#1", "block0.mlp/neg#1"]
    assert current_scope() == ""
    with pytest.raises(ZeroDivisionError), scope("a"):
        raise ZeroDivisionError
    assert current_scope() == ""


def test_begin_numbers_ops_and_casts_leaves_anew():
    ops = Recipe("r", casts={"*": FLOAT16}).bind(0)
    x = leaf([1.0])
    ops.context.begin(3, 2)
    first, again = ops.cast(x, FLOAT16), ops.cast(x, FLOAT16)
    assert again is first
    assert ops.exp(x).node.address == Address("", "exp", 0)
    assert ops.exp(x).node.address.number == 1
    ops.context.begin(4)
    assert (ops.context.step, ops.context.micro) == (4, 0)
    assert ops.cast(x, FLOAT16) is not first
    assert ops.exp(x).node.address.number == 0


def test_an_updated_leaf_is_cast_anew_even_without_begin():
    ops = Recipe("r", casts={"*": FLOAT16}).bind(0)
    x = leaf([1.0])
    assert ops.exp(x).node.kept["y"].item() == np.float16(math.e)
    x.data = np.zeros(1, np.float32)
    assert ops.exp(x).item() == 1
    with ops.context.no_record():
        assert ops.exp(x).item() == 1
    assert ops.context.leaf_casts == {}          # what was cast without recording stands for nothing that is recorded
    assert ops.exp(x).node is not None


def test_keys_are_pure_functions_of_all_that_they_name():
    def key(seed=1, step=2, micro=3, address=("a.b", "dropout", 4), phase="rule"):
        context = Context(seed)
        context.begin(step, micro)
        return context.key(Address(*address), phase)
    assert key() == key()
    assert 0 <= key() < 2**64
    assert key() == key(seed=np.int64(1), step=np.int32(2))                   # the value counts, not its type
    others = [key(seed=2), key(step=3), key(micro=4), key(phase="forward"), key(address=("a.b", "dropout", 5)),
              key(address=("a", "dropout", 4)), key(address=("a.b", "matmul", 4)), key(seed=12, step=0), key(seed=1, step=20)]
    assert len({key(), *others}) == len(others) + 1


def test_a_step_can_be_drawn_again():
    model = make("float16-mixed", dropout=0.2)

    def loss(step, micro=0):
        model.ops.context.begin(step, micro)
        return model.loss(*batch()).item()
    first = loss(5)
    assert loss(6) != first
    assert loss(5, 1) != first
    assert loss(5) == first


# watching

@contextlib.contextmanager
def watching():
    """Collects the events of a with block."""
    events = []
    with watch(events.append):
        yield events


def test_watching_sees_every_rounding_before_and_after():
    x = leaf([1.0, 2.0], FLOAT16)
    with watching() as events:
        assert watched()
        loss = (x * 0.1).sum()
        backward(loss)
    assert not watched()
    assert [(e.phase, e.address.op) for e in events] == [
        ("forward", "mul"), ("forward", "sum"), ("backward", "sum"), ("backward", "mul"), ("backward", "gradient")]
    for e in events:
        assert e.exact.dtype == np.float32
        assert e.rounded.dtype == np.float16
        assert np.array_equal(e.rounded, round_to(e.exact, e.format))
    product = events[0]
    assert (product.rule, product.inputs[0], product.static) == (RULES["mul"], x, {})
    assert events[-1].address.scope == "x"


def test_an_op_can_be_run_again_in_float64_from_what_is_told(kernels):
    model = make("float16-mixed")
    with watching() as events:
        model.loss(*batch())
    assert len(events) > 40
    for e in events:
        wide = [Tensor(t.data.astype(np.float64), FLOAT64) if isinstance(t, Tensor) else t for t in e.inputs]
        static = {name: value for name, value in e.static.items() if name != "key"}
        again = apply(e.rule, *wide, context=Context(), **static)
        assert again.data.shape == e.exact.shape
        assert np.allclose(again.data, e.exact, rtol=1e-3, atol=1e-3)          # only that it is the same op: a half's accuracy


def test_several_may_watch_and_an_error_ends_watching():
    with watching() as outer, watching() as inner:
        leaf([1.0]) + 1
    assert len(outer) == len(inner) == 1
    with pytest.raises(ZeroDivisionError), watching():
        raise ZeroDivisionError
    assert not watched()


def one_step(recipe):
    """Loss, gradients, weights and moments after one step."""
    model = make(recipe, dropout=0.1)
    optimizer = AdamW(model.parameters(), eps=PRESETS[recipe].eps, state_format=PRESETS[recipe].optimizer_state,
                      update=PRESETS[recipe].update)
    for step in range(2):
        model.ops.context.begin(step)
        loss = model.loss(*batch()) * 64.0
        gradients = backward(loss)
        optimizer.step(gradients, 1e-3, 1 / 64)
    return {"loss": loss.data} | gradients | {f"{s}.{n}": a for s, state in optimizer.state.items() for n, a in state.items()} \
        | {f"weight.{n}": a for n, a in model.state_dict().items()}


@pytest.mark.parametrize("recipe", PRESETS)
def test_watched_and_unwatched_steps_have_the_same_bits(recipe, kernels):
    free = bits(one_step(recipe))
    with watching() as events:
        seen = bits(one_step(recipe))
    assert free == seen
    assert {e.phase for e in events} == {"forward", "backward", "update"}


def test_a_kernel_rounds_on_its_way_only_when_nobody_watches(monkeypatch):
    monkeypatch.setenv("MINILLM_KERNELS", "on")
    asked, kernel = [], KERNELS["gelu"].forward

    class Spy:
        @staticmethod
        def forward(x, *, out):
            asked.append(out)
            return kernel(x, out=out)
        serves = KERNELS["gelu"].serves
    monkeypatch.setitem(KERNELS, "gelu", Spy)
    results = []
    for format in (FLOAT16, FLOAT32, BFLOAT16):
        x = leaf(np.linspace(-4, 4, 100), format)
        results.append(apply(RULES["gelu"], x, context=Context()).data)
        with watching():
            assert np.array_equal(apply(RULES["gelu"], x, context=Context()).data, results[-1])
    assert asked == [np.float16, np.float32, np.float32, np.float32, np.float32, np.float32]


def test_nothing_is_told_while_nobody_watches(monkeypatch):
    def tell(*event):
        raise AssertionError("told, though nobody watches")
    monkeypatch.setattr("minillm.autograd.tensor.tell", tell)
    monkeypatch.setattr("minillm.optim.optimizer.tell", tell)
    one_step("float16-mixed")


def test_plain_operators_have_a_context_that_only_counts():
    before = (PLAIN.seed, PLAIN.step, PLAIN.record, PLAIN.forward)
    leaf([1.0]) + 1
    assert (PLAIN.seed, PLAIN.step, PLAIN.record, PLAIN.forward) == before
    assert PLAIN.leaf_casts == {}
