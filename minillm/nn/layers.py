"""Linear, Embedding, LayerNorm, Dropout."""
import numpy as np

from minillm.autograd.tensor import Tensor
from minillm.nn.module import Maker, Module
from minillm.precision.recipe import Ops


class Linear(Module):
    """y = x W^T + b: (..., K) -> (..., N). W (N,K) from N(0, deviation), b zero."""

    def __init__(self, ops: Ops, make: Maker, K: int, N: int, bias: bool = True, deviation: float = 0.02):
        self.ops, self.weight = ops, make.normal(N, K, deviation=deviation)
        self.bias = make.constant(N, value=0) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.linear(x, self.weight, self.bias)


class Embedding(Module):
    """Rows of a table by id: ids (...) -> (..., C)."""

    def __init__(self, ops: Ops, make: Maker, V: int, C: int, deviation: float = 0.02):
        self.ops, self.weight = ops, make.normal(V, C, deviation=deviation)

    def forward(self, ids: np.ndarray) -> Tensor:
        return self.ops.embedding(self.weight, ids)

    def head(self, x: Tensor) -> Tensor:
        """Tied: the table is the weight of the model's head, (..., C) -> (..., V)."""
        return self.ops.linear(x, self.weight)


class LayerNorm(Module):
    """Each row to mean 0 and variance 1, then times gain plus shift (C,); shift only with bias."""

    def __init__(self, ops: Ops, make: Maker, C: int, bias: bool = True, eps: float = 1e-5):
        self.ops, self.eps, self.gain = ops, eps, make.constant(C, value=1)
        self.shift = make.constant(C, value=0) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.layer_norm(x, self.gain, self.shift, eps=self.eps)


class Dropout(Module):
    """Values set to 0 with probability `rate`, the others divided by 1 - rate; nothing at all inside no_record."""

    def __init__(self, ops: Ops, rate: float):
        self.ops, self.rate = ops, rate

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.dropout(x, rate=self.rate) if self.rate and self.ops.context.record else x
