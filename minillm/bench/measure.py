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

PAUSE = 0.04            # seconds: threads of OpenBLAS and PyTorch wait for more work in a loop of up to 27 ms, on our cores
SHORTEST = 0.002        # seconds that one timing lasts; a shorter call is repeated in it
LONG = 5.0              # seconds: beside such a call warming up is nothing, so its first run counts, and is its only one


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


def interleaved(calls: Sequence[Call], seconds: float = 2.0, least: int = 5, most: int = 101, pause: float = PAUSE) -> list[float]:
    """The median seconds of each call, all of them taken in turn for about `seconds`, at least `least` and at most `most` times.

    The first run of a call is not counted: it compiles. Before a call that uses another pool than the one before, a pause.
    """
    kept, counts, before = [[] for _ in calls], [], None
    for call, times in zip(calls, kept, strict=True):
        rest(before, call, pause)
        first, before = seconds_of(call), call
        if first > LONG:
            times.append(first)
        counts.append(0 if first > LONG else max(1, math.ceil(SHORTEST / max(seconds_of(call), 1e-7))))
    end = time.perf_counter() + seconds
    for turn in range(most if any(counts) else 0):
        if turn >= least and time.perf_counter() > end:
            break
        for call, count, times in zip(calls, counts, kept, strict=True):
            if count:
                rest(before, call, pause)
                times.append(seconds_of(call, count))
                before = call
    return [statistics.median(times) for times in kept]


def rest(before: Call | None, call: Call, pause: float) -> None:
    """Until the threads of the call before have gone to sleep, if they are not the ones that are needed next."""
    if before and before.pool != call.pool:
        time.sleep(pause)


def rows(name: str, shape: Sequence[int], threads: int, seconds: float, peers: Mapping[str, float], work: float, unit: str,
         bytes: int | None = None, **more) -> list[dict]:
    """One row for each peer, by its seconds; one row without a peer where there is none.

    `work` / `seconds` / `unit`'s size is the rate: the unit begins with G for billions. `ratio` is the peer's time over ours.
    """
    rate = work / seconds / (1e9 if unit.startswith("G") else 1)
    ours = {"name": name, "shape": list(shape), "threads": threads, "ms": seconds * 1e3, "rate": rate, "unit": unit, "bytes": bytes}
    return [ours | {"peer": peer, "peer_ms": taken * 1e3, "ratio": taken / seconds} | more for peer, taken in peers.items()] or \
        [ours | {"peer": None, "peer_ms": None, "ratio": None} | more]
