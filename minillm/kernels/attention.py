"""Attention, forward and backward: no T x T matrix, a block of QUERIES queries and KEYS keys at a time, in the cache.

A head is one worker's alone, on scratch of its own, and every sum runs in one order: the same bits on any number of threads.
Forward keeps the running largest score and sum of Milakov and Gimelshein 2018 (arXiv 1805.02867). Backward keeps the weights of
one block of queries and the cotangents of these weights, for all keys, because a row's mean must be known before the first
cotangent of a score is; so scratch grows with T, not with its square.

Keys that a mask hides are never read: those that are seen are gathered, and each query has a limit, how many of them it sees, the
causal ones by their place. So one form serves every kind of attention, a tile beyond all its queries' limits is skipped, and a
row's bits do not depend on how far it is padded.

Two cores of a Cascade Lake at 2.5 GHz, November 2026, two threads, median ms of interleaved calls; PyTorch is 2.13's fused
scaled_dot_product_attention on contiguous heads:

     B     T   H   D    forward  PyTorch    with backward  PyTorch    float16: forward, with backward
    12    64   4  32      0.30     0.61          0.95         2.0              0.29     0.86
     8   256   4  64      3.1      5.9          14.0         20.4              2.8     10.1
     2  1024   4  64     10.2     15.0          36.4         52.5              9.9     35.6

From one sequence to another, 64 rows of 24 queries and 25 to 45 keys, H 4, D 32, float32: forward a third of the rule's time
with compiled products, backward 0.28 of it; float16 a twelfth and a tenth.

105 GFLOP/s at best. Each product alone is as fast as a tile of the machine can be, 140 on one core in a quiet moment and 76 in
another; one core alone needs 1.4 to 1.8 times as long as two. An exponential costs 0.3 ns.

NaN: a key reaches only the queries that see it. A NaN or infinity in a value reaches up to ROWS - 1 earlier queries, those of its
tile, as 0 x NaN, and one in a query or its cotangent as many later keys; in the rule it reaches every row of its head. What the
mask hides reaches nobody.
"""
import functools
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

scores, scores_at_edge = score_tile(False), score_tile(True)
weigh, weigh_at_edge = weight_tile(False), weight_tile(True)
cotangents, cotangents_at_edge = cotangent_tile(False), cotangent_tile(True)
add_product, add_turned_product = product_tile(False), product_tile(True)


@njit(inline="always")
def up(n, multiple):
    return (n + multiple - 1) // multiple * multiple


@njit(inline="always")
def part(memory, size, number):
    return memory[size * number:size * (number + 1)]


@njit(**JIT)
def look(seen, causal, ahead, places, limits):
    """For each mask the places of the keys that it shows, in order, and for each query how many of these it sees."""
    for b in range(len(seen)):
        n, sees = np.int32(0), np.int32(0)
        for key in range(seen.shape[1]):
            if seen[b, key]:
                places[b, n] = key
                n += np.int32(1)
        for t in range(limits.shape[1]):
            while sees < n and (places[b, sees] <= t + ahead or not causal):
                sees += np.int32(1)
            limits[b, t] = sees


@njit(inline="always")
def read_row(x, start, D, factor, rows, t):
    """D values times a number into a float32 row, padded with zeros to whole tiles."""
    Dp, vectors = up(D, WIDTH), D // LANES * LANES
    for d in range(0, vectors, LANES):
        move(x, start + d, rows, t * Dp + d, factor)
    for d in range(vectors, D):
        rows[t * Dp + d] = load(x, start + d) * factor
    for d in range(D, Dp):
        rows[t * Dp + d] = np.float32(0)


@njit(inline="always")
def write_row(rows, t, D, factor, x, start):
    """A padded float32 row times a number to where it belongs."""
    Dp, vectors = up(D, WIDTH), D // LANES * LANES
    for d in range(0, vectors, LANES):
        move(rows, t * Dp + d, x, start + d, factor)
    for d in range(vectors, D):
        store(x, start + d, rows[t * Dp + d] * factor)


