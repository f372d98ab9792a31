"""Causal attention, forward and backward, one head at a time: no T x T matrix, a row of scores stays in the cache.

NumPy makes seven passes over (B,H,T,T) in memory. Here a head's rows lie in scratch, padded with zeros to multiples of 16, so
that every product is made of whole vector registers. Sums run in one fixed order; a head needs nothing from another.
"""
import numpy as np
from numba import njit

from minillm.kernels.rounding import to_float16, to_float32
from minillm.kernels.scalars import JIT, exp
from minillm.kernels.simd import LANES, add_scaled, weighted_rows

one_register, two_registers, four_registers = weighted_rows(1), weighted_rows(2), weighted_rows(4)


@njit(inline="always")
def read_rows(x, b, first, D, rows):
    """One head of x (B,T,C) into padded scratch (T,D)."""
    for t in range(x.shape[1]):
        xt, row = x[b, t, first:first + D], rows[t]
        for d in range(D):
            row[d] = xt[d]


@njit(inline="always")
def turn(rows, T, D, turned):
    """(T,D) to (D,T)."""
    for d in range(D):
        for t in range(T):
            turned[d, t] = rows[t, d]


@njit(inline="always")
def products(out, weights, rows, count, n):
    """out[:n] = weights[:count] @ rows[:count, :n]."""
    start = 0
    while n - start >= 4 * LANES:
        four_registers(out, start, weights, rows, rows.shape[1], count)
        start += 4 * LANES
    if n - start >= 2 * LANES:
        two_registers(out, start, weights, rows, rows.shape[1], count)
        start += 2 * LANES
    if n - start >= LANES:
        one_register(out, start, weights, rows, rows.shape[1], count)


@njit(inline="always")
def total(row, n, lanes):
    """The sum of n values, a multiple of 16: sixteen sums side by side, then across."""
    lanes[:] = np.float32(0)
    for start in range(0, n, LANES):
        add_scaled(lanes, 0, np.float32(1), row, start)
    result = np.float32(0)
    for lane in range(LANES):
        result += lanes[lane]
    return result


@njit(**JIT)
def _attention(q, k, v, heads, scale, out, tops, totals):
    B, T, C = q.shape
    D, Tp, Dp = C // heads, -(-T // LANES) * LANES, -(-(C // heads) // LANES) * LANES
    qs, ks, vs = np.zeros((T, Dp), np.float32), np.zeros((Tp, Dp), np.float32), np.zeros((Tp, Dp), np.float32)
    keys = np.zeros((D, Tp), np.float32)
    s, mixed, lanes = np.empty(Tp, np.float32), np.empty(Dp, np.float32), np.empty(LANES, np.float32)
    for b in range(B):
        for h in range(heads):
            read_rows(q, b, h * D, D, qs)
            read_rows(v, b, h * D, D, vs)
            read_rows(k, b, h * D, D, ks)
            turn(ks, T, D, keys)
            for i in range(T):
                n = (i // LANES + 1) * LANES                 # keys 0 ... i, and up to 15 more that count as -inf
                products(s, qs[i], keys, D, n)
                top = -np.float32(np.inf)
                for t in range(i + 1):
                    s[t] *= scale
                    top = max(top, s[t])
                s[i + 1:n] = -np.float32(np.inf)
                for t in range(n):
                    s[t] = exp(s[t] - top)
                whole = total(s, n, lanes)
                tops[b, h, i, 0], totals[b, h, i, 0] = top, whole
                products(mixed, s, vs, i + 1, Dp)
                row = out[b, i]
                for d in range(D):
                    row[h * D + d] = mixed[d] / whole


@njit(**JIT)
def _attention_vjp(g, q, k, v, heads, scale, tops, totals, dq, dk, dv):
    B, T, C = q.shape
    D, Tp, Dp = C // heads, -(-T // LANES) * LANES, -(-(C // heads) // LANES) * LANES
    qs, gs = np.zeros((Tp, Dp), np.float32), np.zeros((Tp, Dp), np.float32)
    ks, vs = np.zeros((Tp, Dp), np.float32), np.zeros((Tp, Dp), np.float32)
    keys, values = np.zeros((D, Tp), np.float32), np.zeros((D, Tp), np.float32)
    dks, dvs = np.empty((Tp, Dp), np.float32), np.empty((Tp, Dp), np.float32)
    p, dp, weighted = np.empty(Tp, np.float32), np.empty(Tp, np.float32), np.empty(Tp, np.float32)
    row, lanes = np.empty(Dp, np.float32), np.empty(LANES, np.float32)
    for b in range(B):
        for h in range(heads):
            read_rows(q, b, h * D, D, qs)
            read_rows(g, b, h * D, D, gs)
            read_rows(k, b, h * D, D, ks)
            read_rows(v, b, h * D, D, vs)
            turn(ks, T, D, keys)
            turn(vs, T, D, values)
            dks[:, :] = np.float32(0)
            dvs[:, :] = np.float32(0)
            for i in range(T):
                n, top, whole = (i // LANES + 1) * LANES, tops[b, h, i, 0], totals[b, h, i, 0]
                products(p, qs[i], keys, D, n)
                products(dp, gs[i], values, D, n)
                for t in range(n):
                    p[t] = exp(p[t] * scale - top) / whole
                p[i + 1:n] = np.float32(0)
                for t in range(n):
                    weighted[t] = p[t] * dp[t]
                mean = total(weighted, n, lanes)
                for t in range(n):
                    dp[t] = p[t] * (dp[t] - mean) * scale    # the cotangent of the scores
                products(row, dp, ks, i + 1, Dp)
                for t in range(i + 1):
                    for start in range(0, Dp, LANES):
                        add_scaled(dks, t * Dp + start, dp[t], qs, i * Dp + start)
                        add_scaled(dvs, t * Dp + start, p[t], gs, i * Dp + start)
                for d in range(D):
                    dq[b, i, h * D + d] = row[d]
            for t in range(T):
                for d in range(D):
                    dk[b, t, h * D + d] = dks[t, d]
                    dv[b, t, h * D + d] = dvs[t, d]


def scale_of(q, heads):
    return np.float32((q.shape[-1] // heads) ** -0.5)


def wide(x):
    """As float32: converting here costs 1 % of the kernel, compiling it for float16 too would take five more seconds."""
    return np.ascontiguousarray(to_float32(x) if x.dtype == np.float16 else x)


def attention(q, k, v, mask, *, heads, out, **_):
    """The rule's result for causal attention without a mask on as many keys as queries, and two numbers a row."""
    y = np.empty(q.shape, np.float32)
    top, total = (np.empty((q.shape[0], heads, q.shape[1], 1), np.float32) for _ in range(2))
    _attention(wide(q), wide(k), wide(v), heads, scale_of(q, heads), y, top, total)
    return y if out is np.float32 else to_float16(y), {"top": top, "total": total}


def attention_vjp(g, q, k, v, top, total, *, heads, **_):
    dq, dk, dv = (np.empty(q.shape, np.float32) for _ in range(3))
    _attention_vjp(wide(g), wide(q), wide(k), wide(v), heads, scale_of(q, heads), top, total, dq, dk, dv)
    return dq, dk, dv, None
