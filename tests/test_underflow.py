"""What is said of a step's roundings: zeros counted by hand, exponents as frexp has them, the first value that was not finite."""
import math

import numpy as np
import pytest
from hand_made import by_hand, constant, dot
from tiny_gpt import batch, make, objective_of

from minillm.autograd.rule import RULES
from minillm.autograd.watching import Event, watch
from minillm.formats import FLOAT16, FLOAT32
from minillm.precision.underflow import ExponentHistogram, FirstNotFinite, ZeroedCotangents
from minillm.recipes import PRESETS
from minillm.training.trainer import first_not_finite, training_step

# --- zeros


def weighted(ops, p):
    """The cotangents of w in float16 are 1, 2^-25, 1.5 x 2^-25, 0 and 2^-24."""
    weights = constant([1, 2.0**-25, 1.5 * 2.0**-25, 0, 2.0**-24])
    return ops.sum(ops.mul(ops.cast(ops.cast(p["w"], FLOAT16), FLOAT32), weights))


def test_the_share_of_zeroed_cotangents_is_counted_by_hand():
    objective, seen = by_hand(weighted, {"w": [1.0] * 5}), []
    with watch(zeros := ZeroedCotangents()), watch(lambda e: seen.append((e.phase, e.address.op, e.exact.size))):
        training_step(objective, [()], 0, 0.1)
    cotangents = [(op, size) for phase, op, size in seen if phase == "backward"]
    assert cotangents == [("mul", 1), ("sum", 1), ("mul", 5), ("cast", 5), ("cast", 5), ("gradient", 5)]     # the first: the scale
    # of 22 values one became zero: 2^-25 is half of float16's smallest number, and a tie goes to the even 0. A zero before is none.
    assert (zeros.zeroed, zeros.size, zeros.share) == (1, 22, 1 / 22)


def test_nothing_seen_is_a_share_of_zero():
    assert ZeroedCotangents().share == 0


# --- exponents

POWERS = 2.0 ** np.arange(-149, 128)
BESIDE = [np.nextafter(np.float32(p), np.float32(end)) for p in POWERS for end in (0, math.inf)]
NUMBERS = np.array([*POWERS, *-POWERS, *BESIDE, 0, -0.0, math.inf, -math.inf, math.nan], np.float32)


def test_exponents_are_those_of_frexp():
    histogram = ExponentHistogram()
    histogram(Event("backward", None, NUMBERS, NUMBERS, FLOAT32))
    histogram(Event("forward", None, NUMBERS, NUMBERS, FLOAT32))               # no cotangent
    expected = [math.frexp(x)[1] - 1 for x in NUMBERS.tolist() if math.isfinite(x) and x]
    zeros = sum(x == 0 for x in NUMBERS)
    assert histogram.counts == {e: expected.count(e) for e in set(expected)} | {"zero": zeros}


def test_histograms_add_up_over_events():
    histogram = ExponentHistogram()
    for values in ([1.0, 1.5, 0.0], [1.75, 4.0]):
        histogram(Event("backward", None, np.array(values, np.float32), None, FLOAT32))
    assert histogram.counts == {0: 3, 2: 1, "zero": 1}


# --- who did it

