"""An n-gram language model: how often each token followed the last few, smoothed as Kneser and Ney did.

The baseline of every neural curve. Of a k-gram with k below n it counts before how many different tokens it stood, not how often:
"Francisco" is frequent, but follows little else than "San". What discounts take from the counts seen after a context goes to the
next shorter context: P_k(w | h) = (c(hw) - D(c(hw))) / c(h) + spare(h) / c(h) P_(k-1)(w | h'), down to 1 / V.
"""
import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from minillm.errors import MiniLLMError
from minillm.models.gpt import choose

FALLBACK = (0.5, 1.0, 1.5)     # discounts where a text is too small, or too regular, to say them


@dataclass(frozen=True)
class Level:
    """All k-grams of a text, H of the k-1 tokens before and G of all k, each known by its number.

    A key is the number of the first k - 1 tokens times V, plus the last one; a k-gram's number is the place of its key.
    """

    keys: np.ndarray         # (G,) int64, ascending
    counts: np.ndarray       # (G,) int64
    discounts: np.ndarray    # (4,) f64, of the counts 0, 1, 2, and 3 or more
    totals: np.ndarray       # (H,) f64, the counts of a context summed
    spare: np.ndarray        # (H,) f64, its discounts summed

    def find(self, contexts: np.ndarray, tokens: np.ndarray, vocabulary: int) -> np.ndarray:
        """Numbers (N,) of k-grams by the number of their context (N,) and their last token (N,); -1 for what was not seen."""
        keys = contexts * vocabulary + tokens
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where((self.keys[at] == keys) & (contexts >= 0) & (tokens >= 0), at, -1)


@dataclass(frozen=True)
class NGramShape:
    """V vocabulary, and of how many tokens the longest grams are."""

    vocabulary: int
    order: int = 7


