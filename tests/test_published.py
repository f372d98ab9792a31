"""Recipes of published systems: one GPT step, traced, beside the tables of those systems; and their lists beside the recipes.

A table says for each op what formats its inputs have and what its result has. Every rounding of a step is looked at: each op's
inputs and result, each cast, each cotangent, each gradient and each update.
"""
import importlib.util
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tiny_gpt import batch, make, objective_of

from minillm.autograd.rule import RULES
from minillm.autograd.tensor import Tensor, tensor
from minillm.autograd.watching import watch
from minillm.errors import MixedFormats
from minillm.formats import BFLOAT16, FLOAT16, FLOAT32
from minillm.precision.loss_scaling import NO_SCALING
from minillm.precision.published import PUBLISHED
from minillm.recipes import PRESETS
from minillm.training.trainer import training_step

H, S, B = FLOAT16, FLOAT32, BFLOAT16
L = 2                                                          # layers of the tiny GPT; its linears and layer norms have biases


# --- the tables: op or place/op -> (formats of the inputs, format of the result); "casts" -> how many from what to what a step

def composed(matmul, softmax):
    """The ops of an attention that is no op: scores times a constant, softmax, and moving heads about."""
    return {"matmul": ([matmul] * 2, matmul), "mul": ([matmul], matmul), "softmax": ([softmax], softmax),
            "attention/reshape": ([matmul], matmul), "attention/transpose": ([matmul], matmul)}


def throughout(format, norm=None, embedding=None, bias=None):
    """All of a GPT in one format, but for what is named."""
    return {"embedding": ([embedding or format], format), "add": ([format] * 2, format), "dropout": ([format], format),
            "layer_norm": ([format, *[norm or format] * 2], format), "linear": ([format, format, bias or format], format),
            "head/linear": ([format] * 2, format), "attention": ([format] * 3, format), "gelu": ([format], format),
            "cross_entropy": ([S], S)}


def by_lists(low):
    """PyTorch's autocast and Apex's O1: linears narrow, norms and loss float32, what is on no list as it comes, sums the widest."""
    return {"embedding": ([S], S), "add": ([S] * 2, S), "dropout": ([S], S), "block/dropout": ([low], low),
            "layer_norm": ([S] * 3, S), "linear": ([low] * 3, low), "head/linear": ([low] * 2, low), "attention": ([low] * 3, low),
            "gelu": ([low], low), "cross_entropy": ([S], S)}


# Casts of activations a block: a norm's float32 result for query, key, value and up; two branches back into the stream. Then the
# norm's for the head, and the logits. Composed attention: scores to float32 for softmax, and probabilities back.
BY_LISTS = {"down": 4 * L + 1, "up": 2 * L + 1}
EVERY_LINEAR = "linear weights and biases, and the head's"     # which are the tokens'
TABLES = {
    "apex-O0": {"table": throughout(S) | composed(S, S), "weights": None, "down": 0, "up": 0, "kept": (S, S, S)},
    "apex-O1": {"table": by_lists(H) | composed(H, S), "weights": EVERY_LINEAR, "down": 5 * L + 1, "up": 3 * L + 1,
                "kept": (S, S, S)},
    "apex-O2": {"table": throughout(H) | composed(H, H), "weights": "all", "down": 0, "up": 1, "kept": (S, S, S)},
    "apex-O3": {"table": throughout(H) | composed(H, H), "weights": None, "down": 0, "up": 1, "kept": (H, H, H)},
    "torch-autocast-float16": {"table": by_lists(H), "weights": EVERY_LINEAR, **BY_LISTS, "kept": (S, S, S)},
    "torch-autocast-bfloat16": {"table": by_lists(B), "weights": EVERY_LINEAR, **BY_LISTS, "kept": (S, S, S)},
    "keras-mixed_float16": {"table": throughout(H, norm=S, embedding=S), "weights": EVERY_LINEAR, "down": 0, "up": 1,
                            "kept": (S, S, S)},
    "float8-current": {"table": throughout(B, norm=S, embedding=S), "weights": EVERY_LINEAR, "down": 0, "up": 1,
                       "kept": (S, S, S)},
    "mxfp8": {"table": throughout(B, norm=S, embedding=S), "weights": EVERY_LINEAR, "down": 0, "up": 1, "kept": (S, S, S)},
}
PRESET = pytest.mark.parametrize("name", TABLES)


