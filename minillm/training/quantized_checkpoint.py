"""A model of codes in one safetensors file: int8 as it is, narrower codes packed, and beside them what is no matrix."""
import json
from dataclasses import asdict

import numpy as np

from minillm.autograd.tensor import Tensor
from minillm.conversion.int8_model import replace_matrices
from minillm.errors import MiniLLMError
from minillm.formats import format_named
from minillm.models.gpt import GPT, GPTShape
from minillm.models.integer_gpt import IntegerGPT
from minillm.nn import QuantizedMatrix, quantized_layers
from minillm.quantization.affine import Grid, Quantized, Scheme
from minillm.quantization.packing import pack, unpack
from minillm.training.checkpoint import VERSION, as_file, part


def quantized_file(model: GPT, how: dict) -> bytes:
    """The file's content. `how`: the conversion by its names."""
    arrays, layers = model.state_dict(), {}
    for name, layer in quantized_layers(model).items():
        layers[name] = {"shape": layer.codes.shape, "int8": layer.int8, "normalized": layer.normalized,
                        "scheme": scheme_to_json(layer.scheme)}
        if layer.scheme.grid.bits < 8:
            arrays[f"{name}.codes"] = pack(layer.codes, layer.scheme.grid)
    facts = {"version": VERSION, "shape": asdict(model.shape), "quantized": how, "layers": layers}
    return as_file({f"model/{name}": a for name, a in arrays.items()}, facts)


def integer_file(model: IntegerGPT, how: dict) -> bytes:
    """The same of a model in integers: codes, biases, multipliers, tables."""
    facts = {"version": VERSION, "shape": asdict(model.shape), "quantized": how,
             "integer": {"rounding": model.rounding, "bits": model.bits}}
    return as_file({f"model/{name}": a for name, a in model.state_dict().items()}, facts)


def load_integer(shape: GPTShape, arrays: dict[str, np.ndarray], facts: dict) -> IntegerGPT:
    """A model in integers from its file. MiniLLMError where it is of another shape."""
    model = IntegerGPT(shape, **facts["integer"])
    model.load_state_dict(part(arrays, "model/"))
    return model


def float32_bytes(model: GPT) -> int:
    """What a file of the same model takes with every parameter in float32."""
    arrays = {f"model/{p.name}": p.data.astype(np.float32) for p in model.parameters()}
    return len(as_file(arrays, {"version": VERSION, "shape": asdict(model.shape)}))


def load_quantized(model: GPT, arrays: dict[str, np.ndarray], facts: dict) -> GPT:
    """A float32 model with the file's codes in place of its matrices; everything else is taken over, too."""
    arrays = dict(part(arrays, "model/"))
    if facts.get("shape") != json.loads(json.dumps(asdict(model.shape))):              # a file has lists for tuples
        raise damaged("a model", f"it is of shape {facts.get('shape')}, the run's configuration says {asdict(model.shape)}")

    def matrix_of(weight: Tensor) -> QuantizedMatrix | None:
        name = weight.name.removesuffix(".weight")
        if name not in facts.get("layers", {}):
            return None
        try:
            matrix = matrix_in(name, weight.shape, facts["layers"][name], part(arrays, f"{name}."))
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(name, f"{error} is missing or wrong") from error
        arrays[f"{name}.codes"] = matrix.weight.codes
        return matrix

    replace_matrices(model, matrix_of)
    model.load_state_dict(arrays)
    return model


def matrix_in(name: str, shape: tuple[int, ...], layer: dict, own: dict[str, np.ndarray]) -> QuantizedMatrix:
    """The matrix of one layer from its facts and arrays; MiniLLMError where they do not fit each other or the model."""
    scheme = scheme_from_json(layer["scheme"])
    if tuple(layer["shape"]) != shape:
        raise damaged(name, f"codes of shape {tuple(layer['shape'])}, the model has {shape}")
    codes = unpack(own["codes"], scheme.grid, shape) if scheme.grid.bits < 8 else own["codes"]
    N, K = shape
    k = own["outliers"].shape if "outliers" in own else (0,)
    wanted = {"codes": (codes, np.int8, shape), "scale": (own["scale"], scheme.scale_format.storage, scheme.scale_shape(shape)),
              "zero_point": (own.get("zero_point"), np.int8, scheme.scale_shape(shape)),
              "divide": (own.get("divide"), np.float32, (K,)), "outliers": (own.get("outliers"), np.int32, k),
              "columns": (own.get("columns"), np.float16, (N, *k))}
    for key, (array, dtype, size) in wanted.items():
        if array is not None and (array.dtype != dtype or array.shape != size):
            raise damaged(name, f"{key} is {array.dtype} {array.shape} instead of {np.dtype(dtype)} {size}")
    check_values(name, codes, own, scheme, K)
    weight = Quantized(codes, own["scale"], None if scheme.symmetric else own["zero_point"], scheme)
    return QuantizedMatrix(weight, own.get("divide"), own.get("outliers"), own.get("columns"), layer["int8"],
                           layer["normalized"])


def check_values(name: str, codes: np.ndarray, own: dict[str, np.ndarray], scheme: Scheme, K: int) -> None:
    """MiniLLMError for codes and zero points off the grid, and for scales, divisors and channels that cannot be."""
    for key, values in (("code", codes), ("zero point", own.get("zero_point", codes[:0]))):
        if values.size and (values.min() < scheme.grid.lowest or values.max() > scheme.grid.highest):
            raise damaged(name, f"a {key} of {values.min()} or {values.max()} on {scheme.grid.lowest} ... {scheme.grid.highest}")
    for key in ("scale", "divide"):
        values = own.get(key, np.ones(1, np.float32))
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise damaged(name, f"a {key} of {values.min()}: all must be finite and above 0")
    outliers = own.get("outliers", np.zeros(0, np.int32))
    if len(outliers) and (outliers.min() < 0 or outliers.max() >= K):
        raise damaged(name, f"an outlier channel {outliers.max()} of {K}")


def damaged(name: str, what: str) -> MiniLLMError:
    return MiniLLMError(f"{name} in the file of codes: {what}; the file is damaged, convert the model again")


def scheme_to_json(scheme: Scheme) -> dict:
    """A scheme by its fields; how halves went does not matter any more."""
    return {"lowest": scheme.grid.lowest, "highest": scheme.grid.highest, "symmetric": scheme.symmetric,
            "granularity": scheme.granularity, "group": scheme.group, "scale_format": scheme.scale_format.name}


def scheme_from_json(fields: dict) -> Scheme:
    """The scheme of these fields."""
    return Scheme(Grid(fields["lowest"], fields["highest"]), fields["symmetric"], fields["granularity"], group=fields["group"],
                  scale_format=format_named(fields["scale_format"]))
