"""The loss-scale clinic: published scalers as published, their known failures from synthetic traces, the trace of a run."""
import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gpt import batch, make, objective_of, recipe_of, state_bits

from minillm.autograd.tensor import backward
from minillm.autograd.watching import watch
from minillm.errors import MiniLLMError
from minillm.experiments.options import TrainOptions
from minillm.experiments.running import shown_scale
from minillm.formats import BFLOAT16, FLOAT8_E4M3, FLOAT16, FLOAT32, FORMATS
from minillm.precision.clinic import (
    Circumstances,
    GradientTrace,
    Sizes,
    TraceStep,
    fate,
    headroom_bits,
    history,
    normal_underflow,
    overflow_limit,
    refusal,
    replay,
    replay_per_layer,
    summary,
    underflow_share,
)
from minillm.precision.loss_scaling import SCALERS, LossScaler, LossScaling, scaler_named, static_scale
from minillm.precision.underflow import ZeroedCotangents
from minillm.recipes import from_json, to_json
from minillm.rounding import round_to
from minillm.training.trainer import Schedule, Trainer, training_step

DYNAMIC = [name for name, how in SCALERS.items() if how.dynamic]
TRACES = st.lists(st.tuples(st.booleans(), st.integers(1, 2500)), max_size=5)            # runs of finite steps and of others


def scales(how, runs):
    """The scale after each step of a trace of runs."""
    scaler = LossScaler(how)
    for finite, count in runs:
        for _ in range(count):
            scaler.update(finite)
            yield scaler.scale


# --- each scaler is the published one

def test_the_presets_are_the_published_constants():
    found = {n: (h.initial, h.growth_interval, h.growth, h.backoff, h.floor, h.ceiling) for n, h in SCALERS.items() if h.dynamic}
    assert found == {
        "minillm": (2.0**16, 2000, 2, 0.5, 1, None), "pytorch": (2.0**16, 2000, 2, 0.5, None, None),
        "apex-amp": (2.0**16, 2000, 2, 0.5, None, 2.0**24), "apex-fp16-utils": (2.0**32, 1000, 2, 0.5, 1, None),
        "keras": (2.0**15, 2000, 2, 0.5, None, None)}
    assert SCALERS["minillm"] == LossScaling()
    assert SCALERS["fixed"] == static_scale(1024.0)


@pytest.mark.parametrize("runs", [
    [(True, 150), (False, 3), (True, 20)], [(False, 170), (True, 9)], [(True, 7), (False, 1)] * 12, [(False, 90), (True, 300)],
], ids=["up", "down", "mixed", "down and up"])
@pytest.mark.parametrize("interval", [1, 3])
def test_pytorchs_scale_is_that_of_its_own_update(runs, interval):
    torch = pytest.importorskip("torch")
    scale, tracker, found = torch.tensor(2.0**16), torch.tensor(0, dtype=torch.int32), {True: torch.zeros(1), False: torch.ones(1)}
    ours = LossScaler(dataclasses.replace(SCALERS["pytorch"], growth_interval=interval))
    for finite in (finite for finite, count in runs for _ in range(count)):
        ours.update(finite)
        torch._amp_update_scale_(scale, tracker, found[finite], 2.0, 0.5, interval)
        assert (ours.scale, ours.clean_steps) == (scale.item(), tracker.item())


def fp16_utils(runs):
    """The rule of apex.fp16_utils: it grows where the iterations since the last overflow are a multiple of 1000."""
    scale, iteration, last_overflow = 2.0**32, 0, -1
    for finite, count in runs:
        for _ in range(count):
            if not finite:
                scale, last_overflow = max(scale / 2, 1), iteration
            elif (iteration - last_overflow) % 1000 == 0:
                scale *= 2
            iteration += 1
            yield scale


@given(TRACES)
def test_growth_by_iterations_since_the_last_overflow_is_growth_by_clean_steps_in_a_row(runs):
    assert list(scales(SCALERS["apex-fp16-utils"], runs)) == list(fp16_utils(runs))


