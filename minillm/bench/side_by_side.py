"""Ours and the peers, each pool of threads in a process of its own, timed in turn.

Pools in one process spoil each other, since idle threads spin: beside the two others OpenBLAS took 7 ms for a product of 256 x 256
that takes it 0.3 ms alone. Here one process at a time is at work, and the others wait for a line to read.
"""
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minillm.bench import peers
from minillm.bench.measure import timings
from minillm.errors import MiniLLMError


class Process:
    """A process that times the calls of one pool (worker.py): a line of JSON for each request, and one for its answer."""

    def __init__(self, pool: str):
        self.pool = pool
        self.process = subprocess.Popen([sys.executable, "-m", "minillm.bench.worker", pool], text=True, encoding="utf-8",
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                        start_new_session=True)              # Ctrl-C is for the parent, which ends it

    def ask(self, **request) -> dict:
        """The answer; MiniLLMError where the process could not give one."""
        with contextlib.suppress(BrokenPipeError):           # then there is no answer either
            print(json.dumps(request), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"it ended with {self.process.wait()}"}
        if "error" in answer:
            raise MiniLLMError(f"the process that times {self.pool} failed: {answer['error']}")
        return answer

    def close(self) -> None:
        """End it, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        with contextlib.suppress(BrokenPipeError):           # of a request that it never read
            self.process.stdin.close()


@dataclass(frozen=True)
class Remote:
    """A call in one of the processes, by its name there."""

    process: Process
    name: str

    @property
    def pool(self) -> str:
        return self.process.pool

    def seconds(self, count: int = 1, waking: float = 0.0) -> float:
        return self.process.ask(call=self.name, count=count, waking=waking)["seconds"]


@contextlib.contextmanager
def started(*pools: str) -> Iterator[list[Process]]:
    """A process for each of these pools that is installed: "ours", "numpy", "torch". They end with the block, however it ends."""
    with contextlib.ExitStack() as undo:
        yield [undo.enter_context(contextlib.closing(Process(pool))) for pool in pools if peers.installed(pool)]


def calls(processes: Sequence[Process], case: str, threads: int, **given) -> dict[str, Remote]:
    """The calls that the processes have for a case of worker.py, by name, each on so many threads."""
    return {name: Remote(process, name) for process in processes
            for name in process.ask(case=case, threads=threads, given=given)["names"]}


def times(processes: Sequence[Process], case: str, threads: int, seconds: float, least: int = 5,
          **given) -> dict[str, list[float]]:
    """The timings of each call of a case in seconds, taken in turn for about `seconds`."""
    found = calls(processes, case, threads, **given)
    return dict(zip(found, timings(list(found.values()), seconds, least), strict=True))
