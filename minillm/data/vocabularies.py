"""Tokenizers of trained encoders: pieces of words, or signs of molecules, by their line in a file vocab.txt."""
import re
import unicodedata
from pathlib import Path

import numpy as np

from minillm.data.corpora import read_utf8
from minillm.errors import MiniLLMError

LONGEST_WORD = 100         # characters; a longer one is unknown
# Atoms in brackets, elements of the organic subset, bonds, branches, rings. Schwaller et al. 2019, arXiv 1811.02633, section 3.
SMILES = re.compile(r"\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|/|:|~|@|\?|>>?|\*|\$|%[0-9]{2}|[0-9]")


class Vocabulary:
    """Tokens by their id, the number of their line. Each text is framed: [CLS] ... [SEP]."""

    def __init__(self, path: Path):
        self.tokens = read_utf8(Path(path)).removesuffix("\n").split("\n")
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        missing = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token not in self.ids]
        if missing:
            raise MiniLLMError(f"{path} lacks {', '.join(missing)}: it is no vocabulary of an encoder")
        self.padding, self.unknown, self.mask = self.ids["[PAD]"], self.ids["[UNK]"], self.ids["[MASK]"]

    def pieces(self, text: str) -> list[str]:
        """The tokens of a text, [UNK] for what none stands for."""
        raise NotImplementedError(f"{type(self).__name__} cuts no text")

    def encode(self, text: str) -> np.ndarray:
        """Ids (tokens + 2,) int32."""
        return np.array([self.ids.get(piece, self.unknown) for piece in ("[CLS]", *self.pieces(text), "[SEP]")], np.int32)

    def encode_all(self, texts: list[str]) -> np.ndarray:
        """Ids (B,T) int32, shorter rows filled up with [PAD]."""
        rows = [self.encode(text) for text in texts]
        ids = np.full((len(rows), max(map(len, rows), default=0)), self.padding, np.int32)
        for row, its in zip(ids, rows, strict=True):
            row[:len(its)] = its
        return ids


class Reactions(Vocabulary):
    """Chemical reactions written as SMILES: a token for each atom, bond, branch and ring."""

    def pieces(self, text: str) -> list[str]:
        return SMILES.findall(text)


class WordPieces(Vocabulary):
    """Lower-case words without accents, each from the left in the longest pieces there are; ## begins one inside a word.

    Devlin et al. 2018, arXiv 1810.04805, section 3; as in its published code.
    """

    def pieces(self, text: str) -> list[str]:
        return [piece for word in words_of(text) for piece in self.cut(word)]

    def cut(self, word: str) -> list[str]:
        """The pieces of one word; [UNK] alone if a part of it is no piece."""
        found, start = [], 0
        while start < len(word) <= LONGEST_WORD:
            sign = "##" if start else ""
            end = next((end for end in range(len(word), start, -1) if sign + word[start:end] in self.ids), None)
            if end is None:
                return ["[UNK]"]
            found, start = [*found, sign + word[start:end]], end
        return found or ["[UNK]"]


def words_of(text: str) -> list[str]:
    """Words and signs of a text, in lower case and without accents; each Chinese character is a word."""
    spaced = []
    for c in text:
        kind = unicodedata.category(c)
        if c in "\t\n\r" or kind == "Zs":
            spaced.append(" ")
        elif c not in "\0\ufffd" and kind[0] != "C":
            spaced.append(f" {c} " if is_chinese(c) else c)
    plain = (c for c in unicodedata.normalize("NFD", "".join(spaced).lower()) if unicodedata.category(c) != "Mn")
    return "".join(f" {c} " if is_sign(c) else c for c in plain).split()


def is_sign(c: str) -> bool:
    """Punctuation, and in ASCII all that is neither letter, digit nor space."""
    return unicodedata.category(c)[0] == "P" or ("!" <= c <= "~" and not c.isalnum())


def is_chinese(c: str) -> bool:
    return any(first <= ord(c) <= last for first, last in ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF),
                                                            (0x2A700, 0x2B81F), (0x2B820, 0x2CEAF), (0x2F800, 0x2FA1F)))
