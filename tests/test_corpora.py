"""Corpora: no paragraph stands in both parts, and every file that cannot be used gets one clear line."""
import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.data import corpora
from minillm.data.corpora import CORPORA, load_corpus, load_text, split_paragraphs
from minillm.errors import MiniLLMError

unhurried = settings(deadline=None)                                            # the machine may be busy


def paragraphs(text):
    """Words of each paragraph, found line by line, apart from the code under test."""
    found = [[]]
    for line in text.split("\n"):
        if line.strip():
            found[-1] += line.split()
        else:
            found.append([])
    return [tuple(words) for words in found if words]


@pytest.fixture(scope="module")
def pydoc():
    return load_corpus("pydoc")


def test_pydoc_is_large_english_and_the_same_each_time(pydoc):
    assert pydoc == load_corpus("pydoc")
    assert pydoc.name == "pydoc"
    assert len(pydoc.train) > 250_000
    assert 0.06 < len(pydoc.validation) / len(pydoc.train + pydoc.validation) < 0.15
    assert pydoc.train.count(" the ") > 1_000


def test_no_validation_paragraph_of_pydoc_stands_in_train(pydoc):
    train, validation = paragraphs(pydoc.train), paragraphs(pydoc.validation)
    assert len(validation) > 100
    assert not set(train) & set(validation)
    assert len(train) == len(set(train))
    assert len(validation) == len(set(validation))


def test_no_long_validation_paragraph_hides_inside_one_of_train(pydoc):
    train = " ".join(pydoc.train.split())
    assert [words for words in map(" ".join, paragraphs(pydoc.validation)) if len(words) > 60 and words in train] == []


def test_nothing_of_pydoc_is_lost_and_the_first_of_repeats_is_kept_as_it_was(pydoc):
    from pydoc_data.topics import topics
    source = "\n\n".join(topics[key] for key in sorted(topics))
    assert set(paragraphs(source)) == set(paragraphs(pydoc.train)) | set(paragraphs(pydoc.validation))
    for part in pydoc.train, pydoc.validation:
        kept = part.split("\n\n")
        assert all(paragraph in source for paragraph in kept)
        places = [source.find(paragraph) for paragraph in kept if len(paragraph) > 300]
        assert places == sorted(places)


LINES = st.sampled_from(["a", "b", "  a", "a  b", "a\nb", "b a", "", "   ", "\t", "=="])


@unhurried
@given(st.lists(st.lists(LINES, max_size=12).map("\n".join), max_size=4), st.integers(0, 2**40))
def test_split_never_shares_a_paragraph_whatever_the_white_space(texts, salt):
    texts = [text.replace("a", str(salt)) for text in texts]             # other words, other hashes, other parts
    train, validation = map(paragraphs, split_paragraphs(texts))
    assert not set(train) & set(validation)
    assert len(train + validation) == len(set(train + validation))
    assert set(train + validation) == {words for text in texts for words in paragraphs(text)}


def test_where_a_paragraph_goes_depends_on_its_words_alone():
    many = [f"paragraph number {i}" for i in range(2000)]
    _, validation = split_paragraphs(["\n\n".join(many)])
    assert split_paragraphs(reversed(many))[1].split("\n\n") == validation.split("\n\n")[::-1]
    assert split_paragraphs(["   " + text.replace(" ", "\n") for text in many])[1].split() == validation.split()
    # a binomial of 2000 at one in ten has a deviation of 13.4: 5 of them are 67
    assert abs(len(validation.split("\n\n")) - 200) < 67
    assert [words[-1] for words in paragraphs(validation)[:6]] == ["11", "22", "23", "24", "38", "45"]
    # as first written: another hash would be another data set under the same name


def test_the_first_of_equal_paragraphs_is_kept_with_its_white_space_and_empty_ones_are_dropped():
    parts = split_paragraphs(["", "    x\n      y\n\n \nz", "x y\n\n  z\n", " \n\n  "])
    assert sorted(paragraph for part in parts for paragraph in part.split("\n\n") if part) == ["    x\n      y", "z"]


def test_unknown_corpus_names_the_known_ones():
    with pytest.raises(MiniLLMError, match=r"unknown corpus 'pydocs': did you mean 'pydoc'\? known are pydoc, wiki"):
        load_corpus("pydocs")
    assert set(CORPORA) == {"pydoc", "wiki"}


def test_python_without_topics_is_told_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(MiniLLMError, match=r"this Python lacks pydoc_data\.topics; name a text of your own with"):
        load_corpus("pydoc")


def written(folder, data):
    path = folder / "mine.txt"
    path.write_bytes(data)
    return path


def test_a_text_is_cut_at_nine_tenths_of_its_characters(tmp_path):
    corpus = load_text(written(tmp_path, ("é" * 90 + "ß" * 10).encode()))
    assert corpus == corpora.Corpus("mine.txt", "é" * 90, "ß" * 10)


def test_byte_order_mark_goes_line_ends_become_newlines_and_the_rest_stays(tmp_path):
    corpus = load_text(str(written(tmp_path, b"\xef\xbb\xbfa \r\n\tb\rc\n\n\n  d\x00\xef\xbb\xbf\n")))
    assert corpus.train + corpus.validation == "a \n\tb\nc\n\n\n  d\x00\ufeff\n"


def fails(path, message):
    """The error is one line, begins with the path as given, and says the rest."""
    with pytest.raises(MiniLLMError) as caught:
        load_text(path)
    assert str(caught.value).startswith(f"{path} ")
    assert "\n" not in str(caught.value)
    assert re.search(message, str(caught.value)), str(caught.value)


def test_missing_file(tmp_path):
    fails(tmp_path / "none.txt", "does not exist; check the spelling and the folder")


def test_directory(tmp_path):
    fails(tmp_path, "is a directory; name one text file in it")


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf", b" \r\n\t"])
def test_file_without_text(tmp_path, data):
    fails(written(tmp_path, data), "has no text in it; name a file that has, or leave --text out")


@pytest.mark.parametrize(("data", "where"), [
    (b"abc\xe9t", "byte 0xe9 at offset 3"),
    (b"\xef\xbb\xbf\xc3\xa9\xff", "byte 0xff at offset 5"),              # bytes, not characters, the mark included
    (b"ok" * 100_000 + b"\xc3", "byte 0xc3 at offset 200000"),
])
def test_not_utf8_names_the_byte_and_the_remedy(tmp_path, data, where):
    fails(written(tmp_path, data), f"is not UTF-8: {where}; convert it, for example with iconv -f LATIN1 -t UTF-8")


def test_unreadable_file(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))
    monkeypatch.setattr(corpora.Path, "read_bytes", refuse)
    fails(written(tmp_path, b"text"), r"cannot be read \(Permission denied\); check its permissions")


def test_a_path_through_a_file_or_with_too_long_a_name(tmp_path):
    fails(written(tmp_path, b"text") / "inner.txt", "cannot be read|does not exist")
    fails(tmp_path / ("x" * 5000), r"cannot be read \(")
