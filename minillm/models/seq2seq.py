"""An encoder-decoder transformer: the encoder reads a text, the decoder writes another, looking at what was read."""
from dataclasses import dataclass

import numpy as np

from minillm.autograd.context import scope
from minillm.autograd.tensor import Tensor
from minillm.data.special import BEGIN, END, NO_TARGET, PAD
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32
from minillm.models.gpt import GPTShape
from minillm.nn import MLP, Attention, CrossAttention, Dropout, Embedding, KeyValueCache, LayerNorm, Maker, Module, SelfAttention
from minillm.precision.recipe import Ops, Recipe
from minillm.rounding import widen


@dataclass(frozen=True)
class Seq2SeqShape(GPTShape):
    """As of a GPT, with L layers in the encoder and L in the decoder; T is the longest source, and the longest answer."""

    layers: int = 2


@dataclass(frozen=True)
class Memory:
    """What the encoder made of a batch of sources: keys and values (B,S,C) for each layer of the decoder, and a mask (B,1,1,S)."""

    layers: list[tuple[Tensor, Tensor]]
    mask: np.ndarray


def deviations(C: int, sums: int) -> tuple[float, float]:
    """Of weights that write to a residual stream of so many sums, and of all others: products keep the size of what goes in.

    A GPT's 0.02 is C^-0.5 at 2,500 channels, and keeps the size there.
    """
    return (C * sums) ** -0.5, C**-0.5


