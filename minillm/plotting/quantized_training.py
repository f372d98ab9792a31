"""Figures of training with quantization: weights among three codes, losses of several seeds side by side."""
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from minillm.plotting import style
from minillm.plotting.records import PathLike


def among_codes(panels: Mapping[str, np.ndarray], path: PathLike, title: str) -> PathLike:
    """Draw for each name how its values lie in steps of their scale, with the ends of what becomes -1, 0 and 1."""
    with style.applied():
        figure, axes = style.figure(1, len(panels), height=3.4, sharey=True, squeeze=False)
        for part, (name, values) in zip(axes[0], panels.items(), strict=True):
            part.hist(np.clip(values, -4, 4).ravel(), np.linspace(-4, 4, 81), color=style.SKY,
                      weights=np.full(values.size, 100 / values.size))
            for edge in (-0.5, 0.5):
                part.axvline(edge, color=style.VERMILLION, linestyle=(0, (4, 1.5)), linewidth=1.2)
            part.set(title=style.shown(name, 32), xlabel="weight (in scales)")
        axes[0][0].set_ylabel("share of the weights (%)")
        figure.suptitle(style.shown(title), x=0.01, ha="left", fontsize=11)
        style.legend(figure, [style.key("ends of what becomes 0", color=style.VERMILLION, linestyle=(0, (4, 1.5)))])
        return style.save(figure, path)


def by_seed(losses: Mapping[str, Sequence[float]], path: PathLike, title: str, xlabel: str) -> PathLike:
    """Draw a row a name: a dot for each seed, and their mean as a bar from 0."""
    with style.applied():
        figure, axes = style.figure(height=1.3 + 0.42 * max(len(losses), 2))
        for y, found in enumerate(losses.values()):
            axes.barh(y, fmean(found), height=0.6, color=style.SKY, edgecolor="black", linewidth=0.5)
            axes.plot(found, [y] * len(found), "o", color=style.BLACK, markersize=4)
        axes.axvline(0, color=style.BLACK, linewidth=0.8)
        axes.set(title=style.shown(title), xlabel=xlabel, yticks=range(len(losses)),
                 yticklabels=[style.shown(name, 34) for name in losses])
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        handles = [style.key("one seed", color=style.BLACK, marker="o", markersize=4, linestyle="none"),
                   style.key("mean of the seeds", color=style.SKY, marker="s", linestyle="none")]
        style.legend(figure, handles)
        return style.save(figure, path)
