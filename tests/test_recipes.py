"""Recipes: to JSON and back, errors that name the nearest valid name, which key wins, and what a traced forward pass shows."""
import contextlib
import json
from collections import Counter

import numpy as np
import pytest
from tiny_gpt import batch, make, objective_of, recipe_of

from minillm.autograd.rule import RULES, rule
from minillm.autograd.rules.elementwise import unbroadcast
from minillm.autograd.rules.products import PRODUCTS
from minillm.autograd.tensor import Tensor, backward, tensor
from minillm.autograd.watching import watch
from minillm.errors import MiniLLMError, MixedFormats
from minillm.formats import BFLOAT16, FLOAT16, FLOAT32
from minillm.precision.loss_scaling import LossScaling, static_scale
from minillm.precision.recipe import QUANTIZERS, Recipe, find
from minillm.recipes import PRESETS, from_json, recipe_named, to_json
from minillm.training.trainer import training_step

EVERYTHING = Recipe(
    "everything", FLOAT16, BFLOAT16, FLOAT16, casts={"*": FLOAT16, "head/linear": FLOAT32, "linear.bias": BFLOAT16, "add": "widest",
                                                     "exp": "refuse", "block0.mlp/gelu": "as is"},
    results={"embedding": FLOAT16, "block1/attention": BFLOAT16}, products={"linear": RULES["linear"].defaults["products"]},
    composed=("attention",), cotangents=FLOAT32, loss_scaling=LossScaling(2.0**9, growth_interval=7), eps=1e-4, about="all fields")


def traced(recipe, model=None):
    """(events, gradients) of one forward and backward pass of the tiny GPT."""
    model, events = model or make(recipe), []
    model.ops.context.begin(0)
    with watch(events.append):
        gradients = backward(model.loss(*batch()))
    return events, gradients


def in_phase(events, phase):
    return [e for e in events if e.phase == phase]


# --- JSON

@pytest.mark.parametrize("recipe", [*PRESETS.values(), EVERYTHING], ids=lambda r: r.name)
def test_a_recipe_survives_json(recipe):
    text = json.dumps(to_json(recipe), allow_nan=False)
    back = from_json(json.loads(text))
    assert back == recipe
    assert json.dumps(to_json(back)) == text


def test_a_recipe_from_json_may_leave_out_what_is_usual():
    assert from_json({"name": "float32"}) == recipe_of("float32", about="")


def test_quantizers_go_to_json_by_their_names(monkeypatch):
    def halve(ops, x, name):
        return ops.mul(x, 0.5)

    recipe = Recipe("halving", quantizers={"head/linear.x": halve})
    with pytest.raises(MiniLLMError, match=r"recipe halving: the quantizer of head/linear\.x has no name"):
        to_json(recipe)
    monkeypatch.setitem(QUANTIZERS, "halve", halve)
    assert to_json(recipe)["quantizers"] == {"head/linear.x": "halve"}
    assert from_json(json.loads(json.dumps(to_json(recipe)))) == recipe


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_go_to_json_by_their_names(name):
    recipe = Recipe("mine", products={"linear": PRODUCTS[name]})
    assert to_json(recipe)["products"] == {"linear": name}
    assert from_json(json.loads(json.dumps(to_json(recipe)))).products["linear"] is PRODUCTS[name]


def with_field(**fields):
    return lambda: from_json(to_json(EVERYTHING) | fields)


