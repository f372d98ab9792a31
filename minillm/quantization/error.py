"""How far codes are from what they stand for: signal-to-noise, the worst error in steps, the share that was clipped."""
import math
from dataclasses import dataclass

import numpy as np

from minillm.quantization.affine import Quantized


@dataclass(frozen=True)
class QuantizationError:
    """What quantization did to an array.

    `sqnr_db`: signal over noise in decibels, infinite where nothing was lost; `worst_steps`: the largest error in scales;
    `clipped`: the share of values more than half a step beyond the grid.
    """

    sqnr_db: float
    worst_steps: float
    clipped: float


def sqnr_db(exact: np.ndarray, approximate: np.ndarray) -> float:
    """10 log10 (sum of exact^2 / sum of errors^2); sums in float64, since a judge must see more than what it judges."""
    exact = exact.astype(np.float64)
    noise = float(((exact - approximate) ** 2).sum(dtype=np.float64))
    signal = float((exact**2).sum(dtype=np.float64))
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def error_of(x: np.ndarray, quantized: Quantized) -> QuantizationError:
    """What became of x, an array of the codes' shape."""
    scheme = quantized.scheme
    scale = quantized.scale.reshape(-1, 1).astype(np.float64)
    zero = 0 if quantized.zero_point is None else quantized.zero_point.reshape(-1, 1)
    rows, values = scheme.rows(x), scheme.rows(quantized.values())
    place = rows / scale + zero                                                # where on the grid x lies
    clipped = (place > scheme.grid.highest + 0.5) | (place < scheme.grid.lowest - 0.5)
    return QuantizationError(sqnr_db(x, quantized.values()), float((abs(rows - values) / scale).max(initial=0)),
                             float(clipped.sum() / max(x.size, 1)))
