"""Which compiled kernel stands beside which rule. A kernel stands in for a rule, it does not redefine it.

A forward kernel takes the arrays as they are stored, the rule's static arguments, and `out`, the type of its result: float32 for
the exact values, float16 for the same values rounded once on their way to memory. A vjp kernel takes the cotangent, what the
rule's vjp names, as stored, and `out`, a type for each input: float32, for cotangents that may still have to be summed, or float16
likewise.
"""
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minillm import kernels
from minillm.autograd.rules.products import FLOAT32_PRODUCTS


def always(static, *arrays) -> bool:
    return True


def plain_attention(static, q, k, v, mask=None) -> bool:
    """Attention within a sequence or from one to another, with a mask of keys or none, float32 products."""
    fits = q.ndim == 3 and k.shape == v.shape == (q.shape[0], v.shape[1], q.shape[2]) and q.shape[-1] % static["heads"] == 0
    return fits and static["products"] is FLOAT32_PRODUCTS and (mask is None or masks_keys(mask, k))


def masks_keys(mask, k) -> bool:
    """A mask (B,1,1,Tk) or (1,1,1,Tk): for each key of a row whether the row's queries see it."""
    B, Tk, _ = k.shape
    return mask.dtype == bool and mask.shape in ((B, 1, 1, Tk), (1, 1, 1, Tk))


def in_range(ids, end) -> bool:
    """Signed whole numbers from 0 to end - 1; what else there may be, the rule refuses or knows."""
    return ids.dtype.kind == "i" and (not ids.size or bool(ids.min() >= 0 and ids.max() < end))


def rows_of_the_table(static, weight, ids) -> bool:
    return in_range(ids, weight.shape[0])


def classes(static, logits, targets) -> bool:
    """Targets that fit the logits and are classes, at least one that counts."""
    counted = targets if static["ignore"] is None else targets[targets != static["ignore"]]
    return targets.shape == logits.shape[:-1] and counted.size > 0 and in_range(counted, logits.shape[-1])


def plain_products(static, x, z, bias=None) -> bool:
    """Products in float32 whose batches, if the right operand has one, are those of the left."""
    return static["products"] is FLOAT32_PRODUCTS and (z.ndim <= 2 or x.shape[:-2] == z.shape[:-2])


def ends_alike(static, x, z) -> bool:
    """A residual, or what is added to each of the rows, sequences or batches of x: a bias, positions."""
    return x.shape[x.ndim - z.ndim:] == z.shape


def last_axis(static, x, mask=None) -> bool:
    """Rows as they lie in memory, and a mask, if there is one, that spreads over them and not they over it."""
    shape, spread = x.shape, () if mask is None else mask.shape
    fits = len(spread) <= len(shape) and all(m in (1, n) for m, n in zip(spread[::-1], shape[::-1], strict=False))
    return len(shape) > 0 and static["axis"] in (-1, len(shape) - 1) and fits


@dataclass(frozen=True)
class Kernel:
    """The names of a rule's two kernels in a module of the kernels room, looked up on first use, and what they can serve."""

    room: str
    name: str
    serves: Callable = always

    @cached_property
    def forward(self) -> Callable:
        return getattr(kernels.load(self.room), self.name)

    @cached_property
    def vjp(self) -> Callable:
        return getattr(kernels.load(self.room), f"{self.name}_vjp")


KERNELS = {
    "gelu": Kernel("elementwise", "gelu"),
    "cast": Kernel("elementwise", "cast"),
    "add": Kernel("columns", "add", ends_alike),
    "layer_norm": Kernel("rowwise", "layer_norm"),
    "matmul": Kernel("products", "matmul", plain_products),
    "linear": Kernel("products", "linear", plain_products),
    "rms_norm": Kernel("rowwise", "rms_norm"),
    "softmax": Kernel("softmax", "softmax", last_axis),
    "log_softmax": Kernel("softmax", "log_softmax", last_axis),
    "attention": Kernel("attention", "attention", plain_attention),
    "cross_entropy": Kernel("losses", "cross_entropy", classes),
    "embedding": Kernel("embedding", "embedding", rows_of_the_table),
    "dropout": Kernel("dropout", "dropout"),
}


def kernel_for(rule, compute, static: dict, arrays) -> Kernel | None:
    """The kernel of a rule if it can serve these inputs: NumPy's arrays, computed in float32, at least one value."""
    kernel = KERNELS.get(rule.name)
    if kernel is None or compute is not np.float32 or not kernels.enabled():
        return None
    for a in arrays:
        if a is not None and not (type(a) is np.ndarray and a.size):
            return None
    return kernel if kernel.serves is always or kernel.serves(static, *arrays) else None
