"""Which compiled kernel stands beside which rule. A kernel stands in for a rule, it does not redefine it.

A forward kernel takes the arrays as they are stored, the rule's static arguments, and `out`, the type of its result: float32 for
the exact values, float16 for the same values rounded once on their way to memory. A vjp kernel takes the cotangent and what the
rule's vjp names, as stored, and returns float32 cotangents, because they may still have to be summed.
"""
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minillm import kernels
from minillm.autograd.rules.products import FLOAT32_PRODUCTS


def always(static, arrays) -> bool:
    return True


def plain_causal(static, arrays) -> bool:
    """Attention as a GPT is trained with it: causal, no mask, queries, keys and values of one shape, float32 products."""
    one_shape = arrays["q"].shape == arrays["k"].shape == arrays["v"].shape and arrays["q"].shape[-1] % static["heads"] == 0
    return one_shape and static["causal"] and arrays.get("mask") is None and static["products"] is FLOAT32_PRODUCTS


def plain_products(static, arrays) -> bool:
    """Products in float32 whose batches, if the right operand has one, are those of the left."""
    x, z = arrays["x"], arrays.get("z")
    return static["products"] is FLOAT32_PRODUCTS and (z is None or z.ndim <= 2 or x.shape[:-2] == z.shape[:-2])


@dataclass(frozen=True)
class Kernel:
    """The names of a rule's two kernels in a module of the kernels room, looked up on first use, and what they can serve."""

    room: str
    name: str
    serves: Callable = always

    @property
    def forward(self) -> Callable:
        return getattr(kernels.load(self.room), self.name)

    @property
    def vjp(self) -> Callable:
        return getattr(kernels.load(self.room), f"{self.name}_vjp")


KERNELS = {
    "gelu": Kernel("elementwise", "gelu"),
    "layer_norm": Kernel("rowwise", "layer_norm"),
    "matmul": Kernel("products", "matmul", plain_products),
    "linear": Kernel("products", "linear", plain_products),
    "attention": Kernel("attention", "attention", plain_causal),
}


def kernel_for(rule, compute, static: dict, arrays: dict) -> Kernel | None:
    """The kernel of a rule if it can serve these arrays (by input name): NumPy's, computed in float32, at least one value."""
    kernel = KERNELS.get(rule.name)
    if kernel is None or compute is not np.float32 or not kernels.enabled() or not kernel.serves(static, arrays):
        return None
    return kernel if all(type(a) is np.ndarray and a.size for a in arrays.values() if a is not None) else None