@pytest.mark.parametrize("recipe", PRESETS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_named(recipe, value):
    objective = objective_of(make(recipe))
    weight = objective.optimizer.parameters["block1.mlp.up.weight"]
    weight.data = weight.data.copy()
    weight.data[3, 5] = value
    assert first_not_finite(objective, [batch()], 0, 1.0) == "the weights block1.mlp.up.weight (set by an earlier update)"


@pytest.mark.parametrize(("recipe", "size", "blame"), [
    ("float16-mixed", 3e4, "forward block1.mlp.up/linear (overflow in rounding to float16)"),
    ("float16", 3e4, "forward block1.mlp.up/linear (overflow in rounding to float16)"),
    ("float16-mixed", 1e5, "forward block1.mlp.up/cast (overflow in rounding to float16)"),
    ("bfloat16-mixed", 3.4e38, "forward block1.mlp.up/cast (overflow in rounding to bfloat16)"),
    ("float32", 3e38, "forward block1.mlp.up/linear (not finite as computed)"),
])
def test_the_op_whose_result_overflows_is_named(recipe, size, blame):
    objective = objective_of(make(recipe))
    weight = objective.optimizer.parameters["block1.mlp.up.weight"]
    weight.data = np.where(weight.data > 0, size, -size).astype(weight.data.dtype)
    assert first_not_finite(objective, [batch()], 0, 1.0) == blame


@pytest.mark.parametrize("scale", [2.0**30, 2.0**60])
def test_a_loss_scale_that_is_too_large_overflows_where_cotangents_become_float16(scale):
    blame = first_not_finite(objective_of(make("float16-mixed")), [batch()], 0, scale)
    assert blame == "backward head/linear (overflow in rounding to float16)"   # logits are float16, and the loss above is not


@pytest.mark.parametrize(("op", "blame"), [
    ("mul", "forward mul"), ("sum", "forward sum"), ("mean", "forward mean"),
])
def test_an_op_whose_result_is_not_finite_is_named(op, blame, monkeypatch):
    monkeypatch.setattr(RULES[op], "forward", spoiled(RULES[op].forward))
    assert first_not_finite(by_hand(dot, {"w": [1.0]}), [([[2.0]],)], 0, 1.0) == f"{blame} (not finite as computed)"


@pytest.mark.parametrize(("op", "blame"), [
    ("mean", "backward sum"), ("sum", "backward mul"), ("mul", "backward mean"),
])
def test_the_tensor_whose_cotangent_is_not_finite_is_named(op, blame, monkeypatch):
    monkeypatch.setattr(RULES[op], "backward", spoiled(RULES[op].backward))    # mul: that of the loss scale comes first
    assert first_not_finite(by_hand(dot, {"w": [1.0]}), [([[2.0]],)], 0, 1.0) == f"{blame} (not finite as computed)"


def spoiled(rule):
    """The rule with infinity added to all it gives."""
    def wrong(*inputs, **static):
        y = rule(*inputs, **static)
        return tuple(part + np.float32(math.inf) for part in y) if isinstance(y, tuple) else y + np.float32(math.inf)
    return wrong


def test_a_leaf_whose_cotangent_alone_overflows_is_named():
    # bfloat16 reaches as far as float32; 2^100 x 2^100 does not fit, and is the gradient of nothing but w
    objective = by_hand(lambda ops, p: ops.mul(ops.mul(p["w"], 2.0**100), 2.0**100), {"w": [2.0**-100]})
    assert first_not_finite(objective, [()], 0, 1.0) == "backward w/gradient (not finite as computed)"


def test_a_sum_of_micro_batches_that_overflows_is_named():
    # float16 sums: 3/4 of 40000 fits, the sum of four does not once it is multiplied by a loss scale of 4
    objective = by_hand(dot, {"w": [0.0]}, "float16")
    assert first_not_finite(objective, [([[40000.0]],)] * 4, 0, 4.0) == "accumulate w/gradient (overflow in rounding to float16)"


def test_gradients_whose_squares_overflow_are_blamed_on_their_sum():
    objective = by_hand(dot, {"w": [0.0]})
    assert not training_step(objective, [([[1e30]],)], 0, 1.0).finite
    assert first_not_finite(objective, [([[1e30]],)], 0, 1.0) == "the sum of squared gradients"


def test_only_the_first_is_kept_and_nothing_is_said_of_what_is_finite():
    first = FirstNotFinite()
    assert str(first) == "every value was finite"
    for value in (1.0, math.inf, math.nan):
        first(Event("forward", f"op{value}", np.array([value]), np.array([value]), FLOAT16))
    assert str(first) == "forward opinf (not finite as computed)"


def test_looking_for_it_changes_nothing():
    objective = objective_of(make("float32"))
    before = {name: p.data for name, p in objective.optimizer.parameters.items()}
    assert first_not_finite(objective, [batch()], 0, 2.0**127) != ""
    assert all(p.data is before[name] for name, p in objective.optimizer.parameters.items())
    assert (objective.optimizer.steps, objective.scaler.scale) == (0, 1.0)
