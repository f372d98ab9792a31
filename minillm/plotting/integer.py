"""Figures of integer-only inference: how far integer functions are from what they stand for."""
from collections.abc import Mapping, Sequence
from typing import Any

from minillm.plotting import style
from minillm.plotting.records import PathLike

Panel = tuple[Sequence[float], Sequence[float], str, str]


def errors(panels: Mapping[str, Panel], path: PathLike) -> Any:
    """Draw an error against what went in, one panel below the other: {title: (x, error, label of x, label of the error)}."""
    with style.applied():
        figure, rows = style.figure(len(panels), height=1.9 * len(panels), squeeze=False)
        for (axes,), (title, (x, error, xlabel, ylabel)) in zip(rows, panels.items(), strict=True):
            axes.axhline(0, color=style.GREY, linewidth=0.8)
            axes.plot(x, error, color=style.BLUE, linewidth=1)
            axes.set(title=style.shown(title), xlabel=xlabel, ylabel=ylabel)
        return style.save(figure, path)
