"""A figure of a model's validation curve among the levels that n-gram models reach on the same text."""
from collections.abc import Mapping, Sequence
from typing import Any

from minillm.plotting import style
from minillm.plotting.records import PathLike

Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]
CLOSE = 1.035              # neighbours whose ratio is less share one name


def among_ngrams(curves: Mapping[str, Curves], levels: Mapping[str, Sequence[float]], path: PathLike, title: str) -> PathLike:
    """Draw for each corpus a panel with a line (steps, bits per character) a name, and what n-grams reach, n = 1, 2, ..."""
    with style.applied():
        figure, axes = style.figure(1, len(curves), height=4.2, sharey=True, squeeze=False)
        looks = style.looks(name for lines in curves.values() for name in lines)
        for part, (corpus, lines) in zip(axes[0], curves.items(), strict=True):
            for label, bits in named(levels[corpus]):
                level(part, label, bits)
            for name, (steps, bits) in lines.items():
                part.plot(steps, bits, **looks[name].line, marker=looks[name].marker, markersize=4)
            part.set(title=style.shown(corpus, 28), xlabel="step", yscale="log")
            part.set_yticks(ticks := [1.5, 2, 3, 4, 5], [f"{bits:g}" for bits in ticks])
            part.minorticks_off()
            style.whole_ticks(part.xaxis)
        axes[0][0].set_ylabel("bits per character")
        figure.suptitle(style.shown(title), x=0.01, ha="left", fontsize=11)
        style.legend(figure, [style.key(style.shown(name, 34), **look.line, marker=look.marker) for name, look in looks.items()])
        return style.save(figure, path)


def named(levels: Sequence[float]) -> list[tuple[str, list[float]]]:
    """Levels that lie close together share a name: [("5-gram", [1.8]), ("6- to 8-gram", [1.72, 1.68, 1.66])]."""
    groups: list[list[int]] = []
    for n, bits in enumerate(levels, 1):
        if groups and levels[n - 2] / bits < CLOSE:
            groups[-1].append(n)
        else:
            groups.append([n])
    return [(f"{group[0]}-gram" if len(group) == 1 else f"{group[0]}- to {group[-1]}-gram", [levels[n - 1] for n in group])
            for group in groups]


def level(axes: Any, label: str, bits: Sequence[float]) -> None:
    """Lines across the axes, with one name behind their right end."""
    for value in bits:
        axes.axhline(value, color=style.GREY, linestyle=":", linewidth=1.1, zorder=1)
    axes.annotate(label, (1, (bits[0] + bits[-1]) / 2), xycoords=axes.get_yaxis_transform(), xytext=(3, 0),
                  textcoords="offset points", va="center", fontsize=8, color=style.GREY)
