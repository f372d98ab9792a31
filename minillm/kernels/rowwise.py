"""layer_norm, forward and backward, a row at a time: a row stays in the cache where NumPy reads the array six times."""
import numpy as np
from numba import njit

from minillm.errors import MiniLLMError
from minillm.kernels.scalars import JIT, bits, load, store

LANES = 16                         # sums are sixteen side by side, in a fixed order: one vector register, the same bits each time


@njit(inline="always")
def total(row, lanes):
    """The sum of a float32 row, float32 accumulate."""
    lanes[:] = np.float32(0)
    whole = row.size // LANES * LANES
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            lanes[lane] += row[start + lane]
    for j in range(whole, row.size):
        lanes[0] += row[j]
    result = np.float32(0)
    for lane in range(LANES):
        result += lanes[lane]
    return result


@njit(**JIT)
def _layer_norm(x, gain, shift, shifted, eps, y, mean, rstd):
    rows, C = x.shape
    row, square, lanes = np.empty(C, np.float32), np.empty(C, np.float32), np.empty(LANES, np.float32)
    for i in range(rows):
        xi, yi = x[i], y[i]
        for j in range(C):
            row[j] = load(xi, j)
        m = total(row, lanes) / np.float32(C)
        for j in range(C):
            row[j] -= m
            square[j] = row[j] * row[j]
        r = np.float32(1) / np.sqrt(total(square, lanes) / np.float32(C) + eps)
        mean[i], rstd[i] = m, r
        if shifted:
            for j in range(C):
                store(yi, j, row[j] * r * load(gain, j) + load(shift, j))
        else:
            for j in range(C):
                store(yi, j, row[j] * r * load(gain, j))


@njit(**JIT)
def _layer_norm_vjp(g, x, gain, mean, rstd, dx, dgain, dshift):
    rows, C = x.shape
    normal, h, product = np.empty(C, np.float32), np.empty(C, np.float32), np.empty(C, np.float32)
    lanes = np.empty(LANES, np.float32)
    for i in range(rows):
        xi, gi, m, r = x[i], g[i], mean[i], rstd[i]
        for j in range(C):
            normal[j] = (load(xi, j) - m) * r
            h[j] = load(gi, j) * load(gain, j)
            product[j] = h[j] * normal[j]
            dgain[j] += load(gi, j) * normal[j]
            dshift[j] += load(gi, j)
        along, across = total(h, lanes) / np.float32(C), total(product, lanes) / np.float32(C)
        for j in range(C):
            dx[i, j] = r * (h[j] - along - normal[j] * across)


def rows_of(x):
    return bits(x.reshape(-1, x.shape[-1]))


def layer_norm(x, gain, shift=None, *, eps, out):
    """The rule's result and its two numbers a row."""
    for name, vector in (("gain", gain), ("shift", gain if shift is None else shift)):
        if vector.shape != x.shape[-1:]:         # the loop would read past its end
            raise MiniLLMError(f"a {name} of shape {vector.shape} beside rows of {x.shape[-1]}: it must have shape {x.shape[-1:]}")
    y = np.empty(x.shape, out)
    mean, rstd = np.empty((*x.shape[:-1], 1), np.float32), np.empty((*x.shape[:-1], 1), np.float32)
    _layer_norm(rows_of(x), bits(gain), bits(gain if shift is None else shift), shift is not None, np.float32(eps), rows_of(y),
                mean.reshape(-1), rstd.reshape(-1))
    return y, {"mean": mean, "rstd": rstd}


def layer_norm_vjp(g, x, gain, mean, rstd):
    dx, dgain, dshift = np.empty(x.shape, np.float32), np.zeros(gain.shape, np.float32), np.zeros(gain.shape, np.float32)
    _layer_norm_vjp(rows_of(g), rows_of(x), bits(gain), mean.reshape(-1), rstd.reshape(-1), rows_of(dx), dgain, dshift)
    return dx, dgain, dshift
