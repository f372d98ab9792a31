"""From token ids to batches: windows at random to train on, every window once to evaluate on."""
from collections.abc import Iterator, Sequence

import numpy as np

from minillm.errors import MiniLLMError

Batch = tuple[np.ndarray, np.ndarray]


def random_batch(ids: np.ndarray, batch: int, context: int, key: tuple[int, ...], part: str = "training") -> Batch:
    """Windows that start anywhere in `ids`, drawn with replacement: inputs and targets, each (batch, context) int32.

    A pure function of `key`, non-negative integers such as (seed, step, micro-batch): a resumed run needs no random
    state, and every recipe sees the same batches. MiniLLMError with fewer than context + 1 ids.
    """
    check_batch(batch)
    check_long_enough(ids, context, part)
    # The length goes in too: NumPy pads a short seed with zeros, so (1, 2) and (1, 2, 0) alone would draw the same.
    starts = np.random.default_rng((len(key), *key)).integers(0, len(ids) - context, batch)   # (B,) int64
    spans = ids[starts[:, None] + np.arange(context + 1)]                                     # (B,T+1) as ids
    return spans[:, :-1].astype(np.int32), spans[:, 1:].astype(np.int32)                      # (B,T) int32, contiguous


def windows(ids: np.ndarray, context: int, part: str = "validation") -> Batch:
    """Every non-overlapping window in order: inputs and targets, each (N, context) int32.

    N = (len(ids) - 1) // context; both are views when ids is contiguous int32. Each id but the first is a target once,
    less a remainder shorter than one window. MiniLLMError with fewer than context + 1 ids.
    """
    check_long_enough(ids, context, part)
    ids = np.ascontiguousarray(ids, np.int32)                                                 # (n,) int32
    end = (len(ids) - 1) // context * context
    return ids[:end].reshape(-1, context), ids[1:end + 1].reshape(-1, context)                # (N,T) int32, views


def window_batches(ids: np.ndarray, batch: int, context: int, part: str = "validation") -> Iterator[Batch]:
    """The same windows, at most `batch` at a time; the last batch may be smaller, so weigh a mean over them by size."""
    check_batch(batch)
    inputs, targets = windows(ids, context, part)
    starts = range(0, len(inputs), batch)
    return ((inputs[at:at + batch], targets[at:at + batch]) for at in starts)                 # (<=B,T) int32, views


def check_batch(batch: int) -> None:
    """Raises MiniLLMError for a batch without a window."""
    if batch < 1:
        raise MiniLLMError(f"a batch of {batch} windows is empty; use a --batch of 1 or more")


def check_long_enough(ids: np.ndarray, context: int, part: str) -> None:
    """Raises MiniLLMError unless the part holds one window: context inputs, and the target of the last of them."""
    if context < 1:
        raise MiniLLMError(f"a context of {context} tokens is empty; use a --context of 1 or more")
    if len(ids) <= context:
        raise MiniLLMError(f"the {part} part has {len(ids)} tokens, but one window of context {context} needs "
                           f"{context + 1}; use a longer text or a smaller --context")


def padded(rows: Sequence[np.ndarray], length: int = 0, left: bool = False, pad: int = 0) -> np.ndarray:
    """Rows of ids as one array (B,T) int32, filled up with `pad` at their right or left end; T is `length`, or that of the longest.

    MiniLLMError for a row that is longer.
    """
    longest = max(map(len, rows), default=0)
    if length and longest > length:
        raise MiniLLMError(f"a text has {longest} tokens, more than the {length} there is room for: cut it, or make room")
    ids = np.full((len(rows), length or longest), pad, np.int32)
    for row, its in zip(ids, rows, strict=True):
        row[len(row) - len(its) if left else 0:][:len(its)] = its
    return ids


def epoch_batch(arrays: Sequence[np.ndarray], batch: int, seed: int, number: int) -> tuple[np.ndarray, ...]:
    """Batch `number`, from 0, of rows in a new order each epoch: a pure function of its arguments.

    arrays: of as many rows each. An epoch has rows // batch batches, so that the last rows of its order may be left out.
    MiniLLMError for a batch that is empty or larger than all there is.
    """
    check_batch(batch)
    rows = len(arrays[0])
    if batch > rows:
        raise MiniLLMError(f"a batch of {batch} rows cannot be made from {rows}: use a smaller --batch")
    epoch, at = divmod(number, rows // batch)
    chosen = np.random.default_rng((seed, epoch)).permutation(rows)[at * batch:(at + 1) * batch]    # (B,) int64
    return tuple(a[chosen] for a in arrays)


def random_rows(arrays: Sequence[np.ndarray], batch: int, key: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Rows of arrays that have as many, drawn with replacement: a pure function of `key`, as `random_batch` is."""
    check_batch(batch)
    if not len(arrays[0]):
        raise MiniLLMError("no rows to draw a batch from: give one example or more")
    chosen = np.random.default_rng((len(key), *key)).integers(0, len(arrays[0]), batch)             # (B,) int64
    return tuple(a[chosen] for a in arrays)
