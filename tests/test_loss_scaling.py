"""Loss scaling reaches every gradient, changes nothing else, and its scale never becomes 0 or infinite."""
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_gpt import batch, bits_of, gradients, make, objective_of, recipe_of, state_bits

from minillm.autograd.watching import watch
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT16, FLOAT32
from minillm.precision.loss_scaling import NO_SCALING, LossScaler, LossScaling, static_scale
from minillm.precision.underflow import ZeroedCotangents
from minillm.training.trainer import training_step

POWERS = [2.0**n for n in (-6, -1, 0, 1, 5, 8, 16)]


def steps(recipe, count=3, micro_batches=1, **changes):
    """The state after some training steps, every bit of it, and the raw gradients of the last."""
    objective, last = objective_of(make(recipe_of(recipe, **changes))), {}
    for step in range(count):
        training_step(objective, [batch(seed=step)] * micro_batches, step, 1e-3, after_step=last.update)
    return state_bits(objective), last


# --- the scale reaches every gradient

@pytest.mark.parametrize("scale", POWERS)
@pytest.mark.parametrize("recipe", ["float32", "bfloat16-mixed"])
def test_raw_gradients_are_exactly_s_times_the_unscaled_ones(recipe, scale):
    plain, scaled = gradients(recipe), gradients(recipe, scale)
    assert bits_of(scaled) == bits_of({name: g * np.float32(scale) for name, g in plain.items()})
    assert all(g.any() for g in plain.values())


@pytest.mark.parametrize("scale", [2.0**-6, 2.0**16])
def test_a_training_step_hands_out_gradients_that_are_scaled(scale):
    _, plain = steps("float32", count=1)
    _, scaled = steps("float32", count=1, loss_scaling=static_scale(scale))
    assert bits_of(scaled) == bits_of({name: g * np.float32(scale) for name, g in plain.items()})


@pytest.mark.parametrize("recipe", ["float32", "bfloat16-mixed"])
@pytest.mark.parametrize("scale", [2.0**-6, 2.0**16])
def test_a_scale_changes_no_bit_of_what_is_learned_where_nothing_underflows(recipe, scale):
    assert steps(recipe)[0] == steps(recipe, loss_scaling=static_scale(scale))[0]


def test_two_micro_batches_of_the_same_windows_are_one_batch():
    # g/2 + g/2 = g exactly
    state, raw = steps("float32", micro_batches=2)
    whole, raw_whole = steps("float32", micro_batches=1)
    assert bits_of(raw) == bits_of(raw_whole)
    assert state == whole


def test_gradients_come_in_the_order_of_the_parameters():
    # the norm is a float32 sum over them: in the order of a set of names it would differ from process to process
    _, raw = steps("float32", count=1, micro_batches=2)
    assert list(raw) == [p.name for p in make("float32").parameters()]


def test_two_micro_batches_are_their_common_batch():
    objective, halves, whole = objective_of(make("float32")), {}, {}
    ids, targets = batch(rows=8)
    training_step(objective, [(ids[:4], targets[:4]), (ids[4:], targets[4:])], 0, 1e-3, after_step=halves.update)
    training_step(objective_of(make("float32")), [(ids, targets)], 0, 1e-3, after_step=whole.update)
    for name, g in whole.items():
        # the same 128 tokens summed in two parts: each of about 40 ops is off by a few roundings of a sum of 128 terms or fewer;
        # 200 roundoffs of the largest entry are sqrt(40 * 128) times 3
        assert abs(halves[name] - g).max() <= 200 * FLOAT32.roundoff * max(abs(g).max(), 1e-3), name


# --- what it is for

def underflow(scale, rows=128):
    """Relative error of all gradients against float32's, and the share of cotangents that rounding made zero, at a scale."""
    truth = gradients("float32", rows=rows)
    with watch(zeros := ZeroedCotangents()):
        found = gradients("float16-mixed", scale, rows)
    error = sum(np.sum((found[name] / np.float32(scale) - g) ** 2, dtype=np.float64) for name, g in truth.items())
    return math.sqrt(error / sum(np.sum(g * g, dtype=np.float64) for g in truth.values())), zeros.share


def test_in_float16_the_scale_matters():
    small, large = gradients("float16-mixed", rows=128), gradients("float16-mixed", 2.0**16, rows=128)
    differ = sum(np.count_nonzero(small[name] != g / np.float32(2.0**16)) for name, g in large.items())
    share = differ / sum(g.size for g in large.values())
    print(f"entries that differ at S = 1 and 2^16: {share:.1%}")
    # a gradient entry sums over 2,048 tokens, and at S = 1 more than 4 % of the cotangents underflow: hardly a sum has none of them
    assert share > 0.8


def test_the_error_falls_as_the_scale_grows():
    errors, zeros = zip(*(underflow(2.0**n) for n in (-4, 0, 8, 14)), strict=True)
    print("relative errors at S = 2^-4, 1, 2^8, 2^14:", *(f"{e:.2g}" for e in errors), "zeros:", *(f"{z:.2g}" for z in zeros))
    assert all(small > large for small, large in itertools.pairwise(errors))
    assert all(small > large for small, large in itertools.pairwise(zeros))
    assert errors[0] > 10 * errors[1] > 20 * errors[2]
    # what is left is float16's own roundoff: about 20 roundings on the way to a gradient, of random sign
    assert errors[-1] < math.sqrt(20) * FLOAT16.roundoff


# --- an overflow touches nothing but the scale

