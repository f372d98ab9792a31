"""Mixed decomposition: the few input channels that hold outliers are multiplied in float, all others as int8 codes.

Dettmers et al. 2022, arXiv 2208.07339 (LLM.int8), section 3.2. There outliers are looked for in every batch; here once, in the
calibration text, so that the file holds int8 codes for all others.
"""
import numpy as np

from minillm.nn.quantized import QuantizedMatrix
from minillm.quantization.affine import Scheme, quantize

THRESHOLD = 6.0            # an input channel with a larger value holds outliers


def decompose(weight: np.ndarray, inputs: np.ndarray, scheme: Scheme, threshold: float = THRESHOLD) -> QuantizedMatrix:
    """Codes of a weight (N,K) float32 without the columns of outliers, and these columns in float16."""
    found = np.flatnonzero(np.abs(inputs).max(0) > threshold).astype(np.int32)            # (k,)
    rest = weight.copy()
    rest[:, found] = 0
    columns = weight[:, found].astype(np.float16)                              # (N,k) f16
    return QuantizedMatrix(quantize(rest, scheme), outliers=found, columns=columns, int8=True) if len(found) else \
        QuantizedMatrix(quantize(weight, scheme), int8=True)
