"""Figures of training runs: loss, exponents of gradients, loss scale, and recipes side by side.

Every function takes plain records and a path, draws one PNG and returns its path. None and NaN in a record mean "not
measured" and are left out; losses are in nats per token.
"""
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minillm.errors import MiniLLMError
from minillm.formats import FLOAT16, Format
from minillm.plotting import style

PathLike = str | os.PathLike[str]
Points = tuple[np.ndarray, np.ndarray]
Histogram = Mapping[int | str, int]

NEAR = 0.10  # losses up to 10 % above the reference are to be told apart; those beyond it get another scale


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _finite_points(steps: Sequence[int] | None, values: Sequence[float | None] | None) -> Points:
    """The points that can be drawn, in the order of the steps."""
    steps, values = steps or [], values or []
    if len(steps) != len(values):
        raise MiniLLMError(f"a figure was given {len(steps)} steps and {len(values)} values: give one value a step")
    pairs = sorted((step, value) for step, value in zip(steps, values, strict=True) if _is_number(value))
    return np.array([step for step, _ in pairs], float), np.array([value for _, value in pairs], float)


# ---- 1. loss over steps ----


def loss_curves(runs: Mapping[str, Mapping[str, Any]], path: PathLike, title: str = "Loss while training") -> Path:
    """Draw the training loss (line) and the validation loss (markers) of one run or several.

    runs: {recipe: {"steps": [int], "loss": [float], "val_steps": [int], "val_loss": [float],
    "diverged_at": int | None}}. A run that diverged ends with a cross.
    """
    with style.applied():
        figure, axes = style.figure()
        radius = max((len(run.get("steps") or ()) for run in runs.values()), default=0) // 60
        low, high = _loss_limits(curves := _measured(runs))
        looks = style.looks(runs)
        handles = [_loss_curve(axes, name, run, looks[name], radius, high) for name, run in runs.items()]
        axes.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))
        smoothing = f", median of {2 * radius + 1} points" if radius else ""
        axes.set(xlabel="step", ylabel=f"loss (nats per token)\nline: training{smoothing}", title=style.shown(title))
        style.whole_ticks(axes.xaxis)
        if not curves:
            axes.set_yticks([])
        if not axes.lines:
            style.say_empty(axes)
        if any(run.get("val_steps") for run in runs.values()):
            handles.append(style.key("markers: validation", color=style.GREY, marker="o", linestyle="none"))
        style.legend(figure, handles)
        return style.save(figure, path)


def _measured(runs: Mapping[str, Mapping[str, Any]]) -> list[np.ndarray]:
    """All losses that were measured, training and validation, a curve each."""
    curves = [_finite_points(run.get("steps"), run.get("loss"))[1] for run in runs.values()]
    curves += [_finite_points(run.get("val_steps"), run.get("val_loss"))[1] for run in runs.values()]
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
    steps, losses = _finite_points(run.get("steps"), run.get("loss"))
    val_steps, val_losses = _finite_points(run.get("val_steps"), run.get("val_loss"))
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


# ---- 2. exponents of gradients ----

REGIONS = {"rounds to zero": "#F3C9B5", "subnormal": "#FBE7BF", "normal": "#DDF0E8", "overflow": "#D5D5D5"}


def gradient_exponents(
    histograms: Mapping[str, Histogram], path: PathLike, formats: Sequence[Format] = (FLOAT16,)
) -> Path:
    """Draw how the magnitudes of gradients are spread, over what each format does to such magnitudes.

    histograms: {recipe: {exponent, which is floor(log2|g|): count, "zero": count}}. The shares are of all values, zeros
    included. The plot is shaded for the first format; a strip above it shows every format.
    """
    with style.applied():
        ratios = [0.09 * len(formats), 1] if formats else [1]
        figure, axes = style.figure(len(ratios), height=4.0 + 0.3 * len(formats), sharex=True, squeeze=False,
                                    height_ratios=ratios)
        plot = axes[-1, 0]
        handles = _exponent_shares(plot, histograms)
        plot.set_xlim(*_exponent_limits(histograms, formats))
        facts = "".join(f"\n{_facts(format)}" for format in formats)
        plot.set_xlabel(f"exponent of the cotangent, log2|g|{facts}", fontsize=9)
        plot.set_ylabel("share of all values (log scale)")
        axes[0, 0].set_title("Magnitudes of gradients")
        if formats:
            _shade(plot, formats[0])
            handles += _format_strip(figure, axes[0, 0], formats)
        style.legend(figure, handles)
        return style.save(figure, path)


