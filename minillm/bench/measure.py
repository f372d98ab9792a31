"""How calls are timed side by side, and the row that comes of it.

Timings of one machine wander by half from minute to minute, so calls that are compared are taken in turn, and the ratio is the
median of those of neighbouring timings: from run to run it wandered by 6 % where the ratio of medians did by 13 (OpenBLAS and ours,
n = 256, ten runs of a second). A pool of threads takes up to 8 ms to wake: before it is timed a brief call runs until that is over,
whoever's it is, so that none of them is met hot and another cold.
"""
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

WAKING = 0.015          # seconds for which a brief call runs before it is timed
BRIEF = 0.2             # seconds: a longer call does not notice 8 ms
SHORTEST = 0.01         # seconds that one timing lasts; a shorter call is repeated in it
SLOW = 1.0              # seconds: a slower call of a peer is timed as often as it must be
LONG = 5.0              # seconds: such a call of a peer is made once


class Timed(Protocol):
    """What can be timed: here, or in another process. `pool` is who is measured: "ours", or a peer's."""

    pool: str

    def seconds(self, count: int = 1, waking: float = 0.0) -> float:
        """Of a run: the mean of `count`, after runs for `waking` seconds."""


@dataclass(frozen=True)
class Call:
    """A call in this process. Two pools of threads in one process spoil each other: peers run elsewhere (side_by_side.py)."""

    run: Callable[[], Any]
    pool: str = "ours"

    def seconds(self, count: int = 1, waking: float = 0.0) -> float:
        return seconds_of(self.run, count, waking)


def seconds_of(run: Callable[[], Any], count: int = 1, waking: float = 0.0) -> float:
    """The seconds that one of `count` runs took, after some that woke the threads."""
    awake = time.perf_counter() + waking
    while time.perf_counter() < awake:
        run()
    start = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - start) / count


@dataclass
class Series:
    """The timings of one call: about how long a run takes, how many are in each timing, and the seconds of a run so far."""

    call: Timed
    expected: float
    times: list[float] = field(default_factory=list)

    @property
    def count(self) -> int:
        return max(1, math.ceil(SHORTEST / max(self.expected, 1e-7)))

    def again(self) -> None:
        self.times.append(self.call.seconds(self.count, WAKING if self.expected < BRIEF else 0.0))


def first_runs(call: Timed) -> Series:
    """Compile and warm up; a peer's call that takes very long is thereby timed."""
    first = call.seconds()
    if first > LONG and call.pool != "ours":                 # ours has compiled
        return Series(call, first, [first])
    return Series(call, call.seconds())


def timings(calls: Sequence[Timed], seconds: float = 2.0, least: int = 5, most: int = 101) -> list[list[float]]:
    """The seconds of each call, all of them taken in turn for about `seconds`, at least `least` and at most `most` times.

    The first run of a call is not counted: it compiles. A call of a peer that takes very long has one timing.
    """
    all_series = [first_runs(call) for call in calls]
    end, open_ended = time.perf_counter() + seconds, [series for series in all_series if not series.times]
    for turn in range(most):
        if turn >= least and time.perf_counter() > end:
            break
        for series in open_ended:
            if turn < least or series.expected < SLOW or series.call.pool == "ours":
                series.again()
    return [series.times for series in all_series]


def interleaved(calls: Sequence[Timed], seconds: float = 2.0, least: int = 5) -> list[float]:
    """The median seconds of each call, taken in turn."""
    return [statistics.median(times) for times in timings(calls, seconds, least)]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of their time over ours, timing by timing; a slow peer has fewer, which are used again."""
    return statistics.median(b / a for a, b in zip(ours, itertools.cycle(theirs), strict=False))


def rows(name: str, shape: Sequence[int], threads: int, times: Sequence[float], peers: Mapping[str, Sequence[float]], work: float,
         unit: str, bytes: int | None = None, **more) -> list[dict]:
    """One row for each peer, by its timings in seconds; one row without a peer where there is none. Times are medians.

    `work` a second / `unit`'s size is the rate: the unit begins with G for billions. `ratio` is the peer's time over ours.
    """
    seconds = statistics.median(times)
    rate = work / seconds / (1e9 if unit.startswith("G") else 1)
    ours = {"name": name, "shape": list(shape), "threads": threads, "ms": seconds * 1e3, "rate": rate, "unit": unit, "bytes": bytes}
    return [ours | {"peer": peer, "peer_ms": statistics.median(taken) * 1e3, "ratio": ratio(times, taken)} | more
            for peer, taken in peers.items()] or [ours | {"peer": None, "peer_ms": None, "ratio": None} | more]
