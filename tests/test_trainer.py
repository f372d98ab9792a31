"""The training step and the loop around it: what an attempt touches, what an overflow leaves alone, when a run is given up."""
import json
import math

import numpy as np
import pytest
from hand_made import by_hand, constant, dot, values
from tiny_gpt import batch, make, objective_of, recipe_of, state_bits

from minillm.autograd.tensor import backward, tensor
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32
from minillm.optim import SGD
from minillm.precision.loss_scaling import NO_SCALING, LossScaler, LossScaling, static_scale
from minillm.recipes import PRESETS
from minillm.testing import FLOAT64, gamma
from minillm.training.checkpoint import save_state
from minillm.training.trainer import ACCUMULATIONS, PATIENCE, Objective, Schedule, Trainer, training_step


def trainer_of(recipe="float32", steps=6, watch_every=0, accumulate=1, scaling=None, dropout=0.0, **changes):
    """A trainer of the tiny GPT on random tokens; the fields of its recipe may be changed."""
    model = make(recipe_of(recipe, **changes), dropout=dropout)
    objective = objective_of(model, scaling and LossScaler(scaling))
    schedule = Schedule(steps, warmup=2, accumulate=accumulate, watch_every=watch_every)
    return Trainer(objective, lambda step, micro: batch(seed=100 * step + micro), schedule)


def hand_trainer(xs, scaling=NO_SCALING, w=0.0):
    """A trainer of one weight on x w, one x an attempt, the last one for ever."""
    return Trainer(by_hand(dot, {"w": [w]}, scaling=scaling), lambda step, micro: ([[xs[min(step, len(xs) - 1)]]],),
                   Schedule(1000, 1e-3, 1e-3, 0, 0, watch_every=0))


# --- every recipe

@pytest.mark.parametrize("recipe", PRESETS)
def test_every_recipe_moves_every_weight_or_says_where_it_diverged(recipe):
    trainer = trainer_of(recipe, steps=25)
    before = {name: p.data for name, p in trainer.objective.optimizer.parameters.items()}
    records = list(trainer.run())
    if recipe == "float16":                                    # Adam's v underflows, and an update is some m / 1e-8
        assert trainer.diverged_at == len(records) <= 10
        assert trainer.blame == records[-1]["first_not_finite"]
        assert records[-1]["loss"] is None
        return
    assert (trainer.diverged_at, trainer.blame, trainer.step, len(records)) == (None, None, 25, 25)
    parameters = trainer.objective.optimizer.parameters
    assert all(np.isfinite(p.data).all() for p in parameters.values())
    # gains start at 1, where the next bfloat16 lies 2^-8 below: to nearest, no update of 1e-3 is half of that
    stuck = {name for name in parameters if name.endswith("gain")} if recipe == "bfloat16-pure" else set()
    assert {name for name, p in parameters.items() if not np.any(p.data != before[name])} == stuck
    assert trainer.objective.optimizer.steps == 25 - trainer.skipped


@pytest.mark.parametrize("recipe", PRESETS)
def test_records_are_plain_and_complete(recipe):
    for record in trainer_of(recipe, steps=4, watch_every=2).run():
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        expected = {"step", "loss", "lr", "norm", "loss_scale", "skipped"}
        expected |= {"zero_gradient_share"} if record["step"] % 2 == 0 else set()
        assert record.keys() - {"first_not_finite"} == expected
        assert ("first_not_finite" in record) == record["skipped"]


def test_attempts_and_the_schedule_are_counted_from_the_first():
    trainer = trainer_of(steps=9)
    records = list(trainer.run())
    assert [r["step"] for r in records] == list(range(1, 10))
    assert [r["lr"] for r in records] == [trainer.schedule.lr_at(step) for step in range(9)]


# --- an overflow

