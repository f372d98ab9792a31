"""Text with errors in it: what a model makes of it says how much it leans on each single token, or word."""
import string
from collections.abc import Callable, Sequence

import numpy as np

from minillm.data.tasks import Example
from minillm.errors import MiniLLMError, unknown
from minillm.training.scores import accuracy

ERRORS = ("typos", "dropped", "swapped")                   # of tokens that follow one another
TEXT_ERRORS = (*ERRORS, "noise")                           # of words of a text that is answered as a whole


def with_errors(ids: np.ndarray, kind: str, rate: float, vocabulary: int,
                seed: int | Sequence[int] = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs with errors and the true token behind each, from a text ids (n,) without any; a pure function of its arguments.

    typos: another token in place of one in 1 / rate; dropped: one in 1 / rate is missing; swapped: one in 1 / rate has changed
    places with the next. Models are asked for what really follows, so that the targets hold no errors.
    """
    if kind not in ERRORS:
        raise unknown("kind of error", kind, ERRORS)
    if not 0 <= rate < 1 or len(ids) < 2 or vocabulary < 2:
        raise MiniLLMError(f"errors at a rate of {rate} in {len(ids)} tokens of {vocabulary}: a rate from 0 to below 1, two tokens")
    rng, inputs, targets = np.random.default_rng(seed), ids[:-1].copy(), ids[1:]
    hit = rng.random(len(inputs)) < rate
    if kind == "typos":
        inputs[hit] = (inputs[hit] + rng.integers(1, vocabulary, int(hit.sum()))) % vocabulary
    elif kind == "dropped":
        inputs, targets = inputs[~hit], targets[~hit]
    else:
        at = np.flatnonzero(hit[:-1] & ~np.roll(hit, 1)[:-1])                  # none twice
        inputs[at], inputs[at + 1] = inputs[at + 1], inputs[at]
    return inputs.astype(np.int32), targets.astype(np.int32)


def text_with_errors(text: str, kind: str, rate: float, key: int | Sequence[int], words: Sequence[str] = ()) -> str:
    """A text with an error in about one word of 1 / rate; a pure function of its arguments. Words are parted by spaces.

    typos: one letter of the word is another one; noise: one of `words` stands in its place; dropped: it is missing; swapped: it has
    changed places with the next. One word is left in any case. MiniLLMError for another kind or rate, and noise without words.
    """
    if kind not in TEXT_ERRORS:
        raise unknown("kind of error", kind, TEXT_ERRORS)
    if kind in ("dropped", "swapped"):
        return misplaced(text, kind, rate, key)
    if not 0 <= rate < 1 or (kind == "noise" and not words):
        raise MiniLLMError(f"{kind} at a rate of {rate} with {len(words)} words: give a rate from 0 to below 1, for noise words")
    rng, found = np.random.default_rng(key), text.split()
    for i in np.flatnonzero(rng.random(len(found)) < rate):
        found[i] = words[rng.integers(len(words))] if kind == "noise" else mistyped(found[i], rng)
    return " ".join(found)


def mistyped(word: str, rng: np.random.Generator) -> str:
    """The word with another letter in one place."""
    at = rng.integers(len(word))
    others = [letter for letter in string.ascii_lowercase if letter != word[at]]
    return word[:at] + others[rng.integers(len(others))] + word[at + 1:]


def misplaced(text: str, kind: str, rate: float, key: int | Sequence[int]) -> str:
    """The words whose places are left, in their order, by the errors of tokens "dropped" or "swapped"."""
    words = text.split()
    if not words:
        return text
    places, _ = with_errors(np.arange(len(words) + 1), kind, rate, len(words) + 1, key)       # the last is a target only
    return " ".join(words[i] for i in places) or text


def accuracy_under_errors(answers: Callable[[list[str]], list[str]], examples: Sequence[Example], kind: str, rate: float,
                          seed: int = 0, words: Sequence[str] = ()) -> float:
    """The share of examples that are answered as they should be where their sources have errors.

    answers(sources): with a classifier `lambda sources: reader.answers(model, sources)`, for an ensemble as well.
    """
    sources = [text_with_errors(e.source, kind, rate, (seed, i), words) for i, e in enumerate(examples)]
    return accuracy(answers(sources), [e.target for e in examples])
