"""A GPT in integers: ids in, int32 logits out, and no float operation between."""
import numpy as np

from minillm.autograd.tensor import Tensor
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32
from minillm.models.gpt import GPT, GPTShape, PrunedShape
from minillm.nn.integer import IntegerBlock, IntegerCache, IntegerEmbedding, IntegerLayerNorm, Rescale
from minillm.quantization.integer_ops import product
from minillm.recipes import PRESETS

RESIDUAL_BITS = 16


class IntegerGPT(GPT):
    """The same arrangement as a GPT's; its arrays are zeros until they are converted or loaded.

    rounding: of every requantization. bits: of the residual stream, held as int32.
    """

    def __init__(self, shape: GPTShape, rounding: str = "single", bits: int = RESIDUAL_BITS):
        C, limit = shape.channels, 2 ** (bits - 1) - 1
        if not 8 <= bits <= 20 or 2 * bits + C.bit_length() > 54:
            raise MiniLLMError(f"a residual stream of {bits} bits beside {C} channels: 8 to 20 are possible")
        if isinstance(shape, PrunedShape):
            raise MiniLLMError(f"blocks of {shape.kept} (heads, MLP channels) in integers alone: take int8 weights")
        self.shape, self.ops, self.rounding, self.bits = shape, PRESETS["float32"].bind(0), rounding, bits
        self.tokens = IntegerEmbedding(rounding, shape.vocabulary, C, limit)
        self.positions = IntegerEmbedding(rounding, shape.context, C, limit)
        for i in range(shape.layers):
            setattr(self, f"block{i}", IntegerBlock(rounding, C, shape.heads, limit))
        self.norm, self.head = IntegerLayerNorm(rounding, C), Rescale(rounding, 2**31 - 1, shape.vocabulary)
        self.logit_scale = np.ones((), np.float32)                             # what a logit of 1 stands for: the only float

    def integer_logits(self, ids: np.ndarray, caches: list[IntegerCache] | None = None, start: int = 0) -> np.ndarray:
        """Logits (B,T,V) int32, in units of logit_scale, for ids (B,T) that stand at positions start ... start + T - 1."""
        T = ids.shape[1]
        if start + T > self.shape.context:
            raise MiniLLMError(f"{start + T} tokens do not fit into a context of {self.shape.context}: cut the ids")
        limit = self.tokens.rescale.limit
        x = np.clip(self.tokens(ids) + self.positions(np.arange(start, start + T, dtype=np.int32)), -limit, limit)
        for block, cache in zip(self.blocks, caches or [None] * self.shape.layers, strict=True):
            x = block(x, cache)                                                # (B,T,C) int32
        return self.head(product(self.norm(x), self.tokens.codes.T))

    def forward(self, ids: np.ndarray, caches: list[IntegerCache] | None = None, start: int = 0) -> Tensor:
        """The same logits as float32, for a loss and for sampling."""
        return Tensor(self.integer_logits(ids, caches, start).astype(np.float32) * self.logit_scale, FLOAT32)

    def decoder(self) -> "IntegerGPT":
        """What `generate` asks for logits: itself, since there is no faster way for one token."""
        return self

    def logits(self, window: list[int], caches: list[IntegerCache], start: int) -> np.ndarray:
        """Logits (V,) float32 after the tokens of `window`, which stand at `start` and behind; keys and values stay int8 codes."""
        return self(np.array([window], np.int32), caches, start).data[0, -1]

    def new_caches(self, int8: bool = True) -> list[IntegerCache]:                     # of int8 codes in any case
        return [IntegerCache(self.shape.context) for _ in self.blocks]
