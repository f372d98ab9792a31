"""Trained encoders from a folder as others publish them: config.json beside the weights, whose names become ours."""
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from minillm.errors import MiniLLMError, unknown
from minillm.models.bert import Encoder, EncoderShape, MaskedLanguageModel
from minillm.models.torch_file import read_torch
from minillm.precision.recipe import Recipe

FIELDS = {"vocabulary": "vocab_size", "layers": "num_hidden_layers", "heads": "num_attention_heads", "channels": "hidden_size",
          "hidden": "intermediate_size", "context": "max_position_embeddings", "types": "type_vocab_size", "eps": "layer_norm_eps",
          "padding": "pad_token_id"}
ACTIVATIONS = {"gelu": "gelu_erf", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu"}
BERT, ALBERT = r"encoder\.layer\.(\d+)\.", r"encoder\.albert_layer_groups\.0\.albert_layers\.0\."
PLACES = {
    r"embeddings\.word_embeddings": "tokens", r"embeddings\.position_embeddings": "positions",
    r"embeddings\.token_type_embeddings": "types", r"embeddings\.LayerNorm": "norm",
    BERT + r"attention\.self\.(query|key|value)": r"block\1.attention.\2",
    BERT + r"attention\.output\.dense": r"block\1.attention.out",
    BERT + r"attention\.output\.LayerNorm": r"block\1.norm1", BERT + r"intermediate\.dense": r"block\1.up",
    BERT + r"output\.dense": r"block\1.down", BERT + r"output\.LayerNorm": r"block\1.norm2",
    r"encoder\.embedding_hidden_mapping_in": "widen",
    ALBERT + r"attention\.(query|key|value)": r"block0.attention.\1", ALBERT + r"attention\.dense": "block0.attention.out",
    ALBERT + r"attention\.LayerNorm": "block0.norm1", ALBERT + "ffn": "block0.up", ALBERT + "ffn_output": "block0.down",
    ALBERT + "full_layer_layer_norm": "block0.norm2",
    r"predictions\.(?:transform\.)?dense": "dense", r"predictions\.(?:transform\.)?LayerNorm": "dense_norm",
}
HEAD = {"predictions.bias": "bias", "predictions.decoder.bias": "bias", "predictions.decoder.weight": "tokens.weight"}
UNUSED = re.compile(r".*position_ids|.*pooler\..*|.*seq_relationship\..*|sop_classifier\..*")      # other tasks' heads


def package_folder(package: str, inside: str) -> Path | None:
    """A folder inside an installed package, which is not imported; None where it is not installed."""
    found = importlib.util.find_spec(package)
    return Path(found.submodule_search_locations[0]) / inside if found else None


def load_encoder(folder: Path) -> Encoder:
    """The BERT or ALBERT of a folder in float32, with its masked-token head if the configuration names one.

    Reads config.json, and model.safetensors or a pytorch_model.bin from before PyTorch 1.6. MiniLLMError in one line for a file
    that is missing, damaged or of another kind of model, and for tensors that are missing, unexpected or of another shape.
    """
    config = read_config(Path(folder) / "config.json")
    made = MaskedLanguageModel if any("MaskedLM" in name for name in config.get("architectures", [])) else Encoder
    model = made(shape_of(config), Recipe("float32"))
    model.load_state_dict(renamed(read_weights(Path(folder))))
    return model


def read_config(path: Path) -> dict:
    """The fields of a config.json of a BERT or an ALBERT."""
    try:
        config = json.loads(path.read_text("utf-8"))
        kind = config["model_type"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise MiniLLMError(f"{path} is missing or no configuration of a model: name a folder that has one") from error
    if kind not in ("bert", "albert"):
        raise unknown("kind of encoder", str(kind), ("bert", "albert"))
    return config


def shape_of(config: dict) -> EncoderShape:
    """The shape that a configuration describes."""
    missing = [theirs for theirs in (*FIELDS.values(), "hidden_act") if theirs not in config]
    if missing:
        raise MiniLLMError(f"the model's configuration lacks {', '.join(missing)}: take config.json as it was published")
    if config["hidden_act"] not in ACTIVATIONS:
        raise unknown("activation", str(config["hidden_act"]), ACTIVATIONS)
    if config.get("num_hidden_groups", 1) * config.get("inner_group_num", 1) != 1:
        raise MiniLLMError("this ALBERT has several groups of layers: only one block, shared by all, is known here")
    albert = config["model_type"] == "albert"
    return EncoderShape(**{ours: config[theirs] for ours, theirs in FIELDS.items()}, shared=albert,
                        embedding=config["embedding_size"] if albert else config["hidden_size"],
                        activation=ACTIVATIONS[config["hidden_act"]])


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor by the name it has in the file."""
    path = folder / "model.safetensors"
    if not path.is_file():
        path = folder / "pytorch_model.bin"
        if not path.is_file():
            raise MiniLLMError(f"{folder} has neither model.safetensors nor pytorch_model.bin: name the folder of a model")
        return read_torch(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise MiniLLMError(f"{path} is truncated or no safetensors file ({error}): fetch it again") from error


def renamed(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays in float32 by our names; what no place is known for keeps its name."""
    state = {}
    for theirs, array in tensors.items():
        if UNUSED.fullmatch(theirs):
            continue
        ours, array = our_name(theirs), array.astype(np.float32)
        if not np.array_equal(array, state.setdefault(ours, array)):
            raise MiniLLMError(f"{theirs} is not the table of tokens again: a head with weights of its own is not known here")
    return state


def our_name(theirs: str) -> str:
    """encoder.layer.0.output.LayerNorm.bias -> block0.norm2.shift."""
    name = re.sub(r"^(bert|albert|cls)\.", "", theirs)
    place, _, kind = name.rpartition(".")
    for pattern, ours in PLACES.items():
        if found := re.fullmatch(pattern, place):
            kind = {"weight": "gain", "bias": "shift"}.get(kind, kind) if "LayerNorm" in place or "layer_norm" in place else kind
            return f"{found.expand(ours)}.{kind}"
    return HEAD.get(name, theirs)
