"""A trained model as codes: every matrix of it by one method, and what became of each."""
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minillm.autograd.rule import RULES
from minillm.autograd.tensor import Tensor
from minillm.conversion.awq import awq
from minillm.conversion.gptq import gptq
from minillm.conversion.int8_model import replace_matrices, under
from minillm.conversion.outliers import decompose
from minillm.conversion.rounding import check_finite, round_to_nearest
from minillm.conversion.smoothquant import smoothquant
from minillm.errors import MiniLLMError, unknown
from minillm.formats import FLOAT16, FLOAT32
from minillm.kernels import product
from minillm.nn import Linear, Module, QuantizedMatrix
from minillm.quantization.affine import TERNARY, Scheme, as_scale, grid, quantize_with
from minillm.quantization.error import sqnr_db
from minillm.quantization.fake_quant import NormalizedFake, Ternary, shared_steps, steps_of, ternary_scale
from minillm.recipes import PRESETS

BITS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2, "ternary": 2}
GRANULARITIES = ("tensor", "channel", "group")
LEAST_SIZE = 1024          # of a matrix that the method "dynamic" converts, as TensorFlow Lite's converter has it


def by_size(weight: np.ndarray, inputs: np.ndarray, scheme: Scheme) -> QuantizedMatrix | None:
    """Rounding, and inputs as codes on the fly; a matrix of fewer than 1,024 values stays as it is."""
    return round_to_nearest(weight, inputs, scheme) if weight.size >= LEAST_SIZE else None


def in_order(weight: np.ndarray, inputs: np.ndarray, scheme: Scheme) -> QuantizedMatrix:
    """GPTQ, columns of the largest inputs first."""
    return gptq(weight, inputs, scheme, activation_order=True)


METHODS: dict[str, Callable] = {"rtn": round_to_nearest, "gptq": gptq, "gptq-act": in_order, "awq": awq, "smoothquant": smoothquant,
                                "outliers": decompose, "dynamic": by_size}
FULL_INTEGER = "full-integer"                            # of the whole model, not of one matrix: conversion/integer_model.py
INT8_ONLY = ("smoothquant", "outliers", "dynamic", FULL_INTEGER)       # they are about inputs as int8 codes
CALIBRATED = ("gptq", "gptq-act", "awq", "smoothquant", "outliers", FULL_INTEGER)


@dataclass(frozen=True)
class Conversion:
    """What to convert to, and how: names as on the command line."""

    scheme: str = "int8"
    method: str = "rtn"
    granularity: str = "channel"
    group: int = 32

    def __post_init__(self):
        for kind, value, known in (("scheme", self.scheme, BITS), ("method", self.method, (*METHODS, FULL_INTEGER)),
                                   ("granularity", self.granularity, GRANULARITIES)):
            if value not in known:
                raise unknown(kind, value, known)
        if self.method in INT8_ONLY and (self.scheme != "int8" or self.granularity == "group"):
            raise MiniLLMError(f"--method {self.method} multiplies int8 codes, which {self.scheme} by {self.granularity} does not "
                               "give: take --scheme int8 by tensor or channel, or another method")
        self.make_scheme()

    def make_scheme(self) -> Scheme:
        """int8 is symmetric, so that products of codes need no zero point, and so is ternary; others use every code there is."""
        symmetric = self.scheme in ("int8", "ternary")
        return Scheme(grid(BITS[self.scheme], narrow=symmetric), symmetric, self.granularity, group=self.group,
                      scale_format=FLOAT16 if self.granularity == "group" else FLOAT32)


@dataclass(frozen=True)
class Layer:
    """What became of a matrix: signal over noise of its outputs on the calibration text (of its values, where it has no inputs)."""

    name: str
    sqnr_db: float
    bytes: int
    left: str = ""         # why it stays in float32


def convert(model: Module, how: Conversion, inputs: dict[str, np.ndarray]) -> tuple[Module, list[Layer]]:
    """A copy of a model with codes in place of its matrices, and what became of each. `inputs`: those of `calibrate`."""
    layers = []

    def matrix_of(weight: Tensor) -> QuantizedMatrix | None:
        check_finite(weight.data)
        seen, ternary = inputs.get(weight.name), trained_ternary(model)
        matrix = ternary_matrix(model, weight) if ternary else one_matrix(model, weight, how, seen)
        left = "as in training" if ternary else f"fewer than {LEAST_SIZE:,} values"
        layers.append(Layer(weight.name, quality(matrix, weight.data, seen), matrix.nbytes) if matrix else
                      Layer(weight.name, math.inf, weight.data.nbytes, left))
        return matrix

    return replace_matrices(under(model, PRESETS["float32"]), matrix_of), layers


def one_matrix(model: Module, weight: Tensor, how: Conversion, inputs: np.ndarray | None) -> QuantizedMatrix | None:
    """What stands in for a matrix; None: it stays. Training's own steps are taken over, where it has learned such."""
    scheme, steps = how.make_scheme(), learned_steps(model, weight) if how.scheme == "int4" and how.method == "rtn" else None
    if steps is not None:
        return learned_matrix(weight.data, steps)
    if inputs is None and how.method != "dynamic":           # positions: nothing is multiplied by them
        return round_to_nearest(weight.data, weight.data, scheme)
    return METHODS[how.method](weight.data, inputs, scheme)


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


def quality(matrix: QuantizedMatrix, weight: np.ndarray, inputs: np.ndarray | None) -> float:
    """Signal over noise in dB, of outputs where there are inputs."""
    if inputs is None:
        return sqnr_db(weight, matrix.values())
    return sqnr_db(product(inputs, weight.T), matrix.apply(inputs))
