"""Changes of texts: pure functions of text, key and rate, which do what they say, as often as they say."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.data.mixing import Mixture
from minillm.data.special import BEGIN, MASK, SPECIAL
from minillm.data.tasks import Example, load_task
from minillm.data.words import WordTokenizer
from minillm.errors import MiniLLMError
from minillm.hybrid.adversarial import hidden_batches, hiding, written
from minillm.hybrid.augmentation import CHANGES, SYNONYMS, Augmented, back_translated, dropped, reworded, spans_hidden, swapped
from minillm.models.gan import GAN, GANShape
from minillm.recipes import PRESETS
from minillm.training.readers import LabelReader

LONG = " ".join(f"w{i}" for i in range(20_000))
EXAMPLES = [Example("a very good film of two", "positive"), Example("not a good ending", "negative")]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@given(words=st.lists(st.sampled_from(["good", "bad", "not", "film", "of"]), max_size=8), key=st.integers(0, 2**63 - 1),
       rate=st.floats(0, 0.99))
def test_a_change_is_pure_leaves_something_and_does_nothing_at_rate_0(change, words, key, rate):
    text = " ".join(words)
    assert change(text, key, 0.0) == text
    assert change(text, key, rate) == change(text, key, rate)
    assert bool(change(text, key, rate)) == bool(text)


def test_dropped_words_are_as_many_as_the_rate_says_and_the_others_stay_in_order():
    left = dropped(LONG, 1, 0.3).split()
    assert abs(len(left) - 14_000) < 6 * (20_000 * 0.3 * 0.7) ** 0.5
    assert left == sorted(left, key=lambda word: int(word[1:]))


def test_swapped_words_are_all_there_and_next_to_their_place():
    words = swapped(LONG, 1, 0.1).split()
    places = np.array([int(word[1:]) for word in words])
    assert sorted(places) == list(range(20_000))
    away = abs(places - np.arange(20_000))
    # a hit next to a hit is passed over: 0.1 x 0.9 of the places begin a swap, or rather more
    assert away.max() == 1
    assert 0.08 * 20_000 < away.sum() / 2 < 0.1 * 20_000


def test_hidden_spans_stand_behind_one_mask_each_and_the_rest_in_order():
    words = spans_hidden(LONG, 1, 0.3).split()
    masks = words.count(SPECIAL[MASK])
    left = [word for word in words if word != SPECIAL[MASK]]
    assert left == sorted(left, key=lambda word: int(word[1:]))
    # a span of 3 begins at one in 10 words that are left over: 3 hidden for 9 kept and a mask between
    hidden = 20_000 - len(left)
    assert hidden / masks == pytest.approx(3, abs=6 * 2**0.5 / masks**0.5)
    assert hidden / 20_000 == pytest.approx(3 / 12, abs=0.03)
    ids = WordTokenizer.train("a b", 9).encode(f"a {SPECIAL[MASK]} b")
    assert ids[1] == MASK


def test_synonyms_are_of_one_group_and_leave_all_other_words():
    changed = reworded("a very good film was not bad xyz", 3, 0.999).split()
    assert [word for i, word in enumerate(changed) if i in (0, 4, 7)] == ["a", "was", "xyz"]
    for before, after in zip("very good film not bad".split(), [changed[i] for i in (1, 2, 3, 5, 6)], strict=True):
        assert any(before in group and after in group for group in SYNONYMS)
    assert len({reworded("good", key, 0.999) for key in range(50)}) > 5
    assert len({word for group in SYNONYMS for word in group}) == sum(map(len, SYNONYMS))


def test_a_mixture_is_changed_anew_at_each_step_and_keeps_its_targets():
    mixture = Mixture([EXAMPLES])
    changed = Augmented(mixture, [dropped, reworded], 0.5)
    assert changed.batch(20, (0, 1, 0)) == changed.batch(20, (0, 1, 0)) != changed.batch(20, (0, 2, 0))
    assert [e.target for e in changed.batch(20, (0, 1, 0))] == [e.target for e in mixture.batch(20, (0, 1, 0))]
    assert Augmented(mixture, [dropped], 0.0).batch(20, (0, 1, 0)) == mixture.batch(20, (0, 1, 0))
    for changes, rate in (([], 0.1), ([dropped], 1.0), ([dropped], -0.1)):
        with pytest.raises(MiniLLMError, match="give one or more, and a rate from 0 to below 1"):
            Augmented(mixture, changes, rate)


def test_back_translation_asks_there_and_back():
    words = {"en>de two": "zwei", "de>en zwei": "couple"}
    assert back_translated(["two"], lambda sources: [words[source] for source in sources]) == ["couple"]


# --- a generator's texts

def reader_of(examples=EXAMPLES):
    words = WordTokenizer.train(" ".join(e.source for e in examples), 50)
    return words, LabelReader(words, 12, ("negative", "positive"))


def test_words_are_hidden_and_specials_never():
    _, reader = reader_of()
    for rate in (0.0, 0.5, 1.0):
        ids, hidden, labels = hiding(reader, EXAMPLES, rate, 5, (1,))
        assert labels.tolist() == [1, 0]
        assert hidden[ids < 5].sum() == 0
        assert hidden.sum() == {0.0: 1, 1.0: 10}.get(rate, hidden.sum())
    with pytest.raises(MiniLLMError, match="nothing to hide"):
        hiding(reader, [Example("", "positive")], 0.5, 5, (1,))
    batch = hidden_batches(reader, Mixture([EXAMPLES]), 8, 0.3, 5, 0)
    assert all(np.array_equal(a, b) for a, b in zip(batch(3, 0), batch(3, 0), strict=True))
    assert batch(3, 0)[0][0, 0] == BEGIN


def test_a_generator_writes_texts_of_known_words_with_the_same_targets():
    words, reader = reader_of()
    gan = GAN(GANShape(words.vocabulary, channels=8, context=12), PRESETS["float32"])
    more = written(gan, reader, EXAMPLES, 0.5, 7)
    assert [e.target for e in more] == ["positive", "negative"]
    assert [len(e.source.split()) for e in more] == [6, 4]
    assert {word for e in more for word in e.source.split()} <= set(words.tokens[5:])
    assert more == written(gan, reader, EXAMPLES, 0.5, 7) != written(gan, reader, EXAMPLES, 0.5, 8)


def test_synonyms_change_no_verdict_of_a_generated_review():
    positive, negative = SYNONYMS[:2]
    for e in load_task("reviews").train[:20]:
        both = (e.source.split(), reworded(e.source, 1, 0.9).split())
        signs = [[(word in positive) - (word in negative) for word in words] for words in both]
        assert signs[0] == signs[1]
