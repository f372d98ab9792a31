"""A figure of learning from few labels: what each way to learn reaches, seed by seed, over the number of labels."""
from collections.abc import Mapping, Sequence

from minillm.plotting import style
from minillm.plotting.hybrid import with_spread
from minillm.plotting.records import PathLike


def over_labels(found: Mapping[str, Mapping[int, Sequence[float]]], path: PathLike, title: str, ylabel: str) -> PathLike:
    """Draw for each name a line through the means over the seeds, from its least to its largest value upright at each number."""
    with style.applied():
        figure, axes = style.figure(1, 1, height=3.8)
        looks, numbers = style.looks(found), sorted({n for values in found.values() for n in values})
        for i, (name, values) in enumerate(found.items()):
            x = [n * 1.04 ** (i - (len(found) - 1) / 2) for n in values]                # side by side, or spreads hide each other
            with_spread(axes, looks[name], x, list(values.values()))
        axes.set(xlabel="labels (number)", ylabel=ylabel, xscale="log")
        axes.set_xticks(numbers, [f"{n:,}" for n in numbers])
        axes.minorticks_off()
        figure.suptitle(style.shown(title), x=0.01, ha="left", fontsize=11)
        style.legend(figure, [style.key(style.shown(name, 34), **looks[name].line, marker=looks[name].marker) for name in found])
        return style.save(figure, path)