def _exponent_shares(axes: Any, histograms: Mapping[str, Histogram]) -> list[Any]:
    """Draw one step line a recipe; returns the entries of the legend."""
    handles, looks, lowest = [], style.looks(histograms), 1.0
    curves = {name: _shares(histogram) for name, histogram in histograms.items()}
    for name, (exponents, shares, zeros) in curves.items():
        if exponents.size:
            lowest = min(lowest, shares[shares > 0].min())
            # Empty bins are drawn far below the axis: log(0) would break the line instead of bringing it down.
            axes.stairs(np.maximum(shares, 1e-30), [*exponents, exponents[-1] + 1], baseline=1e-30,
                        linewidth=1.6, **looks[name].line | {"edgecolor": looks[name].line["color"]})
        zeros_text = "no values" if zeros is None else f"{_percent(zeros)} exactly zero"
        handles.append(style.key(f"{style.shown(name, longest=60)}: {zeros_text}", **looks[name].line))
    axes.set_yscale("log")
    axes.set_ylim(min(max(lowest / 2, 1e-12), 0.05), 1.5)
    if not any(exponents.size for exponents, _, _ in curves.values()):
        style.say_empty(axes)
    return handles


def _shares(histogram: Histogram) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Every exponent from lowest to highest, its share, and the share of zeros (None if nothing was counted)."""
    counts = {int(key): count for key, count in histogram.items() if key != "zero" and count}  # JSON has "-7" for -7
    zeros = histogram.get("zero") or 0
    total = sum(counts.values()) + zeros
    if not total:
        return np.zeros(0), np.zeros(0), None
    exponents = np.arange(min(counts), max(counts) + 1) if counts else np.zeros(0)
    return exponents, np.array([counts.get(int(e), 0) / total for e in exponents]), zeros / total


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.01 else f"{100 * share:.1f} %"


def _edges(format: Format) -> tuple[int, int, int]:
    """Exponents where values stop rounding to zero, become normal, and overflow."""
    smallest, tiny, top = (math.frexp(v)[1] - 1 for v in (format.smallest_subnormal, format.tiny, format.max))
    return smallest - 1, tiny, top + 1  # from half the smallest subnormal upward a value rounds to it, not to zero


def _facts(format: Format) -> str:
    zero, tiny, _ = _edges(format)
    return f"{format.name}: largest {format.max:.5g}, normal ≥ 2^{tiny}, subnormal ≥ 2^{zero + 1}, zero < 2^{zero}"


def _exponent_limits(histograms: Mapping[str, Histogram], formats: Sequence[Format]) -> tuple[float, float]:
    """The exponents on the axis: all that were counted and the first format's range, with room for names beside it."""
    ends = [exponent for histogram in histograms.values() for exponent in _shares(histogram)[0]]
    ends += _edges(formats[0]) if formats else ()
    low, high = (min(ends), max(ends) + 1) if ends else (-30, 10)
    room = high - low
    zero, _, top = _edges(formats[0]) if formats else (high, 0, low)
    return min(low - 0.03 * room, zero - 0.24 * room), max(high + 0.03 * room, top + 0.16 * room)


def _regions(format: Format, low: float, high: float) -> list[tuple[str, float, float]]:
    """The visible part of each region: its name, where it begins and where it ends."""
    ends = np.clip([-math.inf, *_edges(format), math.inf], low, high)
    regions = zip(REGIONS, ends[:-1], ends[1:], strict=True)
    return [(name, begin, end) for name, begin, end in regions if end > begin]


def _shade(axes: Any, format: Format) -> None:
    for name, begin, end in _regions(format, *axes.get_xlim()):
        axes.axvspan(begin, end, color=REGIONS[name], alpha=0.45, linewidth=0, zorder=0)


def _format_strip(figure: Any, axes: Any, formats: Sequence[Format]) -> list[Any]:
    """Draw each format as a row of named regions; returns legend entries for those whose names fit nowhere."""
    from matplotlib.patches import Patch

    axes.set_yticks(range(len(formats)), [format.name for format in formats])
    axes.set_ylim(len(formats) - 0.5, -0.5)
    axes.grid(False)
    axes.tick_params(length=0, labelbottom=False)
    axes.spines[:].set_visible(False)
    figure.draw_without_rendering()  # the layout decides how many pixels a region has
    seen, named = set(), set()
    for row, format in enumerate(formats):
        for name, begin, end in _regions(format, *axes.get_xlim()):
            axes.barh(row, end - begin, left=begin, height=0.86, color=REGIONS[name], edgecolor="white")
            seen.add(name)
            if _name_region(axes, name, (begin + end) / 2, row, end - begin):
                named.add(name)
    return [Patch(color=color, label=name) for name, color in REGIONS.items() if name in seen - named]


