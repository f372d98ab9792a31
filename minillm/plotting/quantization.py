"""Figures of quantization: what becomes of a value, which range a grid spans, error and loss against bits."""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minillm.plotting import style
from minillm.plotting.records import PathLike


def staircases(x: Sequence[float], values: Mapping[str, Sequence[float]], path: PathLike, title: str) -> Any:
    """Draw what each scheme makes of the values x, beside the line on which nothing is lost."""
    with style.applied():
        figure, axes = style.figure(height=4.2)
        looks = style.looks(values)
        axes.plot(x, x, color=style.GREY, linewidth=0.8, linestyle=(0, (1, 2)))
        for name, y in values.items():
            axes.plot(x, y, **looks[name].line)
        axes.set(title=style.shown(title), xlabel="value (a number)", ylabel="what its code stands for (a number)")
        style.legend(figure, [style.key(style.shown(name, longest=60), **looks[name].line) for name in values])
        return style.save(figure, path)


def ranges(x: np.ndarray, found: Mapping[str, float], path: PathLike, title: str) -> Any:
    """Draw how often |x| has each size, on a logarithmic axis, and where each observer ends the grid."""
    with style.applied():
        figure, axes = style.figure(height=4.2)
        looks = style.looks(found)
        axes.hist(np.abs(np.ravel(x)), 120, color=style.SKY, alpha=0.6)
        for name, end in found.items():
            axes.axvline(end, **looks[name].line)
        axes.set(title=style.shown(title), xlabel="size of a value (a number)", ylabel="how many (a number)")
        axes.set_yscale("log")
        style.legend(figure, [style.key(style.shown(name, longest=60), **looks[name].line) for name in found])
        return style.save(figure, path)


def over_bits(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], path: PathLike, title: str, ylabel: str,
              log: bool = False) -> Any:
    """Draw one line a name, of points (bits of a code, y), from many bits to few; with `log`, y at or below 0 leaves a gap."""
    shown = {name: (bits, np.where(np.asarray(y) > 0, y, np.nan) if log else y) for name, (bits, y) in curves.items()}
    return over(shown, path, title, "bits of a code (a number)", ylabel, log_y=log, falling=True)


def loss_over_bits(rows: Sequence[Mapping[str, Any]], path: PathLike, title: str) -> Any:
    """Draw each method's mean loss above float32's against bits, and a small point for each run; 0 and below leave a gap.

    rows: [{"method": name, "bits": number, "loss_above": nats or None, "losses_above": [nats or None, ...]}].
    """
    with style.applied():
        figure, axes = style.figure(height=4.4)
        names = list(dict.fromkeys(row["method"] for row in rows))
        looks = style.looks(names)
        for place, name in enumerate(names):
            own, shift = [row for row in rows if row["method"] == name], 0.05 * (place - (len(names) - 1) / 2)
            x = np.array([row["bits"] for row in own], np.float32) - np.float32(shift)     # side by side, so that points show
            means = [above_zero(row["loss_above"]) for row in own]
            axes.plot(x, means, **looks[name].line, marker=looks[name].marker, markersize=6)
            for at, row in zip(x, own, strict=True):
                axes.plot([at] * len(row["losses_above"]), [above_zero(loss) for loss in row["losses_above"]], ".",
                          color=looks[name].color, alpha=0.5, markersize=4)
        axes.set(title=style.shown(title), xlabel="bits of a code (a number)", ylabel="loss above float32's (nats per token)",
                 yscale="log")
        axes.invert_xaxis()
        style.whole_ticks(axes.xaxis)
        style.legend(figure, [style.key(style.shown(name), **looks[name].line, marker=looks[name].marker) for name in names])
        return style.save(figure, path)


def above_zero(loss: float | None) -> float:
    """A loss that has a logarithm, or NaN."""
    return loss if loss is not None and loss > 0 else np.nan


def over(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: PathLike, title: str, xlabel: str, ylabel: str,
         log_x: bool = False, log_y: bool = False, markers: bool = True, level: float | None = None,
         falling: bool = False) -> Any:
    """Draw one line a name, of points (x, y). `level`: a value of y to mark; `falling`: whole numbers x, from large to small."""
    with style.applied():
        figure, axes = style.figure(height=4.2)
        looks = style.looks(curves)
        for name, (x, y) in curves.items():
            axes.plot(x, y, **looks[name].line, marker=looks[name].marker if markers else "", markersize=5)
        if level is not None:
            axes.axhline(level, color=style.GREY, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.set(title=style.shown(title), xlabel=xlabel, ylabel=ylabel)
        axes.set_xscale("log" if log_x else "linear")
        axes.set_yscale("log" if log_y else "linear")
        if falling:
            axes.invert_xaxis()
            style.whole_ticks(axes.xaxis)
        style.legend(figure, [style.key(style.shown(name, longest=60), **looks[name].line,
                                        marker=looks[name].marker if markers else "") for name in curves])
        return style.save(figure, path)
