"""Layers of a transformer in integers: int8 in, int8 or the residual stream's int32 out. No float is in their arrays or their ops.

What the integers stand for, their scales, is known where a model is converted (conversion/integer_model.py); here it has become
multipliers. The residual stream is int32 of b bits, -limit ... limit; every other activation is int8, -127 ... 127.
"""
import numpy as np

from minillm.errors import MiniLLMError
from minillm.nn.caches import Cache
from minillm.nn.module import Module
from minillm.quantization.fixed_point import Multiplier, requantize
from minillm.quantization.integer_ops import divide, normalized, product, softmax_codes

INT8_LIMIT = 127


class Rescale(Module):
    """Integers times a real number, one for all or one for each channel, as codes of -limit ... limit."""

    def __init__(self, rounding: str, limit: int, *channels: int):
        self.rounding, self.limit = rounding, limit
        self.mantissa, self.shift = np.zeros(channels, np.int32), np.zeros(channels, np.int8)

    @property
    def multiplier(self) -> Multiplier:
        return Multiplier(self.mantissa, self.shift)

    def forward(self, x: np.ndarray) -> np.ndarray:
        return requantize(x, self.multiplier, self.limit, self.rounding)


class IntegerLinear(Module):
    """x W^T + b: (..., K) int8 -> (..., N) codes of -limit ... limit; W (N,K) int8, b (N,) int32 in the accumulator's unit."""

    def __init__(self, rounding: str, K: int, N: int, limit: int = INT8_LIMIT):
        self.codes, self.bias, self.rescale = np.zeros((N, K), np.int8), np.zeros(N, np.int32), Rescale(rounding, limit, N)

    def forward(self, x: np.ndarray) -> np.ndarray:
        return self.rescale(product(x, self.codes.T) + self.bias)


class IntegerEmbedding(Module):
    """Rows of a table of codes (V,C) by id, brought to the residual's scale: ids (...) -> (..., C) int32."""

    def __init__(self, rounding: str, V: int, C: int, limit: int):
        self.codes, self.rescale = np.zeros((V, C), np.int8), Rescale(rounding, limit, V)

    def forward(self, ids: np.ndarray) -> np.ndarray:
        if ids.size and (ids.min() < 0 or ids.max() >= len(self.codes)):
            raise MiniLLMError(f"embedding: ids must lie in 0 ... {len(self.codes) - 1}, found {ids.min()} ... {ids.max()}")
        by = Multiplier(*(part[ids][..., None] for part in self.rescale.multiplier))
        return requantize(self.codes[ids], by, self.rescale.limit, self.rescale.rounding)


class IntegerLayerNorm(Module):
    """Rows (..., C) int32 to mean 0 and variance 1, times gain plus shift: int8. A gain is a channel's multiplier."""

    def __init__(self, rounding: str, C: int):
        self.eps, self.gain = np.zeros((), np.int64), Rescale(rounding, 2**30 - 1, C)
        self.shift = np.zeros(C, np.int32)                                     # at most 2^30, so that no sum wraps

    def forward(self, x: np.ndarray) -> np.ndarray:
        return np.clip(self.gain(normalized(x, self.eps)) + self.shift, -INT8_LIMIT, INT8_LIMIT).astype(np.int8)


class IntegerCache(Cache):
    """The keys and values of the tokens so far, for one attention layer: (B,T,C) int8 for a whole context."""

    held: list[np.ndarray] | None = None

    def extend(self, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Write the keys and values (B,new,C) of new tokens behind those there are; returns all, (B, count, C), not copied."""
        first = self.claim(k.shape[1])
        if self.held is None:
            self.held = [np.zeros_like(k, shape=(len(k), self.context, k.shape[2])) for _ in range(2)]
        for held, new in zip(self.held, (k, v), strict=True):
            held[:, first:self.count] = new
        return tuple(held[:, :self.count] for held in self.held)

    def reorder(self, rows: np.ndarray) -> None:
        """Go on with these rows of the batch, in this order."""
        self.held = [held[rows] for held in self.held]


class IntegerAttention(Module):
    """Causal self-attention: (B,T,C) int8 -> (B,T,C) int32 of the residual."""

    FRACTION = 16          # bits behind the point of a mean of values

    def __init__(self, rounding: str, C: int, heads: int, limit: int):
        self.heads, self.rounding = heads, rounding
        self.query, self.key, self.value = (IntegerLinear(rounding, C, C) for _ in range(3))
        self.exponent, self.mixed = Rescale(rounding, 2**31 - 1), Rescale(rounding, INT8_LIMIT)
        self.out = IntegerLinear(rounding, C, C, limit)

    def forward(self, x: np.ndarray, cache: IntegerCache | None = None) -> np.ndarray:
        q, k, v = self.query(x), self.key(x), self.value(x)                    # (B,T,C) int8 each
        if cache is not None:
            k, v = cache.extend(k, v)
        q, k, v = (self.split(part) for part in (q, k, v))                     # (B,H,T,D) int8
        scores = product(q, k.swapaxes(-1, -2))                                # (B,H,T,K) int32
        Tq, Tk = scores.shape[-2:]
        visible = np.arange(Tk) <= np.arange(Tk - Tq, Tk)[:, None]             # (T,K) bool
        shares = softmax_codes(scores, visible, self.exponent.multiplier, self.rounding)     # (B,H,T,K) int8
        total = shares.sum(-1, keepdims=True, dtype=np.int32)                  # (B,H,T,1) int32
        mean = divide(product(shares, v).astype(np.int64) << self.FRACTION, total)           # (B,H,T,D) int64
        return self.out(self.mixed(mean.swapaxes(1, 2).reshape(x.shape)))

    def split(self, x: np.ndarray) -> np.ndarray:
        """(B,T,C) -> (B,H,T,D)."""
        B, T, C = x.shape
        return x.reshape(B, T, self.heads, C // self.heads).swapaxes(1, 2)


class IntegerMLP(Module):
    """Two linears with GELU between, which is a table of what each of the 256 codes becomes: C -> 4 C -> C."""

    def __init__(self, rounding: str, C: int, limit: int):
        self.up, self.gelu = IntegerLinear(rounding, C, 4 * C), np.zeros(256, np.int8)
        self.down = IntegerLinear(rounding, 4 * C, C, limit)

    def forward(self, x: np.ndarray) -> np.ndarray:
        return self.down(self.gelu[self.up(x).astype(np.int16) + 128])


class IntegerBlock(Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), x int32 of -limit ... limit."""

    def __init__(self, rounding: str, C: int, heads: int, limit: int):
        self.limit = limit
        self.norm1, self.attention = IntegerLayerNorm(rounding, C), IntegerAttention(rounding, C, heads, limit)
        self.norm2, self.mlp = IntegerLayerNorm(rounding, C), IntegerMLP(rounding, C, limit)

    def forward(self, x: np.ndarray, cache: IntegerCache | None = None) -> np.ndarray:
        x = np.clip(x + self.attention(self.norm1(x), cache), -self.limit, self.limit)
        return np.clip(x + self.mlp(self.norm2(x)), -self.limit, self.limit)
