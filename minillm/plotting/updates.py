"""Figures of how weights and moments are stored: lost updates, what saves them, and the maps of eight-bit moments."""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minillm.plotting import style
from minillm.plotting.records import PathLike, finite_points, percent

Curve = Mapping[str, Sequence[float]]


def lost_updates(records: Mapping[str, Curve], path: PathLike) -> Path:
    """Draw the share of updates that are lost against their size, as expected and as counted.

    records: {format: {"log2_ratio": log2 |update / weight|, "expected": shares, "counted": shares}}, shares between 0 and 1.
    """
    with style.applied():
        figure, axes = style.figure(height=3.6)
        looks, handles = style.looks(records), []
        for name, record in records.items():
            x, counted = finite_points(record.get("log2_ratio"), record.get("counted"))
            axes.plot(*_percent(finite_points(record.get("log2_ratio"), record.get("expected"))), **looks[name].line)
            style.marks(axes, x, 100 * counted, **looks[name].points | {"markersize": 5})
            handles.append(style.key(style.shown(name, longest=60), **looks[name].line, marker=looks[name].marker, markersize=5))
        axes.set(xlabel="size of the update, log2 |update / weight|", ylabel="updates that are lost (%)", ylim=(-4, 104),
                 title="Updates that leave their weight as it was (lines: expected, markers: counted)")
        style.power_ticks(axes.xaxis)
        if not any(line.get_xdata().size for line in axes.lines):
            style.say_empty(axes)
        style.legend(figure, handles)
        return style.save(figure, path)


def _percent(points):
    x, share = points
    return x, 100 * share


def descents(records: Mapping[str, Curve], path: PathLike,
             title: str = "Least squares, by the way in which weights are kept") -> Path:
    """Draw losses that fall by orders of magnitude: {name: {"steps": ..., "loss": mean squared errors above 0}}."""
    with style.applied():
        figure, axes = style.figure()
        looks, handles = style.looks(records), []
        for name, record in records.items():
            steps, loss = finite_points(record.get("steps"), record.get("loss"))
            axes.plot(steps[loss > 0], loss[loss > 0], **looks[name].line)
            end = f"{float(np.mean(loss[-max(1, loss.size // 20):])):.2g} at the end" if loss.size else "no values"
            handles.append(style.key(f"{style.shown(name, longest=60)}: {end}", **looks[name].line))
        axes.set_xlabel("step")
        axes.set_ylabel("mean squared error (log scale)")
        axes.set_title(title)
        style.whole_ticks(axes.xaxis)
        if any(line.get_xdata().size for line in axes.lines):
            axes.set_yscale("log")
        else:
            style.say_empty(axes)
        style.legend(figure, handles)
        return style.save(figure, path)


def eight_bit_maps(records: Mapping[str, Mapping[str, Any]], path: PathLike, magnitudes: Sequence[float] = ()) -> Path:
    """Draw how far off a stored value is, by its size, and how many values have that size.

    records: {map: {"size": shares of the block's largest magnitude, "error": relative errors, "zero": the share of `magnitudes`
    that becomes 0}}; magnitudes: sizes of the entries of a moment, in the same unit.
    """
    with style.applied():
        figure, (axes, below) = style.figure(2, height=4.6, sharex=True, height_ratios=(2.2, 1))
        looks, handles = style.looks(records), []
        for name, record in records.items():
            axes.plot(*_percent(finite_points(record.get("size"), record.get("error"))), **looks[name].line)
            zero = record.get("zero")
            text = "" if zero is None else f": {percent(zero)} become zero"
            handles.append(style.key(f"{style.shown(name, longest=60)}{text}", **looks[name].line))
        axes.set(xscale="log", ylabel="largest relative error (%)", ylim=(0, 108), title="What eight bits make of a second moment")
        sizes = np.array(magnitudes, np.float32)
        sizes = sizes[sizes > 0]
        if sizes.size:
            bins = 10.0 ** np.arange(np.floor(np.log10(sizes.min())), 0.01, 0.25)
            counts, edges = np.histogram(sizes, bins)
            below.stairs(100 * counts / sizes.size, edges, fill=True, color=style.SKY)
            axes.set_xlim(max(bins[0], 1e-13), 1.3)
        else:
            style.say_empty(below)
        below.set(xlabel="size of the entry (share of its block's largest)", ylabel="entries (%)")
        style.legend(figure, handles)
        return style.save(figure, path)
