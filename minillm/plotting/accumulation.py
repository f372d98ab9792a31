"""Figures of accumulators: error against magnitude, error against the number of terms, loss against accumulator."""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minillm.plotting import style
from minillm.plotting.records import PathLike, is_number


def error_curves(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: PathLike, title: str, xlabel: str,
                 ylabel: str, base: int = 2) -> Any:
    """Draw one line a name, both axes logarithmic, of points (x, error); an error of 0 leaves a gap."""
    with style.applied():
        figure, axes = style.figure(height=4.2)
        looks = style.looks(curves)
        for name, (x, errors) in curves.items():
            y = np.where(np.asarray(errors) > 0, errors, np.nan)
            axes.plot(x, y, **looks[name].line)
        axes.set(title=style.shown(title), xlabel=xlabel, ylabel=ylabel)
        axes.set_xscale("log", base=base)
        axes.set_yscale("log")
        style.legend(figure, [style.key(style.shown(name, longest=60), **looks[name].line) for name in curves])
        return style.save(figure, path)


def loss_against_accumulator(rows: Sequence[Mapping[str, Any]], path: PathLike) -> Any:
    """Draw how far each run's validation loss lies above the first one's, a bar a run; runs that were not finite have a cross.

    rows: [{"products": name, "group": text, "val_loss": nats per token or None, "diverged_at": step or None}].
    """
    with style.applied():
        figure, axes = style.figure(height=1.5 + 0.32 * max(len(rows), 2))
        colors = dict(zip(dict.fromkeys(r["group"] for r in rows), (style.BLUE, style.ORANGE, style.GREEN), strict=False))
        first = rows[0]["val_loss"] if rows and is_number(rows[0]["val_loss"]) else 0.0
        gaps = [r["val_loss"] - first if is_number(r["val_loss"]) else None for r in rows]
        for y, (row, gap) in enumerate(zip(rows, gaps, strict=True)):
            if gap is None:
                style.marks(axes, [0], [y], **style.cross(style.VERMILLION))
            axes.barh(y, gap or 0, color=colors[row["group"]], height=0.7)
            text = f"not finite at step {row['diverged_at']}" if gap is None else f"{gap:+.4f}" if y else f"{first:.4f}"
            axes.annotate(text, (max(gap or 0, 0), y), xytext=(8 if gap is None else 4, 0), textcoords="offset points",
                          va="center", fontsize=9)
        axes.set(yticks=range(len(rows)), yticklabels=[style.shown(r["products"], 34) for r in rows],
                 ylim=(max(len(rows), 1) - 0.4, -0.6), xlabel="validation loss above that of the first row (nats per token)",
                 title="Loss against accumulator")
        axes.margins(x=0.2)
        axes.grid(False, axis="y")
        if not rows:
            style.say_empty(axes)
        style.legend(figure, [style.key(group, color=color, linewidth=8) for group, color in colors.items()])
        return style.save(figure, path)
