"""AWQ: input channels that carry much get finer weights: each is scaled up by a power of its size, and its input down.

Lin et al. 2023, arXiv 2306.00978, section 3.2, and the clipping search of its published code.
"""
import numpy as np

from minillm.kernels import product
from minillm.nn.quantized import QuantizedMatrix
from minillm.quantization.affine import Scheme, extent, quantize

POWERS = [i / 20 for i in range(20)]             # of the mean size of an input channel
SHRINKS = [1 - i / 20 for i in range(10)]        # of the range of a row or group
CLIP_ROWS = 512                                  # of the inputs that decide on clipping


def awq(weight: np.ndarray, inputs: np.ndarray, scheme: Scheme) -> QuantizedMatrix:
    """Codes of a weight (N,K) float32 with an input scale for each channel, the power and the ranges of least output error."""
    best = min((scaled(weight, inputs, scheme, power) for power in POWERS), key=lambda m: output_error(m, weight, inputs))
    W = weight * best.divide
    low, high = clipped_range(W, inputs / best.divide, scheme)
    clipped = QuantizedMatrix(quantize(W, scheme, low, high), best.divide)
    return min(best, clipped, key=lambda m: output_error(m, weight, inputs))


def scaled(weight: np.ndarray, inputs: np.ndarray, scheme: Scheme, power: float) -> QuantizedMatrix:
    """The matrix whose input channels are scaled by their mean size to a power."""
    size = np.abs(inputs).mean(0, dtype=np.float32)                            # (K,) f32
    factor = np.maximum(size, np.float32(1e-4)) ** np.float32(power)
    factor /= np.sqrt(factor.max() * factor.min())
    return QuantizedMatrix(quantize(weight * factor, scheme), factor)


def output_error(matrix: QuantizedMatrix, weight: np.ndarray, inputs: np.ndarray) -> float:
    """The mean squared error of a layer's outputs."""
    return float((product(inputs, (matrix.values() - weight).T) ** 2).mean(dtype=np.float32))


def clipped_range(weight: np.ndarray, inputs: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """(low, high), (S,) each: for each row or group the share of its range, down to a half, of least output error."""
    low, high = extent(scheme.rows(weight))
    some = inputs[np.linspace(0, len(inputs) - 1, min(CLIP_ROWS, len(inputs))).astype(np.int64)]
    best_low, best_high, least = low, high, np.full(len(low), np.inf, np.float32)
    for share in SHRINKS:
        shrunk = quantize(weight, scheme, low * np.float32(share), high * np.float32(share))
        cost = cost_of_rows(shrunk.values() - weight, some, scheme)
        better = cost < least
        least, best_low = np.where(better, cost, least), np.where(better, low * np.float32(share), best_low)
        best_high = np.where(better, high * np.float32(share), best_high)
    return best_low, best_high


def cost_of_rows(error: np.ndarray, inputs: np.ndarray, scheme: Scheme) -> np.ndarray:
    """The squared output error (S,) that each run of weights causes by itself: error (N,K), inputs (n,K)."""
    K = error.shape[1]
    width = min(scheme.group, K) if scheme.granularity == "group" else K
    cost = [(product(inputs[:, k:k + width], error[:, k:k + width].T) ** 2).sum(0, dtype=np.float32) for k in range(0, K, width)]
    costs = np.stack(cost, 1)                                                  # (N, K / width) f32
    return costs.sum(keepdims=True, dtype=np.float32).reshape(1) if scheme.granularity == "tensor" else costs.reshape(-1)
