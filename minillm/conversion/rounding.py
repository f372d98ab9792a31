"""Round to nearest: every matrix to int8 codes with one float32 scale for each output channel. The plainest conversion there is."""
import numpy as np

from minillm.errors import MiniLLMError
from minillm.nn.module import Module
from minillm.nn.quantized import QuantizedMatrix
from minillm.quantization.affine import PER_ROW, Quantized, Scheme, quantize
from minillm.rounding import round_to, widen


def int8_rows(weight: np.ndarray) -> Quantized:
    """Symmetric int8 by row (N,K), half to even: scale = max|row| / 127, a normal number; a row of zeros has scale 1.

    MiniLLMError for weights that are not finite: they have no scale.
    """
    check_finite(weight)
    return quantize(weight, PER_ROW)


def check_finite(weight: np.ndarray) -> None:
    """MiniLLMError for weights that no code can hold."""
    if not np.isfinite(weight).all():
        raise MiniLLMError(f"a weight is {weight[~np.isfinite(weight)][0]}, which int8 cannot hold: this model has diverged")


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


def round_to_nearest(weight: np.ndarray, inputs: np.ndarray, scheme: Scheme) -> QuantizedMatrix:
    """Codes of a weight (N,K) float32, each rounded by itself; what goes in, (n,K), does not matter.

    Products are of int8 codes where both operands can be: with symmetric codes, and no more than one scale a row.
    """
    check_finite(weight)
    int8 = scheme.grid.bits == 8 and scheme.symmetric and scheme.granularity != "group"
    return QuantizedMatrix(quantize(weight, scheme), int8=int8)
