"""The validation loss is the mean over every non-overlapping window, whatever the batches; not finite where the logits are not."""
import math

import numpy as np
import pytest
from tiny_gpt import make

from minillm.autograd.tensor import Tensor
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT16, FLOAT32
from minillm.recipes import PRESETS
from minillm.rounding import widen
from minillm.testing import gamma
from minillm.training import evaluation
from minillm.training.evaluation import validation_loss

IDS = np.random.default_rng(5).integers(0, 19, 16 * 11 + 9, np.int32)         # 11 windows of 16, and 8 ids that fill none
V = 19


def knowing(logits):
    """A model whose logits (V,) for the next token are a function of the token before: a table (V,V)."""
    model = make("float32")
    model.forward = lambda ids: Tensor(logits[ids].astype(np.float32), FLOAT32)
    return model


def loop(model, ids):
    """The same mean as a plain loop in float64 over the model's own logits, one window at a time."""
    T, losses = model.shape.context, []
    with model.ops.context.no_record():
        for start in range(0, len(ids) - T, T):
            model.ops.context.begin(0)
            logits = widen(model(ids[None, start:start + T]).data, np.float32)[0].astype(np.float64)
            for row, target in zip(logits, ids[start + 1:start + T + 1], strict=True):
                losses.append(math.log(np.exp(row - row.max()).sum()) + row.max() - row[target])
    return math.fsum(losses) / len(losses)


def bound(tokens, largest):
    """Cross-entropies up to `largest`, of log-sum-exps over V in float32, averaged in float32 over a batch of `tokens`."""
    return largest * (gamma(tokens, FLOAT32) + gamma(V + 4, FLOAT32))


@pytest.mark.parametrize("recipe", PRESETS)
def test_it_is_the_mean_over_every_non_overlapping_window(recipe, monkeypatch):
    monkeypatch.setattr(evaluation, "EVALUATION_BATCH", 1)                     # as in the loop, so that logits are the same bits
    model = make(recipe)
    loss, tokens = validation_loss(model, IDS)
    assert tokens == 16 * 11
    assert abs(loss - loop(model, IDS)) <= bound(16, math.log(V) + 1)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 10, 11, 12, 1000])
def test_it_does_not_depend_on_how_many_windows_go_in_at_once(size, monkeypatch):
    monkeypatch.setattr(evaluation, "EVALUATION_BATCH", size)
    model = knowing(np.random.default_rng(0).normal(0, 4, (V, V)))
    loss, tokens = validation_loss(model, IDS)
    assert tokens == 16 * 11
    assert abs(loss - loop(model, IDS)) <= bound(16 * min(size, 11), 40)       # of 361 logits from N(0, 4), none is beyond 20


def test_a_real_models_loss_hardly_depends_on_it_either(monkeypatch):
    model, losses = make("float32"), []
    for size in (1, 4, 11):
        monkeypatch.setattr(evaluation, "EVALUATION_BATCH", size)
        losses.append(validation_loss(model, IDS)[0])
    # BLAS may add in another order for another number of rows: about 40 sums of 32 terms below 1 on the way to a logit, two logits
    assert max(losses) - min(losses) <= bound(176, math.log(V) + 1) + 2 * 40 * gamma(32, FLOAT32)


def test_a_smaller_last_batch_weighs_as_many_tokens_as_it_has(monkeypatch):
    monkeypatch.setattr(evaluation, "EVALUATION_BATCH", 10)
    model = knowing(np.tile(np.array([8] + [0] * 18), (V, 1)))                 # sure of token 0
    ids = np.array([0] * 161 + [1] * 16, np.int32)                             # right for 10 windows, wrong in the eleventh
    sure = math.log(1 + 18 * math.exp(-8))
    assert abs(validation_loss(model, ids)[0] - (160 * sure + 16 * (8 + sure)) / 176) <= bound(160, 9)


def test_one_window_is_enough_and_one_id_less_is_not():
    model = make("float32")
    assert validation_loss(model, IDS[:17])[1] == 16
    with pytest.raises(MiniLLMError, match="has 16 tokens, but one window of context 16 needs 17"):
        validation_loss(model, IDS[:16])


def test_it_changes_nothing_and_drops_nothing_out():
    model = make("float32", dropout=0.5)
    before = {p.name: p.data for p in model.parameters()}
    first = validation_loss(model, IDS)
    assert validation_loss(model, IDS) == first == validation_loss(make("float32", dropout=0.0), IDS)
    assert model.ops.context.record
    assert all(p.data is before[p.name] for p in model.parameters())


@pytest.mark.parametrize("recipe", PRESETS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_it_is_not_finite_where_a_weight_is_not(recipe, value):
    model = make(recipe)
    model.tokens.weight.data = model.tokens.weight.data.copy()
    model.tokens.weight.data[3, 5] = value
    loss, tokens = validation_loss(model, IDS)
    assert (math.isnan(loss), tokens) == (True, 176)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_token_that_is_not_finite_is_enough(value, monkeypatch):
    monkeypatch.setattr(evaluation, "EVALUATION_BATCH", 1)
    table, ids = np.zeros((V, V)), np.zeros(16 * 3 + 1, np.int32)
    table[7, 0] = value                                                        # -inf at the target: an infinite loss
    assert math.isfinite(validation_loss(knowing(table), ids)[0])
    ids[-2] = 7                                                                # the last input of the last window
    assert math.isnan(validation_loss(knowing(table), ids)[0])


def test_the_loss_is_taken_in_float32_whatever_the_logits_are():
    model = make("float16")
    logits = np.where(np.arange(V) == 0, 32000, -32000).astype(np.float16)
    model.forward = lambda ids: Tensor(np.tile(logits, (*ids.shape, 1)), FLOAT16)
    assert validation_loss(model, np.full(17, 1, np.int32))[0] == 64000        # in float16 16 of them would have no mean
