"""One training step as one function that reads like the algorithm, and the loop around it."""
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from minillm.autograd.context import Address
from minillm.autograd.tensor import Tensor, backward
from minillm.autograd.watching import tell, watch, watched
from minillm.backend import freed_memory_kept
from minillm.errors import MiniLLMError, unknown
from minillm.formats import Format
from minillm.optim import Optimizer, clip_factor, cosine_schedule, global_norm
from minillm.precision.loss_scaling import LossScaler
from minillm.precision.recipe import Ops
from minillm.precision.underflow import FirstNotFinite, ZeroedCotangents
from minillm.rounding import round_to, widen

ACCUMULATIONS = ("mean", "sum", "as-listed")
PATIENCE = 100          # this many overflows in a row, with a finite loss, are a divergence too: halving has not helped


@dataclass
class Objective:
    """A loss of a batch, with the ops in whose context it is computed, and the optimizer that owns what it trains.

    A model has one; a generator and its discriminator have two, each with its own parameters. `targets(*batch)` says of how many
    targets a loss is the mean, where batches differ in that.
    """

    loss: Callable[..., Tensor]              # loss(*batch)
    ops: Ops
    optimizer: Optimizer
    scaler: LossScaler
    targets: Callable[..., int] | None = None


@dataclass(frozen=True)
class StepResult:
    """What one attempt came to. `norm`: of the unscaled gradients before clipping; `scale`: the loss scale it was made with."""

    loss: float
    norm: float
    scale: float
    finite: bool
    at_floor: bool = True                    # whether no lower scale was left to try


def training_step(objective: Objective, batches: list, step: int, lr: float, clip: float = 1.0,
                  after_step: Callable[[dict], None] | None = None, accumulation: str = "mean") -> StepResult:
    """One attempt over micro-batches; `step` counts attempts from 0. What each micro-batch adds to the gradient:

    "mean": its share of all targets, so that together they are one big batch. "sum": all of its own mean, T times as much.
    "as-listed": no sum at all. As in a listing that is often printed, every gradient is divided by T and applied by itself.

    `after_step(gradients)` is called after an update, with the gradients still scaled. MiniLLMError where no batch has a target.
    """
    parts = divided(objective, batches, accumulation)
    if accumulation == "as-listed":
        return together([one_update(objective, [part], step, lr, clip, after_step) for part in parts])
    return one_update(objective, parts, step, lr, clip, after_step)


def one_update(objective: Objective, parts: list, step: int, lr: float, clip: float, after_step: Callable | None) -> StepResult:
    """Scale, backward, check, unscale and clip, update. An overflow touches nothing but the scale.

    parts: for each micro-batch its number, the batch, how many targets it has, and what its loss is divided by.
    """
    ops, scaler, optimizer = objective.ops, objective.scaler, objective.optimizer
    scale, at_floor, gradients, total = scaler.scale, scaler.at_floor, {}, 0.0
    for micro, batch, count, divisor in parts:
        ops.context.begin(step, micro)
        loss = objective.loss(*batch)
        total += count * loss.item()
        found = backward(loss * (scale / divisor))               # divided before backward: a float16 sum would overflow
        accumulate(gradients, found, optimizer.parameters, ops.recipe.gradients)
    norm = global_norm(gradients.values(), scaler.inverse)       # pass 1: norm and finite check in one
    finite = math.isfinite(norm)
    if finite:
        optimizer.step(gradients, lr, clip_factor(norm, clip) / scale, step)  # pass 2: unscale, clip and update in one
        if after_step:
            after_step(gradients)
    scaler.update(finite)
    return StepResult(total / sum(count for _, _, count, _ in parts), norm, scale, finite, at_floor)


def divided(objective: Objective, batches: list, accumulation: str) -> list[tuple]:
    """(micro, batch, targets, divisor) of each batch that has a target; the mean's divisors are T where all have as many."""
    counts, T = [objective.targets(*batch) if objective.targets else 1 for batch in batches], len(batches)
    if accumulation not in ACCUMULATIONS:
        raise unknown("accumulation", accumulation, ACCUMULATIONS)
    if not sum(counts):
        raise MiniLLMError(f"none of the {T} micro-batches of this step has a target, so there is no loss: give larger batches")
    return [(micro, batch, n, {"mean": sum(counts) / n, "sum": 1, "as-listed": T}[accumulation])
            for micro, (batch, n) in enumerate(zip(batches, counts, strict=True)) if n]


def together(results: list[StepResult]) -> StepResult:
    """Several updates as one attempt: the mean of their losses, the largest norm, and the scale of the first that overflowed."""
    worst = next((r for r in results if not r.finite), results[0])
    norm = max(r.norm for r in results) if worst.finite else worst.norm
    return StepResult(sum(r.loss for r in results) / len(results), norm, worst.scale, worst.finite, worst.at_floor)


