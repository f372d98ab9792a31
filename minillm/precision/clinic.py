"""The loss-scale clinic: what any scaler would have done in a run, replayed from the sizes of the run's gradients alone.

    trace = GradientTrace(trainer.objective)
    trainer.observers = (trace,)                     # record a run, whose schedule has watch_every=1; then ask
    replay(trace.steps, SCALERS["keras"])            # what another scaler would have made of it

A scale S is fine for a step if the largest cotangent times S stays finite in float16, and float32 can hold S, 1/S and the
unscaled gradients. What is too small times S becomes zero. Nothing else of a step matters to a scaler.
"""
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from minillm.autograd.watching import Event
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT16, FLOAT32, Format
from minillm.precision.loss_scaling import LossScaler, LossScaling
from minillm.precision.tally import exponent_counts, first_beyond


@dataclass
class Sizes:
    """Of some cotangents, with the loss scale divided out: the largest |g|, and how many have which exponent, floor(log2 |g|).

    `largest` is infinite or NaN where a value is; `exponents` counts neither those nor zeros, and may be left empty.
    """

    largest: float = 0.0
    exponents: Mapping[int, int] = field(default_factory=Counter)

    def add(self, scaled: np.ndarray, scale: float) -> bool:
        """Count values that a loss scale has multiplied; whether a larger one than before is among them."""
        largest = float(np.abs(scaled).max()) / scale                          # NaN, if any is
        exceeds = largest > self.largest or math.isnan(largest) > math.isnan(self.largest)
        self.largest = largest if exceeds else self.largest
        shift = math.frexp(scale)[1] - 1
        self.exponents.update({exponent - shift: count for exponent, count in exponent_counts(scaled).items()})
        return exceeds


@dataclass
class TraceStep(Sizes):
    """One attempt: its sizes, which tensor had the largest, and the sizes of each layer where they are known apart.

    A largest value that is not finite stands for a step that no scale would have saved, because its forward pass overflowed.
    """

    where: str = ""
    layers: dict[str, Sizes] = field(default_factory=dict)


class GradientTrace:
    """An observer that records a TraceStep for each attempt that it watches: of every cotangent that is rounded below 32 bits.

    Cotangents are seen before their rounding. Small ones that an op further up has lost are missing, so record at a scale that
    loses none, such as 65536. A step that overflows is recorded up to the tensor whose rounding did it. Sizes are exact where the
    scale is a power of two.
    """

    def __init__(self, objective):
        self.objective, self.by_step, self.overflowed = objective, {}, set()

    @property
    def steps(self) -> list[TraceStep]:
        """The attempts in their order; those that nobody watched are left out."""
        return [self.by_step[step] for step in sorted(self.by_step)]

    def __call__(self, event: Event) -> None:
        step, scale = self.objective.ops.context.step, self.objective.scaler.scale
        if event.phase != "backward" or event.format.bits >= 32 or not event.exact.size or not 0 < scale < math.inf:
            return
        if step in self.overflowed:
            return
        at = self.by_step.setdefault(step, TraceStep())
        at.layers.setdefault(event.address.scope or event.address.op, Sizes()).add(event.exact, scale)
        if at.add(event.exact, scale):
            at.where = str(event.address)
        if not np.isfinite(event.rounded).all():
            self.overflowed.add(step)


def overflow_limit(format: Format) -> float:
    """The smallest value that rounds to infinity: half an ulp beyond the largest, 65520 in float16."""
    if format.overflow != "infinity":
        raise MiniLLMError(f"in {format.name} an overflow becomes no infinity that a scaler could notice: take float16")
    return first_beyond(format)


def underflow_share(exponents: Mapping[int, int], scale: float, format: Format = FLOAT16) -> float:
    """The share of values that round to zero at this scale: those below half of the smallest value, 2^-25 in float16.

    exponents: counts by floor(log2 |g|), unscaled. Exact for a scale that is a power of two; for another one the next lower power
    is taken. A value of exactly 2^-25, which rounds to zero too, counts as kept.
    """
    total = sum(exponents.values())
    if not total or not 0 < scale < math.inf:
        return math.nan if total else 0.0
    first = math.frexp(format.smallest / 2)[1] - math.frexp(scale)[1]          # the least exponent that is kept
    return sum(count for exponent, count in exponents.items() if exponent < first) / total


def normal_underflow(mean: float, deviation: float, scale: float, format: Format = FLOAT16) -> float:
    """The share that `underflow_share` expects where log2 |g| is normal with this mean and deviation, in bits."""
    z = (math.log2(format.smallest / 2) - math.log2(scale) - mean) / deviation
    return math.erfc(-z / math.sqrt(2)) / 2


def headroom_bits(largest: float, scale: float, format: Format = FLOAT16) -> float:
    """How many times the scale could double before the largest value overflows, as a real number; negative where it does."""
    if not (math.isfinite(largest) and 0 < scale < math.inf):
        return math.nan
    return math.inf if largest == 0 else math.log2(format.max) - math.log2(largest) - math.log2(scale)


