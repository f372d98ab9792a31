"""A linear layer whose weights are codes of any scheme, with what conversions put beside them: smoothed inputs, outlier columns."""
from dataclasses import dataclass, replace

import numpy as np

from minillm.autograd.tensor import Tensor
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32
from minillm.kernels import product
from minillm.nn.module import Module
from minillm.precision.recipe import Ops
from minillm.quantization.affine import Quantized
from minillm.quantization.fake_quant import unit_rows
from minillm.quantization.products import codes_of_rows, int8_product


@dataclass(frozen=True)
class QuantizedMatrix:
    """What a conversion makes of a weight (N,K).

    weight: codes of W times `divide`, where there is one; divide: (K,) float32, what each input channel is divided by;
    outliers: (k,) int32, input channels that stay out of it; columns: (N,k) float16, their weights.
    int8: whether inputs become int8 codes by token and the product is one of codes; else the values of the codes are multiplied.
    normalized: whether the layer brings its inputs to a root mean square of 1 first, as bitnet-b1.58 has been trained to.
    """

    weight: Quantized
    divide: np.ndarray | None = None
    outliers: np.ndarray | None = None
    columns: np.ndarray | None = None
    int8: bool = False
    normalized: bool = False

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
        """The product that a layer makes, of inputs normalized already where they have to be: (M,K) -> (M,N) float32."""
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

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Rows (..., K) float32 of the matrix by their numbers (...)."""
        w, flat = self.weight, ids.reshape(-1)
        scale, zero = (a if a is None or a.ndim == 0 else a[flat] for a in (w.scale, w.zero_point))
        chosen = replace(self, weight=Quantized(w.codes[flat], scale, zero, w.scheme),
                         columns=None if self.columns is None else self.columns[flat])
        return chosen.values().reshape(*ids.shape, w.codes.shape[1])


class QuantizedLinear(Module):
    """y = x W^T + b: (..., K) -> (..., N) float32, W as a QuantizedMatrix.

    Its arrays are buffers; without int8 products the layer calls the op `linear` with the values of its codes.
    """

    def __init__(self, ops: Ops, matrix: QuantizedMatrix, bias: Tensor | None = None):
        self.ops, self.scheme, self.int8, self.bias = ops, matrix.weight.scheme, matrix.int8, bias
        self.codes, self.scale, self.zero_point = matrix.weight.codes, matrix.weight.scale, matrix.weight.zero_point
        self.divide, self.outliers, self.columns = matrix.divide, matrix.outliers, matrix.columns
        self.normalized = matrix.normalized

    @property
    def plain_int8(self) -> bool:
        """Whether it is no more than int8 codes, a scale for each row, and int8 products."""
        return self.int8 and self.scheme.granularity == "channel" and self.divide is None and self.outliers is None \
            and not self.normalized

    @property
    def matrix(self) -> QuantizedMatrix:
        return QuantizedMatrix(Quantized(self.codes, self.scale, self.zero_point, self.scheme), self.divide, self.outliers,
                               self.columns, self.int8, self.normalized)

    def forward(self, x: Tensor) -> Tensor:
        refuse_gradients(x)
        x = unit_rows(self.ops, x) if self.normalized else x
        if not self.int8:
            return self.ops.linear(x, Tensor(self.matrix.values(), FLOAT32), self.bias)
        y = self.matrix.apply(x.data.reshape(-1, x.shape[-1]))
        y = y if self.bias is None else y + self.bias.data
        return Tensor(y.reshape(*x.shape[:-1], y.shape[-1]), FLOAT32)


class QuantizedEmbedding(QuantizedLinear):
    """Rows of a table of codes (V,C) by id, as float32: ids (...) -> (..., C). Tied, the table is the weight of the head, too."""

    def forward(self, ids: np.ndarray) -> Tensor:
        if ids.size and (ids.min() < 0 or ids.max() >= len(self.codes)):
            raise MiniLLMError(f"embedding: ids must lie in 0 ... {len(self.codes) - 1}, found {ids.min()} ... {ids.max()}")
        return Tensor(self.matrix.rows(ids), FLOAT32)

    def head(self, x: Tensor) -> Tensor:
        """Logits: (..., C) -> (..., V)."""
        return QuantizedLinear.forward(self, x)


def quantized_layers(module: Module) -> dict[str, QuantizedLinear]:
    """Every layer of codes below a module, by its full name."""
    return {name.removesuffix(".codes"): owner for name, owner, key, _ in module.walk() if key == "codes"}


def refuse_gradients(x: Tensor) -> None:
    """Codes have no gradient, and what stands before them would get none, silently."""
    if x.needs_gradient:
        raise MiniLLMError("codes of weights cannot be trained: call the model inside ops.context.no_record()")
