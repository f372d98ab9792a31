"""Figures of gradient accumulation: losses and gradient norms of ways to use micro-batches, side by side."""
from collections.abc import Mapping, Sequence

import numpy as np

from minillm.plotting import style
from minillm.plotting.records import PathLike

Curve = tuple[Sequence[float], Sequence[float]]


def side_by_side(panels: Mapping[str, Mapping[str, Curve]], path: PathLike, title: str, xlabel: str, ylabel: str,
                 log: bool = True) -> PathLike:
    """Draw a panel a name, in it a line (x, y) a name; a name has one look in all panels. What is not finite leaves a gap."""
    with style.applied():
        figure, axes = style.figure(1, len(panels), height=3.6, sharey=True, squeeze=False)
        looks = style.looks(name for lines in panels.values() for name in lines)
        for part, (name, lines) in zip(axes[0], panels.items(), strict=True):
            for line, (x, y) in lines.items():
                part.plot(x, np.where(np.isfinite(y), y, np.nan), **looks[line].line)
            part.set(title=style.shown(name, 34), xlabel=xlabel, yscale="log" if log else "linear")
        axes[0][0].set_ylabel(ylabel)
        figure.suptitle(style.shown(title), x=0.01, ha="left", fontsize=11)
        style.legend(figure, [style.key(style.shown(name, longest=60), **look.line) for name, look in looks.items()])
        return style.save(figure, path)