@pytest.mark.parametrize("recipe", PRESETS)
@pytest.mark.parametrize("dynamic", [True, False])
def test_an_overflow_leaves_every_bit_alone_and_halves_a_dynamic_scale(recipe, dynamic):
    trainer = trainer_of(recipe, steps=3, scaling=LossScaling(2.0**8, dynamic), accumulate=2, eps=1e-4)
    loss = trainer.objective.loss
    trainer.objective.loss = lambda *batch: loss(*batch) * 4   # so that float32 and bfloat16 overflow at 2^127, too
    assert not trainer.advance()["skipped"]
    before, scaler = state_bits(trainer.objective), trainer.objective.scaler
    scaler.scale, scaler.clean_steps = 2.0**127, 7
    record = trainer.advance()
    assert (record["skipped"], record["norm"], record["loss_scale"]) == (True, None, 2.0**127)
    assert record["loss"] > 0                                  # the loss itself is as finite as ever
    assert state_bits(trainer.objective) == before
    assert (scaler.scale, scaler.clean_steps) == ((2.0**126, 0) if dynamic else (2.0**127, 7))
    assert (trainer.skipped, trainer.in_a_row, trainer.step, trainer.diverged_at) == (1, 1, 2, None)
    scaler.scale = 2.0**8
    assert not trainer.advance()["skipped"]
    assert state_bits(trainer.objective) != before
    assert (trainer.skipped, trainer.in_a_row) == (1, 0)


def test_after_a_skipped_attempt_batch_and_keys_are_new_ones():
    trainer = trainer_of("float16-mixed", steps=12, scaling=LossScaling(2.0**26), dropout=0.1, accumulate=2)
    asked, opened, draw = [], [], trainer.batch
    trainer.batch = lambda step, micro: asked.append((step, micro)) or draw(step, micro)
    context = trainer.objective.ops.context
    begin = context.begin
    context.begin = lambda step, micro=0: opened.append((step, micro)) or begin(step, micro)
    skipped = [record["skipped"] for record in trainer.run()]
    assert (skipped[0], skipped[-1]) == (True, False)
    attempts = [step for step, skip in enumerate(skipped) for _ in range(1 + skip)]      # one more to name the op that overflowed
    assert asked == [(step, micro) for step in attempts for micro in range(2)]
    assert [step for step, micro in opened if micro == 0] == attempts


# --- micro-batches

@pytest.mark.parametrize("recipe", ["float32", "float16"])
def test_micro_batches_are_one_big_batch_exactly_where_arithmetic_is_exact(recipe):
    rows = np.random.default_rng(0).integers(-8, 9, (16, 5))   # sums of 16 are below 2^8, means of them multiples of 2^-4
    whole, parts = (by_hand(dot, {"w": [1, 2, 3, 4, 5]}, recipe) for _ in range(2))
    first = training_step(whole, [(rows,)], 0, 1.0, clip=0)
    second = training_step(parts, [(rows[i:i + 4],) for i in range(0, 16, 4)], 0, 1.0, clip=0)
    assert values(parts) == values(whole) == {"w": ([1, 2, 3, 4, 5] - rows.mean(0)).tolist()}
    assert second == first
    assert second.loss == (rows @ [1, 2, 3, 4, 5]).mean()


def test_the_division_by_micro_batches_comes_before_the_backward_pass():
    # sums are kept in float16: four gradients of 40000 are 160000, beyond 65504, unless each is divided by four first
    objective = by_hand(dot, {"w": [0.0]}, "float16")
    result = training_step(objective, [([[40000.0]],)] * 4, 0, 1.0, clip=0)
    assert (result.finite, result.norm, values(objective)) == (True, 40000.0, {"w": [-40000.0]})


