"""The main job: one small GPT under five recipes, a sweep of static loss scales, and int8 weights. A table and four figures."""
import dataclasses
import math
from pathlib import Path

from minillm.errors import MiniLLMError
from minillm.experiments.options import TrainOptions
from minillm.experiments.tables import loss_text, table
from minillm.experiments.workers import experiments
from minillm.files import check_folder
from minillm.plotting.gradients import gradient_exponents
from minillm.plotting.recipes import static_scale
from minillm.plotting.training import loss_curves, loss_scale_history
from minillm.training.metrics import curves

RECIPES = ("float32", "bfloat16-mixed", "float16-mixed", "float16-unscaled", "float16")
LOG2_SCALES = (-10, -8, -7, -6, -4, -2, 0, 4, 8, 12, 16)
SMALL = TrainOptions(layers=2, heads=4, channels=64, steps=400, warmup=40, eval_every=100)
GROWTH_INTERVAL = 50             # instead of 2000, so that the scale is seen to grow into an overflow and to step back
SWEEP_STEPS = 150
ROLES = ("weights", "gradients", "optimizer", "activations")


def demo(out: str | Path = "figures", options: TrainOptions = SMALL, quiet: bool = False) -> dict:
    """Train, measure, draw into `out`; returns what `minillm demo --json` prints."""
    check_folder(out)
    short = dataclasses.replace(options, eval_every=0, steps=min(SWEEP_STEPS, options.steps))
    swept = [dataclasses.replace(short, recipe="float16-mixed", loss_scale=f"2^{power}") for power in LOG2_SCALES]
    jobs = [(for_recipe(options, name), name == "float32") for name in RECIPES]
    results = experiments([*jobs, (short, False), *((o, False) for o in swept)], quiet, "demo")
    runs, reference, sweep = dict(zip(RECIPES, results, strict=False)), results[len(RECIPES)], results[len(RECIPES) + 1:]
    if runs["float32"]["val_loss"] is None:
        raise MiniLLMError(f"float32 was not finite at step {runs['float32']['diverged_at']}, so there is nothing to compare with: "
                           f"lower lr, which is {options.lr}")
    points = [{"log2_scale": power, **{key: r[key] for key in ("val_loss", "diverged_at", "zero_gradient_share")}}
              for power, r in zip(LOG2_SCALES, sweep, strict=True)]
    return {"recipes": {name: row(r) for name, r in runs.items()}, "static_scale": points, "int8": runs["float32"]["int8"],
            "figures": [str(path) for path in draw(Path(out), runs, points, reference["val_loss"])]}


def for_recipe(options: TrainOptions, name: str) -> TrainOptions:
    """The same run under another recipe; only a dynamic scale's growth interval differs from the preset."""
    return dataclasses.replace(options, recipe=name, growth_interval=GROWTH_INTERVAL if name == "float16-mixed" else 0)


def row(r: dict) -> dict:
    """One recipe of the JSON."""
    return {key: r[key] for key in ("val_loss", "diverged_at", "first_not_finite", "skipped_steps", "zero_gradient_share", "bytes",
                                    "stored_bytes", "seconds")}


def draw(out: Path, runs: dict[str, dict], points: list[dict], reference: float | None) -> list[Path]:
    """The four figures."""
    lines = {name: curves(r["records"]) | {"diverged_at": r["diverged_at"]} for name, r in runs.items()}
    exponents = {name: runs[name]["exponents"] for name in ("float32", "float16-mixed", "float16-unscaled")}
    return [
        loss_curves(lines, out / "demo-loss.png", "One GPT under five recipes", "float32"),
        gradient_exponents(exponents, out / "demo-exponents.png"),
        loss_scale_history({"float16-mixed": scale_history(runs["float16-mixed"])}, out / "demo-loss-scale.png"),
        static_scale(points, out / "demo-static-scale.png", reference),
    ]


def scale_history(r: dict) -> dict:
    """Loss scale and skipped attempts, for the figure."""
    trained = [x for x in r["records"] if "loss_scale" in x]
    return {"steps": [x["step"] for x in trained], "log2_scale": [math.log2(x["loss_scale"]) for x in trained],
            "skipped": [x["step"] for x in trained if x["skipped"]]}


def describe(result: dict) -> str:
    """The tables for people."""
    rows = [[name, loss_text(r), r["skipped_steps"], f"{r['zero_gradient_share']:.2%}",
             *(f"{r['bytes'][role] / 1e6:.2f}" for role in ROLES), f"{r['seconds']:.0f}"] for name, r in result["recipes"].items()]
    head = ["recipe", "validation loss", "skipped", "zeroed", *(f"{role} MB" for role in ROLES), "seconds"]
    scales = [[f"2^{p['log2_scale']}", loss_text(p), f"{p['zero_gradient_share']:.2%}"] for p in result["static_scale"]]
    int8, float32 = result["int8"], result["recipes"]["float32"]["val_loss"]
    return "\n".join([
        table(head, rows), "zeroed: share of gradient values that rounding made zero. MB: in the format's own bits.", "",
        f"float16-mixed under static loss scales, {SWEEP_STEPS} steps each:",
        table(["scale", "validation loss", "zeroed"], scales), "",
        "float32 weights rounded to int8 by output channel: "
        f"validation loss {int8['val_loss']:.4f} ({int8['val_loss'] - float32:+.5f}), "
        f"{int8['bytes'] / 1e6:.2f} MB instead of {int8['bytes_float32'] / 1e6:.2f} MB",
        "", *(f"figure: {path}" for path in result["figures"])])
