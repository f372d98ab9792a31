"""Causal attention, forward and backward: no T x T matrix, a head at a time, QUERIES queries against KEYS keys in the cache."""
import os
import threading

import numpy as np
from numba import get_num_threads, get_thread_id, njit, prange

from minillm.kernels.scalars import JIT, bits, exp, load, store
from minillm.kernels.attention_tiles import (
    ROWS,
    WIDTH,
    cotangent_tile,
    exponentials,
    move,
    product_tile,
    scale_row,
    score_cotangents,
    score_tile,
    turn_square,
    weight_tile,
)
from minillm.kernels.vectors import LANES

QUERIES = int(os.environ.get("QQ", 32))
KEYS = int(os.environ.get("KK", 64))
LOWEST = np.float32(-3e38)         # the largest score of a query that sees nothing, as in the rule
ONE = np.float32(1)

scores, scores_on_diagonal = score_tile(False), score_tile(True)
weigh, weigh_on_diagonal = weight_tile(False), weight_tile(True)
turn_back, turn_back_on_diagonal = cotangent_tile(False), cotangent_tile(True)
add_product, add_turned_product = product_tile(False, QUERIES), product_tile(True, QUERIES)


@njit(inline="always")
def up(n, multiple):
    return (n + multiple - 1) // multiple * multiple


@njit(**JIT)
def read_rows(x, start, step, count, D, factor, rows, whole):
    """So many rows of D values that lie `step` apart, times a number, into float32 rows padded with zeros to whole tiles."""
    Dp, part = up(D, WIDTH), D // LANES * LANES
    for t in range(count):
        for d in range(0, part, LANES):
            move(x, start + t * step + d, rows, t * Dp + d, factor)
        for d in range(part, D):
            rows[t * Dp + d] = load(x, start + t * step + d) * factor
        for d in range(D, Dp):
            rows[t * Dp + d] = np.float32(0)
    rows[count * Dp:whole * Dp] = np.float32(0)


@njit(**JIT)
def write_rows(rows, count, D, factor, x, start, step):
    """So many padded float32 rows times a number to where they belong."""
    Dp, part = up(D, WIDTH), D // LANES * LANES
    for t in range(count):
        for d in range(0, part, LANES):
            move(rows, t * Dp + d, x, start + t * step + d, factor)
        for d in range(part, D):
            store(x, start + t * step + d, rows[t * Dp + d] * factor)


@njit(**JIT)
def turn(rows, count, D, turned):
    """Padded rows to turned[d, row], rows QUERIES apart."""
    Dp = up(D, WIDTH)
    for t in range(0, count, LANES):
        for d in range(0, D, LANES):
            turn_square(rows, t * Dp + d, Dp, turned, d * QUERIES + t, QUERIES)


@njit(inline="always")
def cut(memory, T, D, of_keys, of_queries, numbers):
    """Scratch cut into arrays as long as the padded keys, as a block of queries, and one number a query."""
    panel, width = up(T, WIDTH) * up(D, WIDTH), QUERIES * up(D, WIDTH)
    second, third = of_keys * panel, of_keys * panel + of_queries * width
    return (memory[:second].reshape(of_keys, panel), memory[second:third].reshape(of_queries, width),
            memory[third:third + numbers * QUERIES].reshape(numbers, QUERIES))


