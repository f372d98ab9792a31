"""From text to token ids and back: one id a character, or byte pairs merged by how often they occur; words are in data/words.py."""
import heapq
import re
from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from minillm.data.saved import checked_ids, damaged, field
from minillm.data.words import WordTokenizer
from minillm.errors import MiniLLMError, unknown

Pair = tuple[int, int]
Merges = list[Pair]

# A word is letters, digits or signs with the one space before them, or white space; so no merge spans two words.
# It is GPT-2's pattern on bytes: one above 127 belongs to a character beyond ASCII and counts as a letter. At most 64
# bytes a word keep the time to encode it bounded; \s+(?!\S) leaves the last space of an indent to the word behind it.
LONGEST = 64
WORD = re.compile(rb" ?[A-Za-z\x80-\xff]{1,63}| ?[0-9]{1,63}| ?[^\sA-Za-z0-9\x80-\xff]{1,63}|\s{1,64}(?!\S)|\s{1,64}")


class CharTokenizer:
    """One id a character: the place of the character in `alphabet`, a string without repeats."""

    kind = "char"

    def __init__(self, alphabet: str):
        self.alphabet, self.vocabulary = alphabet, len(alphabet)
        self._points = code_points(alphabet)                                              # (V,) uint32
        if not alphabet or len(set(alphabet)) < len(alphabet):
            raise MiniLLMError(f"the alphabet {alphabet[:20]!r} is empty or repeats a character; train one on a text")
        self._id_of = np.full(int(self._points.max()) + 2, -1, np.int32)  # (largest point + 2,) int32; last: -1
        self._id_of[self._points] = np.arange(self.vocabulary, dtype=np.int32)

    @classmethod
    def train(cls, text: str) -> Self:
        """The alphabet of a text in code point order; give it both parts, or validation may hold an unknown one."""
        if not text:
            raise MiniLLMError("an alphabet cannot be made from an empty text; name a file with some text")
        return cls("".join(sorted(set(text))))

    def encode(self, text: str) -> np.ndarray:
        """Ids (number of characters,) int32; MiniLLMError at a character outside the alphabet."""
        ids = self._id_of[np.minimum(code_points(text), self._id_of.size - 1)]           # (characters,) int32
        if ids.size and ids.min() < 0:
            place = int(np.argmin(ids))
            raise MiniLLMError(f"character {text[place]!r} at position {place} is not among the {self.vocabulary} "
                               f"that the model knows; remove it, or train on a text that contains it")
        return ids

    def decode(self, ids: ArrayLike) -> str:
        """The text of ids of any shape; MiniLLMError for an id outside the vocabulary."""
        return self._points[checked_ids(ids, self.vocabulary)].tobytes().decode("utf-32-le", "surrogatepass")

    def to_json(self) -> dict[str, Any]:
        """A dictionary that JSON can hold, for `tokenizer_from_json`."""
        return {"kind": self.kind, "alphabet": self.alphabet}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """What `to_json` gave; MiniLLMError for anything else."""
        return cls(field(data, "alphabet", str))


