"""How rows and values are shared out among threads: into tasks, by the array's shape alone.

A task is computed by one thread from its first row to its last, and no sum crosses the border of two tasks but in their order, so
results are the same bits on any number of threads. A kernel is a plain function of one task; beside it stands a loop over tasks,
which numba runs in its own pool. The count of threads is numba's setting.
"""
from collections.abc import Callable

from minillm.kernels.scalars import JIT

POOL = JIT | {"parallel": True}    # for functions that are nothing but a prange over tasks: numba rewrites what stands inside
VALUES = 4096                      # in a task at least: 1 to 5 us of work
TASKS = 64                         # at most: four for each of 16 threads, and sums over tasks stay short
ALONE = 4                          # so few tasks end sooner than the pool's threads have begun, after 3 us


def shares(n: int, least: int) -> tuple[int, int]:
    """How many of n items go into a task, at least `least`, and how many tasks that makes."""
    each = max(1, least, -(-n // TASKS))
    return each, -(-n // each)


def run(task: Callable, pool: Callable, tasks: int, *arguments) -> None:
    """Tasks 0 ... tasks - 1: in numba's pool, or one after the other where there are few."""
    if tasks > ALONE:
        pool(tasks, *arguments)
    else:
        for number in range(tasks):
            task(number, *arguments)
