"""Tasks handed to the pool: each once, whoever runs it, on any number of threads; and exp for what softmax asks."""
import os
import subprocess
import sys

import numpy as np
import pytest
from numba import get_thread_id, njit

from minillm import kernels

pytestmark = pytest.mark.usefixtures("kernels_on")
launch, lanes, pool = (kernels.load(name) for name in ("launch", "lanes", "pool"))


def counting():
    """A function that runs so many tasks, each of which adds 1 to its own place and notes the thread."""
    in_pool = launch.in_pool

    @njit(no_cpython_wrapper=True)
    def task(number, step, runs, thread):
        runs[number] += step
        thread[number] = get_thread_id()

    @njit
    def all_tasks(tasks, step, runs, thread):
        in_pool(task, tasks, (step, runs, thread))
    return all_tasks


def test_every_task_runs_once_on_any_number_of_threads():
    all_tasks, before = counting(), pool.threads()
    try:
        for threads in range(1, pool.largest() + 1):
            pool.set_threads(threads)
            for tasks in [*range(20), 63, 64, 65, 1000]:
                runs, thread = np.zeros(tasks + 1, np.int64), np.full(tasks + 1, -1)
                all_tasks(tasks, 3, runs, thread)
                assert (runs[:-1] == 3).all()
                assert runs[-1] == 0
                assert (thread[:-1] >= 0).all()
                assert (thread[:-1] < threads).all()
    finally:
        pool.set_threads(before)


def test_more_threads_than_cores_and_another_pool():
    program = "import test_launch; test_launch.test_every_task_runs_once_on_any_number_of_threads()"
    for more in ({"NUMBA_NUM_THREADS": "5"}, {"NUMBA_THREADING_LAYER": "workqueue"}):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | more
        subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def exponentials(name, x):
    exp, read, write, fill = getattr(lanes, name), lanes.read, lanes.write, np.float32(0)

    @njit
    def every_value(x, y):
        for i in range(0, x.size, 16):
            write(y, i, x.size - i, exp(read(x, i, x.size - i, fill)))
    y = np.empty_like(x)
    every_value(x, y)
    return y


@pytest.mark.parametrize(("name", "largest"), [("exp", 88.7), ("exp_to_one", 0.0)])
def test_exponentials_are_exact_to_1e_7(name, largest):
    """As the docstrings say: 1.4 times half a unit in the last place, where 1 + r ... and its product with 2^n are rounded."""
    x = np.concatenate([np.linspace(-87.3, largest, 200_001), np.linspace(-1, min(largest, 1), 200_001)]).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(exponentials(name, x) / exact - 1).max() < 1e-7


@pytest.mark.parametrize("name", ["exp", "exp_to_one"])
def test_exponentials_at_the_ends(name):
    x = np.array([0, -0.0, -88, -104, -np.inf, np.nan], np.float32)
    assert np.array_equal(exponentials(name, x), np.array([1, 1, 0, 0, 0, np.nan], np.float32), equal_nan=True)
