"""A trained run as a model folder of codes: converted by one method, written, and measured."""
import copy
import dataclasses
import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minillm._version import __version__
from minillm.conversion.calibration import calibrate
from minillm.conversion.convert import FULL_INTEGER, Conversion, Layer, convert
from minillm.conversion.int8_model import under
from minillm.conversion.integer_model import observe, to_integers
from minillm.conversion.trained import trained_ternary
from minillm.errors import MiniLLMError, unknown
from minillm.experiments.data import Data, TaskData
from minillm.experiments.options import TrainOptions, check_range
from minillm.experiments.run_folder import FILES, RunFolder, load_unquantized
from minillm.experiments.tables import table
from minillm.files import check_folder, write_whole
from minillm.models.gpt import GPT
from minillm.nn import Module, quantized_layers
from minillm.quantization.error import sqnr_db
from minillm.recipes import PRESETS, to_json
from minillm.training.quantized_checkpoint import float32_bytes, integer_file, quantized_file
from minillm.training.trainer import finite_or_none

FILE_SCHEMES = ("int8", "int4", "int3", "int2", "ternary")        # which a folder may have; others are for curves


@dataclass(frozen=True)
class Trained:
    """A trained run, ready to be converted: its model, the same in float32, texts to look at and to judge by.

    With ternary weights `exact` is the model itself: its float32 masters alone are none.
    """

    model: Module
    exact: Module
    options: TrainOptions
    batches: list[tuple]
    data: Data | TaskData

    @functools.cached_property
    def inputs(self) -> dict[str, np.ndarray]:
        """What goes into its layers."""
        return calibrate(self.exact, self.batches)


def prepared(path: str | Path, windows: int) -> Trained:
    """A run with so many windows of its training text to calibrate with."""
    check_range("calibrate", windows, 1)
    model, _, options = load_unquantized(path, "converted again")
    data = RunFolder(Path(path)).read_data(options)
    exact = model if trained_ternary(model) else under(model, PRESETS["float32"])
    return Trained(model, exact, options, data.calibration(options, windows), data)


def quantize(path: str | Path, how: Conversion, calibrate_with: int, out: str | Path, force: bool = False,
             leave_one_out: bool = False, quiet: bool = True) -> dict:
    """Convert a run and write it to `out`; returns what `minillm quantize --json` prints.

    `calibrate_with`: windows of the training text. `leave_one_out`: also what each layer costs, which takes a validation for each.
    Nothing is written before everything has been computed.
    """
    if how.scheme not in FILE_SCHEMES:
        raise unknown("scheme", how.scheme, FILE_SCHEMES)
    if leave_one_out and how.method == FULL_INTEGER:
        raise MiniLLMError("--leave-one-out puts a layer back into float32, for which a model in integers has no place: drop it")
    source, target = RunFolder(Path(path)), RunFolder(Path(out))
    if source.path.resolve() == target.path.resolve():
        raise MiniLLMError(f"the codes would replace the run {source.path}: give another --out")
    target.check_free(force)
    trained = prepared(path, calibrate_with)
    if trained_ternary(trained.model):
        check_ternary(trained.model, how, leave_one_out)
    converted, layers = in_codes(trained, how)
    before, after = (trained.data.loss(m)[0] for m in (trained.exact, converted))
    if not math.isfinite(after):
        raise MiniLLMError(f"the loss of the converted model is {after}: its weights are too far apart for {how.scheme} by "
                           f"{how.granularity}, take more bits or a finer granularity")
    costs = costs_of_layers(trained, converted, after, quiet) if leave_one_out else {}
    content = (integer_file if how.method == FULL_INTEGER else quantized_file)(converted, dataclasses.asdict(how))
    write_folder(source, target, trained.options, how, content)
    return {"scheme": how.scheme, "method": how.method, "granularity": how.granularity, "bytes": len(content),
            "bytes_float32": float32_bytes(trained.model), "val_loss": finite_or_none(after),
            "val_loss_float32": finite_or_none(before), "logits_sqnr_db": finite_or_none(logits_db(trained, converted)),
            "layers": [layer_to_json(layer, costs) for layer in layers], "out": str(target.path)}


