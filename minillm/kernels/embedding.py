"""Rows of a table by id, and the gradient of the table: the rows' cotangents, summed in the order in which the ids stand.

A task has a stripe of the table, 16 columns, and walks all ids: so threads never meet in a row, and every sum has the one order
that NumPy's add.at has. Rows that no id names are 0.
"""
import numpy as np
from numba import njit, prange

from minillm.kernels import tasks
from minillm.kernels.rounding import to_float16
from minillm.kernels.scalars import JIT, bits, load, store

STRIPE = 16                        # columns: one cache line of float32
SMALL = 4096                       # cotangents that one task sums by itself


@njit(**JIT)
def _embedding(weight, ids, y, rows, task):
    V, C = weight.shape
    for i in range(task * rows, min(ids.size, (task + 1) * rows)):
        yi, row = y[i], ids[i]
        if 0 <= row < V:
            wi = weight[row]
            for j in range(C):
                store(yi, j, load(wi, j))
        else:
            for j in range(C):
                store(yi, j, np.float32(np.nan))


@njit(parallel=True, **JIT)
def _embedding_pool(weight, ids, y, rows, count):
    for task in prange(count):
        _embedding(weight, ids, y, rows, task)


@njit(**JIT)
def _embedding_vjp(g, ids, table, width, task):
    table = table[:, task * width:(task + 1) * width]
    columns = g[:, task * width:(task + 1) * width]
    for i in range(ids.size):
        if 0 <= ids[i] < len(table):
            total, gi = table[ids[i]], columns[i]
            for j in range(gi.size):
                total[j] += load(gi, j)


@njit(parallel=True, **JIT)
def _embedding_vjp_pool(g, ids, table, width, count):
    for task in prange(count):
        _embedding_vjp(g, ids, table, width, task)


def flat_ids(ids):
    return np.ascontiguousarray(ids.reshape(-1), np.int64)


def embedding(weight, ids, *, out):
    """(V,C), ids (...) -> (...,C). Ids must be rows of the table: others give NaN."""
    C = weight.shape[-1]
    y, rows = np.empty((*ids.shape, C), out), max(1, tasks.BLOCK // C)
    tasks.run(_embedding, _embedding_pool, tasks.count(ids.size, rows), bits(weight), flat_ids(ids), bits(y.reshape(-1, C)), rows)
    return y


def embedding_vjp(g, weight_shape, ids, out=(np.float32, np.float32)):
    """The gradient of the table (V,C), float32 accumulate; none of the ids."""
    C = weight_shape[-1]
    table, width = np.zeros(weight_shape, np.float32), STRIPE if ids.size * C > SMALL else C
    tasks.run(_embedding_vjp, _embedding_vjp_pool, tasks.count(C, width), bits(g.reshape(-1, C)), flat_ids(ids), table, width)
    return (to_float16(table) if out[0] is np.float16 else table), None
