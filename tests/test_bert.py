"""Encoders: what a token may see, the same numbers as PyTorch's layer, training under recipes, and conversion to codes."""
import math

import numpy as np
import pytest
from tiny_encoder import IDS, SHAPES, TARGETS, make
from tiny_gpt import objective_of

from minillm.autograd.rule import RULES
from minillm.autograd.tensor import Tensor, backward
from minillm.autograd.watching import watch
from minillm.conversion.calibration import calibrate
from minillm.conversion.convert import Conversion, convert
from minillm.conversion.int8_model import under
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32
from minillm.models.bert import NO_TARGET, each_masked, sentence_vectors
from minillm.nn import quantized_layers
from minillm.recipes import PRESETS
from minillm.training.trainer import training_step

HOWS = [Conversion("int8", method) for method in ("rtn", "gptq", "gptq-act", "awq", "smoothquant", "outliers", "dynamic")] + \
       [Conversion("int4", "rtn", "group", 8), Conversion("int3", "gptq", "tensor")]


def hidden(model, ids):
    with model.ops.context.no_record():
        return model.hidden(ids).data


# --- GELU by the normal distribution

@pytest.mark.parametrize(("dtype", "parts"), [(np.float32, 8 * 2.0**-24), (np.float64, 1e-10)])
def test_gelu_erf_is_x_times_the_share_below_x(dtype, parts):
    """Of the tail's own size: e^(-x^2 / 2) is as much off as x^2 / 2 is; the polynomial adds 6e-11, and a few roundings."""
    x = np.linspace(-12, 12, 20001).astype(dtype)
    exact = np.array([v * math.erfc(-v / math.sqrt(2)) / 2 for v in x.astype(np.float64)])
    assert np.all(abs(RULES["gelu_erf"].forward(np, x) - exact) <= parts * (1 + x * x / 2) * abs(exact) + FLOAT32.tiny)


def test_gelu_erf_has_its_limits_at_infinity_and_passes_nan_on():
    x = np.array([np.inf, -np.inf, np.nan, 1e30, -1e30, 0], np.float32)
    assert np.array_equal(RULES["gelu_erf"].forward(np, x), np.array([np.inf, 0, np.nan, np.float32(1e30), 0, 0]), equal_nan=True)
    assert np.array_equal(RULES["gelu_erf"].backward(np, np.ones(6), x)[0], [1, 0, np.nan, 1, 0, 0.5], equal_nan=True)


# --- the encoder

@pytest.mark.parametrize("kind", SHAPES)
def test_a_token_sees_every_other_and_no_padding(kind):
    model, other = make(kind), IDS.copy()
    other[1, 5] = 13
    assert (hidden(model, IDS)[1] != hidden(model, other)[1]).any(1).all()     # the first as the last
    alone = hidden(model, IDS[:1, :5])[0]
    assert np.allclose(hidden(model, IDS)[0, :5], alone, rtol=0, atol=1e-5)    # values about 1, sums in another order
    moved = make(kind, padding=1)
    assert not np.allclose(hidden(moved, IDS)[0, :5], alone, atol=1e-2)        # seen, padding would show


@pytest.mark.parametrize("activation", ["gelu_erf", "gelu"])
def test_a_block_is_pytorchs(activation):
    torch = pytest.importorskip("torch")
    model = make("bert", activation=activation)
    how = {"gelu_erf": torch.nn.functional.gelu, "gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh")}[activation]
    theirs, ours = torch.nn.TransformerEncoderLayer(16, 2, 24, 0.0, how, 1e-12, batch_first=True), model.block0.state_dict()
    ours = {name.removeprefix("block0."): torch.tensor(a) for name, a in ours.items()}
    state = {"self_attn.in_proj_weight": torch.cat([ours[f"attention.{p}.weight"] for p in ("query", "key", "value")]),
             "self_attn.in_proj_bias": torch.cat([ours[f"attention.{p}.bias"] for p in ("query", "key", "value")])}
    for name, place in (("self_attn.out_proj", "attention.out"), ("linear1", "up"), ("linear2", "down")):
        state |= {f"{name}.{w}": ours[f"{place}.{w}"] for w in ("weight", "bias")}
    for name in ("norm1", "norm2"):
        state |= {f"{name}.weight": ours[f"{name}.gain"], f"{name}.bias": ours[f"{name}.shift"]}
    theirs.load_state_dict(state)
    x = np.random.default_rng(0).standard_normal((2, 7, 16), np.float32)
    with torch.no_grad(), model.ops.context.no_record():
        expected = theirs(torch.tensor(x), src_key_padding_mask=torch.tensor(IDS == 0)).numpy()
        found = model.block0(Tensor(x, FLOAT32), (IDS != 0)[:, None, None, :]).data
    assert np.abs(found - expected)[IDS != 0].max() < 1e-5                     # values about 1; sums of 24 in another order


