"""Models that write answers: what their targets cost, and how an answer is found, by the likeliest token each time or by a beam."""
from collections.abc import Callable, Sequence

import numpy as np

from minillm.autograd.tensor import Tensor
from minillm.data.special import END, NO_TARGET, PAD
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32
from minillm.nn import KeyValueCache, Module
from minillm.precision.recipe import Ops
from minillm.rounding import widen


class Writer:
    """What follows texts that grow, several at once: `forward(ids, caches, start)` gives logits (B,n,V) behind each of ids (B,n).

    What was read before is in the caches.
    """

    def __init__(self, forward: Callable[..., Tensor], caches: Sequence[KeyValueCache]):
        self.forward, self.caches, self.read = forward, caches, 0

    def after(self, ids: np.ndarray) -> np.ndarray:
        """Logits (B,V) float32 for what follows ids (B,n), which follow all that was given before."""
        logits = self.forward(ids, self.caches, self.read).data[:, -1]
        self.read += ids.shape[1]
        return widen(logits, np.float32)

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these texts, in this order."""
        for cache in self.caches:
            if cache.count:                                                    # a block that pruning left no head has none
                cache.reorder(rows)


def greedy(writer: Writer, ids: np.ndarray, context: int) -> np.ndarray:
    """The most likely token, again and again, behind ids (B,n): answers (B,T) int32, with END and then PAD behind them."""
    answer, done = [], np.zeros((len(ids), 1), bool)                           # (B,1)
    for _ in range(room(ids, context)):
        ids = np.where(done, PAD, writer.after(ids).argmax(-1)[:, None]).astype(np.int32)    # (B,1)
        answer.append(ids)
        done |= ids == END
        if done.all():
            break
    return np.concatenate(answer, 1)


def beam(writer: Writer, ids: np.ndarray, context: int) -> np.ndarray:
    """The likeliest of W answers that are kept at each step, behind one text, as often, ids (W,n): (T,) int32, END behind it.

    Answers are compared by their log-probability a token, so that short ones are not favoured. Wu et al. 2016, arXiv
    1609.08144, section 7, with alpha 1.
    """
    width, answers, finished = len(ids), np.empty((len(ids), 0), np.int32), []
    scores = np.full(width, -np.inf, np.float32)                               # (W,)
    scores[0] = 0                                                              # all begin alike: one of them counts
    for length in range(1, room(ids, context) + 1):
        total = scores[:, None] + log_softmax(writer.after(ids))               # (W,V) f32
        finished += [(total[row, END] / length, answers[row]) for row in best_ends(total)]
        total[:, END] = -np.inf
        rows, chosen = np.unravel_index(np.argsort(-total, axis=None, kind="stable")[:width], total.shape)
        answers, scores = np.column_stack([answers[rows], chosen.astype(np.int32)]), total[rows, chosen]
        if len(finished) >= width:
            break
        writer.keep(rows)
        ids = answers[:, -1:]
    best = max(finished, key=lambda found: found[0])[1] if finished else answers[0, :-1]
    return np.append(best, np.int32(END))


def room(ids: np.ndarray, context: int) -> int:
    """How many tokens can be written behind ids (B,n): the last of them is not read. MiniLLMError for none."""
    if ids.shape[1] > context:
        raise MiniLLMError(f"a text of {ids.shape[1]} tokens leaves no room for an answer in a context of {context}: cut the text, "
                           "or train with a larger --context")
    return context + 1 - ids.shape[1]


def best_ends(total: np.ndarray) -> list[int]:
    """The rows of scores (W,V) whose END is among the best W of all ways to go on."""
    best = np.argsort(-total, axis=None, kind="stable")[:len(total)]
    rows, ids = np.unravel_index(best, total.shape)
    return [int(row) for row in rows[ids == END] if total[row, END] > -np.inf]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(..., V) float32."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True, dtype=np.float32))


class Answering(Module):
    """A model of tokens that can be asked; its own is how it reads a source."""

    def writer(self, source: np.ndarray) -> tuple[Writer, np.ndarray]:
        """What writes answers to sources (B,S), and which tokens (B,n) it reads first."""
        raise NotImplementedError(f"{type(self).__name__} writes no answers")

    def greedy(self, source: np.ndarray) -> np.ndarray:
        """The most likely token, again and again: sources (B,S) -> answers (B,T) int32, with END and then PAD behind them."""
        with self.ops.context.unchanged():
            return greedy(*self.writer(source), self.shape.context)

    def beam(self, source: np.ndarray, width: int = 4) -> np.ndarray:
        """The best of `width` answers that are kept while they grow: one source (S,) -> (T,) int32, END behind it."""
        with self.ops.context.unchanged():
            return beam(*self.writer(np.tile(source, (width, 1))), self.shape.context)

    def criterion(self, ops: Ops, logits: Tensor, targets: np.ndarray) -> Tensor:
        """Mean cross-entropy in nats of the targets (B,T) that are not NO_TARGET."""
        return ops.cross_entropy(logits, targets, ignore=NO_TARGET)

    def cost(self, logits: Tensor, targets: np.ndarray, weights: np.ndarray | None) -> Tensor:
        """The criterion of a batch; with `weights` (B,) f32 each target counts as often as its example's says."""
        return self.criterion(self.ops, logits, targets) if weights is None else self.weighted(logits, targets, weights)

    def weighted(self, logits: Tensor, targets: np.ndarray, weights: np.ndarray) -> Tensor:
        """The mean of each group of one weight, by the group's part in the sum of all weights."""
        counts = weighted_targets(targets, weights)                            # (B,) f32
        total, parts = counts.sum(dtype=np.float32), []
        for weight in np.unique(weights[counts > 0]):
            group = weights == weight                                          # (B,) bool
            loss = self.criterion(self.ops, logits, np.where(group[:, None], targets, np.int32(NO_TARGET)))
            parts.append(self.ops.cast(loss, FLOAT32) * float(counts[group].sum(dtype=np.float32) / total))
        return sum(parts[1:], parts[0])


def weighted_targets(targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What the targets (B,T) of each example count together: their number times its weight, (B,) f32."""
    return (targets != NO_TARGET).sum(1, dtype=np.int32).astype(np.float32) * weights