def accumulate(total: dict, found: dict, parameters: dict, format: Format) -> None:
    """Add one micro-batch's gradients to the sum so far: in float32, rounded once into the format in which they are summed."""
    seen = watched()
    with np.errstate(all="ignore"):
        for name in [name for name in parameters if name in found]:          # not a set: its order changes with the process
            if name not in total and parameters[name].format is format and not seen:
                total[name] = found[name]                    # nothing to add, and it was rounded already
                continue
            g = widen(found[name], np.float32)
            exact = widen(total[name], np.float32) + g if name in total else g
            total[name] = round_to(exact, format)
            if seen:
                tell("accumulate", Address(name, "gradient", 0), exact, total[name], format)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: attempts, learning rates, warm-up, clipping, micro-batches a step, and how often to look."""

    steps: int
    lr: float = 1e-3
    min_lr: float = 1e-4
    warmup: int = 100
    clip: float = 1.0
    accumulate: int = 1
    watch_every: int = 50
    accumulation: str = "mean"

    def lr_at(self, step: int) -> float:
        return cosine_schedule(step, self.steps, self.lr, self.min_lr, self.warmup)


@dataclass
class Trainer:
    """Runs attempts in order and says of each what it came to. Batches are a pure function of (step, micro), so nothing is lost.

    With `others`, as a generator's discriminator, each of them makes an attempt of its own at the same step and rate, after the
    first has moved its weights. Each has its own optimizer, loss scale, skips and patience; where one diverges, the run ends.
    `diverged_at` is the number, from 1, of the attempt at which training could not go on, `blame` the first value of that attempt
    that was not finite.
    """

    objective: Objective
    batch: Callable[[int, int], tuple]
    schedule: Schedule
    step: int = 0                            # attempts made
    skipped: int = 0
    in_a_row: int = 0                        # skipped one after the other
    diverged_at: int | None = None
    blame: str | None = None
    observers: tuple = field(default_factory=tuple)          # of watched steps, besides the count of zeros
    after_step: Callable[[dict], None] | None = None         # called after an update, with the gradients still scaled
    others: tuple[Objective, ...] = ()

    def __post_init__(self) -> None:
        self.rest = [Trainer(other, lambda *at: self.batch(*at), self.schedule) for other in self.others]

    def run(self) -> Iterator[dict]:
        """The record of each attempt, as it is made; stops at the last, or where the run diverges."""
        with freed_memory_kept():                # a step of 0.8 M parameters: 2,800 page faults less
            while self.step < self.schedule.steps and self.diverged_at is None:
                yield self.advance()

    def advance(self) -> dict:
        """One attempt: its record as plain data for metrics.jsonl."""
        lr, zeros = self.schedule.lr_at(self.step), None
        if self.is_watched(self.step):
            zeros = ZeroedCotangents()
            with watch_all(zeros, *self.observers):
                result = self.attempt(lr)
        else:
            result = self.attempt(lr)
        record = {"step": self.step + 1, "loss": finite_or_none(result.loss), "lr": lr, "norm": finite_or_none(result.norm),
                  "loss_scale": finite_or_none(result.scale), "skipped": not result.finite}
        if zeros:
            record["zero_gradient_share"] = zeros.share
        if not result.finite:
            record["first_not_finite"] = self.overflowed(result)
        self.in_a_row = 0 if result.finite else self.in_a_row + 1
        if self.rest:
            record["others"] = [self.turn_of(other) for other in self.rest]
        self.step += 1
        return record

    def turn_of(self, other: "Trainer") -> dict:
        """The record of another objective's attempt at this step."""
        other.step = self.step
        record = other.advance()
        if self.diverged_at is None:
            self.diverged_at, self.blame = other.diverged_at, other.blame
        return record

    def attempt(self, lr: float) -> StepResult:
        return training_step(self.objective, self.batches(self.step), self.step, lr, self.schedule.clip, self.after_step,
                             self.schedule.accumulation)

    def batches(self, step: int) -> list:
        return [self.batch(step, micro) for micro in range(self.schedule.accumulate)]

    def is_watched(self, step: int) -> bool:
        return self.schedule.watch_every > 0 and (step + 1) % self.schedule.watch_every == 0

    def overflowed(self, result: StepResult) -> str:
        """A skipped attempt: name what overflowed first, and decide whether the run can go on."""
        self.skipped += 1
        blame = first_not_finite(self.objective, self.batches(self.step), self.step, result.scale, self.schedule.accumulation)
        hopeless = result.at_floor and not math.isfinite(result.loss)         # no lower scale is left that could help
        if hopeless or self.in_a_row + 1 >= PATIENCE:
            self.diverged_at, self.blame = self.step + 1, blame
        return blame


def first_not_finite(objective: Objective, batches: list, step: int, scale: float, accumulation: str = "mean") -> str:
    """Run the same attempt again, watched, without an update: keys are pure, so it is the same attempt. Names the first culprit.

    (Not quite the same as-listed, where weights have moved since the first micro-batch.)
    """
    for name, p in objective.optimizer.parameters.items():
        if not np.isfinite(p.data).all():
            return f"the weights {name} (set by an earlier update)"
    total = {}
    with watch(first := FirstNotFinite()):
        for micro, batch, _, divisor in divided(objective, batches, accumulation):
            objective.ops.context.begin(step, micro)
            found = backward(objective.loss(*batch) * (scale / divisor))
            if first.phase:
                return str(first)
            accumulate(total, found, objective.optimizer.parameters, objective.ops.recipe.gradients)
    return str(first) if first.phase else "the sum of squared gradients"


def watch_all(*observers):
    """Several observers at once."""
    def everyone(event):
        for observer in observers:
            observer(event)
    return watch(everyone)


def finite_or_none(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None
