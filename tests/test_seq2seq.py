"""The encoder-decoder: what each side may see, gradients, training under recipes."""
import dataclasses

import numpy as np
import pytest
from tiny_gpt import objective_of

from minillm.autograd.tensor import backward
from minillm.data.special import BEGIN, END, NO_TARGET, PAD
from minillm.errors import MiniLLMError
from minillm.models.seq2seq import Seq2Seq, Seq2SeqShape
from minillm.recipes import PRESETS
from minillm.testing import FLOAT64
from minillm.training.trainer import training_step

SHAPE = Seq2SeqShape(11, layers=2, heads=2, channels=16, context=9, bias=True)
SOURCE = np.array([[5, 6, 7, PAD], [8, 9, 10, 4]], np.int32)
IDS = np.array([[BEGIN, 5, 6], [BEGIN, 7, 8]], np.int32)
TARGETS = np.array([[5, 6, END], [7, END, NO_TARGET]], np.int32)


def make(recipe="float32", seed=0, shape=SHAPE):
    """With weights large enough that every part matters."""
    model, rng = Seq2Seq(shape, PRESETS[recipe] if isinstance(recipe, str) else recipe, seed), np.random.default_rng(seed)
    for p in model.parameters():
        p.data = (p.data + 0.3 * rng.standard_normal(p.shape, np.float32)).astype(p.data.dtype)
    return model


def logits(model, source, ids):
    with model.ops.context.no_record():
        model.ops.context.begin(0)
        return model(source, ids).data


def changed(before, after):
    """Which tokens (B,T) have other logits."""
    return (abs(before - after) > 1e-3).any(-1)


def test_a_token_written_sees_those_before_it_and_not_those_behind():
    model, other = make(), IDS.copy()
    other[0, 2] = 9
    assert changed(logits(model, SOURCE, IDS), logits(model, SOURCE, other)).tolist() == [[False, False, True], [False] * 3]


def test_every_token_written_sees_every_token_of_its_own_source():
    model = make()
    for place in range(3):
        other = SOURCE.copy()
        other[0, place] = 10
        assert changed(logits(model, SOURCE, IDS), logits(model, other, IDS)).tolist() == [[True] * 3, [False] * 3], place


def test_padding_is_seen_by_nobody():
    model = make()
    wider = np.pad(SOURCE, ((0, 0), (0, 3)), constant_values=PAD)
    assert np.allclose(logits(model, SOURCE, IDS), logits(model, wider, IDS), rtol=0, atol=1e-5)    # values about 1, other sums
    filled = wider.copy()
    filled[0, 5] = 7
    assert changed(logits(model, wider, IDS), logits(model, filled, IDS))[0].all()


def test_gradients_are_those_of_differences_in_float64():
    """Along random directions; truncation is h^2 of the third derivative, of size about 1, and rounding 2^-53 / h."""
    model, h = make(dataclasses.replace(PRESETS["float32"], parameters=FLOAT64)), 2.0**-17
    gradients, rng = backward(model.loss(SOURCE, IDS, TARGETS)), np.random.default_rng(1)
    for p in model.parameters():
        direction, start, found = rng.standard_normal(p.shape), p.data, []
        direction /= np.linalg.norm(direction)
        for step in (h, -h):
            p.data = start + step * direction
            model.ops.context.begin(0)
            found.append(model.loss(SOURCE, IDS, TARGETS).item())
        p.data = start
        slope, claimed = (found[0] - found[1]) / (2 * h), float((gradients[p.name] * direction).sum())
        assert abs(slope - claimed) < 256 * h * h, p.name


def test_targets_that_do_not_count_change_nothing():
    model = make()
    model.ops.context.begin(0)
    whole = model.loss(SOURCE, IDS, TARGETS).item()
    parts = [model.loss(SOURCE[i:i + 1], IDS[i:i + 1], TARGETS[i:i + 1]).item() for i in range(2)]
    assert abs(whole - (3 * parts[0] + 2 * parts[1]) / 5) < 1e-5


def test_a_text_longer_than_the_context_is_refused():
    with pytest.raises(MiniLLMError, match="10 tokens do not fit into a context of 9"):
        make().encode(np.ones((1, 10), np.int32))


@pytest.mark.parametrize("recipe", [name for name in PRESETS if name != "float16"])       # there Adam divides by an eps of 0
def test_it_trains_under_every_recipe(recipe):
    model = make(recipe)
    objective = objective_of(model)
    losses = [training_step(objective, [(SOURCE, IDS, TARGETS)], step, 3e-3).loss for step in range(12)]
    assert min(losses[-3:]) < 0.9 * losses[0]


def test_what_is_read_is_as_large_as_what_blocks_write():
    """Tokens and positions of variance 1 each: a deviation of 2^0.5, of 576 values to (2 / 1152)^0.5 of it; the logits near 1."""
    model = Seq2Seq(Seq2SeqShape(64, layers=1, heads=2, channels=64, context=9, scaled=True), PRESETS["float32"])
    ids = np.arange(4, 13, dtype=np.int32)[None]
    with model.ops.context.no_record():
        model.ops.context.begin(0)
        assert model.embed(ids).data.std() == pytest.approx(2**0.5, abs=5 * 2**0.5 / 1152**0.5)
        assert 0.8 < model(ids, ids).data.std() < 1.25
