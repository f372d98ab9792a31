"""The microscope: each count against one made by hand or with Python's fractions, in every phase, and what it may not disturb."""
import math
from fractions import Fraction

import numpy as np
import pytest
from hand_made import by_hand, dot
from tiny_gpt import batch, make, objective_of, state_bits

from minillm import kernels
from minillm.autograd.context import Address
from minillm.autograd.tensor import backward
from minillm.autograd.watching import Event, watch
from minillm.errors import MiniLLMError
from minillm.formats import BFLOAT16, FLOAT4_E2M1, FLOAT8_E4M3, FLOAT16, FLOAT32, FORMATS
from minillm.optim import SGD, AdamW
from minillm.precision.master_weights import lost_updates
from minillm.precision.tally import FATES, Tally, first_beyond, pattern_from, tally
from minillm.precision.underflow import Microscope
from minillm.rounding import round_to, widen
from minillm.training.trainer import accumulate, training_step

HERE = Address("block0", "linear", 0)
FLOATS = [f for f in FORMATS.values() if not f.integer and f.signed]


def event(exact, format, phase="forward", rounded=None, before=None):
    exact = np.asarray(exact, np.float32)
    return Event(phase, HERE, exact, round_to(exact, format) if rounded is None else rounded, format, before=before)


def look(exact, format, **options):
    """The record of one rounding."""
    seen = Tally(format)
    seen.add(event(exact, format, **options))
    return seen.record()


def of(record, *names):
    return tuple(record[name] for name in names)


# --- one rounding

def test_float16s_edges_are_counted_by_hand(kernels):
    e = 2.0**-24
    values = [0, -0.0, e / 2, -e / 2, e * 0.51, e, 3 * e, -2.0**-14, 1, 65504, 65519, 65520, -1e30, math.inf, -math.inf, math.nan]
    record = look(values, FLOAT16)
    # 2^-25 is a tie and becomes 0; 0.51 of the smallest becomes the smallest; 65520 is the tie that becomes infinite
    assert of(record, "values", *FATES) == (16, 2, 3, 0, 2, 4, 1)
    assert record["largest"] == float(np.float32(1e30))
    assert record["headroom"] == pytest.approx(math.log2(65504 / 1e30), abs=1e-6)
    assert record["exponents"] == {-26 + 1: 3, -24: 1, -23: 1, -14: 1, 0: 1, 15: 3, 99: 1, "zero": 2}


def test_what_saturates_is_what_would_have_overflowed(kernels):
    saturating = FORMATS["float8_e4m3_saturate"]
    record = look([448, 460, 464, 464.01, -1e4, math.inf], saturating)          # 464 is a tie, and 448 the even neighbour
    assert of(record, "saturated", "overflowed") == (2, 0)
    assert of(look([448, 464, 464.01, -1e4], FLOAT8_E4M3), "saturated", "overflowed", "infinite", "nan") == (0, 2, 0, 2)
    assert look([6, 6.9, 7, 8], FLOAT4_E2M1)["saturated"] == 2                  # 7 is a tie, and 6 is odd


def test_a_mode_that_stops_at_the_largest_value_saturates(kernels):
    values = np.array([65504, 65510, 65520, 1e9, -1e9], np.float32)
    assert look(values, FLOAT16, rounded=round_to(values, FLOAT16, "toward_zero"))["saturated"] == 3


def test_the_error_is_the_relative_root_mean_square(kernels):
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    halves = round_to(values, FLOAT16)
    error = sum((Fraction(float(r)) - Fraction(float(x))) ** 2 for x, r in zip(values, halves, strict=True))
    size = sum(Fraction(float(x)) ** 2 for x in values)
    assert look(values, FLOAT16)["error"] == pytest.approx(math.sqrt(error / size), rel=1e-12)
    assert look(values, FLOAT32)["error"] == 0
    assert look([1e-40, 1e-30], BFLOAT16)["error"] < BFLOAT16.roundoff         # squares that float32 could not hold
    assert look([3e38, 1, math.inf, math.nan], FLOAT16)["error"] == 0          # over what is finite before and after


