"""Words as ids, and the task that is made of words."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.data import reviews as rules
from minillm.data.batches import epoch_batch, padded
from minillm.data.special import BEGIN, END, MASK, PAD, UNKNOWN
from minillm.data.tasks import load_task
from minillm.data.words import WordTokenizer
from minillm.errors import MiniLLMError

TEXT = "The cat saw the dog. The dog didn't!"


@pytest.fixture(scope="module")
def task():
    return load_task("reviews")


# --- words

def test_the_most_frequent_words_come_first_and_of_equals_the_first_in_order():
    assert WordTokenizer.train(TEXT, 100).tokens[5:] == ["the", "dog", "!", ".", "cat", "didn't", "saw"]
    few = WordTokenizer.train(TEXT, 7)
    assert (few.vocabulary, few.tokens[5:]) == (7, ["the", "dog"])
    assert few.encode("A DOG? The dog!").tolist() == [UNKNOWN, 6, UNKNOWN, 5, 6, UNKNOWN]


def test_special_ids_stand_in_a_text_as_signs_and_are_never_counted():
    words = WordTokenizer.train(TEXT + "\0\1\2\3" * 9, 100)
    assert words.encode("\0\1the\2 \3").tolist() == [PAD, BEGIN, words.encode("the")[0], END, MASK]
    assert words.vocabulary == 12
    assert words.decode([UNKNOWN, 5]) == "\N{REPLACEMENT CHARACTER} the"


def test_a_vocabulary_without_a_word_is_refused():
    assert WordTokenizer.train(TEXT, 6).vocabulary == 6
    with pytest.raises(MiniLLMError, match="a vocabulary of 5 words is too small"):
        WordTokenizer.train(TEXT, 5)


@given(st.text(max_size=30))
def test_what_was_decoded_is_encoded_alike(text):
    words = WordTokenizer.train(text + TEXT, 1000)
    ids = words.encode(text)
    assert words.encode(words.decode(ids)).tolist() == ids.tolist()


# --- reviews

def test_reviews_are_as_their_rule_says(task):
    lists = (rules.POSITIVE, rules.NEGATIVE, rules.NEGATORS, rules.INTENSIFIERS, rules.DIMINISHERS, rules.NOUNS, rules.FILLERS)
    known = set().union(*lists)
    assert [len(its) for its in lists] == [20, 20, 4, 6, 6, 60, 200]
    assert len(known) == 316
    for part, count in (task.train, 4000), (task.held_out, 1000):
        lengths = [len(e.source.split()) for e in part]
        assert (len(part), min(lengths), max(lengths)) == (count, 30, 40)
        assert sum(e.target == "positive" for e in part) == count / 2
        assert known == {word for e in part for word in e.source.split()}
    assert not {e.source for e in task.train} & {e.source for e in task.held_out}
    assert load_task("reviews", 1).train[0] != task.train[0] == load_task("reviews").train[0]


def test_a_verdict_is_the_sum_of_what_the_clauses_say(task):
    says = {w: s for s, its in ((1, rules.POSITIVE), (-1, rules.NEGATIVE)) for w in its}
    factor = {w: s for s, its in ((-1, rules.NEGATORS), (2, rules.INTENSIFIERS), (0.5, rules.DIMINISHERS)) for w in its}
    for example in task.train[:500]:
        score, weight = 0.0, 1.0
        for word in example.source.split():
            weight = weight * factor[word] if word in factor else weight
            if word in says:
                score, weight = score + says[word] * weight, 1.0
        assert abs(score) >= 1
        assert example.target == ("positive" if score > 0 else "negative")


def test_counting_words_is_not_enough(task):
    """Ridge regression on how often each word occurs: 0.65, since it cannot see what a negator stands before."""
    words = WordTokenizer.train("\n".join(e.source for e in task.train), 10_000)

    def counted(part):
        counts = np.array([np.bincount(words.encode(e.source), minlength=words.vocabulary) for e in part], np.float64)
        return counts, np.array([1.0 if e.target == "positive" else -1.0 for e in part])

    (x, y), (x_out, y_out) = counted(task.train), counted(task.held_out)
    w = np.linalg.solve(x.T @ x + np.eye(words.vocabulary), x.T @ y)
    assert 0.6 < ((x_out @ w > 0) == (y_out > 0)).mean() < 0.8


# --- batches

def test_rows_are_filled_up_on_either_side():
    rows = [np.array([1, 2]), np.array([], int), np.array([3])]
    assert padded(rows).tolist() == [[1, 2], [0, 0], [3, 0]]
    assert padded(rows, 3, left=True, pad=9).tolist() == [[9, 1, 2], [9, 9, 9], [9, 9, 3]]
    assert padded([]).shape == (0, 0)
    with pytest.raises(MiniLLMError, match="2 tokens, more than the 1"):
        padded(rows, 1)


def test_an_epoch_has_every_row_once_and_four_batches_are_one_of_four_times_the_size():
    x, y = np.arange(40), -np.arange(40)
    drawn = [epoch_batch((x, y), 5, 7, number) for number in range(16)]
    for epoch in drawn[:8], drawn[8:]:
        assert sorted(np.concatenate([a for a, _ in epoch])) == list(range(40))
    assert all(np.array_equal(a, -b) for a, b in drawn)
    assert np.concatenate([a for a, _ in drawn[4:8]]).tolist() == epoch_batch((x,), 20, 7, 1)[0].tolist()
    assert drawn[0][0].tolist() != drawn[8][0].tolist() != epoch_batch((x,), 5, 8, 8)[0].tolist()
    for wrong in 0, 41:
        with pytest.raises(MiniLLMError, match=f"a batch of {wrong}"):
            epoch_batch((x,), wrong, 0, 0)
