"""Unsupervised pre-training, a joint loss and self-training: what is hidden, what moves over, what is added, what is believed."""
import math
from functools import partial

import numpy as np
import pytest
from tiny_gpt import bits_of

from minillm.autograd.tensor import backward
from minillm.data.batches import random_rows
from minillm.data.special import MASK, NO_TARGET, UNKNOWN
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32
from minillm.hybrid.joint import JointModel, joint_trainer, train_jointly
from minillm.hybrid.labels import few_labels
from minillm.hybrid.masking import HIDDEN, REPLACED, masked
from minillm.hybrid.phases import Phase, finish
from minillm.hybrid.pretraining import carry_over, language_model_of, masked_trainer, pretrain
from minillm.hybrid.self_training import pseudo_labels, self_train
from minillm.models.bert import ClassifierShape, EncoderClassifier, MaskedLanguageModel
from minillm.models.lstm import LSTMClassifier, LSTMShape
from minillm.recipes import PRESETS
from minillm.testing import gamma
from minillm.training.trainer import Schedule

V, T = 40, 9
SHAPE = ClassifierShape(V, 2, 2, 16, 24, T, 16, activation="gelu", eps=1e-5, deviation=0.25, classes=3)
RECIPES = ["float32", "float16-mixed", "int8-qat"]


def make(recipe="float32", seed=0, kind=EncoderClassifier):
    return kind(SHAPE, PRESETS[recipe], seed)


