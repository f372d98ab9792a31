"""The figure of a validation curve among n-grams: every level is drawn, and every name can be read."""
from minillm.plotting.ngrams import among_ngrams, named

LEVELS = [4.0, 3.0, 2.0, 1.98, 1.96, 1.5]


def test_levels_that_lie_close_together_share_a_name():
    assert named(LEVELS) == [("1-gram", [4.0]), ("2-gram", [3.0]), ("3- to 5-gram", [2.0, 1.98, 1.96]), ("6-gram", [1.5])]


def test_each_corpus_has_its_curve_and_its_levels(figures):
    curve = {"GPT": ([100, 200], [3.5, 2.5])}
    among_ngrams({"pydoc": curve, "wiki": curve}, {"pydoc": LEVELS, "wiki": LEVELS[:2]}, "a.png", "A title")
    pydoc, wiki = figures[0].axes
    assert [t.get_text() for t in wiki.texts] == ["1-gram", "2-gram"]
    assert [line.get_ydata()[0] for line in pydoc.get_lines()] == [*LEVELS, 3.5]
    assert list(wiki.get_lines()[-1].get_ydata()) == [3.5, 2.5]
    assert pydoc.get_yscale() == "log"
