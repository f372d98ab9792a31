"""Figures of formats: they are made, are the same each time, and show what the formats say."""
import pytest

from minillm.formats import BFLOAT16, E8M0, FLOAT4_E2M1, FLOAT8_E4M3, FLOAT16, FLOAT32, INT8
from minillm.plotting import formats, style

really_save = style.save
CASES = {
    formats.reach: (FLOAT32, BFLOAT16, FLOAT16, E8M0, FLOAT4_E2M1, INT8),
    formats.relative_spacing: (FLOAT16, BFLOAT16, FLOAT8_E4M3, FLOAT4_E2M1, E8M0),
    formats.number_lines: (FLOAT4_E2M1, FLOAT8_E4M3, INT8, E8M0),
}


@pytest.mark.parametrize("draw", CASES, ids=lambda f: f.__name__)
def test_the_same_figure_gives_the_same_file(draw, tmp_path):
    first, second = draw(CASES[draw], tmp_path / "a.png"), draw(CASES[draw], tmp_path / "b.png")
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("draw", CASES, ids=lambda f: f.__name__)
def test_names_labels_and_texts_lie_within_the_page(draw, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(style, "save", lambda figure, path: kept.append(figure) or really_save(figure, path))
    draw(CASES[draw], tmp_path / "a.png")
    figure, page = kept[0], kept[0].bbox
    axes = figure.axes[0]
    for text in [*axes.texts, *axes.get_yticklabels(), axes.xaxis.label, axes.yaxis.label]:
        box = text.get_window_extent() if text.get_text() else page
        assert box.x0 >= 0, text
        assert box.x1 <= page.x1, text
    assert "(" in axes.get_xlabel()
    words = {text.get_text() for text in [*axes.get_yticklabels(), *figure.legends[0].get_texts()]}
    assert {format.name for format in CASES[draw]} <= words


def test_strokes_stand_at_the_values(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(style, "save", lambda figure, path: kept.append(figure))
    formats.number_lines([FLOAT4_E2M1], tmp_path / "a.png")
    strokes = sorted(segment[0][0] for segment in kept[0].axes[0].collections[0].get_segments())
    assert strokes == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