def test_a_gradient_that_only_some_micro_batches_have_is_added_all_the_same():
    def loss(ops, p, which, x):
        return dot(ops, {"w": p[which]}, x)

    objective, seen = by_hand(loss, {"a": [0.0], "b": [0.0], "c": [0.0]}), {}
    batches = [("a", [[8.0]]), ("b", [[4.0]]), ("a", [[2.0]]), ("b", [[0.0]])]
    training_step(objective, batches, 0, 1.0, clip=0, after_step=seen.update)
    assert {name: g.tolist() for name, g in seen.items()} == {"a": [2.5], "b": [1.0]}
    assert values(objective) == {"a": [-2.5], "b": [-1.0], "c": [0.0]}


def test_losses_of_micro_batches_are_averaged_even_if_they_are_not_finite():
    assert training_step(by_hand(dot, {"w": [1.0]}), [([[2.0]],), ([[4.0]],)], 0, 0.1, clip=0).loss == 3
    result = training_step(by_hand(dot, {"w": [1.0]}), [([[math.inf]],), ([[-math.inf]],)], 0, 0.1)
    assert (math.isnan(result.loss), result.finite) == (True, False)


# --- accumulation

ROWS = np.random.default_rng(1).integers(-8, 9, (16, 5))
WAYS = [ROWS[:4], ROWS[4:8], ROWS[8:]]                         # shares 1/4, 1/4 and 1/2: exact


def accumulated(parts, accumulation="mean", targets=None, recipe="float32"):
    """What the update of a step over these rows is made from."""
    objective, found = by_hand(dot, {"w": [0.0] * parts[0].shape[1]}, recipe), {}
    objective.targets = targets
    result = training_step(objective, [(part,) for part in parts], 0, 1.0, 0, found.update, accumulation)
    return found["w"].tolist(), result


def test_micro_batches_of_unequal_size_count_by_their_targets():
    found, result = accumulated(WAYS, targets=len)
    assert found == ROWS.mean(0).tolist()
    assert result == accumulated([ROWS])[1]
    assert accumulated(WAYS)[0] != found                       # the mean of means is another one
    assert accumulated(np.split(ROWS, 4), targets=len) == accumulated(np.split(ROWS, 4))


def test_a_sum_is_the_mean_times_the_number_of_micro_batches():
    assert accumulated(np.split(ROWS, 4), "sum")[0] == (4 * ROWS.mean(0)).tolist()


def test_as_listed_there_is_an_update_at_every_micro_batch():
    listed, plain = (by_hand(dot, {"w": [0.0] * 5}) for _ in range(2))
    parts = np.split(ROWS / 3, 4)                              # not exact; but a quarter of anything is
    result = training_step(listed, [(part,) for part in parts], 0, 4.0, 0, accumulation="as-listed")
    alone = [training_step(plain, [(part,)], step, 1.0, 0) for step, part in enumerate(parts)]
    assert values(listed) == values(plain)
    assert (listed.optimizer.steps, result.norm) == (4, max(r.norm for r in alone) / 4)
    assert result.loss == sum(r.loss for r in alone) / 4


def test_an_overflow_as_listed_skips_that_update_only_and_is_told():
    objective = by_hand(dot, {"w": [0.0]}, scaling=LossScaling(8.0))
    result = training_step(objective, [([[4.0]],), ([[math.inf]],), ([[2.0]],)], 0, 2.0, 0, accumulation="as-listed")
    assert (result.finite, result.scale, objective.scaler.scale, objective.optimizer.steps) == (False, 8.0, 4.0, 2)
    np.testing.assert_allclose(values(objective)["w"], [-4.0], rtol=4 * FLOAT32.roundoff)      # 2 (4 + 2) / 3


def test_a_micro_batch_without_a_target_is_passed_over_and_none_at_all_is_one_clear_line():
    parts = [ROWS[:4], ROWS[:0], ROWS[4:8]]
    assert accumulated(parts, targets=len)[0] == ROWS[:8].mean(0).tolist()
    for accumulation in ACCUMULATIONS:
        with pytest.raises(MiniLLMError, match="none of the 2 micro-batches of this step has a target"):
            accumulated([ROWS[:0]] * 2, accumulation, targets=len)
    with pytest.raises(MiniLLMError, match="unknown accumulation 'means': did you mean 'mean'"):
        accumulated([ROWS], "means")