@njit(**JIT)
def read_keys(x, start, step, places, n, D, rows):
    """The rows at these places, one after the other, and zeros up to whole tiles."""
    for t in range(n):
        read_row(x, start + places[t] * step, D, ONE, rows, t)
    rows[n * up(D, WIDTH):up(n, WIDTH) * up(D, WIDTH)] = np.float32(0)


@njit(**JIT)
def read_queries(x, start, step, count, D, factor, rows):
    """So many rows that lie `step` apart times a number, and zeros up to a whole block."""
    for t in range(count):
        read_row(x, start + t * step, D, factor, rows, t)
    rows[count * up(D, WIDTH):] = np.float32(0)


@njit(**JIT)
def write_queries(rows, count, D, factor, x, start, step):
    for t in range(count):
        write_row(rows, t, D, factor, x, start + t * step)


@njit(**JIT)
def write_keys(rows, n, D, x, start, step, places):
    for t in range(n):
        write_row(rows, t, D, ONE, x, start + places[t] * step)


@njit(**JIT)
def turn(rows, D, turned):
    """A block of padded rows to turned[d, row]."""
    for t in range(0, QUERIES, LANES):
        for d in range(0, D, LANES):
            turn_square(rows, t * up(D, WIDTH) + d, up(D, WIDTH), turned, d * QUERIES + t, QUERIES)


