"""Texts to train on, each in two parts that share no paragraph."""
import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from minillm.data.packages import articles
from minillm.errors import MiniLLMError, unknown

BLANK_LINES = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Corpus:
    """A text in two parts; `name` is how the user called it (for a file, the file's name)."""

    name: str
    train: str
    validation: str


def load_corpus(name: str) -> Corpus:
    """One of the texts in the table CORPORA; MiniLLMError for a name that is not there."""
    if name not in CORPORA:
        raise unknown("corpus", name, CORPORA)
    return CORPORA[name]()


def pydoc() -> Corpus:
    """The language reference that every Python carries: 0.37 to 0.41 million characters once repeats are dropped.

    It differs between Python versions, so a loss on it is comparable only on one machine.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:                          # some distributions cut it out
        raise MiniLLMError("this Python lacks pydoc_data.topics; name a text of your own with --text FILE") from None
    train, validation = split_paragraphs(topics[key] for key in sorted(topics))
    return Corpus("pydoc", train, validation)


def wiki() -> Corpus:
    """The leads of 10,033 Wikipedia articles, 4.9 million characters of ASCII, split by article: needs the extra `data`.

    Wikipedia contributors, CC BY-SA 4.0.
    """
    found = articles()
    train, validation = ("\n\n".join(article.lead for article in found if is_held_out(article.title) is held_out)
                         for held_out in (False, True))
    return Corpus("wiki", train, validation)


CORPORA: dict[str, Callable[[], Corpus]] = {"pydoc": pydoc, "wiki": wiki}


def split_paragraphs(texts: Iterable[str]) -> tuple[str, str]:
    """Training and validation part, about nine to one in paragraphs, none of which stands in both.

    Where a paragraph goes depends on its own words alone, so adding or reordering text never moves another one.
    """
    first = {}                          # words -> paragraph; one in five of pydoc is a repeat, some only by their words
    for text in texts:
        for paragraph in BLANK_LINES.split(text.strip("\n")):
            first.setdefault(words_of(paragraph), paragraph)
    first.pop("", None)
    train = [paragraph for words, paragraph in first.items() if not is_held_out(words)]
    validation = [paragraph for words, paragraph in first.items() if is_held_out(words)]
    return "\n\n".join(train), "\n\n".join(validation)


def words_of(paragraph: str) -> str:
    """What makes two paragraphs the same one: their words, however indented and wrapped."""
    return " ".join(paragraph.split())


def is_held_out(words: str) -> bool:
    """Whether a paragraph belongs to validation: one in ten, by a hash that no seed and no Python changes."""
    digest = hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 10 == 0


def load_text(path: str | Path) -> Corpus:
    """Any UTF-8 text file: its first 90 % of characters to train on, the last 10 % for validation.

    A byte order mark is dropped and every line end becomes a newline (universal newlines); nothing else changes.
    MiniLLMError when the file is missing, a directory, unreadable, not UTF-8 (with the byte offset) or without text.
    """
    path = Path(path)
    text = read_utf8(path).removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise MiniLLMError(f"{path} has no text in it; name a file that has, or leave --text out to train on pydoc")
    cut = len(text) * 9 // 10
    return Corpus(path.name, text[:cut], text[cut:])


def read_utf8(path: Path) -> str:
    """The text of a file, or one line about what to do."""
    try:
        if path.is_dir():
            raise MiniLLMError(f"{path} is a directory; name one text file in it")
        return path.read_bytes().decode("utf-8")     # all bytes first: an error's offset counts from the file's start
    except FileNotFoundError:
        raise MiniLLMError(f"{path} does not exist; check the spelling and the folder it is in") from None
    except UnicodeDecodeError as error:
        raise MiniLLMError(f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}; "
                           f"convert it, for example with iconv -f LATIN1 -t UTF-8") from None
    except OSError as error:
        raise MiniLLMError(f"{path} cannot be read ({error.strerror}); check its permissions or copy it") from None
