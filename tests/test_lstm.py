"""The LSTM: the recurrence against a plain loop and PyTorch, padding, and the classifier under every recipe."""
import numpy as np
import pytest
from tiny_gpt import objective_of

from minillm.autograd.context import Context
from minillm.autograd.rule import RULES
from minillm.autograd.tensor import Node, apply, backward, tensor, topological
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32
from minillm.models.lstm import LSTMClassifier, LSTMShape
from minillm.nn import Maker
from minillm.recipes import PRESETS
from minillm.testing import FLOAT64
from minillm.training.trainer import Schedule, Trainer

SHAPE = LSTMShape(11, 8, 6)
RNG = np.random.default_rng(5)
IDS = RNG.integers(1, 11, (4, 7)).astype(np.int32)
LABELS = np.array([0, 1, 1, 0], np.int32)


def values(B=3, T=6, C=4, H=5):
    """x, weight, recurrent, bias in float64."""
    return [RNG.standard_normal(s) / 2 for s in ((B, T, C), (4 * H, C), (4 * H, H), (4 * H,))]


def by_formula(x, weight, recurrent, bias):
    """The textbook, one sequence and one step at a time."""
    H, out = recurrent.shape[1], np.zeros((*x.shape[:2], recurrent.shape[1]))
    for b, sequence in enumerate(x):
        h = c = np.zeros(H)
        for t, word in enumerate(sequence):
            i, f, g, o = np.split(weight @ word + recurrent @ h + bias, 4)
            i, f, o = (1 / (1 + np.exp(-np.maximum(s, -700))) for s in (i, f, o))
            c = f * c + i * np.tanh(g)
            out[b, t] = h = o * np.tanh(c)
    return out


def ours(inputs, format=FLOAT64, mask=None):
    """Hidden states and the gradients of their sum, weighted by 1, 2, 3, ..."""
    leaves = [tensor(a, format, name=name) for a, name in zip(inputs, ("x", "weight", "recurrent", "bias"), strict=True)]
    y = apply(RULES["lstm"], *leaves, mask, context=Context())
    return y, backward((y * tensor(np.arange(1.0, y.size + 1).reshape(y.shape) / y.size, format)).sum())


def test_hidden_states_are_those_of_the_formula():
    inputs = values()
    assert np.allclose(ours(inputs)[0].data, by_formula(*inputs), rtol=0, atol=2.0**-50)       # a few roundings of values below 1


def test_hidden_states_and_gradients_are_pytorchs():
    torch = pytest.importorskip("torch")
    inputs = values()
    layer = torch.nn.LSTM(4, 5, batch_first=True).double()
    x = torch.tensor(inputs[0], requires_grad=True)
    with torch.no_grad():
        for p, a in zip((layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0), inputs[1:], strict=True):
            p.copy_(torch.tensor(a))
        layer.bias_hh_l0.zero_()
    theirs = layer(x)[0]
    (theirs * torch.arange(1.0, theirs.numel() + 1).reshape(theirs.shape) / theirs.numel()).sum().backward()
    y, gradients = ours(inputs)
    truth = {"x": x.grad, "weight": layer.weight_ih_l0.grad, "recurrent": layer.weight_hh_l0.grad, "bias": layer.bias_ih_l0.grad}
    assert np.allclose(y.data, theirs.detach().numpy(), rtol=0, atol=2.0**-50)
    for name, gradient in truth.items():                                       # float64, where both differ in the order of sums
        assert np.allclose(gradients[name], gradient.numpy(), rtol=1e-12, atol=1e-13), name


@pytest.mark.parametrize("far", [-1e4, 1e4])
def test_gates_that_saturate_neither_overflow_nor_lose_the_state(far):
    x, weight, recurrent, bias = values(T=3)
    bias = bias + np.repeat([0, far, 0, 0], 5)
    y, gradients = ours((x, weight, recurrent, bias), FLOAT32)
    assert np.isfinite(y.data).all()
    assert all(np.isfinite(g).all() for g in gradients.values())
    if far < 0:                                                                # nothing is kept: each word by itself
        alone = by_formula(x[:, 2:], weight, 0 * recurrent, bias)
        assert np.allclose(ours((x, weight, 0 * recurrent, bias))[0].data[:, 2:], alone, rtol=0, atol=2.0**-50)


def test_what_the_mask_hides_is_passed_by():
    inputs, mask = values(B=1), np.array([[False, True, True, False, True, False]])
    y, gradients = ours(inputs, mask=mask)
    short = by_formula(inputs[0][:, mask[0]], *inputs[1:])[0]
    assert np.allclose(y.data[0], [0 * short[0], short[0], short[1], short[1], short[2], short[2]], rtol=0, atol=2.0**-50)
    assert not gradients["x"][0, ~mask[0]].any()
    assert gradients["x"][0, mask[0]].all()


