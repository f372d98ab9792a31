"""Weights without a master copy: which updates are lost, and what stochastic rounding and Kahan's compensation save of them."""
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_gpt import batch, make, objective_of, recipe_of

from minillm.autograd.tensor import Tensor
from minillm.autograd.watching import watch
from minillm.errors import MiniLLMError
from minillm.experiments.least_squares import WAYS, least_squares
from minillm.formats import BFLOAT16, FLOAT8_E4M3, FLOAT16, FLOAT32
from minillm.optim import SGD, AdamW
from minillm.precision.loss_scaling import LossScaler, LossScaling
from minillm.precision.master_weights import lost_share, lost_updates, measured_lost_share
from minillm.recipes import from_json, recipe_named, to_json
from minillm.rounding import round_to, widen
from minillm.training.trainer import training_step

NARROW = [FLOAT16, BFLOAT16]
every_narrow = pytest.mark.parametrize("format", NARROW, ids=lambda f: f.name)
every_format = pytest.mark.parametrize("format", [FLOAT16, BFLOAT16, FLOAT8_E4M3], ids=lambda f: f.name)


def plain_sgd(values, format, update, seed=0, name="w"):
    """(weight, optimizer): at lr 1 the update is the negative gradient."""
    w = Tensor(round_to(np.asarray(values, np.float32), format), format, name=name)
    return w, SGD([w], momentum=0.0, update=update, seed=seed)


def wide(array):
    return array.astype(np.float64)


# --- lost updates: the half-point

@every_format
@given(st.floats(-20, 0))
@example(-11.375)
def test_the_share_of_lost_updates_is_the_closed_form(format, log2_ratio):
    # every weight of the binade is asked, so that the count is off by the one in which the share ends; float32's own rounding of
    # the sum, 2^-24, moves that place by 2^-24 / r, a quarter of a weight at most where float16's share ends
    assert abs(measured_lost_share(log2_ratio, format) - lost_share(log2_ratio, format)) <= 1.25 * format.eps


@every_format
def test_the_half_point_lies_between_half_an_ulp_and_a_quarter_of_the_largest_and_the_smallest_weight(format):
    p = format.mantissa_bits                                   # 2^-12 and 2^-11 in float16, 2^-9 and 2^-8 in bfloat16
    assert {FLOAT16: -12, BFLOAT16: -9, FLOAT8_E4M3: -5}[format] == -(p + 2)
    assert measured_lost_share(-(p + 2) - 0.01, format) == 1
    assert measured_lost_share(-(p + 1) + 0.01, format) == 0
    half = -(p + 1) - math.log2(1.5)
    assert lost_share(half, format) == 0.5
    assert measured_lost_share(half - 0.2, format) > 0.5 > measured_lost_share(half + 0.2, format)
    shares = [measured_lost_share(k / 8, format) for k in range(-120, 0)]
    assert all(a >= b for a, b in pairwise(shares))


@every_format
def test_half_of_the_updates_in_the_bin_are_lost_where_weights_are_log_uniform(format):
    # the published form of the figure: a share by bin of log2 |update / weight|. At 2^-(p+2+t) of its weight an update is lost for
    # a share t of log-uniform weights, and 1/2 over the bin
    rng, p, n = np.random.default_rng(0), format.mantissa_bits, 200_000
    weights = widen(round_to((2 ** rng.uniform(0, 1, n)).astype(np.float32), format), np.float32)
    for k, expected in ((-(p + 3), 1), (-(p + 2), 0.5), (-(p + 1), 0)):
        update = weights * (2 ** (k + rng.uniform(0, 1, n))).astype(np.float32)
        found = lost_updates(weights, weights + update, format)
        # 4 sigma, and what rounding weights to the grid moves: at most one weight in 2^p, and ties
        assert abs(found - expected) < 4 * 0.5 / math.sqrt(n) + 2 * format.eps, k


