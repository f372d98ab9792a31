"""Figures of methods combined: several of them under growing strain, side by side."""
from collections.abc import Mapping, Sequence

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
            style.whole_ticks(part.xaxis)
            part.set(title=style.shown(panel, 28), xlabel=xlabel)
        axes[0][0].set_ylabel(ylabel)
        figure.suptitle(style.shown(title), x=0.01, ha="left", fontsize=11)
        style.legend(figure, [style.key(style.shown(name, 34), **looks[name].line, marker=looks[name].marker) for name in names])
        return style.save(figure, path)
