"""A generator that fills in the hidden words of a text, and a discriminator that tells such texts from real ones.

Fedus et al. 2018, arXiv 1801.07736 (MaskGAN), with encoders in place of recurrent nets, and with samples through which a gradient
goes in place of reinforcement. Both know the class of a text, as in Wu et al. 2018, arXiv 1812.06705.
"""
from dataclasses import dataclass

import numpy as np

from minillm.autograd.context import scope
from minillm.autograd.tensor import Tensor
from minillm.data.special import MASK, NO_TARGET, UNKNOWN
from minillm.formats import FLOAT32, Format
from minillm.models.bert import EncoderBlock
from minillm.nn import Embedding, LayerNorm, Linear, Maker, Module
from minillm.precision.recipe import Ops, Recipe

NEVER = -1e4               # the logit of what is not written: float16 has it, and its exponential is 0


@dataclass(frozen=True)
class GANShape:
    """V vocabulary, L layers, H heads, C channels, T context, K classes; both have as much of each.

    `adversarial`: how much the generator's loss counts what the discriminator says beside the hidden words; `temperature`: of the
    samples' slopes; `special`: so many ids are never hidden and never written.
    """

    vocabulary: int
    layers: int = 1
    heads: int = 2
    channels: int = 64
    context: int = 64
    classes: int = 2
    adversarial: float = 1.0
    temperature: float = 1.0
    special: int = UNKNOWN + 1
    padding: int = 0
    activation: str = "gelu"
    eps: float = 1e-5

    @property
    def hidden(self) -> int:
        return 4 * self.channels

    @property
    def deviation(self) -> float:
        return self.channels**-0.5


class Reader(Module):
    """Rows for tokens (B,T,C), classes (B,), which tokens there are (B,T) -> (B,T,C); every token sees every other."""

    def __init__(self, ops: Ops, make: Maker, shape: GANShape):
        C = shape.channels
        self.ops, self.layers = ops, shape.layers
        self.positions, self.classes = Embedding(ops, make, shape.context, C), Embedding(ops, make, shape.classes, C)
        self.norm = LayerNorm(ops, make, C)
        for i in range(shape.layers):
            setattr(self, f"block{i}", EncoderBlock(ops, make, shape))

    def forward(self, x: Tensor, labels: np.ndarray, seen: np.ndarray) -> Tensor:
        x = self.ops.add(x, self.positions(np.arange(x.shape[1], dtype=np.int32)))
        x = self.norm(self.ops.add(x, self.classes(labels[:, None])))          # (B,T,C)
        for i in range(self.layers):
            x = getattr(self, f"block{i}")(x, seen[:, None, None, :])
        return x


class Generator(Module):
    """Ids (B,T), some of them MASK, and classes (B,) -> logits (B,T,V) of what stands there. The token table is the head's."""

    def __init__(self, ops: Ops, make: Maker, shape: GANShape):
        self.ops, self.shape = ops, shape
        self.tokens, self.reader = Embedding(ops, make, shape.vocabulary, shape.channels), Reader(ops, make, shape)

    def forward(self, ids: np.ndarray, labels: np.ndarray) -> Tensor:
        x = self.reader(self.tokens(ids), labels, ids != self.shape.padding)
        with scope("head"):
            return self.ops.where(np.arange(self.shape.vocabulary) < self.shape.special, NEVER, self.tokens.head(x))


class Discriminator(Module):
    """Texts as rows with a single 1 (B,T,V), and classes (B,) -> (B,), the logit of being real, read off the first token."""

    def __init__(self, ops: Ops, make: Maker, shape: GANShape):
        self.ops = ops
        self.tokens, self.reader = Embedding(ops, make, shape.vocabulary, shape.channels), Reader(ops, make, shape)
        self.head = Linear(ops, make, shape.channels, 1, deviation=shape.deviation)

    def forward(self, text: Tensor, labels: np.ndarray, seen: np.ndarray) -> Tensor:
        x = self.reader(self.ops.matmul(text, self.tokens.weight), labels, seen)
        return self.ops.reshape(self.head(self.ops.slice(x, index=(slice(None), 0))), shape=(-1,))