def apex_amp(runs):
    """The rule of apex.amp's LossScaler, which caps at 2^24 and has no floor."""
    scale, unskipped = 2.0**16, 0
    for finite, count in runs:
        for _ in range(count):
            scale, unskipped = (scale, unskipped + 1) if finite else (scale / 2, 0)
            if unskipped == 2000:
                scale, unskipped = min(2.0**24, scale * 2), 0
            yield scale


@given(TRACES)
def test_apex_amps_scale_is_that_of_its_rule(runs):
    assert list(scales(SCALERS["apex-amp"], runs)) == list(apex_amp(runs))


def test_apex_amp_stops_at_its_ceiling_and_goes_below_all_float32_numbers():
    *_, up = scales(SCALERS["apex-amp"], [(True, 2000 * 20)])
    *_, down = scales(SCALERS["apex-amp"], [(False, 16 + 1013)])
    assert up == 2.0**24
    assert 1e-306 < down < 1e-304                                              # as in apex issue 715


def test_keras_has_neither_floor_nor_ceiling():
    assert [*scales(SCALERS["keras"], [(False, 40)])][-1] == pytest.approx(2.98e-8, rel=1e-3)        # measured in Keras 3.15.1
    near = LossScaler(SCALERS["keras"], 2.0**127)
    for finite in [True] * 2000 + [False] * 100:
        near.update(finite)
    assert near.scale == math.inf                                              # half of infinity is infinity


@pytest.mark.parametrize("name", SCALERS)
def test_a_scaler_goes_to_json_and_back_with_its_recipe(name):
    recipe = recipe_of("float16-mixed", loss_scaling=SCALERS[name])
    assert from_json(to_json(recipe)) == recipe
    assert from_json(to_json(recipe) | {"loss_scaling": name}) == recipe


@pytest.mark.parametrize("fields", [
    {"ceiling": 1.0}, {"ceiling": math.inf}, {"ceiling": math.nan}, {"ceiling": "x"}, {"floor": "x"}, {"floor": True},
    {"initial": "65536"}, {"growth_interval": 2.5}, {"growth": None}, {"checked": 1}, {"dynamic": "yes"}, {"initial": None},
], ids=str)
def test_settings_of_the_wrong_kind_are_refused_in_one_line(fields):
    with pytest.raises(MiniLLMError, match=r"loss scaling: .* must be of type|needs growth >= 1") as refusal:
        LossScaling(**fields)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("loss_scaling", [7, "kears", None, ["keras"]], ids=str)
def test_a_loss_scaling_that_is_none_is_refused_in_json(loss_scaling):
    with pytest.raises(MiniLLMError, match=r"name of a scaler|did you mean 'keras'"):
        from_json({"name": "mine", "loss_scaling": loss_scaling})


def test_unknown_scalers_are_named():
    assert scaler_named("keras") is SCALERS["keras"]
    with pytest.raises(MiniLLMError, match="did you mean 'pytorch'"):
        scaler_named("pytorhc")


@pytest.mark.parametrize("name", SCALERS)
@pytest.mark.parametrize("scale", [0.0, math.inf])
def test_a_state_at_0_or_infinity_is_loaded_only_where_a_scaler_can_be_there(name, scale):
    scaler = LossScaler(SCALERS[name])
    if scaler.how.floor is not None and scaler.how.checked:
        with pytest.raises(MiniLLMError, match="not a positive normal float32"):
            scaler.load({"scale": scale, "clean_steps": 0})
    else:
        scaler.load({"scale": scale, "clean_steps": 3})
        assert scaler.state() == {"scale": scale, "clean_steps": 3}
    with pytest.raises(MiniLLMError, match="not a positive normal float32"):
        scaler.load({"scale": math.nan, "clean_steps": 0})


# --- what decides whether a step is finite

