"""Tokenizers: every text and every byte comes back; byte pairs agree with the plainest algorithm; JSON is checked."""
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.data.corpora import load_corpus
from minillm.data.tokenizers import (
    LONGEST,
    TOKENIZERS,
    WORD,
    BytePairTokenizer,
    CharTokenizer,
    tokenizer_from_json,
)
from minillm.data.words import WordTokenizer
from minillm.errors import MiniLLMError

unhurried = settings(deadline=None)                                            # the machine may be busy

TEXTS = st.text(max_size=200) | st.text("ab \n", max_size=300)
ANY_STRING = st.text(st.characters(exclude_categories=()), max_size=100)      # with halves of surrogate pairs
SMALL = "the cat sat on the mat, the other cat sat on the other mat; 1234 1234\n    the   mats\n" * 3


@pytest.fixture(scope="module")
def validation():
    return load_corpus("pydoc").validation


@pytest.fixture(scope="module")
def pairs(validation):
    return BytePairTokenizer.train(validation, 600)


# characters

@unhurried
@given(ANY_STRING)
def test_any_text_survives_characters(text):
    tokenizer = CharTokenizer.train(text + "\x00\U0010ffff")
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert ids.shape == (len(text),)
    assert ids.tolist() == [tokenizer.alphabet.index(c) for c in text]
    assert tokenizer.decode(ids) == text
    assert tokenizer.vocabulary == len(set(text + "\x00\U0010ffff"))


def test_the_alphabet_is_sorted_and_ids_follow_it():
    tokenizer = CharTokenizer.train("hello")
    assert (tokenizer.alphabet, tokenizer.vocabulary) == ("ehlo", 4)
    assert tokenizer.encode("hole").tolist() == [1, 3, 2, 0]
    assert CharTokenizer("olhe").encode("hole").tolist() == [2, 0, 1, 3]
    assert tokenizer.decode([[1, 3], [2, 0]]) == "hole"


@pytest.mark.parametrize("foreign", ["é", "z", "f", "\n", "\U0001f600", "\ud800", "\x00"])
def test_a_character_outside_the_alphabet_is_named(foreign):
    with pytest.raises(MiniLLMError) as caught:
        CharTokenizer.train("hello").encode("hell" + foreign + foreign)
    assert str(caught.value) == (f"character {foreign!r} at position 4 is not among the 4 that the model knows; "
                                 f"remove it, or train on a text that contains it")


def test_an_alphabet_needs_characters_each_once():
    with pytest.raises(MiniLLMError, match="an alphabet cannot be made from an empty text"):
        CharTokenizer.train("")
    for alphabet in "", "aba":
        with pytest.raises(MiniLLMError, match="is empty or repeats a character; train one on a text"):
            CharTokenizer(alphabet)


# byte pairs

@unhurried
@given(st.binary(max_size=300))
def test_any_bytes_survive_byte_pairs(pairs, data):
    ids = pairs.encode_bytes(data)
    assert ids.dtype == np.int32
    assert ids.flags.writeable
    assert pairs.decode_bytes(ids) == data
    assert len(ids) <= len(data)


@unhurried
@given(TEXTS)
def test_any_text_survives_byte_pairs(pairs, text):
    assert pairs.decode(pairs.encode(text)) == text


@unhurried
@given(ANY_STRING)
def test_half_a_surrogate_pair_becomes_a_replacement_and_no_error(pairs, text):
    decoded = pairs.decode(pairs.encode(text))
    assert decoded.replace("\ufffd", "") == "".join(c for c in text if not 0xd800 <= ord(c) < 0xe000 and c != "\ufffd")


def test_bytes_that_are_no_utf8_decode_with_replacement(pairs):
    assert pairs.decode([0xff, ord("a"), 0xc3]) == "\ufffda\ufffd"


@unhurried
@given(st.binary(max_size=400))
def test_words_cover_all_bytes_and_stay_short(data):
    words = WORD.findall(data)
    assert b"".join(words) == data
    assert max(map(len, words), default=0) <= LONGEST


def test_words_carry_their_leading_space():
    assert WORD.findall(b"if x1 == 42:\n    the  caf\xc3\xa9") == [
        b"if", b" x", b"1", b" ==", b" 42", b":", b"\n   ", b" the", b" ", b" caf\xc3\xa9"]
    assert [len(word) for word in WORD.findall(b"a" * 200)] == [63, 63, 63, 11]


