"""Figures of runs over their steps: loss, and the loss scale.

Each takes plain records and a path, draws one PNG and returns its path; losses are in nats per token.
"""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minillm.plotting import style
from minillm.plotting.records import PathLike, finite_points


def loss_curves(runs: Mapping[str, Mapping[str, Any]], path: PathLike, title: str = "Loss while training",
                reference: str | None = None, levels: Mapping[str, float] | None = None) -> Path:
    """Draw the training loss (line) and the validation loss (markers) of one run or several.

    runs: {recipe: {"steps": [int], "loss": [float], "val_steps": [int], "val_loss": [float],
    "diverged_at": int | None}}. A run that diverged ends with a cross. With `reference`, the name of a run, a second panel shows
    how far the others' validation losses lie from its own: on the first, runs that are alike hide one another. `levels` are
    losses to compare with, by name, each a horizontal line.
    """
    with style.applied():
        if reference is None:
            figure, axes = style.figure()
        else:
            figure, (axes, below) = style.figure(2, height=5.2, sharex=True, height_ratios=(3, 1.3))
        radius = max((len(run.get("steps") or ()) for run in runs.values()), default=0) // 60
        curves = [*_measured(runs), *([np.array([*levels.values()], float)] if levels else [])]
        low, high = _loss_limits(curves)
        looks = style.looks(runs)
        handles = [_loss_curve(axes, name, run, looks[name], radius, high) for name, run in runs.items()]
        axes.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))
        for name, loss in (levels or {}).items():
            _level(axes, name, loss)
        smoothing = f", median of {2 * radius + 1} points" if radius else ""
        axes.set(xlabel="step", ylabel=f"loss (nats per token)\nline: training{smoothing}", title=style.shown(title))
        if reference is not None:
            axes.set_xlabel("")
            _gaps(below, runs, reference, looks)
        style.whole_ticks(axes.xaxis)
        if not curves:
            axes.set_yticks([])
        if not axes.lines:
            style.say_empty(axes)
        if any(run.get("val_steps") for run in runs.values()):
            handles.append(style.key("markers: validation", color=style.GREY, marker="o", linestyle="none"))
        style.legend(figure, handles)
        return style.save(figure, path)


def _level(axes: Any, name: str, loss: float) -> None:
    """A line across the axes with its name on it."""
    axes.axhline(loss, color=style.GREY, linestyle=":", linewidth=1.4, zorder=1)
    # At the left, where a training curve is still high above everything that it is compared with.
    axes.annotate(style.shown(name, longest=60), (0, loss), xycoords=axes.get_yaxis_transform(), xytext=(3, 2),
                  textcoords="offset points", va="bottom", fontsize=9, color=style.GREY)


def _gaps(axes: Any, runs: Mapping[str, Mapping[str, Any]], reference: str, looks: Mapping[str, style.Look]) -> None:
    """Validation losses less those of the reference at the same steps, in thousandths of a nat."""
    base = dict(zip(*finite_points(runs[reference].get("val_steps"), runs[reference].get("val_loss")), strict=True))
    axes.axhline(0, color=style.GREY, linewidth=1)
    for name, run in runs.items():
        steps, losses = finite_points(run.get("val_steps"), run.get("val_loss"))
        shared = [(step, 1000 * (loss - base[step])) for step, loss in zip(steps, losses, strict=True) if step in base]
        if name != reference and shared:
            axes.plot(*zip(*shared, strict=True), **looks[name].points | looks[name].line)
    axes.set(xlabel="step", ylabel=f"minus {reference}\n(1/1000 nat)")
    style.whole_ticks(axes.xaxis)


def _measured(runs: Mapping[str, Mapping[str, Any]]) -> list[np.ndarray]:
    """All losses that were measured, training and validation, a curve each."""
    curves = [finite_points(run.get("steps"), run.get("loss"))[1] for run in runs.values()]
    curves += [finite_points(run.get("val_steps"), run.get("val_loss"))[1] for run in runs.values()]
    return [curve for curve in curves if curve.size]


def _loss_limits(curves: Sequence[np.ndarray]) -> tuple[float, float]:
    """What the loss axis shows: everything, but no more than 1.25 times the highest first loss."""
    if not curves:
        return 0.0, 1.0
    low = min(curve.min() for curve in curves)
    # A run that explodes reaches thousands before it stops; on that axis the others would be one flat line.
    high = min(max(curve.max() for curve in curves), 1.25 * max(abs(curve[0]) for curve in curves))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _loss_curve(axes: Any, name: str, run: Mapping[str, Any], look: style.Look, radius: int, high: float) -> Any:
    """Draw one run; returns its entry in the legend."""
    steps, losses = finite_points(run.get("steps"), run.get("loss"))
    val_steps, val_losses = finite_points(run.get("val_steps"), run.get("val_loss"))
    label, diverged_at = style.shown(name, longest=60), run.get("diverged_at")
    if steps.size:
        if radius:
            axes.plot(steps, losses, color=look.color, alpha=0.22, linewidth=0.7, zorder=1)
        axes.plot(steps, _smooth(losses, radius), **look.line, marker="." if steps.size == 1 else "")
    if val_steps.size:
        axes.plot(val_steps, val_losses, **look.points, zorder=3)
    if diverged_at is None:
        return style.key(label, **look.points | look.line)
    ending = min(losses[-1], high) if losses.size else high
    style.marks(axes, [diverged_at], [ending], **style.cross(look.color))
    return style.key(f"{label}: not finite at step {diverged_at}", **style.cross(look.color) | look.line)