@pytest.mark.usefixtures("kernels")
@every_narrow
def test_the_optimizer_loses_what_the_closed_form_says(format):
    for log2_ratio in np.arange(-format.mantissa_bits - 3, -format.mantissa_bits + 0.1, 0.25):
        weights = np.arange(2**format.mantissa_bits, 2 ** (format.mantissa_bits + 1), dtype=np.float32) * np.float32(format.eps)
        w, optimizer = plain_sgd(weights, format, "nearest_even")
        optimizer.step({"w": -weights * np.float32(2.0**log2_ratio)}, 1.0)
        lost = np.mean(widen(w.data, np.float32) == weights)
        assert abs(lost - lost_share(log2_ratio, format)) <= 1.25 * format.eps


# --- stochastic

@pytest.mark.usefixtures("kernels")
@every_narrow
@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.9])
def test_the_expected_stochastic_update_is_the_exact_one(format, share):
    n, weight = 40_000, 1.5
    update = np.float32(share * format.eps)                    # this share of the way to the next value
    w, optimizer = plain_sgd(np.full(n, weight), format, "stochastic")
    optimizer.step({"w": np.full(n, -update)}, 1.0)
    moved = wide(w.data) - weight
    assert set(np.unique(moved)) == {0.0, format.eps}          # one of the two neighbours
    assert abs(moved.mean() - update) < 4 * format.eps * math.sqrt(share * (1 - share) / n)


def bits_after(update="stochastic", seed=0, name="w", attempts=(0, 1, 2), format=BFLOAT16):
    w, optimizer = plain_sgd(np.ones(100), format, update, seed, name)
    for attempt in attempts:
        optimizer.step({name: np.full(100, 2.0**-9, np.float32)}, 1.0, attempt=attempt)
    return w.data.tobytes()


def test_the_bits_are_those_of_seed_attempt_and_name():
    same = bits_after()
    assert bits_after() == same
    others = [bits_after(seed=1), bits_after(name="v"), bits_after(attempts=(0, 1, 3)), bits_after(attempts=(1, 2, 3))]
    assert len({same, *others}) == 5
    assert len({bits_after("kahan"), bits_after("kahan", seed=1, name="v", attempts=(7, 8, 9))}) == 1


def test_bits_depend_neither_on_kernels_nor_on_other_parameters(monkeypatch):
    found = []
    for kernels, names in (("on", "abc"), ("off", "abc"), ("on", "cb"), ("off", "b")):
        monkeypatch.setenv("MINILLM_KERNELS", kernels)
        leaves = [Tensor(np.ones(100, np.float16), FLOAT16, name=name) for name in names]
        optimizer = AdamW(leaves, update="stochastic", seed=3)
        for _ in range(3):
            optimizer.step({name: np.linspace(-1, 1, 100, dtype=np.float32) for name in names}, 1e-4)
        found.append(optimizer.parameters["b"].data.tobytes())
    assert found[0] == found[1] == found[2] == found[3]


def test_a_training_step_hands_on_the_number_of_its_attempt():
    model = make("float16-stochastic")
    objective = objective_of(model, LossScaler(LossScaling(2.0**127)))
    assert not training_step(objective, [batch()], 0, 1e-3).finite             # an attempt, but no optimizer step
    objective.scaler.scale = 2.0**8
    assert training_step(objective, [batch()], 1, 1e-3).finite
    assert (objective.optimizer.attempt, objective.optimizer.steps) == (1, 1)


# --- Kahan

@pytest.mark.usefixtures("kernels")
@every_narrow
@pytest.mark.parametrize("make_optimizer", [AdamW, SGD])
def test_weight_and_compensation_are_the_exact_sum_each_rounded_once(format, make_optimizer):
    rng = np.random.default_rng(0)
    w = Tensor(round_to(rng.standard_normal(500).astype(np.float32), format), format, name="w")
    optimizer, events = make_optimizer([w], update="kahan"), []
    for _ in range(20):
        before = wide(w.data) + wide(optimizer.state["compensation"]["w"])
        with watch(events.append):
            optimizer.step({"w": rng.standard_normal(500).astype(np.float32)}, 1e-3)
        weight, compensation = events[-2:]
        assert (weight.address.op, compensation.address.op) == ("weight", "compensation")
        assert weight.rounded is w.data
        assert compensation.rounded is optimizer.state["compensation"]["w"]
        for event in (weight, compensation):
            assert event.phase == "update"
            assert event.format is format
            assert np.array_equal(round_to(event.exact, format), event.rounded)
        assert np.array_equal(wide(weight.exact) - wide(w.data), compensation.exact)            # exactly what rounding took
        assert abs(wide(weight.exact) - before).max() < 4e-3 * 20                               # and it went on from the sum


