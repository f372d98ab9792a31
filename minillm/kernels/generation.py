"""A transformer block for one token: matrices times a vector, from float32, float16 or int8 weights, and cached keys and values.

Each weight is read once and used once, so a token takes as long as its bytes need to come from memory: int8 weights a quarter of
float32's time. What is left is the way from op to op; one compiled function for each block makes that short.
A row's sum runs in an order that depends on its length alone, and work is shared out by the shapes of arrays alone.
"""
import numpy as np
from numba import njit, types
from numba.extending import overload

from minillm.kernels.dot import rows_dot
from minillm.kernels.launch import TASK, in_pool
from minillm.kernels.scalars import JIT, bits_float, exp, float_bits, load, store

LANES = 16
SHARE = 2**16                      # bytes of weights in a task: some 5 us of a core; handing it to a thread costs 3
MOST_TASKS = 16
LARGEST_CODE, INFINITE = np.float32(127), np.int32(0x7F800000)
LOWEST = np.float32(2.0**-126)                                                 # of a scale: normal
HIGHEST = np.nextafter(np.finfo(np.float32).max / LARGEST_CODE, np.float32(0))                # 127 times it is finite


# --- a matrix times a vector

@njit(**JIT)
def widened(x):
    """A vector as float32."""
    wide = np.empty(x.size, np.float32)
    for i in range(x.size):
        wide[i] = load(x, i)
    return wide


@njit(**JIT)
def finish(y, sums, bias):
    """Y = sums + bias: arrays from their first value on, which LLVM vectorises; with a start it takes twelve times as long."""
    for n in range(y.size):
        store(y, n, sums[n] + bias[n])


@njit(**TASK)
def some_rows(task, tasks, x, y, weight, bias):
    """A task's part of y = weight x + bias, x float32."""
    start, stop = task * y.size // tasks, (task + 1) * y.size // tasks
    sums = np.empty(stop - start, np.float32)
    rows_dot(x, 0, weight.reshape(-1), start * x.size, x.size, x.size, sums, stop - start)
    finish(y[start:stop], sums, bias[start:stop])


@njit(**JIT)
def to_codes(x):
    """Of x (K,) float32: int8 codes, held as int16, half to even, and their scale, max|x| / 127; NaN unless all are finite."""
    top, codes = np.int32(0), np.zeros(x.size, np.int16)
    for k in range(x.size):
        top = max(top, np.int32(float_bits(x[k]) & 0x7FFFFFFF))               # of a size alone: NaN is larger than infinity
    if top >= INFINITE:
        return codes, np.float32(np.nan)
    scale = np.float32(1) if top == 0 else min(max(bits_float(top) / LARGEST_CODE, LOWEST), HIGHEST)
    for k in range(x.size):
        codes[k] = np.int16(np.rint(x[k] / scale))
    return codes, scale


@njit(**JIT)
def finish_int8(y, sums, x_scale, scale, bias):
    for n in range(y.size):
        y[n] = np.float32(sums[n]) * np.float32(x_scale * scale[n]) + bias[n]


@njit(**TASK)
def some_rows_int8(task, tasks, x, x_scale, y, weight, scale, bias):
    """A task's part of y = (weight x) (x_scale scale) + bias, the product of codes an exact int32."""
    start, stop = task * y.size // tasks, (task + 1) * y.size // tasks
    sums = np.empty(stop - start, np.int32)
    rows_dot(x, 0, weight.reshape(-1), start * x.size, x.size, x.size, sums, stop - start)
    finish_int8(y[start:stop], sums, x_scale, scale[start:stop], bias[start:stop])