@pytest.mark.parametrize("format", FLOATS, ids=repr)
def test_first_beyond_is_where_rounding_leaves_the_format(format):
    if format.overflow == "saturate":
        format = next((f for f in FLOATS if (f.max, f.mantissa_bits) == (format.max, format.mantissa_bits)
                       and f.overflow != "saturate"), format)
    least = first_beyond(format)
    if pattern_from(least) < 0x7F800000:
        at, below = (np.array([pattern_from(least) - i], np.int32).view(np.float32) for i in (0, 1))
        assert round_to(below, format)[0] == format.max
        assert not np.isfinite(round_to(at, format)[0]) or format.overflow == "saturate"
    assert format.max < least <= format.max + format.ulp(format.max)


@pytest.mark.parametrize("format", FLOATS, ids=repr)
def test_kernel_and_twin_give_the_same_bits(format):
    rng = np.random.default_rng(format.bits)
    wild = rng.integers(0, 2**32, 9001, np.uint32).view(np.float32)
    tame = (rng.standard_normal(5003) * 2.0 ** rng.integers(-30, 20, 5003)).astype(np.float32)
    for exact in (wild, tame, np.zeros(0, np.float32), np.float32([[1, 2], [3, 4]]).T, np.array(3.0, np.float32)):
        found = [Tally(format), Tally(format)]
        for seen, count in zip(found, (kernels.load("watching").tally, tally), strict=True):
            for _ in range(2):                                                 # and they go on from where they are
                count(exact, round_to(exact, format), pattern_from(format.tiny), pattern_from(first_beyond(format)), seen.counts,
                      seen.histogram, seen.errors, seen.sizes)
        for name in ("counts", "histogram", "errors", "sizes"):
            one, other = (getattr(seen, name) for seen in found)
            assert one.tobytes() == other.tobytes(), name
        assert found[0].histogram.sum() == 2 * exact.size


def test_exponents_are_right_below_every_power_of_two(kernels):
    powers = 2.0 ** np.arange(-148, 128)
    values = np.concatenate([powers, -powers, np.nextafter(np.float32(powers), np.float32(0))]).astype(np.float32)
    expected = [math.frexp(v)[1] - 1 for v in values.tolist()]
    assert look(values, FLOAT32)["exponents"] == {e: expected.count(e) for e in sorted(set(expected))} | {"zero": 0}


def test_nothing_seen_has_no_numbers_and_doubles_are_refused(kernels):
    record = look(np.zeros((0, 3)), FLOAT16)
    assert of(record, "values", "headroom", "error") == (0, None, None)
    assert look([0.0], FLOAT16)["headroom"] is None
    with pytest.raises(MiniLLMError, match="not of float64"):
        Tally(FLOAT32).add(Event("forward", HERE, np.zeros(3), np.zeros(3), FLOAT32))


# --- lost updates

@pytest.mark.parametrize("format", [FLOAT16, BFLOAT16], ids=repr)
@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_lost_updates_are_those_of_master_weights(format, kind, kernels):
    rng = np.random.default_rng(1)
    objective = by_hand(dot, {"w": rng.standard_normal(500).tolist()},
                        {FLOAT16: "float16-no-master", BFLOAT16: "bfloat16-mixed"}[format])
    parameter = objective.optimizer.parameters["w"]
    parameter.format, parameter.data = format, round_to(parameter.data, format)
    before = widen(parameter.data, np.float32)
    optimizer, exact = kind([parameter]), []
    gradient = {"w": rng.standard_normal(500).astype(np.float32) * 0.1}
    with watch(seen := Microscope()), watch(lambda e: exact.append(e.exact) if e.address.op == "weight" else None):
        optimizer.step(gradient, 2e-3 if kind is SGD else 2e-4)
    row = next(row for row in seen.rows() if row["op"] == "weight")
    assert row["lost"] == round(500 * lost_updates(before, exact[0], format)) > 20
    assert all(row["lost"] == 0 for row in seen.rows() if row["op"] != "weight")


def test_an_update_of_nothing_is_not_lost(kernels):
    weight = np.float16([1, 2, 3])
    assert look([1, 2, 3.0001], FLOAT16, before=weight)["lost"] == 1


# --- a step

def watched_step(recipe="float16-mixed", part="", micros=1):
    objective, seen, events = objective_of(make(recipe)), Microscope(step=7), []
    with watch(seen, part), watch(events.append):
        training_step(objective, [batch(seed=i) for i in range(micros)], 0, 1e-3)
    return seen.rows(), events, objective


