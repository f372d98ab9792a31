"""Round to nearest: every matrix to int8 codes with one float32 scale for each output channel. The plainest conversion there is."""
from dataclasses import dataclass

import numpy as np

from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32
from minillm.nn.module import Module
from minillm.rounding import round_to, widen

LOWEST = np.float32(FLOAT32.tiny)                                       # a subnormal scale has too few digits to divide by
HIGHEST = np.nextafter(np.float32(FLOAT32.max / 127), np.float32(0))    # 127 times the next number is infinite


@dataclass(frozen=True)
class Int8Rows:
    """Codes (N,K) int8 in -127 ... 127 and a scale (N,1) float32 for each row: value = code x scale."""

    codes: np.ndarray
    scale: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scale.nbytes

    def values(self) -> np.ndarray:
        """The float32 values (N,K) that the codes stand for."""
        return self.codes.astype(np.float32) * self.scale


def int8_rows(weight: np.ndarray) -> Int8Rows:
    """Symmetric int8 by row, half to even: scale = max|row| / 127, a normal number; a row of zeros has scale 1.

    MiniLLMError for weights that are not finite: they have no scale.
    """
    top = np.abs(weight).max(-1, keepdims=True, initial=0)                                # (N,1) f32
    if not np.isfinite(top).all():
        raise MiniLLMError(f"a weight is {top[~np.isfinite(top)][0]}, which int8 cannot hold: this model has diverged")
    scale = np.where(top > 0, np.clip(top / np.float32(127), LOWEST, HIGHEST), np.float32(1))
    exact = np.divide(weight, scale, dtype=np.float64)     # in float32, what lies just beside a half would be rounded onto it first
    return Int8Rows(np.rint(exact).astype(np.int8), scale)                                # |exact| <= 127 (1 + 2^-22)


def round_to_int8(model: Module) -> tuple[int, int]:
    """Replace every matrix of a model by the values of its int8 codes.

    Returns (bytes of codes, scales and what is no matrix; bytes of the same in float32).
    """
    after, before = 0, 0
    for p in model.parameters():
        exact = widen(p.data, np.float32)
        before += exact.nbytes
        if p.ndim == 2:
            rows = int8_rows(exact)
            p.data = round_to(rows.values(), p.format)
        after += rows.nbytes if p.ndim == 2 else exact.nbytes
    return after, before