@given(st.floats(2.0**-30, 2.0**30), st.integers(-20, 20))
def test_a_step_is_refused_exactly_where_float16_overflows(largest, power):
    scaled = round_to(largest * 2.0**power, FLOAT16)
    assert (refusal(largest, 2.0**power, Circumstances()) == "overflow") == bool(np.isinf(scaled))


@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_the_limit_is_half_an_ulp_beyond_the_largest(beside):
    assert overflow_limit(FLOAT16) == 65520
    value = np.nextafter(np.float32(65520), np.float32(beside * math.inf if beside else 65520))
    assert (refusal(float(value), 1.0, Circumstances()) == "overflow") == bool(np.isinf(round_to(value, FLOAT16)))


def test_formats_in_which_nothing_overflows_to_infinity_are_refused():
    for name in ("float8_e4m3", "float4_e2m1", "int8"):
        with pytest.raises(MiniLLMError, match="no infinity that a scaler could notice"):
            overflow_limit(FORMATS[name])
    assert FLOAT8_E4M3.max == 448


@given(st.integers(-200, 200))
def test_a_scale_is_refused_exactly_where_float32_cannot_hold_it_or_its_inverse(power):
    with np.errstate(all="ignore"):
        scale = np.float64(2.0**power).astype(np.float32)
        usable = scale > 0 and np.isfinite(scale) and np.isfinite(np.float32(1) / scale)
    assert (refusal(1e-30, 2.0**power, Circumstances(BFLOAT16)) == "") == (usable and power < 128)


# --- the known failures, each from a synthetic trace

CLEAN, NOT_FINITE = TraceStep(0.05), TraceStep(math.nan)


def test_a_run_of_bad_steps_takes_the_scale_to_0_where_nothing_stops_it():
    # apex issue 834: forward passes that are not finite, which no scale can mend; after them all would be well again
    trace = [CLEAN] * 10 + [NOT_FINITE] * 200 + [CLEAN] * 3000
    found = {name: replay(trace, SCALERS[name]) for name in DYNAMIC}
    assert {n: fate(r) for n, r in found.items()} == {
        "minillm": "trains", "pytorch": "sinks to 0", "apex-amp": "sinks to 0", "apex-fp16-utils": "trains", "keras": "sinks to 0"}
    first_zero = {n: next((r["step"] for r in found[n] if r["loss_scale"] == 0), None) for n in DYNAMIC}
    # halvings from 2^16 or 2^15 to half of the smallest number, 2^-149 in float32 and 2^-1074 in Python's 64 bits
    assert first_zero == {"minillm": None, "pytorch": 11 + 166, "apex-amp": 11 + 1091, "apex-fp16-utils": None, "keras": 11 + 165}


def test_the_defaults_survive_a_run_of_bad_steps():
    records = replay([CLEAN] * 10 + [NOT_FINITE] * 200 + [CLEAN] * 3000, LossScaling())
    assert [r["step"] for r in records if r["skipped"]] == list(range(11, 211))
    assert (records[210]["loss_scale"], records[-1]["loss_scale"]) == (1, 2)


TINY = [TraceStep(1e-36)] * 250_000          # a loss near 0, as in PyTorch issue 98828: nothing overflows on the way up


def test_a_scale_without_a_ceiling_grows_to_infinity_and_stays():
    records = replay(TINY, SCALERS["keras"])
    assert records[-1]["loss_scale"] == math.inf
    assert fate(records) == "grows to infinity"
    assert sum(r["skipped"] for r in records) == 250_000 - 2000 * 113          # 2^15 needs 113 doublings to leave float32
    assert {r["why"] for r in records if r["skipped"]} == {"the scale itself"}


def test_fp16_utils_swings_between_two_scales_at_the_end_of_float32():
    records = replay(TINY, SCALERS["apex-fp16-utils"])
    last = [r["loss_scale"] for r in records[-5000:]]
    assert set(last) == {2.0**127, 2.0**128}
    assert sum(r["skipped"] for r in records[-5000:]) in (4, 5)                # one after 1000 clean steps