@dataclass(frozen=True)
class Circumstances:
    """What else decides whether a step is finite, besides its scale and its largest cotangent.

    `gradients`: the format of unscaled gradients; float16 where there are no master weights. `divides`: whether the step divides by
    the size of a gradient (a norm, a trust ratio), so that it is NaN once all gradients have become zero. `delay`: how many steps
    later the scaler hears of an overflow, as between workers that do not wait for one another.
    """

    format: Format = FLOAT16
    gradients: Format = FLOAT32
    divides: bool = False
    delay: int = 0

    @cached_property
    def limit(self) -> float:
        """From here on a scaled cotangent overflows."""
        return overflow_limit(self.format)

    @cached_property
    def limit_of_gradients(self) -> float:
        """From here on an unscaled gradient does."""
        return overflow_limit(self.gradients)


def refusal(largest: float, scale: float, given: Circumstances) -> str:
    """Why a step is not finite, in a few words; empty where it is."""
    if not math.isfinite(largest):
        return "not finite at any scale"
    if not (scale <= FLOAT32.max and scale * FLOAT32.max >= 1):                # below 2^-127 the inverse is infinite in float32
        return "the scale itself"
    if largest * scale >= given.limit:
        return "overflow"
    if largest >= given.limit_of_gradients:
        return "overflow in unscaling"
    if given.divides and largest * scale <= given.format.smallest / 2:
        return "all gradients are zero"
    return ""


USUAL = Circumstances()


def replay(trace: Iterable[TraceStep], how: LossScaling, given: Circumstances = USUAL) -> list[dict]:
    """What this scaler would have done: for each step its scale, whether and why it skipped, headroom in bits, underflowed share.

    Keys as in metrics.jsonl where it has them. A trace is that of one run: another scaler would have trained other weights,
    whose gradients are of the same sizes as long as both train.
    """
    scaler, records, heard = LossScaler(how), [], [True] * given.delay
    for number, at in enumerate(trace, start=1):
        scale = scaler.scale
        why = refusal(at.largest, scale, given)
        records.append({"step": number, "loss_scale": scale, "skipped": bool(why), "why": why, "where": at.where if why else "",
                        "headroom_bits": headroom_bits(at.largest, scale, given.format),
                        "underflow_share": underflow_share(at.exponents, scale, given.format)})
        heard.append(not why)
        scaler.update(heard.pop(0))
    return records


def replay_per_layer(trace: Iterable[TraceStep], margin: int = 4, format: Format = FLOAT16) -> list[dict]:
    """A scale for each layer: the largest power of two that leaves `margin` bits above the layer's maximum of the step before.

    For replay only: in training, cotangents would have to change their scale on their way from each layer to the next. Maxima are
    those before rounding, so they are known after an overflow too. A layer that has not been seen has scale 1. Records as `replay`
    has them; "loss_scale" is the smallest of the layers' "scales", "where" the first layer that overflowed.
    """
    scales, records = {}, []
    for number, at in enumerate(trace, start=1):
        used = {layer: scales.get(layer, 1.0) for layer in at.layers}
        bad = [name for name, sizes in at.layers.items() if not sizes.largest * used[name] < overflow_limit(format)]
        counts = {name: sum(sizes.exponents.values()) for name, sizes in at.layers.items()}
        lost = sum(counts[name] * underflow_share(sizes.exponents, used[name], format) for name, sizes in at.layers.items())
        headroom = [headroom_bits(sizes.largest, used[name], format) for name, sizes in at.layers.items()]
        records.append({"step": number, "loss_scale": min(used.values(), default=1.0), "scales": used, "skipped": bool(bad),
                        "why": "overflow" if bad else "", "where": bad[0] if bad else "",
                        "headroom_bits": min(headroom, default=math.inf), "underflow_share": lost / max(sum(counts.values()), 1)})
        scales |= {name: power_below(format.max / sizes.largest) * 2.0**-margin for name, sizes in at.layers.items()
                   if 0 < sizes.largest < math.inf}
    return records


def power_below(x: float) -> float:
    """The largest power of two that is at most x, of those from 2^-100 to 2^100: float32 holds it, its inverse, and a margin."""
    return 2.0 ** max(-100, min(math.frexp(x)[1] - 1, 100))


def fate(records: Sequence[dict]) -> str:
    """How a replay, or a run, ends: "sinks to 0", "grows to infinity", "skips every step" (in the last tenth), or "trains"."""
    last, tail = records[-1]["loss_scale"], records[-max(len(records) // 10, 1):]
    if last == 0:
        return "sinks to 0"
    if last is None or math.isinf(last):
        return "grows to infinity"
    return "skips every step" if all(r["skipped"] for r in tail) else "trains"


def summary(records: Sequence[dict]) -> dict:
    """A replay in one row: attempts, skipped ones, first and last scale, least headroom of a step that was taken, and its fate."""
    taken = [r["headroom_bits"] for r in records if not r["skipped"]]
    return {"steps": len(records), "skipped": sum(r["skipped"] for r in records), "first_scale": records[0]["loss_scale"],
            "last_scale": records[-1]["loss_scale"], "least_headroom_bits": min(taken, default=math.nan), "fate": fate(records)}


def history(records: Sequence[dict]) -> dict:
    """A replay, or the records of a training run, as the lists that figures are drawn from."""
    tried = [r for r in records if "loss_scale" in r]
    scales = [r["loss_scale"] or 0 for r in tried]
    return {"steps": [r["step"] for r in tried], "skipped": [r["step"] for r in tried if r["skipped"]],
            "log2_scale": [math.log2(scale) if 0 < scale < math.inf else None for scale in scales],
            "headroom": [r.get("headroom_bits") for r in tried], "fate": fate(tried)}
