"""The same model under many recipes and strategies, over several seeds: a table and figures."""
import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path

from minillm.errors import MiniLLMError
from minillm.experiments.demo import ROLES
from minillm.experiments.options import TrainOptions, names_in
from minillm.experiments.tables import table
from minillm.experiments.workers import experiments
from minillm.files import check_folder
from minillm.plotting.augmentation import rows_of_marks
from minillm.plotting.recipes import recipe_comparison
from minillm.plotting.training import loss_curves
from minillm.training.metrics import curves

MOST_SEEDS = 1000          # each is a whole training run under every recipe


def compare(recipes: list[str], models: list[TrainOptions], seeds: int = 1, out: str | Path = "figures",
            quiet: bool = False) -> dict:
    """{"rows": [...], "figures": [...]}: for each of these and each recipe the mean over seeds, of the runs that stayed finite.

    Those of one model differ in their strategy.
    """
    if not 1 <= seeds <= MOST_SEEDS:
        raise MiniLLMError(f"--seeds is {seeds}: it must lie in 1 ... {MOST_SEEDS}")
    if len(set(recipes)) < len(recipes) or not recipes:
        raise MiniLLMError(f"--recipes is {','.join(recipes)!r}: name one recipe or more, each once")
    check_folder(out)
    groups = {(options, name): [dataclasses.replace(options, recipe=name, seed=options.seed + i) for i in range(seeds)]
              for options in models for name in recipes}
    results = iter(experiments([(job, False) for jobs in groups.values() for job in jobs], quiet, "compare"))
    found = {key: [next(results) for _ in jobs] for key, jobs in groups.items()}
    figures = [path for options in models for path in
               draw({name: found[options, name] for name in recipes}, options, Path(out), len({o.model for o in models}) > 1)]
    rows = [row(name, group) for (_, name), group in found.items()]
    for model in dict.fromkeys(options.model for options in models):
        if any(options.strategy for options in models if options.model == model):
            figures.append(draw_strategies({key: group for key, group in found.items() if key[0].model == model}, model, Path(out)))
    return {"rows": rows, "figures": figures}


def draw(groups: dict[str, list[dict]], options: TrainOptions, out: Path, several: bool) -> list[str]:
    """The two figures of one model."""
    stem = "-".join(["compare", *[options.model] * several, *options.strategies]).replace(":", "")
    lines = {name: curves(group[0]["records"]) | {"diverged_at": group[0]["diverged_at"]} for name, group in groups.items()}
    rows = [row(name, group) for name, group in groups.items()]
    title = ", ".join([f"Seed {options.seed}", *[options.model] * several, *options.strategies])
    return [str(recipe_comparison(rows, out / f"{stem}.png")), str(loss_curves(lines, out / f"{stem}-loss.png", title))]


def draw_strategies(found: dict[tuple, list[dict]], model: str, out: Path) -> str:
    """What counts of one model, the first score or the loss, for every strategy and recipe, a mark for each seed."""
    metrics = next((r["metrics"] for group in found.values() for r in group if "metrics" in r), None)
    task, score = next(((task, score) for task, scores in (metrics or {}).items() for score in scores), ("", ""))

    def judged(result: dict) -> float | None:
        return result.get("metrics", {}).get(task, {}).get(score) if score else result["val_loss"]

    rows = {f"{shown(options.strategies)}, {recipe}": [v for v in map(judged, group) if v is not None]
            for (options, recipe), group in found.items()}
    rows = {name: values for name, values in rows.items() if values}
    return str(rows_of_marks(rows, out / f"compare-{model}-strategies.png", f"What each strategy does for {model}",
                             f"{score.replace('_', ' ')} on {task}" if score else "validation loss (nats per token)"))


def shown(strategies: list[str]) -> str:
    return " + ".join(strategies) or "none"


def row(name: str, group: list[dict]) -> dict:
    """Means over seeds; `val_loss_sd` is the standard deviation between seeds, 0 for one; `ranges`: least and most of a score."""
    losses, found = [r["val_loss"] for r in group if r["val_loss"] is not None], [r["metrics"] for r in group if "metrics" in r]
    return {"model": group[0]["model"], "strategy": group[0]["strategy"], "recipe": name, "seeds": len(group),
            "val_loss": statistics.fmean(losses) if losses else None,
            "val_loss_sd": statistics.stdev(losses) if len(losses) > 1 else 0.0,
            "unigram_loss": group[0]["unigram_loss"], "metrics": over_runs(statistics.fmean, found),
            "ranges": over_runs(lambda values: [min(values), max(values)], found),
            "diverged": len(group) - len(losses),
            "skipped_steps": statistics.fmean(r["skipped_steps"] for r in group),
            "zero_gradient_share": statistics.fmean(r["zero_gradient_share"] for r in group),
            "learned_steps": group[0]["learned_steps"], "bytes": group[0]["bytes"], "stored_bytes": group[0]["stored_bytes"],
            "seconds": round(statistics.fmean(r["seconds"] for r in group), 2)}


def over_runs(of: Callable[[list[float]], float | list[float]], found: list[dict]) -> dict[str, dict]:
    """{task: {score: of the values of all runs}}; nothing for runs on a text."""
    first = found[0] if found else {}
    return {task: {name: of([m[task][name] for m in found]) for name in scores} for task, scores in first.items()}


def describe(result: dict) -> str:
    """The table for people: of tasks the first score, of texts the loss alone; no column that says the same in each row."""
    models, strategies = ({r[key] for r in result["rows"]} for key in ("model", "strategy"))
    left_out = {"model": len(models) == 1, "strategy": strategies == {""}, "unigram": len(models) == 1,
                "score": not any(r["metrics"] for r in result["rows"])}
    rows = [{key: cell for key, cell in cells(r).items() if not left_out.get(key)} for r in result["rows"]]
    more = [f"{r['recipe']} trains {r['learned_steps']:,} parameters more than the others: the steps of its quantizers"
            for r in result["rows"] if r["learned_steps"]]
    return "\n".join([table(list(rows[0]), [list(row.values()) for row in rows]), "", *more,
                      *(f"figure: {path}" for path in result["figures"])])


def cells(r: dict) -> dict[str, str]:
    """One row of the table, by the heads of its columns."""
    return {"model": r["model"], "strategy": shown(names_in(r["strategy"])), "recipe": r["recipe"],
            "validation loss": "-" if r["val_loss"] is None else f"{r['val_loss']:.4f}", "sd": f"{r['val_loss_sd']:.4f}",
            "unigram": f"{r['unigram_loss']:.4f}", "score": first_scores(r["metrics"], r["ranges"]),
            "not finite": f"{r['diverged']} of {r['seeds']}", "skipped": f"{r['skipped_steps']:g}",
            "zeroed": f"{r['zero_gradient_share']:.2%}", **{f"{role} MB": f"{r['bytes'][role] / 1e6:.2f}" for role in ROLES},
            "seconds": f"{r['seconds']:.0f}"}


def first_scores(metrics: dict[str, dict[str, float]], ranges: dict[str, dict[str, list[float]]]) -> str:
    """The score that counts of each task, and from where to where it lies: "f1 0.960 (0.947 to 0.970)"."""
    firsts = [(task, next(iter(scores))) for task, scores in metrics.items()]
    return ", ".join(f"{score} {metrics[task][score]:.3f} ({ranges[task][score][0]:.3f} to {ranges[task][score][1]:.3f})"
                     for task, score in firsts) or "-"
