"""layer_norm and rms_norm, forward and backward, a row at a time: a row stays in the cache where NumPy reads the array six times.

Cotangents of gain and shift are sums over rows: first over the rows of each task, then over the tasks in their order.
"""
import functools
import math

import numpy as np
from numba import njit

from minillm.errors import MiniLLMError
from minillm.kernels.elementwise import stored
from minillm.kernels.lanes import AHEAD, LANES, fetch_ahead, fetch_ahead_to_write, fused, in_every_lane, read, total, write
from minillm.kernels.launch import TASK, many_in_pool
from minillm.kernels.scalars import JIT, bits
from minillm.kernels.tasks import VALUES, shares

ZERO, ONE = np.float32(0), np.float32(1)
BLOCK = 2048                       # values that pass a loop before the next loop begins: else each row waits for its own sums


@njit(inline="always")
def rows_in(values, C):
    return max(values // max(C, 1), 1)


@njit(inline="always")
def onto_the_first(tasks, C, sums):
    """The sums of every task are added to those of the first, in the order of tasks."""
    for task in range(1, tasks):
        for j in range(C):
            sums[j] += sums[task * C + j]


@njit(**TASK)
def _layer_norm(task, each, rows, C, x, gain, shift, eps, y, mean, rstd):
    end, step = min((task + 1) * each, rows), rows_in(BLOCK, C)
    for first in range(task * each, end, step):
        stop = min(first + step, end)
        for i in range(first, stop):
            sums = in_every_lane(ZERO)
            for j in range(0, C, LANES):
                fetch_ahead(x, i * C + j + AHEAD)
                sums = sums + read(x, i * C + j, C - j, ZERO)
            mean[i] = total(sums) / np.float32(C)
        for i in range(first, stop):
            squares, m = in_every_lane(ZERO), mean[i]
            for j in range(0, C, LANES):
                fetch_ahead_to_write(y, i * C + j)             # in the loop above, which waits for memory, it costs a sixth
                c = read(x, i * C + j, C - j, m) - m
                squares = fused(c, c, squares)
            rstd[i] = ONE / np.sqrt(total(squares) / np.float32(C) + eps)
        for i in range(first, stop):
            m, r = mean[i], rstd[i]
            for j in range(0, C, LANES):
                normal = (read(x, i * C + j, C - j, m) - m) * r
                write(y, i * C + j, C - j, fused(normal, read(gain, j, C - j, ZERO), read(shift, j, C - j, ZERO)))


@njit(**JIT)
def _layer_norm_pool(tasks, each, rows, C, x, gain, shift, eps, y, mean, rstd):
    many_in_pool(_layer_norm, tasks, (each, rows, C, x, gain, shift, eps, y, mean, rstd))


@njit(**TASK)
def _layer_norm_vjp(task, each, rows, C, g, x, gain, mean, rstd, dx, dgain, dshift):
    a, b = np.empty(each, np.float32), np.empty(each, np.float32)
    end, step = min((task + 1) * each, rows), rows_in(BLOCK, C)
    for first in range(task * each, end, step):
        stop = min(first + step, end)
        for i in range(first, stop):
            m, r, along, across = mean[i], rstd[i], in_every_lane(ZERO), in_every_lane(ZERO)
            for j in range(0, C, LANES):
                fetch_ahead(g, i * C + j + AHEAD)
                fetch_ahead(x, i * C + j + AHEAD)
                gj, normal = read(g, i * C + j, C - j, ZERO), (read(x, i * C + j, C - j, m) - m) * r
                h = gj * read(gain, j, C - j, ZERO)
                along, across = along + h, fused(h, normal, across)
            a[i - first], b[i - first] = total(along) / np.float32(C), total(across) / np.float32(C)
        for j in range(0, C, LANES):             # the sums over rows stay in registers
            gains, with_normal = read(gain, j, C - j, ZERO), read(dgain, task * C + j, C - j, ZERO)
            alone = read(dshift, task * C + j, C - j, ZERO)
            for i in range(first, stop):
                gj, normal = read(g, i * C + j, C - j, ZERO), (read(x, i * C + j, C - j, mean[i]) - mean[i]) * rstd[i]
                with_normal, alone = fused(gj, normal, with_normal), alone + gj
                fetch_ahead_to_write(dx, i * C + j)            # likewise: a tenth
                write(dx, i * C + j, C - j, (gj * gains - a[i - first] - normal * b[i - first]) * rstd[i])
            write(dgain, task * C + j, C - j, with_normal)
            write(dshift, task * C + j, C - j, alone)


@njit(**JIT)
def _layer_norm_vjp_pool(tasks, each, rows, C, g, x, gain, mean, rstd, dx, dgain, dshift):
    many_in_pool(_layer_norm_vjp, tasks, (each, rows, C, g, x, gain, mean, rstd, dx, dgain, dshift))
    onto_the_first(tasks, C, dgain)
    onto_the_first(tasks, C, dshift)


@njit(**TASK)
def _rms_norm(task, each, rows, C, x, gain, eps, y, rms):
    for i in range(task * each, min((task + 1) * each, rows)):
        at, squares = i * C, in_every_lane(ZERO)
        for j in range(0, C, LANES):
            value = read(x, at + j, C - j, ZERO)
            squares = fused(value, value, squares)
        r = ONE / np.sqrt(total(squares) / np.float32(C) + eps)
        rms[i] = r
        for j in range(0, C, LANES):
            write(y, at + j, C - j, read(x, at + j, C - j, ZERO) * r * read(gain, j, C - j, ZERO))


@njit(**JIT)
def _rms_norm_pool(tasks, each, rows, C, x, gain, eps, y, rms):
    many_in_pool(_rms_norm, tasks, (each, rows, C, x, gain, eps, y, rms))


@njit(**TASK)
def _rms_norm_vjp(task, each, rows, C, g, x, gain, rms, dx, dgain):
    own = task * C
    for i in range(task * each, min((task + 1) * each, rows)):
        at, r, across = i * C, rms[i], in_every_lane(ZERO)
        for j in range(0, C, LANES):
            gj, normal = read(g, at + j, C - j, ZERO), read(x, at + j, C - j, ZERO) * r
            across = fused(gj * read(gain, j, C - j, ZERO), normal, across)
            write(dgain, own + j, C - j, fused(gj, normal, read(dgain, own + j, C - j, ZERO)))
        b = total(across) / np.float32(C)
        for j in range(0, C, LANES):
            h, normal = read(g, at + j, C - j, ZERO) * read(gain, j, C - j, ZERO), read(x, at + j, C - j, ZERO) * r
            write(dx, at + j, C - j, (h - normal * b) * r)


@njit(**JIT)
def _rms_norm_vjp_pool(tasks, each, rows, C, g, x, gain, rms, dx, dgain):
    many_in_pool(_rms_norm_vjp, tasks, (each, rows, C, g, x, gain, rms, dx, dgain))
    onto_the_first(tasks, C, dgain)


def flat(x):
    """All values in a row, as they are stored."""
    return bits(x).reshape(-1)


def expect(shape, *arrays):
    """MiniLLMError for an array of another shape, which a loop would read past its end."""
    for a in arrays:
        if a.shape != shape:
            raise MiniLLMError(f"a kernel on rows got an array of shape {a.shape}: it must have shape {shape}")


@functools.cache
def row_shares(shape):
    """The length and the number of rows, how many of them go into a task, and how many tasks that makes."""
    C, rows = shape[-1], math.prod(shape[:-1])
    return C, rows, *shares(rows, VALUES // max(C, 1))


def layer_norm(x, gain, shift=None, *, eps, out):
    """The rule's result and its two numbers a row."""
    shift = np.zeros(gain.shape, gain.dtype) if shift is None else shift
    expect(x.shape[-1:], gain, shift)
    C, rows, each, tasks = row_shares(x.shape)
    y, mean, rstd = np.empty(x.shape, out), np.empty(rows, np.float32), np.empty(rows, np.float32)
    _layer_norm_pool(tasks, each, rows, C, flat(x), bits(gain), bits(shift), np.float32(eps), flat(y), mean, rstd)
    row = (*x.shape[:-1], 1)
    return y, {"mean": mean.reshape(row), "rstd": rstd.reshape(row)}


def layer_norm_vjp(g, x, gain, mean, rstd, *, out=(np.float32,) * 3):
    expect(x.shape, g)
    expect(x.shape[-1:], gain)
    expect((*x.shape[:-1], 1), mean, rstd)
    C, rows, each, tasks = row_shares(x.shape)
    dx, sums = np.empty(x.shape, out[0]), np.zeros((2, max(tasks, 1), C), np.float32)
    _layer_norm_vjp_pool(tasks, each, rows, C, flat(g), flat(x), bits(gain), flat(mean), flat(rstd), flat(dx),
        *sums.reshape(2, -1))
    return dx, stored(sums[0, 0].copy(), out[1]), stored(sums[1, 0].copy(), out[2])


def rms_norm(x, gain, *, eps, out):
    """The rule's result and its number a row."""
    expect(x.shape[-1:], gain)
    C, rows, each, tasks = row_shares(x.shape)
    y, rms = np.empty(x.shape, out), np.empty(rows, np.float32)
    _rms_norm_pool(tasks, each, rows, C, flat(x), bits(gain), np.float32(eps), flat(y), rms)
    return y, {"rms": rms.reshape(*x.shape[:-1], 1)}


def rms_norm_vjp(g, x, gain, rms, *, out=(np.float32,) * 2):
    expect(x.shape, g)
    expect(x.shape[-1:], gain)
    expect((*x.shape[:-1], 1), rms)
    C, rows, each, tasks = row_shares(x.shape)
    dx, dgain = np.empty(x.shape, out[0]), np.zeros((max(tasks, 1), C), np.float32)
    _rms_norm_vjp_pool(tasks, each, rows, C, flat(g), flat(x), bits(gain), flat(rms), flat(dx), flat(dgain))
    return dx, stored(dgain[0].copy(), out[1])
