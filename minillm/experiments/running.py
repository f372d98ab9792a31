"""A run: attempts with a progress bar, validation in between, and what came of it as plain data."""
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from minillm import kernels
from minillm.autograd.watching import watch
from minillm.backend import freed_memory_kept
from minillm.conversion.int8_model import state_in
from minillm.errors import MiniLLMError
from minillm.experiments.data import Data, TaskData
from minillm.experiments.kinds import KINDS
from minillm.experiments.options import TrainOptions, make_model, make_trainer
from minillm.experiments.run_folder import RunFolder
from minillm.nn import Module
from minillm.precision.recipe import Recipe
from minillm.precision.underflow import FirstNotFinite
from minillm.training.checkpoint import load_model, load_trainer, read_state
from minillm.training.trainer import Trainer, finite_or_none


@dataclass
class Run:
    """A model in training and what has been noted of it; `seconds` are those of attempts, without validation.

    Strategies keep here what they attach to the trainer, for checkpoints, and what they do after the last step, which may put
    another model in the place of `result`; `prepared`: the seconds that they took before the first.
    """

    options: TrainOptions
    data: Data | TaskData
    model: Module
    trainer: Trainer
    records: list[dict] = field(default_factory=list)
    val_loss: float | None = None
    seconds: float = 0.0
    made: int = 0                            # attempts since this process began
    prepared: float = 0.0
    attached: dict[str, Any] = field(default_factory=dict)
    endings: list[Callable[["Run"], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.result = self.model             # what is validated and saved


def new_run(options: TrainOptions, data: Data | TaskData, recipe: Recipe | None = None, weights: Module | None = None,
            kept: tuple = ()) -> Run:
    """A run that has not made a step; under `recipe`, where one is given, in place of the preset that the options name.

    It begins with the weights of another model, where one is given, rounded into the recipe's format; so does what the quantizers
    of both have learned. What only this one's learn is made from its first batch. `kept`: as of make_model.
    """
    if KINDS[options.model].counted:
        raise MiniLLMError(f"--model {options.model} is counted, and no recipe changes it: train it, evaluate it, sample from it")
    model = make_model(options, data.tokenizer.vocabulary, recipe or options.make_recipe(), len(data.classes), kept)
    if weights:
        model.load_state_dict(state_in(weights, model.ops.recipe.parameters))
    trainer = make_trainer(options, data, model)
    for name, leaf in model.ops.learned.items():
        if weights and name in weights.ops.learned and weights.ops.learned[name].shape == leaf.shape:
            leaf.data = weights.ops.learned[name].data
    return Run(options, data, model, trainer)


def load_run(folder: RunFolder, options: TrainOptions, data: Data | TaskData, recipe: Recipe,
             prepare: Callable[[Run], None] = lambda run: None) -> Run:
    """The run as its checkpoint left it; `prepare` has it follow its strategies again."""
    arrays, facts = read_state(folder.state)
    if "quantized" in facts:
        raise MiniLLMError(f"{folder.path} is already quantized, and codes cannot be trained: take the run that it was made from")
    run = new_run(options, data, recipe, kept=facts["shape"].get("kept", ()))
    prepare(run)
    load_model(folder.state, run.model, arrays, facts)
    load_trainer(run.trainer, arrays, facts, run.attached)
    return run


def announce_compiling(quiet: bool, room: str = "") -> None:
    """Say why the first step takes so long, once all that can be wrong with the input has been found."""
    if not quiet and kernels.must_compile(room):
        print("compiling kernels, once on this machine: about half a minute", file=sys.stderr)


def follow(run: Run, quiet: bool = False, title: str = "", log: Callable[[dict], None] | None = None,
           save: Callable[[], None] | None = None, stopped: Callable[[], bool] = lambda: False) -> None:
    """Train to the end, to a divergence, or until `stopped()`; validate every `eval_every` attempts and at the end.

    `log(record)` is called for each record, `save()` after each validation that was finite and when stopped.
    """
    def note(record):
        run.records.append(record)
        if log:
            log(record)

    announce_compiling(quiet)
    total, shown = run.options.steps, {}
    options = {"desc": title, "unit": "step", "disable": quiet, "leave": False, "mininterval": 0.5}
    with freed_memory_kept(), tqdm(total=total, initial=run.trainer.step, **options) as bar:
        while run.trainer.step < total and run.trainer.diverged_at is None:
            began = time.perf_counter()
            record = run.trainer.advance()
            run.seconds, run.made = run.seconds + time.perf_counter() - began, run.made + 1
            note(record)
            show(bar, record, shown, run)
            if run.trainer.step == total and run.trainer.diverged_at is None:
                for ending in run.endings:
                    ending(run)
            if due(run):
                validate(run, note)
            if save and (due(run) or stopped()) and run.trainer.diverged_at is None:
                save()
            if stopped():
                break
    if run.val_loss is None and due(run):                    # a finished run whose metrics were lost
        validate(run, note)


def due(run: Run) -> bool:
    """Whether it is time to validate: every eval_every attempts, and after the last."""
    step, every = run.trainer.step, run.options.eval_every
    return run.trainer.diverged_at is None and (step == run.options.steps or (every > 0 and step % every == 0))


def validate(run: Run, note: Callable[[dict], None]) -> None:
    """Note the validation loss; one that is not finite is a divergence."""
    loss, _ = run.data.loss(run.result)
    run.val_loss = finite_or_none(loss)
    note({"step": run.trainer.step, "val_loss": run.val_loss})
    if run.val_loss is None:
        with watch(first := FirstNotFinite()):
            run.data.loss(run.result)
        run.trainer.diverged_at, run.trainer.blame = run.trainer.step, f"in validation, {first}"


def show(bar, record: dict, shown: dict, run: Run) -> None:
    """The progress line: loss, tokens a second, loss scale, and the share of cotangents that rounding made zero, once watched."""
    bar.update()
    if "zero_gradient_share" in record:
        shown["zeros"] = f"{record['zero_gradient_share']:.2%}"
    if bar.disable or record["step"] % 10:
        return
    loss = "not finite" if record["loss"] is None else f"{record['loss']:.3f}"
    scale = {} if record["loss_scale"] == 1 else {"scale": shown_scale(record["loss_scale"])}
    bar.set_postfix({"loss": loss, "tokens/s": f"{tokens_per_second(run):,.0f}", **scale, **shown}, refresh=False)


def shown_scale(scale: float | None) -> str:
    """A loss scale as a power of two; a scaler without guards may be at 0 or beyond all numbers."""
    return f"2^{math.log2(scale):g}" if scale else "infinite" if scale is None else "0"


def tokens_per_second(run: Run) -> float:
    """Trained tokens a second, attempts only."""
    return run.made * run.options.batch * run.options.context * run.options.accumulate / max(run.seconds, 1e-9)
