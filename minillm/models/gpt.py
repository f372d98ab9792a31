"""GPT in the arrangement of GPT-2: pre-norm blocks, learned positions, a head tied to the token embedding."""
from dataclasses import dataclass

import numpy as np

from minillm.autograd.context import scope
from minillm.autograd.tensor import Tensor
from minillm.data.special import BEGIN
from minillm.errors import MiniLLMError
from minillm.models.answering import Answering, Writer
from minillm.models.decoding import Decoder
from minillm.nn import Block, Dropout, Embedding, KeyValueCache, LayerNorm, Maker
from minillm.precision.recipe import Recipe


@dataclass(frozen=True)
class GPTShape:
    """V vocabulary, L layers, H heads, C channels, T context; `bias`: whether linears and layer norms have one (GPT-2's do)."""

    vocabulary: int
    layers: int = 4
    heads: int = 4
    channels: int = 128
    context: int = 64
    bias: bool = False
    dropout: float = 0.0

    def __post_init__(self):
        for name in ("vocabulary", "layers", "heads", "channels", "context"):
            if getattr(self, name) < 1:
                raise MiniLLMError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise MiniLLMError(f"dropout is {self.dropout}: it must lie in 0 ... 1, 1 excluded")

    @property
    def widths(self) -> tuple[tuple[int, int], ...]:
        """Of each block its heads, and the channels between the linears of its MLP."""
        return ((self.heads, 4 * self.channels),) * self.layers


@dataclass(frozen=True)
class PrunedShape(GPTShape):
    """What pruning left: `kept` has a pair for each block, its heads and MLP channels. A head keeps the C / H channels it had."""

    kept: tuple[tuple[int, int], ...] = ()

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "kept", tuple((H, hidden) for H, hidden in self.kept))      # JSON has lists
        if len(self.kept) != self.layers or not all(0 <= H <= self.heads and hidden >= 0 for H, hidden in self.kept):
            raise MiniLLMError(f"{self.kept} is kept of {self.layers} blocks with {self.heads} heads: give (heads, MLP channels) "
                               "of each block, none beyond what there was")

    @property
    def widths(self) -> tuple[tuple[int, int], ...]:
        return self.kept


class GPT(Answering):
    """A decoder-only transformer: ids (B,T) -> logits (B,T,V). Radford et al. 2019; weights from N(0, 0.02)."""

    def __init__(self, shape: GPTShape, recipe: Recipe, seed: int = 0):
        self.shape, self.ops = shape, recipe.bind(seed)
        make, C, bias = Maker(seed, recipe.parameters), shape.channels, shape.bias
        D = C // shape.heads if isinstance(shape, PrunedShape) else None
        self.tokens, self.positions = Embedding(self.ops, make, shape.vocabulary, C), Embedding(self.ops, make, shape.context, C)
        self.dropout = Dropout(self.ops, shape.dropout)
        for i, (H, hidden) in enumerate(shape.widths):
            setattr(self, f"block{i}", Block(self.ops, make, C, H, shape.layers, bias, shape.dropout, D, hidden))
        self.norm = LayerNorm(self.ops, make, C, bias)
        self.parameters()                                                     # every leaf has its name

    @property
    def blocks(self) -> list[Block]:
        return [getattr(self, f"block{i}") for i in range(self.shape.layers)]

    def forward(self, ids: np.ndarray, caches: list[KeyValueCache] | None = None, start: int = 0) -> Tensor:
        """Logits (B,T,V) for ids (B,T) that stand at positions start ... start + T - 1."""
        T = ids.shape[1]
        if start + T > self.shape.context:
            raise MiniLLMError(f"{start + T} tokens do not fit into a context of {self.shape.context}: cut the ids")
        x = self.ops.add(self.tokens(ids), self.positions(np.arange(start, start + T, dtype=np.int32)))     # (B,T,C)
        x = self.dropout(x)
        for block, cache in zip(self.blocks, caches or [None] * self.shape.layers, strict=True):
            x = block(x, cache)
        x = self.norm(x)
        with scope("head"):                                                   # tied: the token table is the head's weight
            return self.tokens.head(x)

    def loss(self, ids: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None) -> Tensor:
        """Mean cross-entropy in nats of the targets (B,T) that count; `weights` (B,) f32 of examples, where not all count alike."""
        return self.cost(self(ids), targets, weights)

    def writer(self, source: np.ndarray) -> tuple[Writer, np.ndarray]:
        """Sources (B,S) of one length, BEGIN behind each."""
        return Writer(self, self.new_caches()), np.column_stack([source, np.full(len(source), BEGIN, np.int32)])

    def generate(self, ids: np.ndarray, tokens: int, temperature: float = 1.0, top_k: int = 0, seed: int = 0,
                 int8_cache: bool = False) -> np.ndarray:
        """Continue ids (T,) by `tokens` sampled tokens; temperature 0 takes the most likely, top_k 0 considers all.

        Keys and values are cached while the text fits into the context, with `int8_cache` as int8 codes; from then on the last T
        tokens are read anew for each token, since their learned positions move.
        """
        ids, rng, T = [int(i) for i in ids], np.random.default_rng(seed), self.shape.context
        if not ids:
            raise MiniLLMError("the prompt is empty: give at least one token to continue")
        if not temperature >= 0 or top_k < 0:
            raise MiniLLMError(f"temperature {temperature} and top_k {top_k} must not be negative: 0 is the most likely, and all")
        decoder, caches, read = self.decoder(), self.new_caches(int8_cache), 0
        with self.ops.context.unchanged():
            for _ in range(tokens):
                if len(ids) > T or not read:
                    caches, window, read = self.new_caches(int8_cache), ids[-T:], 0
                else:
                    window = ids[read:]
                self.ops.context.begin(len(ids))
                logits = decoder.logits(window, caches, read)                                # (V,) f32
                read += len(window)
                ids.append(choose(logits, temperature, top_k, rng))
        return np.array(ids, np.int32)

    def decoder(self) -> Decoder:
        return Decoder(self)

    def new_caches(self, int8: bool = False) -> list[KeyValueCache]:
        """Empty caches, one for each block; `int8`: of int8 codes."""
        return [KeyValueCache(self.shape.context, int8_heads=H if int8 else 0) for H, _ in self.shape.widths]


def choose(logits: np.ndarray, temperature: float, top_k: int, rng: np.random.Generator) -> int:
    """One id from logits (V,) float32: by the largest of logit / temperature + Gumbel noise, which samples the softmax."""
    if not np.isfinite(logits.max()):                    # NaN or infinity anywhere, or nothing but -inf
        raise MiniLLMError(f"the largest logit is {logits.max()}, so nothing can be sampled: this model has diverged")
    if top_k:
        logits = np.where(logits < np.sort(logits)[-min(top_k, len(logits))], np.float32(-np.inf), logits)
    if np.float32(temperature) == 0:
        return int(logits.argmax())
    noise = -np.log(-np.log(rng.random(len(logits), np.float32) * np.float32(1 - 2e-7) + np.float32(1e-7)))
    logits = logits - logits.max()                       # so that a low temperature takes all but the largest to -inf
    with np.errstate(over="ignore"):
        return int((logits / np.float32(temperature) + noise).argmax())
