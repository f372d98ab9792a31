"""A trained model as codes: every matrix of it by one method, and what became of each."""
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minillm.autograd.tensor import Tensor
from minillm.conversion.awq import awq
from minillm.conversion.gptq import gptq
from minillm.conversion.int8_model import replace_matrices, under
from minillm.conversion.outliers import decompose
from minillm.conversion.rounding import check_finite, round_to_nearest
from minillm.conversion.smoothquant import smoothquant
from minillm.conversion.trained import learned_matrix, learned_steps, ternary_matrix, trained_ternary
from minillm.errors import MiniLLMError, unknown
from minillm.formats import FLOAT16, FLOAT32
from minillm.kernels import product
from minillm.nn import Module, QuantizedMatrix
from minillm.quantization.affine import Scheme, grid
from minillm.quantization.error import error_of, sqnr_db
from minillm.recipes import PRESETS

BITS = {f"int{bits}": bits for bits in range(8, 1, -1)} | {"ternary": 2}
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
LARGEST = 1e8              # of weights and inputs: their products can be squared and summed in float32
LEAST_ERROR = ("gptq", "gptq-act", "awq")                # they look for the least error of a layer's outputs


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
    worst_steps: float = 0.0       # the largest error of a weight, in scales
    clipped: float = 0.0           # the share of weights beyond the grid
    left: str = ""                 # why it stays in float32


def convert(model: Module, how: Conversion, inputs: dict[str, np.ndarray]) -> tuple[Module, list[Layer]]:
    """A copy of a model with codes in place of its matrices, and what became of each. `inputs`: those of `calibrate`."""
    layers = []

    def matrix_of(weight: Tensor) -> QuantizedMatrix | None:
        seen, ternary = inputs.get(weight.name), trained_ternary(model)
        check_range(weight, how, seen)
        matrix = ternary_matrix(model, weight) if ternary else one_matrix(model, weight, how, seen)
        left = "as in training" if ternary else f"fewer than {LEAST_SIZE:,} values"
        layers.append(layer_of(weight, matrix, seen) if matrix else Layer(weight.name, math.inf, weight.data.nbytes, left=left))
        return matrix

    return replace_matrices(under(model, PRESETS["float32"]), matrix_of), layers


def check_range(weight: Tensor, how: Conversion, inputs: np.ndarray | None) -> None:
    """MiniLLMError for weights and inputs that are not finite, or so large that beside them all others become 0."""
    check_finite(weight.data)
    largest = float(np.abs(weight.data).max(initial=0))
    for what, most in (("a weight", largest), ("an input", 0 if inputs is None else float(np.abs(inputs).max(initial=0)))):
        if most > LARGEST:
            raise MiniLLMError(f"{what} of {weight.name} is {most:g}, and beside it all others that share its scale become 0: "
                               "look for what made it so large")
    scheme = how.make_scheme()
    if largest / scheme.grid.highest > scheme.scale_format.max:
        raise MiniLLMError(f"{weight.name} holds {largest:g}, beyond {scheme.scale_format.name} scales of {how.scheme} by "
                           f"{how.granularity}: take --granularity channel, or look for what made it so large")


def one_matrix(model: Module, weight: Tensor, how: Conversion, inputs: np.ndarray | None) -> QuantizedMatrix | None:
    """What stands in for a matrix; None: it stays. Training's own steps are taken over, where it has learned such."""
    scheme, steps = how.make_scheme(), learned_steps(model, weight) if how.scheme == "int4" and how.method == "rtn" else None
    if steps is not None:
        return learned_matrix(weight.data, steps)
    if inputs is None and how.method != "dynamic":           # positions: nothing is multiplied by them
        return round_to_nearest(weight.data, weight.data, scheme)
    tied = weight.name == model.tokens.weight.name and how.method in LEAST_ERROR
    return METHODS[how.method](weight.data, both_uses(inputs) if tied else inputs, scheme)


def both_uses(inputs: np.ndarray) -> np.ndarray:
    """Inputs of a head (n,K), and K more for its table's other use: as an embedding it puts out its rows as they are.

    There every error of a row counts alike, as if inputs were a multiple of the unit vectors. Both uses get the same sum of
    squares. Without it GPTQ bends rows to the head's inputs and spoils the embedding: 2 x 128, 3 bits by groups of 32, mean of 3
    seeds: rounding +0.0179 nats, GPTQ for the head alone +0.0202, for both uses +0.0150.
    """
    K = inputs.shape[1]
    return np.concatenate([inputs, np.sqrt((inputs**2).sum(dtype=np.float32) / np.float32(K)) * np.eye(K, dtype=np.float32)])


def layer_of(weight: Tensor, matrix: QuantizedMatrix, inputs: np.ndarray | None) -> Layer:
    """The error of a matrix: of its outputs, and of its codes, which stand for the weights times `divide` without outliers."""
    coded = weight.data if matrix.divide is None else weight.data * matrix.divide
    if matrix.outliers is not None:
        coded = coded.copy()
        coded[:, matrix.outliers] = 0
    error = error_of(coded, matrix.weight)
    return Layer(weight.name, quality(matrix, weight.data, inputs), matrix.nbytes, error.worst_steps, error.clipped)


def quality(matrix: QuantizedMatrix, weight: np.ndarray, inputs: np.ndarray | None) -> float:
    """Signal over noise in dB, of outputs where there are inputs."""
    if inputs is None:
        return sqnr_db(weight, matrix.values())
    return sqnr_db(product(inputs, weight.T), matrix.apply(inputs))