def test_a_float16_accumulator_loses_what_is_below_half_its_ulp():
    parts = [np.full((1, 1), 64 * 2048.0)] + [np.full((1, 1), 64.0)] * 63
    assert [accumulated(parts, recipe=recipe)[0] for recipe in ("float32", "float16")] == [[2048.0 + 63], [2048.0]]


@pytest.mark.parametrize("format", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize(("rows", "micro"), [(64, 4), (1000, 8), (6, 6)])
def test_micro_batches_differ_from_the_big_batch_by_roundings_of_a_sum(format, rows, micro):
    x = np.random.default_rng(rows).standard_normal((rows, 3))

    def gradient(part, divisor):
        w = tensor(np.ones(3), format, name="w")
        return backward((tensor(part, format) * w).sum(-1).mean() * (1 / divisor))["w"]

    whole, parts = gradient(x, 1), sum(gradient(part, micro) for part in np.split(x, micro))
    exact = tensor(x, format).data.astype(np.float64)
    bound = gamma(rows + 4, format) * abs(exact).mean(0)       # sums of `rows` terms, with two quotients and two products
    assert np.all(abs(whole - exact.mean(0)) <= bound)
    assert np.all(abs(parts - exact.mean(0)) <= bound)


# --- after the step

def test_after_step_is_called_after_an_update_and_only_then():
    told = []

    def after_step(gradients):
        told.append((gradients["w"].tolist(), values(objective)["w"]))

    objective = by_hand(dot, {"w": [0.0]}, scaling=LossScaling(2.0**3))
    for step, x in enumerate([2.0, math.inf, 2.0]):
        training_step(objective, [([[x]],)], step, 0.5, clip=0, after_step=after_step)
    assert told == [([16.0], [-1.0]), ([8.0], [-2.0])]         # still scaled, by 2^3 and then by 2^2; the weight has moved


def test_clipping_is_by_the_norm_of_the_unscaled_gradients():
    objective = by_hand(dot, {"w": [0.0, 0.0]}, scaling=static_scale(2.0**10))
    result = training_step(objective, [([[3.0, 4.0]],)], 0, 1.0, clip=1.0)
    assert result.norm == 5
    # clip / (norm + 1e-6): 0.6 and 0.8 less 2e-7 of themselves, and a rounding of the factor and of the product
    np.testing.assert_allclose(values(objective)["w"], [-0.6, -0.8], rtol=2e-7 + 2 * FLOAT32.roundoff)


# --- two objectives, as a generator and a discriminator have

def test_two_objectives_touch_their_own_parameters_only():
    def play(ops, p, x):                                       # a generator a x, a discriminator b y
        return ops.mean(ops.mul(p["b"], ops.mul(p["a"], constant(x))))

    both, seen = by_hand(play, {"a": [2.0], "b": [3.0]}), {}
    a, b = (SGD([p], momentum=0.0) for p in both.optimizer.parameters.values())
    generator = Objective(both.loss, both.ops, a, LossScaler(LossScaling(4.0)))
    discriminator = Objective(lambda x: both.ops.neg(both.loss(x)), both.ops, b, LossScaler(NO_SCALING))
    training_step(generator, [([1.0, 1.0],)], 0, 1.0, clip=0, after_step=seen.update)
    assert (values(both), list(seen)) == ({"a": [-1.0], "b": [3.0]}, ["a"])              # a - b
    training_step(discriminator, [([1.0, 1.0],)], 0, 1.0, clip=0)
    assert values(both) == {"a": [-1.0], "b": [2.0]}                                     # b + a
    training_step(generator, [([math.inf],)], 1, 1.0)
    assert (generator.scaler.scale, discriminator.scaler.scale) == (2.0, 1.0)
    assert (a.steps, b.steps) == (1, 1)


def test_an_overflow_in_parameters_of_the_other_one_skips_nothing():
    def loss(ops, p, x):
        return ops.add(dot(ops, p, x), ops.sum(ops.mul(p["other"], constant([math.inf]))))

    both = by_hand(loss, {"w": [0.0], "other": [1.0]})
    mine = Objective(both.loss, both.ops, SGD([both.optimizer.parameters["w"]], momentum=0.0), both.scaler)
    assert training_step(mine, [([[2.0]],)], 0, 1.0, clip=0).finite
    assert values(both) == {"w": [-2.0], "other": [1.0]}


def pair_trainer(xs, steps=1000, scaling=NO_SCALING):
    """A generator a x that lowers a b x, and behind it a discriminator b that raises it, with a scale of its own."""
    def play(ops, p, x):
        return ops.mean(ops.mul(p["b"], ops.mul(p["a"], constant(x))))

    both = by_hand(play, {"a": [2.0], "b": [3.0]})
    a, b = (SGD([p], momentum=0.0) for p in both.optimizer.parameters.values())
    first = Objective(both.loss, both.ops, a, both.scaler)
    other = Objective(lambda x: both.ops.neg(both.loss(x)), both.ops, b, LossScaler(scaling))
    batch = lambda step, micro: ([xs[min(step, len(xs) - 1)]],)                             # noqa: E731
    return both, Trainer(first, batch, Schedule(steps, 1.0, 1.0, 0, 0, watch_every=0), others=(other,))


def test_a_trainer_of_two_takes_turns_and_the_second_sees_what_the_first_did():
    both, trainer = pair_trainer([1.0], steps=2)
    records = list(trainer.run())
    assert values(both) == {"a": [-3.0], "b": [-1.0]}          # a: 2 - 3 = -1, - 2 = -3; b: 3 + -1 = 2, + -3 = -1
    assert [(r["loss"], r["others"][0]["loss"]) for r in records] == [(6.0, 3.0), (-2.0, 6.0)]
    assert [o["step"] for r in records for o in r["others"]] == [1, 2]
    assert json.loads(json.dumps(records, allow_nan=False)) == records


def test_of_two_objectives_one_may_skip_and_the_other_not():
    both, trainer = pair_trainer([1.0], scaling=LossScaling(2.0**127))                      # 4 x 2^127 is beyond float32
    trainer.batch = lambda step, micro: ([4.0],)
    record = trainer.advance()
    assert (record["skipped"], record["others"][0]["skipped"]) == (False, True)
    assert values(both) == {"a": [-10.0], "b": [3.0]}
    assert (trainer.skipped, trainer.in_a_row, trainer.rest[0].skipped, trainer.rest[0].in_a_row) == (0, 0, 1, 1)
    assert (trainer.objective.scaler.scale, trainer.others[0].scaler.scale) == (1.0, 2.0**126)


def test_where_the_second_diverges_the_run_ends_and_a_pair_is_not_saved(tmp_path):
    _, trainer = pair_trainer([1.0, 1.0])
    loss = trainer.others[0].loss
    trainer.others[0].loss = lambda x: loss(x) * math.nan
    assert len(list(trainer.run())) == trainer.diverged_at == 1
    assert trainer.blame == trainer.rest[0].blame == "forward mul#2 (not finite as computed)"
    with pytest.raises(MiniLLMError, match="holds one objective, this trainer has 2"):
        save_state(tmp_path / "state", None, trainer)


# --- watching

@pytest.mark.parametrize("recipe", PRESETS)
@pytest.mark.usefixtures("kernels")
def test_a_watched_attempt_changes_no_bit(recipe):
    runs = []
    for every in (0, 1, 3):
        trainer = trainer_of(recipe, steps=5, watch_every=every, dropout=0.1, accumulate=2)
        records = [{k: v for k, v in r.items() if k != "zero_gradient_share"} for r in trainer.run()]
        runs.append((state_bits(trainer.objective), records))
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize(("every", "watched"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [2, 4]), (5, [5]), (9, [])])
def test_every_nth_attempt_is_watched(every, watched):
    trainer, seen = trainer_of(steps=5, watch_every=every), []
    trainer.observers = (lambda event: seen.append(trainer.step + 1),)
    records = list(trainer.run())
    assert sorted(set(seen)) == [r["step"] for r in records if "zero_gradient_share" in r] == watched


