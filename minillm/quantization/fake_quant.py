"""Fake quantization: in training a value is replaced by the one that its code stands for, and the gradient goes straight through.

Rounding has no slope, so the vjp is that of leaving it out (Bengio et al. 2013, arXiv 1308.3432): the straight-through estimator.
A rule here sees an input as `rows` equal runs of values in memory, each with a scale of its own: 1 for the whole tensor, N for the
rows of a matrix (N,K), N K / group for groups. Quotients are float32, so that beside a tie a code may differ from a conversion's.

A quantizer stands in a recipe in front of an op's input: (ops, x, name) -> x.
"""
import math
from dataclasses import dataclass

import numpy as np

from minillm.autograd.rule import RULES, rule
from minillm.autograd.tensor import Tensor, apply
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32
from minillm.quantization.affine import Grid, Scheme

LEAST = FLOAT32.tiny       # of a scale that is divided by: a normal number
FASTER = 30                # a learned share moves by 30 times the learning rate: 3 % of itself in a step of 0.001


@rule
def fake_quantize(xp, x, *, lowest, highest, rows, symmetric=True):           # each row's range is the one that it has now
    v = x.reshape(rows, x.size // max(rows, 1))
    low, high = xp.minimum(v.min(-1, keepdims=True, initial=0), 0), xp.maximum(v.max(-1, keepdims=True, initial=0), 0)
    span = xp.maximum(-low, high) / highest if symmetric else high / (highest - lowest) - low / (highest - lowest)
    scale = xp.where(span > 0, xp.maximum(span, LEAST), 1)
    zero = 0 if symmetric else xp.clip(xp.rint(lowest - low / scale), lowest, highest)
    return ((xp.clip(xp.rint(v / scale + zero), lowest, highest) - zero) * scale).reshape(x.shape)


@fake_quantize.vjp
def _(xp, g):                      # nothing lies beyond its own range, so nothing is clipped and nothing is kept
    return (g,)


@rule(wide=("step",))
def lsq(xp, x, step, *, lowest, highest):                                     # Esser et al. 2019, arXiv 1902.08153, equations 1, 2
    steps = step.reshape(-1, 1)
    v = x.reshape(step.size, x.size // max(step.size, 1)) / steps
    return (xp.clip(xp.rint(v), lowest, highest) * steps).reshape(x.shape)


@lsq.vjp
def _(xp, g, x, step, *, lowest, highest):                                    # equations 3 and 5, and section 2.2's gradient scale
    steps = step.reshape(-1, 1)
    rows, v = (a.reshape(step.size, a.size // max(step.size, 1)) for a in (g, x))
    v = v / steps
    inside = (v > lowest) & (v < highest)
    slope = xp.where(inside, xp.rint(v) - v, xp.clip(v, lowest, highest))
    scale = 1 / math.sqrt(max(rows.shape[1], 1) * highest)
    return (rows * inside).reshape(g.shape), ((rows * slope).sum(-1, dtype=g.dtype) * scale).reshape(step.shape)


@rule(wide=("log_share",))
def share_of_range(xp, x, log_share, *, lowest, highest):                     # a step as LSQ learns it, but of the row's own range
    steps = shared_steps(xp, x, log_share, highest)
    v = x.reshape(steps.size, x.size // max(steps.size, 1)) / steps
    return (xp.clip(xp.rint(v), lowest, highest) * steps).reshape(x.shape)


@share_of_range.vjp
def _(xp, g, x, log_share, *, lowest, highest):       # as of lsq, but what is clipped keeps its gradient: it may be the row's range
    steps = shared_steps(xp, x, log_share, highest)
    rows, v = (a.reshape(steps.size, a.size // max(steps.size, 1)) for a in (g, x))
    v = v / steps
    slope = xp.where((v >= lowest) & (v <= highest), xp.rint(v) - v, xp.clip(v, lowest, highest))
    scale = FASTER / math.sqrt(max(rows.shape[1], 1) * highest)
    return g, ((rows * slope).sum(-1, dtype=g.dtype, keepdims=True) * steps * scale).reshape(log_share.shape)


def shared_steps(xp, x, log_share, highest):
    """The steps (S,1) of the rows of x: max|row| / highest, times the share whose logarithm is FASTER log_share."""
    rows = x.reshape(log_share.size, x.size // max(log_share.size, 1))
    span = abs(rows).max(-1, keepdims=True, initial=0) / highest
    return xp.where(span > 0, xp.maximum(span, LEAST), 1) * xp.exp(FASTER * log_share).reshape(-1, 1)


@rule
def ternarize(xp, x):              # -1, 0 or 1 times the mean of |x|. Ma et al. 2024, arXiv 2402.17764, equations 1 to 3
    scale = ternary_scale(xp, x)
    return xp.clip(xp.rint(x / scale), -1, 1) * scale


@ternarize.vjp
def _(xp, g):
    return (g,)


def ternary_scale(xp, x):
    """The mean of |x|, at least 1e-5."""
    return xp.maximum(abs(x).sum(dtype=x.dtype) / max(x.size, 1), 1e-5)


def count_of(x: Tensor, scheme: Scheme, name: str) -> int:
    """How many runs of x have a scale of their own; a row shorter than a group is one.

    MiniLLMError for groups that do not divide longer rows.
    """
    if scheme.granularity == "group" and x.shape[-1] % min(scheme.group, x.shape[-1] or 1):
        raise MiniLLMError(f"{name} has rows of {x.shape[-1]}, which groups of {scheme.group} do not divide: choose channels that "
                           "they divide, or a quantizer by row")
    return math.prod(scheme.scale_shape(x.shape))


@dataclass(frozen=True)
class Fake:
    """Codes on the range that the values have now, by the scheme's granularity; weights once a forward pass."""

    scheme: Scheme

    def __call__(self, ops, x: Tensor, name: str) -> Tensor:
        grid = self.scheme.grid

        def make():
            return apply(RULES["fake_quantize"], x, context=ops.context, lowest=grid.lowest, highest=grid.highest,
                         rows=count_of(x, self.scheme, name), symmetric=self.scheme.symmetric)
        return ops.context.once(x, self, make)


@dataclass(frozen=True)
class Lsq:
    """Codes with steps that are learned, one for each run of the scheme, made from the first values that come along.

    What is learned is the logarithm of a step, in a leaf (S,) float32 named after what it is of: Adam changes every parameter by
    about its learning rate, 0.001, which is a tenth of a step of int4 weights, and 0.1 % of it so. Jain et al. 2019,
    arXiv 1903.08066, section 3.3.
    """

    scheme: Scheme

    def __call__(self, ops, x: Tensor, name: str) -> Tensor:
        grid, at = self.scheme.grid, f"{x.name or name}.log_step"              # a tied table has one set of steps
        if at not in ops.learned:
            steps = first_steps(x.data, self.scheme, count_of(x, self.scheme, name))
            ops.learned[at] = Tensor(np.log(steps), FLOAT32, name=at)

        def make():
            step = apply(RULES["exp"], ops.learned[at], context=ops.context)   # (S,) f32
            return apply(RULES["lsq"], x, step, context=ops.context, lowest=grid.lowest, highest=grid.highest)
        return ops.context.once(x, self, make)


@dataclass(frozen=True)
class LearnedRange:
    """Codes whose grid spans a learned share of the range that the values have now, a share for each run of the scheme.

    Learned is the logarithm of a share, in a leaf (S,) float32; it begins at 0, where nothing is clipped, and has LSQ's slope of a
    step. LSQ's own steps lag behind weights that grow, and what they clip has no gradient. GPTs of 2 x 128, nats above float32
    after as many steps, means of three seeds: 400 steps from the start with LSQ +0.017, with shares +0.013; 100 steps more of a
    float32 run with LSQ +0.0097 (one seed), with shares +0.0004, where converting it lost +0.0033 (GPTQ) to +0.0061 (AWQ).
    Shao et al. 2023, arXiv 2308.13137, section 3.2, learn such shares of a model trained already.
    """

    scheme: Scheme

    def __call__(self, ops, x: Tensor, name: str) -> Tensor:
        grid, at = self.scheme.grid, f"{x.name or name}.log_share"
        if at not in ops.learned:
            ops.learned[at] = Tensor(np.zeros(count_of(x, self.scheme, name), np.float32), FLOAT32, name=at)

        def make():
            return apply(RULES["share_of_range"], x, ops.learned[at], context=ops.context, lowest=grid.lowest, highest=grid.highest)
        return ops.context.once(x, self, make)


def steps_of(learned: np.ndarray) -> np.ndarray:
    """The steps that a leaf stands for, (S,) float32."""
    return np.exp(learned)


def first_steps(x: np.ndarray, scheme: Scheme, rows: int) -> np.ndarray:
    """2 mean|x| / sqrt(highest) of each run, (S,) float32, 1 for zeros. Esser et al. 2019, section 2.1."""
    mean = abs(x.reshape(rows, x.size // max(rows, 1))).sum(-1, dtype=np.float32) / np.float32(max(x.size // max(rows, 1), 1))
    steps = 2 * mean / np.float32(math.sqrt(scheme.grid.highest))
    return np.where(steps == 0, np.float32(1), np.maximum(steps, np.float32(LEAST)))       # not finite where x is not


@dataclass(frozen=True)
class Ternary:
    """Weights of three values, -s, 0, s."""

    def __call__(self, ops, x: Tensor, name: str) -> Tensor:
        return ops.context.once(x, self, lambda: apply(RULES["ternarize"], x, context=ops.context))


@dataclass(frozen=True)
class NormalizedFake:
    """Each row to a root mean square of 1, and then codes: what stands beside a ternary weight."""

    scheme: Scheme

    def __call__(self, ops, x: Tensor, name: str) -> Tensor:
        return Fake(self.scheme)(ops, unit_rows(ops, x), name)


def unit_rows(ops, x: Tensor) -> Tensor:
    """Each row to a root mean square of 1, without a gain."""
    return apply(RULES["rms_norm"], x, Tensor(np.ones(x.shape[-1], np.float32), FLOAT32), context=ops.context)


def by_token(grid: Grid) -> Scheme:
    return Scheme(grid, granularity="token")
