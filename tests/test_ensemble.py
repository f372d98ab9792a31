"""Averages of probabilities and of weights, distillation, and text with errors."""
import math

import numpy as np
import pytest
from tiny_gpt import batch, bits_of, make, objective_of

from minillm.autograd.tensor import Tensor, backward
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32
from minillm.hybrid.callbacks import after_each
from minillm.hybrid.distillation import distill, divergence
from minillm.hybrid.ensemble import Average, greedy_soup, mean_probabilities, scores, soup
from minillm.hybrid.pruning import prune
from minillm.hybrid.robustness import ERRORS, with_errors
from minillm.rounding import widen
from minillm.testing import gamma
from minillm.training.evaluation import validation_loss
from minillm.training.trainer import Schedule, Trainer

IDS = np.random.default_rng(5).integers(0, 19, 16 * 9 + 1, np.int32)
V = 19


def models(count, recipe="float32"):
    return [make(recipe, seed) for seed in range(count)]


def trainer_of(model, steps=6):
    return Trainer(objective_of(model), lambda step, micro: batch(seed=step), Schedule(steps, warmup=0, watch_every=0))


@pytest.mark.parametrize("recipe", ["float32", "float16-mixed"])
def test_probabilities_are_the_mean_of_softmaxes(recipe):
    ids, _ = batch()
    each = []
    for model in models(3, recipe):
        with model.ops.context.no_record():
            z = widen(model(ids).data, np.float32).astype(np.float64) / 1.5
        each.append(np.exp(z) / np.exp(z).sum(-1, keepdims=True))
    found, exact = mean_probabilities(models(3, recipe), ids, temperature=1.5), np.mean(each, 0)
    assert found.dtype == np.float32
    assert np.abs(found / exact - 1).max() <= gamma(V + 16, FLOAT32)


def test_of_one_model_the_score_is_the_validation_loss_and_of_several_no_worse_than_their_mean():
    several = models(3)
    alone = [scores([model], IDS[:-1], IDS[1:]) for model in several]
    for model, (loss, accuracy) in zip(several, alone, strict=True):
        assert loss == pytest.approx(validation_loss(model, IDS)[0], rel=gamma(64, FLOAT32))
        assert 0 <= accuracy <= 1
    together, _ = scores(several, IDS[:-1], IDS[1:])
    assert together <= np.mean([loss for loss, _ in alone]) + 1e-6             # Jensen: -log is convex


def test_a_soup_is_the_mean_of_weights_in_any_format():
    for recipe in ("float32", "float16-no-master"):
        several = models(3, recipe)
        mixed = {p.name: widen(p.data, np.float32) for p in soup(several).parameters()}
        for name, w in mixed.items():
            each = [widen({p.name: p for p in model.parameters()}[name].data, np.float64) for model in several]
            u = 2.0**-11 if recipe != "float32" else 4 * 2.0**-24
            assert np.abs(w - np.mean(each, 0)).max() <= u * np.abs(each).max()


def test_a_greedy_soup_takes_nobody_who_harms():
    good = make("float32", 0)
    bad = make("float32", 1)
    for p in bad.parameters():
        p.data = p.data * np.float32(20)
    mixed, who = greedy_soup([bad, good, good], lambda model: validation_loss(model, IDS)[0])
    assert who == [1, 2]
    assert bits_of(mixed.state_dict()) == bits_of(good.state_dict())


@pytest.mark.parametrize("decay", [None, 0.75])
def test_a_running_mean_is_the_mean_of_what_it_saw(decay):
    model = make("float32")
    trainer, seen = trainer_of(model), []
    average = Average(model, trainer, decay, begin=1, every=2)
    after_each(trainer, lambda gradients: seen.append(model.tokens.weight.data.astype(np.float64)))
    list(trainer.run())
    seen = seen[1::2]
    exact = seen[0]
    for w in seen[1:]:
        exact = exact + (1 - decay) * (w - exact) if decay else exact
    exact = exact if decay else np.mean(seen, 0)
    assert average.count == 3
    assert np.abs(average.model().tokens.weight.data - exact).max() <= gamma(12, FLOAT32) * np.abs(exact).max()
    assert average.model() is not model


def test_pruning_and_a_mean_go_together():
    model = make("float32")
    trainer = trainer_of(model)
    pruner = prune(model, trainer, every=1, end=2)
    average = Average(model, trainer, begin=3)
    list(trainer.run())
    mask = pruner.masks["block0.mlp.up.weight"]
    assert not average.model().block0.mlp.up.weight.data[~mask].any()
    assert average.count == 3


