"""The n-gram model against Kneser-Ney written down with dictionaries and fractions, and against itself: probabilities sum to 1."""
import math
from collections import Counter, defaultdict
from fractions import Fraction

import numpy as np
import pytest

from minillm.errors import MiniLLMError
from minillm.models.ngram import NGram
from minillm.testing import FLOAT64, gamma

V, ORDER = 5, 4
TEXT = np.random.default_rng(3).choice(V - 1, 200, p=[0.5, 0.3, 0.15, 0.05]).astype(np.int32)      # token 4 never occurs
BOUND = gamma(8 * ORDER, FLOAT64)      # at most eight operations an order, each within half an ulp


def by_definition(text, order):
    """P(w | h) as a function of tuples, each count a dictionary's, each number a fraction."""
    text = tuple(int(i) for i in text)
    grams = [[text[i:i + k] for i in range(len(text) - k + 1)] for k in range(order + 1)]
    levels = [None]
    for k in range(1, order + 1):
        if k == order:
            counts = Counter(grams[k])
        else:
            before = defaultdict(set)
            before[text[:k]].add("nothing")
            for g in grams[k + 1]:
                before[g[1:]].add(g[0])
            counts = Counter({g: len(seen) for g, seen in before.items()})
        levels.append((counts, discounts(counts)))

    def p(h, w):
        if h is None:
            return Fraction(1, V)
        counts, taken = levels[len(h) + 1]
        after = {g: c for g, c in counts.items() if g[:-1] == h}
        lower = p(h[1:] if h else None, w)
        if not after:
            return lower
        c = after.get((*h, w), 0)
        spare = sum(taken[min(c, 3)] for c in after.values())
        return (c - taken[min(c, 3)] + spare * lower) / sum(after.values())

    return p


def discounts(counts):
    n = Counter(counts.values())
    share = Fraction(n[1], n[1] + 2 * n[2]) if n[1] else 0
    found = [0]
    for j, otherwise in ((1, Fraction(1, 2)), (2, Fraction(1)), (3, Fraction(3, 2))):
        d = j - (j + 1) * share * Fraction(n[j + 1], n[j]) if n[j] and share else -1
        found.append(d if 0 <= d <= j else otherwise)
    return found


CONTEXTS = [(), (0,), (4,), (3, 3), (0, 1, 2), (0, 0, 0), (4, 0, 0), (0, 4, 0), tuple(int(i) for i in TEXT[-3:])]


@pytest.mark.parametrize("h", CONTEXTS, ids=str)
def test_probabilities_are_those_of_the_definition_and_sum_to_one(h):
    exact = [by_definition(TEXT, ORDER)(h, w) for w in range(V)]
    found = NGram(V, ORDER).fit(TEXT).probability(np.tile(np.array(h, np.int32).reshape(1, -1), (V, 1)), np.arange(V))
    assert sum(exact) == 1                                                     # fractions: the definition itself is a distribution
    assert min(exact) > 0
    assert all(abs(Fraction(float(f)) - e) <= BOUND * e for f, e in zip(found, exact, strict=True))
    assert abs(math.fsum(found) - 1) <= BOUND


@pytest.mark.parametrize("order", [1, 2, 7])
def test_every_order_sums_to_one_after_whatever_stood_before(order):
    model = NGram(V, order).fit(TEXT)
    contexts = np.random.default_rng(order).integers(-1, V, (50, 9))
    p = np.stack([model.probability(contexts, np.full(50, w)) for w in range(V)])
    assert np.abs(p.sum(0) - 1).max() <= gamma(8 * order + V, FLOAT64)
    assert p.min() > 0


def test_the_loss_is_the_mean_of_what_each_token_cost():
    held_out = np.random.default_rng(4).integers(0, V, 30)
    p = by_definition(TEXT, ORDER)
    exact = [-math.log(p(tuple(int(i) for i in held_out[max(0, i - ORDER + 1):i]), int(held_out[i]))) for i in range(1, 30)]
    assert NGram(V, ORDER).fit(TEXT).loss(held_out) == pytest.approx(math.fsum(exact) / 29, rel=2 * BOUND)


def test_a_text_without_rare_counts_gets_the_discounts_that_are_written_down():
    model = NGram(1, 2).fit(np.zeros(50, np.int32))
    assert [list(at.discounts) for at in model.levels] == [[0, 0.5, 1, 1.5]] * 2
    assert model.loss(np.zeros(5, np.int32)) == pytest.approx(0, abs=BOUND)


def test_what_cannot_be_counted_is_said():
    for fails, words in ((lambda: NGram(V, 7).fit(TEXT[:6]), "6 tokens hold no 7-gram"), (lambda: NGram(V, 0), "order of 0"),
                         (lambda: NGram(V, 3).fit(TEXT).loss(TEXT[:1]), "1 tokens leave nothing"),
                         (lambda: NGram(V, 3).loss(TEXT), "counted nothing")):
        with pytest.raises(MiniLLMError, match=words):
            fails()
