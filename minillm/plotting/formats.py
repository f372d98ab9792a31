"""Figures of number formats: how far they reach, how far apart their values lie, and every value of the small ones."""
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minillm.formats import Format
from minillm.plotting import style
from minillm.plotting.records import PathLike

NORMAL, SUBNORMAL = style.BLUE, style.SKY


def reach(formats: Sequence[Format], path: PathLike) -> Path:
    """Draw one bar a format from its smallest value above 0 to its largest, on an axis of powers of two; subnormals are paler."""
    with style.applied():
        figure, axes = style.figure(height=1.2 + 0.3 * len(formats))
        for row, format in enumerate(formats):
            low, tiny, top = (math.log2(v) for v in (format.smallest, min(format.tiny, format.max), format.max))
            axes.barh(row, tiny - low, left=low, color=SUBNORMAL, height=0.6)
            axes.barh(row, top - tiny, left=tiny, color=NORMAL, height=0.6)
            axes.text(top, row, f"  {format.max:.6g}", va="center", fontsize=9)
        axes.set_yticks(range(len(formats)), [format.name for format in formats])
        axes.set_ylim(len(formats) - 0.4, -0.6)
        ends = [math.log2(v) for format in formats for v in (format.smallest, format.max)]
        room = max(ends) - min(ends)
        axes.set_xlim(min(ends) - 0.03 * room, max(ends) + 0.2 * room)         # room for the largest value's digits
        axes.set(title="From the smallest value to the largest", xlabel="size of a value (power of two)")
        style.power_ticks(axes.xaxis)
        axes.grid(axis="y", visible=False)
        style.legend(figure, [style.key("with all its digits", color=NORMAL, linewidth=8),
                              style.key("evenly spaced below those", color=SUBNORMAL, linewidth=8)])
        return style.save(figure, path)


def relative_spacing(formats: Sequence[Format], path: PathLike, low: int = -24, high: int = 20) -> Path:
    """Draw the distance between values relative to their size, ulp(x) / x, from 2^low to 2^high; each line ends with its format."""
    with style.applied():
        figure, axes = style.figure()
        looks, handles = style.looks(format.name for format in formats), []
        for format in formats:
            x = np.exp2(np.linspace(low, high, 16 * (high - low) + 1))
            x = x[(x >= format.smallest) & (x <= format.max)]
            axes.plot(np.log2(x), np.log2([format.ulp(v) / v for v in x.tolist()]), **looks[format.name].line)
            handles.append(style.key(format.name, **looks[format.name].line))
        axes.set(title="How far apart values lie, relative to their size", xlabel="size of the value x (power of two)",
                 ylabel="ulp(x) / x (power of two)")
        style.power_ticks(axes.xaxis)
        style.power_ticks(axes.yaxis)
        style.legend(figure, handles)
        return style.save(figure, path)


def number_lines(formats: Sequence[Format], path: PathLike, end: float = 8.0) -> Path:
    """Draw every value from 0 to `end` of small formats as a stroke, one line a format; how many there are stands beside it."""
    with style.applied():
        figure, axes = style.figure(height=1.0 + 0.42 * len(formats))
        for row, format in enumerate(formats):
            values = format.values()
            values = values[(values >= 0) & (values <= end)]
            axes.vlines(values, row - 0.32, row + 0.32, color=_shades(values, format), linewidth=1.1)
            axes.text(end * 1.01, row, f"{len(values)}", va="center", fontsize=9)
        axes.set_yticks(range(len(formats)), [format.name for format in formats])
        axes.set_ylim(len(formats) - 0.4, -0.6)
        axes.set_xlim(-0.02 * end, 1.06 * end)
        axes.set(title=f"Every value from 0 to {end:g}, and how many there are", xlabel="value (linear)")
        axes.grid(visible=False)
        style.legend(figure, [style.key("with all its digits", color=NORMAL, linewidth=3),
                              style.key("0, and evenly spaced below those", color=SUBNORMAL, linewidth=3)])
        return style.save(figure, path)


def _shades(values: np.ndarray, format: Format) -> list[Any]:
    """The colour of each value: paler below the smallest normal one."""
    return [SUBNORMAL if v < format.tiny else NORMAL for v in values.tolist()]