@every_narrow
def test_many_updates_that_would_be_lost_one_by_one(format):
    tiny, n = format.eps / 16, 300                             # an eighth of what could move a weight of 1
    end = {}
    for update in ("nearest_even", "stochastic", "kahan"):
        w, optimizer = plain_sgd(np.ones(400), format, update)
        for attempt in range(n):
            optimizer.step({"w": np.full(400, -tiny, np.float32)}, 1.0, attempt=attempt)
        end[update] = wide(w.data)
    assert (end["nearest_even"] == 1).all()
    # all but the last of each rounding is kept: the compensation has the format's digits too, so a step loses at most
    # u times half an ulp, and the weight itself is within half an ulp of the sum
    assert abs(end["kahan"] - (1 + n * tiny)).max() <= format.eps / 2 + n * format.roundoff * format.eps / 2
    # each step is a draw with deviation of at most a quarter of an ulp (of 1 to 2: the sum stays below 2)
    assert 1 + n * tiny < 2
    sigma = format.eps * math.sqrt(n / 16 * 15 / 16)
    assert abs(end["stochastic"] - (1 + n * tiny)).max() < 5 * sigma           # 400 weights: 4 sigma would be too few
    assert abs(end["stochastic"].mean() - (1 + n * tiny)) < 4 * sigma / math.sqrt(400)


def test_a_float32_weight_has_no_compensation_and_gets_the_same_bits_whichever_way_it_is_written():
    found = []
    for update in ("nearest_even", "stochastic", "kahan"):
        optimizer = AdamW([Tensor(np.ones((3, 4), np.float32), name="w")], update=update)
        assert not optimizer.state.get("compensation")
        for _ in range(3):
            optimizer.step({"w": np.full((3, 4), 0.1, np.float32)}, 1e-3)
        found.append(optimizer.parameters["w"].data.tobytes())
    assert len(set(found)) == 1


# --- as data

def test_a_recipe_says_how_weights_are_written():
    assert to_json(recipe_named("bfloat16-kahan"))["update"] == "kahan"
    assert to_json(recipe_named("float32-adam8-dynamic"))["optimizer_state"] == "dynamic8"
    with pytest.raises(MiniLLMError, match="unknown update 'kahn': did you mean 'kahan'"):
        from_json({"name": "x", "update": "kahn"})
    with pytest.raises(MiniLLMError, match="unknown update"):
        SGD([Tensor(np.zeros(3, np.float32), name="w")], update="up")
    with pytest.raises(MiniLLMError, match="unknown format 'dynamic'"):
        from_json({"name": "x", "optimizer_state": "dynamic"})
    assert recipe_of("float32-adam8-linear").narrowest == 8


@pytest.mark.parametrize("name", ["bfloat16-pure", "bfloat16-stochastic", "bfloat16-kahan", "float16-stochastic", "float16-kahan"])
def test_presets_without_a_master_copy_hold_every_array_in_their_format(name):
    format = BFLOAT16 if name.startswith("bfloat16") else FLOAT16
    objective = objective_of(make(name))
    training_step(objective, [batch()], 0, 1e-3)
    optimizer = objective.optimizer
    assert {p.format for p in optimizer.parameters.values()} == {format}
    for slot, named in optimizer.state.items():
        for array in named.values():
            if format is BFLOAT16 or slot == "compensation":                   # the moments of float16-... stay float32
                assert np.array_equal(round_to(array, format), array), slot
    assert ("compensation" in optimizer.state) == name.endswith("kahan")


# --- bfloat16 SGD

@pytest.fixture(scope="module")
def losses():
    """The mean of the last 20 losses of each way: 400 of 2000 steps. Measured over three problems (seeds of make_problem)."""
    return {name: float(np.mean(record["loss"][-20:])) for name, record in least_squares().items()}


