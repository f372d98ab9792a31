"""How good answers are: each score takes what was predicted and what was wanted, two lists of as many texts or class names.

All go from 0 to 1 but `bleu`, which goes to 100 as it does everywhere. `f1`, `precision` and `recall` are macro averages: of
each class that is predicted or wanted, then their mean. `f1_micro` counts all classes together, and where each case has one
class that is the accuracy. 0 stands where a class was never predicted, or never wanted, and a ratio has no value.
"""
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import wraps

from minillm.errors import MiniLLMError

Texts = Sequence[str]
Score = Callable[[Texts, Texts], float]

LONGEST_NGRAM = 4
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
# The tokenizer 13a of mteval, as sacrebleu has it: signs stand alone, a full stop or comma unless digits are on both its sides.
SIGNS_APART = ((re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "), (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
               (re.compile(r"([\.,])([^0-9])"), r" \1 \2"), (re.compile(r"([0-9])(-)"), r"\1 \2 "))
ESCAPES = {"<skipped>": "", "-\n": "", "\n": " ", "&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}


def checked(score: Score) -> Score:
    """The score of as many predictions as answers, of one or more; MiniLLMError otherwise."""
    @wraps(score)
    def of(predicted: Texts, wanted: Texts) -> float:
        if len(predicted) != len(wanted) or not wanted:
            raise MiniLLMError(f"{len(predicted)} predictions cannot be scored against {len(wanted)} answers; "
                               f"give one prediction for each answer, and one or more")
        return score(predicted, wanted)
    return of


def mean(values: Iterable[float]) -> float:
    """The mean of one or more numbers, their sum rounded once."""
    values = list(values)
    return math.fsum(values) / len(values)


# --- classes

@checked
def accuracy(predicted: Texts, wanted: Texts) -> float:
    """The share of cases whose class was found."""
    return mean(p == w for p, w in zip(predicted, wanted, strict=True))


@checked
def precision(predicted: Texts, wanted: Texts) -> float:
    """Of the cases called a class, how many are of it; the mean over classes."""
    return mean(ratio(hits, called) for hits, called, _ in counts(predicted, wanted))


@checked
def recall(predicted: Texts, wanted: Texts) -> float:
    """Of the cases of a class, how many were called so; the mean over classes."""
    return mean(ratio(hits, there) for hits, _, there in counts(predicted, wanted))


@checked
def f1(predicted: Texts, wanted: Texts) -> float:
    """The harmonic mean of precision and recall of a class; the mean over classes."""
    return mean(ratio(2 * hits, called + there) for hits, called, there in counts(predicted, wanted))


@checked
def f1_micro(predicted: Texts, wanted: Texts) -> float:
    """The same with the cases of all classes counted together."""
    hits, called, there = map(sum, zip(*counts(predicted, wanted), strict=True))
    return ratio(2 * hits, called + there)


def counts(predicted: Texts, wanted: Texts) -> list[tuple[int, int, int]]:
    """For each class that is predicted or wanted: how often both, how often predicted, how often wanted."""
    called, there = Counter(predicted), Counter(wanted)
    hits = Counter(w for p, w in zip(predicted, wanted, strict=True) if p == w)
    return [(hits[name], called[name], there[name]) for name in sorted(called | there)]


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


# --- texts

@checked
def exact_match(predicted: Texts, wanted: Texts) -> float:
    """The share of texts that are the wanted ones, character by character."""
    return accuracy(predicted, wanted)


@checked
def token_f1(predicted: Texts, wanted: Texts) -> float:
    """How far the words of two texts are the same, in any order; the mean over texts.

    Small letters, without punctuation and English articles. Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1; two texts
    without any word agree, as in its version of 2018.
    """
    return mean(word_f1(plain_words(p), plain_words(w)) for p, w in zip(predicted, wanted, strict=True))


def plain_words(text: str) -> list[str]:
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def word_f1(predicted: list[str], wanted: list[str]) -> float:
    """F1 of two bags of words."""
    return harmonic((Counter(predicted) & Counter(wanted)).total(), len(predicted), len(wanted))


def harmonic(shared: int, predicted: int, wanted: int) -> float:
    """F1 from what two texts share and how much each has; texts that both have nothing agree."""
    return 2 * shared / (predicted + wanted) if predicted or wanted else 1.0


@checked
def rouge_l(predicted: Texts, wanted: Texts) -> float:
    """F1 of the longest sequence of words that both texts have in this order, gaps allowed; the mean over texts.

    Words are letters and digits, in small letters, not cut to stems. Lin 2004, "ROUGE", section 3.1, with beta 1.
    """
    pairs = ((re.findall(r"\w+", p.lower()), re.findall(r"\w+", w.lower())) for p, w in zip(predicted, wanted, strict=True))
    return mean(harmonic(longest_common(p, w), len(p), len(w)) for p, w in pairs)


def longest_common(a: list[str], b: list[str]) -> int:
    """The length of the longest common subsequence: each row of the table from the one above it."""
    row = [0] * (len(b) + 1)
    for word in a:
        above, row = row, [0]
        for i, other in enumerate(b):
            row.append(above[i] + 1 if word == other else max(above[i + 1], row[i]))
    return row[-1]


@checked
def bleu(predicted: Texts, wanted: Texts) -> float:
    """BLEU of the whole list, 0 to 100, as sacrebleu computes it by default: n-grams to 4, tokenizer 13a, exponential smoothing.

    Papineni et al. 2002; Post 2018, arXiv 1804.08771. Without a text of four tokens it is 0, and Chinese without spaces is one
    token: on such answers read exact_match.
    """
    made, there = [tokens_13a(text) for text in predicted], [tokens_13a(text) for text in wanted]
    hits, total = [0] * LONGEST_NGRAM, [0] * LONGEST_NGRAM
    for p, w in zip(made, there, strict=True):
        for n in range(LONGEST_NGRAM):
            found = ngrams(p, n + 1)
            hits[n] += (found & ngrams(w, n + 1)).total()
            total[n] += found.total()
    if not any(hits) or not all(total):
        return 0.0
    brevity = min(0.0, 1 - sum(map(len, there)) / total[0])
    return 100 * math.exp(brevity + mean(math.log(share) for share in smoothed(hits, total)))


def tokens_13a(text: str) -> list[str]:
    """The tokens that BLEU counts by default."""
    text = text.rstrip()
    for escape, meant in ESCAPES.items():
        text = text.replace(escape, meant)
    text = f" {text} "
    for sign, apart in SIGNS_APART:
        text = sign.sub(apart, text)
    return text.split()


def ngrams(tokens: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i:i + n]) for i in range(len(tokens) - n + 1))


def smoothed(hits: list[int], total: list[int]) -> Iterable[float]:
    """The share of n-grams found, for each n; the first without any counts as half of one, the next as a quarter."""
    halves = 1.0
    for found, all_of_them in zip(hits, total, strict=True):
        halves = halves if found else halves / 2
        yield (found or halves) / all_of_them


# --- language models

def perplexity(loss: float) -> float:
    """How many tokens are as likely on average, from a loss in nats a token; infinity where a float cannot hold it."""
    return math.exp(loss) if loss < 700 else math.inf


def bits_per_character(loss: float, characters_per_token: float) -> float:
    """A loss in nats a token as bits a character, by which models with different tokens can be compared."""
    return loss / characters_per_token / math.log(2)


SCORES: dict[str, Score] = {score.__name__: score for score in (
    accuracy, precision, recall, f1, f1_micro, exact_match, token_f1, bleu, rouge_l)}
