"""Master weights: the parameter is a float32 array, and what the products see is a narrower copy, cast anew in each forward pass.

Without them an update below half an ulp of its weight is lost: in float16 as soon as |update / weight| < 2^-12, and never
above 2^-11. Micikevicius et al. 2018, arXiv 1710.03740, section 3.1.

A recipe without a master copy may write its weights in another way than to nearest: see minillm.optim.optimizer.
"""
import numpy as np

from minillm.autograd.context import Context
from minillm.autograd.rule import RULES
from minillm.autograd.tensor import Tensor, apply
from minillm.formats import Format
from minillm.rounding import round_to, widen


def working_copy(context: Context, parameter: Tensor, format: Format) -> Tensor:
    """The copy in `format` in which a parameter works in this forward pass: one cast, however often the parameter is used.

    It is a node of the graph: its vjp brings the cotangents of all uses back to the float32 master.
    """
    return context.once(parameter, format, lambda: apply(RULES["cast"], parameter, context=context, result=format))


def lost_share(log2_ratio: float, format: Format) -> float:
    """The share of weights that an update of 2^log2_ratio times its weight leaves as they are, rounded to nearest: what to expect.

    Weights are uniform in a binade. Those of 1 ... 2 lie 2^-p apart, p being the mantissa bits, so that an update r w is lost where
    it is below 2^-(p+1): for w < 2^-(p+1) / r. All are lost at r = 2^-(p+2), half of them at 2^-(p+1) / 1.5, none at 2^-(p+1).
    """
    return min(max(2.0 ** -(format.mantissa_bits + 1 + log2_ratio) - 1, 0.0), 1.0)


def measured_lost_share(log2_ratio: float, format: Format) -> float:
    """The same share, counted: over every weight of a format from 1 to 2, one rounding each."""
    weights = np.arange(2**format.mantissa_bits, 2 ** (format.mantissa_bits + 1), dtype=np.float32) * np.float32(format.eps)
    return lost_updates(weights, weights + weights * np.float32(2.0**log2_ratio), format)


def lost_updates(before: np.ndarray, after: np.ndarray, format: Format) -> float:
    """The share of weights for which weight + update, both as float32, rounds back to the weight in `format`.

    before, after: float32 arrays of one shape, the weight on the format's grid, and its exact new value. Weights whose update is 0
    count as kept.
    """
    rounded = widen(round_to(after, format), np.float32)
    return float(np.count_nonzero((rounded == before) & (after != before))) / max(before.size, 1)
