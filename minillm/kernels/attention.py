"""Causal attention, forward and backward: no T x T matrix, a head at a time, QUERIES queries against KEYS keys in the cache."""
import numpy as np
from numba import get_num_threads, get_thread_id, njit, prange

from minillm.kernels.rounding import to_float16, to_float32
from minillm.kernels.scalars import INSTRUCTION, JIT, bits, exp, load, store
from minillm.kernels.tiles import (
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

QUERIES = KEYS = 64
LOWEST = np.float32(-3e38)         # the largest score of a query that sees nothing, as in the rule

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
def write_row(row, at, D, factor, x, start):
    """D values of a padded float32 row times a number to where they belong."""
    part = D // LANES * LANES
    for d in range(0, part, LANES):
        move(row, at + d, x, start + d, factor)
    for d in range(part, D):
        store(x, start + d, row[at + d] * factor)


@njit(**JIT)
def turn(rows, count, D, turned):
    """Padded rows to turned[d, row], rows QUERIES apart."""
    Dp = up(D, WIDTH)
    for t in range(0, count, LANES):
        for d in range(0, D, LANES):
            turn_square(rows, t * Dp + d, Dp, turned, d * QUERIES + t, QUERIES)


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
def forward_head(q, k, v, head, heads, T, D, scale, y, tops, totals, of_keys, of_queries, blocks, numbers):
    me = get_thread_id()
    C, Dp, start = heads * D, up(D, WIDTH), head // heads * T * heads * D + head % heads * D
    keys, values, block = of_keys[me, 0], of_keys[me, 1], blocks[me, 0]
    queries, turned, out = of_queries[me, 0], of_queries[me, 1], of_queries[me, 2]
    top, total, old = numbers[me, 0], numbers[me, 1], numbers[me, 2]
    read_rows(k, start, C, T, D, np.float32(1), keys, up(T, WIDTH))
    read_rows(v, start, C, T, D, np.float32(1), values, up(T, WIDTH))
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
            write_row(out, t * Dp, D, np.float32(1) / whole, y, start + (i + t) * C)


@njit(parallel=True, **JIT)
def _attention(q, k, v, B, heads, T, D, scale, y, tops, totals, of_keys, of_queries, blocks, numbers):
    for head in prange(B * heads):
        forward_head(q, k, v, head, heads, T, D, scale, y, tops, totals, of_keys, of_queries, blocks, numbers)


@njit(**JIT)
def backward_head(g, q, k, v, head, heads, T, D, scale, tops, totals, dq, dk, dv, of_keys, of_queries, blocks, numbers):
    me = get_thread_id()
    C, Dp, start = heads * D, up(D, WIDTH), head // heads * T * heads * D + head % heads * D
    keys, values, dkeys, dvalues = of_keys[me, 0], of_keys[me, 1], of_keys[me, 2], of_keys[me, 3]
    queries, turned, gs, gs_turned = of_queries[me, 0], of_queries[me, 1], of_queries[me, 2], of_queries[me, 3]
    dqueries, weights, ds = of_queries[me, 4], blocks[me, 0], blocks[me, 1]
    top, share, mean = numbers[me, 0], numbers[me, 1], numbers[me, 2]
    read_rows(k, start, C, T, D, np.float32(1), keys, up(T, WIDTH))
    read_rows(v, start, C, T, D, np.float32(1), values, up(T, WIDTH))
    dkeys[:] = np.float32(0)
    dvalues[:] = np.float32(0)
    for i in range(0, T, QUERIES):
        count = min(QUERIES, T - i)
        columns, last = up(count, WIDTH), up(i + count, ROWS)
        read_rows(q, start + i * C, C, count, D, scale, queries, columns)
        read_rows(g, start + i * C, C, count, D, np.float32(1), gs, columns)
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
        for t in range(count):
            write_row(dqueries, t * Dp, D, scale, dq, start + (i + t) * C)
    for t in range(T):
        write_row(dkeys, t * Dp, D, np.float32(1), dk, start + t * C)
        write_row(dvalues, t * Dp, D, np.float32(1), dv, start + t * C)


@njit(parallel=True, **JIT)
def _attention_vjp(g, q, k, v, B, heads, T, D, scale, tops, totals, dq, dk, dv, of_keys, of_queries, blocks, numbers):
    for head in prange(B * heads):
        backward_head(g, q, k, v, head, heads, T, D, scale, tops, totals, dq, dk, dv, of_keys, of_queries, blocks, numbers)


def aligned(*shape):
    """Float32 scratch, one part for each worker, at a multiple of 64 bytes: a vector across two cache lines costs two loads."""
    size = int(np.prod(shape))
    memory = np.empty(size + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4
    return memory[start:start + size].reshape(shape)


def scratch(T, D, keys, queries, blocks, block_rows):
    Tp, Dp, workers = -(-T // WIDTH) * WIDTH, -(-D // WIDTH) * WIDTH, get_num_threads()
    return (aligned(workers, keys, Tp * Dp), aligned(workers, queries, QUERIES * Dp), aligned(workers, blocks, block_rows * QUERIES),
            aligned(workers, 3, QUERIES))


def flat(x):
    return bits(x).reshape(-1)


def attention(q, k, v, mask, *, heads, out, **_):
    """The rule's result for causal attention without a mask on as many keys as queries, and two numbers a row."""
    B, T, C = q.shape
    y, D = np.empty(q.shape, out), C // heads
    top, total = (np.empty((B, heads, T, 1), np.float32) for _ in range(2))
    _attention(flat(q), flat(k), flat(v), B, heads, T, D, np.float32(D ** -0.5), flat(y), flat(top), flat(total),
               *scratch(T, D, 2, 3, 1, KEYS))
    return y, {"top": top, "total": total}


def attention_vjp(g, q, k, v, top, total, *, heads, out=(np.float32,) * 4, **_):
    B, T, C = q.shape
    D = C // heads
    dq, dk, dv = (np.empty(q.shape, kind) for kind in out[:3])
    _attention_vjp(flat(g), flat(q), flat(k), flat(v), B, heads, T, D, np.float32(D ** -0.5), flat(top), flat(total),
                   flat(dq), flat(dk), flat(dv), *scratch(T, D, 4, 5, 2, -(-T // WIDTH) * WIDTH))
    return dq, dk, dv, None