def step_of(name):
    """(model, every event of one training step over two micro-batches)."""
    model, events = make(name, dropout=0.1), []
    with watch(events.append):
        assert training_step(objective_of(model), [batch(), batch(seed=1)], 0, 1e-3).finite
    return model, events


def of_phase(events, phase):
    return [e for e in events if e.phase == phase]


def expected(table, address):
    """The row of an op: that of its place first, then its own."""
    place = "block" if address.scope.startswith("block") else address.scope
    found = [f"{place}/{address.op}", address.op]
    if address.scope.endswith("attention"):
        found.insert(0, f"attention/{address.op}")
    return next(table[key] for key in found if key in table)


def test_every_published_preset_has_its_table():
    assert {recipe.name for recipe in PUBLISHED} == set(TABLES)


@PRESET
def test_every_op_of_a_step_has_the_published_formats(name):
    _, events = step_of(name)
    table, seen = TABLES[name]["table"], Counter()
    for e in of_phase(events, "forward"):
        if e.address.op != "cast" and e.address.scope + e.address.op != "mul":             # the loss scale
            inputs = [t.format for t in e.inputs if isinstance(t, Tensor)]
            assert (inputs, e.format) == expected(table, e.address), e.address
            assert e.rounded.dtype == e.format.storage
            seen[e.address.op] += 1
    attention = {"matmul": 2, "mul": 1, "softmax": 1, "reshape": 4, "transpose": 5} if "matmul" in table else {"attention": 1}
    per_step = {"embedding": 2, "add": 1 + 2 * L, "dropout": 1 + 2 * L, "layer_norm": 1 + 2 * L, "linear": 1 + 6 * L, "gelu": L,
                "cross_entropy": 1} | {op: L * n for op, n in attention.items()}
    assert seen == {op: 2 * n for op, n in per_step.items()}


@PRESET
def test_casts_are_those_and_only_those_that_the_published_system_makes(name):
    model, events = step_of(name)
    expected, low = TABLES[name], TABLES[name]["table"]["linear"][1]
    casts = [e for e in of_phase(events, "forward") if e.address.op == "cast"]
    weights = Counter(e.inputs[0].name for e in casts if e.inputs[0].name)
    chosen = {None: lambda n: False, "all": lambda n: True,
              EVERY_LINEAR: lambda n: "norm" not in n and n != "positions.weight"}[expected["weights"]]
    assert weights == {p.name: 2 for p in model.parameters() if chosen(p.name)}            # once a forward pass
    assert all(e.format is low for e in casts if e.inputs[0].name)
    moved = Counter((e.inputs[0].format, e.format) for e in casts if not e.inputs[0].name)
    assert moved == Counter({(S, low): 2 * expected["down"]}) + Counter({(low, S): 2 * expected["up"]})


@PRESET
def test_cotangents_gradients_and_updates_have_the_published_formats(name):
    model, events = step_of(name)
    weight, gradient, state = TABLES[name]["kept"]
    formats = {(e.address, n): e.format for n, e in numbered(of_phase(events, "forward"))}
    for n, e in numbered(of_phase(events, "backward")):
        if e.address.op == "gradient":
            assert e.format is weight, e.address
        else:
            assert e.format is formats[e.address, n], e.address
    assert {e.format for e in of_phase(events, "accumulate")} == {gradient}
    for e in of_phase(events, "update"):
        assert e.format is (weight if e.address.op == "weight" else state), e.address
    assert {p.format for p in model.parameters()} == {weight}


def numbered(events):
    """(how often this address was seen before, event): micro-batches have the same addresses."""
    seen = Counter()
    for e in events:
        yield seen[e.address], e
        seen[e.address] += 1


@pytest.mark.parametrize(("name", "initial"), [("torch-autocast-float16", 2.0**16), ("apex-O1", 2.0**16), ("apex-O2", 2.0**16),
                                                ("keras-mixed_float16", 2.0**15)])
def test_scalers_have_the_published_constants(name, initial):
    how = PRESETS[name].loss_scaling
    assert (how.initial, how.growth, how.backoff, how.growth_interval, how.dynamic) == (initial, 2, 0.5, 2000, True)


