"""How a matrix product becomes fast, rung by rung: (M,K) (K,N) -> (M,N) in float32, the same bits on each.

GFLOP/s at n = 512 on one core of a Cascade Lake at 2.5 GHz, measured in one run; its two units for fused multiply-adds of 16 lanes
end at 160:

    naive              1.2    three loops
    tiled              14    blocks that stay in the cache, and a loop along rows that the compiler makes vectors of
    packed             25    a panel in the order of use, and four products for each time that a sum is loaded and stored
    micro-kernel       90    sums in registers, all threads: minillm.kernels.matmul, made of panels.py and tiles.py

Every rung adds the products of one value of the result in order of k, one fused multiply-add each ("contract" allows it), so that
they agree bit for bit.
"""
import numpy as np
from numba import njit

from minillm.kernels.scalars import JIT

FUSED = JIT | {"fastmath": {"contract"}}         # a x b + c with one rounding, nothing else
BLOCK = 128


@njit(**FUSED)
def naive(a, b):
    """Three loops, the definition. Each addition waits for the one before, each value of b comes from another line of the cache."""
    (M, K), N = a.shape, b.shape[1]
    c = np.empty((M, N), np.float32)
    for i in range(M):
        for j in range(N):
            total = np.float32(0)
            for k in range(K):
                total += a[i, k] * b[k, j]
            c[i, j] = total
    return c


@njit(**FUSED)
def tiled(a, b):
    """Adds: a block of b, 128 x 128, serves all rows of a before the next one; the inner loop runs along rows of b and c."""
    (M, K), N = a.shape, b.shape[1]
    c = np.zeros((M, N), np.float32)
    for j0 in range(0, N, BLOCK):
        for k0 in range(0, K, BLOCK):
            for i in range(M):
                sums = c[i, j0:j0 + BLOCK]
                for k in range(k0, min(k0 + BLOCK, K)):
                    x, row = a[i, k], b[k, j0:j0 + BLOCK]
                    for j in range(sums.size):
                        sums[j] += x * row[j]
    return c


@njit(**FUSED)
def packed(a, b):
    """Adds: 128 columns of b copied into a panel that is read from end to end; a sum is loaded and stored once in four steps."""
    (M, K), N = a.shape, b.shape[1]
    c = np.zeros((M, N), np.float32)
    for j0 in range(0, N, BLOCK):
        panel, whole = b[:, j0:j0 + BLOCK].copy(), K // 4 * 4
        for i in range(M):
            row, sums = a[i], c[i, j0:j0 + BLOCK]
            for k in range(0, whole, 4):
                b0, b1, b2, b3 = panel[k], panel[k + 1], panel[k + 2], panel[k + 3]
                for j in range(sums.size):
                    sums[j] = row[k + 3] * b3[j] + (row[k + 2] * b2[j] + (row[k + 1] * b1[j] + (row[k] * b0[j] + sums[j])))
            for k in range(whole, K):
                for j in range(sums.size):
                    sums[j] += row[k] * panel[k, j]
    return c
