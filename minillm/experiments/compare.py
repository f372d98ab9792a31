"""The same model under many recipes, over several seeds: a table and two figures."""
import dataclasses
import statistics
from pathlib import Path

from minillm.errors import MiniLLMError
from minillm.experiments.demo import ROLES
from minillm.experiments.options import TrainOptions
from minillm.experiments.tables import table
from minillm.experiments.workers import experiments
from minillm.files import check_folder
from minillm.plotting.recipes import recipe_comparison
from minillm.plotting.training import loss_curves
from minillm.training.metrics import curves

MOST_SEEDS = 1000          # each is a whole training run under every recipe


def compare(recipes: list[str], options: TrainOptions, seeds: int = 1, out: str | Path = "figures", quiet: bool = False) -> dict:
    """{"rows": [...], "figures": [...]}: for each recipe the mean over `seed`, `seed` + 1, ... of the runs that stayed finite."""
    if not 1 <= seeds <= MOST_SEEDS:
        raise MiniLLMError(f"--seeds is {seeds}: it must lie in 1 ... {MOST_SEEDS}")
    if len(set(recipes)) < len(recipes) or not recipes:
        raise MiniLLMError(f"--recipes is {','.join(recipes)!r}: name one recipe or more, each once")
    check_folder(out)
    jobs = [dataclasses.replace(options, recipe=name, seed=options.seed + i) for name in recipes for i in range(seeds)]
    results = experiments([(job, False) for job in jobs], quiet, "compare")
    groups = {name: [r for r in results if r["recipe"] == name] for name in recipes}
    rows = [row(name, group) for name, group in groups.items()]
    lines = {name: curves(group[0]["records"]) | {"diverged_at": group[0]["diverged_at"]} for name, group in groups.items()}
    return {"rows": rows, "figures": [str(recipe_comparison(rows, Path(out) / "compare.png")),
                                      str(loss_curves(lines, Path(out) / "compare-loss.png", f"Seed {options.seed}"))]}


def row(name: str, group: list[dict]) -> dict:
    """Means over seeds; `val_loss_sd` is the standard deviation between seeds, 0 for one."""
    losses = [r["val_loss"] for r in group if r["val_loss"] is not None]
    return {"recipe": name, "seeds": len(group), "val_loss": statistics.fmean(losses) if losses else None,
            "val_loss_sd": statistics.stdev(losses) if len(losses) > 1 else 0.0, "diverged": len(group) - len(losses),
            "skipped_steps": statistics.fmean(r["skipped_steps"] for r in group),
            "zero_gradient_share": statistics.fmean(r["zero_gradient_share"] for r in group),
            "learned_steps": group[0]["learned_steps"], "bytes": group[0]["bytes"], "stored_bytes": group[0]["stored_bytes"],
            "seconds": round(statistics.fmean(r["seconds"] for r in group), 2)}


def describe(result: dict) -> str:
    """The table for people."""
    head = ["recipe", "validation loss", "sd", "not finite", "skipped", "zeroed", *(f"{role} MB" for role in ROLES), "seconds"]
    rows = [[r["recipe"], "-" if r["val_loss"] is None else f"{r['val_loss']:.4f}", f"{r['val_loss_sd']:.4f}",
             f"{r['diverged']} of {r['seeds']}", f"{r['skipped_steps']:g}", f"{r['zero_gradient_share']:.2%}",
             *(f"{r['bytes'][role] / 1e6:.2f}" for role in ROLES), f"{r['seconds']:.0f}"] for r in result["rows"]]
    more = [f"{r['recipe']} trains {r['learned_steps']:,} parameters more than the others: the steps of its quantizers"
            for r in result["rows"] if r["learned_steps"]]
    return "\n".join([table(head, rows), "", *more, *(f"figure: {path}" for path in result["figures"])])
