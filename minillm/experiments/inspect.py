"""What the numbers of a run look like: its next steps under the microscope, and what other formats would make of them."""
import dataclasses
import math
from pathlib import Path

import numpy as np

from minillm.autograd.watching import watch
from minillm.errors import MiniLLMError
from minillm.experiments.options import check_range
from minillm.experiments.run_folder import RunFolder
from minillm.experiments.running import Run, load_run, new_run
from minillm.experiments.tables import table
from minillm.files import check_folder
from minillm.formats import format_named
from minillm.plotting.microscope import inspection
from minillm.plotting.records import percent
from minillm.precision.underflow import Microscope
from minillm.precision.what_if import FORMATS_ASKED, WhatIf
from minillm.recipes import recipe_named
from minillm.rounding import widen
from minillm.training.metrics import read_metrics

FATES = ("zeroed", "subnormal", "saturated", "overflowed", "lost")


def inspect(path: str | Path, format: str | None = None, steps: int = 1, out: str | Path | None = None) -> dict:
    """The next `steps` steps of a run, from its checkpoint, watched; what is in the run folder stays as it is.

    {"run", "recipe", "steps": [{"step" (from 1), "loss", "loss_scale", "finite", "first_not_finite" (None if all was finite)}],
    "history": [{"step", "first_not_finite"}]: steps of the run itself that were not finite, "diverged_at" (None if it went on),
    "rows": as Microscope.rows gives them, "what_if": {"step", "rows": as WhatIf.rows gives them, "lost_updates": {format: share}},
    "formats": those that were asked for, "figure": its path}.
    what_if is of the first of the steps, in float32, with the run's weights, under `format` or, where none is given, under each
    format with a sign and a mantissa that is no dialect. The figure, inspect.png, goes to `out` or into the run folder.
    Raises MiniLLMError for an unknown run or format, and a run without a checkpoint.
    """
    check_range("steps", steps, 1)
    formats = (format_named(format),) if format else FORMATS_ASKED
    folder = RunFolder(Path(path))
    options, recipe = folder.read_config()
    what_if = WhatIf(formats)                                    # a format that it cannot ask is refused before the work
    history = [{"step": r["step"], "first_not_finite": r["first_not_finite"]} for r in read_metrics(folder.metrics)
               if r.get("first_not_finite")]
    check_checkpoint(folder, history)
    check_folder(out or path)
    run = load_run(folder, options, folder.read_data(options), recipe)
    with watch(what_if):
        attempt(float32_twin(run))
    rows, made = watched_steps(run, steps)
    result = {"run": str(path), "recipe": recipe.name, "steps": made, "history": history, "diverged_at": diverged_at(folder),
              "rows": rows, "what_if": {"step": made[0]["step"], "rows": what_if.rows(), "lost_updates": what_if.lost_updates()},
              "formats": [f.name for f in formats]}
    shown = format or "float16"
    figure = inspection(by_layer(rows, ("phase", "layer")), [r for r in result["what_if"]["rows"] if r["format"] == shown],
                        Path(out or path) / "inspect.png", format_named(shown), f"{recipe.name}, step {made[0]['step']}",
                        math.log2(made[0]["loss_scale"]))
    return result | {"figure": str(figure)}


def check_checkpoint(folder: RunFolder, history: list[dict]) -> None:
    """A run that ended before its first checkpoint can still say why."""
    if history and not folder.state.is_file():
        last = history[-1]
        raise MiniLLMError(f"{folder.path} has no checkpoint to inspect: it was not finite at step {last['step']}, "
                           f"{last['first_not_finite']}; train it anew with --force and another --recipe or --lr")


def diverged_at(folder: RunFolder) -> int | None:
    """The step at which a run ended because it was not finite: its last attempt or its last validation was."""
    last = next(reversed(read_metrics(folder.metrics)), {})
    failed = last.get("first_not_finite") or ("val_loss" in last and last["val_loss"] is None)
    return last["step"] if failed else None


def float32_twin(run: Run) -> Run:
    """The same run gone over to float32 where it stands, without a loss scale: what it does, no format has touched."""
    recipe = dataclasses.replace(recipe_named("float32"), eps=run.model.ops.recipe.eps)
    twin, own = new_run(run.options, run.data, recipe, kept=getattr(run.model.shape, "kept", ())), run.trainer.objective.optimizer
    twin.model.load_state_dict({name: widen(a, np.float32) for name, a in run.model.state_dict().items()})
    optimizer = twin.trainer.objective.optimizer
    for slot in optimizer.slots:
        optimizer.state[slot] = {name: np.array(own.recall(slot, name)) for name in optimizer.parameters}
    optimizer.steps, twin.trainer.step = own.steps, run.trainer.step
    return twin


def attempt(run: Run):
    """One step as the trainer makes it, but not replayed where it overflows: whoever watches would see it twice."""
    result = run.trainer.attempt(run.trainer.schedule.lr_at(run.trainer.step))
    run.trainer.step += 1
    return result


def watched_steps(run: Run, steps: int) -> tuple[list[dict], list[dict]]:
    """(rows of the microscope, what each step came to)."""
    rows, made = [], []
    for _ in range(steps):
        with watch(seen := Microscope(run.trainer.step + 1)):
            result = attempt(run)
        rows += seen.rows()
        made.append({"step": seen.step, "loss": result.loss if math.isfinite(result.loss) else None, "loss_scale": result.scale,
                     "finite": result.finite, "first_not_finite": str(seen.first) if seen.first.phase else None})
    return rows, made