def test_the_defaults_and_pytorchs_do_not_grow_beyond_float32():
    for name in ("minillm", "pytorch"):
        records = replay(TINY, SCALERS[name])
        assert records[-1]["loss_scale"] == 2.0**127
        assert not any(r["skipped"] for r in records)


BURST = [CLEAN] * 100 + [NOT_FINITE] * 40 + [CLEAN] * 1000
DIVIDES = Circumstances(divides=True)


def test_a_small_scale_makes_the_very_steps_that_make_it_smaller():
    # PyTorch issue 40497: after a burst of bad steps the scale is so small that gradients become zero, and a step that divides by
    # their norm is NaN; which halves the scale
    for name in ("pytorch", "apex-amp", "keras"):
        after = replay(BURST, SCALERS[name], DIVIDES)[140:]
        assert all(r["skipped"] for r in after)
        assert after[0]["why"] == "all gradients are zero"
        assert after[-1]["loss_scale"] < 2.0**-149
        assert after[-1]["why"] == "the scale itself"                          # from 2^-128 on, 1/S is infinite


def test_the_defaults_come_out_of_the_circle():
    records = replay(BURST, LossScaling(), DIVIDES)
    assert [r["step"] for r in records if r["skipped"]] == list(range(101, 141))
    assert records[-1]["loss_scale"] == 1


def test_halving_goes_on_where_the_unscaled_gradient_is_what_overflows():
    # PyTorch issue 96755: finite with the scale, not without it. Here the gradients are unscaled into float16.
    trace, pure = [TraceStep(1e5)] * 400, Circumstances(gradients=FLOAT16)
    records = replay(trace, SCALERS["pytorch"], pure)
    assert all(r["skipped"] for r in records)
    assert [records[i]["why"] for i in (0, 16, 17, 200)] == ["overflow", "overflow", "overflow in unscaling", "the scale itself"]
    assert records[-1]["loss_scale"] == 0
    assert replay(trace, LossScaling(), pure)[-1]["loss_scale"] == 1           # no scale helps, and none is wasted
    assert not any(r["skipped"] for r in replay(trace, SCALERS["pytorch"])[17:])         # with float32 gradients one does


def test_a_scaler_that_grows_at_once_swings_between_two_scales():
    # PyTorch issue 98828 has growth_interval=1; 40497 recommends 100
    trace = [TraceStep(0.7)] * 4000                                            # 0.7 x 2^16 fits, 0.7 x 2^17 does not
    for interval in (1, 10, 100):
        records = replay(trace, dataclasses.replace(SCALERS["pytorch"], growth_interval=interval))
        assert {r["loss_scale"] for r in records} == {2.0**16, 2.0**17}
        assert abs(sum(r["skipped"] for r in records) - 4000 / (interval + 1)) <= 1
    assert sum(r["skipped"] for r in replay(trace, LossScaling())) == 1


def test_a_scaler_that_hears_of_overflows_too_late_swings_over_several_scales():
    # as where workers do not wait for one another, apex issue 1135, whose scale goes through 2^-8 ... 2^-11
    trace, late = [TraceStep(0.7)] * 30_000, Circumstances(delay=3)
    for name in ("pytorch", "minillm"):
        records = replay(trace, SCALERS[name], late)
        assert {math.log2(r["loss_scale"]) for r in records} == {13, 14, 15, 16, 17}
        assert sum(r["skipped"] for r in records) / len(records) < 1 / 1500


def test_the_defaults_survive_late_news_of_gradients_that_no_scale_above_1_fits():
    # gradients of 2^24: with a scale below 1 they would fit, and small ones would be lost: the floor refuses, and does not swing
    trace, late = [TraceStep(2.0**24)] * 3000, Circumstances(delay=3)
    assert {r["loss_scale"] for r in replay(trace, SCALERS["apex-amp"], late)[100:]} < {2.0**n for n in range(-13, -7)}
    assert {r["loss_scale"] for r in replay(trace, LossScaling(), late)[100:]} == {1.0}