def _name_region(axes: Any, name: str, x: float, y: float, width: float) -> bool:
    """Write the name into its region if it fits."""
    text = axes.text(x, y, name, ha="center", va="center", fontsize=9)
    left, right = axes.transData.transform([(0, 0), (width, 0)])[:, 0]
    fits = text.get_window_extent().width < right - left
    if not fits:
        text.remove()
    return fits


# ---- 3. loss scale over attempts ----


def loss_scale_history(runs: Mapping[str, Mapping[str, Any]], path: PathLike) -> Path:
    """Draw the loss scale of each run as stairs, and below it a tick for every step that was skipped.

    runs: {recipe: {"steps": [int], "log2_scale": [float], "skipped": [steps that overflowed]}}; steps count attempts.
    """
    with style.applied():
        rug_height = max(0.7, 0.25 + 0.16 * len(runs))
        figure, (scale, rug) = style.figure(2, height=3.6 + rug_height, sharex=True, height_ratios=[3.2, rug_height])
        looks = style.looks(runs)
        handles = [_scale_stairs(scale, name, run, looks[name]) for name, run in runs.items()]
        for row, (name, run) in enumerate(runs.items()):
            rug.eventplot(run.get("skipped") or [], lineoffsets=row, linelengths=0.8, colors=looks[name].color)
        rug.set(ylim=(max(len(runs), 1) - 0.4, -0.6), yticks=[], xlabel="optimizer attempt (step)", ylabel="skipped")
        rug.grid(False, axis="y")
        scale.set(title="Loss scale and skipped steps", ylabel="loss scale (a factor, no unit)")
        style.power_ticks(scale.yaxis)
        style.whole_ticks(rug.xaxis)
        if not scale.lines:
            style.say_empty(scale)
            scale.set_yticks([])
        style.legend(figure, handles)
        return style.save(figure, path)


def _scale_stairs(axes: Any, name: str, run: Mapping[str, Any], look: style.Look) -> Any:
    steps, scales = _finite_points(run.get("steps"), run.get("log2_scale"))
    if steps.size:
        axes.plot(steps, scales, drawstyle="steps-post", **look.line, marker=look.marker if steps.size == 1 else "")
    count = f"{len(run.get('skipped') or ())} skipped" + ("" if steps.size else ", scale not recorded")
    return style.key(f"{style.shown(name, longest=60)}: {count}", **look.line)


# ---- 4. static loss scales ----


def static_scale(points: Sequence[Mapping[str, Any]], path: PathLike, reference: float | None) -> Path:
    """Draw what a fixed loss scale does to the validation loss and to the share of gradients that become zero.

    points: [{"log2_scale": int, "val_loss": float | None, "diverged_at": int | None, "zero_gradient_share": float}],
    shares between 0 and 1; reference: the validation loss of float32. If some losses lie more than 10 % above it,
    the axis is broken, and they have the upper part.
    """
    points = sorted(points, key=lambda point: point["log2_scale"])
    with style.applied():
        parts = _loss_parts([_final_loss(point) for point in points], reference)
        ratios = [1.1, 2, 1.5] if len(parts) == 2 else [2.6, 1.5]
        figure, axes = style.figure(len(ratios), height=5.2, sharex=True, height_ratios=ratios)
        for part, limits in zip(axes[:-1], parts, strict=True):
            _scale_losses(part, points, reference, limits)
        _finish_scale_losses(figure, axes[:-1])
        _mark_diverged(axes[0], points)
        _zero_shares(axes[-1], points)
        style.legend(figure, _scale_keys(points, reference))
        return style.save(figure, path)


