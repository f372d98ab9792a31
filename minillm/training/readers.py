"""How examples become a model's batches, and what a model says becomes an answer."""
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np

from minillm.data.batches import padded
from minillm.data.special import BEGIN, END, NO_TARGET, PAD
from minillm.data.tasks import Example
from minillm.data.tokenizers import Tokenizer
from minillm.errors import MiniLLMError
from minillm.models.answering import Answering
from minillm.nn import Module

TOGETHER = 256           # sources that are answered at once; the answers do not depend on it


class PairReader:
    """Texts in, texts out, for an encoder-decoder: sources (B,S), what is written so far (B,T) and targets (B,T), int32."""

    def __init__(self, tokenizer: Tokenizer, context: int, classes: Sequence[str] = ()):
        self.tokenizer, self.context = tokenizer, context

    def check(self, name: str, examples: Sequence[Example]) -> None:
        """MiniLLMError where a text of this task is longer than the context."""
        longest = max(self.needed(len(self.tokenizer.encode(e.source)), len(self.tokenizer.encode(e.target))) for e in examples)
        if longest > self.context:
            raise MiniLLMError(f"a text of {name} has {longest} tokens, the context is {self.context}: give --context {longest}")

    def needed(self, source: int, target: int) -> int:
        """The context that a source and a target of so many tokens take."""
        return max(source, target + 1)

    def batch(self, examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        source = padded([self.tokenizer.encode(e.source) for e in examples])
        answers = padded([np.concatenate(([BEGIN], self.tokenizer.encode(e.target), [END])) for e in examples])
        targets = np.where(answers[:, 1:] == PAD, np.int32(NO_TARGET), answers[:, 1:])
        return source, np.ascontiguousarray(answers[:, :-1]), targets

    def answers(self, model: Answering, sources: Sequence[str]) -> list[str]:
        """What the model makes of each source, taking the most likely token each time."""
        def some(texts):
            return [self.text(ids) for ids in model.greedy(padded([self.tokenizer.encode(text) for text in texts]))]

        return of_like_length(sources, some)

    def best(self, model: Answering, source: str, width: int) -> str:
        """The best of `width` answers that are kept while they grow."""
        return self.text(model.beam(self.tokenizer.encode(source), width))

    def text(self, ids: np.ndarray) -> str:
        """The text before END."""
        ends = np.flatnonzero((ids == END) | (ids == PAD))
        return self.tokenizer.decode(ids[:ends[0]] if len(ends) else ids)


class ContinuationReader(PairReader):
    """Texts in, texts out, for a decoder alone: source, BEGIN and target as one text (B,T), targets (B,T) from BEGIN on, int32."""

    def needed(self, source: int, target: int) -> int:
        return source + 1 + target

    def batch(self, examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
        pairs = [(self.tokenizer.encode(e.source), self.tokenizer.encode(e.target)) for e in examples]
        ids = padded([np.concatenate((source, [BEGIN], target, [END])) for source, target in pairs])         # (B,T+1) int32
        begins = np.array([[len(source)] for source, _ in pairs])              # (B,1)
        asked = (np.arange(ids.shape[1] - 1) >= begins) & (ids[:, 1:] != PAD)  # (B,T) bool
        return np.ascontiguousarray(ids[:, :-1]), np.where(asked, ids[:, 1:], np.int32(NO_TARGET))

    def answers(self, model: Answering, sources: Sequence[str]) -> list[str]:
        """What the model makes of each source; those of one length at once, since a decoder would see padding as text."""
        def some(rows):
            return [self.text(ids) for ids in model.greedy(np.stack(rows))]

        return of_like_length([self.tokenizer.encode(text) for text in sources], some, same=True)


def of_like_length(sources: Sequence, answer: Callable[[list], list[str]], same: bool = False) -> list[str]:
    """The answers in the order of the sources; those of about the same length, or just the same, go through the model together."""
    order, found = sorted(range(len(sources)), key=lambda i: len(sources[i])), {}
    for _, group in groupby(order, lambda i: same and len(sources[i])):
        group = list(group)
        for at in range(0, len(group), TOGETHER):
            some = group[at:at + TOGETHER]
            found.update(zip(some, answer([sources[i] for i in some]), strict=True))
    return [found[i] for i in range(len(sources))]


class LabelReader:
    """Texts to the names of classes, for a classifier: ids (B,T) with BEGIN in front, cut at the context, and labels (B,).

    `left`: padding stands before a text, for a model that answers after the last word.
    """

    def __init__(self, tokenizer: Tokenizer, context: int, classes: Sequence[str], left: bool = False):
        self.tokenizer, self.context, self.classes, self.left = tokenizer, context, list(classes), left

    def check(self, name: str, examples: Sequence[Example]) -> None:
        """Longer texts are cut; MiniLLMError where nothing would be left of them."""
        if self.context < 2:
            raise MiniLLMError(f"a context of {self.context} has no room for a word of {name} behind its beginning: "
                               "give --context 2 or more")

    def ids(self, sources: Sequence[str]) -> np.ndarray:
        rows = [np.concatenate(([BEGIN], self.tokenizer.encode(text)))[:self.context] for text in sources]
        return padded(rows, left=self.left)

    def batch(self, examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
        labels = np.array([self.classes.index(e.target) for e in examples], np.int32)
        return self.ids([e.source for e in examples]), labels

    def answers(self, model: Module, sources: Sequence[str]) -> list[str]:
        """The likeliest class of each source."""
        return of_like_length(sources, lambda texts: [self.classes[k] for k in model.logits(self.ids(texts)).argmax(-1)])
