"""Layers whose weights are int8 codes with one float32 scale for each row, and whose products are of int8 codes, exact in int32."""
import numpy as np

from minillm import kernels
from minillm.autograd.tensor import Tensor
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32
from minillm.nn.module import Module
from minillm.quantization.affine import as_scale

EXACT = 1040                       # so many products of two codes, each at most 127^2, have sums below 2^24


def codes_of(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Activations (..., K) float32 as int8 codes, half to even, and a scale (..., 1) float32 for each row, max|row| / 127.

    A row that is not finite has codes of 0 and a scale of NaN, so that it makes NaN of whatever is computed from it.
    """
    top = np.abs(x).max(-1, keepdims=True, initial=0)                                     # (..., 1) f32
    finite = np.isfinite(top)
    scale = np.where(finite, as_scale(top / np.float32(127)), np.float32(np.nan))
    return np.rint(np.divide(x, scale, where=finite, out=np.zeros_like(x))).astype(np.int8), scale


def int8_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(M,K) (K,N) -> (M,N) int32, exact, for codes of -127 ... 127.

    Without kernels as float32 products over 1040 values of k at a time: all sums on the way are whole numbers below 2^24.
    """
    if kernels.enabled():
        return kernels.load("matmul").matmul_int8(a, b)
    total = np.zeros((a.shape[0], b.shape[1]), np.int32)
    for k in range(0, a.shape[1], EXACT):
        total += (a[:, k:k + EXACT].astype(np.float32) @ b[k:k + EXACT].astype(np.float32)).astype(np.int32)
    return total


class Int8Linear(Module):
    """y = x W^T + b: (..., K) -> (..., N) float32, W as codes (N,K) and scale (N,); each row of x becomes codes on its way in."""

    def __init__(self, codes: np.ndarray, scale: np.ndarray, bias: Tensor | None = None):
        self.codes, self.scale, self.bias = codes, scale, bias

    def forward(self, x: Tensor) -> Tensor:
        refuse_gradients(x)
        codes, x_scale = codes_of(x.data.reshape(-1, x.shape[-1]))                        # (M,K) int8, (M,1) f32
        y = int8_product(codes, self.codes.T).astype(np.float32) * (x_scale * self.scale)
        y = y if self.bias is None else y + self.bias.data
        return Tensor(y.reshape(*x.shape[:-1], len(self.scale)), FLOAT32)


class Int8Embedding(Module):
    """Rows of a table of codes (V,C) with a scale (V,) by id, as float32: ids (...) -> (..., C)."""

    def __init__(self, codes: np.ndarray, scale: np.ndarray):
        self.codes, self.scale, self.bias = codes, scale, None

    def forward(self, ids: np.ndarray) -> Tensor:
        if ids.size and (ids.min() < 0 or ids.max() >= len(self.codes)):
            raise MiniLLMError(f"embedding: ids must lie in 0 ... {len(self.codes) - 1}, found {ids.min()} ... {ids.max()}")
        return Tensor(self.codes[ids].astype(np.float32) * self.scale[ids][..., None], FLOAT32)

    def head(self, x: Tensor) -> Tensor:
        """Tied: the table is the weight of the model's head, (..., C) -> (..., V)."""
        return Int8Linear.forward(self, x)


def refuse_gradients(x: Tensor) -> None:
    """Codes have no gradient, and what stands before them would get none, silently."""
    if x.needs_gradient:
        raise MiniLLMError("int8 weights cannot be trained: call the model inside ops.context.no_record()")
