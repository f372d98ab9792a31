"""Figures of speed: rate against size for each type, and the roofline."""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minillm.plotting import style
from minillm.plotting.records import PathLike

OPENBLAS = "OpenBLAS float32"
LOOKS = {
    "float32": style.Look(style.BLACK, "-", "o"),
    "float16": style.Look(style.BLUE, (0, (8, 1.5, 1.5, 1.5)), "^"),
    "bfloat16": style.Look(style.GREEN, (0, (6, 1.5)), "s"),
    "int8": style.Look(style.VERMILLION, (0, (3, 1.2)), "D"),
    OPENBLAS: style.Look(style.PURPLE, (0, (1.5, 1)), "v"),
}
RATE = "operations a second (10$^9$/s)"


def rates(rows: Sequence[Mapping[str, Any]], peaks: Mapping[str, float], path: PathLike) -> Path:
    """Draw the rate of square products against their size, a line for each type, and OpenBLAS beside them.

    rows: those of `minillm bench matmul`; peaks: operations a second on registers alone, by type, drawn as level lines.
    """
    lines = rates_by_size(rows)
    with style.applied():
        figure, axes = style.figure(height=4.4)
        for name, points in lines.items():
            axes.plot(*zip(*sorted(points.items()), strict=True), **LOOKS[name].line)
            style.marks(axes, *zip(*points.items(), strict=True), **LOOKS[name].points)
        for name, peak in peaks.items():
            axes.axhline(peak / 1e9, **LOOKS[name].line | {"linewidth": 0.9, "linestyle": ":"})
            axes.annotate(f"registers alone: {name}", (0.01, peak / 1e9), xycoords=("axes fraction", "data"), xytext=(0, 3),
                          textcoords="offset points", fontsize=9, color=LOOKS[name].color)
        axes.set(title="Matrix products", xlabel="M = N = K (a number)", ylabel=RATE)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        sizes = sorted({n for points in lines.values() for n in points})
        axes.set_xticks(sizes, [str(n) for n in sizes])
        axes.minorticks_off()
        if not lines:
            style.say_empty(axes)
        style.legend(figure, [style.key(name, **LOOKS[name].line | {"marker": LOOKS[name].marker}) for name in lines])
        return style.save(figure, path)


def rates_by_size(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """{type: {size: 10^9 operations a second}}; OpenBLAS's come from the float32 rows that are compared with it."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        found.setdefault(row["name"], {})[row["shape"][0]] = row["rate"]
        if (row["name"], row["peer"]) == ("float32", "openblas-float32"):
            found.setdefault(OPENBLAS, {})[row["shape"][0]] = row["rate"] / row["ratio"]
    return found


def roofline(points: Sequence[Mapping[str, Any]], peaks: Mapping[str, float], bandwidth: float, path: PathLike) -> Path:
    """Draw what ops reach under what a machine could reach: the least of its peak and of intensity times memory bandwidth.

    points: [{"name", "type", "intensity": operations a byte, "rate": operations a second}]; peaks: operations a second by type;
    bandwidth: bytes a second. Williams, Waterman and Patterson 2009.
    """
    with style.applied():
        figure, axes = style.figure(height=4.6)
        widest = max([p["intensity"] for p in points] + [4 * peak / bandwidth for peak in peaks.values()], default=100.0)
        x = np.geomspace(0.05, widest * 1.5, 200)
        for name, peak in peaks.items():
            axes.plot(x, np.minimum(peak, bandwidth * x) / 1e9, **LOOKS[name].line)
        for i, name in enumerate(dict.fromkeys(p["type"] for p in points)):
            mine = [p for p in points if p["type"] == name]
            style.marks(axes, [p["intensity"] for p in mine], [p["rate"] / 1e9 for p in mine], **LOOKS[name].points)
            beside = {"xytext": (-7, 4), "ha": "right"} if i % 2 else {"xytext": (7, -10)}    # so that two types keep apart
            for p in mine:
                axes.annotate(p["name"], (p["intensity"], p["rate"] / 1e9), textcoords="offset points", fontsize=8,
                              color=LOOKS[name].color, **beside)
        axes.set(title="The roofline", xlabel="intensity (operations for each byte from memory)", ylabel=RATE, xscale="log",
                 yscale="log")
        keys = [style.key(f"{name}: what the machine could do", **LOOKS[name].line) for name in peaks]
        keys += [style.key(f"{name}: measured", **LOOKS[name].points) for name in dict.fromkeys(p["type"] for p in points)]
        if not points and not peaks:
            style.say_empty(axes)
        style.legend(figure, keys)
        return style.save(figure, path)