def _loss_parts(losses: Sequence[float], reference: float | None) -> list[tuple[float, float]]:
    """The limits of the parts of the loss axis, from the top down."""
    losses = [loss for loss in losses if _is_number(loss)]
    anchor = reference if _is_number(reference) else min(losses, default=1.0)
    far = [loss for loss in losses if loss > anchor + NEAR * abs(anchor)]
    near = [loss for loss in losses if loss not in far]
    if not near or not far:
        return [_padded([*losses, anchor])]
    lower = _padded([*near, anchor])
    top = _padded([*far, lower[1]])[1]
    # The upper part begins a little higher, where no line of the lower part touches it.
    bottom = min(lower[1] + 0.04 * (top - lower[1]), 0.5 * (lower[1] + min(far)))
    return [(bottom, top), lower]


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.12 * (high - low) or 0.02 * abs(high) or 1.0
    return low - room, high + room


def _scale_losses(axes: Any, points: Sequence[Mapping[str, Any]], reference: float | None, limits: Any) -> None:
    scales = np.array([point["log2_scale"] for point in points], float)
    losses = np.array([_final_loss(point) for point in points], float)
    inside = (limits[0] <= losses) & (losses <= limits[1])
    axes.plot(scales, losses, color=style.BLUE)
    style.marks(axes, scales[inside], losses[inside], marker="o", color=style.BLUE, markeredgecolor="white")
    if _is_number(reference):
        axes.axhline(reference, color=style.GREY, linestyle="--", linewidth=1.2)
    axes.set_ylim(*limits)
    if not _is_number(reference) and np.isnan(losses).all():
        axes.set_yticks([])


def _finish_scale_losses(figure: Any, parts: Sequence[Any]) -> None:
    parts[0].set_title("Training under a fixed loss scale", pad=12)  # above the crosses
    parts[-1].set_ylabel("validation loss\n(nats per token)")
    if len(parts) == 2:
        upper, lower = parts
        upper.spines["bottom"].set_visible(False)
        upper.tick_params(axis="x", length=0)
        upper.locator_params(axis="y", nbins=4)
        figure.get_layout_engine().set(hspace=0.03)
        tear = {"marker": [(-1, -0.6), (1, 0.6)], "markersize": 11, "color": "black", "clip_on": False}
        upper.plot([0], [0], transform=upper.transAxes, **tear)
        lower.plot([0], [1], transform=lower.transAxes, **tear)


def _mark_diverged(axes: Any, points: Sequence[Mapping[str, Any]]) -> None:
    scales = [point["log2_scale"] for point in points if _diverged(point)]
    at_the_top = {"transform": axes.get_xaxis_transform()}
    style.marks(axes, scales, [1.0] * len(scales), **at_the_top, **style.cross(style.VERMILLION))


def _diverged(point: Mapping[str, Any]) -> bool:
    loss = point.get("val_loss")
    return point.get("diverged_at") is not None or (loss is not None and not math.isfinite(loss))


def _final_loss(point: Mapping[str, Any]) -> float:
    """The validation loss; NaN where there is none, so that the line does not run on through a scale that diverged."""
    return point["val_loss"] if _is_number(point.get("val_loss")) and not _diverged(point) else math.nan


def _zero_shares(axes: Any, points: Sequence[Mapping[str, Any]]) -> None:
    scales, shares = _finite_points([p["log2_scale"] for p in points], [p.get("zero_gradient_share") for p in points])
    axes.plot(scales, 100 * shares, color=style.BLACK, marker="s", markeredgecolor="white")
    axes.set_ylim(-0.04 * (top := max([*(100 * shares), 1.0]) * 1.1), top)
    axes.set(xlabel="loss scale (a factor, the same in all steps)", ylabel="gradients that\nare zero (%)")
    style.power_ticks(axes.xaxis)


def _scale_keys(points: Sequence[Mapping[str, Any]], reference: float | None) -> list[Any]:
    keys = [style.key("training with this scale", color=style.BLUE, marker="o", markeredgecolor="white")]
    if _is_number(reference):
        keys.append(style.key(f"float32: {reference:.3f}", color=style.GREY, linestyle="--"))
    if any(_diverged(point) for point in points):
        keys.append(style.key("training became not finite", **style.cross(style.VERMILLION)))
    return keys


# ---- 5. recipes side by side ----

# From dark to light, so that the parts of a bar also differ in grey.
PARTS = {"weights": "#00507D", "gradients": "#3C93C8", "optimizer": "#A9CDE6", "activations": "#E8E8E8"}


