"""A generator and a discriminator: samples by the softmax, a gradient through them, two losses, each on weights of its own."""
import dataclasses

import numpy as np
import pytest

from minillm.autograd.context import Context
from minillm.autograd.rule import RULES
from minillm.autograd.rules.sampling import softmax_of_drawn
from minillm.autograd.tensor import apply, backward, tensor
from minillm.data.special import BEGIN
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32
from minillm.hybrid.adversarial import gan_trainer
from minillm.models.gan import GAN, GANShape
from minillm.recipes import PRESETS
from minillm.testing import gamma
from minillm.training.trainer import Schedule

SHAPE = GANShape(11, layers=1, heads=2, channels=16, context=6)
RECIPES = ["float32", "float16-mixed"]


def batch(step=0, micro=0, size=16):
    """Texts of words 5 to 7 in class 0 and 8 to 10 in class 1, behind BEGIN, some shorter than others; a third is hidden."""
    rng = np.random.default_rng((step, micro))
    labels = rng.integers(0, 2, size, np.int32)
    ids = (5 + 3 * labels[:, None] + rng.integers(0, 3, (size, 6))).astype(np.int32)
    ids[:, 0], ids[: size // 2, 5] = BEGIN, 0
    hidden = (rng.random(ids.shape) < 1 / 3) & (ids >= SHAPE.special)
    hidden[0, 1] = True
    return ids, hidden, labels


def make(recipe="float32", **changes):
    return GAN(dataclasses.replace(SHAPE, **changes), PRESETS[recipe])


def weights(gan):
    return {p.name: p.data.copy() for p in gan.parameters()}


# --- samples

def test_a_sample_is_drawn_by_the_softmax_and_is_one_1():
    n, logits = 20_000, np.array([0.0, 1.0, -1.0, 2.0], np.float32)
    drawn = apply(RULES["gumbel_sample"], tensor(np.tile(logits, (n, 1)), name="x"), context=Context()).data
    assert np.array_equal(np.sort(drawn, -1), np.tile(np.float32([0, 0, 0, 1]), (n, 1)))
    p = np.exp(logits) / np.exp(logits).sum()
    assert np.all(abs(drawn.sum(0) - n * p) < 6 * np.sqrt(n * p * (1 - p)))            # six deviations of a binomial


def test_the_gradient_of_a_sample_is_that_of_the_softmax_it_was_drawn_by():
    rng, h = np.random.default_rng(0), 2.0**-17
    x, g, v = rng.standard_normal((3, 4, 5))
    for temperature in (0.5, 1.0, 2.0):
        found, = RULES["gumbel_sample"].backward(np, g, x, temperature=temperature, key=7)
        above, below = ((g * softmax_of_drawn(np, x + step * v, temperature, 7)).sum() for step in (h, -h))
        assert (found * v).sum() == pytest.approx((above - below) / (2 * h), rel=1e-7)    # h^2 is 6e-11, times third derivatives


def test_the_float32_gradient_of_a_sample_is_float64s_up_to_the_rounding_of_its_noise():
    rng = np.random.default_rng(1)
    x, g = rng.standard_normal((2, 50, 7)).astype(np.float32)
    (found,), (exact,) = (RULES["gumbel_sample"].backward(np, g.astype(to), x.astype(to), temperature=0.5, key=7)
                          for to in (np.float32, np.float64))
    # exponents up to 2 (16.7 + 4) with 4 roundings; p is off by twice that and by a sum of 7, and so is p (g - g p) / 0.5
    off = gamma(2 * 4 * 42 + 7 + 7 + 4, FLOAT32)
    assert np.all(abs(found - exact) <= off * 2 * 2 * abs(g).max(-1, keepdims=True))
    assert np.any(found != exact)


def test_samples_depend_on_seed_step_and_place_and_pass_nan_on():
    ops = PRESETS["float32"].bind(3)

    def drawn(step, x=None):
        ops.context.begin(step)
        return ops.gumbel_sample(tensor(np.zeros((40, 9), np.float32) if x is None else x)).data

    assert np.array_equal(drawn(1), drawn(1))
    assert not np.array_equal(drawn(1), drawn(2))
    assert np.isnan(drawn(1, np.array([[0, np.nan, 1]], np.float32))).all()


# --- the pair

@pytest.mark.parametrize("recipe", RECIPES)
def test_the_generator_is_taught_by_the_discriminator(recipe):
    gan, (ids, hidden, labels) = make(recipe), batch()
    gan.ops.context.begin(0)
    found = backward(gan.fooling_loss(gan(ids, hidden, labels), ids, hidden, labels) * 2.0**10)
    taught = {name for name, g in found.items() if np.any(g != 0)}
    assert {p.name for p in gan.generator.parameters()} <= {name.removeprefix("generator.") for name in taught}


@pytest.mark.parametrize("recipe", [*RECIPES, "bfloat16-mixed", "int8-qat"])
def test_a_pair_moves_every_weight_of_both(recipe):
    gan = make(recipe)
    before, trainer = weights(gan), gan_trainer(gan, batch, Schedule(12, 1e-2, 1e-3, 2, watch_every=0))
    records = list(trainer.run())
    assert trainer.diverged_at is None
    assert {name for name, w in weights(gan).items() if np.array_equal(w, before[name])} == set()
    assert records[-1]["loss"] < records[0]["loss"]


def test_each_loss_moves_its_own_side_only():
    gan = make()
    trainer, before = gan_trainer(gan, batch, Schedule(1, 1e-2, 1e-2, 0, watch_every=0)), weights(gan)
    trainer.rest.clear()
    trainer.advance()
    moved = {name.split(".")[0] for name, w in weights(gan).items() if not np.array_equal(w, before[name])}
    gan.ops.context.begin(0)
    assert moved == {"generator"}
    assert {name.split(".")[0] for name in backward(gan.discriminator_loss(*batch()))} == {"discriminator"}


def test_a_generator_learns_from_the_discriminator_alone():
    gan, (ids, hidden, labels) = make(), batch(99, size=64)

    def fitting():
        """The share of words written that are of the class."""
        return ((gan.write(ids, hidden, labels, 0)[hidden] - 5) // 3 == np.repeat(labels, hidden.sum(1))).mean()

    first = fitting()
    trainer = gan_trainer(gan, batch, Schedule(120, 1e-2, 1e-3, 5, watch_every=0))
    trainer.objective.loss = lambda *batch: gan.fooling_loss(gan(*batch), *batch)           # no word is told
    list(trainer.run())
    assert fitting() > first + 0.2                             # of 400 words; by chance half fit, with a deviation of 0.03


def test_it_writes_what_is_hidden_and_nothing_special():
    gan, (ids, hidden, labels) = make(), batch()
    written = gan.write(ids, hidden, labels, 5)
    assert np.array_equal(written[~hidden], ids[~hidden])
    assert written[hidden].min() >= SHAPE.special
    assert np.array_equal(written, gan.write(ids, hidden, labels, 5))
    assert not np.array_equal(written, gan.write(ids, hidden, labels, 6))
    assert written.dtype == np.int32


def test_a_batch_without_a_hidden_word_is_one_clear_line():
    ids, hidden, labels = batch()
    with pytest.raises(MiniLLMError, match="every target is the ignored one"):
        make().generator_loss(ids, hidden & False, labels)


def test_the_losses_are_float32():
    gan = make("float16-mixed")
    assert gan.generator_loss(*batch()).format is gan.discriminator_loss(*batch()).format is FLOAT32
