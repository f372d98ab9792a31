"""More texts from few: each is changed a little, in a way that should leave its meaning alone.

A change is a function of (text, key, rate): a pure one, so that a step can be run again. Words are parted by spaces.
"""
from collections.abc import Callable, Sequence

import numpy as np

from minillm.data import reviews
from minillm.data.mixing import Mixture
from minillm.data.special import MASK, SPECIAL
from minillm.data.tasks import Example
from minillm.errors import MiniLLMError
from minillm.hybrid.robustness import misplaced

Change = Callable[[str, int, float], str]
SPAN = 3                   # words of a hidden span, in the mean. Raffel et al. 2019, arXiv 1910.10683, section 3.3.4

# Words of one group stand for each other. Those of the generated reviews do so exactly: no score changes.
SYNONYMS = (reviews.POSITIVE, reviews.NEGATIVE, reviews.NEGATORS, reviews.INTENSIFIERS, reviews.DIMINISHERS,
            ["film", "movie", "picture"], ["begin", "start"], ["big", "large"], ["small", "little"], ["fast", "quick"])


def dropped(text: str, key: int, rate: float) -> str:
    """Without each word with a chance of `rate`. Wei and Zou 2019, arXiv 1901.11196 (as the next two)."""
    return misplaced(text, "dropped", rate, key)


def swapped(text: str, key: int, rate: float) -> str:
    """Each word exchanged with the next with a chance of about `rate`."""
    return misplaced(text, "swapped", rate, key)


def reworded(text: str, key: int, rate: float, groups: Sequence[Sequence[str]] = SYNONYMS) -> str:
    """Each word that has synonyms replaced by one of its group, itself among them, with a chance of `rate`."""
    rng, group_of = np.random.default_rng(key), {word: group for group in groups for word in group}
    hit, words = rng.random(len(text.split())) < rate, text.split()
    return " ".join(str(rng.choice(group_of[word])) if chosen and word in group_of else word
                    for word, chosen in zip(words, hit, strict=True))


def spans_hidden(text: str, key: int, rate: float) -> str:
    """About `rate` of the words hidden, in spans of 1 to 5, each behind a single mask."""
    rng, words, kept = np.random.default_rng(key), text.split(), []
    while words:
        if rng.random() < rate / SPAN:
            words = words[rng.integers(1, 2 * SPAN):]
            kept.append(SPECIAL[MASK])
        else:
            kept.append(words[0])
            words = words[1:]
    return " ".join(kept)


CHANGES: dict[str, Change] = {"dropout": dropped, "swap": swapped, "synonym": reworded, "span": spans_hidden}


class Augmented:
    """A mixture whose sources are changed on their way into a batch, anew each time; targets stay.

    One of the changes is drawn for each example. MiniLLMError for no change at all, and a rate that is no share.
    """

    def __init__(self, mixture: Mixture, changes: Sequence[Change], rate: float = 0.1):
        if not changes or not 0 <= rate < 1:
            raise MiniLLMError(f"{len(changes)} changes at a rate of {rate}: give one or more, and a rate from 0 to below 1")
        self.mixture, self.changes, self.rate = mixture, changes, rate

    def batch(self, size: int, key: tuple[int, int, int]) -> list[Example]:
        """As a Mixture's: a pure function of (seed, step, micro-batch)."""
        return [example for _, example in self.draw(size, key)]

    def draw(self, size: int, key: tuple[int, int, int]) -> list[tuple[int, Example]]:
        """The same, each with the number of its task."""
        rng = np.random.default_rng((len(key), *key, 1))
        return [(t, Example(self.changes[rng.integers(len(self.changes))](e.source, int(rng.integers(2**63)), self.rate), e.target))
                for t, e in self.mixture.draw(size, key)]


def back_translated(texts: Sequence[str], answer: Callable[[list[str]], list[str]], here: str = "en",
                    there: str = "de") -> list[str]:
    """Texts into another language and back, by what answers sources such as "en>de twelve". Sennrich et al., arXiv 1511.06709.

    With a trained encoder-decoder: `lambda sources: reader.answers(model, sources)`.
    """
    return answer([f"{there}>{here} {text}" for text in answer([f"{here}>{there} {text}" for text in texts])])