def test_albert_passes_one_block_many_times():
    three, one = make("albert"), make("albert", layers=1)
    one.load_state_dict(three.state_dict())
    assert len(set(map(id, three.blocks))) == 1
    assert len(three.blocks) == 3
    assert not np.allclose(hidden(one, IDS), hidden(three, IDS), atol=1e-2)
    names = [p.name for p in make("bert").parameters()]
    assert any(name.startswith("block1.") for name in names)
    assert not any(name.startswith("block1.") for name in three.state_dict())


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("recipe", ["float32", "float16-mixed", "bfloat16-mixed", "int8-qat"])
def test_an_encoder_trains_under_recipes_and_every_op_is_seen(kind, recipe):
    model, seen = make(kind, recipe), set()
    with watch(lambda event: seen.add((event.phase, event.address.op, event.format.name))):
        model.ops.context.begin(0)
        found = backward(model.loss(IDS, TARGETS))
    assert {name for phase, name, _ in seen if phase == "forward"} >= {"embedding", "layer_norm", "linear", "attention", "gelu_erf",
                                                                       "add", "cross_entropy"}
    narrow = {"float16-mixed": "float16", "bfloat16-mixed": "bfloat16"}.get(recipe, "float32")
    assert ("forward", "gelu_erf", narrow) in seen
    assert found.keys() >= {p.name for p in model.parameters()}
    objective = objective_of(model)
    before, first = {p.name: p.data.copy() for p in model.parameters()}, model.loss(IDS, TARGETS).item()
    for step in range(12):
        training_step(objective, [(IDS, TARGETS)], step, 0.01)
    assert model.loss(IDS, TARGETS).item() < first / 2
    assert all((before[p.name] != p.data).any() for p in model.parameters())


def test_targets_that_are_left_out_cost_nothing():
    model = make()
    with model.ops.context.no_record():
        logits = model(IDS).data.astype(np.float64)
    rows = logits[TARGETS != NO_TARGET]
    exact = (np.log(np.exp(rows).sum(1)) - rows[[0, 1], [12, 31]]).mean()
    assert model.loss(IDS, TARGETS).item() == pytest.approx(exact, rel=1e-5)


def test_each_token_between_the_ends_is_hidden_once():
    ids, targets = each_masked(IDS[1], 4)
    assert ids.shape == targets.shape == (5, 7)
    assert np.array_equal(np.where(targets == NO_TARGET, ids, targets), np.tile(IDS[1], (5, 1)))
    assert np.array_equal(np.argwhere(ids == 4), np.argwhere(targets != NO_TARGET))
    assert np.array_equal(np.argwhere(ids == 4)[:, 1], [1, 2, 3, 4, 5])


def test_a_sentence_is_the_mean_of_its_tokens_without_padding():
    model = make(head=False)
    found, x = sentence_vectors(model, IDS), hidden(model, IDS).astype(np.float64)
    means = np.array([x[0, :5].mean(0), x[1].mean(0)])
    assert np.allclose(found, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-6)
    with pytest.raises(MiniLLMError, match="13 tokens do not fit into a context of 12"):
        sentence_vectors(model, np.ones((1, 13), np.int32))


# --- conversion, as of any model

@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("kind", SHAPES)
def test_a_copy_is_of_its_own_class_and_says_the_same(kind, head):
    model = make(kind, head=head)
    copy = under(model, PRESETS["float32"])
    assert type(copy) is type(model)
    with model.ops.context.no_record(), copy.ops.context.no_record():
        assert np.array_equal(model(IDS).data, copy(IDS).data)


@pytest.mark.parametrize("how", HOWS, ids=lambda how: f"{how.scheme} {how.method}")
def test_every_method_converts_an_encoder(how):
    model = make(vocabulary=64)
    ours, layers = convert(model, how, calibrate(model, [(IDS, TARGETS)]))
    matrices = {p.name for p in model.parameters() if p.ndim == 2}
    assert {layer.name for layer in layers} == matrices
    left = {layer.name for layer in layers if layer.left}
    assert {f"{name}.weight" for name in quantized_layers(ours)} == matrices - left
    with model.ops.context.no_record(), ours.ops.context.no_record():
        exact, found = model(IDS).data, ours(IDS).data
    assert left == matrices or not np.array_equal(exact, found)
    assert np.abs(found - exact).max() < {"int8": 0.1, "int4": 1, "int3": 3}[how.scheme] * np.abs(exact).max()


def test_inputs_of_a_shared_block_are_those_of_every_pass():
    model = make()
    inputs = calibrate(model, [(IDS, TARGETS)])
    assert inputs["block0.up.weight"].shape == (3 * 14, 16)
    assert inputs["widen.weight"].shape == (14, 8)