# --- for people

def by_layer(rows: list[dict], of: tuple[str, ...] = ("phase", "layer", "op", "format")) -> list[dict]:
    """Rows of one layer, the first name of the scope, taken together: counts added up, the least headroom, the largest error."""
    groups = {}
    for row in rows:
        row = row | {"layer": row["scope"].split(".")[0]}
        groups.setdefault(tuple(row[name] for name in of), []).append(row)
    return [dict(zip(of, key, strict=True)) | together(group) for key, group in groups.items()]


def together(group: list[dict]) -> dict:
    """What several rows say together."""
    exponents = {}
    for row in group:
        for exponent, count in row["exponents"].items():
            exponents[exponent] = exponents.get(exponent, 0) + count
    return {**{name: sum(row[name] for row in group) for name in ("values", "infinite", "nan", *FATES)}, "exponents": exponents,
            "headroom": min((row["headroom"] for row in group if row["headroom"] is not None), default=None),
            "error": max((row["error"] for row in group if row["error"] is not None), default=None)}


def describe(result: dict) -> str:
    """The tables that the command prints."""
    return "\n\n".join([told(result), layers_table(result["rows"]), what_if_table(result), result["figure"]])


def told(result: dict) -> str:
    """What the steps came to, and where the run itself was not finite."""
    lines = [f"step {s['step']} of {result['run']}, {result['recipe']}, loss scale {s['loss_scale']:g}: "
             + (s["first_not_finite"] or "every value was finite") for s in result["steps"]]
    if result["history"]:
        last, count = result["history"][-1], len(result["history"])
        lines.append(f"{count} step{'s' * (count > 1)} of the run {'were' if count > 1 else 'was'} not finite, the last of them "
                     f"step {last['step']}: {last['first_not_finite']}")
    if result["diverged_at"] is not None:
        lines.append(f"the run ended at step {result['diverged_at']}, where it was not finite")
    return "\n".join(lines)


def layers_table(rows: list[dict]) -> str:
    """By phase, layer and op: what rounding did."""
    head = ["phase       layer       op", "format", "values", "zeroed", "subnormal", "saturated", "too large", "lost", "error",
            "headroom", "exponents"]
    return table(head, [[f"{r['phase']:12}{r['layer'] or '-':12}{r['op']}", r["format"], f"{r['values']:,}",
                         *(share(r[name], r["values"]) for name in FATES), number(r["error"], "{:.1e}"),
                         number(r["headroom"], "{:.1f}"), span(r["exponents"])] for r in by_layer(rows)])


def share(count: int, values: int) -> str:
    return percent(count / values) if count else "-"


def number(value: float | None, how: str) -> str:
    return how.format(value) if value else "-"


def span(exponents: dict) -> str:
    """The lowest and the highest exponent of any value."""
    found = [int(e) for e in exponents if e != "zero"]
    return f"{min(found)} .. {max(found)}" if found else "-"


def what_if_table(result: dict) -> str:
    """One format at every loss scale; or each format at no scale, and at the largest that overflows nowhere."""
    rows, lost = result["what_if"]["rows"], result["what_if"]["lost_updates"]
    if len(result["formats"]) == 1:
        return one_format(result["formats"][0], rows, lost)
    head = ["what if all were", "values zeroed", "gradients zeroed", "subnormal", "largest scale", "zeroed at it", "v zeroed",
            "updates lost"]
    return table(head, [[name, *summary([r for r in rows if r["format"] == name]), percent(lost[name])]
                        for name in result["formats"]])


def summary(rows: list[dict]) -> list[str]:
    """One format: values of the forward pass, gradients without a scale and at the largest that overflows nowhere, Adam's v."""
    kinds = {(r["kind"], r["log2_scale"]): r for r in rows}
    scales = [k for kind, k in kinds if kind == "backward" and not kinds[kind, k]["overflowed"]]
    best = max(scales, default=None)
    v = kinds.get(("update/v", None))
    return [percent(kinds["forward", None]["zeroed"]), percent(kinds["backward", 0]["zeroed"]),
            percent(kinds["backward", 0]["subnormal"]), "none" if best is None else f"2^{best}",
            "-" if best is None else percent(kinds["backward", best]["zeroed"]), percent(v["zeroed"]) if v else "-"]


def one_format(name: str, rows: list[dict], lost: dict) -> str:
    """The gradients at every fourth scale, then what no scale reaches."""
    def shares(row):
        return [percent(row[fate]) for fate in ("zeroed", "subnormal", "overflowed")]

    scaled = [[f"2^{r['log2_scale']}", *shares(r)] for r in rows if r["kind"] == "backward" and r["log2_scale"] % 4 == 0]
    others = [[r["kind"], *shares(r)] for r in rows if r["log2_scale"] is None]
    return "\n\n".join([table([f"gradients in {name}, loss scale", "zeroed", "subnormal", "too large"], scaled),
                        table([f"other values in {name}", "zeroed", "subnormal", "too large"], others),
                        f"updates lost, were the weights {name}: {percent(lost[name])}"])
