"""From text to ids of whole words: the most frequent ones have an id, all others share that of the unknown word."""
import re
from collections import Counter
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from minillm.data.saved import checked_ids, damaged, field
from minillm.data.special import SPECIAL as CHARACTERS
from minillm.data.special import UNKNOWN
from minillm.errors import MiniLLMError

SPECIAL = (*CHARACTERS, "\N{REPLACEMENT CHARACTER}")                   # how the first five ids stand in a text
WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")                          # letters and digits, with apostrophes inside; or a sign


class WordTokenizer:
    """One id a lower-cased word or sign: 0 to 4 pad, begin, end, mask and stand for unknown ones, the words come behind them."""

    kind = "word"

    def __init__(self, words: list[str]):
        self.tokens = [*SPECIAL, *words]
        self.vocabulary = len(self.tokens)
        self._id_of = {token: i for i, token in enumerate(self.tokens)}
        if len(self._id_of) < self.vocabulary:
            raise damaged("a word stands in it twice")

    @classmethod
    def train(cls, text: str, vocabulary: int) -> Self:
        """The most frequent words of a text, of equals the first in order, until there are `vocabulary` ids or no more words."""
        if vocabulary <= len(SPECIAL):
            raise MiniLLMError(f"a vocabulary of {vocabulary} words is too small: {len(SPECIAL)} ids come before the first; "
                               f"ask for {len(SPECIAL) + 1} or more")
        counts = Counter(word for word in words_of(text) if word not in SPECIAL)
        return cls(sorted(counts, key=lambda word: (-counts[word], word))[:vocabulary - len(SPECIAL)])

    def encode(self, text: str) -> np.ndarray:
        """Ids (words and signs,) int32."""
        return np.array([self._id_of.get(word, UNKNOWN) for word in words_of(text)], np.int32)

    def decode(self, ids: ArrayLike) -> str:
        """The words of ids of any shape, with a space between two; MiniLLMError for an id outside the vocabulary."""
        return " ".join([self.tokens[i] for i in checked_ids(ids, self.vocabulary).tolist()])

    def to_json(self) -> dict[str, Any]:
        """A dictionary that JSON can hold, for `tokenizer_from_json`."""
        return {"kind": self.kind, "words": self.tokens[len(SPECIAL):]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """What `to_json` gave; MiniLLMError for anything else."""
        words = field(data, "words", list)
        for word in words:
            if not isinstance(word, str) or words_of(word) != [word]:
                raise damaged(f"{str(word)[:40]!r} in it is no lower-case word")
        return cls(words)


def words_of(text: str) -> list[str]:
    """The lower-cased words and signs in their order."""
    return WORD.findall(text.lower())
