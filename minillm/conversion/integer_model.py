"""A trained GPT in integers alone: int8 weights and activations with static scales, everything between folded into multipliers.

Jacob et al. 2018, arXiv 1712.05877, for the products; Kim et al. 2021 (I-BERT), arXiv 2101.01321, for the rest of a transformer.
A calibration text says which range each activation has.
"""
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from minillm.autograd.rule import RULES
from minillm.autograd.watching import Event, watch
from minillm.conversion.convert import Conversion, Layer, check_range
from minillm.kernels import product
from minillm.models.gpt import GPT
from minillm.models.integer_gpt import RESIDUAL_BITS, IntegerGPT
from minillm.nn import Block, LayerNorm, Linear, Module
from minillm.nn.integer import IntegerBlock, IntegerLayerNorm, IntegerLinear, Rescale
from minillm.quantization import integer_ops
from minillm.quantization.affine import PER_TENSOR, Scheme, codes_of, grid, quantize, scale_and_zero_point
from minillm.quantization.error import sqnr_db
from minillm.quantization.fixed_point import HIGHEST, multiplier
from minillm.quantization.observers import MinMax

SKEWED = Scheme(grid(8, narrow=False), symmetric=False)                        # behind a GELU nearly all values are positive
HEADROOM = 2               # of the residual stream beyond what the calibration text shows: one of its bits


@dataclass(frozen=True)
class Activation:
    """What an activation's codes stand for: scale x (code - zero_point)."""

    scale: float
    zero_point: int = 0
    scheme: Scheme = PER_TENSOR

    def codes(self, x: np.ndarray) -> np.ndarray:
        """Values float32 as int8 codes."""
        return codes_of(x, np.float32(self.scale), np.int8(self.zero_point), self.scheme)


class Ranges:
    """An observer of forward passes that knows the range of the residual stream, and of what each op makes by its place."""

    def __init__(self, observer: Callable = MinMax):
        self.observer, self.seen = observer, {"residual": MinMax()}

    def __call__(self, event: Event) -> None:
        scope, op, _ = event.address
        if op == "add" or scope.endswith((".out", ".down")):
            self.seen["residual"].observe(event.exact)
        elif scope != "head":
            if (at := f"{scope}/{op}") not in self.seen:
                self.seen[at] = self.observer(SKEWED if op == "gelu" else PER_TENSOR)
            self.seen[at].observe(event.exact)

    def activation(self, at: str) -> Activation:
        observer = self.seen[at]
        (scale,), zero_point = scale_and_zero_point(*observer.range(), observer.scheme)
        return Activation(float(scale), 0 if zero_point is None else int(zero_point[0]), observer.scheme)

    def residual(self, limit: int) -> float:
        """The scale of the residual stream's codes. Finer than 1/800 of the root of a norm's eps would show nowhere."""
        (low,), (high,) = self.seen["residual"].range()
        return max(HEADROOM * float(max(-low, high)) / limit, 2.0**-18)


def observe(model: GPT, batches: Iterable[tuple], observer: Callable = MinMax) -> Ranges:
    """The ranges of a float32 model's activations over ids that are the first of each batch."""
    ranges = Ranges(observer)
    with model.ops.context.no_record(), watch(ranges):
        for number, (ids, *_) in enumerate(batches):
            model.ops.context.begin(0, number)
            model(ids)
    return ranges


def to_integers(model: GPT, how: Conversion, inputs: dict[str, np.ndarray], ranges: Ranges, rounding: str = "single",
                bits: int = RESIDUAL_BITS) -> tuple[IntegerGPT, list[Layer]]:
    """A float32 model in integers, and what became of each matrix. `inputs`: those of `calibrate`; bits: of the residual stream."""
    for weight in model.parameters():
        if weight.ndim == 2:
            check_range(weight, how, inputs.get(weight.name))
    work = Converter(IntegerGPT(model.shape, rounding, bits), how.make_scheme(), inputs, ranges)
    work.embeddings(model)
    for source, target in zip(model.blocks, work.target.blocks, strict=True):
        work.attention(source, target)
        work.mlp(source, target)
    work.head(model)
    return work.target, work.layers