def test_divergence_is_kullback_and_leiblers_and_its_gradient_the_difference():
    rng = np.random.default_rng(1)
    z, p = rng.standard_normal((5, 7)).astype(np.float32), rng.dirichlet(np.ones(7), 5).astype(np.float32)
    p[0, :3] = 0
    p[0] /= p[0].sum()
    T = 2.0
    wide = z.astype(np.float64) / T
    q = np.exp(wide) / np.exp(wide).sum(-1, keepdims=True)
    exact = np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / q), 0).sum() / 5
    loss = divergence(Tensor(z, FLOAT32, name="z"), p, T)
    assert abs(loss.item() - exact) <= gamma(64, FLOAT32) * 4
    assert np.abs(backward(loss)["z"] - (q - p) / (5 * T)).max() <= gamma(64, FLOAT32)


@pytest.mark.parametrize("recipe", ["float32", "float16-mixed", "int8-qat"])
def test_a_student_comes_nearer_to_its_teachers_who_stay_as_they_are(recipe):
    teachers = models(2)
    for teacher in teachers:
        for p in teacher.parameters():
            p.data = p.data * np.float32(2)
    before = [bits_of(teacher.state_dict()) for teacher in teachers]
    student = make(recipe, 9)
    trainer = Trainer(objective_of(student), lambda step, micro: batch(), Schedule(12, lr=1e-2, warmup=0, watch_every=0))
    distill(student, teachers, trainer, temperature=1.5, soft=1.0)
    losses = [record["loss"] for record in trainer.run()]
    assert losses[-1] < 0.5 * losses[0]
    assert [bits_of(teacher.state_dict()) for teacher in teachers] == before
    assert not any(record for record in losses if not math.isfinite(record))


@pytest.mark.parametrize("soft", [0.25, 1.0])
def test_the_loss_of_a_student_is_put_together_as_published(soft):
    student, teachers, T = make("float32", 9), models(2), 3.0
    trainer = trainer_of(student)
    distill(student, teachers, trainer, T, soft)
    far = divergence(student(batch()[0]), mean_probabilities(teachers, batch()[0], temperature=T), T).item()
    exact = soft * T**2 * far + (1 - soft) * student.loss(*batch()).item()
    assert trainer.objective.loss(*batch()).item() == pytest.approx(exact, rel=gamma(16, FLOAT32))


def test_without_soft_targets_distillation_is_training():
    plain, student = make("float32"), make("float32")
    trainers = [trainer_of(plain), trainer_of(student)]
    distill(student, models(1), trainers[1], soft=0.0)
    losses = [[record["loss"] for record in trainer.run()] for trainer in trainers]
    assert losses[0] == losses[1]
    assert bits_of(plain.state_dict()) == bits_of(student.state_dict())


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_are_as_many_as_asked_and_targets_hold_none(kind):
    ids = np.random.default_rng(0).integers(0, V, 20_001, np.int32)
    clean, true = with_errors(ids, kind, 0.0, V)
    assert (clean == ids[:-1]).all()
    assert (true == ids[1:]).all()
    inputs, targets = with_errors(ids, kind, 0.1, V, seed=3)
    assert (inputs == with_errors(ids, kind, 0.1, V, seed=3)[0]).all()
    deviation = math.sqrt(0.1 * 0.9 / 20_000)
    if kind == "dropped":
        assert abs(len(inputs) / 20_000 - 0.9) < 6 * deviation
        assert len(inputs) == len(targets)
    else:
        assert (targets == ids[1:]).all()
        share = (inputs != ids[:-1]).mean()
        expected = 0.1 if kind == "typos" else 2 * 0.1 * 0.9 * (1 - 1 / V)
        assert abs(share - expected) < 12 * deviation
        assert (np.bincount(inputs, minlength=V) == np.bincount(ids[:-1], minlength=V)).all() == (kind == "swapped")


def test_what_cannot_be_is_said():
    model = make("float32")
    for fails, words in ((lambda: mean_probabilities([], IDS), "no ensemble"),
                         (lambda: scores([model, make("float32", vocabulary=7)], IDS[:-1], IDS[1:]), "no ensemble"),
                         (lambda: soup([model, make("float32", layers=1)]), "different shapes"),
                         (lambda: scores([model], IDS[:5], IDS[:5]), "at least 16"),
                         (lambda: Average(model, trainer_of(model), 1.0), "decay 1.0"),
                         (lambda: Average(model, trainer_of(model), begin=5).model(), "no mean"),
                         (lambda: distill(model, [model], trainer_of(model), temperature=0), "temperature 0"),
                         (lambda: with_errors(IDS, "rain", 0.1, V), "rain"),
                         (lambda: with_errors(IDS, "typos", 1.0, V), "rate of 1.0")):
        with pytest.raises(MiniLLMError, match=words):
            fails()