class BytePairTokenizer:
    """256 byte tokens, then one token for each merge of two earlier ones, so that any bytes can be encoded.

    Merge number i joins the pair of ids `merges[i]` into id 256 + i. Sennrich et al. 2016, arXiv 1508.07909,
    algorithm 1; on bytes and with words split off first as in GPT-2 (Radford et al. 2019, section 2.2).
    """

    kind = "bpe"

    def __init__(self, merges: Merges):
        self.merges, self.vocabulary = merges, 256 + len(merges)
        self._id_of = {pair: 256 + i for i, pair in enumerate(merges)}
        self._tokens = tokens_of(merges)                                                  # V byte strings
        self._cache: dict[bytes, bytes] = {}                                              # word -> int32 ids as bytes

    @classmethod
    def train(cls, text: str, vocabulary: int) -> Self:
        """Merges the most frequent pair, of equals the smallest, until `vocabulary` or until no pair occurs twice.

        The second leaves `vocabulary` smaller than asked. MiniLLMError below 256.
        """
        if vocabulary < 256:
            raise MiniLLMError(f"a byte-pair vocabulary of {vocabulary} is too small: the 256 bytes come first; "
                               f"ask for 256 or more")
        return cls(frequent_merges(Counter(WORD.findall(utf8(text))), vocabulary - 256))

    def encode(self, text: str) -> np.ndarray:
        """Ids (tokens,) int32 of the text's UTF-8 bytes."""
        return self.encode_bytes(utf8(text))

    def decode(self, ids: ArrayLike) -> str:
        """The text of ids; bytes that are no UTF-8, as a sampled model may give, become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def encode_bytes(self, data: bytes) -> np.ndarray:
        """Ids (tokens,) int32 of any bytes; each distinct word is merged once and remembered."""
        words = WORD.findall(data)
        for word in set(words) - self._cache.keys():
            self._cache[word] = np.array(self._merge(list(word)), np.int32).tobytes()
        joined = bytearray().join(map(self._cache.__getitem__, words))
        return np.frombuffer(joined, np.int32)                                            # (tokens,) int32, writable

    def decode_bytes(self, ids: ArrayLike) -> bytes:
        """Exactly the bytes that gave these ids; MiniLLMError for an id outside the vocabulary."""
        return b"".join([self._tokens[i] for i in checked_ids(ids, self.vocabulary).tolist()])

    def _merge(self, ids: list[int]) -> list[int]:
        """Merges in the order in which they were learned: the earliest of those that fit, everywhere, then again."""
        while known := [pair for pair in pairwise(ids) if pair in self._id_of]:
            first = min(known, key=self._id_of.__getitem__)
            ids = merged(ids, first, self._id_of[first])
        return ids

    def to_json(self) -> dict[str, Any]:
        """A dictionary that JSON can hold, for `tokenizer_from_json`."""
        return {"kind": self.kind, "merges": [list(pair) for pair in self.merges]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """What `to_json` gave; MiniLLMError for anything else."""
        merges = [checked_pair(pair, 256 + i) for i, pair in enumerate(field(data, "merges", list))]
        if len(set(merges)) < len(merges):
            raise damaged("a merge stands in it twice")
        return cls(merges)


Tokenizer = CharTokenizer | BytePairTokenizer | WordTokenizer
TOKENIZERS: dict[str, type[Tokenizer]] = {"char": CharTokenizer, "bpe": BytePairTokenizer, "word": WordTokenizer}


def tokenizer_from_json(data: Any) -> Tokenizer:
    """The tokenizer that wrote `data` with `to_json`, chosen by its kind; MiniLLMError when nothing here wrote it."""
    kind = field(data, "kind", str)
    if kind not in TOKENIZERS:
        raise unknown("tokenizer", kind, TOKENIZERS)
    return TOKENIZERS[kind].from_json(data)


def frequent_merges(words: Counter[bytes], number: int) -> Merges:
    """The first `number` merges that a multiset of words asks for.

    Counts are kept up to date instead of counted anew: a merge touches only the words that contain its pair, and a
    heap finds the next one. An entry of the heap whose count is out of date is passed over.
    """
    spelled, often = [list(word) for word in words], list(words.values())
    counts, places = Counter(), defaultdict(set)                 # pair -> occurrences, and numbers of the words with it
    for place, ids in enumerate(spelled):
        count_pairs(ids, often[place], place, counts, places)
    heap, merges = [(-count, pair) for pair, count in counts.items()], []
    heapq.heapify(heap)
    while heap and len(merges) < number:
        count, pair = heapq.heappop(heap)
        if -count != counts[pair]:
            continue
        if -count < 2:                                           # merging what occurs once only memorises the text
            break
        changed = set()
        for place in places.pop(pair):
            before, after = spelled[place], merged(spelled[place], pair, 256 + len(merges))
            count_pairs(before, -often[place], place, counts, places)
            count_pairs(after, often[place], place, counts, places)
            changed.update(pairwise(before), pairwise(after))
            spelled[place] = after
        merges.append(pair)
        for other in changed:
            heapq.heappush(heap, (-counts[other], other))
    return merges


def count_pairs(ids: list[int], times: int, place: int, counts: Counter[Pair], places: dict[Pair, set[int]]) -> None:
    """Adds `times` for each pair of neighbours, and notes that word number `place` holds it (or once held it)."""
    for pair in pairwise(ids):
        counts[pair] += times
        if times > 0:
            places[pair].add(place)


def merged(ids: list[int], pair: Pair, new: int) -> list[int]:
    """The ids with `new` in place of each `pair`, from the left: aaa becomes (aa) a."""
    out, at = [], 0
    while at < len(ids):
        found = ids[at] == pair[0] and ids[at + 1:at + 2] == [pair[1]]
        out.append(new if found else ids[at])
        at += 2 if found else 1
    return out


def tokens_of(merges: Merges) -> list[bytes]:
    """The bytes of every token. None outgrows a word, which also stops a tampered file from doubling without end."""
    tokens = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
        if len(tokens[-1]) > LONGEST:
            raise damaged(f"token {len(tokens) - 1} is longer than {LONGEST} bytes")
    return tokens


def code_points(text: str) -> np.ndarray:
    """(characters,) uint32; half of a surrogate pair, which Python allows in a string, counts as a character."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def utf8(text: str) -> bytes:
    """The UTF-8 bytes; half of a surrogate pair gets three bytes, which decode to U+FFFD."""
    return text.encode("utf-8", "surrogatepass")


def checked_pair(pair: Any, known: int) -> Pair:
    """Two ids below `known` as a tuple; a merge can only join tokens that are there before it."""
    if not (isinstance(pair, list) and len(pair) == 2 and all(type(i) is int and 0 <= i < known for i in pair)):
        raise damaged(f"merge {known - 256} is {str(pair)[:40]}, not two ids below {known}")
    return pair[0], pair[1]
