"""Figures of training with quantization: the same each time, every name in the legend or on the axis, points where they are."""

import numpy as np
import pytest

from minillm.plotting import quantized_training

CASES = {
    quantized_training.among_codes: ({"float32": np.linspace(-9, 2, 50), "ternary": np.linspace(-1, 1, 50)},),
    quantized_training.by_seed: ({"rounded": [0.1, 0.3], "GPTQ": [-0.1, 0.1]},),
}
LABELS = {quantized_training.by_seed: {"xlabel": "loss (nats)"}}


def drawn(draw, path):
    return draw(*CASES[draw], path, title="A title", **LABELS.get(draw, {}))


@pytest.mark.parametrize("draw", CASES, ids=lambda f: f.__name__)
def test_the_same_figure_gives_the_same_file(draw, tmp_path):
    assert drawn(draw, tmp_path / "a.png").read_bytes() == drawn(draw, tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("draw", CASES, ids=lambda f: f.__name__)
def test_every_name_is_told_and_every_axis_has_a_unit(draw, figures):
    drawn(draw, "a.png")
    shown = [t.get_text() for box in figures[0].legends for t in box.get_texts()]
    for axes in figures[0].axes:
        shown += [axes.get_title(loc="left"), *(t.get_text() for t in axes.get_yticklabels())]
    assert set(CASES[draw][0]) <= set(shown)
    assert all("(" in axes.get_xlabel() for axes in figures[0].axes)


def test_shares_of_weights_are_of_all_of_them_those_beyond_the_axis_too(figures):
    drawn(quantized_training.among_codes, "a.png")
    for axes in figures[0].axes:
        assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(100)


def test_a_bar_is_the_mean_and_a_dot_a_seed(figures):
    drawn(quantized_training.by_seed, "a.png")
    axes = figures[0].axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.2, 0.0])
    assert [list(line.get_xdata()) for line in axes.get_lines()][:2] == [[0.1, 0.3], [-0.1, 0.1]]
