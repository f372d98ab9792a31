"""An encoder-decoder transformer: the encoder reads a text, the decoder writes another, looking at what was read."""
from dataclasses import dataclass
from functools import partial

import numpy as np

from minillm.autograd.context import scope
from minillm.autograd.tensor import Tensor
from minillm.data.special import BEGIN, PAD
from minillm.errors import MiniLLMError
from minillm.models.answering import Answering, Writer
from minillm.models.gpt import GPTShape
from minillm.nn import MLP, Attention, CrossAttention, Dropout, Embedding, KeyValueCache, LayerNorm, Maker, Module, SelfAttention
from minillm.precision.recipe import Ops, Recipe


@dataclass(frozen=True)
class Seq2SeqShape(GPTShape):
    """As of a GPT, with L layers in the encoder and L in the decoder; T is the longest source, and the longest answer.

    `scaled`: what is read is times C^0.5, as in Vaswani et al., section 3.4.
    """

    layers: int = 2
    scaled: bool = False


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


class Seq2Seq(Answering):
    """Sources (B,S) and what has been written so far (B,T) -> logits (B,T,V). Vaswani et al. 2017, arXiv 1706.03762, pre-norm.

    One table of tokens serves the encoder, the decoder and the head.
    """

    def __init__(self, shape: Seq2SeqShape, recipe: Recipe, seed: int = 0):
        self.shape, self.ops = shape, recipe.bind(seed)
        make, C = Maker(seed, recipe.parameters), shape.channels
        deviation = C**-0.5 if shape.scaled else 0.02
        self.tokens, self.positions = (Embedding(self.ops, make, rows, C, deviation) for rows in (shape.vocabulary, shape.context))
        self.dropout = Dropout(self.ops, shape.dropout)
        for i in range(shape.layers):
            setattr(self, f"encoder{i}", EncoderBlock(self.ops, make, shape))
            setattr(self, f"decoder{i}", DecoderBlock(self.ops, make, shape))
        self.memory_norm, self.norm = (LayerNorm(self.ops, make, C, shape.bias) for _ in range(2))
        self.parameters()                                                     # every leaf has its name

    def embed(self, ids: np.ndarray, start: int = 0) -> Tensor:
        """(B,T) ids that stand at start ... start + T - 1 -> (B,T,C).

        The head, which has the same table, wants values near C^-0.5; the blocks write values near 1 beside them. Where what is
        read is scaled to these, four tasks at once were learned in half the steps.
        """
        T = ids.shape[1]
        if start + T > self.shape.context:
            raise MiniLLMError(f"{start + T} tokens do not fit into a context of {self.shape.context}: cut the text, or train with "
                               "a larger --context")
        x = self.ops.add(self.tokens(ids), self.positions(np.arange(start, start + T, dtype=np.int32)))
        return self.dropout(x * self.shape.channels**0.5 if self.shape.scaled else x)

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

    def decode(self, memory: Memory, ids: np.ndarray, caches: list | None = None, start: int = 0) -> Tensor:
        """Logits (B,T,V) behind each of ids (B,T), which stand at `start` and further."""
        x = self.embed(ids, start)
        for i, cache in enumerate(caches or [None] * self.shape.layers):
            x = getattr(self, f"decoder{i}")(x, *memory.layers[i], memory.mask, cache)
        x = self.norm(x)
        with scope("head"):
            return self.tokens.head(x)

    def forward(self, source: np.ndarray, ids: np.ndarray) -> Tensor:
        return self.decode(self.encode(source), ids)

    def loss(self, source: np.ndarray, ids: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None) -> Tensor:
        """Mean over the targets of a batch; with `weights` (B,) f32 each counts as often as its example's says."""
        return self.cost(self(source, ids), targets, weights)

    def writer(self, source: np.ndarray) -> tuple[Writer, np.ndarray]:
        memory = self.encode(source)
        caches = [KeyValueCache(self.shape.context) for _ in range(self.shape.layers)]
        return Writer(partial(self.decode, memory), caches), np.full((len(source), 1), BEGIN, np.int32)
