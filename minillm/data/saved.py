"""What every tokenizer checks: ids that it is to decode, and the JSON that it is read from."""
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from minillm.errors import MiniLLMError


def checked_ids(ids: ArrayLike, vocabulary: int) -> np.ndarray:
    """The ids as (n,) int32, all of them tokens: a negative one would silently count from the end."""
    ids = np.ravel(ids)                                                                   # (n,) any integer type
    if ids.size and not (ids.min() >= 0 and ids.max() < vocabulary):
        wrong = ids[(ids < 0) | (ids >= vocabulary)][0]
        raise MiniLLMError(f"token id {wrong} is not in a vocabulary of {vocabulary}; use the tokenizer of this model")
    return ids.astype(np.int32)


def field(data: Any, name: str, kind: type) -> Any:
    """data[name] if data is a dictionary with such a field of type `kind`."""
    if not isinstance(data, dict):
        raise damaged(f"it is of type {type(data).__name__}, not an object")
    if not isinstance(data.get(name), kind):
        raise damaged(f"its field {name!r} is missing or not of type {kind.__name__}")
    return data[name]


def damaged(why: str) -> MiniLLMError:
    """The error for JSON that `to_json` did not write."""
    return MiniLLMError(f"this is no tokenizer of minillm, or it was changed: {why}; restore the file or train again")
