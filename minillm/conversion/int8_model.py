"""A trained model as it generates: with its weights in float32, in float16, or as int8 codes for int8 products."""
from collections.abc import Callable

import numpy as np

from minillm.autograd.tensor import Tensor
from minillm.conversion.rounding import round_to_nearest
from minillm.conversion.trained import trained_ternary
from minillm.errors import MiniLLMError, unknown
from minillm.formats import Format
from minillm.nn import Embedding, Linear, Module, QuantizedEmbedding, QuantizedLinear, QuantizedMatrix
from minillm.precision.recipe import Recipe
from minillm.quantization.affine import PER_ROW
from minillm.recipes import PRESETS
from minillm.rounding import round_to, widen

WEIGHTS = {"float32": PRESETS["float32"], "float16": PRESETS["float16-no-master"], "int8": PRESETS["float32"]}


def in_weights(model: Module, name: str) -> Module:
    """A copy of the model with its weights in float32, float16 or int8, to generate from.

    With float16 weights activations are float16, too; with int8 weights they are float32, and become int8 codes on their way into
    each product. MiniLLMError for another name, and for weights that float16 or int8 cannot hold.
    """
    if name not in WEIGHTS:
        raise unknown("weights", name, WEIGHTS)
    if trained_ternary(model):
        raise MiniLLMError(f"recipe {model.ops.recipe.name} has ternary weights, and of its inputs it makes codes: sample without "
                           "--weights, or from what minillm quantize --scheme ternary makes of it")
    copy = under(model, WEIGHTS[name])
    return to_int8(copy) if name == "int8" else copy


def under(model: Module, recipe: Recipe) -> Module:
    """A copy of a model, made by its own class, under another recipe, each parameter rounded once into that recipe's format."""
    copy = type(model)(model.shape, recipe)
    copy.load_state_dict(state_in(model, recipe.parameters))
    return copy


def state_in(model: Module, format: Format) -> dict[str, np.ndarray]:
    """Every parameter by name, rounded once into a format. MiniLLMError for one that it cannot hold."""
    state = {}
    for p in model.parameters():
        with np.errstate(over="ignore"):
            state[p.name] = round_to(widen(p.data, np.float32), format)
        if np.isinf(state[p.name]).any() and np.isfinite(p.data).all():
            raise MiniLLMError(f"{p.name} has weights beyond {format.max:g}, {format.name}'s largest: "
                               "take float32 or int8 weights")
    return state


def to_int8(module: Module) -> Module:
    """Put codes in place of every matrix below a float32 module: linear layers, embeddings and the tied head."""
    return replace_matrices(module, lambda weight: round_to_nearest(weight.data, weight.data, PER_ROW))


def replace_matrices(module: Module, matrix_of: Callable[[Tensor], QuantizedMatrix | None]) -> Module:
    """Put layers of codes in place of linear layers and embeddings, by what `matrix_of` makes of their weights; None: leave it."""
    for key, part in list(module.parts()):
        if isinstance(part, Linear | Embedding):
            if (matrix := matrix_of(part.weight)) is not None:
                setattr(module, key, QuantizedLinear(part.ops, matrix, part.bias) if isinstance(part, Linear)
                        else QuantizedEmbedding(part.ops, matrix))
        elif isinstance(part, Module):
            replace_matrices(part, matrix_of)
    return module


def weight_bytes(model: Module) -> int:
    """What its weights take in memory: parameters, codes and scales, a tied one once."""
    return sum(array.nbytes for array in model.state_dict().values())
