"""A row for each name: the same file each time, marks where the values are, the first name on top."""
from minillm.plotting.augmentation import rows_of_marks

VALUES = {"none": [0.5, 0.7], "dropout": [0.6, 0.6], "swap": [0.4]}


def test_the_same_figure_gives_the_same_file(tmp_path):
    a, b = (rows_of_marks(VALUES, tmp_path / name, "A title", "accuracy", "none") for name in ("a.png", "b.png"))
    assert a.read_bytes() == b.read_bytes()


def test_marks_stand_at_the_values_and_the_line_at_the_base(figures):
    rows_of_marks(VALUES, "a.png", "A title", "accuracy", "none")
    axes, = figures[0].axes
    assert [t.get_text() for t in axes.get_yticklabels()] == list(VALUES)
    lines = [list(line.get_xdata()) for line in axes.get_lines()]
    assert lines == [[0.6], [0.5, 0.7], [0.6], [0.6, 0.6], [0.4], [0.4], [0.6, 0.6]]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
