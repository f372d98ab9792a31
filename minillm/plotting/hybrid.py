"""Figures of methods combined: under growing strain, over rates and batches, stage by stage."""
from collections.abc import Mapping, Sequence
from typing import Any

from minillm.plotting import style
from minillm.plotting.records import PathLike

Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def panels(curves: Mapping[str, Curves], path: PathLike, title: str, xlabel: str, ylabel: str) -> PathLike:
    """Draw for each name a panel with a line for each name of its own, of points (x, y), x whole numbers; y is shared."""
    with style.applied():
        figure, axes = style.figure(1, len(curves), height=3.6, sharey=True, squeeze=False)
        names = list(dict.fromkeys(name for lines in curves.values() for name in lines))
        looks = style.looks(names)
        for part, (panel, lines) in zip(axes[0], curves.items(), strict=True):
            for name, (x, y) in lines.items():
                part.plot(x, y, **looks[name].line, marker=looks[name].marker, markersize=5)
            points = sorted({at for x, _ in lines.values() for at in x})
            if len(points) > 4:
                style.whole_ticks(part.xaxis)
            else:
                part.set_xticks(points, [f"{at:g}" for at in points])
            part.set(title=style.shown(panel, 28), xlabel=xlabel)
        axes[0][0].set_ylabel(ylabel)
        figure.suptitle(style.shown(title), x=0.01, ha="left", fontsize=11)
        style.legend(figure, [style.key(style.shown(name, 34), **looks[name].line, marker=looks[name].marker) for name in names])
        return style.save(figure, path)


def over_rates(found: Mapping[str, Mapping[str, Mapping[float, Sequence[float]]]], path: PathLike, title: str, xlabel: str,
               ylabel: str) -> PathLike:
    """Draw a panel a name, in it a line a name over numbers that double: the mean of the values, least to largest upright."""
    with style.applied():
        rows = -(-len(found) // 2)
        figure, axes = style.figure(rows, 2, height=2.7 * rows, sharey=True, squeeze=False)
        looks = style.looks(name for lines in found.values() for name in lines)
        numbers = sorted({x for lines in found.values() for values in lines.values() for x in values})
        for part, (panel, lines) in zip(axes.flat, found.items(), strict=False):
            for i, (name, values) in enumerate(lines.items()):
                with_spread(part, looks[name], [x * 1.05 ** (i - (len(lines) - 1) / 2) for x in values], list(values.values()))
            part.set(title=style.shown(panel, 34), xlabel=xlabel, xscale="log")
            part.set_xticks(numbers, [f"{x:g}" for x in numbers])
            part.minorticks_off()
        for part in axes.flat[len(found):]:
            part.set_axis_off()
        for left in axes[:, 0]:
            left.set_ylabel(ylabel)
        figure.suptitle(style.shown(title), x=0.01, ha="left", fontsize=11)
        style.legend(figure, [style.key(name, **look.line, marker=look.marker) for name, look in looks.items()])
        return style.save(figure, path)


def stages(found: Mapping[str, Mapping[str, Sequence[float]]], path: PathLike, title: str, ylabel: str) -> PathLike:
    """Draw a line a name from stage to stage: the mean of the values at each, and upright the least to the largest."""
    with style.applied():
        figure, axes = style.figure(height=3.8)
        looks, names = style.looks(found), list(dict.fromkeys(stage for values in found.values() for stage in values))
        for i, (name, values) in enumerate(found.items()):
            x = [names.index(stage) + 0.08 * (i - (len(found) - 1) / 2) for stage in values]
            with_spread(axes, looks[name], x, list(values.values()))
        axes.set_xticks(range(len(names)), [style.shown(name, 12) for name in names])
        axes.set_ylabel(ylabel)
        figure.suptitle(style.shown(title), x=0.01, ha="left", fontsize=11)
        style.legend(figure, [style.key(name, **looks[name].line, marker=looks[name].marker) for name in found])
        return style.save(figure, path)


def with_spread(axes: Any, look: style.Look, x: Sequence[float], values: Sequence[Sequence[float]]) -> None:
    """A line through the means of values at each x, and an upright one from the least to the largest."""
    axes.plot(x, [sum(each) / len(each) for each in values], **look.line, marker=look.marker, markersize=5)
    axes.vlines(x, [min(each) for each in values], [max(each) for each in values], color=look.color, linewidth=1)
