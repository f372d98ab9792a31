"""Train a model into a run folder, or go on with one, bit for bit."""
import contextlib
import dataclasses
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from minillm.errors import MiniLLMError
from minillm.experiments.data import Data, load_data
from minillm.experiments.kinds import KINDS
from minillm.experiments.options import TrainOptions, default_out, make_model
from minillm.experiments.run_folder import RunFolder, load_unquantized
from minillm.experiments.running import Run, follow, load_run, new_run, tokens_per_second
from minillm.experiments.strategies import STRATEGIES, prepare
from minillm.files import write_whole
from minillm.hybrid.ensemble import Ensemble
from minillm.plotting.training import loss_curves
from minillm.training.checkpoint import read_state, save_model, save_state
from minillm.training.metrics import MetricsLog, curves, read_metrics

GROWS = ("steps", "eval_every")          # what a resumed run may be given anew
# What goes with the weights of a run:
SHAPE = ("model", "layers", "heads", "channels", "context", "bias", "scaled", "tokenizer", "vocab")


def train(options: TrainOptions, out: str | Path | None = None, force: bool = False, quiet: bool = False) -> dict:
    """A new run. Returns what `minillm train --json` prints, and how it ended.

    Everything that can be wrong with the input is found before the folder is touched.
    """
    folder = RunFolder(Path(out) if out else default_out(options))
    folder.check_free(force)
    data = load_data(options)
    if KINDS[options.model].counted:
        return count(options, data, folder)
    run = new_run(options, data)
    prepare(run, quiet)
    folder.begin(options, run.model.ops.recipe, data)
    return carry_out(run, folder, quiet)


def count(options: TrainOptions, data: Data, folder: RunFolder) -> dict:
    """A run of a model that one look at the text makes."""
    began, recipe = time.perf_counter(), options.make_recipe()
    model = make_model(options, data.tokenizer.vocabulary, recipe).fit(data.train)
    seconds = time.perf_counter() - began
    loss, _ = data.loss(model)
    folder.begin(options, recipe, data)
    state = model.state_dict()
    save_model(folder.state, model)
    return {"val_loss": loss, "diverged_at": None, "steps": 1, "tokens_per_second": round(len(data.train) / max(seconds, 1e-9)),
            "parameters": sum(len(a) for name, a in state.items() if name.endswith("counts")), "out": str(folder.path),
            "first_not_finite": None, "checkpoint_step": 1, "interrupted": False, "float32": True}


def fine_tune(source: str | Path, given: dict, out: str | Path | None = None, force: bool = False, quiet: bool = False) -> dict:
    """A new run that begins with the weights of another, under any recipe. `given`: options named on the command line.

    Those not named are the other run's, but for its strategies; those of its shape and tokenizer must be. The optimizer begins
    anew.
    """
    before = RunFolder(Path(source))
    options, _ = before.read_config()
    for name, value in given.items():
        if name in SHAPE and value != getattr(options, name):
            raise MiniLLMError(f"--{name.replace('_', '-')} is {value}, but the weights of {source} are for "
                               f"{getattr(options, name)}: leave it away, or train a new run without --from")
    options = dataclasses.replace(options, **inherited(options, given) | given)
    folder = RunFolder(Path(out) if out else default_out(options))
    if folder.path.resolve() == before.path.resolve():
        raise MiniLLMError(f"--from and --out are both {folder.path}: give another --out")
    folder.check_free(force)
    weights, tokenizer, _ = load_unquantized(source, "trained")
    data = load_data(options, tokenizer)
    run = new_run(options, data, weights=weights, kept=getattr(weights.shape, "kept", ()))
    prepare(run, quiet)
    folder.begin(options, run.model.ops.recipe, data, str(source))
    return carry_out(run, folder, quiet)


def inherited(options: TrainOptions, given: dict) -> dict:
    """What a fine-tuned run does not take over from the other's options: what it learns, where that is named anew, and how."""
    kept = {"strategy": "joint" if "joint" in options.strategies else ""}
    if given.keys() & {"corpus", "task"}:
        kept["text"] = ""
    if given.keys() & {"corpus", "text"} and not KINDS[options.model].task:
        kept["task"] = ""
    return kept


def resume(path: str | Path, given: dict, quiet: bool = False) -> dict:
    """Go on with a run from its checkpoint as if it had never stopped. `given`: options named on the command line.

    They must be those of the run, except the number of steps and how often it validates.
    """
    folder = RunFolder(Path(path))
    before, recipe = folder.read_config()
    for name, value in given.items():
        if name not in GROWS and value != getattr(before, name):
            raise MiniLLMError(f"--{name.replace('_', '-')} is {value}, but {path} was made with {getattr(before, name)}: "
                               "resume without it, or start a new run")
    options = dataclasses.replace(before, **{name: value for name, value in given.items() if name in GROWS})
    if options.make_recipe() != recipe:
        raise MiniLLMError(f"the recipe in {folder.config} is not the preset {options.recipe} of this version: start a new run")
    ending = [name for name in before.strategies if STRATEGIES[name].ends]
    if ending and read_state(folder.state)[1]["step"] == before.steps:
        raise MiniLLMError(f"{path} has ended with --strategy {ending[0]}, which made another model of it: begin a new run with "
                           f"--from {path}")
    data = folder.read_data(options)
    run = load_run(folder, options, data, recipe, partial(prepare, quiet=quiet, resumed=True))
    if options.steps < run.trainer.step:
        raise MiniLLMError(f"{path} has made {run.trainer.step} steps already: give --steps more than that")
    folder.write_config(options, recipe, data, folder.read_json(folder.config).get("from"))
    run.records = [r for r in read_metrics(folder.metrics) if r["step"] <= run.trainer.step]
    write_whole(folder.metrics, "".join(json.dumps(r) + "\n" for r in run.records))
    return carry_out(run, folder, quiet)


def carry_out(run: Run, folder: RunFolder, quiet: bool) -> dict:
    """Train with the run folder kept up to date; ends at the last step, at a divergence, or at Ctrl-C after the step in hand."""
    run.val_loss = next((r["val_loss"] for r in reversed(run.records) if "val_loss" in r), None)
    saved = [run.trainer.step]

    def save():
        members = run.result.members if isinstance(run.result, Ensemble) else [run.result]
        for number, other in enumerate(members[1:], 1):
            save_model(folder.member(number), other)
        save_state(folder.state, members[0], run.trainer, run.attached)
        saved[:] = [run.trainer.step]

    log = MetricsLog(folder.metrics)
    try:
        with interruptible() as stopped:
            follow(run, quiet, run.options.recipe, log.write, save, stopped)
            interrupted = stopped() and run.trainer.step < run.options.steps and run.trainer.diverged_at is None
    finally:
        log.close()
    diverged = run.trainer.diverged_at
    loss_curves({run.options.recipe: curves(run.records) | {"diverged_at": diverged}}, folder.loss_figure)
    return {"val_loss": None if diverged else run.val_loss, "diverged_at": diverged, "steps": run.trainer.step,
            "tokens_per_second": round(tokens_per_second(run)), "parameters": sum(p.size for p in run.model.parameters()),
            "out": str(folder.path), "first_not_finite": run.trainer.blame, "checkpoint_step": saved[0], "interrupted": interrupted,
            "float32": run.model.ops.recipe.narrowest >= 32}


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C is read between steps: the first one sets what this yields, a second one ends the program at once.

    A program that was started with Ctrl-C ignored, as shells start what runs in the background, keeps ignoring it.
    """
    pressed = threading.Event()

    def note(number, frame):
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield pressed.is_set
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