class GAN(Module):
    """Both, each with a loss of a batch: ids (B,T), which of them are hidden (B,T) bool, classes (B,)."""

    def __init__(self, shape: GANShape, recipe: Recipe, seed: int = 0):
        self.shape, self.ops = shape, recipe.bind(seed)
        make = Maker(seed, recipe.parameters)
        self.generator, self.discriminator = Generator(self.ops, make, shape), Discriminator(self.ops, make, shape)
        self.parameters()                                                     # every leaf has its name

    def forward(self, ids: np.ndarray, hidden: np.ndarray, labels: np.ndarray) -> Tensor:
        """Logits (B,T,V) of the generator, which does not see what is hidden."""
        return self.generator(np.where(hidden, np.int32(MASK), ids), labels)

    def filled(self, logits: Tensor, ids: np.ndarray, hidden: np.ndarray) -> Tensor:
        """The text (B,T,V) with a sample in place of what is hidden; the gradient goes through the sample to the logits."""
        sample = self.ops.gumbel_sample(logits, temperature=self.shape.temperature)
        return self.ops.where(hidden[..., None], sample, one_hot(ids, self.shape.vocabulary, sample.format))

    def judged(self, text: Tensor, ids: np.ndarray, labels: np.ndarray) -> Tensor:
        """The discriminator's logits (B,) of a text that is as long as these ids."""
        return self.discriminator(text, labels, ids != self.shape.padding)

    def fooling_loss(self, logits: Tensor, ids: np.ndarray, hidden: np.ndarray, labels: np.ndarray) -> Tensor:
        """Binary cross-entropy of filled texts being real, which does not saturate. Goodfellow et al. 2014, arXiv 1406.2661, 3."""
        said = self.judged(self.filled(logits, ids, hidden), ids, labels)
        return self.ops.cast(self.ops.bce_with_logits(said, np.ones(len(ids), np.float32)), FLOAT32)

    def generator_loss(self, ids: np.ndarray, hidden: np.ndarray, labels: np.ndarray) -> Tensor:
        """Cross-entropy of the hidden words in nats, and of the discriminator taking the filled text for real."""
        logits = self(ids, hidden, labels)
        cross = self.ops.cross_entropy(logits, np.where(hidden, ids, np.int32(NO_TARGET)), ignore=NO_TARGET)
        fooling = self.fooling_loss(logits, ids, hidden, labels)
        return self.ops.cast(cross, FLOAT32) + fooling * self.shape.adversarial

    def discriminator_loss(self, ids: np.ndarray, hidden: np.ndarray, labels: np.ndarray) -> Tensor:
        """Binary cross-entropy of real texts being real and filled ones not; the generator only writes."""
        with self.ops.context.no_record():
            fake = self.filled(self(ids, hidden, labels), ids, hidden)
        real = one_hot(ids, self.shape.vocabulary, fake.format)
        said = self.ops.concat(self.judged(real, ids, labels), self.judged(fake, ids, labels), axis=0)         # (2B,)
        return self.ops.bce_with_logits(said, np.repeat(np.array([1, 0], np.float32), len(ids)))

    def write(self, ids: np.ndarray, hidden: np.ndarray, labels: np.ndarray, key: int) -> np.ndarray:
        """Ids (B,T) int32 with samples in place of what is hidden: a pure function of the weights, the arguments and the seed."""
        with self.ops.context.unchanged():
            self.ops.context.begin(key)
            return self.filled(self(ids, hidden, labels), ids, hidden).data.argmax(-1).astype(np.int32)


def one_hot(ids: np.ndarray, V: int, format: Format) -> Tensor:
    """Rows with a single 1: ids (B,T) -> (B,T,V)."""
    return Tensor((np.arange(V) == ids[..., None]).astype(format.storage), format)
