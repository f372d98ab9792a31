"""A classifier of texts that reads word by word: Embedding -> LSTM -> Linear on the last hidden state."""
from dataclasses import dataclass

import numpy as np

from minillm.autograd.tensor import Tensor
from minillm.errors import MiniLLMError
from minillm.nn import LSTM, Embedding, Linear, Maker, Module
from minillm.precision.recipe import Ops, Recipe


@dataclass(frozen=True)
class LSTMShape:
    """V vocabulary, C channels of an embedding, H of the state, and how many classes there are.

    Texts of unequal length are filled up with the id `padding`, on the left, so that the last state has just read the last word.
    Those ids are read like a word, as Keras does unless told otherwise; with `masked` the state passes by them, and how far a batch
    is filled up, and on which side, changes nothing.
    """

    vocabulary: int
    channels: int = 128
    hidden: int = 128
    classes: int = 2
    masked: bool = False
    padding: int = 0

    def __post_init__(self):
        for name, least in (("vocabulary", 1), ("channels", 1), ("hidden", 1), ("classes", 2)):
            if getattr(self, name) < least:
                raise MiniLLMError(f"{name} is {getattr(self, name)}: it must be at least {least}")


class LSTMClassifier(Module):
    """Ids (B,T) -> logits (B,) of the second of two classes, or (B,K) of more. Initial weights as in Keras."""

    def __init__(self, shape: LSTMShape, recipe: Recipe, seed: int = 0):
        self.shape, self.ops = shape, recipe.bind(seed)
        make, outputs = Maker(seed, recipe.parameters), 1 if shape.classes == 2 else shape.classes
        self.tokens = Embedding(self.ops, make, shape.vocabulary, shape.channels)
        self.tokens.weight = make.uniform(shape.vocabulary, shape.channels, limit=0.05)
        self.lstm = LSTM(self.ops, make, shape.channels, shape.hidden)
        self.head = Linear(self.ops, make, shape.hidden, outputs)
        self.head.weight = make.glorot(outputs, shape.hidden)
        self.parameters()                                                     # every leaf has its name

    def forward(self, ids: np.ndarray) -> Tensor:
        mask = ids != self.shape.padding if self.shape.masked else None       # (B,T) bool
        states = self.lstm(self.tokens(ids), mask)                            # (B,T,H)
        logits = self.head(self.ops.slice(states, index=(slice(None), -1)))   # (B,1) or (B,K)
        return self.ops.reshape(logits, shape=(-1,)) if self.shape.classes == 2 else logits

    def criterion(self, ops: Ops, logits: Tensor, labels: np.ndarray) -> Tensor:
        """Mean cross-entropy in nats a text, labels (B,) from 0 to the number of classes less one."""
        if labels.size and not 0 <= labels.min() <= labels.max() < self.shape.classes:
            raise MiniLLMError(f"labels must lie in 0 ... {self.shape.classes - 1}, found {labels.min()} ... {labels.max()}")
        return (ops.bce_with_logits if self.shape.classes == 2 else ops.cross_entropy)(logits, labels)

    def loss(self, ids: np.ndarray, labels: np.ndarray) -> Tensor:
        return self.criterion(self.ops, self(ids), labels)

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """(B,K) float32, for any number of texts; of two classes 0 and the logit, so that the larger one is the choice."""
        found = []
        with self.ops.context.unchanged():
            for at in range(0, len(ids), 100):
                self.ops.context.begin(0, at)
                found.append(self(ids[at:at + 100]).data.astype(np.float32))
        logits = np.concatenate(found) if found else np.zeros((0, self.shape.classes), np.float32)
        return np.stack([np.zeros_like(logits), logits], 1) if self.shape.classes == 2 and logits.ndim == 1 else logits