@pytest.mark.parametrize("loss_scale", [1.0, 2.0**-6])
def test_the_records_share_of_zeros_is_the_one_that_numpy_counts(loss_scale):
    trainer, events = trainer_of("float16-mixed", steps=1, watch_every=1, scaling=static_scale(loss_scale)), []
    trainer.observers = (events.append,)
    record = trainer.advance()
    cotangents = [e for e in events if e.phase == "backward"]
    lost = sum(((e.exact.astype(np.float32) != 0) & (e.rounded.astype(np.float32) == 0)).sum() for e in cotangents)
    assert record["zero_gradient_share"] == lost / sum(e.exact.size for e in cotangents) > 0


# --- when a run is given up

@pytest.mark.parametrize("scaling", [NO_SCALING, static_scale(2.0**10)])
def test_a_loss_that_is_not_finite_ends_a_run_without_a_dynamic_scale_at_once(scaling):
    trainer = hand_trainer([1.0, 1.0, math.nan], scaling)
    records = list(trainer.run())
    assert [r["skipped"] for r in records] == [False, False, True]
    assert (trainer.diverged_at, trainer.step, trainer.blame) == (3, 3, records[-1]["first_not_finite"])
    assert trainer.blame == "forward mul (not finite as computed)"


@pytest.mark.parametrize(("initial", "floor", "attempts"), [(16.0, 1.0, 5), (16.0, 4.0, 3), (16.0, 0.25, 7), (2.0, 2.0, 1)])
def test_under_a_dynamic_scale_it_ends_the_run_when_no_lower_scale_is_left(initial, floor, attempts):
    trainer = hand_trainer([math.nan], LossScaling(initial, floor=floor))
    assert [r["loss_scale"] for r in trainer.run()] == [initial / 2**i for i in range(attempts)]
    assert (trainer.diverged_at, trainer.skipped) == (attempts, attempts)


