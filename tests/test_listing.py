"""What introductions print, put right: a loss scale in float32, which does nothing, and a log of float16 probabilities."""
import math

import numpy as np
import pytest
from hand_made import by_hand
from tiny_gpt import batch, make, objective_of, recipe_of, state_bits

from minillm.autograd.context import PLAIN
from minillm.autograd.rule import RULES
from minillm.autograd.tensor import apply, backward, tensor
from minillm.formats import FLOAT16, FLOAT32
from minillm.precision.loss_scaling import LossScaling, static_scale
from minillm.recipes import PRESETS
from minillm.rounding import round_to
from minillm.testing import rounding_bound
from minillm.training.trainer import training_step

# --- a dynamic loss scale without a float16 policy


def trained(recipe, seeds=range(10), times=1.0, clip=1.0, **changes):
    """Every bit of the state after steps on the batches of these seeds, the loss multiplied; and what the steps came to."""
    model = make(recipe_of(recipe, **changes))
    objective = objective_of(model)
    objective.loss = lambda ids, targets: model.loss(ids, targets) * times
    results = [training_step(objective, [batch(seed=seed)], step, 1e-3, clip) for step, seed in enumerate(seeds)]
    return state_bits(objective), results


def test_the_preset_is_float32_with_keras_constants():
    how = PRESETS["float32-scaled"].loss_scaling
    assert (how.initial, how.growth_interval, how.growth, how.backoff, how.dynamic) == (2.0**15, 2000, 2.0, 0.5, True)
    assert PRESETS["float32-scaled"].narrowest == 32
    assert recipe_of("float32-scaled", name="", about="", loss_scaling=how) == recipe_of(
        "float32", name="", about="", loss_scaling=how)


def test_a_scale_in_float32_changes_no_bit_of_weights_and_moments(kernels):
    assert trained("float32")[0] == trained("float32-scaled")[0]


def test_it_changes_none_either_while_it_grows():
    state, results = trained("float32-scaled", loss_scaling=LossScaling(2.0**15, growth_interval=2))
    assert [math.log2(r.scale) for r in results] == [15, 15, 16, 16, 17, 17, 18, 18, 19, 19]
    assert state == trained("float32")[0]


def test_with_an_overflow_a_step_is_skipped_and_the_weights_are_others():
    # 2^127 times a loss that is multiplied by 8 overflows float32 itself; the skipped batches are lost
    state, results = trained("float32-scaled", times=8.0, loss_scaling=LossScaling(2.0**127))
    assert [r.finite for r in results] == [False] * 3 + [True] * 7
    assert state != trained("float32", times=8.0)[0]


def test_a_history_of_overflows_leaves_no_trace_besides_the_skipped_steps():
    # the batches that were lost are given again
    high, seeds = LossScaling(2.0**127), [0, 0, 0, *range(10)]
    state, results = trained("float32-scaled", seeds, 8.0, clip=0.0, loss_scaling=high)
    assert [r.finite for r in results] == [False] * 3 + [True] * 10
    assert state == trained("float32", times=8.0, clip=0.0)[0]
    # with clipping, unscaling and clipping are one factor: 0.06 x 2^-124, which is subnormal in float32 and loses digits
    assert trained("float32-scaled", seeds, 8.0, loss_scaling=high)[0] != trained("float32", times=8.0)[0]
    assert trained("float32-scaled", seeds[3:], 8.0, loss_scaling=LossScaling(2.0**100))[0] == trained("float32", times=8.0)[0]


def test_a_cotangent_below_float32s_normal_range_is_another_exception():
    # on its way the cotangent is 2^-140 (1 + 2^-23), which is subnormal: float32 drops its last digit, and under 2^15 keeps it
    def loss(ops, p):
        return ops.mul(ops.mul(ops.mul(p["w"], 2.0**100), 2.0**-100 * (1 + 2.0**-23)), 2.0**-40)

    moved = {}
    for scale in (1.0, 2.0**15):
        objective = by_hand(loss, {"w": [0.0]}, scaling=static_scale(scale))
        training_step(objective, [()], 0, 1.0, clip=0.0)
        moved[scale] = objective.optimizer.parameters["w"].data.item()
    assert moved == {1.0: -(2.0**-40), 2.0**15: -(2.0**-40) * (1 + 2.0**-23)}


# --- sigmoid, then binary cross-entropy on probabilities, in float16

HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16)
FINITE = HALVES[np.isfinite(HALVES)]                               # (63488,) f16
FIRST_ONE = 7.625


def in_halves(x):
    """1 / (1 + exp(-x)) with each of the four ops rounded to float16, as a graph in float16 computes it."""
    return 1.0 / (1.0 + apply(RULES["exp"], -x, context=PLAIN))


def rounded_once(x):
    """The sigmoid op: computed in float32, rounded once."""
    return apply(RULES["sigmoid"], x, context=PLAIN)


def bce_of(p, targets):
    """The loss of each value, float32: the values of bce itself, not their mean."""
    with np.errstate(all="ignore"):
        p = p.astype(np.float32)
        return -(targets * np.log(p) + (1 - targets) * np.log(1 - p))


