"""Causal attention, forward and backward: no T x T matrix, a block of QUERIES queries and KEYS keys at a time, in the cache.

A head is one worker's alone, on scratch of its own, and every sum runs in one order: the same bits on any number of threads.
Forward keeps the running largest score and sum of Milakov and Gimelshein 2018 (arXiv 1805.02867). Backward keeps the weights of
one block of queries and the cotangents of these weights, for all keys, because a row's mean must be known before the first
cotangent of a score is; so scratch grows with T, not with its square. Blocks above the diagonal are skipped.

Two cores of a Cascade Lake at 2.5 GHz, November 2026, two threads, median ms of interleaved calls; PyTorch is 2.13's fused
scaled_dot_product_attention on contiguous heads:

     B     T   H   D    forward  PyTorch    with backward  PyTorch    float16: forward, with backward
    12    64   4  32      0.30     0.61          0.95         2.0              0.29     0.86
     8   256   4  64      3.1      5.9          14.0         20.4              2.8     10.1
     2  1024   4  64     10.2     15.0          36.4         52.5              9.9     35.6

105 GFLOP/s at best. Each product alone is as fast as a tile of the machine can be, 140 on one core in a quiet moment and 76 in
another; one core alone needs 1.4 to 1.8 times as long as two. An exponential costs 0.3 ns.

NaN: a key reaches only the queries that see it. A NaN or infinity in a value reaches up to ROWS - 1 earlier queries, those of its
tile, as 0 x NaN, and one in a query or its cotangent as many later keys; in the rule it reaches every row of its head.
"""
import threading

import numpy as np
from numba import get_num_threads, get_thread_id, njit

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
from minillm.kernels.launch import TASK, in_pool
from minillm.kernels.rounding import to_float16, to_float32
from minillm.kernels.scalars import INSTRUCTION, JIT, bits, exp, load, store
from minillm.kernels.vectors import LANES

QUERIES, KEYS = WIDTH, 64
LOWEST, ONE = np.float32(-3e38), np.float32(1)   # the largest score of a query that sees nothing, as in the rule

scores, scores_on_diagonal = score_tile(False), score_tile(True)
weigh, weigh_on_diagonal = weight_tile(False), weight_tile(True)
cotangents, cotangents_on_diagonal = cotangent_tile(False), cotangent_tile(True)
add_product, add_turned_product = product_tile(False), product_tile(True)


@njit(inline="always")
def up(n, multiple):
    return (n + multiple - 1) // multiple * multiple


@njit(inline="always")
def part(memory, size, number):
    return memory[size * number:size * (number + 1)]


@njit(**JIT)
def read_rows(x, start, step, count, D, factor, rows, whole):
    """So many rows of D values that lie `step` apart, times a number, into float32 rows padded with zeros to whole tiles."""
    Dp, vectors = up(D, WIDTH), D // LANES * LANES
    for t in range(count):
        for d in range(0, vectors, LANES):
            move(x, start + t * step + d, rows, t * Dp + d, factor)
        for d in range(vectors, D):
            rows[t * Dp + d] = load(x, start + t * step + d) * factor
        for d in range(D, Dp):
            rows[t * Dp + d] = np.float32(0)
    rows[count * Dp:whole * Dp] = np.float32(0)


@njit(**JIT)
def write_rows(rows, count, D, factor, x, start, step):
    """So many padded float32 rows times a number to where they belong."""
    Dp, vectors = up(D, WIDTH), D // LANES * LANES
    for t in range(count):
        for d in range(0, vectors, LANES):
            move(rows, t * Dp + d, x, start + t * step + d, factor)
        for d in range(vectors, D):
            store(x, start + t * step + d, rows[t * Dp + d] * factor)


@njit(**JIT)
def turn(rows, D, turned):
    """A block of padded rows to turned[d, row]."""
    for t in range(0, QUERIES, LANES):
        for d in range(0, D, LANES):
            turn_square(rows, t * up(D, WIDTH) + d, up(D, WIDTH), turned, d * QUERIES + t, QUERIES)


