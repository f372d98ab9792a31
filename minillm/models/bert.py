"""Encoders in the arrangement of BERT and of ALBERT: every token sees every other, and a layer norm stands behind each sum."""
from dataclasses import dataclass

import numpy as np

from minillm.autograd.context import scope
from minillm.autograd.rule import RULES
from minillm.autograd.tensor import Tensor, apply
from minillm.data.special import NO_TARGET
from minillm.errors import MiniLLMError
from minillm.nn import Embedding, LayerNorm, Linear, Maker, Module, SelfAttention
from minillm.precision.recipe import Ops, Recipe
from minillm.rounding import widen


@dataclass(frozen=True)
class EncoderShape:
    """V vocabulary, L layers, H heads, C channels, T context; `hidden`: channels between the two linears of a block.

    ALBERT has embeddings of fewer channels, with a linear layer behind them, and one block that is passed L times (`shared`).
    `activation`: "gelu_erf" or "gelu", the tanh form; `types`: kinds of text; `padding`: the id of what no token sees; `deviation`:
    of the initial weights of linears.
    """

    vocabulary: int
    layers: int
    heads: int
    channels: int
    hidden: int
    context: int
    embedding: int
    shared: bool = False
    activation: str = "gelu_erf"
    types: int = 2
    padding: int = 0
    eps: float = 1e-12
    deviation: float = 0.02


class EncoderBlock(Module):
    """norm(x + attention(x)), then norm(x + mlp(x)). Vaswani et al. 2017, arXiv 1706.03762, section 3.1."""

    def __init__(self, ops: Ops, make: Maker, shape: EncoderShape):
        C, eps, deviation = shape.channels, shape.eps, shape.deviation
        self.ops, self.activation = ops, getattr(ops, shape.activation)
        self.attention = SelfAttention(ops, make, C, shape.heads, True, deviation, deviation)
        self.norm1 = LayerNorm(ops, make, C, eps=eps)
        self.up = Linear(ops, make, C, shape.hidden, deviation=deviation)
        self.down = Linear(ops, make, shape.hidden, C, deviation=deviation)
        self.norm2 = LayerNorm(ops, make, C, eps=eps)

    def forward(self, x: Tensor, mask: np.ndarray) -> Tensor:
        x = self.norm1(self.ops.add(x, self.attention(x, mask)))
        return self.norm2(self.ops.add(x, self.down(self.activation(self.up(x)))))


class Encoder(Module):
    """Ids (B,T) -> (B,T,C). Devlin et al. 2018, arXiv 1810.04805; Lan et al. 2019, arXiv 1909.11942 (ALBERT). Without dropout."""

    def __init__(self, shape: EncoderShape, recipe: Recipe, seed: int = 0):
        self.shape, self.ops = shape, recipe.bind(seed)
        make, E = Maker(seed, recipe.parameters), shape.embedding
        self.tokens, self.positions = Embedding(self.ops, make, shape.vocabulary, E), Embedding(self.ops, make, shape.context, E)
        self.types, self.norm = Embedding(self.ops, make, shape.types, E), LayerNorm(self.ops, make, E, eps=shape.eps)
        self.widen = Linear(self.ops, make, E, shape.channels) if shape.channels != E else None
        for i in range(1 if shape.shared else shape.layers):
            setattr(self, f"block{i}", EncoderBlock(self.ops, make, shape))
        self.parameters()                                                     # every leaf has its name

    @property
    def blocks(self) -> list[EncoderBlock]:
        """In the order in which they are passed."""
        return [self.block0 if self.shape.shared else getattr(self, f"block{i}") for i in range(self.shape.layers)]

    def forward(self, ids: np.ndarray) -> Tensor:
        return self.hidden(ids)

    def hidden(self, ids: np.ndarray) -> Tensor:
        """What the last block makes of ids (B,T), all of the first kind of text: (B,T,C)."""
        T = ids.shape[1]
        if self.shape.context < T:
            raise MiniLLMError(f"{T} tokens do not fit into a context of {self.shape.context}: cut the ids")
        mask = (ids != self.shape.padding)[:, None, None, :]                   # (B,1,1,T)
        x = self.ops.add(self.tokens(ids), self.positions(np.arange(T, dtype=np.int32)))         # (B,T,E)
        x = self.norm(self.ops.add(x, self.types(np.zeros(T, np.int32))))
        x = x if self.widen is None else self.widen(x)                         # (B,T,C)
        for block in self.blocks:
            x = block(x, mask)
        return x


