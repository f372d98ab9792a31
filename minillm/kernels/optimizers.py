"""AdamW in one pass over each parameter, and the sum of squares behind the global norm.

AdamW does the same operations in the same order as its NumPy twin in minillm.optim, so both give the same bits. It reads and writes
28 bytes a weight and is as fast as memory; what a small parameter costs is the call, 5 us.
"""
import numpy as np
from numba import njit, prange

from minillm.kernels.scalars import JIT, bits, load, store
from minillm.kernels.tasks import POOL, run, shares

LEAST, LANES = 2048, 64            # values in a task at least: AdamW moves 28 bytes for each, 3 us in all


@njit(**JIT)
def _sum_of_squares(task, g, each, factor, parts):
    """The sum of a task: 64 sums side by side, then the upper half onto the lower, in an order that is always the same."""
    g = g[task * each:(task + 1) * each]
    lanes = np.zeros(LANES, np.float32)
    for start in range(0, g.size, LANES):
        row = g[start:start + LANES]
        for lane in range(row.size):
            x = load(row, lane) * factor
            lanes[lane] += x * x
    width = LANES // 2
    while width:
        for lane in range(width):
            lanes[lane] += lanes[width + lane]
        width //= 2
    parts[task] = lanes[0]


@njit(**POOL)
def _sum_of_squares_pool(tasks, g, each, factor, parts):
    for task in prange(tasks):
        _sum_of_squares(task, g, each, factor, parts)


def sum_of_squares(g: np.ndarray, factor: np.float32) -> np.float32:
    """The sum of (g factor)^2, accumulated in float32: tasks of 2048 or more, 64 sums in each."""
    each, tasks = shares(g.size, LEAST)
    parts = np.empty(tasks, np.float32)
    run(_sum_of_squares, _sum_of_squares_pool, tasks, bits(g.reshape(-1)), each, factor, parts)
    return parts[0] if tasks == 1 else parts.sum(dtype=np.float32)


@njit(**JIT)
def _adamw(task, w, g, m, v, out, each, numbers):
    start, stop = task * each, (task + 1) * each
    w, g, m, v, out = w[start:stop], g[start:stop], m[start:stop], v[start:stop], out[start:stop]
    factor, c1, c2, unbias1 = numbers[0], numbers[1], numbers[2], numbers[3]
    unbias2, eps, lr, decay = numbers[4], numbers[5], numbers[6], numbers[7]
    for i in range(w.size):
        gi = load(g, i) * factor
        mi, vi = load(m, i), load(v, i)
        store(m, i, mi + c1 * (gi - mi))
        store(v, i, vi + c2 * (gi * gi - vi))
        update = load(m, i) * unbias1 / (np.sqrt(load(v, i) * unbias2) + eps)
        store(out, i, load(w, i) * decay - lr * update)


@njit(**POOL)
def _adamw_pool(tasks, w, g, m, v, out, each, numbers):
    for task in prange(tasks):
        _adamw(task, w, g, m, v, out, each, numbers)


def adamw(w, g, m, v, numbers: np.ndarray) -> np.ndarray:
    """New weights, as a new array; the moments are updated in place. All arrays of one shape, float32 or float16.

    numbers (8,) float32: what gradients are multiplied by first, 1 - beta1, 1 - beta2, both bias corrections, eps, lr, decay.
    """
    out, flat_m, flat_v = np.empty(w.shape, w.dtype), m.reshape(-1), v.reshape(-1)
    arrays = [bits(a) for a in (w.reshape(-1), g.reshape(-1), flat_m, flat_v, out.reshape(-1))]
    each, tasks = shares(w.size, LEAST)
    run(_adamw, _adamw_pool, tasks, *arrays, each, numbers)
    for moments, flat in ((m, flat_m), (v, flat_v)):
        if not moments.flags.c_contiguous:       # then reshape has made a copy, and the update is in that
            moments[...] = flat.reshape(moments.shape)
    return out
