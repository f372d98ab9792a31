"""Dropout: the mask is drawn from the key and a value's place, in the pass that applies it. The same bits as the rule."""
import numpy as np
from numba import njit

from minillm.kernels.launch import TASK, many_in_pool
from minillm.kernels.rounding import random_bits
from minillm.kernels.scalars import JIT, bits, load, store
from minillm.kernels.tasks import VALUES, shares


@njit(**TASK)
def _dropout(task, x, y, each, first_kept, stays, low_key, high_key):
    start = task * each
    x, y = x[start:start + each], y[start:start + each]
    for i in range(x.size):
        value = load(x, i) / stays
        if random_bits(start + i, low_key, high_key) < first_kept:
            value = np.float32(0)
        store(y, i, value)


@njit(**JIT)
def _dropout_pool(tasks, x, y, each, first_kept, stays, low_key, high_key):
    many_in_pool(_dropout, tasks, (x, y, each, first_kept, stays, low_key, high_key))


def dropout(x, *, rate, key=0, out):
    """Values that stay, divided by 1 - rate, and zeros; any shape. float32(1 - rate) is what NumPy divides by, too."""
    y, (each, tasks) = np.empty(x.shape, out), shares(x.size, VALUES)
    _dropout_pool(tasks, bits(x.reshape(-1)), bits(y.reshape(-1)), each, np.uint32(int(rate * 2**32)),
        np.float32(1 - rate), np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32))
    return y


def dropout_vjp(g, *, rate, key, out=(np.float32,)):
    """The same mask on the cotangent."""
    return (dropout(g, rate=rate, key=key, out=out[0]),)
