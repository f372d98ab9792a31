"""The figure of integer functions: the same each time, a panel for each, with its points and its units."""
from minillm.plotting.integer import errors

PANELS = {"exp": ([-1.0, 0.0], [0.1, 0.2], "x (a number)", "error (a number)"),
          "norm": ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], "deviation (codes)", "error (deviations)")}


def test_the_same_figure_gives_the_same_file(tmp_path):
    first, second = (errors(PANELS, tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second
    assert first.startswith(b"\x89PNG")


def test_each_function_has_a_panel_with_its_points_and_units(figures):
    errors(PANELS, "a.png")
    for axes, (title, (x, error, *labels)) in zip(figures[0].axes, PANELS.items(), strict=True):
        assert [axes.get_xlabel(), axes.get_ylabel(), axes.get_title(loc="left")] == [*labels, title]
        assert axes.get_lines()[-1].get_xydata().tolist() == [list(point) for point in zip(x, error, strict=True)]