def recipe_comparison(rows: Sequence[Mapping[str, Any]], path: PathLike) -> Path:
    """Draw the validation loss of each recipe (left) beside the memory that training takes (right).

    rows: [{"recipe": name, "val_loss": mean over seeds or None, "val_loss_sd": standard deviation, "seeds": int,
    "diverged": runs that became non-finite, "zero_gradient_share": 0 to 1, "bytes": {"weights", "gradients",
    "optimizer", "activations": bytes}}]. Losses more than 10 % above the best stand as triangles at the edge.
    """
    with style.applied():
        names = [_row_name(row) for row in rows]
        row_height = 0.17 * max((name.count("\n") + 1 for name in names), default=1) + 0.1
        figure, (losses, memory) = style.figure(1, 2, height=1.5 + max(row_height * len(rows), 1.5), sharey=True,
                                                width_ratios=[1.25, 1])
        _recipe_losses(losses, rows)
        _memory_bars(memory, rows)
        losses.set(title="Validation loss", yticks=range(len(rows)), yticklabels=names)
        losses.set_ylim(max(len(rows), 1) - 0.4, -0.6)
        memory.set_title("Memory")
        memory.grid(False, axis="y")
        memory.tick_params(axis="y", length=0)
        if not rows:
            style.say_empty(losses)
        style.legend(figure, _memory_keys())
        return style.save(figure, path)


def _row_name(row: Mapping[str, Any]) -> str:
    """The recipe's name, and under it what went wrong."""
    lines = [style.shown(row["recipe"], 26, 72)]
    if _is_number(row.get("zero_gradient_share")):
        lines.append(f"{_percent(row['zero_gradient_share'])} zero gradients")
    if row.get("diverged"):
        lines.append(f"{row['diverged']} of {row['seeds']} not finite")
    return "\n".join(lines)


def _recipe_losses(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    looks = style.looks(row["recipe"] for row in rows)
    best = min((row["val_loss"] for row in rows if _is_number(row["val_loss"])), default=1.0)
    for y, row in enumerate(rows):
        look, loss = looks[row["recipe"]], row["val_loss"]
        spread = row["val_loss_sd"] if _is_number(row.get("val_loss_sd")) else 0.0
        if not _is_number(loss):
            _missing_loss(axes, y, row, look.color)
        elif loss <= best + NEAR * abs(best):
            axes.errorbar([loss], [y], xerr=[spread], color=look.color, marker=look.marker, markersize=8, capsize=3)
        else:
            _beyond(axes, y, f"{loss:.2f} ± {spread:.2f}", look.color)
    seeds = " or ".join(sorted({str(row["seeds"]) for row in rows}, key=int)) or "none"
    axes.set_xlabel(f"validation loss (nats per token)\nmean ± standard deviation, seeds: {seeds}")
    axes.locator_params(axis="x", nbins=5)
    if not any(_is_number(row["val_loss"]) for row in rows):
        axes.set_xticks([])


def _missing_loss(axes: Any, y: float, row: Mapping[str, Any], color: str) -> None:
    """A cross if the runs did not stay finite, words if there were none."""
    if row.get("diverged"):
        style.marks(axes, [1], [y], transform=axes.get_yaxis_transform(), **style.cross(color))
    else:
        axes.text(0.97, y, "not measured", transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=9)


def _beyond(axes: Any, y: float, text: str, color: str) -> None:
    """A loss too far off for the axis: a triangle at its edge, and the number."""
    style.marks(axes, [1], [y], transform=axes.get_yaxis_transform(), color=color, marker=">", markersize=9)
    axes.annotate(text, (1, y), xycoords=axes.get_yaxis_transform(), xytext=(-8, 0), textcoords="offset points",
                  ha="right", va="center", fontsize=9)


def _memory_bars(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    ends = np.zeros(len(rows))
    for part, color in PARTS.items():
        sizes = np.array([(row.get("bytes") or {}).get(part) or 0 for row in rows], float) / 1e6
        axes.barh(range(len(rows)), sizes, left=ends, color=color, edgecolor="black", linewidth=0.5, height=0.6)
        ends = ends + sizes
    for y, end in enumerate(ends):
        axes.annotate(f"{end:.3g}" if end else "not measured", (end, y), xytext=(4, 0), textcoords="offset points",
                      va="center", fontsize=9)
    axes.set_xlim(0, 1.3 * max([*ends, 0.0]) or 1.0)
    axes.set_xlabel("memory of one training step\n(MB, 1 MB = 1,000,000 bytes)")


def _memory_keys() -> list[Any]:
    from matplotlib.patches import Patch

    return [Patch(facecolor=color, edgecolor="black", linewidth=0.5, label=part) for part, color in PARTS.items()]
