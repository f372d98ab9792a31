"""GPTQ: columns are rounded one after the other, and what each is off by is made good in those that are still to come.

Frantar et al. 2022, arXiv 2210.17323, algorithm 1, without its blocks, which only save memory traffic.
"""
import numpy as np

from minillm.errors import MiniLLMError
from minillm.nn.quantized import QuantizedMatrix
from minillm.quantization.affine import Quantized, Scheme, codes_of, extent, quantize, scale_and_zero_point

DAMPING = 0.01             # of the mean of the Hessian's diagonal, added to it


def gptq(weight: np.ndarray, inputs: np.ndarray, scheme: Scheme, activation_order: bool = False) -> QuantizedMatrix:
    """Codes of a weight (N,K) float32 for inputs (n,K). With `activation_order` the columns of the largest inputs come first.

    The scale of a group is that of its weights as corrected when their turn comes; with an order, that of the weights as they were.
    """
    H = hessian(inputs)                                                        # (K,K) f64
    order = np.argsort(-np.diag(H), kind="stable") if activation_order else np.arange(len(H))
    U = inverse_factor(H[np.ix_(order, order)])                                # (K,K) f32, upper triangle
    needed = np.where(np.diag(H) == 0, np.float32(0), weight)                  # inputs that are always 0 need no weight
    W, start, codes = needed[:, order], quantize(needed, scheme), np.empty(weight.shape, np.int8)
    scale, zero = start.scale.copy(), np.zeros(start.scale.shape, np.int8) if scheme.symmetric else start.zero_point.copy()
    for i, k in enumerate(order):
        at = place(scheme, k)
        if scheme.granularity == "group" and k % scheme.group == 0 and not activation_order:
            scale[at], found = scale_and_zero_point(*extent(W[:, i:i + scheme.group]), scheme)
            zero[at] = 0 if scheme.symmetric else found
        codes[:, k] = codes_of(W[:, i], scale[at], zero[at], scheme)
        value = (codes[:, k] - zero[at].astype(np.int16)) * scale[at].astype(np.float32)
        error = (W[:, i] - value) / U[i, i]                                    # (N,) f32
        W[:, i:] -= error[:, None] * U[i, i:]
    return QuantizedMatrix(Quantized(codes, scale, None if scheme.symmetric else zero, scheme))


def place(scheme: Scheme, k: int):
    """Where the scales of column k of a matrix are."""
    return {"tensor": (), "channel": slice(None), "group": (slice(None), k // scheme.group)}[scheme.granularity]


def hessian(inputs: np.ndarray) -> np.ndarray:
    """2 / n sum of x x^T, (K,K): of the squared error of the outputs. In float64: its condition is the square of the inputs'."""
    x = inputs.astype(np.float64)
    return 2 / len(x) * (x.T @ x)


def inverse_factor(H: np.ndarray) -> np.ndarray:
    """The upper triangle U with H^-1 = U^T U of a damped Hessian, (K,K) float32."""
    H = H.copy()
    diagonal = np.arange(len(H)), np.arange(len(H))
    dead = np.diag(H) == 0
    H[dead, dead] = 1
    H[diagonal] += DAMPING * np.diag(H).mean(dtype=np.float64)
    try:
        return np.linalg.cholesky(np.linalg.inv(H)).T.astype(np.float32)
    except np.linalg.LinAlgError as error:
        raise MiniLLMError("the inputs of a layer are too much alike for GPTQ's inverse: calibrate with more text") from error