class MaskedLanguageModel(Encoder):
    """An encoder that tells which token stands at each place: ids (B,T) -> logits (B,T,V). The token table is the head's weight."""

    def __init__(self, shape: EncoderShape, recipe: Recipe, seed: int = 0):
        super().__init__(shape, recipe, seed)
        make = Maker(seed + 1, recipe.parameters)
        self.dense = Linear(self.ops, make, shape.channels, shape.embedding)
        self.dense_norm = LayerNorm(self.ops, make, shape.embedding, eps=shape.eps)
        self.bias = make.constant(shape.vocabulary, value=0)
        self.parameters()

    def forward(self, ids: np.ndarray) -> Tensor:
        return self.words(self.hidden(ids))

    def words(self, x: Tensor) -> Tensor:
        """The head: (...,C) -> logits (...,V)."""
        x = self.dense_norm(getattr(self.ops, self.shape.activation)(self.dense(x)))           # (...,E)
        with scope("head"):
            logits = self.tokens.head(x)
            return self.ops.add(logits, self.ops.cast(self.bias, logits.format))

    def criterion(self, ops: Ops, logits: Tensor, targets: np.ndarray) -> Tensor:
        """Mean cross-entropy in nats of the targets (B,T) that are not NO_TARGET."""
        return ops.cross_entropy(logits, targets, ignore=NO_TARGET)

    def loss(self, ids: np.ndarray, targets: np.ndarray) -> Tensor:
        return self.words_loss(self.hidden(ids), targets)

    def words_loss(self, x: Tensor, targets: np.ndarray) -> Tensor:
        """The criterion of x (B,T,C). The head, where most of the work is, sees the places with a target alone."""
        rows, targets = self.ops.reshape(x, shape=(-1, x.shape[-1])), targets.reshape(-1)      # (B T,C), (B T,)
        places = np.flatnonzero(targets != NO_TARGET).astype(np.int32)
        if not len(places):
            raise MiniLLMError(f"none of {len(targets)} tokens is hidden, so there is nothing to guess: give larger batches")
        # The rule itself: rows are picked, and what a recipe says of tables of embeddings is not meant.
        picked = apply(RULES["embedding"], rows, places, context=self.ops.context)             # (places,C)
        return self.criterion(self.ops, self.words(picked), targets[places])


@dataclass(frozen=True)
class ClassifierShape(EncoderShape):
    """And K classes to tell apart."""

    classes: int = 2


class EncoderClassifier(Encoder):
    """An encoder that names the class of a text: ids (B,T) -> logits (B,K), read off the first token. Devlin et al., section 3."""

    def __init__(self, shape: ClassifierShape, recipe: Recipe, seed: int = 0):
        super().__init__(shape, recipe, seed)
        make = Maker(seed + 2, recipe.parameters)
        C, deviation = shape.channels, shape.deviation
        self.pool, self.head = (Linear(self.ops, make, C, N, deviation=deviation) for N in (C, shape.classes))
        self.parameters()

    def forward(self, ids: np.ndarray) -> Tensor:
        return self.verdicts(self.hidden(ids))

    def verdicts(self, x: Tensor) -> Tensor:
        """The head: (B,T,C) -> logits (B,K)."""
        first = self.ops.slice(x, index=(slice(None), 0))                     # (B,C)
        return self.head(self.ops.tanh(self.pool(first)))

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """(B,K) float32, without a graph."""
        with self.ops.context.unchanged():
            self.ops.context.begin(0)
            return widen(self(ids).data, np.float32)

    def criterion(self, ops: Ops, logits: Tensor, labels: np.ndarray) -> Tensor:
        """Mean cross-entropy in nats, labels (B,)."""
        return ops.cross_entropy(logits, labels)

    def loss(self, ids: np.ndarray, labels: np.ndarray) -> Tensor:
        return self.criterion(self.ops, self(ids), labels)


def each_masked(ids: np.ndarray, mask: int) -> tuple[np.ndarray, np.ndarray]:
    """A batch in which each token of ids (T,) but the first and last is hidden in one row: ids and targets (T - 2, T) int32."""
    rows = np.arange(len(ids) - 2)
    hidden, targets = np.tile(ids, (len(rows), 1)), np.full((len(rows), len(ids)), NO_TARGET, np.int32)
    hidden[rows, rows + 1], targets[rows, rows + 1] = mask, ids[1:-1]
    return hidden, targets


def sentence_vectors(model: Encoder, ids: np.ndarray) -> np.ndarray:
    """The mean of what an encoder makes of the tokens of each row, of length 1: ids (B,T) -> (B,C) float32.

    Reimers and Gurevych 2019, arXiv 1908.10084, section 3.
    """
    with model.ops.context.no_record():
        model.ops.context.begin(0)
        x = model.hidden(ids).data.astype(np.float32)                          # (B,T,C)
    seen = (ids != model.shape.padding)[..., None]
    total = (x * seen).sum(1, dtype=np.float32)
    return total / np.sqrt((total**2).sum(1, keepdims=True, dtype=np.float32))