@njit(**JIT)
def tasks_of(array):
    """How many tasks share these weights: one, without the pool, where less than two would be full."""
    return max(1, min(MOST_TASKS, array.size * array.itemsize // SHARE))


@njit(**JIT)
def linear_float(x, y, weight, bias):
    """Into y (N,): weight (N,K) x (K,) + bias (N,); weight, x, y float32 or float16 as bits; float32 accumulate, rounded once."""
    tasks = tasks_of(weight)
    in_pool(some_rows, tasks, (tasks, widened(x), y, weight, bias))


@njit(**JIT)
def linear_int8(x, y, weight, scale, bias):
    """Into y (N,) float32: codes (N,K) int8 with a scale (N,) times x (K,) float32, which becomes codes first, + bias (N,)."""
    (codes, x_scale), tasks = to_codes(x), tasks_of(weight)
    in_pool(some_rows_int8, tasks, (tasks, codes, x_scale, y, weight, scale, bias))


def linear(x, y, weight, scale, bias):
    """Either of the two; a scale of None where weight is no codes."""
    raise NotImplementedError("for use inside a kernel")


@overload(linear)
def _linear(x, y, weight, scale, bias):
    if weight.dtype == types.int8:
        return lambda x, y, weight, scale, bias: linear_int8(x, y, weight, scale, bias)
    return lambda x, y, weight, scale, bias: linear_float(x, y, weight, bias)


# --- the cache: rows (T,C) of float32 or of float16 as bits, or (codes (T,C) int8, scales (T,H) of each head's part of a row)

def rows_in(cache):
    """The rows themselves."""
    raise NotImplementedError("for use inside a kernel")


def scale_in(cache, t, head):
    """What a head's part of row t is to be multiplied by."""
    raise NotImplementedError("for use inside a kernel")


def write_row(cache, t, x):
    """Put x (C,) into row t."""
    raise NotImplementedError("for use inside a kernel")


@overload(rows_in, inline="always")
def _rows_in(cache):
    return (lambda cache: cache[0]) if isinstance(cache, types.BaseTuple) else (lambda cache: cache)


@overload(scale_in, inline="always")
def _scale_in(cache, t, head):
    if isinstance(cache, types.BaseTuple):
        return lambda cache, t, head: cache[1][t, head]
    return lambda cache, t, head: np.float32(1)


@overload(write_row)
def _write_row(cache, t, x):
    if not isinstance(cache, types.BaseTuple):
        def row(cache, t, x):                  # a loop: for `cache[t] = x` numba puts in a message that computes in double
            for c in range(x.size):
                cache[t, c] = x[c]
        return row

    def codes(cache, t, x):
        rows, scales = cache
        D, wide = x.size // scales.shape[1], widened(x)
        for head in range(scales.shape[1]):
            part, scales[t, head] = to_codes(wide[head * D:(head + 1) * D])
            for d in range(D):
                rows[t, head * D + d] = part[d]
    return codes


# --- one query over the cached keys

@njit(**TASK)
def attend_head(head, q, keys, values, count, heads, y):
    """One head of a query (C,) float32 over the first `count` rows of caches, into y (C,); softmax in float32."""
    C, D = q.size, q.size // heads
    first, scale = head * D, np.float32(D) ** np.float32(-0.5)
    scores, mixed = np.empty(count, np.float32), np.zeros(D, np.float32)
    rows_dot(q, first, rows_in(keys).reshape(-1), first, C, D, scores, count)
    top, total = -np.float32(np.inf), np.float32(0)
    for t in range(count):
        scores[t] *= scale * scale_in(keys, t, head)
        top = max(top, scores[t])
    for t in range(count):
        scores[t] = exp(scores[t] - top)
    for t in range(count):
        total += scores[t]
    for t in range(count):
        row, weight = rows_in(values)[t, first:first + D], scores[t] / total * scale_in(values, t, head)
        for d in range(D):
            mixed[d] += weight * np.float32(load(row, d))
    for d in range(D):
        store(y, first + d, mixed[d])


@njit(**JIT)
def attend(q, keys, values, count, heads, y):
    """Into y (C,): attention of a query (C,) over the first `count` rows of two caches."""
    wide = widened(q)
    if 2 * count * q.size * rows_in(keys).itemsize < SHARE:
        for head in range(heads):
            attend_head(head, wide, keys, values, count, heads, y)
    else:
        in_pool(attend_head, heads, (wide, keys, values, count, heads, y))


# --- the ops between

@njit(**JIT)
def total(x):
    """The sum of a float32 vector, sixteen sums side by side."""
    lanes, result = np.zeros(LANES, np.float32), np.float32(0)
    for start in range(0, x.size // LANES * LANES, LANES):
        for lane in range(LANES):
            lanes[lane] += x[start + lane]
    for lane in range(LANES):
        result += lanes[lane]
    for i in range(x.size // LANES * LANES, x.size):
        result += x[i]
    return result


@njit(**JIT)
def layer_norm(x, y, gain, shift, eps):
    """To mean 0 and variance 1, times gain, plus shift; sums in float32."""
    row, square, C = widened(x), np.empty(x.size, np.float32), np.float32(x.size)
    mean = total(row) / C
    for i in range(row.size):
        row[i] -= mean
        square[i] = row[i] * row[i]
    rstd = np.float32(1) / np.sqrt(total(square) / C + eps)
    for i in range(row.size):
        store(y, i, row[i] * rstd * gain[i] + shift[i])


@njit(**JIT)
def gelu(x):
    for i in range(x.size):
        u = load(x, i)
        z = np.float32(0.7978845608028654) * (u + np.float32(0.044715) * u * u * u)
        store(x, i, u / (np.float32(1) + exp(np.float32(-2) * z)))


@njit(**JIT)
def add(x, y):
    """X += y."""
    for i in range(x.size):
        store(x, i, load(x, i) + load(y, i))


@njit(**JIT)
def block(x, position, heads, keys, values, norm1, query, key, value, out, norm2, up, down):
    """Make of x (C,) the block's result for the token at `position`; its key and value are written into the caches.

    A norm is (gain, shift, eps), a linear layer (weight, scale or None, bias); gain, shift and bias are float32, 0 where there is
    none. Whatever is handed from op to op is rounded into what x holds: float32, or float16 as bits.
    """
    q, mixed, h, wide = np.empty_like(x), np.empty_like(x), np.empty_like(x), np.empty(up[0].shape[0], x.dtype)
    layer_norm(x, h, *norm1)
    linear(h, q, *query)
    linear(h, mixed, *key)
    write_row(keys, position, mixed)
    linear(h, mixed, *value)
    write_row(values, position, mixed)
    attend(q, keys, values, position + 1, heads, mixed)
    linear(mixed, h, *out)
    add(x, h)
    layer_norm(x, h, *norm2)
    linear(h, wide, *up)
    gelu(wide)
    linear(wide, h, *down)
    add(x, h)


@njit(**JIT)
def head(x, logits, norm, tokens):
    """Into logits (V,): the last norm of x (C,), and the tied head."""
    h = np.empty_like(x)
    layer_norm(x, h, *norm)
    linear(h, logits, *tokens)
