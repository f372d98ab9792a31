"""The figure of few labels: the same each time, a line through the means, and the spread where it is."""
from minillm.plotting.few_labels import over_labels

FOUND = {"from scratch": {50: [0.3, 0.5], 200: [0.6, 0.6]}, "pre-trained": {50: [0.5, 0.7]}}


def drawn(path):
    return over_labels(FOUND, path, "A title", "accuracy (share)")


def test_the_same_figure_gives_the_same_file(tmp_path):
    assert drawn(tmp_path / "a.png").read_bytes() == drawn(tmp_path / "b.png").read_bytes()


def test_lines_go_through_means_and_spreads_from_least_to_largest(figures):
    drawn("a.png")
    axes = figures[0].axes[0]
    assert [list(line.get_ydata()) for line in axes.get_lines()] == [[0.4, 0.6], [0.6]]
    assert [[tuple(float(y) for y in part[:, 1]) for part in lines.get_segments()] for lines in axes.collections] == \
        [[(0.3, 0.5), (0.6, 0.6)], [(0.5, 0.7)]]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["50", "200"]
    assert [t.get_text() for box in figures[0].legends for t in box.get_texts()] == ["from scratch", "pre-trained"]
