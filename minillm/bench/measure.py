"""How calls are timed side by side, and the row that comes of it.

Timings of one machine wander by half from minute to minute, so calls that are compared are taken in turn and only the ratio of
their medians counts.
"""
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SPIN = {"blas": 0.12, "torch": 0.03, "numba": 0.03, "": 0.0}     # seconds for which a pool's idle threads keep the cores busy
BRIEF = 0.1             # seconds: a shorter call would notice that threads take up to 8 ms to wake,
WAKING = 0.015          # so after a pause it runs for so many seconds before it is timed
SHORTEST = 0.002        # seconds that one timing lasts; a shorter call is repeated in it
LONG = 5.0              # seconds: beside such a call of a peer, which compiles nothing, warming up is nothing: its first run counts


@dataclass(frozen=True)
class Call:
    """What is timed, and the thread pool that it uses: "numba", "blas", "torch"; "" for none."""

    run: Callable[[], Any]
    pool: str = "numba"


def seconds_of(call: Call, count: int = 1) -> float:
    """The seconds that one of `count` runs took."""
    start = time.perf_counter()
    for _ in range(count):
        call.run()
    return (time.perf_counter() - start) / count


def interleaved(calls: Sequence[Call], seconds: float = 2.0, least: int = 5, most: int = 101) -> list[float]:
    """The median seconds of each call, all of them taken in turn for about `seconds`, at least `least` and at most `most` times.

    The first run of a call is not counted: it compiles. Where another pool was at work before, its threads are left to fall asleep.
    """
    before, all_series = calls[0], []
    for call in calls:
        time.sleep(pause(before, call))
        all_series.append(first_runs(call))
        before = call
    end, again = time.perf_counter() + seconds, [series for series in all_series if not series.times]
    for turn in range(most):
        if turn >= least and time.perf_counter() > end:
            break
        for series in again:
            if pause(before, series.call):
                time.sleep(pause(before, series.call))
                wake(series)
            series.times.append(seconds_of(series.call, series.count))
            before = series.call
    return [statistics.median(series.times) for series in all_series]


def pause(before: Call, call: Call) -> float:
    """How long to wait before a call that needs other threads than the one before."""
    return SPIN[before.pool] if before.pool != call.pool else 0.0


def wake(series: "Series") -> None:
    """Run a brief call until its threads are awake."""
    end = time.perf_counter() + (WAKING if series.expected < BRIEF else 0)
    while time.perf_counter() < end:
        seconds_of(series.call, series.count)


@dataclass
class Series:
    """The timings of one call: how often it runs in each, how long a run takes, and the seconds of a run so far."""

    call: Call
    count: int
    expected: float
    times: list[float]


def first_runs(call: Call) -> Series:
    """Compile and warm up; a peer's call that takes very long is thereby timed."""
    first = seconds_of(call)
    if first > LONG and call.pool != "numba":
        return Series(call, 1, first, [first])
    expected = seconds_of(call)
    return Series(call, max(1, math.ceil(SHORTEST / max(expected, 1e-7))), expected, [])


def rows(name: str, shape: Sequence[int], threads: int, seconds: float, peers: Mapping[str, float], work: float, unit: str,
         bytes: int | None = None, **more) -> list[dict]:
    """One row for each peer, by its seconds; one row without a peer where there is none.

    `work` / `seconds` / `unit`'s size is the rate: the unit begins with G for billions. `ratio` is the peer's time over ours.
    """
    rate = work / seconds / (1e9 if unit.startswith("G") else 1)
    ours = {"name": name, "shape": list(shape), "threads": threads, "ms": seconds * 1e3, "rate": rate, "unit": unit, "bytes": bytes}
    return [ours | {"peer": peer, "peer_ms": taken * 1e3, "ratio": taken / seconds} | more for peer, taken in peers.items()] or \
        [ours | {"peer": None, "peer_ms": None, "ratio": None} | more]
