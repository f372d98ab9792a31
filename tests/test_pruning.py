"""What pruning takes away, when, that it stays away, and that nothing else is touched."""
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_gpt import batch, bits_of, make, objective_of

from minillm.conversion.int8_model import to_int8, under
from minillm.errors import MiniLLMError
from minillm.hybrid.pruning import cubic, largest, prune
from minillm.recipes import PRESETS
from minillm.rounding import widen
from minillm.training.trainer import Schedule, Trainer

STEPS = 8


def trainer_of(model, steps=STEPS):
    return Trainer(objective_of(model), lambda step, micro: batch(seed=step), Schedule(steps, warmup=0, watch_every=0))


def pruned(recipe="float32", steps=STEPS, **how):
    model = make(recipe)
    trainer = trainer_of(model, steps)
    pruner = prune(model, trainer, every=1, **how)
    return model, trainer, pruner


@given(st.integers(0, 20), st.integers(1, 20), st.integers(0, 60))
def test_the_schedule_is_the_cubic_one(begin, more, step):
    along = min(max(Fraction(step - begin, more), 0), 1)
    exact = Fraction(1, 2) + (Fraction(1, 8) - Fraction(1, 2)) * (1 - along)**3
    assert cubic(step, begin, begin + more, 0.5, 0.125) == pytest.approx(float(exact), rel=8 * 2.0**-53)


@given(st.integers(1, 8), st.integers(1, 8), st.floats(0, 0.5), st.integers(0, 9))
def test_what_stays_is_no_smaller_than_what_goes(rows, fours, share, seed):
    scores = np.random.default_rng(seed).random((rows, 4 * fours), np.float32)
    mask = largest(scores, share, "any")
    assert (~mask).sum() == round(share * scores.size)
    assert scores[~mask].max(initial=0) <= scores[mask].min()
    mask = largest(scores, share, "2:4")
    assert (~mask).sum() == round(share * scores.size)
    each = ~mask.reshape(-1, 4)
    assert each.sum(-1).max() <= 2
    ranks = scores.reshape(-1, 4).argsort(-1).argsort(-1)
    assert ranks[each].max(initial=0) <= 1                                     # of four, only the two lowest
    if share == 0.5:
        assert (each.sum(-1) == 2).all()


RECIPES = ["float32", "float16-mixed", "float16-no-master"]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("how", [{}, {"pattern": "2:4"}, {"score": "movement"}], ids=str)
def test_what_is_away_stays_away_with_its_moments(recipe, how):
    model, trainer, pruner = pruned(recipe, end=4, **how)
    for _ in range(4):
        trainer.advance()
    masks = dict(pruner.masks)
    for _ in range(4):
        trainer.advance()
    assert trainer.skipped == 0
    assert len(masks) == 6 * model.shape.layers                                # the linear layers, not the tables
    for name, w in pruner.weights.items():
        assert w is trainer.objective.optimizer.parameters[name]
        assert (masks[name] == pruner.masks[name]).all()
        assert (~masks[name]).sum() == w.size // 2
        assert not widen(w.data, np.float32)[~masks[name]].any()
        assert np.count_nonzero(w.data[masks[name]]) > 0.45 * w.size
        for slot in trainer.objective.optimizer.slots:
            assert not widen(trainer.objective.optimizer.state[slot][name], np.float32)[~masks[name]].any()
    assert pruner.share == 0.5


def test_moments_in_eight_bits_and_compensations_are_forgotten_too():
    for recipe in ("float32-adam8-dynamic", "bfloat16-kahan"):
        _, trainer, pruner = pruned(recipe, end=2)
        for _ in range(3):
            trainer.advance()
        optimizer = trainer.objective.optimizer
        for name, mask in pruner.masks.items():
            assert not optimizer.recall("m", name)[~mask].any()
            assert not widen(optimizer.weight(name, pruner.weights[name]), np.float32)[~mask].any()


def test_nothing_is_taken_at_a_sparsity_of_0_and_no_bit_differs():
    plain = make("float32")
    unpruned = trainer_of(plain)
    model, trainer, _ = pruned(sparsity=0.0)
    for _ in range(3):
        unpruned.advance()
        trainer.advance()
    assert bits_of(plain.state_dict()) == bits_of(model.state_dict())


def test_movement_is_the_sum_of_minus_gradient_times_weight_whatever_the_loss_scale():
    sums = {}
    _, trainer, pruner = pruned("float16-mixed", score="movement", begin=6, end=7)
    follow, scale = trainer.after_step, trainer.objective.scaler.scale
    weights = {name: w.data.copy() for name, w in pruner.weights.items()}

    def also(gradients):
        for name, w in weights.items():
            sums[name] = sums.get(name, 0) - gradients[name].astype(np.float64) / scale * w
        follow(gradients)
        weights.update({name: w.data.copy() for name, w in pruner.weights.items()})

    trainer.after_step = also
    for _ in range(3):
        trainer.advance()
    for name, exact in sums.items():
        assert np.abs(pruner.moved[name] - exact).max() <= 6 * 2.0**-24 * 3 * max(np.abs(exact).max(), 1e-30) + 1e-38


def test_with_movement_a_weight_may_come_back_as_it_was():
    _, trainer, pruner = pruned(score="movement", end=8, begin=0)
    back = 0
    for _ in range(STEPS):
        before = {name: mask.copy() for name, mask in pruner.masks.items()}
        frozen = {name: values.copy() for name, values in pruner.before.items()}
        trainer.advance()
        for name, mask in pruner.masks.items():
            returned = mask & ~before[name]
            back += returned.sum()
            assert (pruner.weights[name].data[returned] == frozen[name][returned]).all()
    assert back > 0


def test_int8_codes_keep_the_zeros():
    model, trainer, pruner = pruned(end=3)
    for _ in range(4):
        trainer.advance()
    codes = to_int8(under(model, PRESETS["float32"]))
    mask = pruner.masks["block0.mlp.up.weight"]
    assert not codes.block0.mlp.up.codes[~mask].any()
    assert np.count_nonzero(codes.block0.mlp.up.codes) > 0.45 * mask.size


@pytest.mark.parametrize(("how", "words"), [({"pattern": "4:8"}, "4:8"), ({"score": "random"}, "random"),
                                            ({"sparsity": 1.0}, "1.0"),
                                            ({"sparsity": 0.6, "pattern": "2:4"}, "at most 0.5"), ({"end": 9}, "8 steps")])
def test_what_cannot_be_is_said(how, words):
    with pytest.raises(MiniLLMError, match=words):
        pruned(**how)


def test_rows_that_do_not_part_into_fours_are_named():
    model = make("float32", channels=6, heads=2)
    with pytest.raises(MiniLLMError, match="rows of 6 weights"):
        prune(model, trainer_of(model), pattern="2:4")
