"""Layers whose weights are int8 codes with one float32 scale for each row, and whose products are of int8 codes, exact in int32."""
import numpy as np

from minillm.autograd.tensor import Tensor
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32
from minillm.nn.module import Module
from minillm.quantization.products import codes_of_rows, int8_product


class Int8Linear(Module):
    """y = x W^T + b: (..., K) -> (..., N) float32, W as codes (N,K) and scale (N,); each row of x becomes codes on its way in."""

    def __init__(self, codes: np.ndarray, scale: np.ndarray, bias: Tensor | None = None):
        self.codes, self.scale, self.bias = codes, scale, bias

    def forward(self, x: Tensor) -> Tensor:
        refuse_gradients(x)
        codes, x_scale = codes_of_rows(x.data.reshape(-1, x.shape[-1]))                        # (M,K) int8, (M,1) f32
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