@njit(**JIT)
def softmax_sums(block, c, n, first, out, Dp, old, top, total):
    """Scores of n keys to exponentials; what is already summed is brought to the new largest scores."""
    if not first:
        for t in range(c, c + WIDTH):
            old[t] = exp(old[t] - top[t])
            total[t] *= old[t]
        for t in range(c, c + WIDTH):
            scale_row(out, t * Dp, Dp // LANES, old[t])
    exponentials(block, c, QUERIES, n, top, total, c)


@njit(**JIT)
def forward_head(q, k, v, head, heads, T, D, scale, y, tops, totals, memory):
    C, Dp, start = heads * D, up(D, WIDTH), head // heads * T * heads * D + head % heads * D
    of_keys, of_queries, numbers = cut(memory[get_thread_id()], T, D, 2, 3, 3)
    block = memory[get_thread_id(), -QUERIES * KEYS:]
    keys, values = of_keys[0], of_keys[1]
    queries, turned, out = of_queries[0], of_queries[1], of_queries[2]
    top, total, old = numbers[0], numbers[1], numbers[2]
    read_rows(k, start, C, T, D, ONE, keys, up(T, WIDTH))
    read_rows(v, start, C, T, D, ONE, values, up(T, WIDTH))
    for i in range(0, T, QUERIES):
        count = min(QUERIES, T - i)
        columns = up(count, WIDTH)
        read_rows(q, start + i * C, C, count, D, scale, queries, columns)
        turn(queries, columns, D, turned)
        out[:columns * Dp], top[:], total[:] = np.float32(0), LOWEST, np.float32(0)
        for j in range(0, i + 1, KEYS):
            for c in range(0, columns, WIDTH):
                n = min(KEYS, i + c + WIDTH - j)
                old[:] = top
                for key in range(j, j + n, ROWS):
                    ahead, at = key - i - c, (key - j) * QUERIES + c
                    if ahead > -ROWS:
                        scores_on_diagonal(keys, key * Dp, Dp, turned, c, block, at, QUERIES, D, top, c, ahead)
                    else:
                        scores(keys, key * Dp, Dp, turned, c, block, at, QUERIES, D, top, c, ahead)
                softmax_sums(block, c, n, j == 0, out, Dp, old, top, total)
                for row in range(c, c + WIDTH, ROWS):
                    depth = min(n, i + row + ROWS - j)
                    for d in range(0, Dp, WIDTH):
                        add_turned_product(block, row, values, j * Dp + d, Dp, out, row * Dp + d, Dp, depth)
        for t in range(count):
            whole = total[t] if total[t] != 0 else np.float32(1)
            tops[head * T + i + t], totals[head * T + i + t] = top[t], whole
            scale_row(out, t * Dp, Dp // LANES, ONE / whole)
        write_rows(out, count, D, ONE, y, start + i * C, C)


@njit(parallel=True, **JIT)
def _attention(q, k, v, B, heads, T, D, scale, y, tops, totals, memory):
    for head in prange(B * heads):
        forward_head(q, k, v, head, heads, T, D, scale, y, tops, totals, memory)


@njit(**JIT)
def backward_head(g, q, k, v, head, heads, T, D, scale, tops, totals, dq, dk, dv, memory):
    C, Dp, start = heads * D, up(D, WIDTH), head // heads * T * heads * D + head % heads * D
    of_keys, of_queries, numbers = cut(memory[get_thread_id()], T, D, 4, 5, 3)
    blocks = memory[get_thread_id(), -2 * QUERIES * up(T, WIDTH):]
    keys, values, dkeys, dvalues = of_keys[0], of_keys[1], of_keys[2], of_keys[3]
    queries, turned, gs, gs_turned, dqueries = of_queries[0], of_queries[1], of_queries[2], of_queries[3], of_queries[4]
    top, share, mean = numbers[0], numbers[1], numbers[2]
    weights, ds = blocks[:QUERIES * up(T, WIDTH)], blocks[QUERIES * up(T, WIDTH):]
    read_rows(k, start, C, T, D, ONE, keys, up(T, WIDTH))
    read_rows(v, start, C, T, D, ONE, values, up(T, WIDTH))
    dkeys[:] = np.float32(0)
    dvalues[:] = np.float32(0)
    for i in range(0, T, QUERIES):
        count = min(QUERIES, T - i)
        columns, last = up(count, WIDTH), up(i + count, ROWS)
        read_rows(q, start + i * C, C, count, D, scale, queries, columns)
        read_rows(g, start + i * C, C, count, D, ONE, gs, columns)
        turn(queries, columns, D, turned)
        turn(gs, columns, D, gs_turned)
        mean[:], dqueries[:columns * Dp] = np.float32(0), np.float32(0)
        for t in range(count):
            top[t], share[t] = tops[head * T + i + t], np.float32(1) / totals[head * T + i + t]
        for key in range(0, last, ROWS):
            for c in range(0, columns, WIDTH):
                ahead, at = key - i - c, key * QUERIES + c
                if ahead > -ROWS:
                    if ahead < WIDTH:
                        weigh_on_diagonal(keys, key * Dp, Dp, turned, c, weights, at, QUERIES, D, top, share, c, ahead)
                        turn_back_on_diagonal(values, key * Dp, Dp, gs_turned, c, ds, at, QUERIES, D, weights, mean, c, ahead)
                else:
                    weigh(keys, key * Dp, Dp, turned, c, weights, at, QUERIES, D, top, share, c, ahead)
                    turn_back(values, key * Dp, Dp, gs_turned, c, ds, at, QUERIES, D, weights, mean, c, ahead)
        for j in range(0, last, KEYS):
            for c in range(0, columns, WIDTH):
                n = min(min(KEYS, i + c + WIDTH - j), last - j)
                score_cotangents(ds, weights, j * QUERIES + c, QUERIES, n, mean, c)
            for key in range(j, min(j + KEYS, last), ROWS):
                seen = max(0, key - i)
                for d in range(0, Dp, WIDTH):
                    add_product(weights, key * QUERIES + seen, gs, seen * Dp + d, Dp, dvalues, key * Dp + d, Dp, count - seen)
                    add_product(ds, key * QUERIES + seen, queries, seen * Dp + d, Dp, dkeys, key * Dp + d, Dp, count - seen)
            for row in range(0, up(count, ROWS), ROWS):
                depth = min(KEYS, i + row + ROWS - j)
                for d in range(0, Dp, WIDTH):
                    add_turned_product(ds, j * QUERIES + row, keys, j * Dp + d, Dp, dqueries, row * Dp + d, Dp, depth)
        write_rows(dqueries, count, D, scale, dq, start + i * C, C)
    write_rows(dkeys, T, D, ONE, dk, start, C)
    write_rows(dvalues, T, D, ONE, dv, start, C)


@njit(parallel=True, **JIT)
def _attention_vjp(g, q, k, v, B, heads, T, D, scale, tops, totals, dq, dk, dv, memory):
    for head in prange(B * heads):
        backward_head(g, q, k, v, head, heads, T, D, scale, tops, totals, dq, dk, dv, memory)


class Workspace(threading.local):
    """Scratch that is kept between calls: a thread of Python has its own, and in it each worker."""

    memory = np.empty((0, 0), np.float32)

    def of(self, size):
        """(workers, size) float32 on multiples of 64 bytes: a vector across two cache lines costs two loads."""
        workers = get_num_threads()
        if self.memory.shape[0] < workers or self.memory.shape[1] != size:
            values = np.empty(workers * size + 16, np.float32)
            start = -values.ctypes.data % 64 // 4
            self.memory = values[start:start + workers * size].reshape(workers, size)
        return self.memory


WORKSPACE = Workspace()


def scratch(T, D, of_keys, of_queries, block):
    Tp, Dp = -(-T // WIDTH) * WIDTH, -(-D // WIDTH) * WIDTH
    return WORKSPACE.of(of_keys * Tp * Dp + of_queries * QUERIES * Dp + 3 * QUERIES + QUERIES * block)


def flat(x):
    return bits(x).reshape(-1)


def attention(q, k, v, mask, *, heads, out, **_):
    """The rule's result for causal attention without a mask on as many keys as queries, and two numbers a row."""
    B, T, C = q.shape
    y, D = np.empty(q.shape, out), C // heads
    top, total = (np.empty((B, heads, T, 1), np.float32) for _ in range(2))
    _attention(flat(q), flat(k), flat(v), B, heads, T, D, np.float32(D ** -0.5), flat(y), flat(top), flat(total),
               scratch(T, D, 2, 3, KEYS))
    return y, {"top": top, "total": total}


def attention_vjp(g, q, k, v, top, total, *, heads, out=(np.float32,) * 4, **_):
    B, T, C = q.shape
    D = C // heads
    dq, dk, dv = (np.empty(q.shape, kind) for kind in out[:3])
    _attention_vjp(flat(g), flat(q), flat(k), flat(v), B, heads, T, D, np.float32(D ** -0.5), flat(top), flat(total),
                   flat(dq), flat(dk), flat(dv), scratch(T, D, 4, 5, 2 * (-(-T // WIDTH) * WIDTH)))
    return dq, dk, dv, None
