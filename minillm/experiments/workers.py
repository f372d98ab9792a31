"""Experiments that do not depend on one another, several at a time: one process for each core, one BLAS thread in each.

On two cores that is twice as fast as two BLAS threads on one small model, whose products are too small to share. Jobs and results
travel as JSON lines through pipes.
"""
import contextlib
import dataclasses
import json
import os
import queue
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed

from tqdm import tqdm

from minillm.backend import usable_cores
from minillm.errors import MiniLLMError
from minillm.experiments.experiment import experiment
from minillm.experiments.options import TrainOptions
from minillm.experiments.running import announce_compiling

THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def experiments(jobs: list[tuple[TrainOptions, bool]], quiet: bool = False, title: str = "") -> list[dict]:
    """What `experiment(options, int8)` gives for each job, in their order."""
    announce_compiling(quiet)
    waiting, results = queue.SimpleQueue(), [None] * len(jobs)
    for number, job in enumerate(jobs):
        waiting.put((number, job))
    steps = sum(options.steps for options, _ in jobs)
    with contextlib.ExitStack() as last:
        bar = last.enter_context(tqdm(total=steps, desc=title, unit="step", disable=quiet, leave=False, mininterval=0.5))
        crew = [Worker(waiting, results, bar) for _ in range(min(usable_cores(), len(jobs)))]
        for worker in crew:
            last.callback(worker.process.communicate)        # in the end, pipes are closed,
        pool = last.enter_context(ThreadPoolExecutor(len(crew)))     # before that, threads are waited for,
        for worker in crew:
            last.callback(worker.process.kill)               # and at first the processes go that they wait for
        for done in as_completed([pool.submit(worker.work) for worker in crew]):
            done.result()
    return results


class Worker:
    """One process that takes jobs until none waits."""

    bar_lock = threading.Lock()

    def __init__(self, waiting, results, bar):
        self.waiting, self.results, self.bar = waiting, results, bar
        self.process = subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env=os.environ | dict.fromkeys(THREADS, "1"),
                                        start_new_session=True)          # Ctrl-C is for the parent, which ends its workers

    def work(self) -> None:
        while True:
            try:
                number, (options, int8) = self.waiting.get_nowait()
            except queue.Empty:
                return
            self.results[number] = self.ask({"options": dataclasses.asdict(options), "int8": int8}, options.steps)

    def ask(self, job: dict, steps: int) -> dict:
        """Hand over one job; progress moves the bar, and what a diverged run leaves out is made up at its end."""
        with contextlib.suppress(OSError):           # a process that is gone says so below
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        moved = 0
        for line in self.process.stdout:
            answer = json.loads(line)
            if "error" in answer:
                raise MiniLLMError(answer["error"])
            step = steps if "result" in answer else answer["step"]
            with self.bar_lock:
                self.bar.update(step - moved)
            moved = step
            if "result" in answer:
                return answer["result"]
        raise MiniLLMError(f"a worker process ended with code {self.process.wait()} in the midst of {job['options']['recipe']}: "
                           "is there enough memory?")


def serve() -> None:
    """What a worker process does: read jobs, answer with progress and results."""
    answers, sys.stdout = sys.stdout, sys.stderr             # so that nothing else gets between the lines

    def say(answer):
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    for line in sys.stdin:
        job = json.loads(line)
        try:
            say({"result": experiment(TrainOptions(**job["options"]), job["int8"],
                                      lambda step: say({"step": step}) if step % 10 == 0 else None)})
        except (MiniLLMError, MemoryError) as error:
            say({"error": str(error)})


if __name__ == "__main__":
    serve()
