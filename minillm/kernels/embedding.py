"""Rows of a table by id, and the gradient of the table: the rows' cotangents, summed in the order in which the ids stand.

A task has 16 columns, one cache line of a row, and walks all ids: so threads never meet, and every sum has the one order
that NumPy's add.at has. Rows that no id names are 0.
"""
import numpy as np
from numba import njit

from minillm.kernels.lanes import LANES, read, write
from minillm.kernels.launch import TASK, many_in_pool
from minillm.kernels.rounding import to_float16
from minillm.kernels.scalars import JIT, bits, load, store
from minillm.kernels.tasks import shares

LEAST = 4096                       # values in a task of the forward pass at least
ZERO = np.float32(0)


@njit(**TASK)
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


@njit(**JIT)
def _embedding_pool(tasks, weight, ids, y, rows):
    many_in_pool(_embedding, tasks, (weight, ids, y, rows))


@njit(**TASK)
def _embedding_vjp(task, V, C, g, ids, table):
    j = task * LANES
    for i in range(ids.size):
        if 0 <= ids[i] < V:
            at = ids[i] * C + j
            write(table, at, C - j, read(table, at, C - j, ZERO) + read(g, i * C + j, C - j, ZERO))


@njit(**JIT)
def _embedding_vjp_pool(tasks, V, C, g, ids, table):
    many_in_pool(_embedding_vjp, tasks, (V, C, g, ids, table))


def flat_ids(ids):
    return np.ascontiguousarray(ids.reshape(-1), np.int64)


def embedding(weight, ids, *, out):
    """(V,C), ids (...) -> (...,C). Ids must be rows of the table: others give NaN."""
    C = weight.shape[-1]
    y, (rows, tasks) = np.empty((*ids.shape, C), out), shares(ids.size, LEAST // C)
    _embedding_pool(tasks, bits(weight), flat_ids(ids), bits(y.reshape(-1, C)), rows)
    return y


def embedding_vjp(g, weight_shape, ids, out=(np.float32, np.float32)):
    """The gradient of the table (V,C), float32 accumulate; none of the ids."""
    (V, C), table = weight_shape, np.zeros(weight_shape, np.float32)
    _embedding_vjp_pool(-(-C // LANES), V, C, bits(g.reshape(-1)), flat_ids(ids), table.reshape(-1))
    return (to_float16(table) if out[0] is np.float16 else table), None