def test_bfloat16_sgd_needs_a_master_copy_a_compensation_or_chance(losses):
    print({name: f"{loss:.2g}" for name, loss in losses.items()})
    noise = 0.01**2                                            # no weights reach less, but for 16 of 1024 degrees of freedom
    assert losses["float32"] == pytest.approx(noise, rel=0.1)  # the mean of 1024 squares: 4 %, and the scatter of SGD
    # working in bfloat16 costs about as much again: 16 weights near 1, each off by 2^-9 times a uniform draw in -1 ... 1
    rounding = 16 * 2.0**-18 / 3 / 2
    for name in ("master weights", "kahan"):
        assert noise < losses[name] < noise + 10 * rounding
    assert losses["kahan"] == pytest.approx(losses["master weights"], rel=0.3)                  # they differ in the last digits
    assert losses["float32"] < losses["stochastic"] < noise + 20 * rounding                     # a value further off at times
    assert losses["nearest"] > 500 * losses["stochastic"]      # 1600 seen: updates of 0.003 |g| fall below half an ulp


def test_every_way_is_there(losses):
    assert set(losses) == set(WAYS)
    assert {w.parameters for w in WAYS.values()} == {FLOAT32, BFLOAT16}


# --- the eps trap

def adam_in_float16(gradient, eps):
    """One step of Adam with every operation in float16."""
    f = np.float16
    g = f(gradient)
    m, v = f(0.1) * g, f(0.01) * (g * g)
    with np.errstate(all="ignore"):
        return f(m / f(0.1)) / (np.sqrt(f(v / f(0.01))) + f(eps))


def first_move(gradient, optimizer, lr=1.0):
    w = next(iter(optimizer.parameters.values()))
    optimizer.step({"w": np.full(w.shape, gradient, w.data.dtype)}, lr)
    return abs(wide(w.data))


def test_eps_1e_8_is_zero_in_float16_and_adam_divides_by_it():
    assert np.float16(1e-8) == 0
    for gradient in (1e-4, 1e-6):                              # squares below 2^-25: v is 0 and m is not
        assert np.isinf(adam_in_float16(gradient, 1e-8))
        assert np.isfinite(adam_in_float16(gradient, 1e-4))
    assert np.isnan(adam_in_float16(0.0, 1e-8))                # 0 / 0, from nothing but zeros
    assert adam_in_float16(1.0, 1e-8) == 1


@every_narrow
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("update", ["nearest_even", "stochastic", "kahan"])
def test_here_eps_is_added_in_float32_and_nothing_divides_by_zero(format, update):
    def adam(state_format):
        w = Tensor(round_to(np.zeros(8, np.float32), format), format, name="w")
        return AdamW([w], eps=1e-8, weight_decay=0.0, state_format=state_format, update=update)
    assert (first_move(0.0, adam(format)) == 0).all()          # 0 / (0 + 1e-8), not 0 / 0
    assert np.isfinite(first_move(1e-6, adam(format), lr=1e-3)).all()
    assert first_move(1e-3, adam(FLOAT32), lr=1e-3) == pytest.approx(1e-3, rel=2 * format.eps)


# --- a moment that cannot fall

def test_a_bfloat16_v_never_falls_at_beta2_0_999():
    # 0.001 of v is less than half an ulp, 2^-9 of it at least: without gradients v stays as it is; at 0.99 it falls
    for format, beta2, falls in ((BFLOAT16, 0.999, False), (BFLOAT16, 0.99, True), (FLOAT16, 0.999, True), (FLOAT32, 0.999, True)):
        p = Tensor(np.zeros(50, np.float32), name="w")
        optimizer = AdamW([p], (0.9, beta2), state_format=format)
        optimizer.step({"w": np.linspace(1, 50, 50, dtype=np.float32)}, 1e-3)
        before = wide(optimizer.state["v"]["w"])
        for _ in range(100):
            optimizer.step({"w": np.zeros(50, np.float32)}, 1e-3)
        ratio = wide(optimizer.state["v"]["w"]) / before
        assert (ratio < 0.95).all() if falls else (ratio == 1).all(), (format, beta2)
