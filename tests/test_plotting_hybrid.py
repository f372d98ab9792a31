"""Figures of combined methods: the same each time, every name shown, points where they are."""
from minillm.plotting.hybrid import panels

CURVES = {"typos": {"one": ([0, 10], [2.0, 2.5]), "three": ([0, 10], [1.9, 2.3])}, "dropped": {"one": ([0, 10], [2.0, 2.2])}}


def drawn(path):
    return panels(CURVES, path, "A title", "share of tokens (%)", "loss (nats)")


def test_the_same_figure_gives_the_same_file(tmp_path):
    assert drawn(tmp_path / "a.png").read_bytes() == drawn(tmp_path / "b.png").read_bytes()


def test_a_panel_a_name_a_line_a_method(figures):
    drawn("a.png")
    assert [axes.get_title(loc="left") for axes in figures[0].axes] == ["typos", "dropped"]
    assert [t.get_text() for box in figures[0].legends for t in box.get_texts()] == ["one", "three"]
    first = figures[0].axes[0].get_lines()
    assert [list(line.get_ydata()) for line in first] == [[2.0, 2.5], [1.9, 2.3]]
