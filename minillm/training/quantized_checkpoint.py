"""A model of codes in one safetensors file: int8 as it is, narrower codes packed, and beside them what is no matrix."""
from dataclasses import asdict

import numpy as np

from minillm.autograd.tensor import Tensor
from minillm.conversion.int8_model import replace_matrices
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

    def matrix_of(weight: Tensor) -> QuantizedMatrix | None:
        name = weight.name.removesuffix(".weight")
        if name not in facts["layers"]:
            return None
        layer, own = facts["layers"][name], part(arrays, f"{name}.")
        scheme, shape = scheme_from_json(layer["scheme"]), tuple(layer["shape"])
        codes = unpack(own["codes"], scheme.grid, shape) if scheme.grid.bits < 8 else own["codes"]
        arrays[f"{name}.codes"] = codes
        weight = Quantized(codes, own["scale"], own.get("zero_point"), scheme)
        return QuantizedMatrix(weight, own.get("divide"), own.get("outliers"), own.get("columns"), layer["int8"],
                               layer["normalized"])

    replace_matrices(model, matrix_of)
    model.load_state_dict(arrays)
    return model


def scheme_to_json(scheme: Scheme) -> dict:
    """A scheme by its fields; how halves went does not matter any more."""
    return {"lowest": scheme.grid.lowest, "highest": scheme.grid.highest, "symmetric": scheme.symmetric,
            "granularity": scheme.granularity, "group": scheme.group, "scale_format": scheme.scale_format.name}


def scheme_from_json(fields: dict) -> Scheme:
    """The scheme of these fields."""
    return Scheme(Grid(fields["lowest"], fields["highest"]), fields["symmetric"], fields["granularity"], group=fields["group"],
                  scale_format=format_named(fields["scale_format"]))
