"""AdamW in one pass over each parameter, and the sum of squares behind the global norm.

AdamW does the same operations in the same order as its NumPy twin in minillm.optim, so both give the same bits.
"""
import numpy as np
from numba import njit

from minillm.kernels.scalars import JIT, bits, load, store

BLOCK, LANES = 4096, 16


@njit(**JIT)
def _sum_of_squares(g, factor):
    total = np.float32(0)
    lanes = np.empty(LANES, np.float32)
    for start in range(0, g.size, BLOCK):                # blocks, so that a long sum does not swamp its last terms
        lanes[:] = np.float32(0)
        stop = min(start + BLOCK, g.size)
        whole = start + (stop - start) // LANES * LANES
        for i in range(start, whole, LANES):
            for lane in range(LANES):                    # sixteen sums side by side: one vector register, a fixed order
                x = load(g, i + lane) * factor
                lanes[lane] += x * x
        for i in range(whole, stop):
            x = load(g, i) * factor
            lanes[0] += x * x
        part = np.float32(0)
        for lane in range(LANES):
            part += lanes[lane]
        total += part
    return total


def sum_of_squares(g: np.ndarray, factor: np.float32) -> np.float32:
    """The sum of (g factor)^2, accumulated in float32: 16 lanes, blocks of 4096."""
    return _sum_of_squares(bits(np.ravel(g)), factor)


@njit(**JIT)
def _adamw(w, g, m, v, out, factor, c1, c2, unbias1, unbias2, eps, lr, decay):
    for i in range(w.size):
        gi = load(g, i) * factor
        mi, vi = load(m, i), load(v, i)
        store(m, i, mi + c1 * (gi - mi))
        store(v, i, vi + c2 * (gi * gi - vi))
        update = load(m, i) * unbias1 / (np.sqrt(load(v, i) * unbias2) + eps)
        store(out, i, load(w, i) * decay - lr * update)


def adamw(w, g, m, v, *constants: np.float32) -> np.ndarray:
    """New weights, as a new array; the moments are updated in place. All arrays of one shape, float32 or float16."""
    out, flat_m, flat_v = np.empty(w.shape, w.dtype), m.ravel(), v.ravel()
    _adamw(*(bits(a.reshape(-1)) for a in (w, g, flat_m, flat_v, out)), *constants)
    for moments, flat in ((m, flat_m), (v, flat_v)):
        if not moments.flags.c_contiguous:       # then ravel has made a copy, and the update is in that
            moments[...] = flat.reshape(moments.shape)
    return out
