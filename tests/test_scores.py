"""Scores: against scikit-learn and sacrebleu where they are installed, against their definitions, and worked by hand."""
import math
import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.errors import MiniLLMError
from minillm.training import scores
from minillm.training.scores import SCORES

WORDS = st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat,", "3.5", "x-y", "Äpfel", "don't", "U.S.", "&amp;", "7-"]),
                 max_size=9).map(" ".join)
TEXTS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6)
calm = settings(deadline=None, max_examples=40)
ULPS = 1e-14                    # both sides are ratios and means of at most 30 numbers up to 1 in float64: some 30 * 2^-53, rel.


@pytest.mark.parametrize("size", [1, 2, 7, 29, 30])
def test_classes_are_scored_as_scikit_learn_scores_them(size):
    metrics = pytest.importorskip("sklearn.metrics")
    draw = random.Random(size)
    predicted, wanted = draw.choices("abcde", k=size), draw.choices("abcdz", k=size)          # e is never right, z never found
    theirs = {"accuracy": metrics.accuracy_score(wanted, predicted)}
    macro, micro = (metrics.precision_recall_fscore_support(wanted, predicted, average=average, zero_division=0)
                    for average in ("macro", "micro"))
    theirs |= {"precision": macro[0], "recall": macro[1], "f1": macro[2], "f1_micro": micro[2]}
    assert {name: SCORES[name](predicted, wanted) for name in theirs} == pytest.approx(theirs, rel=ULPS, abs=0)


@calm
@given(TEXTS)
def test_bleu_is_sacrebleus(pairs):
    corpus_bleu = pytest.importorskip("sacrebleu").corpus_bleu
    predicted, wanted = map(list, zip(*pairs, strict=True))
    # The logarithm of a share down to 1e-3 and its exponential: an error of some 10 * 2^-53 in the exponent.
    assert SCORES["bleu"](predicted, wanted) == pytest.approx(corpus_bleu(predicted, [wanted]).score, rel=ULPS, abs=1e-300)


@pytest.mark.parametrize("text", ["The U.S. has 3,500.75 (7-8 %) & more", "a,b . c.d ,1. 2", "x&quot;y&lt;z &amp;amp;", "end \t ",
                                  "tab\tand -\nbroken\nline <skipped>", "[a] {b} ~c~ `d` 'e' / \\ |", "üß 十二 年3月", ""])
def test_tokens_are_those_of_13a(text):
    tokenizer = pytest.importorskip("sacrebleu.tokenizers.tokenizer_13a").Tokenizer13a()
    assert scores.tokens_13a(text) == tokenizer(text.rstrip()).split()


def test_classes_by_hand():
    predicted, wanted = list("aabbc"), list("abbbb")
    # a: found 1, called 2, there 1; b: 2, 2, 4; c: 0, 1, 0
    assert SCORES["accuracy"](predicted, wanted) == 3 / 5
    assert SCORES["precision"](predicted, wanted) == pytest.approx((1 / 2 + 1 + 0) / 3, rel=ULPS)
    assert SCORES["recall"](predicted, wanted) == pytest.approx((1 + 1 / 2 + 0) / 3, rel=ULPS)
    assert SCORES["f1"](predicted, wanted) == pytest.approx((2 / 3 + 2 / 3 + 0) / 3, rel=ULPS)
    assert SCORES["f1_micro"](predicted, wanted) == 3 / 5


def test_bleu_by_hand():
    # 4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 quadruples; as long as the answer
    assert SCORES["bleu"](["a b c d x"], ["a b c d e"]) == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4), rel=ULPS)
    # half as long: exp(1 - 8 / 4)
    assert SCORES["bleu"](["a b c d"], ["a b c d e f g h"]) == pytest.approx(100 * math.exp(-1), rel=ULPS)
    # no pair, triple or quadruple: a half of 3, a quarter of 2, an eighth of 1
    assert SCORES["bleu"](["a x b y"], ["a c b d"]) == pytest.approx(100 * (2 / 4 / 2 / 3 / 4 / 2 / 8 / 1) ** (1 / 4), rel=ULPS)
    assert SCORES["bleu"](["十二", ""], ["十二", "x"]) == 0.0


def test_exact_match_sees_every_character():
    assert SCORES["exact_match"](["Oslo", "oslo", "Oslo."], ["Oslo", "Oslo", "Oslo"]) == 1 / 3


@pytest.mark.parametrize(("predicted", "wanted", "score"), [
    ("The Cat, a dog", "dog cat", 1.0), ("cat cat", "cat", 2 / 3), ("cat", "cat cat dog", 1 / 2), ("", "cat", 0.0),
    ("the", "", 1.0), ("über", "Über", 1.0),
])
def test_token_f1_by_hand(predicted, wanted, score):
    assert SCORES["token_f1"]([predicted], [wanted]) == pytest.approx(score, rel=ULPS)


def every_common_subsequence(a, b):
    """The longest, by trying all: those of the first, found one word after another in the second."""
    def inside(words):
        rest = iter(b)
        return all(word in rest for word in words)
    return max(n for n in range(len(a) + 1) if any(inside(words) for words in combinations(a, n)))


@calm
@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_rouge_l_is_f1_of_the_longest_of_all_common_subsequences(a, b):
    shared = every_common_subsequence(a, b)
    assert scores.longest_common(a, b) == shared
    precision, recall = (shared / len(words) if words else 0.0 for words in (a, b))
    wanted = 2 * precision * recall / (precision + recall) if shared else float(a == b)
    assert SCORES["rouge_l"]([" ".join(a)], [" ".join(b)]) == pytest.approx(wanted, rel=ULPS)
    assert SCORES["rouge_l"]([", ".join(a).upper()], [" ".join(b)]) == SCORES["rouge_l"]([" ".join(a)], [" ".join(b)])


@pytest.mark.parametrize("name", SCORES)
def test_the_right_answers_get_all_points_and_wrong_ones_none(name):
    wanted, wrong = ["one two three four", "five six seven eight nine"], ["b c", "d e f g"]
    assert SCORES[name](wanted, wanted) == pytest.approx(100 if name == "bleu" else 1, rel=ULPS)
    assert SCORES[name](wrong, wanted) == 0


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(("predicted", "wanted"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_what_cannot_be_scored_gets_one_line(name, predicted, wanted):
    with pytest.raises(MiniLLMError, match=f"^{len(predicted)} predictions cannot be scored against {len(wanted)} answers; give"):
        SCORES[name](predicted, wanted)


def test_language_model_scores_by_hand():
    assert scores.perplexity(math.log(50)) == pytest.approx(50, rel=ULPS)
    assert scores.perplexity(1e4) == math.inf
    assert scores.bits_per_character(math.log(8), 1) == pytest.approx(3, rel=ULPS)       # 3 bits
    assert scores.bits_per_character(math.log(8), 4) == pytest.approx(0.75, rel=ULPS)    # a token of 4 characters
