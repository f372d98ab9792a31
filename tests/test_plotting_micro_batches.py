"""Figures of gradient accumulation: the same each time, every name in the legend, one look a name, gaps where nothing is finite."""
import numpy as np

from minillm.plotting.micro_batches import side_by_side

PANELS = {"Adam": {"mean": ([1, 2, 3], [3.0, 2.0, 1.0]), "sum": ([1, 2, 3], [3.0, np.inf, np.nan])},
          "SGD": {"sum": ([1, 2], [1.0, 2.0])}}


def drawn(path, **how):
    return side_by_side(PANELS, path, "A title", "reviews", "norm", **how)


def test_the_same_figure_gives_the_same_file(tmp_path):
    assert drawn(tmp_path / "a.png").read_bytes() == drawn(tmp_path / "b.png").read_bytes()


def test_every_name_is_told_and_has_one_look(figures):
    drawn("a.png")
    left, right = figures[0].axes
    assert [t.get_text() for box in figures[0].legends for t in box.get_texts()] == ["mean", "sum"]
    assert [axes.get_title(loc="left") for axes in (left, right)] == ["Adam", "SGD"]
    assert left.get_lines()[1].get_color() == right.get_lines()[0].get_color() != left.get_lines()[0].get_color()
    assert (left.get_xlabel(), left.get_ylabel(), left.get_yscale()) == ("reviews", "norm", "log")


def test_what_is_not_finite_leaves_a_gap(figures):
    drawn("a.png", log=False)
    assert np.isnan(figures[0].axes[0].get_lines()[1].get_ydata()[1:]).all()
    assert figures[0].axes[0].get_yscale() == "linear"