class Converter:
    """Fills the arrays of an IntegerGPT, part by part."""

    def __init__(self, target: IntegerGPT, scheme: Scheme, inputs: dict[str, np.ndarray], ranges: Ranges):
        self.target, self.scheme, self.inputs, self.ranges, self.layers = target, scheme, inputs, ranges, []
        self.residual = Activation(ranges.residual(target.tokens.rescale.limit))

    def embeddings(self, model: GPT) -> None:
        for source, target in ((model.tokens, self.target.tokens), (model.positions, self.target.positions)):
            target.codes, scale = self.matrix(source.weight.data)
            put(target.rescale, scale / self.residual.scale)
        self.report("positions.weight", source.weight.data, target.codes * scale[:, None], target)

    def attention(self, source: Block, target: IntegerBlock) -> None:
        a, b = source.attention, target.attention
        x = self.norm(source.norm1, target.norm1)
        q, k, v = (self.linear(*pair, x) for pair in ((a.query, b.query), (a.key, b.key), (a.value, b.value)))
        mixed, D = self.ranges.activation(f"{a.place}/attention"), len(b.query.codes) // a.heads
        put(b.exponent, q.scale * k.scale / D**0.5 * 2.0**integer_ops.FRACTION)
        put(b.mixed, v.scale / mixed.scale / 2.0**b.FRACTION)
        self.linear(a.out, b.out, mixed, self.residual)

    def mlp(self, source: Block, target: IntegerBlock) -> None:
        a, b = source.mlp, target.mlp
        x = self.linear(a.up, b.up, self.norm(source.norm2, target.norm2))
        y = self.ranges.activation(f"{a.place}/gelu")
        b.gelu = gelu_table(x, y)
        self.linear(a.down, b.down, y, self.residual)

    def norm(self, source: LayerNorm, target: IntegerLayerNorm) -> Activation:
        """Layer norm by gain and shift; returns what its codes stand for."""
        y, C = self.ranges.activation(f"{source.place}/layer_norm"), source.gain.size
        target.eps = np.array(round(C * source.eps / self.residual.scale**2), np.int64)
        put(target.gain, wide(source.gain.data) * (C**0.5 / y.scale / 2.0**integer_ops.NORM_FRACTION))
        if source.shift is not None:
            target.shift = whole(wide(source.shift.data) / y.scale, 2**30)
        return y

    def linear(self, source: Linear, target: IntegerLinear, x: Activation, y: Activation | None = None) -> Activation:
        """A linear layer from codes x to codes y, by default those that the calibration text asks for; returns y."""
        y = y or self.ranges.activation(f"{source.place}/linear")
        target.codes, scale = self.matrix(source.weight.data)
        unit = scale * x.scale                                                 # (N,) f64: of the accumulator
        bias = np.float64(0) if source.bias is None else wide(source.bias.data)
        zero = x.zero_point * target.codes.sum(-1, dtype=np.int64)             # sum (x - z) w = sum x w - z sum w
        target.bias = whole(bias / unit - zero, HIGHEST - 2**14 * target.codes.shape[1])
        put(target.rescale, unit / y.scale)
        seen, weight = self.inputs[source.weight.name], source.weight.data
        self.report(source.weight.name, product(seen, weight.T) + bias, target(x.codes(seen)) * y.scale, target)
        return y

    def head(self, model: GPT) -> None:
        x, tokens, target = self.norm(model.norm, self.target.norm), self.target.tokens, self.target.head
        weight = model.tokens.weight
        _, scale = self.matrix(weight.data)
        self.target.logit_scale = np.array(x.scale * scale.max(), np.float32)
        put(target, x.scale * scale / self.target.logit_scale)
        seen = self.inputs[weight.name]
        found = target(integer_ops.product(x.codes(seen), tokens.codes.T)) * self.target.logit_scale
        self.report(weight.name, product(seen, weight.data.T), found, tokens, target)

    def matrix(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes (N,K) int8, and a scale (N,) float64 for each row, whatever the granularity."""
        made = quantize(weight, self.scheme)
        return made.codes, np.broadcast_to(wide(made.scale), len(weight))

    def report(self, name: str, exact: np.ndarray, found: np.ndarray, *parts: Module) -> None:
        """Note how far a layer's results are from float32's, inputs and results as codes, and what it takes in a file."""
        self.layers.append(Layer(name, sqnr_db(exact, found), sum(a.nbytes for part in parts for a in part.buffers().values())))


def put(target: Rescale, real) -> None:
    """A multiplier into its place, one for all channels where there is only one."""
    target.mantissa, target.shift = multiplier(np.broadcast_to(real, target.mantissa.shape))


def whole(values: np.ndarray, most: int) -> np.ndarray:
    """The nearest int32 of -most ... most."""
    return np.clip(np.rint(values), -most, most).astype(np.int32)


def wide(values: np.ndarray) -> np.ndarray:
    """As float64: a multiplier has 31 bits, seven more than float32."""
    return values.astype(np.float64)


def gelu_table(x: Activation, y: Activation) -> np.ndarray:
    """What GELU makes of each code -128 ... 127 of x, as codes of y: (256,) int8."""
    values = np.arange(-128, 128, dtype=np.float32) * np.float32(x.scale)
    return y.codes(RULES["gelu"].forward(np, values))