def test_a_loss_that_is_finite_again_lets_a_dynamic_scale_go_on():
    trainer = hand_trainer([math.nan, math.nan, 1.0], LossScaling(4.0))
    assert [trainer.advance()["skipped"] for _ in range(5)] == [True, True, False, False, False]
    assert (trainer.diverged_at, trainer.in_a_row, trainer.skipped) == (None, 0, 2)


@pytest.mark.parametrize("scaling", [static_scale(2.0**127), LossScaling(2.0**127, floor=2.0**127)])
def test_overflows_without_end_are_a_divergence_though_the_loss_is_finite(scaling):
    trainer = hand_trainer([4.0], scaling)                     # 4 x 2^127 is beyond float32, 4 x 0 is 0
    assert [r["loss"] for r in trainer.run()] == [0.0] * PATIENCE
    assert (trainer.diverged_at, trainer.skipped) == (PATIENCE, PATIENCE)
    assert trainer.blame == "backward w/gradient (not finite as computed)"


def test_overflows_are_counted_in_a_row():
    trainer = hand_trainer([4.0] * (PATIENCE - 1) + [0.0] + [4.0] * (PATIENCE - 1) + [0.0], static_scale(2.0**127))
    for _ in range(2 * PATIENCE):
        trainer.advance()
    assert (trainer.diverged_at, trainer.skipped, trainer.in_a_row) == (None, 2 * PATIENCE - 2, 0)