@pytest.mark.parametrize("recipe", ["float32", "float16-mixed"])
def test_an_overflow_touches_neither_weights_nor_moments_nor_the_step_count(recipe):
    model = make(recipe)
    objective = objective_of(model, LossScaler(LossScaling(2.0**8, growth_interval=100)))
    objective.loss = lambda ids, targets: model.loss(ids, targets) * 4         # float32 too overflows at 2^127
    training_step(objective, [batch()], 0, 1e-3)
    before, called = state_bits(objective), []
    objective.scaler.scale = 2.0**127
    result = training_step(objective, [batch()], 1, 1e-3, after_step=called.append)
    assert not result.finite
    assert not math.isfinite(result.norm)
    assert state_bits(objective) == before
    assert (objective.scaler.scale, objective.scaler.clean_steps, called) == (2.0**126, 0, [])


def test_the_scale_comes_down_until_training_goes_on():
    objective = objective_of(make("float16-mixed"), LossScaler(LossScaling(2.0**40)))
    finite = [training_step(objective, [batch()], step, 1e-3).finite for step in range(30)]
    assert finite.index(True) > 10                                             # logits' cotangents overflow above 2^23
    assert all(finite[-5:])
    assert objective.scaler.scale == 2.0 ** (40 - finite.count(False))
    assert objective.optimizer.steps == finite.count(True)


# --- the scaler alone

SETTINGS = st.builds(
    LossScaling, initial=st.integers(0, 127).map(lambda n: 2.0**n), growth=st.sampled_from([1.0, 2.0, 4.0, 2.0**100]),
    backoff=st.sampled_from([0.5, 0.25, 2.0**-100]), growth_interval=st.integers(1, 7))
TRACES = st.one_of(st.lists(st.booleans(), max_size=200), st.integers(0, 400).map(lambda n: [True] * n),
                   st.integers(0, 400).map(lambda n: [False] * n), st.integers(0, 200).map(lambda n: [True, False] * n))


@given(SETTINGS, TRACES)
def test_the_scale_stays_a_power_of_two_between_the_floor_and_the_largest_float32(how, trace):
    scaler = LossScaler(how)
    for finite in trace:
        scaler.update(finite)
        assert how.floor <= scaler.scale <= FLOAT32.max
        assert math.frexp(scaler.scale)[0] == 0.5
        assert np.float32(scaler.scale) * np.float32(1 / scaler.scale) == 1


@given(SETTINGS, TRACES)
def test_it_grows_after_n_clean_steps_in_a_row_and_backs_off_at_once(how, trace):
    scaler, clean = LossScaler(how), 0
    for finite in trace:
        before = scaler.scale
        scaler.update(finite)
        clean = clean + 1 if finite else 0
        grown = before * how.growth if before * how.growth <= FLOAT32.max else before
        due = clean > 0 and clean % how.growth_interval == 0
        assert scaler.scale == (max(1.0, before * how.backoff) if not finite else grown if due else before)
        assert scaler.at_floor == (scaler.scale == 1)


@given(SETTINGS, TRACES, TRACES)
def test_a_saved_state_goes_on_as_if_nothing_had_happened(how, before, after):
    one, other = LossScaler(how), LossScaler(how)
    for finite in before:
        one.update(finite)
    other.load(one.state())
    for finite in after:
        one.update(finite)
        other.update(finite)
    assert one == other


def test_long_runs_end_at_the_ends_of_the_range():
    down, up = LossScaler(LossScaling()), LossScaler(LossScaling(growth_interval=1))
    for _ in range(2000):
        down.update(False)
        up.update(True)
    assert (down.scale, up.scale) == (1.0, 2.0**127)
    assert down.at_floor
    for _ in range(2000):                                                      # and it comes back from there
        down.update(True)
    assert down.scale == 2.0


@given(TRACES)
def test_a_static_scale_stays_what_it_is(trace):
    for how in NO_SCALING, static_scale(2.0**13):
        scaler = LossScaler(how)
        for finite in trace:
            scaler.update(finite)
        assert (scaler.scale, scaler.clean_steps, scaler.at_floor) == (how.initial, 0, True)


def test_the_defaults_are_grad_scalers_with_a_floor():
    assert LossScaling() == LossScaling(2.0**16, True, 2.0, 0.5, 2000, 1.0)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, -math.inf, math.nan, 1e39, 1e-60], ids=str)
def test_a_scale_that_float32_cannot_hold_is_refused(value):
    for refused in (lambda: LossScaling(value), lambda: static_scale(value),
                    lambda: LossScaler(LossScaling()).load({"scale": value, "clean_steps": 0})):
        with pytest.raises(MiniLLMError, match=r"loss scale .* is not a positive normal float32: choose a power of two"):
            refused()


@pytest.mark.parametrize("absurd", [
    {"growth": 0.5}, {"growth": math.nan}, {"growth": math.inf}, {"backoff": 1.0}, {"backoff": 0.0}, {"backoff": -0.5},
    {"backoff": math.nan}, {"growth_interval": 0}, {"growth_interval": -1}, {"floor": 0.0}, {"floor": -1.0}, {"floor": math.inf},
    {"floor": math.nan}, {"floor": 1e-60},
    {"initial": 0.5},                                                          # below the floor: the first overflow would raise it
], ids=str)
def test_settings_that_would_end_at_zero_or_infinity_are_refused(absurd):
    with pytest.raises(MiniLLMError, match="needs growth >= 1, 0 < backoff < 1") as refusal:
        LossScaling(**absurd)
    assert "\n" not in str(refusal.value)
    if "initial" not in absurd:
        LossScaling(dynamic=False, **absurd)                                   # they mean nothing to a static scale
