"""The figure of an inspected step: exponents of every layer, forward and backward, and what a loss scale would do."""
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minillm.formats import Format
from minillm.plotting import style
from minillm.plotting.records import PathLike

PHASES = {"forward": "results", "backward": "cotangents"}
COLORS = {"rounds to zero": style.VERMILLION, "subnormal": style.ORANGE, "normal, or 0 before": "#DDF0E8", "too large": style.GREY}
DASHES = {"smallest": ":", "smallest normal": "--", "largest": "-"}
LIMIT = {"color": style.VERMILLION, "linewidth": 1.2}
FARTHEST = (-60, 40)           # exponents beyond these are left out of the picture: a float32 value may have any from -149 to 127


def inspection(
    rows: Sequence[dict], what_if: Sequence[dict], path: PathLike, format: Format, title: str = "", log2_scale: float = 0
) -> Path:
    """Draw the exponents of a step by layer, over the limits of a format; below, its gradients' fates against the loss scale.

    rows: {"phase", "layer", "values", "exponents": {exponent: count, "zero": count}}. what_if: those of one format, {"kind",
    "log2_scale", "zeroed", "subnormal", "overflowed"}; drawn are those of kind "backward". log2_scale: that of the step itself.
    """
    rows = [row for row in rows if row["phase"] in PHASES]
    layers = list(dict.fromkeys(row["layer"] for row in rows)) or [""]
    with style.applied():
        high = max(len(layers), 6)
        figure, axes = style.figure(2, 2, height=3.4 + 0.32 * high, squeeze=False, height_ratios=(high, 6))
        wide = figure.add_subplot(axes[0, 0].get_gridspec()[1, :])
        axes[1, 0].remove()
        axes[1, 1].remove()
        pictures = [_exponents(panel, [row for row in rows if row["phase"] == phase], layers, _ends(rows, format), format)
                    for panel, phase in zip(axes[0], PHASES, strict=True)]
        for panel, (phase, name) in zip(axes[0], PHASES.items(), strict=True):
            panel.set(xlabel=f"exponent of {name}, log2|x|", title=phase.capitalize())
        axes[0, 1].tick_params(labelleft=False)
        figure.suptitle(style.shown(title), x=0.01, ha="left", fontsize=11)
        if found := [picture for picture in pictures if picture is not None]:
            figure.colorbar(found[0], ax=list(axes[0]), label="share of a layer's values", shrink=0.9)
        handles = [style.key(f"{name} value", **LIMIT, linestyle=dash) for name, dash in DASHES.items()]
        style.legend(figure, handles + _fates(wide, [row for row in what_if if row["kind"] == "backward"], format, log2_scale))
        return style.save(figure, path)


def _ends(rows: Sequence[dict], format: Format) -> tuple[int, int]:
    """The exponents that both pictures show: all that were counted and the format's own, as far as they are not absurd."""
    seen = [int(e) for row in rows for e in row["exponents"] if e != "zero"]
    low, high = min(*seen, 0, math.floor(math.log2(format.smallest))), max(*seen, 0, math.ceil(math.log2(format.max)))
    return max(low, FARTHEST[0]) - 1, min(high, FARTHEST[1]) + 2


def _exponents(axes: Any, rows: Sequence[dict], layers: Sequence[str], ends: tuple[int, int], format: Format) -> Any:
    """One row a layer, one column an exponent, dark where many values are; returns what a colour bar is made from."""
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    low, high = ends
    axes.set_yticks(range(len(layers)), [style.shown(layer or "(model)", longest=24) for layer in layers])
    axes.set(xlim=ends, ylim=(len(layers) - 0.5, -0.5))
    axes.grid(False)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    shares = {row["layer"]: {int(e): n / row["values"] for e, n in row["exponents"].items() if e != "zero"} for row in rows}
    grid = np.array([[shares.get(layer, {}).get(e, np.nan) for e in range(low, high)] for layer in layers])
    if np.isnan(grid).all():
        style.say_empty(axes)
        return None
    picture = axes.imshow(grid, aspect="auto", cmap="viridis_r", norm=LogNorm(1e-6, 1),
                          extent=(low, high, len(layers) - 0.5, -0.5))
    for value, dash in zip((format.smallest, format.tiny, format.max), DASHES.values(), strict=True):
        if low <= math.log2(value) <= high:
            axes.axvline(math.log2(value), **LIMIT, linestyle=dash)
    return picture


def _fates(axes: Any, rows: Sequence[dict], format: Format, log2_scale: float) -> list[Any]:
    """What each loss scale makes of the gradients, stacked to all of them; returns entries of the legend."""
    axes.set(xlabel="loss scale", ylabel="cotangents (%)", ylim=(0, 100), title=f"What if every cotangent were {format.name}")
    axes.grid(False)
    if not rows:
        style.say_empty(axes)
        return []
    scales = [row["log2_scale"] for row in rows]
    zeroed, subnormal, large = (np.array([row[name] for row in rows]) * 100 for name in ("zeroed", "subnormal", "overflowed"))
    stack = [zeroed, subnormal, 100 - zeroed - subnormal - large, large]
    axes.stackplot(scales, stack, labels=COLORS, colors=COLORS.values())
    axes.axvline(log2_scale, color=style.BLUE, label="the scale of this step")
    if large.any():
        first = scales[int(np.flatnonzero(large)[0])]
        axes.axvline(first, color=style.BLACK, linestyle="--", label="the first at which one is too large")
    axes.set_xlim(min(scales), max(max(scales), min(scales) + 1))
    style.power_ticks(axes.xaxis)
    return axes.get_legend_handles_labels()[0]
