"""Loss against accumulator: the same GPT, trained with another accumulator in its matrix products. A table and a figure."""
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from minillm.experiments.options import TrainOptions
from minillm.experiments.tables import loss_text, table
from minillm.experiments.workers import experiments
from minillm.files import check_folder
from minillm.plotting.accumulation import loss_against_accumulator
from minillm.precision.accumulation import ROLES

SMALL = TrainOptions(layers=2, heads=4, channels=64, context=32, batch=8, steps=150, warmup=15, eval_every=0, watch_every=0)
ACCUMULATORS = ("float16", "bfloat16", "bfloat16/chunked_16", "e8m4", "e8m4/chunked_16", "e8m4/stochastic")
NARROW = "e8m4"                  # five significant bits: the one that goes into one product at a time


def accumulators(out: str | Path = "figures", options: TrainOptions = SMALL, names: Sequence[str] = ACCUMULATORS,
                 narrow: str = NARROW, quiet: bool = False) -> dict:
    """{"rows": [{"products", "group", "val_loss", "diverged_at", "seconds"}], "figure": path}, float32 first.

    Each of `names` stands in all three products; `narrow` also in one product at a time, the others in float32 by BLAS.
    """
    check_folder(out)
    alone = [f"{role}={narrow}" for role in ROLES]
    products = ["float32", *names, *alone]
    results = experiments([(dataclasses.replace(options, products=name), False) for name in products], quiet, "accumulators")
    rows = [{"products": name, "group": "one product" if name in alone else "all three products",
             **{key: r[key] for key in ("val_loss", "diverged_at", "seconds")}} for name, r in zip(products, results, strict=True)]
    return {"rows": rows, "figure": str(loss_against_accumulator(rows, Path(out) / "loss_against_accumulator.png"))}


def describe(result: dict) -> str:
    """The table for people."""
    reference = result["rows"][0]["val_loss"]
    rows = [[r["products"], loss_text(r), "-" if None in (r["val_loss"], reference) else f"{r['val_loss'] - reference:+.4f}",
             f"{r['seconds']:.0f}"] for r in result["rows"]]
    return "\n".join([table(["accumulator", "validation loss", "minus float32", "seconds"], rows), f"figure: {result['figure']}"])
