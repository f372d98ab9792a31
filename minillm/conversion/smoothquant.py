"""SmoothQuant: outliers are moved from the inputs, where int8 loses what is beside them, into the weights, which have room.

Xiao et al. 2022, arXiv 2211.10438, section 4. Outputs stay as they are: (x / s) (s W)^T.
"""
import numpy as np

from minillm.nn.quantized import QuantizedMatrix
from minillm.quantization.affine import Scheme, quantize

ALPHA = 0.5                # how much of the difficulty moves: 0 none, 1 all


def smoothquant(weight: np.ndarray, inputs: np.ndarray, scheme: Scheme, alpha: float = ALPHA) -> QuantizedMatrix:
    """Codes of a weight (N,K) float32 times s_k = max|x_k|^alpha / max|w_k|^(1 - alpha), for inputs (n,K) that are divided by s."""
    least = np.float32(1e-5)
    largest_input = np.maximum(np.abs(inputs).max(0), least)                   # (K,) f32
    largest_weight = np.maximum(np.abs(weight).max(0), least)
    s = np.maximum(largest_input ** np.float32(alpha) / largest_weight ** np.float32(1 - alpha), least)
    return QuantizedMatrix(quantize(weight * s, scheme), divide=s, int8=True)
