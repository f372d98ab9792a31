"""The figure of gradient exponents against the range of a number format."""
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minillm.formats import FLOAT16, Format
from minillm.plotting import style
from minillm.plotting.records import PathLike, percent

Histogram = Mapping[int | str, int]

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
        zeros_text = "no values" if zeros is None else f"{percent(zeros)} exactly zero"
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