@njit(inline="always")
def attend(keys, values, turned, limits, j, D, block, out, old, top, total):
    """Keys from j on, for a block of queries: `out` and `total` grow by their part, `top` becomes the largest score so far."""
    Dp, n = up(D, WIDTH), min(KEYS, up(limits[QUERIES - 1], ROWS) - j)
    for t in range(QUERIES):                     # old[:] = top would compile for two seconds
        old[t] = top[t]
    for key in range(j, j + n, ROWS):
        if key + ROWS > limits[0]:
            scores_at_edge(keys, key * Dp, Dp, turned, D, block, (key - j) * QUERIES, top, key, limits)
        else:
            scores(keys, key * Dp, Dp, turned, D, block, (key - j) * QUERIES, top, key, limits)
    if j:                                        # bring what is summed already to the new largest scores
        for t in range(QUERIES):
            old[t] = exp(old[t] - top[t])
            total[t] *= old[t]
        for t in range(QUERIES):
            scale_row(out, t * Dp, Dp // LANES, old[t])
    exponentials(block, n, top, total)
    for d in range(0, Dp, WIDTH):
        for row in range(0, QUERIES, ROWS):
            depth = min(n, limits[row + ROWS - 1] - j)       # as deep as the last of these queries sees
            if depth > 0:
                add_turned_product(block, row, values, j * Dp + d, Dp, out, row * Dp + d, depth)


@njit(**TASK)
def forward_head(head, q, k, v, heads, Tq, Tk, D, scale, places, limits, y, tops, totals, memory):
    C, Dp, batch, sight = heads * D, up(D, WIDTH), head // heads, head // heads % len(places)
    q_start, k_start, n = batch * Tq * C + head % heads * D, batch * Tk * C + head % heads * D, limits[sight, -1]
    mine, panel, width = memory[get_thread_id()], up(Tk, WIDTH) * Dp, QUERIES * Dp
    keys, values, rest = part(mine, panel, 0), part(mine, panel, 1), mine[2 * panel:]
    queries, turned, out, rest = part(rest, width, 0), part(rest, width, 1), part(rest, width, 2), rest[3 * width:]
    top, total, old, block = part(rest, QUERIES, 0), part(rest, QUERIES, 1), part(rest, QUERIES, 2), rest[3 * QUERIES:]
    read_keys(k, k_start, C, places[sight], n, D, keys)
    read_keys(v, k_start, C, places[sight], n, D, values)
    for i in range(0, Tq, QUERIES):
        count, ends = min(QUERIES, Tq - i), limits[sight, i:i + QUERIES]
        read_queries(q, q_start + i * C, C, count, D, scale, queries)
        turn(queries, D, turned)
        out[:] = np.float32(0)
        top[:] = LOWEST
        total[:] = np.float32(0)
        for j in range(0, ends[QUERIES - 1], KEYS):
            attend(keys, values, turned, ends, j, D, block, out, old, top, total)
        for t in range(count):
            whole = total[t] if total[t] != 0 else ONE
            tops[head * Tq + i + t] = top[t]
            totals[head * Tq + i + t] = whole
            scale_row(out, t * Dp, Dp // LANES, ONE / whole)
        write_queries(out, count, D, ONE, y, q_start + i * C, C)


@njit(inline="always")
def weights_of(keys, values, turned, g_turned, limits, D, top, share, mean, weights, ds):
    """The weights of all keys that these queries see, in `ds` their cotangents, in `mean` the means of these."""
    Dp = up(D, WIDTH)
    mean[:] = np.float32(0)
    for key in range(0, limits[QUERIES - 1], ROWS):
        if key + ROWS > limits[0]:
            weigh_at_edge(keys, key * Dp, Dp, turned, D, weights, key * QUERIES, top, share, key, limits)
            cotangents_at_edge(values, key * Dp, Dp, g_turned, D, ds, key * QUERIES, weights, mean, key, limits)
        else:
            weigh(keys, key * Dp, Dp, turned, D, weights, key * QUERIES, top, share, key, limits)
            cotangents(values, key * Dp, Dp, g_turned, D, ds, key * QUERIES, weights, mean, key, limits)


@njit(inline="always")
def send_back(keys, queries, gs, limits, j, count, D, mean, weights, ds, dqueries, dkeys, dvalues):
    """What KEYS keys from j on and `count` queries add to the cotangents of queries, keys and values."""
    Dp, n = up(D, WIDTH), min(KEYS, up(limits[count - 1], ROWS) - j)
    score_cotangents(ds, weights, j * QUERIES, n, mean)
    for d in range(0, Dp, WIDTH):
        first = 0
        for key in range(j, j + n, ROWS):
            while limits[first] <= key:          # a query that does not see this key
                first += 1
            add_product(weights, key * QUERIES + first, gs, first * Dp + d, Dp, dvalues, key * Dp + d, count - first)
            add_product(ds, key * QUERIES + first, queries, first * Dp + d, Dp, dkeys, key * Dp + d, count - first)
        for row in range(0, count, ROWS):
            depth = min(n, limits[row + ROWS - 1] - j)
            if depth > 0:
                add_turned_product(ds, j * QUERIES + row, keys, j * Dp + d, Dp, dqueries, row * Dp + d, depth)


@njit(**TASK)
def backward_head(head, g, q, k, v, heads, Tq, Tk, D, scale, places, limits, tops, totals, dq, dk, dv, memory):
    C, Dp, batch, sight = heads * D, up(D, WIDTH), head // heads, head // heads % len(places)
    q_start, k_start, n = batch * Tq * C + head % heads * D, batch * Tk * C + head % heads * D, limits[sight, -1]
    mine, panel, width, block = memory[get_thread_id()], up(Tk, WIDTH) * Dp, QUERIES * Dp, QUERIES * up(Tk, WIDTH)
    keys, values, dkeys, dvalues = part(mine, panel, 0), part(mine, panel, 1), part(mine, panel, 2), part(mine, panel, 3)
    rest = mine[4 * panel:]
    queries, turned, gs, g_turned = part(rest, width, 0), part(rest, width, 1), part(rest, width, 2), part(rest, width, 3)
    dqueries, rest = part(rest, width, 4), rest[5 * width:]
    top, share, mean, rest = part(rest, QUERIES, 0), part(rest, QUERIES, 1), part(rest, QUERIES, 2), rest[3 * QUERIES:]
    weights, ds = part(rest, block, 0), part(rest, block, 1)
    read_keys(k, k_start, C, places[sight], n, D, keys)
    read_keys(v, k_start, C, places[sight], n, D, values)
    dkeys[:] = np.float32(0)
    dvalues[:] = np.float32(0)
    for i in range(0, Tq, QUERIES):
        count, ends = min(QUERIES, Tq - i), limits[sight, i:i + QUERIES]
        read_queries(q, q_start + i * C, C, count, D, scale, queries)
        read_queries(g, q_start + i * C, C, count, D, ONE, gs)
        turn(queries, D, turned)
        turn(gs, D, g_turned)
        dqueries[:] = np.float32(0)
        for t in range(count):
            top[t] = tops[head * Tq + i + t]
            share[t] = ONE / totals[head * Tq + i + t]
        weights_of(keys, values, turned, g_turned, ends, D, top, share, mean, weights, ds)
        for j in range(0, ends[count - 1], KEYS):
            send_back(keys, queries, gs, ends, j, count, D, mean, weights, ds, dqueries, dkeys, dvalues)
        write_queries(dqueries, count, D, scale, dq, q_start + i * C, C)
    write_keys(dkeys, n, D, dk, k_start, C, places[sight])
    write_keys(dvalues, n, D, dv, k_start, C, places[sight])


@njit(**JIT)
def _attention(q, k, v, B, heads, Tq, Tk, D, scale, places, limits, y, tops, totals, memory):
    in_pool(forward_head, B * heads, (q, k, v, heads, Tq, Tk, D, scale, places, limits, y, tops, totals, memory))


@njit(**JIT)
def _attention_vjp(g, q, k, v, B, heads, Tq, Tk, D, scale, places, limits, tops, totals, dq, dk, dv, memory):
    in_pool(backward_head, B * heads,
            (g, q, k, v, heads, Tq, Tk, D, scale, places, limits, tops, totals, dq, dk, dv, memory))


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


def results(shapes, kinds, fill=np.empty):
    return [fill(shape, kind if INSTRUCTION else np.float32) for shape, kind in zip(shapes, kinds, strict=True)]


def rounded(found, kinds):
    return [x if x.dtype == kind else to_float16(x) for x, kind in zip(found, kinds, strict=True)]


def shown(seen, causal, Tq):
    """The places of the keys that each mask (B,Tk) shows, and how many of these each query sees, (B,Tq padded), int32."""
    places, limits = np.empty(seen.shape, np.int32), np.empty((len(seen), -(-Tq // WIDTH) * WIDTH), np.int32)
    look(seen, causal, seen.shape[1] - Tq, places, limits)
    return places, limits


@functools.lru_cache(64)
def all_shown(causal, Tq, Tk):
    """The same without a mask: kept, since these 7 us were a fiftieth of the smallest attention."""
    return shown(np.ones((1, Tk), bool), causal, Tq)


def sight(mask, causal, Tq, Tk):
    return all_shown(causal, Tq, Tk) if mask is None else shown(np.ascontiguousarray(mask).reshape(-1, Tk), causal, Tq)


def attention(q, k, v, mask=None, *, heads, out, causal=True, **_):
    """The rule's result (B,Tq,C), and two numbers a row. A mask (B,1,1,Tk) or (1,1,1,Tk) bool says which keys are seen."""
    (B, Tq, C), Tk = q.shape, k.shape[1]
    D, ys = C // heads, results([q.shape], [out])
    top, total = (np.empty((B, heads, Tq, 1), np.float32) for _ in range(2))
    _attention(flat(q), flat(k), flat(v), B, heads, Tq, Tk, D, np.float32(D ** -0.5), *sight(mask, causal, Tq, Tk),
               flat(ys[0]), flat(top), flat(total), scratch(Tk, D, 2, 3, KEYS))
    return rounded(ys, [out])[0], {"top": top, "total": total}


def attention_vjp(g, q, k, v, top, total, mask=None, *, heads, causal=True, out=(np.float32,) * 4, **_):
    """Cotangents of q, k and v, each float32 or rounded once to float16, 0 for a key that the mask hides; none for the mask."""
    (B, Tq, C), Tk = q.shape, k.shape[1]
    D, found = C // heads, results([q.shape, k.shape, v.shape], out[:3], np.empty if mask is None else np.zeros)
    _attention_vjp(flat(g), flat(q), flat(k), flat(v), B, heads, Tq, Tk, D, np.float32(D ** -0.5), *sight(mask, causal, Tq, Tk),
                   flat(top), flat(total), *map(flat, found), scratch(Tk, D, 4, 5, 2 * (-(-Tk // WIDTH) * WIDTH)))
    return *rounded(found, out[:3]), None
