"""Small BERTs and ALBERTs with weights large enough to matter, and folders that hold them as others publish them."""
import dataclasses
import json
import struct

import numpy as np
from safetensors.numpy import save_file

from minillm.models.bert import NO_TARGET, Encoder, EncoderShape, MaskedLanguageModel
from minillm.recipes import PRESETS

SHAPES = {"bert": EncoderShape(40, 2, 2, 16, 24, 12, 16), "albert": EncoderShape(40, 3, 2, 16, 24, 12, 8, shared=True)}
IDS = np.array([[2, 7, 9, 11, 3, 0, 0], [2, 5, 30, 39, 6, 8, 3]], np.int32)                # 0 is padding
TARGETS = np.where(IDS == 9, 12, np.where(IDS == 30, 31, NO_TARGET)).astype(np.int32)

LINEARS = {"bert": {"attention.self.query": "attention.query", "attention.self.key": "attention.key",
                    "attention.self.value": "attention.value", "attention.output.dense": "attention.out",
                    "intermediate.dense": "up", "output.dense": "down"},
           "albert": {"attention.query": "attention.query", "attention.key": "attention.key", "attention.value": "attention.value",
                      "attention.dense": "attention.out", "ffn": "up", "ffn_output": "down"}}
NORMS = {"bert": {"attention.output.LayerNorm": "norm1", "output.LayerNorm": "norm2"},
         "albert": {"attention.LayerNorm": "norm1", "full_layer_layer_norm": "norm2"}}
BLOCKS = {"bert": ["encoder.layer.0", "encoder.layer.1"], "albert": ["encoder.albert_layer_groups.0.albert_layers.0"]}
HEADS = {"bert": "cls.predictions.transform.", "albert": "predictions."}


def make(kind: str = "albert", recipe: str = "float32", head: bool = True, seed: int = 0, **shape) -> Encoder:
    model = (MaskedLanguageModel if head else Encoder)(dataclasses.replace(SHAPES[kind], **shape), PRESETS[recipe], seed)
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        p.data = (p.data + rng.standard_normal(p.shape, np.float32) * np.float32(0.3)).astype(p.data.dtype)
    return model


def config(kind: str, **changes) -> dict:
    """The fields of a config.json, as they are published."""
    s = SHAPES[kind]
    return {"model_type": kind, "architectures": ["SomeForMaskedLM"], "hidden_act": "gelu", "vocab_size": s.vocabulary,
            "num_hidden_layers": s.layers, "num_attention_heads": s.heads, "hidden_size": s.channels, "embedding_size": s.embedding,
            "intermediate_size": s.hidden, "max_position_embeddings": s.context, "type_vocab_size": s.types,
            "layer_norm_eps": s.eps, "pad_token_id": s.padding} | changes


def names(kind: str) -> dict[str, str]:
    """Every name of a tensor as it is published, with ours."""
    linears = {"encoder.embedding_hidden_mapping_in": "widen"} if kind == "albert" else {}
    norms = {"embeddings.LayerNorm": "norm"}
    for i, block in enumerate(BLOCKS[kind]):
        linears |= {f"{block}.{theirs}": f"block{i}.{ours}" for theirs, ours in LINEARS[kind].items()}
        norms |= {f"{block}.{theirs}": f"block{i}.{ours}" for theirs, ours in NORMS[kind].items()}
    found = {f"{kind}.embeddings.{theirs}_embeddings.weight": f"{ours}.weight"
             for theirs, ours in (("word", "tokens"), ("position", "positions"), ("token_type", "types"))}
    found |= {f"{kind}.{theirs}.{what}": f"{ours}.{what}" for theirs, ours in linears.items() for what in ("weight", "bias")}
    found |= {f"{kind}.{theirs}.{a}": f"{ours}.{b}" for theirs, ours in norms.items()
              for a, b in (("weight", "gain"), ("bias", "shift"))}
    head, bias = HEADS[kind], HEADS[kind].removesuffix("transform.") + "bias"
    return found | {f"{head}dense.weight": "dense.weight", f"{head}dense.bias": "dense.bias",
                    f"{head}LayerNorm.weight": "dense_norm.gain", f"{head}LayerNorm.bias": "dense_norm.shift", bias: "bias"}


def tensors_of(model: Encoder, kind: str) -> dict[str, np.ndarray]:
    """What a published file of this model holds, the tied head and what nobody needs with it."""
    state = model.state_dict()
    tensors = {theirs: state[ours] for theirs, ours in names(kind).items()}
    tied = HEADS[kind].removesuffix("transform.") + "decoder."
    return tensors | {f"{tied}weight": state["tokens.weight"], f"{tied}bias": state["bias"],
                      f"{kind}.pooler.dense.weight": np.ones((3, 3), np.float32), f"{kind}.embeddings.position_ids": np.arange(12)}


def folder(path, kind: str = "albert", tensors=None, torch: bool = False, **changes):
    """A published folder: config.json and weights."""
    path.mkdir(exist_ok=True)
    tensors = tensors_of(make(kind), kind) if tensors is None else tensors
    (path / "config.json").write_text(json.dumps(config(kind, **changes)))
    if torch:
        (path / "pytorch_model.bin").write_bytes(torch_file(tensors))
    else:
        save_file({name: np.ascontiguousarray(a).copy() for name, a in tensors.items()}, path / "model.safetensors")
    return path


# --- the pickles of a file of old PyTorch, opcode by opcode

TYPES = {"float32": b"FloatStorage", "int64": b"LongStorage", "float16": b"HalfStorage"}
MAGIC = b"\x80\x02\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little") + b"."
DICTIONARY = b"ccollections\nOrderedDict\n)R"


def text(s: str) -> bytes:
    return b"X" + struct.pack("<I", len(s)) + s.encode()


def group(*items) -> bytes:
    return b"(" + b"".join(b"J" + struct.pack("<i", i) if isinstance(i, int) else i for i in items) + b"t"


def tensor(key: str, a: np.ndarray, start: int = 0, steps=None) -> bytes:
    steps = [s // a.itemsize for s in a.strides] if steps is None else steps
    storage = group(text("storage"), b"ctorch\n" + TYPES[a.dtype.name] + b"\n", text(key), text("cuda:0"), a.size, b"N") + b"Q"
    arguments = group(storage, start, group(*a.shape), group(*steps), b"\x89", DICTIONARY)
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def torch_file(tensors: dict[str, np.ndarray], value: bytes | None = None, numbers: bytes | None = None) -> bytes:
    """The whole file; `value`: the pickle that stands in for the dictionary, `numbers`: what stands in for the numbers."""
    arrays = {name: np.ascontiguousarray(a) for name, a in tensors.items()}
    items = b"".join(text(name) + tensor(str(i), a) for i, (name, a) in enumerate(arrays.items()))
    value = DICTIONARY + b"(" + items + b"u" if value is None else value
    keys = b"](" + b"".join(text(str(i)) for i in range(len(arrays))) + b"e"
    data = b"".join(struct.pack("<q", a.size) + a.tobytes() for a in arrays.values())
    small = b"\x80\x02J\xe9\x03\x00\x00." + b"\x80\x02}."
    return MAGIC + small + b"\x80\x02" + value + b"." + b"\x80\x02" + keys + b"." + (data if numbers is None else numbers)
