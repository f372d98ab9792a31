"""A linear layer whose weights are codes of any scheme, with what conversions put beside them: smoothed inputs, outlier columns."""
from dataclasses import dataclass

import numpy as np

from minillm.autograd.tensor import Tensor
from minillm.formats import FLOAT32
from minillm.kernels import product
from minillm.nn.int8 import refuse_gradients
from minillm.nn.module import Module
from minillm.precision.recipe import Ops
from minillm.quantization.affine import Quantized
from minillm.quantization.products import codes_of_rows, int8_product


@dataclass(frozen=True)
class QuantizedMatrix:
    """What a conversion makes of a weight (N,K).

    weight: codes of W times `divide`, where there is one; divide: (K,) float32, what each input channel is divided by;
    outliers: (k,) int32, input channels that stay out of it; columns: (N,k) float16, their weights.
    int8: whether inputs become int8 codes by token and the product is one of codes; else the values of the codes are multiplied.
    """

    weight: Quantized
    divide: np.ndarray | None = None
    outliers: np.ndarray | None = None
    columns: np.ndarray | None = None
    int8: bool = False

    def values(self) -> np.ndarray:
        """The float32 matrix (N,K) that stands in for W."""
        values = self.weight.values()
        if self.divide is not None:
            values = values / self.divide
        if self.outliers is not None:
            values[:, self.outliers] = self.columns.astype(np.float32)
        return values

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + sum(a.nbytes for a in (self.divide, self.outliers, self.columns) if a is not None)

    def apply(self, x: np.ndarray) -> np.ndarray:
        """The product that a layer makes: (M,K) -> (M,N) float32."""
        if not self.int8:
            return product(x, self.values().T)
        if self.divide is not None:
            x = x / self.divide
        y = 0
        if self.outliers is not None:
            y = product(np.ascontiguousarray(x[:, self.outliers]), self.columns.astype(np.float32).T)
            x = x.copy()
            x[:, self.outliers] = 0
        codes, scale = codes_of_rows(x)                                        # (M,K) int8, (M,1) f32
        return int8_product(codes, self.weight.codes.T).astype(np.float32) * (scale * self.weight.scale) + y


class QuantizedLinear(Module):
    """y = x W^T + b: (..., K) -> (..., N) float32, W as a QuantizedMatrix.

    Its arrays are buffers; without int8 products the layer calls the op `linear` with the values of its codes.
    """

    def __init__(self, ops: Ops, matrix: QuantizedMatrix, bias: Tensor | None = None):
        self.ops, self.scheme, self.int8, self.bias = ops, matrix.weight.scheme, matrix.int8, bias
        self.codes, self.scale, self.zero_point = matrix.weight.codes, matrix.weight.scale, matrix.weight.zero_point
        self.divide, self.outliers, self.columns = matrix.divide, matrix.outliers, matrix.columns

    @property
    def matrix(self) -> QuantizedMatrix:
        return QuantizedMatrix(Quantized(self.codes, self.scale, self.zero_point, self.scheme), self.divide, self.outliers,
                               self.columns, self.int8)

    def forward(self, x: Tensor) -> Tensor:
        refuse_gradients(x)
        if not self.int8:
            return self.ops.linear(x, Tensor(self.matrix.values(), FLOAT32), self.bias)
        y = self.matrix.apply(x.data.reshape(-1, x.shape[-1]))
        y = y if self.bias is None else y + self.bias.data
        return Tensor(y.reshape(*x.shape[:-1], y.shape[-1]), FLOAT32)


class QuantizedEmbedding(QuantizedLinear):
    """Rows of a table of codes (V,C) by id, as float32; tied, the table is the weight of the model's head."""

    def forward(self, ids: np.ndarray) -> Tensor:
        return self.ops.embedding(Tensor(self.matrix.values(), FLOAT32), ids)

    def head(self, x: Tensor) -> Tensor:
        return QuantizedLinear.forward(self, x)
