"""Figures of combined methods: the same each time, every name shown, points where they are."""
from minillm.plotting.hybrid import over_rates, panels, stages

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


def test_rates_have_a_panel_a_recipe_a_line_a_batch_and_the_spread(figures):
    found = {name: {"batch 2": {1e-3: [2.0, 2.25, 2.5], 2e-3: [2.5]}, "batch 6": {1e-3: [3.0]}} for name in ("a", "b", "c")}
    over_rates(found, "a.png", "A title", "learning rate", "loss (nats)")
    parts = figures[0].axes
    assert [part.get_title(loc="left") for part in parts] == ["a", "b", "c", ""]
    assert [t.get_text() for t in parts[2].get_xticklabels()] == ["0.001", "0.002"]
    assert [list(line.get_ydata()) for line in parts[0].get_lines()] == [[2.25, 2.5], [3.0]]
    assert [list(path.vertices[:, 1]) for path in parts[0].collections[0].get_paths()] == [[2.0, 2.5], [2.5, 2.5]]


def test_stages_stand_in_their_order_with_the_mean_of_each(figures):
    stages({"float32": {"first": [0.5, 0.75], "then": [0.75]}, "int8-qat": {"first": [0.25], "then": [1.0]}}, "a.png", "A title",
           "share")
    axes = figures[0].axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["first", "then"]
    assert [list(line.get_ydata()) for line in axes.get_lines()] == [[0.625, 0.75], [0.25, 1.0]]
