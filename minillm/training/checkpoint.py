"""The state of a run in one safetensors file: weights, learned quantizer state, moments, loss scale, position.

Batches and random bits are pure functions of (seed, attempt, micro-batch), so the number of attempts is the random state and the
data position in one.
"""
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from minillm.autograd.tensor import Tensor
from minillm.errors import MiniLLMError
from minillm.files import write_whole
from minillm.formats import FLOAT32
from minillm.models.ngram import NGram
from minillm.nn import Module
from minillm.training.trainer import Trainer

VERSION = 1


def digest(arrays: dict[str, np.ndarray], facts: dict) -> str:
    """A hash of everything in the file, so that a changed bit is found."""
    h = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16)
    for name in sorted(arrays):
        a = np.ascontiguousarray(arrays[name])
        h.update(f"{name} {a.dtype} {a.shape}".encode())
        h.update(a.tobytes())
    return h.hexdigest()


def save_state(path: Path, model: Module, trainer: Trainer, attached: dict | None = None) -> None:
    """Write the state after `trainer.step` attempts, with that of what was attached to the trainer, by name.

    MiniLLMError where several objectives are trained, which it cannot hold.
    """
    if trainer.others:
        raise MiniLLMError(f"a checkpoint holds one objective, this trainer has {1 + len(trainer.others)}: save the weights alone")
    objective, optimizer = trainer.objective, trainer.objective.optimizer
    arrays = {f"model/{name}": a for name, a in model.state_dict().items()}
    arrays |= {f"learned/{name}": t.data for name, t in objective.ops.learned.items()}
    arrays |= {f"optimizer/{slot}/{name}": a for slot, named in optimizer.state.items() for name, a in named.items()}
    arrays |= {f"attached/{name}/{key}": a for name, part in (attached or {}).items() for key, a in part.state().items()}
    facts = {"version": VERSION, "shape": asdict(model.shape), "recipe": objective.ops.recipe.name, "step": trainer.step,
             "skipped": trainer.skipped, "in_a_row": trainer.in_a_row, "optimizer_steps": optimizer.steps,
             "loss_scaler": objective.scaler.state()}
    write_whole(path, as_file(arrays, facts))


def as_file(arrays: dict[str, np.ndarray], facts: dict) -> bytes:
    """The content of a state file, with its digest."""
    arrays = {name: np.array(a, order="C", ndmin=a.ndim) for name, a in arrays.items()}
    return save(arrays, {"minillm": json.dumps(facts | {"digest": digest(arrays, facts)})})


def read_state(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """(arrays, facts) of a state file; MiniLLMError where it is missing, truncated, foreign or tampered with."""
    if not path.is_file():
        raise MiniLLMError(f"there is no checkpoint {path}: the run ended before its first, train it anew with --force")
    try:
        with safe_open(path, "np") as file:
            facts = json.loads((file.metadata() or {})["minillm"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise MiniLLMError(f"the checkpoint {path} is truncated or foreign ({error}): restore it or train again") from error
    except KeyError as error:
        raise MiniLLMError(f"{path} is a safetensors file, but not a checkpoint of minillm: choose another run") from error
    claimed = facts.pop("digest", None) if isinstance(facts, dict) else None
    if claimed is None or claimed != digest(arrays, facts):
        raise MiniLLMError(f"the checkpoint {path} was changed after it was written (digest differs): restore it or train again")
    if facts.get("version") != VERSION:
        raise MiniLLMError(f"the checkpoint {path} has version {facts.get('version')}, this program reads {VERSION}: "
                           "update minillm")
    return arrays, facts


def part(arrays: dict, prefix: str) -> dict:
    """The arrays whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}


def save_model(path: Path, model: Module | NGram) -> None:
    """Write a model that is not to be trained further, as load_model reads it."""
    arrays = {f"model/{name}": a for name, a in model.state_dict().items()}
    if isinstance(model, Module):
        arrays |= {f"learned/{name}": t.data for name, t in model.ops.learned.items()}
    write_whole(path, as_file(arrays, {"version": VERSION, "shape": asdict(model.shape)}))


def load_model(path: Path, model: Module, arrays: dict, facts: dict) -> None:
    """Weights and learned state into a model of the same shape."""
    there, here = facts["shape"], json.loads(json.dumps(asdict(model.shape)))                # tuples as the lists of a file
    if there != here:
        changed = [f"{k} {there.get(k)} there, {v} here" for k, v in here.items() if there.get(k) != v]
        raise MiniLLMError(f"the checkpoint {path} is of another model: {', '.join(changed)}")
    model.load_state_dict(part(arrays, "model/"))
    for name, array in part(arrays, "learned/").items():
        leaf = model.ops.learned.setdefault(name, Tensor(array, FLOAT32, name=name))
        leaf.data = array                                    # where there is one already, an optimizer may own it


def load_trainer(trainer: Trainer, arrays: dict, facts: dict, attached: dict | None = None) -> None:
    """Moments, loss scale, position and what is attached; the trainer's optimizer must own the model's parameters already."""
    for name, piece in (attached or {}).items():
        piece.load(part(arrays, f"attached/{name}/"))
    optimizer = trainer.objective.optimizer
    for slot, named in optimizer.state.items():
        found = part(arrays, f"optimizer/{slot}/")
        if found.keys() != named.keys() or any(found[n].shape != a.shape or found[n].dtype != a.dtype for n, a in named.items()):
            raise MiniLLMError(f"the optimizer state {slot!r} does not fit: resume with the recipe and optimizer it was made with")
        named.update({name: np.array(a) for name, a in found.items()})
    optimizer.steps = facts["optimizer_steps"]
    trainer.objective.scaler.load(facts["loss_scaler"])
    trainer.step, trainer.skipped, trainer.in_a_row = facts["step"], facts["skipped"], facts["in_a_row"]
