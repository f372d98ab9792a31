"""Figures of what several ways bring: a row for each, a mark for each seed, and the mean."""
from collections.abc import Mapping, Sequence
from statistics import fmean

from minillm.plotting import style
from minillm.plotting.records import PathLike


def rows_of_marks(values: Mapping[str, Sequence[float]], path: PathLike, title: str, xlabel: str,
                  base: str | None = None) -> PathLike:
    """Draw for each name its values as marks and their mean as a bar; a line goes down from the mean of `base`."""
    with style.applied():
        figure, axes = style.figure(height=1.0 + 0.32 * max(len(values), 3))
        for row, found in enumerate(values.values()):
            axes.plot([fmean(found)], [row], linestyle="none", marker="|", markersize=16, markeredgewidth=2.5, color=style.BLUE)
            axes.plot(found, [row] * len(found), linestyle="none", marker="o", markersize=5, color=style.ORANGE)
        if base:
            axes.axvline(fmean(values[base]), color=style.GREY, linewidth=1, zorder=0)
        axes.set(yticks=range(len(values)), xlabel=xlabel, ylim=(len(values) - 0.5, -0.5))
        axes.set_yticklabels([style.shown(name, 34) for name in values])
        figure.suptitle(style.shown(title), x=0.01, ha="left", fontsize=11)
        style.legend(figure, [style.key("mean", linestyle="none", marker="|", markersize=12, markeredgewidth=2.5, color=style.BLUE),
                              style.key("one seed", linestyle="none", marker="o", markersize=5, color=style.ORANGE)])
        return style.save(figure, path)
