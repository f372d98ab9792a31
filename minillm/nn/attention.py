"""Attention: causal with an optional key/value cache, to all that a mask shows, to another sequence; and the pre-norm block."""
import numpy as np

from minillm.autograd.tensor import Tensor
from minillm.errors import MiniLLMError
from minillm.nn.caches import KeyValueCache
from minillm.nn.layers import Dropout, LayerNorm, Linear
from minillm.nn.module import Maker, Module
from minillm.precision.recipe import Ops


class Attention(Module):
    """Causal self-attention: (B,T,C) -> (B,T,C) with H heads of D channels, C / H unless heads were pruned."""

    def __init__(self, ops: Ops, make: Maker, C: int, H: int, bias: bool, out_deviation: float, deviation: float = 0.02,
                 D: int | None = None):
        if D is None and C % H:
            possible = [h for h in range(1, C + 1) if C % h == 0][:12]
            raise MiniLLMError(f"{H} heads do not divide {C} channels: choose heads from {possible}")
        self.ops, self.heads, wide = ops, H, H * (D or C // H)
        self.query, self.key, self.value = (Linear(ops, make, C, wide, bias, deviation) for _ in range(3))
        self.out = Linear(ops, make, wide, C, bias, out_deviation)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)                    # (B,T,HD) each
        if cache is not None:
            k, v = cache.extend(k, v)
        return self.out(self.ops.attention(q, k, v, heads=self.heads))


class SelfAttention(Attention):
    """Attention to every token that a mask (B,1,1,T) shows: (B,T,C) -> (B,T,C)."""

    def forward(self, x: Tensor, mask: np.ndarray) -> Tensor:
        mixed = self.ops.attention(self.query(x), self.key(x), self.value(x), mask, heads=self.heads, causal=False)
        return self.out(mixed)


class CrossAttention(Attention):
    """Attention from one sequence (B,T,C) to those tokens of another that a mask (B,1,1,S) shows."""

    def read(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B,S,C) of the other sequence: the same for every token that looks at it."""
        return self.key(memory), self.value(memory)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: np.ndarray) -> Tensor:
        return self.out(self.ops.attention(self.query(x), keys, values, mask, heads=self.heads, causal=False))


class MLP(Module):
    """Two linears with GELU between: C -> hidden -> C."""

    def __init__(self, ops: Ops, make: Maker, C: int, hidden: int, bias: bool, out_deviation: float, deviation: float = 0.02):
        self.ops = ops
        self.up, self.down = Linear(ops, make, C, hidden, bias, deviation), Linear(ops, make, hidden, C, bias, out_deviation)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.ops.gelu(self.up(x)))


class Block(Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). Radford et al. 2019 (GPT-2), section 2.3.

    The MLP is 4 C wide, a head C / H, unless told otherwise; a part of which pruning left nothing, H or hidden 0, is left out.
    """

    def __init__(self, ops: Ops, make: Maker, C: int, H: int, layers: int, bias: bool = True, dropout: float = 0.0,
                 D: int | None = None, hidden: int | None = None):
        small = 0.02 / (2 * layers) ** 0.5             # 2 L projections write to the residual stream
        hidden = 4 * C if hidden is None else hidden
        self.ops = ops
        self.norm1 = LayerNorm(ops, make, C, bias) if H else None
        self.attention = Attention(ops, make, C, H, bias, small, D=D) if H else None
        self.norm2 = LayerNorm(ops, make, C, bias) if hidden else None
        self.mlp = MLP(ops, make, C, hidden, bias, small) if hidden else None
        self.dropout = Dropout(ops, dropout)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        if self.attention:
            x = self.ops.add(x, self.dropout(self.attention(self.norm1(x), cache)))
        return self.ops.add(x, self.dropout(self.mlp(self.norm2(x)))) if self.mlp else x