@njit(inline="always")
def attend(keys, values, turned, i, j, D, block, out, old, top, total):
    """Keys from j on, for queries from i on: `out` and `total` grow by their part, `top` becomes the largest score so far."""
    Dp, n = up(D, WIDTH), min(KEYS, i + QUERIES - j)
    for t in range(QUERIES):                     # old[:] = top would compile for two seconds
        old[t] = top[t]
    for key in range(j, j + n, ROWS):
        if key - i > -ROWS:
            scores_on_diagonal(keys, key * Dp, Dp, turned, D, block, (key - j) * QUERIES, top, key - i)
        else:
            scores(keys, key * Dp, Dp, turned, D, block, (key - j) * QUERIES, top, key - i)
    if j:                                        # bring what is summed already to the new largest scores
        for t in range(QUERIES):
            old[t] = exp(old[t] - top[t])
            total[t] *= old[t]
        for t in range(QUERIES):
            scale_row(out, t * Dp, Dp // LANES, old[t])
    exponentials(block, n, top, total)
    for d in range(0, Dp, WIDTH):
        for row in range(0, QUERIES, ROWS):      # as deep as the last of these queries sees
            add_turned_product(block, row, values, j * Dp + d, Dp, out, row * Dp + d, min(n, i + row + ROWS - j))


@njit(**TASK)
def forward_head(head, q, k, v, heads, T, D, scale, y, tops, totals, memory):
    C, Dp, start = heads * D, up(D, WIDTH), head // heads * T * heads * D + head % heads * D
    mine, panel, width = memory[get_thread_id()], up(T, WIDTH) * Dp, QUERIES * Dp
    keys, values, rest = part(mine, panel, 0), part(mine, panel, 1), mine[2 * panel:]
    queries, turned, out, rest = part(rest, width, 0), part(rest, width, 1), part(rest, width, 2), rest[3 * width:]
    top, total, old, block = part(rest, QUERIES, 0), part(rest, QUERIES, 1), part(rest, QUERIES, 2), rest[3 * QUERIES:]
    read_rows(k, start, C, T, D, ONE, keys, up(T, WIDTH))
    read_rows(v, start, C, T, D, ONE, values, up(T, WIDTH))
    for i in range(0, T, QUERIES):
        count = min(QUERIES, T - i)
        read_rows(q, start + i * C, C, count, D, scale, queries, up(count, QUERIES))
        turn(queries, D, turned)
        out[:] = np.float32(0)
        top[:] = LOWEST
        total[:] = np.float32(0)
        for j in range(0, i + 1, KEYS):
            attend(keys, values, turned, i, j, D, block, out, old, top, total)
        for t in range(count):
            whole = total[t] if total[t] != 0 else ONE
            tops[head * T + i + t] = top[t]
            totals[head * T + i + t] = whole
            scale_row(out, t * Dp, Dp // LANES, ONE / whole)
        write_rows(out, count, D, ONE, y, start + i * C, C)


@njit(inline="always")
def weights_of(keys, values, turned, g_turned, i, last, D, top, share, mean, weights, ds):
    """The weights of all keys before `last` for queries from i on, in `ds` their cotangents, in `mean` the means of these."""
    Dp = up(D, WIDTH)
    mean[:] = np.float32(0)
    for key in range(0, last, ROWS):
        if key - i > -ROWS:
            weigh_on_diagonal(keys, key * Dp, Dp, turned, D, weights, key * QUERIES, top, share, key - i)
            cotangents_on_diagonal(values, key * Dp, Dp, g_turned, D, ds, key * QUERIES, weights, mean, key - i)
        else:
            weigh(keys, key * Dp, Dp, turned, D, weights, key * QUERIES, top, share, key - i)
            cotangents(values, key * Dp, Dp, g_turned, D, ds, key * QUERIES, weights, mean, key - i)


@njit(inline="always")
def send_back(keys, queries, gs, i, j, end, count, D, mean, weights, ds, dqueries, dkeys, dvalues):
    """What keys j ... end and `count` queries from i on add to the cotangents of queries, keys and values."""
    Dp = up(D, WIDTH)
    score_cotangents(ds, weights, j * QUERIES, end - j, mean)
    for d in range(0, Dp, WIDTH):
        for key in range(j, end, ROWS):
            first = max(0, key - i)              # earlier queries do not see this key
            add_product(weights, key * QUERIES + first, gs, first * Dp + d, Dp, dvalues, key * Dp + d, count - first)
            add_product(ds, key * QUERIES + first, queries, first * Dp + d, Dp, dkeys, key * Dp + d, count - first)
        for row in range(0, count, ROWS):
            depth = min(end, i + row + ROWS) - j
            add_turned_product(ds, j * QUERIES + row, keys, j * Dp + d, Dp, dqueries, row * Dp + d, depth)


@njit(**TASK)
def backward_head(head, g, q, k, v, heads, T, D, scale, tops, totals, dq, dk, dv, memory):
    C, Dp, start = heads * D, up(D, WIDTH), head // heads * T * heads * D + head % heads * D
    mine, panel, width, block = memory[get_thread_id()], up(T, WIDTH) * Dp, QUERIES * Dp, QUERIES * up(T, WIDTH)
    keys, values, dkeys, dvalues = part(mine, panel, 0), part(mine, panel, 1), part(mine, panel, 2), part(mine, panel, 3)
    rest = mine[4 * panel:]
    queries, turned, gs, g_turned = part(rest, width, 0), part(rest, width, 1), part(rest, width, 2), part(rest, width, 3)
    dqueries, rest = part(rest, width, 4), rest[5 * width:]
    top, share, mean, rest = part(rest, QUERIES, 0), part(rest, QUERIES, 1), part(rest, QUERIES, 2), rest[3 * QUERIES:]
    weights, ds = part(rest, block, 0), part(rest, block, 1)
    read_rows(k, start, C, T, D, ONE, keys, up(T, WIDTH))
    read_rows(v, start, C, T, D, ONE, values, up(T, WIDTH))
    dkeys[:] = np.float32(0)
    dvalues[:] = np.float32(0)
    for i in range(0, T, QUERIES):
        count = min(QUERIES, T - i)
        last = up(i + count, ROWS)
        read_rows(q, start + i * C, C, count, D, scale, queries, up(count, QUERIES))
        read_rows(g, start + i * C, C, count, D, ONE, gs, up(count, QUERIES))
        turn(queries, D, turned)
        turn(gs, D, g_turned)
        dqueries[:] = np.float32(0)
        for t in range(count):
            top[t] = tops[head * T + i + t]
            share[t] = ONE / totals[head * T + i + t]
        weights_of(keys, values, turned, g_turned, i, last, D, top, share, mean, weights, ds)
        for j in range(0, last, KEYS):
            send_back(keys, queries, gs, i, j, min(j + KEYS, last), count, D, mean, weights, ds, dqueries, dkeys, dvalues)
        write_rows(dqueries, count, D, scale, dq, start + i * C, C)
    write_rows(dkeys, T, D, ONE, dk, start, C)
    write_rows(dvalues, T, D, ONE, dv, start, C)


@njit(**JIT)
def _attention(q, k, v, B, heads, T, D, scale, y, tops, totals, memory):
    in_pool(forward_head, B * heads, (q, k, v, heads, T, D, scale, y, tops, totals, memory))


@njit(**JIT)
def _attention_vjp(g, q, k, v, B, heads, T, D, scale, tops, totals, dq, dk, dv, memory):
    in_pool(backward_head, B * heads, (g, q, k, v, heads, T, D, scale, tops, totals, dq, dk, dv, memory))


class Workspace(threading.local):
    """Scratch that is kept between calls: each thread of Python has its own, and in it each worker."""

    memory = np.empty((0, 0), np.float32)

    def of(self, size):
        """(workers, size) float32, each on a multiple of 64 bytes: a vector across two cache lines costs two loads."""
        workers, size = get_num_threads(), -(-size // 16) * 16
        if self.memory.shape[0] < workers or self.memory.shape[1] < size:
            values = np.empty(workers * size + 16, np.float32)
            start = -values.ctypes.data % 64 // 4
            self.memory = values[start:start + workers * size].reshape(workers, size)
        return self.memory


WORKSPACE = Workspace()


def scratch(T, D, panels, blocks, rows):
    """Room for so many arrays as long as the padded keys, so many blocks of queries, three numbers a query and rows of scores."""
    Tp, Dp = -(-T // WIDTH) * WIDTH, -(-D // WIDTH) * WIDTH
    return WORKSPACE.of(panels * Tp * Dp + QUERIES * (blocks * Dp + 3 + rows))


def flat(x):
    """Every value in a row; float32 where the processor cannot convert float16, since LLVM would call what numba does not have."""
    return bits(x if INSTRUCTION or x.dtype != np.float16 else to_float32(x)).reshape(-1)


def results(shape, kinds):
    return [np.empty(shape, kind if INSTRUCTION else np.float32) for kind in kinds]


def rounded(found, kinds):
    return [x if x.dtype == kind else to_float16(x) for x, kind in zip(found, kinds, strict=True)]


def attention(q, k, v, mask, *, heads, out, **_):
    """The rule's result (B,T,C) for causal attention without a mask on as many keys as queries, and two numbers a row."""
    B, T, C = q.shape
    D, ys = C // heads, results(q.shape, [out])
    top, total = (np.empty((B, heads, T, 1), np.float32) for _ in range(2))
    _attention(flat(q), flat(k), flat(v), B, heads, T, D, np.float32(D ** -0.5), flat(ys[0]), flat(top), flat(total),
               scratch(T, D, 2, 3, KEYS))
    return rounded(ys, [out])[0], {"top": top, "total": total}


def attention_vjp(g, q, k, v, top, total, *, heads, out=(np.float32,) * 4, **_):
    """Cotangents of q, k and v, each float32 or rounded once to float16; none for the mask."""
    B, T, C = q.shape
    D, found = C // heads, results(q.shape, out[:3])
    _attention_vjp(flat(g), flat(q), flat(k), flat(v), B, heads, T, D, np.float32(D ** -0.5), flat(top), flat(total),
                   *map(flat, found), scratch(T, D, 4, 5, 2 * (-(-T // WIDTH) * WIDTH)))
    return *rounded(found, out[:3]), None
