"""softmax and log_softmax along the last axis, forward and backward, a row at a time.

NumPy reads the array eight times and its exp takes 1.5 ns a value; here a row's exponentials wait in the cache for their sum.
"""
import numpy as np
from numba import njit

from minillm.kernels.lanes import (
    AHEAD,
    LANES,
    exp,
    exp_to_one,
    fetch_ahead,
    fetch_ahead_to_write,
    fused,
    in_every_lane,
    larger,
    largest,
    read,
    total,
    where,
    whole_vectors,
    write,
)
from minillm.kernels.launch import TASK, many_in_pool
from minillm.kernels.rowwise import BLOCK, expect, flat, row_shares, rows_in
from minillm.kernels.scalars import JIT

ZERO, ONE, INF = np.float32(0), np.float32(1), np.float32(np.inf)


@njit(**TASK)
def _softmax(task, each, rows, C, x, mask, y):
    width = whole_vectors(C)                     # a row of e is padded with -inf, so that the longest loop has whole vectors only
    end, step = min((task + 1) * each, rows), rows_in(BLOCK, width)
    e, tops, scales = np.empty(step * width, np.float32), np.empty(step, np.float32), np.empty(step, np.float32)
    seen = task * each * C % max(mask.size, 1)   # the mask's rows come round again and again
    for first in range(task * each, end, step):
        stop = min(first + step, end)
        for i in range(first, stop):
            top, own = in_every_lane(-INF), (i - first) * width
            for j in range(0, C, LANES):
                value = read(x, i * C + j, C - j, -INF)
                if mask.size:
                    value = where(mask, seen + j, C - j, value, -INF)
                write(e, own + j, LANES, value)
                top = larger(value, top)
            tops[i - first] = max(largest(top), np.float32(-3e38))             # -inf - -inf would be NaN
            seen = seen + C if seen + C < mask.size else 0
        for i in range(stop - first):            # a NaN is not in the top but reaches the sum, and with it the whole row
            top, sums = tops[i], in_every_lane(ZERO)
            for j in range(i * width, (i + 1) * width, LANES):
                fetch_ahead(x, stop * C + j)     # while the arithmetic is busy, memory is not: the next rows,
                fetch_ahead_to_write(y, first * C + j)                         # and where this block's results go
                value = exp_to_one(read(e, j, LANES, ZERO) - top)
                sums = sums + value
                write(e, j, LANES, value)
            whole = total(sums)
            scales[i] = ONE / (ONE if whole == ZERO else whole)                # nothing to see: 0 everywhere
        for i in range(first, stop):
            for j in range(0, C, LANES):
                write(y, i * C + j, C - j, read(e, (i - first) * width + j, LANES, ZERO) * scales[i - first])


@njit(**JIT)
def _softmax_pool(tasks, each, rows, C, x, mask, y):
    many_in_pool(_softmax, tasks, (each, rows, C, x, mask, y))


@njit(**TASK)
def _softmax_vjp(task, each, rows, C, g, y, dx):
    for i in range(task * each, min((task + 1) * each, rows)):
        at, along = i * C, in_every_lane(ZERO)
        for j in range(0, C, LANES):
            fetch_ahead(g, at + j + AHEAD)
            fetch_ahead(y, at + j + AHEAD)
            fetch_ahead_to_write(dx, at + j + AHEAD)
            along = fused(read(g, at + j, C - j, ZERO), read(y, at + j, C - j, ZERO), along)
        mean = total(along)
        for j in range(0, C, LANES):
            write(dx, at + j, C - j, read(y, at + j, C - j, ZERO) * (read(g, at + j, C - j, ZERO) - mean))


@njit(**JIT)
def _softmax_vjp_pool(tasks, each, rows, C, g, y, dx):
    many_in_pool(_softmax_vjp, tasks, (each, rows, C, g, y, dx))


@njit(**TASK)
def _log_softmax(task, each, rows, C, x, y):
    for i in range(task * each, min((task + 1) * each, rows)):
        at, top, sums = i * C, in_every_lane(-INF), in_every_lane(ZERO)
        for j in range(0, C, LANES):
            top = larger(read(x, at + j, C - j, -INF), top)
        m = largest(top)
        for j in range(0, C, LANES):
            sums = sums + exp_to_one(read(x, at + j, C - j, -INF) - m)
        off = np.log(total(sums))
        for j in range(0, C, LANES):
            write(y, at + j, C - j, read(x, at + j, C - j, ZERO) - m - off)


@njit(**JIT)
def _log_softmax_pool(tasks, each, rows, C, x, y):
    many_in_pool(_log_softmax, tasks, (each, rows, C, x, y))


@njit(**TASK)
def _log_softmax_vjp(task, each, rows, C, g, y, dx):
    for i in range(task * each, min((task + 1) * each, rows)):
        at, sums = i * C, in_every_lane(ZERO)
        for j in range(0, C, LANES):
            sums = sums + read(g, at + j, C - j, ZERO)
        whole = total(sums)
        for j in range(0, C, LANES):
            write(dx, at + j, C - j, read(g, at + j, C - j, ZERO) - exp(read(y, at + j, C - j, ZERO)) * whole)


@njit(**JIT)
def _log_softmax_vjp_pool(tasks, each, rows, C, g, y, dx):
    many_in_pool(_log_softmax_vjp, tasks, (each, rows, C, g, y, dx))


def mask_rows(mask, shape):
    """A mask as bytes, whose rows repeat over the rows of an array of this shape; none for None."""
    if mask is None:
        return np.empty(0, np.uint8)
    while mask.ndim > 1 and len(mask) == 1:
        mask = mask[0]
    mask = np.broadcast_to(np.asarray(mask, bool), shape[len(shape) - max(mask.ndim, 1):])
    return np.ascontiguousarray(mask).view(np.uint8).reshape(-1)


def on_rows(pool, x, out, before=(), after=()):
    """A new array of the shape of x, made from its rows, from flat arrays before them and whatever comes after."""
    C, rows, each, tasks = row_shares(x.shape)
    y = np.empty(x.shape, out)
    pool(tasks, each, rows, C, *before, flat(x), *after, flat(y))
    return y


def softmax(x, mask=None, *, axis=-1, out):
    """The rule's result along the last axis; the mask spreads over x."""
    return on_rows(_softmax_pool, x, out, after=(mask_rows(mask, x.shape),))


def softmax_vjp(g, y, axis=-1, *, out=(np.float32, np.float32)):
    expect(y.shape, g)
    return on_rows(_softmax_vjp_pool, y, out[0], before=(flat(g),)), None


def log_softmax(x, *, axis=-1, out):
    return on_rows(_log_softmax_pool, x, out)


def log_softmax_vjp(g, y, axis=-1, *, out=(np.float32,)):
    expect(y.shape, g)
    return (on_rows(_log_softmax_vjp_pool, y, out[0], before=(flat(g),)),)