@pytest.mark.parametrize("name", ["apex-O0", "apex-O3", "torch-autocast-bfloat16", "float8-current", "mxfp8"])
def test_the_others_have_no_loss_scale(name):
    assert PRESETS[name].loss_scaling == NO_SCALING


@pytest.mark.parametrize(("name", "products"), [("float8-current", "float8-current"), ("mxfp8", "mxfp8-up")])
def test_only_linears_outside_the_head_are_eight_bits(name, products):
    _, events = step_of(name)
    for e in of_phase(events, "forward"):
        if "products" in e.static:
            eight = e.address.op == "linear" and e.address.scope != "head"
            assert e.static["products"].name == (products if eight else "float32"), e.address


# --- single ops

P = {format: tensor([0.25, 0.75], format) for format in (H, B)}


@pytest.mark.parametrize(("name", "format"), [("torch-autocast-float16", H), ("torch-autocast-bfloat16", B), ("apex-O1", H)])
def test_binary_cross_entropy_on_probabilities_is_refused(name, format):
    with pytest.raises(MixedFormats, match=f"recipe {name} refuses bce on {format.name}"):
        PRESETS[name].bind().bce(P[format], np.ones(2, np.float32))
    assert PRESETS[name].bind().bce_with_logits(P[format], np.ones(2, np.float32)).format is S


@pytest.mark.parametrize("name", ["keras-mixed_float16", "apex-O2", "apex-O3"])
def test_where_it_is_not_refused_it_is_float32(name):
    assert PRESETS[name].bind().bce(P[H], np.ones(2, np.float32)).format is S


@pytest.mark.parametrize("name", ["torch-autocast-float16", "apex-O1"])
def test_mixed_inputs_are_promoted(name):
    ops, wide = PRESETS[name].bind(), tensor([1.0, 2.0])
    for op in ("add", "sub", "mul", "div"):
        assert getattr(ops, op)(P[H], wide).format is S, op
        assert getattr(ops, op)(P[H], P[H]).format is H, op
        assert getattr(ops, op)(P[H], 2.0).format is H, op                     # a Python number promotes nothing
    assert ops.concat(P[H], wide).format is S


# --- the lists, as published

# others: our name
NAMES = {"attention": ["scaled_dot_product_attention"], "lstm": ["lstm_cell"], "cross_entropy": ["log_softmax", "nll_loss"],
         "concat": ["cat"], "bce_with_logits": ["binary_cross_entropy_with_logits"], "bce": ["binary_cross_entropy"]}
PROMOTING = {"add", "sub", "mul", "div", "where", "concat"}


def cast_of(name, op):
    cast = PRESETS[name].casts.get(op, PRESETS[name].casts["*"])
    return getattr(cast, "name", cast)


def from_lists(op, lists, otherwise):
    """The cast of the list that has every name of an op."""
    found = [cast for cast, names in lists.items() if set(NAMES.get(op, [op])) <= set(names)]
    assert len(found) < 2, op
    return found[0] if found else otherwise


# apex/amp/lists; rms_norm for pow and rsqrt, sub for Tensor.__sub__, lstm_cell from apex/amp/rnn_compat.py
APEX_LISTS = {cast: names.split() for cast, names in {
    "float16": "lstm_cell linear matmul mm mv addmm addmv addr bmm prelu conv1d conv2d conv3d",
    "float32": "softplus softmin log_softmax softmax layer_norm group_norm normalize cosine_similarity acos asin cosh erfinv exp "
               "expm1 log log10 log2 reciprocal rsqrt sinh tan pow cumprod cumsum dist norm prod std sum var renorm "
               "cross_entropy nll_loss binary_cross_entropy_with_logits rms_norm",
    "widest": "addcdiv addcmul atan2 cross bilinear dot add div mul sub cat stack",
    "refuse": "binary_cross_entropy",
}.items()}


@pytest.mark.parametrize("op", sorted(set(RULES) - {"cast", "attention"}))     # attention is composed
def test_apex_o1_treats_every_op_as_its_lists_say(op):
    assert cast_of("apex-O1", op) == from_lists(op, APEX_LISTS, "as is")


