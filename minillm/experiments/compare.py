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


def compare(recipes: list[str], models: list[TrainOptions], seeds: int = 1, out: str | Path = "figures",
            quiet: bool = False) -> dict:
    """{"rows": [...], "figures": [...]}: for each model and recipe the mean over seeds, of the runs that stayed finite."""
    if not 1 <= seeds <= MOST_SEEDS:
        raise MiniLLMError(f"--seeds is {seeds}: it must lie in 1 ... {MOST_SEEDS}")
    if len(set(recipes)) < len(recipes) or not recipes:
        raise MiniLLMError(f"--recipes is {','.join(recipes)!r}: name one recipe or more, each once")
    check_folder(out)
    groups = {(options.model, name): [dataclasses.replace(options, recipe=name, seed=options.seed + i) for i in range(seeds)]
              for options in models for name in recipes}
    results = iter(experiments([(job, False) for jobs in groups.values() for job in jobs], quiet, "compare"))
    found = {key: [next(results) for _ in jobs] for key, jobs in groups.items()}
    figures = [path for options in models for path in
               draw({name: found[options.model, name] for name in recipes}, options, Path(out), len(models) > 1)]
    return {"rows": [row(name, group) for (_, name), group in found.items()], "figures": figures}


def draw(groups: dict[str, list[dict]], options: TrainOptions, out: Path, several: bool) -> list[str]:
    """The two figures of one model."""
    stem = f"compare-{options.model}" if several else "compare"
    lines = {name: curves(group[0]["records"]) | {"diverged_at": group[0]["diverged_at"]} for name, group in groups.items()}
    rows = [row(name, group) for name, group in groups.items()]
    title = f"Seed {options.seed}" + (f", {options.model}" if several else "")
    return [str(recipe_comparison(rows, out / f"{stem}.png")), str(loss_curves(lines, out / f"{stem}-loss.png", title))]


def row(name: str, group: list[dict]) -> dict:
    """Means over seeds; `val_loss_sd` is the standard deviation between seeds, 0 for one."""
    losses = [r["val_loss"] for r in group if r["val_loss"] is not None]
    return {"model": group[0]["model"], "recipe": name, "seeds": len(group),
            "val_loss": statistics.fmean(losses) if losses else None,
            "val_loss_sd": statistics.stdev(losses) if len(losses) > 1 else 0.0,
            "unigram_loss": group[0]["unigram_loss"], "metrics": mean_metrics([r["metrics"] for r in group if "metrics" in r]),
            "diverged": len(group) - len(losses),
            "skipped_steps": statistics.fmean(r["skipped_steps"] for r in group),
            "zero_gradient_share": statistics.fmean(r["zero_gradient_share"] for r in group),
            "learned_steps": group[0]["learned_steps"], "bytes": group[0]["bytes"], "stored_bytes": group[0]["stored_bytes"],
            "seconds": round(statistics.fmean(r["seconds"] for r in group), 2)}


def mean_metrics(found: list[dict]) -> dict[str, dict[str, float]]:
    """{task: {score: mean over runs}}; nothing for runs on a text."""
    return {task: {name: statistics.fmean(m[task][name] for m in found) for name in scores}
            for task, scores in (found[0].items() if found else ())}


def describe(result: dict) -> str:
    """The table for people: of tasks the first score, of texts the loss alone."""
    several = len({r["model"] for r in result["rows"]}) > 1
    scored = any(r["metrics"] for r in result["rows"])
    head = [*["model"] * several, "recipe", "validation loss", "sd", *["unigram"] * several, *["score"] * scored, "not finite",
            "skipped", "zeroed", *(f"{role} MB" for role in ROLES), "seconds"]
    rows = [[*[r["model"]] * several, r["recipe"], "-" if r["val_loss"] is None else f"{r['val_loss']:.4f}",
             f"{r['val_loss_sd']:.4f}", *[f"{r['unigram_loss']:.4f}"] * several, *[first_scores(r["metrics"])] * scored,
             f"{r['diverged']} of {r['seeds']}", f"{r['skipped_steps']:g}", f"{r['zero_gradient_share']:.2%}",
             *(f"{r['bytes'][role] / 1e6:.2f}" for role in ROLES), f"{r['seconds']:.0f}"] for r in result["rows"]]
    more = [f"{r['recipe']} trains {r['learned_steps']:,} parameters more than the others: the steps of its quantizers"
            for r in result["rows"] if r["learned_steps"]]
    return "\n".join([table(head, rows), "", *more, *(f"figure: {path}" for path in result["figures"])])


def first_scores(metrics: dict[str, dict[str, float]]) -> str:
    """The score that counts of each task: "f1 0.982"."""
    return ", ".join(f"{name} {value:.3f}" for scores in metrics.values() for name, value in list(scores.items())[:1]) or "-"
