"""What follows a text: the first tokens in one pass through the model, each further one in a compiled function for each block.

For one token a model's arithmetic takes a tenth of a millisecond or two, and the way through the dispatcher, op by op, ten times
as long. So where nobody watches, and the recipe computes everything in float32 or everything in float16, rounded to nearest even,
a token goes through minillm.kernels.generation: the same ops in the same order, each result rounded once, as the recipe says.
"""
import contextlib
from collections.abc import Callable

import numpy as np

from minillm import kernels
from minillm.autograd.rules.products import FLOAT32_PRODUCTS
from minillm.autograd.tensor import Tensor
from minillm.autograd.watching import Event, watch, watched
from minillm.formats import FLOAT16, FLOAT32
from minillm.nn import Block, KeyValueCache, LayerNorm, Module, QuantizedEmbedding, QuantizedLinear, quantized_layers
from minillm.nn.caches import Int8Rows, Rows
from minillm.rounding import widen

OPS = ("embedding", "add", "layer_norm", "linear", "attention", "gelu")


class FirstPass:
    """An observer of one pass: the inputs of each op, as the recipe's casts left them, and whether all of it is of one format."""

    def __init__(self):
        self.inputs, self.formats, self.plain = {}, set(), True

    def __call__(self, event: Event) -> None:
        if event.rule.name == "cast" and event.inputs[0].name:   # of a weight
            return
        self.plain &= event.rule.name in OPS and event.static.get("products", FLOAT32_PRODUCTS) is FLOAT32_PRODUCTS
        self.formats.add(event.format)
        self.inputs[event.address.scope, event.rule.name] = event.inputs[1:] if event.rule.name != "embedding" else event.inputs[:1]


class Decoder:
    """Logits for the next token of one text. The weights must not change while it is in use: it holds their casts."""

    def __init__(self, model: Module):
        self.model, self.blocks, self.first = model, None, True

    def logits(self, window: list[int], caches: list[KeyValueCache], start: int) -> np.ndarray:
        """Logits (V,) float32 after the tokens of `window`, which stand at `start` and behind; their keys and values are cached."""
        if start and self.blocks and len(window) == 1 and not watched():
            return self.after_one(window[0], caches, start)
        context, recipe, shape, seen = self.model.ops.context, self.model.ops.recipe, self.model.shape, FirstPass()
        ours = kernels.enabled() and isinstance(self.model.norm.gain.data, np.ndarray)
        whole = all(widths == (shape.heads, 4 * shape.channels) for widths in shape.widths)      # the kernel knows no pruned block
        look = self.first and ours and whole and not watched() and context.forward == "nearest_even" and not recipe.quantizers \
            and not any(part.int8 and not part.plain_int8 for part in quantized_layers(self.model).values())
        with watch(seen) if look else contextlib.nullcontext():
            logits = self.model(np.array([window], np.int32), caches, start)                 # (1,T,V)
        if look and seen.plain and seen.formats in ({FLOAT32}, {FLOAT16}):
            self.take(seen)
        self.first = False
        return logits.data[0, -1].astype(np.float32)

    def take(self, seen: FirstPass) -> None:
        """Gather the weights as the first pass used them."""
        model, self.kernel, (self.format,) = self.model, kernels.load("generation"), seen.formats
        self.tokens, self.positions = (table(part, seen) for part in (model.tokens, model.positions))
        self.blocks = [block_weights(block, seen) for block in model.blocks]
        self.heads = model.shape.heads
        self.norm, self.head = norm_weights(model.norm, seen), linear_weights(model.tokens, seen, "head")

    def after_one(self, token: int, caches: list[KeyValueCache], position: int) -> np.ndarray:
        """The same as a pass through the model, for one token."""
        storage, logits = self.format.storage, np.empty(len(self.head[0]), self.format.storage)             # (V,)
        with np.errstate(all="ignore"):
            x = as_bits(self.tokens(token).astype(storage) + self.positions(position).astype(storage))      # (C,)
        for weights, cache in zip(self.blocks, caches, strict=True):
            self.kernel.block(x, position, self.heads, rows_of(cache.keys), rows_of(cache.values), *weights)
            cache.count = position + 1
        self.kernel.head(x, as_bits(logits), self.norm, self.head)
        return logits.astype(np.float32)


def as_bits(array: np.ndarray) -> np.ndarray:
    """What kernels take: float32 as it is, float16 as its bits."""
    return kernels.load("scalars").bits(array)


def rows_of(rows: Rows | Int8Rows) -> np.ndarray | tuple:
    """What kernels.generation writes the row of a token into: (T,C) floats, or codes (T,C) int8 and scales (T,H)."""
    return (rows.codes[0], rows.scale[0]) if isinstance(rows, Int8Rows) else as_bits(rows.array[0])


def table(embedding: Module, seen: FirstPass) -> Callable[[int], np.ndarray]:
    """A row (C,) of an embedding by its id."""
    if isinstance(embedding, QuantizedEmbedding):
        if not embedding.plain_int8:
            return lambda i: embedding.matrix.rows(np.array(i))
        codes, scale = embedding.codes, embedding.scale                        # two ways through `matrix` take a third of a token
        return lambda i: codes[i] * scale[i]
    weight, = seen.inputs[embedding.place, "embedding"]
    return lambda i: weight.data[i]


def block_weights(block: Block, seen: FirstPass) -> tuple:
    """What kernels.generation.block takes, in its order."""
    a, mlp = block.attention, block.mlp
    return (norm_weights(block.norm1, seen), *(linear_weights(layer, seen) for layer in (a.query, a.key, a.value, a.out)),
            norm_weights(block.norm2, seen), *(linear_weights(layer, seen) for layer in (mlp.up, mlp.down)))


def norm_weights(norm: LayerNorm, seen: FirstPass) -> tuple:
    """(gain, shift, eps)."""
    gain, shift = seen.inputs[norm.place, "layer_norm"]
    return vector(gain, gain.size), vector(shift, gain.size), np.float32(norm.eps)


def linear_weights(layer: Module, seen: FirstPass, place: str | None = None) -> tuple:
    """(weight, scale or None, bias)."""
    if isinstance(layer, QuantizedLinear):
        codes = (layer.codes, layer.scale) if layer.plain_int8 else (layer.matrix.values(), None)
        return *codes, vector(layer.bias, len(layer.codes))
    weight, bias = seen.inputs[place or layer.place, "linear"]
    return as_bits(weight.data), None, vector(bias, len(weight))


def vector(x: Tensor | None, size: int) -> np.ndarray:
    """A gain, shift or bias as float32, which is exact; zeros for none."""
    return np.zeros(size, np.float32) if x is None else np.ascontiguousarray(widen(x.data, np.float32))