def probabilities(sigmoid):
    return sigmoid(as_half(FINITE)).data


def as_half(x):
    return tensor(x, FLOAT16, name="x")


def test_in_half_ops_a_probability_is_1_from_7_625_on():
    p = probabilities(in_halves)
    assert FINITE[p == 1].min() == FIRST_ONE
    assert np.all(p[FINITE >= FIRST_ONE] == 1)
    assert FINITE[p == 0].max() == -11.09375                                   # exp(11.1) = 66,171 is infinite in float16
    assert p[p < 1].max() == 1 - 2.0**-10


def test_rounded_once_it_is_1_from_8_3203_on():
    p = probabilities(rounded_once)
    assert FINITE[p == 1].min() == np.float16(8.3203125)
    assert FINITE[p == 0].max() == np.float16(-17.34375)
    assert p[p < 1].max() == 1 - 2.0**-11                                      # whose loss is 7.625
    exact = exact_gradient(FINITE, 0)
    assert np.all(np.abs(p - exact) <= rounding_bound(exact, FLOAT16) * (1 + 2.0**-10))


def test_clipping_at_1_minus_1e_7_does_nothing_in_float16():
    assert round_to(1 - 1e-7, FLOAT16) == 1
    assert round_to(1e-7, FLOAT16) == 2 * FLOAT16.smallest_subnormal           # so the lower end is clipped, at 1.19e-7
    assert round_to(1 - 1e-7, FLOAT32) < 1


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_the_loss_of_a_certain_probability_is_infinite_or_nan(target):
    for x, p in zip(FINITE[::7], probabilities(in_halves)[::7], strict=True):
        if p in (0, 1):
            loss = apply(RULES["bce"], tensor([float(p)], FLOAT16), np.array([target]), context=PLAIN).item()
            # right and certain: 0 log 0 is NaN; wrong and certain: -log 0
            assert math.isnan(loss) if p == target else loss == math.inf, x


def gradient_of_logits(loss_of, x, target):
    """d loss / d x for each x by itself, float16: the mean's 1 / size is taken back by the cotangent that goes in."""
    x = as_half(x)
    gradient = backward(loss_of(x, np.full(x.shape, target, np.float32)) * float(x.size))["x"]
    return gradient


def on_probabilities(sigmoid):
    """The loss in float32 of a float16 probability, as a mixed policy computes it."""
    def loss(x, targets):
        return apply(RULES["bce"], sigmoid(x).to(FLOAT32), targets, context=PLAIN)
    return loss


def on_logits(x, targets):
    return apply(RULES["bce_with_logits"], x.to(FLOAT32), targets, context=PLAIN)


def exact_gradient(x, target):
    x = x.astype(np.float64)
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x)))) - target


@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("sigmoid", [in_halves, rounded_once])
def test_gradients_through_a_certain_probability_are_not_finite_on_any_half(sigmoid, target):
    p, g = probabilities(sigmoid), gradient_of_logits(on_probabilities(sigmoid), FINITE, target)
    certain = (p == 0) | (p == 1)
    print(f"{certain.sum()} of {FINITE.size} halves give a probability of 0 or 1, {np.sum(~np.isfinite(g))} no finite gradient")
    wrong = (p == 1 - target) if sigmoid is rounded_once else (p == 1 - target) & (p == 1)
    assert not np.isfinite(g[wrong]).any()
    assert certain.mean() > 0.4                                                # most halves are large numbers or tiny ones


def test_a_probability_above_0_can_have_an_infinite_gradient_too():
    # -1/p overflows float16 for p <= 2^-16 = 1.526e-5: the loss is 11.1 and finite
    x = np.array([-11.0, -11.15, -12.0, -16.0], np.float16)
    p = rounded_once(as_half(x)).data
    assert np.all(p > 0)
    assert np.isfinite(bce_of(p, 1.0)).all()
    g = gradient_of_logits(on_probabilities(rounded_once), x, 1.0)
    assert np.isfinite(g).tolist() == [True, False, False, False]


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_on_logits_every_half_has_a_finite_loss_and_the_right_gradient(target):
    losses = RULES["bce_with_logits"].forward
    x = FINITE.astype(np.float32)
    each = np.array([losses(np, v[None], np.float32([target])) for v in x[::97]])
    assert np.isfinite(each).all()
    g, exact = gradient_of_logits(on_logits, FINITE, target), exact_gradient(FINITE, target)
    # float32 on the way: exp, a sum, a quotient, a difference of numbers near 1, then one rounding to float16
    assert np.all(np.abs(g - exact) <= rounding_bound(exact, FLOAT16) * (1 + 2.0**-9) + 4 * FLOAT32.roundoff)


def test_a_loss_scale_overflows_the_cotangent_of_a_probability_sooner():
    # 1/p times 2^15 over a batch of 25: beyond 65504 for p below 0.02, a logit of -3.9
    scale = 2.0**15 / 25
    for logit, finite in ((-3.8, True), (-4.0, False)):
        x = as_half([logit])
        g = backward(on_probabilities(rounded_once)(x, np.ones(1, np.float32)) * scale)["x"]
        assert np.isfinite(g).all() == finite
