"""How a matrix product becomes fast, rung by rung: (M,K) (K,N) -> (M,N) in float32, the same bits on each.

GFLOP/s at n = 512 on one core of a Cascade Lake at 2.5 GHz, whose two units for fused multiply-adds of 16 lanes end at 160; the
micro-kernel alone, both panels in the first cache, was measured at 89 to 110:

    naive            NAIVE    three loops
    tiled            TILED    blocks that stay in the cache, and a loop along rows that the compiler makes vectors of
    packed           PACKED    panels in the order of use, and each row of b taken for several rows of a
    micro-kernel     MICRO    sums in registers, all threads: minillm.kernels.matmul, made of panels.py and tiles.py

Every rung adds the products of one value of the result in order of k, one fused multiply-add each ("contract" allows it), so that
they agree bit for bit.
"""
import numpy as np
from numba import njit

from minillm.kernels.scalars import JIT

FUSED = JIT | {"fastmath": {"contract"}}         # a x b + c with one rounding, nothing else
BLOCK, WIDTH, HEIGHT = 128, 32, 8


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
    """Adds: operands copied into panels that are read from end to end; rows of constant length, without a remainder.

    A panel's edge beyond the matrix is filled with zeros, and what they give is not copied into the result.
    """
    (M, K), N = a.shape, b.shape[1]
    c = np.empty((M, N), np.float32)
    columns, rows, sums = np.zeros((K, WIDTH), np.float32), np.zeros((K, HEIGHT), np.float32), np.empty((HEIGHT, WIDTH), np.float32)
    for j0 in range(0, N, WIDTH):
        wide = min(WIDTH, N - j0)
        columns[:, :wide] = b[:, j0:j0 + wide]
        for i0 in range(0, M, HEIGHT):
            high = min(HEIGHT, M - i0)
            for r in range(high):
                rows[:, r] = a[i0 + r]
            sums[:] = np.float32(0)
            for k in range(K):
                for r in range(HEIGHT):
                    for j in range(WIDTH):
                        sums[r, j] += rows[k, r] * columns[k, j]
            c[i0:i0 + high, j0:j0 + wide] = sums[:high, :wide]
    return c