def _smooth(values: np.ndarray, radius: int) -> np.ndarray:
    """The median of each value and up to `radius` values on each side of it.

    A median, because a mean would let a run that explodes rise many steps before it does. At the start the window
    shrinks on both sides, or the steep first steps would pull the line down.
    """
    reaches = np.minimum(radius, np.arange(values.size))
    return np.array([np.median(values[i - reach : i + reach + 1]) for i, reach in enumerate(reaches)])


def loss_scale_history(runs: Mapping[str, Mapping[str, Any]], path: PathLike) -> Path:
    """Draw the loss scale of each run as stairs, and below it a tick for every step that was skipped.

    runs: {recipe: {"steps": [int], "log2_scale": [float], "skipped": [steps that overflowed]}}; steps count attempts.
    """
    with style.applied():
        rug_height = max(0.7, 0.25 + 0.16 * len(runs))
        figure, (scale, rug) = style.figure(2, height=3.6 + rug_height, sharex=True, height_ratios=[3.2, rug_height])
        looks = style.looks(runs)
        handles = [_scale_stairs(scale, name, run, looks[name]) for name, run in runs.items()]
        _skipped_rug(rug, runs, looks)
        _scale_axis(scale, "Loss scale and skipped steps")
        style.legend(figure, handles)
        return style.save(figure, path)


def scaler_replays(runs: Mapping[str, Mapping[str, Any]], path: PathLike, title: str = "What each scaler would have done") -> Path:
    """Draw what several scalers do with one trace: the loss scale, the headroom in bits below it, and the steps that are skipped.

    runs: as for `loss_scale_history`, with "headroom": [bits], the number of doublings until the largest gradient overflows, and
    "fate", a few words for the legend. A scale of 0 or infinity is None in "log2_scale": its line ends there with a cross.
    """
    with style.applied():
        rug_height = max(0.7, 0.25 + 0.16 * len(runs))
        figure, (scale, room, rug) = style.figure(3, height=5.2 + rug_height, sharex=True, height_ratios=[3, 1.8, rug_height])
        looks = style.looks(runs)
        handles = [_scale_stairs(scale, name, run, looks[name]) for name, run in runs.items()]
        for name, run in runs.items():
            if run.get("headroom"):
                room.plot(*finite_points(run["steps"], run["headroom"]), drawstyle="steps-post", **looks[name].line)
            _scale_end(scale, run, looks[name])
        for axes, lowest, highest in ((scale, -165, 140), (room, -30, 60)):      # a 64-bit scale may go down to 2^-1074
            low, high = axes.get_ylim()
            axes.set_ylim(max(low, lowest), min(high, highest))
        room.axhline(0, color=style.GREY, linewidth=1, linestyle=":")
        room.set_ylabel("headroom (bits)\nbelow 0: overflow")
        _skipped_rug(rug, runs, looks)
        _scale_axis(scale, style.shown(title))
        style.legend(figure, handles)
        return style.save(figure, path)


def _scale_end(axes: Any, run: Mapping[str, Any], look: style.Look) -> None:
    """A cross where a scale becomes 0 or infinite."""
    scales = [None if value is None or not np.isfinite(value) else value for value in run.get("log2_scale") or ()]
    last = next((i for i, value in enumerate(scales) if value is None), len(scales)) - 1
    if 0 <= last < len(scales) - 1:
        style.marks(axes, [run["steps"][last + 1]], [scales[last]], **style.cross(look.color))


def _skipped_rug(axes: Any, runs: Mapping[str, Mapping[str, Any]], looks: Mapping[str, style.Look]) -> None:
    """A tick for every skipped step, a row for each run."""
    for row, (name, run) in enumerate(runs.items()):
        axes.eventplot(run.get("skipped") or [], lineoffsets=row, linelengths=0.8, colors=looks[name].color)
    axes.set(ylim=(max(len(runs), 1) - 0.4, -0.6), yticks=[], xlabel="optimizer attempt (step)", ylabel="skipped")
    axes.grid(False, axis="y")
    style.whole_ticks(axes.xaxis)


def _scale_axis(axes: Any, title: str) -> None:
    """Powers of two; where no scale was recorded, words in their place."""
    axes.set(title=title, ylabel="loss scale (a factor, no unit)")
    style.power_ticks(axes.yaxis)
    if not axes.lines:
        style.say_empty(axes)
        axes.set_yticks([])


def _scale_stairs(axes: Any, name: str, run: Mapping[str, Any], look: style.Look) -> Any:
    steps, scales = finite_points(run.get("steps"), run.get("log2_scale"))
    if steps.size:
        axes.plot(steps, scales, drawstyle="steps-post", **look.line, marker=look.marker if steps.size == 1 else "")
    count = f"{len(run.get('skipped') or ())} skipped" + ("" if steps.size else ", scale not recorded")
    count += f", {run['fate']}" if run.get("fate") else ""
    return style.key(f"{style.shown(name, longest=60)}: {count}", **look.line)
