"""AdamW in one pass over all parameters, and the sum of squares behind the global norm.

AdamW does the same operations in the same order as its NumPy twin in minillm.optim, so both give the same bits. It reads and writes
28 bytes a weight and is as fast as memory. A call for each of a model's many small parameters took 25 us, so they go in one: a
table says where the arrays of each begin, and threads share the work on all of them.
"""
import functools

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from minillm.errors import MiniLLMError
from minillm.kernels.launch import TASK, many_in_pool
from minillm.kernels.scalars import JIT, bits, load, store
from minillm.kernels.tasks import shares

LEAST, LANES = 2048, 64            # values in a task at least: AdamW moves 28 bytes for each, 3 us in all


# where arrays are

@functools.lru_cache(maxsize=256)
def tasks_of(sizes: tuple[int, ...]) -> np.ndarray:
    """The tasks of arrays of these sizes, (tasks,3) int64: the number of an array, the first of its values, how many."""
    tasks = []
    for number, size in enumerate(sizes):
        each, _ = shares(size, LEAST)
        tasks += [(number, first, min(each, size - first)) for first in range(0, size, each)]
    return np.array(tasks, np.int64)


@njit(**JIT)
def _note(table, row, array):
    table[row] = array.ctypes.data


@njit(**JIT)
def _note_all(table, row, w, g, m, v, result):
    """One call for the five arrays of a parameter takes half as long as five."""
    table[row, 0], table[row, 1], table[row, 2] = w.ctypes.data, g.ctypes.data, m.ctypes.data
    table[row, 3], table[row, 4] = v.ctypes.data, result.ctypes.data


@intrinsic
def _pointer(typingctx, address):
    def emit(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())
    return types.voidptr(types.intp), emit


@njit(**JIT)
def _share(tasks, task, addresses, like):
    """The values of a task, of arrays that begin at these addresses and are of the type of `like`."""
    begin = addresses[tasks[task, 0]] + tasks[task, 1] * like.itemsize
    return carray(_pointer(begin), (tasks[task, 2],), like.dtype)


def all_bits(arrays):
    """The arrays as kernels take them, and the first of them as a row: they are all float32, or all float16."""
    if len(found := {a.dtype for a in arrays}) > 1:
        raise MiniLLMError(f"arrays of {' and '.join(map(str, found))} in one list: call the kernel once for each type")
    arrays = [bits(a) for a in arrays]
    return arrays, arrays[0].reshape(-1)


# the sum of squares

@njit(**TASK)
def _sum_of_squares(task, tasks, addresses, like, factor, parts):
    """The sum of a task: 64 sums side by side, then the upper half onto the lower, in an order that is always the same."""
    g = _share(tasks, task, addresses, like)
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


@njit(**JIT)
def _sum_of_squares_pool(tasks, addresses, like, factor, parts):
    many_in_pool(_sum_of_squares, len(tasks), (tasks, addresses, like, factor, parts))


def sum_of_squares(gradients: list[np.ndarray], factor: np.float32) -> np.float32:
    """The sum of (g factor)^2 over arrays of one type, accumulated in float32: in tasks of 2048 or more, 64 sums in each."""
    gradients, like = all_bits(gradients)
    tasks, addresses = tasks_of(tuple([g.size for g in gradients])), np.empty(len(gradients), np.int64)
    for row, g in enumerate(gradients):
        _note(addresses, row, g)
    parts = np.empty(len(tasks), np.float32)
    _sum_of_squares_pool(tasks, addresses, like, factor, parts)
    return parts.sum(dtype=np.float32)


# AdamW

@njit(**TASK)
def _adamw(task, tasks, table, w_like, g_like, m_like, numbers):
    w, out = _share(tasks, task, table[:, 0], w_like), _share(tasks, task, table[:, 4], w_like)
    m, v = _share(tasks, task, table[:, 2], m_like), _share(tasks, task, table[:, 3], m_like)
    g, own = _share(tasks, task, table[:, 1], g_like), numbers[tasks[task, 0]]
    factor, c1, c2, unbias1 = own[0], own[1], own[2], own[3]
    unbias2, eps, lr, decay = own[4], own[5], own[6], own[7]
    for i in range(w.size):
        gi = load(g, i) * factor
        mi, vi = load(m, i), load(v, i)
        store(m, i, mi + c1 * (gi - mi))
        store(v, i, vi + c2 * (gi * gi - vi))
        update = load(m, i) * unbias1 / (np.sqrt(load(v, i) * unbias2) + eps)
        store(out, i, load(w, i) * decay - lr * update)


@njit(**JIT)
def _adamw_pool(tasks, table, w_like, g_like, m_like, numbers):
    many_in_pool(_adamw, len(tasks), (tasks, table, w_like, g_like, m_like, numbers))


def adamw(weights: list, gradients: list, m: list, v: list, numbers: np.ndarray) -> list[np.ndarray]:
    """New weights, as new arrays; the moments are updated in place. A list holds an array of each parameter, all of one type.

    numbers (parameters,8) float32: what gradients are multiplied by first, 1 - beta1, 1 - beta2, both bias corrections, eps, lr,
    decay.
    """
    results = [np.empty(w.shape, w.dtype) for w in weights]
    held, likes = zip(*map(all_bits, (weights, gradients, m, v, results)), strict=True)
    tasks, table = tasks_of(tuple([w.size for w in weights])), np.empty((len(weights), 5), np.int64)
    for row, arrays in enumerate(zip(*held, strict=True)):
        _note_all(table, row, *arrays)
    _adamw_pool(tasks, table, *likes[:3], numbers)
    for moments, used in zip((*m, *v), (*held[2], *held[3]), strict=True):
        if not moments.flags.c_contiguous:       # then `bits` has made a copy, and the update is in that
            moments[...] = used.view(moments.dtype)
    return results
