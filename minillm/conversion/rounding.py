"""Round to nearest: every matrix to int8 codes with one float32 scale for each output channel. The plainest conversion there is."""
from dataclasses import dataclass

import numpy as np

from minillm.errors import MiniLLMError
from minillm.nn.int8 import scale_of
from minillm.nn.module import Module
from minillm.rounding import round_to, widen


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
    scale = scale_of(top)
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
