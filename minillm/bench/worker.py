"""The process that times the calls of one pool of threads, as side_by_side.py asks it to."""
import json
import sys
import time
from collections.abc import Callable

import numpy as np

from minillm.backend import freed_memory_kept
from minillm.bench import cast, generate, matmul, peers, rowwise, scaling, step
from minillm.bench.measure import seconds_of

# What a bench measures: (pool, **given) -> {name: function}. Each process makes the same operands of the same seed.
CASES: dict[str, Callable[..., dict[str, Callable]]] = {
    "matmul": matmul.calls, "rowwise": rowwise.calls, "cast": cast.calls, "accumulator": cast.product_calls, "step": step.calls,
    "scaling": scaling.calls, "generate": generate.calls,
}


class Worker:
    """What stands at the other end of the pipe: the calls of one case."""

    def __init__(self, pool: str):
        self.pool, self.calls = pool, {}

    def answer(self, request: dict) -> dict:
        """To {"case", "threads", "given"} the "names" of its calls; to {"call", "count", "waking"} the "seconds" of a run.

        To what goes wrong, "error": a line.
        """
        try:
            with np.errstate(all="ignore"):
                return self.make(**request) if "case" in request else {"seconds": self.time(**request)}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def make(self, case: str, threads: int, given: dict) -> dict:
        self.calls = {}                                      # the memory of the case before goes first
        peers.set_threads(self.pool, threads)
        self.calls = CASES[case](self.pool, **given)
        return {"names": list(self.calls)}

    def time(self, call: str, count: int, waking: float) -> float:
        seconds = seconds_of(self.calls[call], count, waking)
        rest()
        return seconds


def rest(at_most: float = 1.0) -> None:
    """Wait until no thread here keeps a core busy: pools spin for 0.03 s after a call, OpenBLAS's for 0.12 s."""
    end, slice = time.perf_counter() + at_most, 0.005
    while time.perf_counter() < end:
        before = time.process_time()                         # of all threads
        time.sleep(slice)
        if time.process_time() - before < slice / 5:
            return


def main(pool: str) -> None:
    worker = Worker(pool)
    with freed_memory_kept():                                # as a training run keeps it; for the peers too
        for line in sys.stdin:                               # until the parent is gone
            print(json.dumps(worker.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