def autocast_lists():
    """CUDA's lists from the header of the PyTorch that is installed: cast -> names."""
    spec = importlib.util.find_spec("torch")
    header = Path(spec.submodule_search_locations[0], "include/ATen/autocast_mode.h") if spec else None
    if header is None or not header.exists():
        pytest.skip("needs PyTorch's headers")
    macros = dict(re.findall(r"#define AT_FORALL_(\w+)\(_\)((?:.*\\\n)+.*)", header.read_text()))
    names = {macro: re.findall(r"_\((\w+)", body) for macro, body in macros.items()}
    return {"low": names["LOWER_PRECISION_FP"], "float32": [*names["FP32"], *names["FP32_SET_OPT_DTYPE"]]}


@pytest.mark.parametrize("low", ["float16", "bfloat16"])
def test_autocast_treats_every_op_as_pytorchs_header_says(low):
    lists = autocast_lists()
    lists[low] = lists.pop("low")
    assert len(lists[low]) > 25 < len(lists["float32"])
    for op in set(RULES) - {"cast", "bce"}:                    # binary_cross_entropy is banned outside of the lists
        assert cast_of(f"torch-autocast-{low}", op) == from_lists(op, lists, "widest" if op in PROMOTING else "as is"), op


# --- PyTorch's own autocast, on the CPU

def torch_gpt(torch, model, ids, targets):
    """The same GPT in PyTorch, from our weights: (names and dtypes of what each function gave, dtypes of gradients)."""
    from torch.nn import functional as F
    from torch.overrides import TorchFunctionMode
    w = {p.name: torch.tensor(p.data, requires_grad=True) for p in model.parameters()}
    shape, seen = model.shape, []

    class Recorder(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            out = function(*args, **kwargs or {})
            if isinstance(out, torch.Tensor):
                seen.append((function.__name__, str(out.dtype).removeprefix("torch.")))
            return out

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, (shape.channels,), w[f"{name}.gain"], w[f"{name}.shift"])

    def attention(x, name):
        q, k, v = (linear(x, f"{name}.{part}").view(*x.shape[:2], shape.heads, -1).transpose(1, 2) for part in
                   ("query", "key", "value"))
        return linear(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape), f"{name}.out")

    with torch.autocast("cpu", dtype=torch.bfloat16), Recorder():
        x = F.embedding(torch.tensor(ids), w["tokens.weight"]) + F.embedding(torch.arange(ids.shape[1]), w["positions.weight"])
        for i in range(shape.layers):
            x = x + attention(norm(x, f"block{i}.norm1"), f"block{i}.attention")
            h = F.gelu(linear(norm(x, f"block{i}.norm2"), f"block{i}.mlp.up"), approximate="tanh")
            x = x + linear(h, f"block{i}.mlp.down")
        logits = F.linear(norm(x, "norm"), w["tokens.weight"])
        loss = F.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten().long())
    loss.backward()
    return seen, {name: str(p.grad.dtype) for name, p in w.items()}, loss.item()


OURS = {"scaled_dot_product_attention": "attention", "linear": "linear", "layer_norm": "layer_norm", "add": "add", "gelu": "gelu",
        "embedding": "embedding", "cross_entropy": "cross_entropy"}


def test_op_by_op_results_have_the_types_of_pytorchs_autocast_on_the_cpu():
    torch = pytest.importorskip("torch")
    model, (ids, targets) = make("torch-autocast-bfloat16"), batch()
    model.ops.context.begin(0)
    with watch((events := []).append):
        loss = model.loss(ids, targets)
    ours = [(e.address.op, e.format.name) for e in events if e.address.op in OURS.values()]
    seen, gradients, torch_loss = torch_gpt(torch, model, ids, targets)
    theirs = [(OURS[name], kind) for name, kind in seen if name in OURS]
    assert len(theirs) == 6 + 12 * L                           # two embeddings and their sum, norm, head and loss; 12 a block
    assert ours == theirs
    assert set(gradients.values()) == {"torch.float32"}
    # about 20 roundings to bfloat16 of either side, each up to 2^-9 of logits that stay below 0.3
    assert abs(loss.item() - torch_loss) < 2 * 20 * 2.0**-9 * 0.3