class NGram:
    """Modified Kneser-Ney with interpolation and three discounts an order. Chen and Goodman 1999, section 3 and equation 26."""

    def __init__(self, vocabulary: int, order: int = 7):
        if vocabulary < 1 or order < 1:
            raise MiniLLMError(f"a vocabulary of {vocabulary} and an order of {order}: both must be at least 1")
        self.vocabulary, self.order, self.levels = vocabulary, order, []

    @property
    def shape(self) -> NGramShape:
        return NGramShape(self.vocabulary, self.order)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Which k-grams there are and how often, (G,) int64 each, by "1.keys", "1.counts", ...; all else follows from them."""
        return {f"{k}.{what}": getattr(at, what) for k, at in enumerate(self.levels, 1) for what in ("keys", "counts")}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Take over what `state_dict` gave; MiniLLMError for another order."""
        if state.keys() != {f"{k}.{what}" for k in range(1, self.order + 1) for what in ("keys", "counts")}:
            raise MiniLLMError(f"these counts are of another model: {sorted(state)[:3]} there, order {self.order} here")
        self.levels, contexts = [], 1
        for k in range(1, self.order + 1):
            keys = state[f"{k}.keys"]
            self.levels.append(level(keys, state[f"{k}.counts"], contexts, self.vocabulary))
            contexts = len(keys)

    def fit(self, ids: np.ndarray) -> Self:
        """Count a text, ids (n,); MiniLLMError for one shorter than the order."""
        if len(ids) < self.order:
            raise MiniLLMError(f"{len(ids)} tokens hold no {self.order}-gram: take a longer text or a lower order")
        ids, V, found = ids.astype(np.int64), self.vocabulary, []
        numbers = np.zeros(len(ids) + 1, np.int64)       # of the (k-1)-gram that starts at each place; there is one without tokens
        for k in range(1, self.order + 1):
            starts = len(ids) - k + 1
            keys, first, numbers, counts = np.unique(numbers[:starts] * V + ids[k - 1:], True, True, True)
            found.append((keys, first, numbers, counts))
        self.levels, contexts = [], 1
        for k, (keys, _, numbers, counts) in enumerate(found, 1):
            if k < self.order:
                counts = different_before(numbers, found[k][1], len(keys))
            self.levels.append(level(keys, counts, contexts, V))
            contexts = len(keys)
        return self

    def probability(self, contexts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """P(token | context) (N,) float64 for contexts (N,K) and tokens (N,); -1 in a context is no token."""
        if not self.levels:
            raise MiniLLMError("this n-gram model has counted nothing: fit(ids) it first")
        contexts = contexts.astype(np.int64)
        p = np.full(len(tokens), 1 / self.vocabulary)
        for k, at in enumerate(self.levels[:contexts.shape[1] + 1], 1):
            h = self.number(contexts[:, contexts.shape[1] - k + 1:])
            c = counts_of(at, at.find(h, tokens, self.vocabulary))
            total = np.where(h >= 0, at.totals[h], 0)
            smoothed = (c - at.discounts[np.minimum(c, 3)] + at.spare[h] * p) / np.maximum(total, 1)
            p = np.where(total > 0, smoothed, p)
        return p

    def generate(self, ids: np.ndarray, tokens: int, temperature: float = 1.0, top_k: int = 0, seed: int = 0) -> np.ndarray:
        """Continue ids (T,) by `tokens` sampled tokens, as a GPT does."""
        ids, rng, V = [int(i) for i in ids], np.random.default_rng(seed), self.vocabulary
        for _ in range(tokens):
            context = ids[len(ids) - min(len(ids), self.order - 1):]
            p = self.probability(np.tile(np.array(context, np.int64), (V, 1)), np.arange(V))                 # (V,) f64
            ids.append(choose(np.log(p).astype(np.float32), temperature, top_k, rng))
        return np.array(ids, np.int32)

    def number(self, grams: np.ndarray) -> np.ndarray:
        """Numbers (N,) of grams (N,k), -1 for what was not seen."""
        numbers = np.zeros(len(grams), np.int64)
        for at, tokens in zip(self.levels, grams.T, strict=False):
            numbers = at.find(numbers, tokens, self.vocabulary)
        return numbers

    def loss(self, ids: np.ndarray) -> float:
        """Nats a token over ids (n,), of each but the first, given what stands before it."""
        K = self.order - 1
        if len(ids) < 2:
            raise MiniLLMError(f"{len(ids)} tokens leave nothing to predict: give at least two")
        padded = np.concatenate([np.full(K, -1), ids])
        contexts = np.lib.stride_tricks.sliding_window_view(padded, K)[1:len(ids)] if K else np.zeros((len(ids) - 1, 0))
        return -math.fsum(np.log(self.probability(contexts, ids[1:]))) / (len(ids) - 1)


def level(keys: np.ndarray, counts: np.ndarray, contexts: int, V: int) -> Level:
    """The k-grams with these keys and counts, after one of so many contexts."""
    discounts, before = discounts_of(counts), keys // V
    return Level(keys, counts, discounts, np.bincount(before, counts, contexts),
                 np.bincount(before, discounts[np.minimum(counts, 3)], contexts))


def different_before(numbers: np.ndarray, first: np.ndarray, G: int) -> np.ndarray:
    """Before how many different tokens each of G k-grams stood; the beginning of the text is one, too.

    numbers: of the k-gram at each place; first: a place of each (k+1)-gram, which ends with the k-gram one place further.
    """
    counts = np.bincount(numbers[first + 1], minlength=G)
    counts[numbers[0]] += 1
    return counts


def discounts_of(counts: np.ndarray) -> np.ndarray:
    """What is taken from counts of 0, 1, 2, and 3 or more, by how many there are of 1, 2, 3 and 4."""
    n1, n2, n3, n4 = (int((counts == c).sum()) for c in range(1, 5))
    share = n1 / max(n1 + 2 * n2, 1)
    found = [j - (j + 1) * share * after / n if n else -1.0 for j, n, after in ((1, n1, n2), (2, n2, n3), (3, n3, n4))]
    return np.array([0.0, *(d if 0 <= d <= j and share else FALLBACK[j - 1] for j, d in enumerate(found, 1))])


def counts_of(at: Level, numbers: np.ndarray) -> np.ndarray:
    """Counts of k-grams by number, 0 for what was not seen."""
    return np.where(numbers >= 0, at.counts[numbers], 0)