# --- the classifier

def model_of(recipe="float32", seed=0, **shape):
    return LSTMClassifier(LSTMShape(**(vars(SHAPE) | shape)), PRESETS[recipe], seed)


def test_the_graph_of_a_classification_is_six_nodes_however_long_the_text():
    graph = [at for at in topological(model_of().loss(IDS, LABELS).node) if isinstance(at, Node)]
    assert [at.rule.name for at in reversed(graph)] == ["embedding", "lstm", "slice", "linear", "reshape", "bce_with_logits"]


@pytest.mark.parametrize("left", [False, True])
def test_a_masked_classifier_does_not_see_how_far_a_batch_is_filled_up(left):
    masked, plain = model_of(masked=True), model_of()
    longer = np.pad(IDS, ((0, 0), (3, 0) if left else (0, 3)))
    assert np.array_equal(masked.logits(longer), masked.logits(IDS))
    assert np.array_equal(plain.logits(IDS), masked.logits(IDS))
    assert not np.array_equal(plain.logits(longer), plain.logits(IDS))


@pytest.mark.parametrize("classes", [2, 3])
def test_logits_have_a_column_for_each_class_and_the_loss_is_theirs(classes):
    model = model_of(classes=classes)
    logits = model.logits(IDS)
    assert (logits.shape, logits.dtype, model.logits(IDS[:0]).shape) == ((4, classes), np.float32, (0, classes))
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert model.loss(IDS, LABELS).item() == pytest.approx(-np.log(chances[np.arange(4), LABELS]).mean(), rel=1e-5)


def test_labels_outside_the_classes_are_one_clear_line():
    for classes, wrong in (2, 2), (2, -1), (3, 3):
        with pytest.raises(MiniLLMError, match=rf"labels must lie in 0 ... {classes - 1}, found "):
            model_of(classes=classes).loss(IDS, np.where(LABELS, wrong, 0))
    for name, value in ("classes", 1), ("hidden", 0):
        with pytest.raises(MiniLLMError, match=f"{name} is {value}: it must be at least"):
            model_of(**{name: value})


def test_first_weights_are_keras():
    model = model_of(hidden=16)
    r = model.lstm.recurrent.data
    assert np.allclose(r.T @ r, np.eye(16), atol=16 * 4 * 2.0**-22)            # a QR in float32
    assert model.lstm.bias.data.tolist() == [0.0] * 16 + [1.0] * 16 + [0.0] * 32
    for w, limit in (model.tokens.weight, 0.05), (model.lstm.weight, (6 / 72) ** 0.5), (model.head.weight, (6 / 17) ** 0.5):
        assert 0.7 * limit < abs(w.data).max() <= limit
    assert not model.head.bias.data.any()
    assert model_of(seed=1).tokens.weight.data.tobytes() != model_of().tokens.weight.data.tobytes()
    first = [Maker(seed, FLOAT32).orthogonal(4, 2).data[0, 0] for seed in range(40)]
    assert min(first) < 0 < max(first)                                         # a QR alone has one sign there


@pytest.mark.parametrize("recipe", PRESETS)
def test_every_recipe_trains_every_weight(recipe):
    model = model_of(recipe, channels=32, hidden=32)
    with model.ops.context.no_record():
        model.loss(IDS, LABELS)                                                # makes what quantizers learn
    before = {p.name: p.data for p in model.parameters()}
    trainer = Trainer(objective_of(model), lambda step, micro: (IDS, LABELS), Schedule(20, 1e-2, 1e-2, 0, watch_every=0))
    records = list(trainer.run())
    if recipe == "float16":                                                    # Adam's eps is 0 there
        return
    assert trainer.diverged_at is None
    assert records[-1]["loss"] < records[0]["loss"]
    assert not [p.name for p in model.parameters() if np.array_equal(p.data, before[p.name])]


def test_quantizers_and_products_reach_the_recurrence():
    lstm = RULES["lstm"]
    all_three = {"x", "weight", "recurrent"}
    for name, inputs in ("float32", set()), ("int8-qat", all_three), ("int4-qat", all_three), ("bitnet-b1.58", all_three):
        found = PRESETS[name].bind().plan(lstm, "lstm", 4).quantizers
        assert {what for what, quantizer in zip(lstm.inputs, found, strict=False) if quantizer} == inputs
    assert PRESETS["int8-switchback"].bind().plan(lstm, "lstm", 4).products.name == "int8-switchback"