@pytest.mark.parametrize("recipe", ["float32", "float16-mixed", "float16", "bfloat16-mixed"])
def test_every_rounding_of_a_step_is_in_a_row(recipe):
    rows, events, _ = watched_step(recipe, micros=2)
    assert {row["phase"] for row in rows} == {"forward", "backward", "accumulate", "update"}
    assert len(rows) == len({(e.phase, e.address) for e in events})            # micro-batches share their addresses
    for row in rows:
        mine = [e for e in events if (e.phase, *e.address) == of(row, "phase", "scope", "op", "number")]
        assert row["step"] == 7
        assert row["values"] == sum(e.exact.size for e in mine) == sum(row["exponents"].values())
        assert row["zeroed"] == sum(np.count_nonzero((e.exact != 0) & (e.rounded == 0)) for e in mine)


def test_a_part_of_the_model_is_watched_by_its_module_or_its_place():
    model = make("float16-mixed")
    assert (model.place, model.blocks[1].place, model.blocks[1].mlp.up.place) == ("", "block1", "block1.mlp.up")
    everything, _, _ = watched_step()
    for part, place in ((model.blocks[1].mlp, "block1.mlp"), ("block0", "block0"), (model, "")):
        rows, events, _ = watched_step(part=part)
        assert rows == [row for row in everything if not place or row["scope"] == place or row["scope"].startswith(f"{place}.")]
        assert {row["phase"] for row in rows} == {"forward", "backward", "accumulate", "update"}
        assert len(events) > len(rows) or not place                            # who watches everything still does
    assert watched_step(part="block")[0] == []                                 # not the beginning of a name: a name


def test_a_places_name_is_not_taken_for_another_that_begins_alike():
    model = make(layers=11)
    with watch(seen := Microscope(), model.blocks[1]):
        backward(model.loss(*batch()))
    assert {row["scope"].split(".")[0] for row in seen.rows()} == {"block1"}


def test_watching_changes_no_bit():
    _, _, watched = watched_step()
    objective = objective_of(make("float16-mixed"))
    training_step(objective, [batch()], 0, 1e-3)
    assert state_bits(objective) == state_bits(watched)


# --- a planted overflow

def halves(loss, weight):
    """An objective of one weight that is float16, and so is all that is made of it."""
    objective = by_hand(loss, {"w": [weight]}, "float16")
    parameter = objective.optimizer.parameters["w"]
    parameter.format, parameter.data = FLOAT16, np.float16([weight])
    return objective


def forward():
    objective = halves(lambda ops, p: ops.mean(ops.mul(ops.mul(p["w"], 300.0), 300.0)), 1.0)
    training_step(objective, [()], 0, 1.0)


def backward_alone():
    objective = halves(lambda ops, p: ops.mean(ops.mul(ops.mul(ops.mul(p["w"], 2.0**-16), 300.0), 300.0)), 1.0)
    backward(objective.loss())


def micro_batches():
    objective, total = halves(dot, 1.0), {}
    for _ in range(2):
        accumulate(total, {"w": np.float16([40000.0])}, objective.optimizer.parameters, FLOAT16)


def update():
    halves(dot, 60000.0).optimizer.step({"w": np.float16([-1.0])}, 30000.0)


@pytest.mark.parametrize(("plant", "blame"), [
    (forward, "forward mul#1 (overflow in rounding to float16)"),
    (backward_alone, "backward mul (overflow in rounding to float16)"),
    (micro_batches, "accumulate w/gradient (overflow in rounding to float16)"),
    (update, "update w/weight (overflow in rounding to float16)"),
], ids=["forward", "backward", "accumulate", "update"])
def test_the_op_that_first_stopped_being_finite_is_named_in_every_phase(plant, blame, kernels):
    with watch(seen := Microscope()):
        plant()
    assert str(seen.first) == blame
    first = next(row for row in seen.rows() if row["infinite"] or row["nan"])
    assert of(first, "phase", "overflowed") == (blame.split()[0], 1)
    assert first["headroom"] < 0


def test_an_overflow_on_the_way_back_is_named(kernels):
    objective = objective_of(make("float16-mixed"))
    with watch(seen := Microscope()):
        objective.ops.context.begin(0)
        backward(objective.loss(*batch()) * 2.0**40)
    assert str(seen.first) == "backward head/linear (overflow in rounding to float16)"
    assert next(row["overflowed"] for row in seen.rows() if row["scope"] == "head" and row["phase"] == "backward") > 0
