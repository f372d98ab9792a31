"""Cross-entropy, forward and backward, a row of logits at a time: each is read once, and no probability is kept.

A row is copied into a buffer of whole vectors, so that no exp is left over to be computed by itself: 103 logits take six of
these, and fifteen such would take as long as all others.
"""
import numpy as np
from numba import njit, prange

from minillm.kernels.rounding import to_float16
from minillm.kernels.scalars import JIT, bits, bits_float, exp, float_bits, load, store
from minillm.kernels.tasks import POOL, run, shares

LANES = 32                         # sums are side by side, in a fixed order: the same bits each time
LEAST = 2048                       # logits in a task at least, 2 us


@njit(inline="always")
def _largest(row):
    """The largest value of a row; NaN where it holds one that is positive. Integers, of which LLVM takes the largest in vectors."""
    most = np.int32(-0x80000000)
    for j in range(row.size):
        pattern = float_bits(row[j])
        most = max(most, np.int32(pattern ^ np.int32((pattern >> 31) & 0x7FFFFFFF)))         # ordered as the values are
    return bits_float(np.int32(most ^ np.int32((most >> 31) & 0x7FFFFFFF)))


@njit(inline="always")
def _exponentials(row, top, lanes):
    """Replace a row of whole vectors by e^(row - top); lanes are added up to the sums."""
    for start in range(0, row.size, LANES):
        for lane in range(LANES):
            e = exp(row[start + lane] - top)
            row[start + lane] = e
            lanes[lane] += e


@njit(**JIT)
def _cross_entropy(task, logits, targets, counted, lse, losses, rows):
    N, V = logits.shape
    row, lanes = np.full((V + LANES - 1) // LANES * LANES, -np.float32(np.inf), np.float32), np.empty(LANES, np.float32)
    for i in range(task * rows, min(N, (task + 1) * rows)):
        xi, target = logits[i], targets[i]
        for j in range(V):
            row[j] = load(xi, j)
        row[V:] = -np.float32(np.inf)
        picked = row[target] if 0 <= target < V else np.float32(np.nan)
        top = _largest(row)
        lanes[:] = np.float32(0)
        _exponentials(row, top, lanes)
        total = np.float32(0)
        for lane in range(LANES):
            total += lanes[lane]
        lse[i] = top + np.log(total)
        losses[i] = lse[i] - picked if counted[i] else np.float32(0)


@njit(**POOL)
def _cross_entropy_pool(tasks, logits, targets, counted, lse, losses, rows):
    for task in prange(tasks):
        _cross_entropy(task, logits, targets, counted, lse, losses, rows)


@njit(**JIT)
def _cross_entropy_vjp(task, weight, logits, targets, counted, lse, dlogits, rows):
    N, V = logits.shape
    row, lanes = np.empty((V + LANES - 1) // LANES * LANES, np.float32), np.zeros(LANES, np.float32)
    for i in range(task * rows, min(N, (task + 1) * rows)):
        xi, di, target, w = logits[i], dlogits[i], targets[i], weight if counted[i] else np.float32(0)
        for j in range(V):
            row[j] = load(xi, j)
        row[V:] = np.float32(0)
        _exponentials(row, lse[i], lanes)
        if 0 <= target < V:
            row[target] -= np.float32(1)
        for j in range(V):
            store(di, j, row[j] * w)


@njit(**POOL)
def _cross_entropy_vjp_pool(tasks, weight, logits, targets, counted, lse, dlogits, rows):
    for task in prange(tasks):
        _cross_entropy_vjp(task, weight, logits, targets, counted, lse, dlogits, rows)


def rows_that_count(targets, ignore):
    """Flat int64 targets, and which of them count; how many these are, as float32."""
    targets = np.ascontiguousarray(targets.reshape(-1), np.int64)
    counted = np.ones(targets.shape, bool) if ignore is None else targets != ignore
    return targets, counted, np.float32(np.count_nonzero(counted))


def cross_entropy(logits, targets, *, ignore=None, out=np.float32):
    """The rule's result, and the log-sum-exp of each row, (N,1) float32. Targets that count must be classes: others give NaN."""
    V = logits.shape[-1]
    flat, (targets, counted, number) = bits(logits.reshape(-1, V)), rows_that_count(targets, ignore)
    lse, losses = np.empty((len(flat), 1), np.float32), np.empty(len(flat), np.float32)
    rows, tasks = shares(len(flat), LEAST // V)
    run(_cross_entropy, _cross_entropy_pool, tasks, flat, targets, counted, lse.reshape(-1), losses, rows)
    loss = np.asarray(losses.sum(dtype=np.float32) / number)                               # () f32, float32 accumulate
    return (to_float16(loss) if out is np.float16 else loss), {"lse": lse}


def cross_entropy_vjp(g, logits, targets, lse, *, ignore=None, out=(np.float32, np.float32)):
    """The cotangent of the logits; none of the targets."""
    V = logits.shape[-1]
    flat, (targets, counted, number) = bits(logits.reshape(-1, V)), rows_that_count(targets, ignore)
    dlogits, (rows, tasks) = np.empty(logits.shape, out[0]), shares(len(flat), LEAST // V)
    weight = np.float32(g) / number
    run(_cross_entropy_vjp, _cross_entropy_vjp_pool, tasks, weight, flat, targets, counted, lse.reshape(-1),
        bits(dlogits.reshape(-1, V)), rows)
    return dlogits, None
