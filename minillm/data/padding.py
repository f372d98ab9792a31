"""Rows of different lengths as one rectangle, and the ids that every vocabulary of a task model begins with."""
from collections.abc import Sequence

import numpy as np

PAD, BEGIN, END, MASK = range(4)                                # what is no text; where an answer begins and ends; a hidden token
SPECIAL = "\0\1\2\3"                                            # the same as characters: an alphabet in order begins with them
NO_TARGET = -1                                                  # of a token that a loss leaves out


def padded(rows: Sequence[np.ndarray], fill: int = PAD, left: bool = False) -> np.ndarray:
    """Rows of ids as (B,T) int32, T the longest, filled up behind each, or before it with `left`."""
    T = max(map(len, rows))
    out = np.full((len(rows), T), fill, np.int32)                             # (B,T) int32
    for line, row in zip(out, rows, strict=True):
        line[T - len(row) if left else 0:][:len(row)] = row
    return out