def naive_merges(text, number):
    """Sennrich's algorithm with every count made anew, and the merged words that it ends with."""
    words = [(list(word), times) for word, times in Counter(WORD.findall(text.encode())).items()]
    merges = []
    while len(merges) < number:
        counts = Counter()
        for ids, times in words:
            for i in range(len(ids) - 1):
                counts[ids[i], ids[i + 1]] += times
        most = max(counts.values(), default=0)
        if most < 2:
            break
        merges.append(min(pair for pair, times in counts.items() if times == most))
        words = [(naive_merged(ids, merges[-1], 255 + len(merges)), times) for ids, times in words]
    return merges, [ids for ids, _ in words]


def naive_merged(ids, pair, new):
    ids, i = list(ids), 0
    while i < len(ids) - 1:
        if (ids[i], ids[i + 1]) == pair:
            ids[i:i + 2] = [new]
        i += 1
    return ids


@unhurried
@given(st.text("ab", max_size=60) | st.text("aab c\n.1é", max_size=200), st.integers(0, 40))
def test_training_agrees_with_counting_anew(text, number):
    merges, words = naive_merges(text, number)
    tokenizer = BytePairTokenizer.train(text, 256 + number)
    assert tokenizer.merges == merges
    distinct = list(Counter(WORD.findall(text.encode())))
    assert [tokenizer.encode_bytes(word).tolist() for word in distinct] == words   # encoding repeats what training did


def test_training_on_english_agrees_with_counting_anew(validation):
    merges, _ = naive_merges(validation[:8000], 100)
    assert BytePairTokenizer.train(validation[:8000], 356).merges == merges


def test_ties_go_to_the_smallest_pair():
    assert BytePairTokenizer.train("zy.zy.ab.ab", 257).merges == [(ord("a"), ord("b"))]
    assert BytePairTokenizer.train("zy.zy.zy.ab.ab", 257).merges == [(ord("z"), ord("y"))]


def test_overlapping_pairs_merge_from_the_left():
    tokenizer = BytePairTokenizer([(97, 97)])
    assert tokenizer.encode("aaa").tolist() == [256, 97]
    assert tokenizer.encode("aaaa").tolist() == [256, 256]


def test_training_stops_early_and_says_so():
    tokenizer = BytePairTokenizer.train("abab", 1000)
    assert tokenizer.merges == [(97, 98)]                                      # then (ab, ab) occurs once
    assert tokenizer.vocabulary == 257
    assert BytePairTokenizer.train("", 300).vocabulary == 256
    assert BytePairTokenizer.train(SMALL, 256).vocabulary == 256
    assert BytePairTokenizer.train(SMALL, 270).vocabulary == 270


def test_no_token_crosses_words(pairs):
    assert pairs.vocabulary == 600
    for i in range(256, 600):
        assert len(WORD.findall(pairs.decode_bytes([i]))) == 1


def test_merges_shorten_text_and_more_merges_shorten_it_more(pairs, validation):
    text = load_corpus("pydoc").train[:50_000]                                 # text that the merges have not seen
    bytes_only, few = (BytePairTokenizer.train(validation, v) for v in (256, 300))
    lengths = [len(tokenizer.encode(text)) for tokenizer in (bytes_only, few, pairs)]
    assert lengths[0] == len(text.encode())
    assert lengths[0] > 1.2 * lengths[1] > 1.2 * 1.2 * lengths[2]


def test_the_cache_changes_nothing(pairs, validation):
    fresh = BytePairTokenizer(pairs.merges)
    first = fresh.encode(validation[:5000])
    first += 1                                                                 # the caller's array, not the cache's
    assert (fresh.encode(validation[:5000]) == pairs.encode(validation[:5000])).all()
    assert (first == fresh.encode(validation[:5000]) + 1).all()


@pytest.mark.parametrize("vocabulary", [255, 0, -1])
def test_fewer_tokens_than_bytes_is_an_error(vocabulary):
    with pytest.raises(MiniLLMError, match=f"vocabulary of {vocabulary} is too small: .* ask for 256 or more"):
        BytePairTokenizer.train(SMALL, vocabulary)


def test_a_million_characters_come_back_whole():
    sources = sorted(Path(np.__file__).parent.rglob("*.py"))
    text = "".join(path.read_text("utf-8") for path in sources[:200])[:1_000_000]
    assert len(text) == 1_000_000
    tokenizer = BytePairTokenizer.train(text, 1024)                            # 0.9 s, and 0.3 s to encode
    assert tokenizer.decode(tokenizer.encode(text)) == text


# both

