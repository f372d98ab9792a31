"""How examples become a model's batches, and what a model says becomes an answer."""
from collections.abc import Callable, Sequence

import numpy as np

from minillm.data.batches import padded
from minillm.data.special import BEGIN, END, NO_TARGET, PAD
from minillm.data.tasks import Example
from minillm.data.tokenizers import Tokenizer
from minillm.errors import MiniLLMError
from minillm.models.seq2seq import Seq2Seq
from minillm.nn import Module

TOGETHER = 256           # sources that are answered at once; the answers do not depend on it


class PairReader:
    """Texts in, texts out, for an encoder-decoder: sources (B,S), what is written so far (B,T) and targets (B,T), int32."""

    def __init__(self, tokenizer: Tokenizer, context: int, classes: Sequence[str] = ()):
        self.tokenizer, self.context = tokenizer, context

    def check(self, name: str, examples: Sequence[Example]) -> None:
        """MiniLLMError where a text of this task is longer than the context."""
        longest = max(max(len(self.tokenizer.encode(e.source)), len(self.tokenizer.encode(e.target)) + 1) for e in examples)
        if longest > self.context:
            raise MiniLLMError(f"a text of {name} has {longest} tokens, the context is {self.context}: give --context {longest}")

    def batch(self, examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        source = padded([self.tokenizer.encode(e.source) for e in examples])
        answers = padded([np.concatenate(([BEGIN], self.tokenizer.encode(e.target), [END])) for e in examples])
        targets = np.where(answers[:, 1:] == PAD, np.int32(NO_TARGET), answers[:, 1:])
        return source, np.ascontiguousarray(answers[:, :-1]), targets

    def answers(self, model: Seq2Seq, sources: Sequence[str]) -> list[str]:
        """What the model makes of each source, taking the most likely token each time."""
        def some(texts):
            return [self.text(ids) for ids in model.greedy(padded([self.tokenizer.encode(text) for text in texts]))]

        return of_like_length(sources, some)

    def best(self, model: Seq2Seq, source: str, width: int) -> str:
        """The best of `width` answers that are kept while they grow."""
        return self.text(model.beam(self.tokenizer.encode(source), width))

    def text(self, ids: np.ndarray) -> str:
        """The text before END."""
        ends = np.flatnonzero((ids == END) | (ids == PAD))
        return self.tokenizer.decode(ids[:ends[0]] if len(ends) else ids)


def of_like_length(sources: Sequence[str], answer: Callable[[list[str]], list[str]]) -> list[str]:
    """The answers in the order of the sources; those of about the same length go through the model together."""
    order, found = sorted(range(len(sources)), key=lambda i: len(sources[i])), {}
    for at in range(0, len(order), TOGETHER):
        some = order[at:at + TOGETHER]
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