class EncoderBlock(Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); every token sees every other."""

    def __init__(self, ops: Ops, make: Maker, shape: Seq2SeqShape):
        C, H, bias, sizes = shape.channels, shape.heads, shape.bias, deviations(shape.channels, 2 * shape.layers)
        self.ops, self.dropout = ops, Dropout(ops, shape.dropout)
        self.norm1, self.attention = LayerNorm(ops, make, C, bias), SelfAttention(ops, make, C, H, bias, *sizes)
        self.norm2, self.mlp = LayerNorm(ops, make, C, bias), MLP(ops, make, C, 4 * C, bias, *sizes)

    def forward(self, x: Tensor, mask: np.ndarray) -> Tensor:
        x = self.ops.add(x, self.dropout(self.attention(self.norm1(x), mask)))
        return self.ops.add(x, self.dropout(self.mlp(self.norm2(x))))


class DecoderBlock(Module):
    """x + attention(norm(x)) to earlier tokens, x + attention(norm(x)) to the source, then x + mlp(norm(x))."""

    def __init__(self, ops: Ops, make: Maker, shape: Seq2SeqShape):
        C, H, bias, sizes = shape.channels, shape.heads, shape.bias, deviations(shape.channels, 3 * shape.layers)
        self.ops, self.dropout = ops, Dropout(ops, shape.dropout)
        self.norm1, self.attention = LayerNorm(ops, make, C, bias), Attention(ops, make, C, H, bias, *sizes)
        self.norm2, self.cross = LayerNorm(ops, make, C, bias), CrossAttention(ops, make, C, H, bias, *sizes)
        self.norm3, self.mlp = LayerNorm(ops, make, C, bias), MLP(ops, make, C, 4 * C, bias, *sizes)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: np.ndarray, cache: KeyValueCache | None = None) -> Tensor:
        x = self.ops.add(x, self.dropout(self.attention(self.norm1(x), cache)))
        x = self.ops.add(x, self.dropout(self.cross(self.norm2(x), keys, values, mask)))
        return self.ops.add(x, self.dropout(self.mlp(self.norm3(x))))


class Seq2Seq(Module):
    """Sources (B,S) and what has been written so far (B,T) -> logits (B,T,V). Vaswani et al. 2017, arXiv 1706.03762, pre-norm.

    One table of tokens serves the encoder, the decoder and the head.
    """

    def __init__(self, shape: Seq2SeqShape, recipe: Recipe, seed: int = 0):
        self.shape, self.ops = shape, recipe.bind(seed)
        make, C = Maker(seed, recipe.parameters), shape.channels
        self.tokens, self.positions = Embedding(self.ops, make, shape.vocabulary, C), Embedding(self.ops, make, shape.context, C)
        self.dropout = Dropout(self.ops, shape.dropout)
        for i in range(shape.layers):
            setattr(self, f"encoder{i}", EncoderBlock(self.ops, make, shape))
            setattr(self, f"decoder{i}", DecoderBlock(self.ops, make, shape))
        self.memory_norm, self.norm = (LayerNorm(self.ops, make, C, shape.bias) for _ in range(2))
        self.parameters()                                                     # every leaf has its name

    def embed(self, ids: np.ndarray, start: int = 0) -> Tensor:
        """(B,T) ids that stand at start ... start + T - 1 -> (B,T,C)."""
        T = ids.shape[1]
        if start + T > self.shape.context:
            raise MiniLLMError(f"{start + T} tokens do not fit into a context of {self.shape.context}: cut the text, or train with "
                               "a larger --context")
        return self.dropout(self.ops.add(self.tokens(ids), self.positions(np.arange(start, start + T, dtype=np.int32))))

    def encode(self, source: np.ndarray) -> Memory:
        """Read sources (B,S), padded with PAD."""
        mask, x = (source != PAD)[:, None, None, :], self.embed(source)        # (B,1,1,S) bool, (B,S,C)
        for i in range(self.shape.layers):
            x = getattr(self, f"encoder{i}")(x, mask)
        x, layers = self.memory_norm(x), []
        for i in range(self.shape.layers):
            with scope(f"decoder{i}.cross"):
                layers.append(getattr(self, f"decoder{i}").cross.read(x))
        return Memory(layers, mask)

    def decode(self, ids: np.ndarray, memory: Memory, caches: list | None = None, start: int = 0) -> Tensor:
        """Logits (B,T,V) behind each of ids (B,T), which stand at `start` and further."""
        x = self.embed(ids, start)
        for i, cache in enumerate(caches or [None] * self.shape.layers):
            x = getattr(self, f"decoder{i}")(x, *memory.layers[i], memory.mask, cache)
        x = self.norm(x)
        with scope("head"):
            return self.tokens.head(x)

    def forward(self, source: np.ndarray, ids: np.ndarray) -> Tensor:
        return self.decode(ids, self.encode(source))

    def criterion(self, ops: Ops, logits: Tensor, targets: np.ndarray) -> Tensor:
        """Mean cross-entropy in nats of the targets (B,T) that are not NO_TARGET."""
        return ops.cross_entropy(logits, targets, ignore=NO_TARGET)

    def loss(self, source: np.ndarray, ids: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None) -> Tensor:
        """Mean over the targets of a batch; with `weights` (B,) f32 each counts as often as its example's says."""
        logits = self(source, ids)
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

    def greedy(self, source: np.ndarray) -> np.ndarray:
        """The most likely token, again and again: sources (B,S) -> answers (B,T) int32, with END and then PAD behind them."""
        last, answer, done = np.full((len(source), 1), BEGIN, np.int32), [], np.zeros((len(source), 1), bool)    # (B,1)
        with self.ops.context.unchanged():
            memory, caches = self.encode(source), self.new_caches()
            while len(answer) < self.shape.context and not done.all():
                logits = self.decode(last, memory, caches, len(answer)).data   # (B,1,V)
                last = np.where(done, PAD, logits.argmax(-1)).astype(np.int32)
                answer.append(last)
                done |= last == END
        return np.concatenate(answer, 1)

    def beam(self, source: np.ndarray, width: int = 4) -> np.ndarray:
        """The likeliest of `width` answers that are kept at each step: one source (S,) -> (T,) int32, END behind it.

        Answers are compared by their log-probability a token, so that short ones are not favoured. Wu et al. 2016, arXiv
        1609.08144, section 7, with alpha 1.
        """
        answers, scores, finished = np.full((width, 1), BEGIN, np.int32), np.full(width, -np.inf, np.float32), []
        scores[0] = 0                                                          # all begin alike: one of them counts
        with self.ops.context.unchanged():
            memory, caches = self.encode(np.tile(source, (width, 1))), self.new_caches()
            while answers.shape[1] <= self.shape.context and len(finished) < width:
                logits = self.decode(answers[:, -1:], memory, caches, answers.shape[1] - 1).data[:, 0]          # (width,V)
                total = scores[:, None] + log_softmax(widen(logits, np.float32))
                finished += [(total[row, END] / answers.shape[1], answers[row, 1:]) for row in best_ends(total)]
                total[:, END] = -np.inf
                rows, ids = np.unravel_index(np.argsort(-total, axis=None, kind="stable")[:width], total.shape)
                answers, scores = np.column_stack([answers[rows], ids.astype(np.int32)]), total[rows, ids]
                for cache in caches:
                    cache.reorder(rows)
        best = max(finished, key=lambda found: found[0])[1] if finished else answers[0, 1:-1]
        return np.append(best, np.int32(END))

    def new_caches(self) -> list[KeyValueCache]:
        return [KeyValueCache(self.shape.context) for _ in range(self.shape.layers)]


def weighted_targets(targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What the targets (B,T) of each example count together: their number times its weight, (B,) f32."""
    return (targets != NO_TARGET).sum(1, dtype=np.int32).astype(np.float32) * weights


def best_ends(total: np.ndarray) -> list[int]:
    """The rows of scores (width,V) whose END is among the best `width` of all ways to go on."""
    best = np.argsort(-total, axis=None, kind="stable")[:len(total)]
    rows, ids = np.unravel_index(best, total.shape)
    return [int(row) for row in rows[ids == END] if total[row, END] > -np.inf]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(..., V) float32."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True, dtype=np.float32))
