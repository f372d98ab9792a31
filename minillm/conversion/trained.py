"""The codes that training had: ternary weights, and int4 ones whose steps were learned, taken over as they are."""
import functools

import numpy as np

from minillm.autograd.rule import RULES
from minillm.autograd.tensor import Tensor
from minillm.formats import FLOAT16
from minillm.nn import Linear, Module, QuantizedMatrix
from minillm.quantization.affine import TERNARY, Scheme, as_scale, grid, quantize_with
from minillm.quantization.fake_quant import NormalizedFake, Ternary, shared_steps, steps_of, ternary_scale


def trained_ternary(model: Module) -> bool:
    """Whether the recipe has ternary weights somewhere: their float32 masters alone are no model."""
    return any(isinstance(quantizer, Ternary) for quantizer in model.ops.recipe.quantizers.values())


def ternary_matrix(model: Module, weight: Tensor) -> QuantizedMatrix | None:
    """The codes that training had of the weight of a linear layer; None where the recipe leaves it alone.

    They are stored in two bits. Five of them would go into a byte, 3^5 = 243, for a fifth less.
    """
    place = weight.name.removesuffix(".weight")
    layer = functools.reduce(getattr, place.split("."), model)
    of_inputs, of_weight = model.ops.plan(RULES["linear"], place, 2).quantizers[:2]
    if not (isinstance(layer, Linear) and isinstance(of_weight, Ternary)):
        return None
    scale = np.asarray(ternary_scale(np, weight.data))                         # () f32
    codes = quantize_with(weight.data, scale, None, Scheme(TERNARY))
    return QuantizedMatrix(codes, int8=of_inputs is not None, normalized=isinstance(of_inputs, NormalizedFake))


def learned_steps(model: Module, weight: Tensor) -> np.ndarray | None:
    """The steps (S,) that training had of a weight, where it has learned such."""
    learned, highest = model.ops.learned, grid(4, narrow=False).highest
    if f"{weight.name}.log_share" in learned:
        return shared_steps(np, weight.data, learned[f"{weight.name}.log_share"].data, highest).ravel()
    return steps_of(learned[f"{weight.name}.log_step"].data) if f"{weight.name}.log_step" in learned else None


def learned_matrix(weight: np.ndarray, steps: np.ndarray) -> QuantizedMatrix:
    """The codes that training with learned int4 steps (S,) had, the steps rounded to float16: by 2^-11 of themselves at most."""
    per_row = len(steps) // len(weight)
    scheme = Scheme(grid(4, narrow=False), granularity="group", group=weight.shape[1] // per_row, scale_format=FLOAT16)
    return QuantizedMatrix(quantize_with(weight, as_scale(steps, 8, FLOAT16), None, scheme))