@given(st.lists(st.tuples(st.one_of(st.floats(0, 1e5), st.just(math.nan), st.just(1e-32)), st.integers(1, 3000)), max_size=6),
       st.booleans(), st.integers(0, 4))
@settings(max_examples=40)
def test_the_defaults_never_leave_the_range_and_always_come_back(runs, divides, delay):
    trace = [TraceStep(largest) for largest, count in runs for _ in range(count)] + [CLEAN] * 50
    records = replay(trace, LossScaling(), Circumstances(divides=divides, delay=delay))
    assert all(1 <= r["loss_scale"] <= 2.0**127 for r in records)
    assert not any(r["skipped"] for r in records[-10:]) or records[-1]["headroom_bits"] < 0          # 40 steps take 2^40 off


# --- underflow

@pytest.mark.parametrize("scale", [1.0, 8.0, 128.0, 1024.0, 65536.0])
@pytest.mark.parametrize(("mean", "deviation"), [(-20, 4), (-24, 3), (-30, 6), (-12, 5)])
def test_the_share_that_underflows_is_the_one_that_the_normal_law_gives(scale, mean, deviation):
    n = 100_000
    g = np.exp2(np.random.default_rng(7).normal(mean, deviation, n)).astype(np.float32)
    zero = np.mean(round_to(g * np.float32(scale), FLOAT16) == 0)
    sizes = Sizes()
    sizes.add(g * np.float32(scale), scale)
    assert underflow_share(sizes.exponents, scale) == zero                     # from exponents alone, exactly
    p = normal_underflow(mean, deviation, scale)
    print(f"mean {mean}, deviation {deviation}, S {scale:g}: {zero:.4%}, expected {p:.4%}")
    assert abs(zero - p) <= 4 * math.sqrt(p * (1 - p) / n) + 1 / n


def test_half_underflows_where_the_mean_is_at_the_limit():
    assert normal_underflow(-25, 3, 1) == 0.5
    assert normal_underflow(-35, 3, 1024) == 0.5
    assert underflow_share({-26: 1, -25: 1, -24: 2}, 1) == 0.25
    assert underflow_share({}, 1) == 0
    assert math.isnan(underflow_share({-3: 1}, 0.0))


@given(st.floats(2.0**-24, 2.0**10), st.integers(-8, 24))
def test_headroom_is_how_many_doublings_are_left(largest, power):
    bits = headroom_bits(largest, 2.0**power)
    assert largest * 2.0**power * 2.0**bits == pytest.approx(FLOAT16.max, rel=1e-9)
    assert math.isnan(headroom_bits(math.nan, 1.0))
    assert headroom_bits(0.0, 1.0) == math.inf


# --- the trace of a real run

def recorded(recipe="float16-mixed", steps=6, **changes):
    """The trace of some steps of a tiny GPT, its objective, and what each step came to."""
    objective = objective_of(make(recipe_of(recipe, **changes)))
    trace = GradientTrace(objective)
    with watch(trace):
        results = [training_step(objective, [batch(seed=step)], step, 1e-3) for step in range(steps)]
    return trace.steps, objective, results


@pytest.mark.parametrize("initial", [2.0**16, 2.0**28])
def test_the_replay_of_a_runs_own_scaler_is_the_run(initial):
    how = LossScaling(initial, growth_interval=2)
    trace, _, results = recorded(steps=12, loss_scaling=how)
    records = replay(trace, how)
    assert [(r["loss_scale"], not r["skipped"]) for r in records] == [(r.scale, r.finite) for r in results]
    assert {r.finite for r in results} == {True, False}
    assert all(r["where"] for r in records if r["skipped"])


def test_a_step_that_overflowed_in_the_run_is_fine_at_a_lower_scale():
    trace, _, results = recorded(steps=3, loss_scaling=static_scale(2.0**28))
    assert not any(r.finite for r in results)
    assert not any(r["skipped"] for r in replay(trace, static_scale(2.0**10)))