@pytest.mark.parametrize("kind", TOKENIZERS)
def test_ids_outside_the_vocabulary_are_errors(kind):
    tokenizer = {"char": CharTokenizer.train("abc"), "bpe": BytePairTokenizer.train(SMALL, 260),
                 "word": WordTokenizer.train(SMALL, 20)}[kind]
    assert tokenizer.decode([]) == ""
    assert tokenizer.encode("").shape == (0,)
    assert tokenizer.encode("").dtype == np.int32
    for wrong in -1, tokenizer.vocabulary, 2**40:
        with pytest.raises(MiniLLMError, match=f"token id {wrong} is not in a vocabulary of {tokenizer.vocabulary}"):
            tokenizer.decode([0, wrong])


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_json_gives_the_same_tokenizer_back(kind):
    text = SMALL + "zaé\n\x00\ud800😀"
    tokenizer = {"char": CharTokenizer.train(text), "bpe": BytePairTokenizer.train(text, 280),
                 "word": WordTokenizer.train(text, 20)}[kind]
    again = tokenizer_from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert type(again) is type(tokenizer) is TOKENIZERS[tokenizer.kind]
    assert again.vocabulary == tokenizer.vocabulary
    assert again.to_json() == tokenizer.to_json()
    assert again.encode(text).tolist() == tokenizer.encode(text).tolist()


DOUBLING = [[97, 97], *([256 + i, 256 + i] for i in range(60))]                # 2^61 bytes, were it built


@pytest.mark.parametrize(("data", "message"), [
    (None, "type NoneType, not an object"),
    ([1], "type list, not an object"),
    ({}, "field 'kind' is missing or not of type str"),
    ({"kind": ["char"]}, "field 'kind' is missing or not of type str"),
    ({"kind": "chars", "alphabet": "ab"}, "unknown tokenizer 'chars': did you mean 'char'"),
    ({"kind": "char"}, "field 'alphabet' is missing or not of type str"),
    ({"kind": "char", "alphabet": ["a"]}, "field 'alphabet' is missing or not of type str"),
    ({"kind": "char", "alphabet": ""}, "is empty or repeats"),
    ({"kind": "char", "alphabet": "aa"}, "is empty or repeats"),
    ({"kind": "bpe"}, "field 'merges' is missing or not of type list"),
    ({"kind": "bpe", "merges": {"a": 1}}, "field 'merges' is missing or not of type list"),
    ({"kind": "bpe", "merges": [[97, 97], [1]]}, r"merge 1 is \[1\], not two ids below 257"),
    ({"kind": "bpe", "merges": [[97, "a"]]}, "merge 0 is .*, not two ids below 256"),
    ({"kind": "bpe", "merges": [[True, 2]]}, "merge 0 is .*, not two ids below 256"),
    ({"kind": "bpe", "merges": [[1.0, 2]]}, "merge 0 is .*, not two ids below 256"),
    ({"kind": "bpe", "merges": ["ab"]}, "merge 0 is ab, not two ids below 256"),
    ({"kind": "bpe", "merges": [[-1, 2]]}, "merge 0 is .*, not two ids below 256"),
    ({"kind": "bpe", "merges": [[256, 2]]}, "merge 0 is .*, not two ids below 256"),
    ({"kind": "bpe", "merges": [[97, 97], [97, 97]]}, "a merge stands in it twice"),
    ({"kind": "bpe", "merges": DOUBLING}, "token 262 is longer than 64 bytes"),
    ({"kind": "word"}, "field 'words' is missing or not of type list"),
    ({"kind": "word", "words": [7]}, "'7' in it is no lower-case word"),
    ({"kind": "word", "words": ["Up"]}, "'Up' in it is no lower-case word"),
    ({"kind": "word", "words": ["two words"]}, "'two words' in it is no lower-case word"),
    ({"kind": "word", "words": ["a", "a"]}, "a word stands in it twice"),
    ({"kind": "word", "words": ["\0"]}, "a word stands in it twice"),
])
def test_json_that_is_foreign_or_tampered_is_one_clear_line(data, message):
    with pytest.raises(MiniLLMError, match=message) as caught:
        tokenizer_from_json(data)
    assert "\n" not in str(caught.value)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3))


@unhurried
@given(st.sampled_from(["char", "bpe", "word"]), JSON, JSON)
def test_any_json_is_a_tokenizer_or_a_clear_error(kind, alphabet, more):
    try:
        tokenizer = tokenizer_from_json({"kind": kind, "alphabet": alphabet, "merges": more, "words": more})
    except MiniLLMError:
        return
    assert tokenizer.decode([0])