@pytest.mark.parametrize(("wrong", "message"), [
    (lambda: recipe_named("float16-mixd"), "unknown recipe 'float16-mixd': did you mean 'float16-mixed'?"),
    (lambda: recipe_named("Float32"), "unknown recipe 'Float32': did you mean 'float32'?"),
    (lambda: recipe_named("APEX-o2"), "unknown recipe 'APEX-o2': did you mean 'apex-O2'?"),
    (with_field(optimiser_state="float16"), "unknown field of a recipe 'optimiser_state': did you mean 'optimizer_state'?"),
    (with_field(parameters="flaot16"), "unknown format 'flaot16': did you mean 'float16'?"),
    (with_field(cotangents="bfloat61"), "unknown format 'bfloat61': did you mean 'bfloat16'?"),
    (with_field(casts={"*": "float61"}), "unknown cast 'float61': did you mean 'float16'?"),
    (with_field(casts={"*": "widst"}), "did you mean 'widest'?"),
    (with_field(casts={"liner": "float16"}), "unknown op 'liner': did you mean 'linear'?"),
    (with_field(casts={"head/liner": "float16"}), "unknown op 'liner': did you mean 'linear'?"),
    (with_field(casts={"linear.wieght": "float16"}), "unknown input of linear 'wieght': did you mean 'weight'?"),
    (with_field(casts={"layer_norm.scale": "float16"}), "unknown input of layer_norm 'scale'"),
    (with_field(results={"embeding": "float16"}), "unknown op 'embeding': did you mean 'embedding'?"),
    (with_field(products={"linear": "flaot32"}), "unknown products 'flaot32': did you mean 'float32'?"),
    (with_field(products={"matmull": "float32"}), "unknown op 'matmull': did you mean 'matmul'?"),
    (with_field(composed=["atention"]), "unknown composed op 'atention': did you mean 'attention'?"),
    (with_field(forward_rounding="nearest_evn"), "unknown rounding 'nearest_evn': did you mean 'nearest_even'?"),
    (with_field(loss_scaling={"intial": 8}), "unknown field of a loss scaling 'intial': did you mean 'initial'?"),
    (with_field(loss_scaling={"initial": 0}), "loss scale 0 is not a positive normal float32"),
    (with_field(quantizers={"linear.weight": "int8"}), "unknown quantizer 'int8'"),
    (lambda: from_json({"casts": {}}), "a recipe needs a name"),
    (with_field(casts=["linear"]), "recipe everything: casts must be a table"),
    (lambda: Recipe("mine", casts={"*": "wide"}), "unknown cast 'wide': did you mean 'widest'?"),
    (lambda: Recipe("mine", quantizers={"linear.w": max}), "recipe mine: unknown input of linear 'w'"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_wrong_name_is_one_line_with_the_nearest_right_one(wrong, message):
    with pytest.raises(MiniLLMError) as error:
        wrong()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# --- which key wins

ORDER = ["block0.mlp.up/linear.weight", "block0.mlp.up/linear", "mlp.up/linear.weight", "mlp.up/linear", "block0.mlp/linear.weight",
         "block0.mlp/linear", "up/linear.weight", "up/linear", "mlp/linear.weight", "mlp/linear", "block0/linear.weight",
         "block0/linear", "linear.weight", "linear", "*"]


def test_the_most_exact_key_wins():
    for i, key in enumerate(ORDER):
        table = {k: k for k in reversed(ORDER[i:])}                            # the order of a table says nothing
        assert find(table, "block0.mlp.up", "linear", "weight") == key
    assert find({}, "block0.mlp.up", "linear", "weight") is None


def test_other_places_other_inputs_and_parts_of_names_do_not_match():
    others = {"block1/linear", "block0.up/linear", "block/linear", "bloc/linear", "linear.bias", "gelu", "mlp.up.x/linear"}
    assert find(dict.fromkeys(others, "no"), "block0.mlp.up", "linear", "weight") is None
    assert find({"head/linear": 1, "linear": 2}, "", "linear") == 2


@pytest.mark.parametrize("name", ["float16-mixed", "bfloat16-mixed", "float16"])
def test_a_key_for_the_head_puts_the_head_in_float32_and_nothing_else(name):
    plain = recipe_of(name)
    low = plain.casts["*"] if plain.casts["*"] != "as is" else FLOAT16
    events, _ = traced(recipe_of(plain, casts=plain.casts | {"head/linear": FLOAT32}))
    for e in in_phase(events, "forward"):
        if e.address.op == "linear":
            wide = e.address.scope == "head"
            assert (e.format, e.inputs[0].format, e.inputs[1].format) == (FLOAT32 if wide else low,) * 3, e.address
        elif e.address.op not in ("cast", "cross_entropy"):
            assert e.format is low, e.address


@pytest.mark.parametrize("key", ["linear.bias", "block0.mlp/linear.bias"])
def test_wide_inputs_are_cast_only_where_they_are_named(key):
    plain = recipe_of("float16-mixed")
    events, _ = traced(recipe_of(plain, casts=plain.casts | {key: FLOAT16}))
    for e in in_phase(events, "forward"):
        if e.address.op == "linear" and e.inputs[2] is not None:
            named = key == "linear.bias" or e.address.scope.startswith("block0.mlp")
            assert e.inputs[2].format is (FLOAT16 if named else FLOAT32), e.address
        if e.address.op == "layer_norm":
            assert [t.format for t in e.inputs] == [FLOAT16, FLOAT32, FLOAT32]


# --- the words

HALF, FULL = tensor([1.5, -2.0], FLOAT16), tensor([0.25, 4.0], FLOAT32)


def test_widest_brings_inputs_to_the_widest_of_them():
    ops = Recipe("promoting", casts={"add": "widest"}).bind()
    for result in (ops.add(HALF, FULL), ops.add(FULL, HALF)):
        assert result.format is FLOAT32
        assert result.data.tolist() == [1.75, 2.0]
    assert ops.add(HALF, HALF).format is FLOAT16
    assert ops.add(HALF, 1.0).format is FLOAT16                                # a Python number has no format


def test_refuse_names_recipe_op_and_format():
    ops = Recipe("strict", casts={"exp": "refuse"}).bind()
    with pytest.raises(MixedFormats, match="recipe strict refuses exp on float16"):
        ops.exp(HALF)
    assert ops.tanh(HALF).format is FLOAT16


def test_as_is_lets_nothing_mix():
    ops = Recipe("plain").bind()
    with pytest.raises(MixedFormats, match="add: float16 and float32 do not mix"):
        ops.add(HALF, FULL)
    assert ops.add(HALF, HALF).format is FLOAT16


def test_results_name_another_format_than_the_inputs():
    ops = Recipe("rounding", results={"mul": BFLOAT16}).bind()
    result = ops.mul(tensor([1 / 3]), 1.0)
    assert result.format is BFLOAT16
    assert result.data == np.float32(0.333984375)                              # 171 / 512, the nearest of 8 digits


# --- one cast of a parameter a forward pass

def casts_of(events, name):
    return sum(e.address.op == "cast" and e.inputs[0].name == name for e in in_phase(events, "forward"))


def test_a_parameter_is_cast_once_a_forward_pass_however_often_it_is_used():
    model = make(Recipe("cast everything", casts={"*": FLOAT16, "cross_entropy": FLOAT32}))
    for step in range(2):
        model.ops.context.begin(step)
        with watch((events := []).append):
            first = model(batch()[0])                                          # tokens.weight: embedding and head
            model(batch()[0])
        for p in model.parameters():
            wide = p.name.endswith(("gain", "shift", "bias"))
            assert casts_of(events, p.name) == (0 if wide else 1), p.name
    gradients = backward(model.ops.mean(first))
    assert gradients["tokens.weight"].any(axis=1).all()                        # the head's share reaches every row through the cast


def test_a_cast_made_without_recording_does_not_stand_in_for_one_that_records():
    model = make("float16-mixed")
    model.ops.context.begin(0)
    with model.ops.context.no_record():
        model(batch()[0])
    assert set(backward(model.loss(*batch()))) == {p.name for p in model.parameters()}


def test_parameters_that_have_changed_are_cast_anew_by_begin():
    model = make("float16-mixed")
    model.ops.context.begin(0)
    before = model(batch()[0]).data
    for p in model.parameters():
        p.data = p.data * np.float32(2)
    model.ops.context.begin(1)
    assert not np.array_equal(model(batch()[0]).data, before)


# --- float16-mixed, op by op

LOW = FLOAT16
INPUTS = {                                                                     # the recipe's promise: formats of inputs and result
    "embedding": ([FLOAT32], LOW), "add": ([LOW, LOW], LOW), "layer_norm": ([LOW, FLOAT32, FLOAT32], LOW),
    "attention": ([LOW, LOW, LOW], LOW), "gelu": ([LOW], LOW), "cross_entropy": ([FLOAT32], FLOAT32)}


def test_every_op_of_a_float16_mixed_forward_pass_has_the_promised_formats():
    events, _ = traced("float16-mixed")
    ops = Counter()
    for e in in_phase(events, "forward"):
        found = [t.format for t in e.inputs if isinstance(t, Tensor)]
        ops[e.address.op] += 1
        if e.address.op == "linear":                                           # the head has no bias
            assert found == [LOW, LOW, FLOAT32][:2 if e.address.scope == "head" else 3], e.address
            assert e.format is LOW
        elif e.address.op == "cast":
            assert (found, e.format) == (([FLOAT32], LOW) if e.inputs[0].name else ([LOW], FLOAT32)), e.address
        else:
            assert (found, e.format) == INPUTS[e.address.op], e.address
        assert e.rounded.dtype == e.format.storage
    L = 2
    assert ops == {"embedding": 2, "add": 1 + 2 * L, "layer_norm": 1 + 2 * L, "linear": 1 + 6 * L, "attention": L, "gelu": L,
                   "cast": (1 + 6 * L) + 1, "cross_entropy": 1}                # each matrix once, and the logits


@pytest.mark.parametrize("name", PRESETS)
def test_every_cotangent_has_the_format_of_its_tensor_and_every_gradient_that_of_its_parameter(name):
    model = make(name)
    events, gradients = traced(name, model)
    forward = {e.address: e.format for e in in_phase(events, "forward")}
    leaves = {p.name: p.format for p in (*model.parameters(), *model.ops.learned.values())}
    backwards = in_phase(events, "backward")
    assert Counter(e.address for e in backwards if e.address.op != "gradient") == Counter(forward.keys())   # each op once
    assert Counter(e.address.scope for e in backwards if e.address.op == "gradient") == Counter(leaves.keys())
    for e in backwards:
        assert e.format is (leaves[e.address.scope] if e.address.op == "gradient" else forward[e.address]), e.address
        assert e.rounded.dtype == e.format.storage
    assert {n: g.dtype for n, g in gradients.items()} == {n: np.dtype(f.storage) for n, f in leaves.items()}


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_rounded_was_computed_in_float32(name):
    for e in traced(name)[0]:
        assert e.exact.dtype == np.float32, e.address


def test_a_recipe_may_keep_cotangents_wider_than_their_tensors():
    events, _ = traced(recipe_of("float16-mixed", cotangents=FLOAT32))
    assert {e.format for e in in_phase(events, "backward")} == {FLOAT32}
    assert {e.format for e in in_phase(events, "forward")} == {FLOAT16, FLOAT32}


# --- what quantizers learn

@pytest.fixture
def toy_lsq():
    """A quantizer with a learned step, in the manner of LSQ (arXiv 1902.08153): its rule is in the table for one test only."""
    @rule(wide=("step",))
    def toy_lsq(xp, x, step):
        return xp.round(x / step) * step

    @toy_lsq.vjp
    def _(xp, g, x, step):
        return g, unbroadcast(xp, g * (xp.round(x / step) - x / step), step.shape)

    def quantizer(ops, x, name):
        if name not in ops.learned:
            ops.learned[name] = tensor(0.01, FLOAT32, name=name)
        return ops.toy_lsq(x, ops.learned[name])

    with contextlib.ExitStack() as at_the_end:
        at_the_end.callback(RULES.pop, "toy_lsq")
        yield quantizer


ADDRESSES = {f"block{i}.mlp.{part}.linear.weight" for i in range(2) for part in ("up", "down")} | {"head.linear.x"}


@pytest.mark.parametrize("name", ["float32", "float16-mixed"])
def test_what_a_quantizer_learns_is_made_in_a_dry_pass_and_trained(toy_lsq, name):
    model = make(recipe_of(name, quantizers={"mlp/linear.weight": toy_lsq, "head/linear.x": toy_lsq}))
    assert model.ops.learned == {}
    model.ops.context.begin(0)
    with model.ops.context.no_record():
        model(batch()[0])
    assert model.ops.learned.keys() == ADDRESSES
    assert all(t.name == address for address, t in model.ops.learned.items())
    objective, raw = objective_of(model), {}
    before = {address: t.item() for address, t in model.ops.learned.items()}
    result = training_step(objective, [batch()], 0, 1e-3, after_step=raw.update)
    assert result.finite
    assert model.ops.learned.keys() == ADDRESSES                               # the same leaves, not new ones
    for address, t in model.ops.learned.items():
        assert raw[address].shape == ()
        assert raw[address] != 0
        # the first step of AdamW is lr against the sign of the gradient; a step has no axes, so no decay
        assert t.item() - before[address] == pytest.approx(-1e-3 * np.sign(raw[address]), rel=1e-3)


def test_a_quantizer_sees_the_parameter_and_the_op_sees_what_it_gave(toy_lsq):
    model = make(recipe_of("float32", quantizers={"block1.mlp.up/linear.weight": toy_lsq}))
    events, _ = traced(None, model)
    for e in in_phase(events, "forward"):
        if e.address.op == "linear":
            quantized = e.address.scope == "block1.mlp.up"
            grid = e.inputs[1].data / np.float32(0.01)
            assert (abs(grid - np.round(grid)).max() < 1e-5) == quantized, e.address     # up to 9 steps, rounded three times


def test_the_scale_of_a_recipe_is_that_of_its_run():
    assert recipe_of("float16-mixed").loss_scaling == LossScaling()
    assert objective_of(make(recipe_of("float32", loss_scaling=static_scale(8.0)))).scaler.scale == 8
