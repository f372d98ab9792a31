"""Cross-entropy, forward and backward, a row of logits at a time: no probability is kept, the log-sum-exp of each row is."""
import numpy as np
from numba import njit

from minillm.kernels import lanes, scalars
from minillm.kernels.lanes import LANES, in_every_lane, larger, largest, read, total, write
from minillm.kernels.launch import TASK, many_in_pool
from minillm.kernels.rounding import to_float16
from minillm.kernels.scalars import JIT, bits, load, store
from minillm.kernels.tasks import shares

LEAST = 2048                       # logits in a task at least: 1 us
ZERO, ONE, INF, NAN = (np.float32(x) for x in (0, 1, np.inf, np.nan))


@njit(**TASK)
def _cross_entropy(task, each, V, logits, targets, counted, lse, losses):
    for i in range(task * each, min((task + 1) * each, targets.size)):
        at, top, sums = i * V, in_every_lane(-INF), in_every_lane(ZERO)
        for j in range(0, V, LANES):
            top = larger(read(logits, at + j, V - j, -INF), top)
        m = largest(top)                         # a NaN is passed over here, but reaches the sum
        for j in range(0, V, LANES):
            sums = sums + lanes.exp(read(logits, at + j, V - j, -INF) - m)
        lse[i] = m + np.log(total(sums))
        picked = load(logits, at + targets[i]) if 0 <= targets[i] < V else NAN
        losses[i] = lse[i] - picked if counted[i] else ZERO


@njit(**JIT)
def _cross_entropy_pool(tasks, each, V, logits, targets, counted, lse, losses):
    many_in_pool(_cross_entropy, tasks, (each, V, logits, targets, counted, lse, losses))


@njit(**TASK)
def _cross_entropy_vjp(task, each, V, logits, targets, counted, lse, weight, dlogits):
    for i in range(task * each, min((task + 1) * each, targets.size)):
        at, target, w = i * V, targets[i], weight if counted[i] else ZERO
        for j in range(0, V, LANES):
            write(dlogits, at + j, V - j, lanes.exp(read(logits, at + j, V - j, -INF) - lse[i]) * w)
        if 0 <= target < V:
            store(dlogits, at + target, (scalars.exp(load(logits, at + target) - lse[i]) - ONE) * w)


@njit(**JIT)
def _cross_entropy_vjp_pool(tasks, each, V, logits, targets, counted, lse, weight, dlogits):
    many_in_pool(_cross_entropy_vjp, tasks, (each, V, logits, targets, counted, lse, weight, dlogits))


def rows_that_count(targets, ignore):
    """Flat int64 targets, and which of them count; how many these are, as float32."""
    targets = np.ascontiguousarray(targets.reshape(-1), np.int64)
    counted = np.ones(targets.shape, bool) if ignore is None else targets != ignore
    return targets, counted, np.float32(np.count_nonzero(counted))


def cross_entropy(logits, targets, *, ignore=None, out):
    """The rule's result, and the log-sum-exp of each row, (N,1) float32. Targets that count must be classes: others give NaN."""
    V, (targets, counted, number) = logits.shape[-1], rows_that_count(targets, ignore)
    lse, losses = np.empty((targets.size, 1), np.float32), np.empty(targets.size, np.float32)
    each, tasks = shares(targets.size, LEAST // V)
    _cross_entropy_pool(tasks, each, V, bits(logits.reshape(-1)), targets, counted, lse.reshape(-1), losses)
    loss = np.asarray(losses.sum(dtype=np.float32) / number)                               # () f32, float32 accumulate
    return (to_float16(loss) if out is np.float16 else loss), {"lse": lse}


def cross_entropy_vjp(g, logits, targets, lse, *, ignore=None, out=(np.float32, np.float32)):
    """The cotangent of the logits; none of the targets."""
    V, (targets, counted, number) = logits.shape[-1], rows_that_count(targets, ignore)
    dlogits, (each, tasks) = np.empty(logits.shape, out[0]), shares(targets.size, LEAST // V)
    _cross_entropy_vjp_pool(tasks, each, V, bits(logits.reshape(-1)), targets, counted, lse.reshape(-1),
        np.float32(g) / number, bits(dlogits.reshape(-1)))
    return dlogits, None
