"""softmax and log_softmax along the last axis, forward and backward, a row at a time.

NumPy reads the array eight times and its exp takes 1.5 ns a value; here a row's exponentials wait in the cache for their sum.
"""
import numpy as np
from numba import njit, prange

from minillm.kernels.lanes import LANES, exp, fused, in_every_lane, larger, largest, read, total, where, write
from minillm.kernels.rowwise import BLOCK, expect, flat, row_shares, rows_in
from minillm.kernels.scalars import JIT
from minillm.kernels.tasks import POOL, run

ZERO, ONE, INF = np.float32(0), np.float32(1), np.float32(np.inf)


@njit(**JIT)
def _softmax(task, each, rows, C, x, mask, y):
    e, tops, scales = np.empty(max(BLOCK, C), np.float32), np.empty(each, np.float32), np.empty(each, np.float32)
    seen = task * each * C % mask.size           # the mask's rows come round again and again
    end, step = min((task + 1) * each, rows), rows_in(BLOCK, C)
    for first in range(task * each, end, step):
        stop = min(first + step, end)
        for i in range(first, stop):
            top = in_every_lane(-INF)
            for j in range(0, C, LANES):
                value = where(mask, seen + j, C - j, read(x, i * C + j, C - j, ZERO), -INF)
                write(e, (i - first) * C + j, C - j, value)
                top = larger(value, top)
            tops[i - first] = max(largest(top), np.float32(-3e38))             # -inf - -inf would be NaN
            seen = seen + C if seen + C < mask.size else 0
        for i in range(first, stop):             # a NaN is not in the top but reaches the sum, and with it the whole row
            at, top, sums = (i - first) * C, tops[i - first], in_every_lane(ZERO)
            for j in range(0, C, LANES):
                value = exp(read(e, at + j, C - j, -INF) - top)
                sums = sums + value
                write(e, at + j, C - j, value)
            whole = total(sums)
            scales[i - first] = ONE / (ONE if whole == ZERO else whole)        # nothing to see: 0 everywhere
        for i in range(first, stop):
            for j in range(0, C, LANES):
                write(y, i * C + j, C - j, read(e, (i - first) * C + j, C - j, ZERO) * scales[i - first])


@njit(**POOL)
def _softmax_pool(tasks, each, rows, C, x, mask, y):
    for task in prange(tasks):
        _softmax(task, each, rows, C, x, mask, y)


@njit(**JIT)
def _softmax_vjp(task, each, rows, C, g, y, dx):
    for i in range(task * each, min((task + 1) * each, rows)):
        at, along = i * C, in_every_lane(ZERO)
        for j in range(0, C, LANES):
            along = fused(read(g, at + j, C - j, ZERO), read(y, at + j, C - j, ZERO), along)
        mean = total(along)
        for j in range(0, C, LANES):
            write(dx, at + j, C - j, read(y, at + j, C - j, ZERO) * (read(g, at + j, C - j, ZERO) - mean))


@njit(**POOL)
def _softmax_vjp_pool(tasks, each, rows, C, g, y, dx):
    for task in prange(tasks):
        _softmax_vjp(task, each, rows, C, g, y, dx)


@njit(**JIT)
def _log_softmax(task, each, rows, C, x, y):
    for i in range(task * each, min((task + 1) * each, rows)):
        at, top, sums = i * C, in_every_lane(-INF), in_every_lane(ZERO)
        for j in range(0, C, LANES):
            top = larger(read(x, at + j, C - j, -INF), top)
        m = largest(top)
        for j in range(0, C, LANES):
            sums = sums + exp(read(x, at + j, C - j, -INF) - m)
        off = np.log(total(sums))
        for j in range(0, C, LANES):
            write(y, at + j, C - j, read(x, at + j, C - j, ZERO) - m - off)


@njit(**POOL)
def _log_softmax_pool(tasks, each, rows, C, x, y):
    for task in prange(tasks):
        _log_softmax(task, each, rows, C, x, y)


@njit(**JIT)
def _log_softmax_vjp(task, each, rows, C, g, y, dx):
    for i in range(task * each, min((task + 1) * each, rows)):
        at, sums = i * C, in_every_lane(ZERO)
        for j in range(0, C, LANES):
            sums = sums + read(g, at + j, C - j, ZERO)
        whole = total(sums)
        for j in range(0, C, LANES):
            write(dx, at + j, C - j, read(g, at + j, C - j, ZERO) - exp(read(y, at + j, C - j, ZERO)) * whole)


@njit(**POOL)
def _log_softmax_vjp_pool(tasks, each, rows, C, g, y, dx):
    for task in prange(tasks):
        _log_softmax_vjp(task, each, rows, C, g, y, dx)


def mask_rows(mask, shape):
    """A mask as bytes, whose rows repeat over the rows of an array of this shape; one row of ones for None."""
    if mask is None:
        return np.ones(shape[-1], np.uint8)
    while mask.ndim > 1 and len(mask) == 1:
        mask = mask[0]
    mask = np.broadcast_to(np.asarray(mask, bool), shape[len(shape) - max(mask.ndim, 1):])
    return np.ascontiguousarray(mask).view(np.uint8).reshape(-1)


def on_rows(kernel, pool, x, out, before=(), after=()):
    """A new array of the shape of x, made from its rows, from flat arrays before them and whatever comes after."""
    C, rows, each, tasks = row_shares(x)
    y = np.empty(x.shape, out)
    run(kernel, pool, tasks, each, rows, C, *before, flat(x), *after, flat(y))
    return y


def softmax(x, mask=None, *, axis=-1, out):
    """The rule's result along the last axis; the mask spreads over x."""
    return on_rows(_softmax, _softmax_pool, x, out, after=(mask_rows(mask, x.shape),))


def softmax_vjp(g, y, axis=-1, *, out=(np.float32, np.float32)):
    expect(y.shape, g)
    return on_rows(_softmax_vjp, _softmax_vjp_pool, y, out[0], before=(flat(g),)), None


def log_softmax(x, *, axis=-1, out):
    return on_rows(_log_softmax, _log_softmax_pool, x, out)


def log_softmax_vjp(g, y, axis=-1, *, out=(np.float32,)):
    expect(y.shape, g)
    return (on_rows(_log_softmax_vjp, _log_softmax_vjp_pool, y, out[0], before=(flat(g),)),)
