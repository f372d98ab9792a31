"""Figures of quantization: the same each time, with every name in the legend, and points where the numbers are."""

import numpy as np
import pytest

from minillm.plotting import quantization

x = np.linspace(-1, 3, 50)
CURVES = {"min-max": ([8, 4, 2], [40.0, 16.0, 1.0]), "a": ([8, 4, 2], [41.0, 18.0, 0.0])}
ROWS = [{"method": method, "bits": bits, "loss_above": loss, "losses_above": [loss, 0.002]}
        for method, bits, loss in (("rtn", 8, -0.1), ("rtn", 4, 0.01), ("awq", 8, None), ("awq", 4, 0.02))]
CASES = {
    quantization.staircases: (x, {"int4": np.rint(x), "ternary": np.sign(x)}),
    quantization.ranges: (x, {"min-max": 3.0, "entropy": 2.0}),
    quantization.over_bits: (CURVES,),
    quantization.over: (CURVES,),
    quantization.loss_over_bits: (ROWS,),
}
LABELS = {quantization.over_bits: {"ylabel": "loss (nats)"},
          quantization.over: {"xlabel": "alpha (a share)", "ylabel": "error (dB)"}}


def drawn(draw, path, **more):
    return draw(*CASES[draw], path, title="A title", **LABELS.get(draw, {}), **more)


@pytest.mark.parametrize("draw", CASES, ids=lambda f: f.__name__)
def test_the_same_figure_gives_the_same_file(draw, tmp_path):
    first, second = drawn(draw, tmp_path / "a.png"), drawn(draw, tmp_path / "b.png")
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("draw", CASES, ids=lambda f: f.__name__)
def test_every_name_stands_in_the_legend_and_every_axis_has_a_unit(draw, figures):
    drawn(draw, "a.png")
    axes, legend = figures[0].axes[0], figures[0].legends[0]
    assert {text.get_text() for text in legend.get_texts()} == {r["method"] if isinstance(r, dict) else r for r in CASES[draw][-1]}
    assert "(" in axes.get_xlabel()
    assert "(" in axes.get_ylabel()


def test_points_go_from_many_bits_to_few_and_what_has_no_logarithm_is_a_gap(figures):
    drawn(quantization.over_bits, "a.png", log=True)
    axes = figures[0].axes[0]
    assert axes.get_xlim()[0] > axes.get_xlim()[1]
    first, second = (line.get_ydata() for line in axes.get_lines())
    assert first.tolist() == [40, 16, 1]
    assert np.isnan(second[2])


def test_observers_end_where_they_say(figures):
    drawn(quantization.ranges, "a.png")
    assert [line.get_xdata()[0] for line in figures[0].axes[0].get_lines()] == [3.0, 2.0]


def test_means_are_lines_and_runs_are_points_but_for_losses_without_a_logarithm(figures):
    drawn(quantization.loss_over_bits, "a.png")
    axes = figures[0].axes[0]
    assert axes.get_xlim()[0] > axes.get_xlim()[1]
    mean, eight, four = (line.get_ydata() for line in axes.get_lines()[:3])
    assert np.array_equal(mean, [np.nan, 0.01], equal_nan=True)
    assert np.array_equal(eight, [np.nan, 0.002], equal_nan=True)
    assert np.array_equal(four, [0.01, 0.002])