def test_what_was_recorded_is_what_was_rounded():
    seen, objective = [], objective_of(make("float16-mixed"))
    with watch(trace := GradientTrace(objective)), watch(lambda e: seen.append(e) if e.phase == "backward" else None):
        training_step(objective, [batch()], 0, 1e-3)
    narrow = [e for e in seen if e.format is FLOAT16]
    largest = max(narrow, key=lambda e: np.abs(e.exact).max())
    (step,) = trace.steps
    assert step.largest == np.abs(largest.exact).max() / 2.0**16
    assert step.where == str(largest.address)
    assert sum(step.exponents.values()) == sum(np.count_nonzero(e.exact) for e in narrow)
    assert max(s.largest for s in step.layers.values()) == step.largest
    assert sum(sum(s.exponents.values()) for s in step.layers.values()) == sum(step.exponents.values())


def test_sizes_do_not_depend_on_the_scale_that_they_were_recorded_at():
    one, other = (recorded("bfloat16-mixed", 1, loss_scaling=static_scale(s))[0][0] for s in (1.0, 2.0**16))
    assert one == other


def test_a_value_that_is_not_finite_stays_the_largest():
    sizes = Sizes()
    for values, largest in (([1.0, -2], 2), ([math.inf], math.inf), ([3], math.inf), ([math.nan], math.nan), ([9, 0], math.nan)):
        sizes.add(np.array(values, np.float32), 1.0)
        assert sizes.largest == largest or (math.isnan(largest) and math.isnan(sizes.largest))
    assert sizes.exponents == {0: 1, 1: 2, 3: 1}


def test_underflow_on_the_trace_is_what_rounding_does_to_the_same_run():
    trace, *_ = recorded(steps=1, loss_scaling=static_scale(2.0**16))
    for scale in (1.0, 8.0, 2.0**-8):
        objective = objective_of(make(recipe_of("float16-mixed", loss_scaling=static_scale(scale))))
        with watch(zeros := ZeroedCotangents()):
            training_step(objective, [batch(seed=0)], 0, 1e-3)
        said = underflow_share(trace[0].exponents, scale) * sum(trace[0].exponents.values())
        # those already lost further up are not counted twice, and sums of subnormal numbers are a little off: within a fifth
        assert zeros.zeroed == pytest.approx(said, rel=0.2, abs=20)


def test_on_a_trained_gpt_the_share_that_underflows_falls_with_the_scale():
    trained, found, exponents = recorded(steps=40)[1], {}, None
    for scale in (2.0**16, 1024.0, 128.0, 8.0, 1.0):
        trained.ops.context.begin(50)
        trained.scaler.scale = scale
        with watch(zeros := ZeroedCotangents()), watch(trace := GradientTrace(trained)):
            backward(trained.loss(*batch(128)) * scale)
        found[scale], exponents = zeros.share, exponents or trace.steps[0].exponents
        print(f"S = {scale:g}: {zeros.share:.3%} became zero, {underflow_share(exponents, scale):.3%} by exponents")
        assert zeros.share == pytest.approx(underflow_share(exponents, scale), rel=0.2, abs=2e-5)
    # measured: 7.8 %, 2.1 %, 0.20 %, 0.03 %, 0.001 % of the cotangents of 2,048 tokens
    assert found[1] > 2 * found[8] > 8 * found[128] > 16 * found[1024] > 32 * found[2.0**16]
    assert 0.05 < found[1] < 0.12
    assert found[2.0**16] < 3e-5


