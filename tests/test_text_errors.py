"""Texts with errors in their words, several classifiers that answer as one, and what both make of the share of right answers."""
import math

import numpy as np
import pytest

from minillm.data.tasks import Example
from minillm.data.words import WordTokenizer
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32
from minillm.hybrid.augmentation import dropped
from minillm.hybrid.distillation import distill
from minillm.hybrid.ensemble import Ensemble
from minillm.hybrid.phases import Phase
from minillm.hybrid.robustness import TEXT_ERRORS, accuracy_under_errors, text_with_errors
from minillm.models.bert import ClassifierShape, EncoderClassifier
from minillm.recipes import recipe_named
from minillm.testing import gamma
from minillm.training.readers import LabelReader
from minillm.training.trainer import Schedule

WORDS = [f"word{letter}" for letter in "abcdefghij"]
TEXT = " ".join(np.random.default_rng(0).choice(WORDS, 4000))
IDS = np.array([[1, 7, 9, 11, 3, 0], [1, 5, 30, 39, 6, 8], [1, 4, 4, 0, 0, 0]], np.int32)


def encoder(seed, recipe="float32"):
    shape = ClassifierShape(40, 1, 2, 16, 24, 6, 16, activation="gelu", eps=1e-5, deviation=1.0, classes=3)
    return EncoderClassifier(shape, recipe_named(recipe), seed)


@pytest.mark.parametrize("kind", TEXT_ERRORS)
def test_about_as_many_words_have_an_error_as_asked(kind):
    rate, found = 0.2, text_with_errors(TEXT, kind, 0.2, 5, ["another"]).split()
    assert " ".join(found) == text_with_errors(TEXT, kind, rate, 5, ["another"])
    assert text_with_errors(TEXT, kind, 0.0, 5, ["another"]) == TEXT
    deviation, words = math.sqrt(4000 * rate * (1 - rate)), TEXT.split()
    if kind == "dropped":
        assert abs(len(found) - 4000 * (1 - rate)) < 6 * deviation
        assert text_with_errors(TEXT, kind, rate, 5) == dropped(TEXT, 5, rate)                # one rule for both
    else:
        wrong = [(a, b) for a, b in zip(words, found, strict=True) if a != b]
        share = rate if kind != "swapped" else 2 * rate * (1 - rate) * 0.9       # one neighbour in ten is the same word
        assert abs(len(wrong) - 4000 * share) < 12 * deviation
        assert (sorted(words) == sorted(found)) == (kind == "swapped")
        for before, after in wrong:
            assert kind != "typos" or sum(a != b for a, b in zip(before, after, strict=True)) == 1
            assert kind != "noise" or after == "another"


def test_of_a_text_something_is_left():
    assert all(text_with_errors("alone", "dropped", 0.9, key) == "alone" for key in range(9))
    assert text_with_errors("", "typos", 0.5, 0) == ""


def test_logits_of_an_ensemble_are_the_logarithms_of_mean_probabilities():
    models = [encoder(seed, recipe) for seed, recipe in ((0, "float32"), (1, "float16-mixed"), (2, "float32"))]
    z = np.array([model.logits(IDS) for model in models], np.float64)                          # (3,B,K)
    exact = (np.exp(z) / np.exp(z).sum(-1, keepdims=True)).mean(0)
    found = Ensemble(models).logits(IDS)
    assert found.dtype == np.float32
    assert np.abs(np.exp(found.astype(np.float64)) / exact - 1).max() <= gamma(32, FLOAT32)


def test_accuracy_is_that_of_texts_with_errors():
    """One who answers with the last word is right where no error has come upon it."""
    examples, seen = [Example(f"{a} {b}", b) for a in WORDS for b in WORDS], []

    def last_words(sources):
        seen.extend(sources)
        return [source.split()[-1] for source in sources]

    assert accuracy_under_errors(last_words, examples, "noise", 0.0, words=["other"]) == 1
    share = accuracy_under_errors(last_words, examples, "noise", 0.3, 2, ["other"])
    assert share == sum(source.endswith(e.target) for source, e in zip(seen[100:], examples, strict=True)) / 100
    assert 0.5 < share < 0.9
    assert seen[:100] == [e.source for e in examples]
    assert len({source.startswith("other") for source in seen[100:]}) == 2                     # each has errors of its own


@pytest.mark.parametrize("recipe", ["float32", "float16-mixed", "int8-qat"])
def test_a_classifier_learns_from_an_ensemble_without_labels(recipe):
    teachers, student = [encoder(seed) for seed in (1, 2)], encoder(9, recipe)
    wanted = np.exp(Ensemble(teachers).logits(IDS))
    trainer = Phase(Schedule(40, 1e-2, 1e-3, 0, watch_every=0)).trainer(student, lambda key: (IDS, np.zeros(3, np.int32)))
    distill(student, teachers, trainer, temperature=1.0, soft=1.0)
    apart = [np.abs(np.exp(Ensemble([student]).logits(IDS)) - wanted).max()]
    list(trainer.run())
    apart.append(np.abs(np.exp(Ensemble([student]).logits(IDS)) - wanted).max())
    assert apart[1] < 0.3 * apart[0]


def test_an_answer_of_an_ensemble_is_a_class():
    tokenizer = WordTokenizer(WORDS)
    reader = LabelReader(tokenizer, 6, ("a", "b", "c"))
    found = reader.answers(Ensemble([encoder(0), encoder(1)]), WORDS)
    assert set(found) <= {"a", "b", "c"}
    assert len(found) == len(WORDS)


def test_what_cannot_be_is_said():
    for fails, words in ((lambda: text_with_errors(TEXT, "rain", 0.1, 0), "rain"),
                         (lambda: text_with_errors(TEXT, "typos", 1.0, 0), "rate of 1.0"),
                         (lambda: text_with_errors(TEXT, "noise", 0.1, 0), "0 words")):
        with pytest.raises(MiniLLMError, match=words):
            fails()