def texts(rows=24, seed=0):
    """Ids (rows,T): one that begins, then words of which each follows from the last; and how they end."""
    rng = np.random.default_rng(seed)
    first = rng.integers(5, V, (rows, 1))
    ids = 5 + (first - 5 + np.arange(T)) % (V - 5)
    ids[:, 0] = 1
    ids[rng.integers(0, rows, rows // 4), -2:] = 0
    return ids.astype(np.int32)


def labelled(rows=12):
    """Texts, and a class that is the first word's third of the vocabulary."""
    ids = texts(rows, 1)
    return ids, np.minimum((ids[:, 1] - 5) * 3 // (V - 5), 2).astype(np.int32)


def phase(steps=4, lr=1e-2, batch=8):
    return Phase(Schedule(steps, lr, lr, 0, watch_every=0), batch)


def encoder_of(model):
    heads = ("pool", "head", "dense", "dense_norm", "bias")
    return {name: a for name, a in model.state_dict().items() if name.split(".")[0] not in heads}


# --- hidden words

def test_of_the_words_a_share_is_chosen_and_of_these_most_are_masked_some_replaced_some_left():
    ids = np.random.default_rng(0).integers(0, V, (400, 100), np.int32)
    seen, targets = masked(ids, (1, 2, 3), V, 0.15)
    words, chosen = ids > UNKNOWN, targets != NO_TARGET
    assert seen.dtype == targets.dtype == np.int32
    assert not (chosen & ~words).any()
    assert np.array_equal(targets[chosen], ids[chosen])
    assert np.array_equal(seen[~chosen], ids[~chosen])
    n = chosen.sum()
    replaced = chosen & (seen != MASK) & (seen != ids)
    assert replaced.any()
    assert seen[replaced].min() > UNKNOWN
    other = 1 - 1 / (V - 5)                                                    # a word by chance may be the same
    for found, of, share in ((n, words.sum(), 0.15), ((seen[chosen] == MASK).sum(), n, HIDDEN),
                             (replaced.sum(), n, REPLACED * other),
                             ((seen == ids)[chosen].sum(), n, 1 - HIDDEN - REPLACED * other)):
        assert abs(found / of - share) < 5 * math.sqrt(share * (1 - share) / of)           # five deviations of a binomial


def test_what_is_hidden_hangs_on_the_key_alone():
    ids = texts()
    first, again, others = (masked(ids, key, V) for key in ((0, 1, 2), (0, 1, 2), (0, 1, 3)))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[1], others[1])


def test_common_words_can_be_left_alone():
    ids = texts(400)
    _, targets = masked(ids, (0, 0, 0), V, 0.5, first=20)
    assert targets[targets != NO_TARGET].min() == 20
    assert np.array_equal(ids[targets != NO_TARGET], targets[targets != NO_TARGET])


def test_rows_are_drawn_together_and_by_the_key():
    ids, labels = labelled()
    a, b = (random_rows((ids, labels), 30, (0, 5, 0)) for _ in range(2))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    both = {(*row.tolist(), label) for row, label in zip(ids, labels.tolist(), strict=True)}
    assert {(*row.tolist(), label) for row, label in zip(a[0], a[1].tolist(), strict=True)} <= both
    assert not np.array_equal(a[0], random_rows((ids, labels), 30, (0, 6, 0))[0])


# --- pre-training

@pytest.mark.parametrize("recipe", RECIPES)
def test_the_encoder_moves_over_and_the_heads_stay(recipe):
    model = make(recipe)
    before = model.state_dict()
    language_model = language_model_of(model)
    assert bits_of(encoder_of(language_model)) == bits_of(encoder_of(model))
    assert len(pretrain(model, texts(), phase(2))) == 2
    finish(masked_trainer(language_model, texts(), phase(2)))
    after = model.state_dict()
    assert bits_of(encoder_of(language_model)) == bits_of(encoder_of(model))                # what the same training gives
    assert all((after[name] != before[name]).any() for name in encoder_of(model))
    assert all(np.array_equal(after[name], before[name]) for name in after.keys() - encoder_of(model).keys())


def test_hidden_words_are_guessed_better_and_better():
    losses = [record["loss"] for record in pretrain(make(), texts(), phase(30, batch=16), partial(masked, rate=0.3))]
    assert losses[-1] < 0.95 * losses[0]


def test_weights_are_rounded_into_the_format_of_who_gets_them():
    wide, narrow = make("float32", 1), make("float16-no-master", 2)
    names = carry_over(wide, narrow)
    assert names == sorted(wide.state_dict())
    for name, a in narrow.state_dict().items():
        assert a.dtype == np.float16
        assert np.array_equal(a, wide.state_dict()[name].astype(np.float16))


def test_the_loss_of_hidden_words_is_that_of_all_places():
    model = make(kind=MaskedLanguageModel)
    ids, targets = masked(texts(), (0, 0, 0), V)
    assert model.loss(ids, targets).item() == pytest.approx(model.criterion(model.ops, model(ids), targets).item(),
                                                            rel=gamma(targets.size + V, FLOAT32))


# --- a joint loss

def joint_batch():
    ids, labels = labelled(6)
    hidden, targets = masked(texts(10), (0, 0, 1), V)
    return np.concatenate([ids, hidden]), labels, targets


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_the_joint_gradient_is_the_sum_of_the_two(weight):
    joint, classifier = make(kind=JointModel), make()
    joint.weight, language_model = weight, language_model_of(make())
    carry_over(joint, classifier)
    carry_over(joint, language_model)
    ids, labels, targets = joint_batch()
    together = backward(joint.loss(ids, labels, targets))
    one, other = backward(classifier.loss(ids[:6], labels)), backward(language_model.loss(ids[6:], targets))
    assert together.keys() == one.keys() | other.keys()
    for name, g in together.items():
        apart = one.get(name, 0) + weight * other.get(name, np.float32(0))
        assert np.abs(g - apart).max() <= gamma(ids.size + V, FLOAT32) * max(np.abs(g).max(), 1)


@pytest.mark.parametrize("recipe", RECIPES)
def test_joint_training_lowers_both_losses_under_recipes(recipe):
    model = make(recipe)
    before, few = model.state_dict(), labelled()
    records = train_jointly(model, few, texts(), phase(30), 0.5, unlabelled=8)
    assert records[-1]["loss"] < 0.95 * records[0]["loss"]
    assert (model.logits(few[0]).argmax(1) == few[1]).mean() > 0.8             # a third by chance
    assert all((a != before[name]).any() for name, a in model.state_dict().items())


def test_a_joint_batch_has_labelled_texts_first_and_hidden_words_in_the_others():
    trainer = joint_trainer(make(kind=JointModel), labelled(), texts(), phase(), 5)
    ids, labels, targets = trainer.batch(0, 0)
    assert ids.shape == (13, T)
    assert labels.shape == (8,)
    assert targets.shape == (5, T)
    assert not (ids[:8] == MASK).any()
    assert all(np.array_equal(a, b) for a, b in zip(trainer.batch(3, 0), trainer.batch(3, 0), strict=True))


# --- self-training

class Told:
    """A classifier that says what it is told."""

    def __init__(self, p):
        self.p = np.log(np.asarray(p, np.float32))

    def logits(self, ids):
        return self.p[ids[:, 0]]


def test_only_labels_above_the_threshold_are_believed():
    ids = np.array([[0, 7], [1, 8], [2, 9], [0, 6]], np.int32)
    rows, labels = pseudo_labels(Told([[0.9, 0.05, 0.05], [0.3, 0.5, 0.2], [0.125, 0.125, 0.75]]), ids, 0.6)
    assert np.array_equal(rows, [0, 2, 3])
    assert np.array_equal(labels, [0, 2, 0])
    assert labels.dtype == np.int32


def test_no_text_is_labelled_where_the_model_is_sure_of_none():
    rows, labels = pseudo_labels(Told([[0.5, 0.5]]), np.zeros((70, 3), np.int32), 0.6)
    assert len(rows) == len(labels) == 0
    assert len(pseudo_labels(Told([[0.75, 0.25]]), np.zeros((70, 3), np.int32), 0.6)[0]) == 70


@pytest.mark.parametrize("recipe", RECIPES)
def test_rounds_learn_from_labels_of_the_models_own(recipe):
    model, few, more = make(recipe), labelled(12), texts(80, 3)
    rounds = self_train(model, few, more, phase(12), rounds=2, threshold=0.4)
    assert [r.taken > 0 for r in rounds] == [False, True, True]
    assert [len(r.records) for r in rounds] == [12, 12, 12]
    assert (model.logits(few[0]).argmax(1) == few[1]).mean() > 0.8


def test_without_a_sure_label_a_round_is_plain_training():
    model, few = make(), labelled(12)
    rounds = self_train(model, few, texts(), phase(3, 1e-5), rounds=1, threshold=0.999)
    assert rounds[1].taken == 0
    assert len(rounds[1].records) == 3


def test_a_recurrent_classifier_can_train_itself():
    model = LSTMClassifier(LSTMShape(V, 8, 8, 3, masked=True), PRESETS["float32"])
    assert self_train(model, labelled(), texts(), phase(2), 1, 0.1)[1].taken == len(texts())


# --- few labels, and what cannot be

def test_few_labels_hold_every_class_and_are_drawn_by_the_seed():
    labels = ["rare" if i == 77 else f"class {i % 3}" for i in range(200)]
    some = few_labels(labels, 10, 1)
    assert len(set(some.tolist())) == 10
    assert {labels[i] for i in some} == set(labels)
    assert np.array_equal(some, few_labels(labels, 10, 1))
    assert not np.array_equal(some, few_labels(labels, 10, 2))
    assert np.array_equal(few_labels(labels, 200), np.arange(200))
    assert len(few_labels(np.array([0, 1, 1], np.int32), 2)) == 2


def test_what_cannot_be_is_said():
    model, lstm = make(), LSTMClassifier(LSTMShape(V, 8, 8, 3), PRESETS["float32"])
    for fails, words in ((lambda: pretrain(lstm, texts(), phase()), "no encoder"),
                         (lambda: train_jointly(lstm, labelled(), texts(), phase()), "no encoder"),
                         (lambda: JointModel(SHAPE, PRESETS["float32"], 0, -1.0), "weighs -1.0"),
                         (lambda: masked(texts(), (0,), V, 0.0), "rate of 0.0"),
                         (lambda: masked(texts(), (0,), 5), "vocabulary of 5"),
                         (lambda: MaskedLanguageModel(SHAPE, PRESETS["float32"]).loss(texts(), np.full((24, T), NO_TARGET)),
                          "nothing to guess"),
                         (lambda: carry_over(lstm, model), "do not fit"),
                         (lambda: self_train(model, labelled(), texts(), phase(), 0), "0 rounds"),
                         (lambda: self_train(model, labelled(), texts(), phase(), 1, 1.0), "probability of 1.0"),
                         (lambda: random_rows((texts()[:0],), 4, (0,)), "no rows"),
                         (lambda: few_labels("ab", 1), "1 labels of 2"),
                         (lambda: finish(phase(4, 1e30).trainer(make(), lambda key: labelled())), "diverged")):
        with pytest.raises(MiniLLMError, match=words):
            fails()
