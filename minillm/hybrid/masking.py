"""Words hidden from a masked language model: 15 % of them, most by a mask. Devlin et al. 2018, arXiv 1810.04805, section 3.1."""
import numpy as np

from minillm.data.special import MASK, NO_TARGET, UNKNOWN
from minillm.errors import MiniLLMError

HIDDEN = 0.8               # of the chosen words a mask stands in their place; 0.1 become any word, 0.1 stay as they are
REPLACED = 0.1


def masked(ids: np.ndarray, key: tuple[int, ...], vocabulary: int, rate: float = 0.15,
           first: int = UNKNOWN + 1) -> tuple[np.ndarray, np.ndarray]:
    """What a model sees of ids (B,T), and what it has to guess: ids and targets (B,T) int32, NO_TARGET where nothing is asked.

    A pure function of `key`, non-negative integers such as (seed, step, micro-batch). Ids below `first` are never chosen: padding
    and its like, the unknown word, and, where ids are by frequency, as many of the commonest words as one likes. MiniLLMError for a
    rate outside 0 ... 1, and for a vocabulary without a word to choose.
    """
    if not 0 < rate <= 1 or not UNKNOWN < first < vocabulary:
        raise MiniLLMError(f"a rate of {rate} of the words from {first} on cannot be hidden of a vocabulary of {vocabulary}: a "
                           f"rate above 0 and at most 1, and from {UNKNOWN + 1} to below the vocabulary")
    rng = np.random.default_rng((len(key), *key))
    chosen = (rng.random(ids.shape, np.float32) < rate) & (ids >= first)                     # (B,T) bool
    fate, others = rng.random(ids.shape, np.float32), rng.integers(UNKNOWN + 1, vocabulary, ids.shape, np.int32)
    seen = np.where(fate < HIDDEN, np.int32(MASK), np.where(fate < HIDDEN + REPLACED, others, ids))
    return np.where(chosen, seen, ids).astype(np.int32), np.where(chosen, ids, NO_TARGET).astype(np.int32)