def test_every_layer_with_a_scale_of_its_own_loses_less():
    trace, *_ = recorded(steps=8, loss_scaling=static_scale(2.0**16))
    layers, one = replay_per_layer(trace, margin=4), replay(trace, static_scale(2.0**16))
    assert not any(r["skipped"] for r in layers)
    assert set(layers[0]["scales"].values()) == {1.0}
    assert len(set(layers[-1]["scales"].values())) > 3
    assert all(r["headroom_bits"] > 0 for r in layers[1:])
    assert sum(r["underflow_share"] for r in layers[1:]) <= sum(r["underflow_share"] for r in one[1:])
    for at, before, r in zip(trace[1:], trace, layers[1:], strict=False):
        for name, scale in r["scales"].items():
            assert FLOAT16.max / 2**5 < before.layers[name].largest * scale <= FLOAT16.max / 2**4, (name, at)


def test_a_layer_that_jumps_beyond_the_margin_is_named():
    def at(**largest):
        return TraceStep(max(largest.values()), layers={name: Sizes(size) for name, size in largest.items()})
    records = replay_per_layer([at(a=1.0, b=2.0**-9), at(a=15.0, b=2.0**-9), at(a=1.0, b=2.0**-3), at(a=math.nan, b=1.0)])
    assert [r["where"] for r in records] == ["", "", "b", "a"]
    assert records[1]["scales"] == {"a": 2.0**11, "b": 2.0**20}


def test_a_replay_in_one_row_and_as_lists():
    records = replay([CLEAN] * 3 + [NOT_FINITE] * 2 + [CLEAN] * 20, SCALERS["keras"])
    row = summary(records)
    assert row | {"least_headroom_bits": 0} == {"steps": 25, "skipped": 2, "first_scale": 2.0**15, "last_scale": 2.0**13,
                                                "least_headroom_bits": 0, "fate": "trains"}
    assert row["least_headroom_bits"] == headroom_bits(0.05, 2.0**15)
    lists = history(records)
    assert (lists["skipped"], lists["log2_scale"][:6], lists["fate"]) == ([4, 5], [15, 15, 15, 15, 14, 13], "trains")
    ended = history([{"step": 1, "loss_scale": s, "skipped": True} for s in (1.0, 0.0, None, math.inf)])
    assert ended["log2_scale"] == [0, None, None, None]
    assert FLOAT32.max < math.inf


# --- the published scalers in training

def test_the_command_lines_option_takes_their_names():
    for name, how in SCALERS.items():
        assert TrainOptions(recipe="float16-mixed", loss_scale=name).make_recipe().loss_scaling == how
    grown = TrainOptions(loss_scale="keras", growth_interval=7, scale_floor=2.0).make_recipe().loss_scaling
    assert grown == dataclasses.replace(SCALERS["keras"], growth_interval=7, floor=2.0)
    with pytest.raises(MiniLLMError, match=r"--loss-scale 'kears': give .* keras"):
        TrainOptions(loss_scale="kears")


@pytest.mark.parametrize(("name", "scale", "shown"), [
    ("pytorch", 0.0, "0"), ("apex-amp", 2.0**-1074, "2^-1074"), ("keras", 2.0**-149, "2^-149"), ("keras", math.inf, "infinite")])
def test_a_step_at_a_useless_scale_is_skipped_and_recorded_as_plain_data(name, scale, shown):
    objective = objective_of(make("float16-mixed"), LossScaler(SCALERS[name]))
    objective.scaler.scale = scale
    before = state_bits(objective)
    trainer = Trainer(objective, lambda step, micro: batch(seed=step), Schedule(5, watch_every=1))
    record = trainer.advance()
    assert record["skipped"]
    assert state_bits(objective) == before
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert shown_scale(record["loss_scale"]) == shown
    assert objective.scaler.scale == (math.inf if scale == math.inf else 0)


@pytest.mark.parametrize("name", DYNAMIC)
def test_every_scaler_trains(name):
    objective = objective_of(make(recipe_of("float16-mixed", loss_scaling=SCALERS[name])))
    results = [training_step(objective, [batch()], step, 1e-2) for step in range(25)]
    assert results[-1].loss < results[0].loss - 0.2
    assert sum(not r.finite for r in results) == {"apex-fp16-utils": round(math.log2(2.0**32 / results[-1].scale))}.get(name, 0)
