"""Self-attention with an optional key/value cache, and the pre-norm transformer block."""
from minillm.autograd.tensor import Tensor
from minillm.errors import MiniLLMError
from minillm.nn.caches import KeyValueCache
from minillm.nn.layers import Dropout, LayerNorm, Linear
from minillm.nn.module import Maker, Module
from minillm.precision.recipe import Ops


class Attention(Module):
    """Causal self-attention: (B,T,C) -> (B,T,C) with H heads of D channels, C / H unless heads were pruned."""

    def __init__(self, ops: Ops, make: Maker, C: int, H: int, bias: bool, out_deviation: float, D: int | None = None):
        if D is None and C % H:
            possible = [h for h in range(1, C + 1) if C % h == 0][:12]
            raise MiniLLMError(f"{H} heads do not divide {C} channels: choose heads from {possible}")
        self.ops, self.heads, wide = ops, H, H * (D or C // H)
        self.query, self.key, self.value = (Linear(ops, make, C, wide, bias) for _ in range(3))
        self.out = Linear(ops, make, wide, C, bias, out_deviation)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)                    # (B,T,HD) each
        if cache is not None:
            k, v = cache.extend(k, v)
        return self.out(self.ops.attention(q, k, v, heads=self.heads))


class MLP(Module):
    """Two linears with GELU between: C -> hidden -> C."""

    def __init__(self, ops: Ops, make: Maker, C: int, hidden: int, bias: bool, out_deviation: float):
        self.ops = ops
        self.up, self.down = Linear(ops, make, C, hidden, bias), Linear(ops, make, hidden, C, bias, out_deviation)

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
        self.attention = Attention(ops, make, C, H, bias, small, D) if H else None
        self.norm2 = LayerNorm(ops, make, C, bias) if hidden else None
        self.mlp = MLP(ops, make, C, hidden, bias, small) if hidden else None
        self.dropout = Dropout(ops, dropout)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        if self.attention:
            x = self.ops.add(x, self.dropout(self.attention(self.norm1(x), cache)))
        return self.ops.add(x, self.dropout(self.mlp(self.norm2(x)))) if self.mlp else x
