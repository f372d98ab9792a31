"""One training run in memory, as data."""
from collections.abc import Callable

from minillm.conversion.rounding import round_to_int8
from minillm.experiments.data import load_data
from minillm.experiments.options import TrainOptions
from minillm.experiments.running import follow, new_run
from minillm.experiments.strategies import prepare
from minillm.precision.underflow import ExponentHistogram
from minillm.training.memory import measure
from minillm.training.metrics import mean_zero_share
from minillm.training.trainer import finite_or_none


def experiment(options: TrainOptions, int8: bool = False, advanced: Callable[[int], None] = lambda step: None,
               quiet: bool = True) -> dict:
    """Train in memory and say what came of it, as data for JSON; with `int8`, also what int8 weights do to the loss.

    `advanced(step)` is called after each attempt.
    """
    run = new_run(options, load_data(options))
    prepare(run)
    histogram = ExponentHistogram()
    run.trainer.observers = (histogram,)
    sizes = measure(run.trainer.objective, run.trainer.batch(0, 0))
    follow(run, quiet, options.recipe, log=lambda record: advanced(record["step"]))
    diverged = run.trainer.diverged_at
    result = {"model": options.model, "recipe": options.recipe, "seed": options.seed,
              "strategy": options.strategy, "val_loss": run.val_loss if diverged is None else None,
              "unigram_loss": run.data.unigram_loss(),
              "diverged_at": diverged, "first_not_finite": run.trainer.blame, "skipped_steps": run.trainer.skipped,
              "zero_gradient_share": mean_zero_share(run.records),
              "learned_steps": sum(step.size for step in run.model.ops.learned.values()), **sizes,
              "seconds": round(run.prepared + run.seconds, 2),
              "exponents": {str(e): n for e, n in histogram.counts.items()}, "records": run.records}
    if options.tasks and diverged is None:
        result["metrics"] = run.data.metrics(run.result)
    if int8 and diverged is None:
        after, before = round_to_int8(run.model)
        loss, _ = run.data.loss(run.model)
        result["int8"] = {"val_loss": finite_or_none(loss), "bytes": after, "bytes_float32": before}
    return result
