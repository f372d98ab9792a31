"""Rows of a table by id, and the gradient of the table: the rows' cotangents, summed in the order in which the ids stand.

A task has a stripe of the table, 16 columns, and walks all ids: so threads never meet in a row, and every sum has the one order
that NumPy's add.at has. Rows that no id names are 0.
"""
import numpy as np
from numba import njit, prange

from minillm.kernels.rounding import to_float16
from minillm.kernels.scalars import JIT, bits, load, store
from minillm.kernels.tasks import POOL, run, shares

STRIPE = 16                        # columns: one cache line of float32
LEAST = 4096                       # values in a task of the forward pass at least


@njit(**JIT)
def _embedding(task, weight, ids, y, rows):
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


@njit(**POOL)
def _embedding_pool(tasks, weight, ids, y, rows):
    for task in prange(tasks):
        _embedding(task, weight, ids, y, rows)


@njit(**JIT)
def _embedding_vjp(task, g, ids, table):
    stripe, columns = table[:, task * STRIPE:(task + 1) * STRIPE], g[:, task * STRIPE:(task + 1) * STRIPE]
    for i in range(ids.size):
        if 0 <= ids[i] < len(table):
            total, gi = stripe[ids[i]], columns[i]
            for j in range(gi.size):
                total[j] += load(gi, j)


@njit(**POOL)
def _embedding_vjp_pool(tasks, g, ids, table):
    for task in prange(tasks):
        _embedding_vjp(task, g, ids, table)


def flat_ids(ids):
    return np.ascontiguousarray(ids.reshape(-1), np.int64)


def embedding(weight, ids, *, out):
    """(V,C), ids (...) -> (...,C). Ids must be rows of the table: others give NaN."""
    C = weight.shape[-1]
    y, (rows, tasks) = np.empty((*ids.shape, C), out), shares(ids.size, LEAST // C)
    run(_embedding, _embedding_pool, tasks, bits(weight), flat_ids(ids), bits(y.reshape(-1, C)), rows)
    return y


def embedding_vjp(g, weight_shape, ids, out=(np.float32, np.float32)):
    """The gradient of the table (V,C), float32 accumulate; none of the ids."""
    C = weight_shape[-1]
    table = np.zeros(weight_shape, np.float32)
    run(_embedding_vjp, _embedding_vjp_pool, -(-C // STRIPE), bits(g.reshape(-1, C)), flat_ids(ids), table)
    return (to_float16(table) if out[0] is np.float16 else table), None
