"""Figures that set recipes side by side: static loss scales, and loss and memory by recipe."""
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minillm.plotting import style
from minillm.plotting.records import PathLike, finite_points, is_number, percent

NEAR = 0.10  # losses up to 10 % above the reference are to be told apart; those beyond it get another scale


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
    losses = [loss for loss in losses if is_number(loss)]
    anchor = reference if is_number(reference) else min(losses, default=1.0)
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
    if is_number(reference):
        axes.axhline(reference, color=style.GREY, linestyle="--", linewidth=1.2)
    axes.set_ylim(*limits)
    if not is_number(reference) and np.isnan(losses).all():
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
    return point["val_loss"] if is_number(point.get("val_loss")) and not _diverged(point) else math.nan


def _zero_shares(axes: Any, points: Sequence[Mapping[str, Any]]) -> None:
    scales, shares = finite_points([p["log2_scale"] for p in points], [p.get("zero_gradient_share") for p in points])
    axes.plot(scales, 100 * shares, color=style.BLACK, marker="s", markeredgecolor="white")
    axes.set_ylim(-0.04 * (top := max([*(100 * shares), 1.0]) * 1.1), top)
    axes.set(xlabel="loss scale (a factor, the same in all steps)", ylabel="gradients that\nare zero (%)")
    style.power_ticks(axes.xaxis)


def _scale_keys(points: Sequence[Mapping[str, Any]], reference: float | None) -> list[Any]:
    keys = [style.key("training with this scale", color=style.BLUE, marker="o", markeredgecolor="white")]
    if is_number(reference):
        keys.append(style.key(f"float32: {reference:.3f}", color=style.GREY, linestyle="--"))
    if any(_diverged(point) for point in points):
        keys.append(style.key("training became not finite", **style.cross(style.VERMILLION)))
    return keys


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
    if is_number(row.get("zero_gradient_share")):
        lines.append(f"{percent(row['zero_gradient_share'])} zero gradients")
    if row.get("diverged"):
        lines.append(f"{row['diverged']} of {row['seeds']} not finite")
    return "\n".join(lines)


def _recipe_losses(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    looks = style.looks(row["recipe"] for row in rows)
    best = min((row["val_loss"] for row in rows if is_number(row["val_loss"])), default=1.0)
    for y, row in enumerate(rows):
        look, loss = looks[row["recipe"]], row["val_loss"]
        spread = row["val_loss_sd"] if is_number(row.get("val_loss_sd")) else 0.0
        if not is_number(loss):
            _missing_loss(axes, y, row, look.color)
        elif loss <= best + NEAR * abs(best):
            axes.errorbar([loss], [y], xerr=[spread], color=look.color, marker=look.marker, markersize=8, capsize=3)
        else:
            _beyond(axes, y, f"{loss:.2f} ± {spread:.2f}", look.color)
    seeds = " or ".join(sorted({str(row["seeds"]) for row in rows}, key=int)) or "none"
    axes.set_xlabel(f"validation loss (nats per token)\nmean ± standard deviation, seeds: {seeds}")
    axes.locator_params(axis="x", nbins=5)
    if not any(is_number(row["val_loss"]) for row in rows):
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
