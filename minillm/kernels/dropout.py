"""Dropout: the mask is drawn from the key and a value's place, in the pass that applies it. The same bits as the rule."""
import numpy as np
from numba import njit, prange

from minillm.kernels import tasks
from minillm.kernels.rounding import random_bits
from minillm.kernels.scalars import JIT, bits, load, store

BLOCK = tasks.BLOCK


@njit(**JIT)
def _dropout(x, y, first_kept, stays, low_key, high_key, task):
    start = task * BLOCK
    x, y = x[start:start + BLOCK], y[start:start + BLOCK]
    for i in range(x.size):
        kept = random_bits(start + i, low_key, high_key) >= first_kept
        store(y, i, load(x, i) / stays if kept else np.float32(0))


@njit(parallel=True, **JIT)
def _dropout_pool(x, y, first_kept, stays, low_key, high_key, count):
    for task in prange(count):
        _dropout(x, y, first_kept, stays, low_key, high_key, task)


def dropout(x, *, rate, key=0, out):
    """Values that stay, divided by 1 - rate, and zeros; any shape. float32(1 - rate) is what NumPy divides by, too."""
    y = np.empty(x.shape, out)
    tasks.run(_dropout, _dropout_pool, tasks.count(x.size), bits(x.reshape(-1)), bits(y.reshape(-1)), np.uint32(int(rate * 2**32)),
              np.float32(1 - rate), np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32))
    return y


def dropout_vjp(g, *, rate, key, out=(np.float32,)):
    """The same mask on the cotangent."""
    return (dropout(g, rate=rate, key=key, out=out[0]),)