def in_codes(trained: Trained, how: Conversion) -> tuple[Module, list[Layer]]:
    """The model as codes, and what became of its matrices."""
    if how.method == FULL_INTEGER:
        if not isinstance(trained.exact, GPT):
            raise MiniLLMError(f"--method {FULL_INTEGER} is for a gpt, this run has a {trained.options.model}: take another method")
        return to_integers(trained.exact, how, trained.inputs, observe(trained.exact, trained.batches))
    return convert(trained.model, how, {} if trained_ternary(trained.model) else trained.inputs)


def check_ternary(model: Module, how: Conversion, leave_one_out: bool) -> None:
    """A model trained with ternary weights has its codes already, and nothing better to put in their place."""
    if (how.scheme, how.method) != ("ternary", "rtn") or leave_one_out:
        raise MiniLLMError(f"recipe {model.ops.recipe.name} was trained with ternary weights, which are taken over as they are: "
                           "convert it by --scheme ternary, and nothing else")


def logits_db(trained: Trained, converted: Module) -> float:
    """Signal over noise of the whole model: of its logits on the first windows or examples that validate."""
    (*inputs, _), logits = trained.data.first_batch(trained.options), []
    for model in (trained.exact, converted):
        with model.ops.context.no_record():
            model.ops.context.begin(0)
            logits.append(model(*inputs).data)
    return sqnr_db(*logits)


def write_folder(source: RunFolder, target: RunFolder, options: TrainOptions, how: Conversion, content: bytes) -> None:
    """A folder that evaluate and sample take like any run."""
    check_folder(target.path)
    config = source.read_json(source.config)
    for name in FILES:
        (target.path / name).unlink(missing_ok=True)
    write_whole(target.config, json.dumps({"minillm": __version__, "options": dataclasses.asdict(options), "text": config["text"],
                                           "classes": config.get("classes", []),
                                           "from": str(source.path), "quantized": dataclasses.asdict(how),
                                           "recipe": to_json(PRESETS["float32"])}, indent=1))
    write_whole(target.tokenizer, source.tokenizer.read_text("utf-8"))
    write_whole(target.state, content)


def costs_of_layers(trained: Trained, converted: Module, loss: float, quiet: bool) -> dict[str, float]:
    """By the name of its weight what each layer of codes costs: the loss in nats, less that with this one layer in float32."""
    costs = {}
    for name in tqdm(quantized_layers(converted), "leave one out", disable=quiet, leave=False):
        *path, last = name.split(".")
        owner, codes = functools.reduce(getattr, path, converted), functools.reduce(getattr, name.split("."), converted)
        part = copy.copy(functools.reduce(getattr, name.split("."), trained.exact))
        part.ops = converted.ops                             # whose context is that of the whole pass
        setattr(owner, last, part)
        costs[f"{name}.weight"] = loss - trained.data.loss(converted)[0]
        setattr(owner, last, codes)
    return costs


def layer_to_json(layer: Layer, costs: dict[str, float]) -> dict:
    """A layer that lost nothing has no signal-to-noise ratio."""
    more = {"left_in_float32": layer.left} if layer.left else {"cost": costs[layer.name]} if layer.name in costs else {}
    return {"name": layer.name, "sqnr_db": finite_or_none(layer.sqnr_db), "bytes": layer.bytes,
            "worst_steps": layer.worst_steps, "clipped": layer.clipped} | more


def describe(result: dict) -> str:
    """The table for people."""
    rows = [[layer["name"], "exact" if layer["sqnr_db"] is None else f"{layer['sqnr_db']:.1f}", f"{layer['worst_steps']:.2f}",
             f"{layer['clipped']:.2%}", f"{layer['bytes']:,}",
             layer.get("left_in_float32", f"{layer['cost']:+.4f}" if "cost" in layer else "")] for layer in result["layers"]]
    last = "costs nats" if any("cost" in layer for layer in result["layers"]) else "left in float32"
    db = result["logits_sqnr_db"]
    share, change = result["bytes"] / result["bytes_float32"], result["val_loss"] - result["val_loss_float32"]
    return "\n".join([table(["layer", "signal-to-noise dB", "worst error in steps", "clipped", "bytes", last], rows), "",
                      f"{result['bytes']:,} bytes instead of {result['bytes_float32']:,} ({share:.1%})",
                      f"validation loss {result['val_loss']:.4f} instead of {result['val_loss_float32']:.4f} ({change:+.4f})",
                      "signal-to-noise of the logits " + ("exact" if db is None else f"{db:.1f} dB"),
                      f"the model is in {result['out']}"])
