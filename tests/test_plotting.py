"""Figures: they are made, they can be read, and they say what the records say."""
import json
import math
import os
import struct
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from minillm.errors import MiniLLMError
from minillm.formats import BFLOAT16, FLOAT16, FLOAT32, Format
from minillm.plotting import gradients, recipes, style, training, updates

SIX = list(style.RECIPE_LOOKS)
LONG = [f"float16-mixed-with-stochastic-rounding-and-a-very-long-name-{i}" for i in range(6)]
TWELVE = SIX + LONG
NAN = math.nan
really_save = style.save


def a_run(steps=120, end=2.45, diverged_at=None):
    rng = np.random.default_rng(steps)
    at = np.arange(1, diverged_at or steps + 1)
    loss = end + (8.3 - end) * np.exp(-at / 20) + 0.1 * rng.standard_normal(at.size)
    return {"steps": at.tolist(), "loss": loss.tolist(), "val_steps": at[19::20].tolist(),
            "val_loss": loss[19::20].tolist(), "diverged_at": diverged_at}


def a_histogram(mean=-20.0, cut=-1000):
    counts = {e: round(1e6 * math.exp(-((e - mean) ** 2) / 32)) for e in range(-60, 20)}
    kept = {e: count for e, count in counts.items() if e >= cut and count}
    return {**kept, "zero": sum(counts.values()) - sum(kept.values())}


def a_scale(start=16, steps=200):
    scales = [start - step // 70 for step in range(1, steps + 1)]
    return {"steps": list(range(1, steps + 1)), "log2_scale": scales, "skipped": [70, 140]}


def a_replay(start=16, sinks=False):
    run = a_scale(start)
    scales = [*run["log2_scale"][:150], *[None] * 50] if sinks else run["log2_scale"]
    headroom = [None if scale is None else 14 - scale for scale in scales]
    return run | {"log2_scale": scales, "headroom": headroom, "fate": "sinks to 0" if sinks else "trains"}


def a_point(log2_scale, val_loss, share=0.1):
    diverged_at = None if val_loss else 12
    return {"log2_scale": log2_scale, "val_loss": val_loss, "diverged_at": diverged_at, "zero_gradient_share": share}


def a_row(recipe, val_loss=2.45, spread=0.012, diverged=0, **changes):
    sizes = {"weights": 3.3e6, "gradients": 3.3e6, "optimizer": 6.6e6, "activations": 13.4e6}
    return {"recipe": recipe, "val_loss": val_loss, "val_loss_sd": spread, "seeds": 3, "diverged": diverged,
            "zero_gradient_share": 0.31, "bytes": sizes} | changes


STATIC = [a_point(k, loss, share) for k, loss, share in zip(
    range(0, 26, 2), [8.5, 6.2, 3.9, 2.9, 2.52, 2.46, 2.452, 2.449, 2.455, 2.447, None, None, None],
    np.geomspace(0.93, 1e-4, 13).tolist(), strict=True)]
WIDE = Format("wide", 8, 3, np.float32)

CASES = {
    "loss, six recipes": (training.loss_curves, {r: a_run(end=2.4 + i / 5) for i, r in enumerate(SIX)}),
    "loss, one run": (training.loss_curves, {"float16-mixed": a_run()}),
    "loss, levels": (training.loss_curves, {"float32": a_run()}, "A run", None, {"unigram": 5.1, "bigram": 3.2, "no": 9.0}),
    "loss, twelve recipes": (training.loss_curves, {r: a_run(60, diverged_at=7 * i + 1 if i % 3 else None)
                                                    for i, r in enumerate(TWELVE)}),
    "loss, nothing": (training.loss_curves, {}),
    "loss, at step 1": (training.loss_curves, {"float16": a_run(diverged_at=1)}),
    "loss, one point": (training.loss_curves, {"float32": a_run(1)}),
    "loss, not measured": (training.loss_curves, {"a $b$ c": a_run(3) | {"loss": [8.0, None, NAN]}, "_b": {}}),
    "loss, huge": (training.loss_curves, {"float16": a_run(3, diverged_at=4) | {"loss": [8.3, 1e30, 1e300]}}),
    "exponents": (gradients.gradient_exponents, {r: a_histogram(-20 + 6 * i, -24) for i, r in enumerate(SIX[:4])}),
    "exponents, twelve recipes": (gradients.gradient_exponents, {r: a_histogram(-9 - i) for i, r in enumerate(TWELVE)}),
    "exponents, nothing": (gradients.gradient_exponents, {}),
    "exponents, empty": (gradients.gradient_exponents, {"float32": {}, "float16": {"zero": 7}, "x": {-3: 0}}),
    "exponents, three formats": (gradients.gradient_exponents, {"a": a_histogram()}, (FLOAT16, BFLOAT16, FLOAT32)),
    "exponents, far out": (gradients.gradient_exponents, {"a": {-140: 1, 40: 1, "zero": 0}}, (BFLOAT16, FLOAT16, WIDE)),
    "exponents, no format": (gradients.gradient_exponents, {"a": {-3: 4}}, ()),
    "scale": (training.loss_scale_history, {"float16-mixed": a_scale(), "float16": a_scale(0)}),
    "scale, twelve recipes": (training.loss_scale_history, {r: a_scale(10 + i) for i, r in enumerate(TWELVE)}),
    "scale, nothing": (training.loss_scale_history, {}),
    "scale, one point": (training.loss_scale_history, {"float16-mixed": a_scale(16, 1) | {"skipped": [1]}, "b": {}}),
    "scale, not recorded": (training.loss_scale_history, {"b": {"steps": [1, 2], "log2_scale": [None, NAN]}}),
    "replays": (training.scaler_replays, {"keras": a_replay(15, sinks=True), "pytorch": a_replay(), "minillm": a_replay(10)}),
    "replays, twelve scalers": (training.scaler_replays, {r: a_replay(10 + i) for i, r in enumerate(TWELVE)}),
    "replays, nothing": (training.scaler_replays, {}),
    "replays, not recorded": (training.scaler_replays, {
        "a": a_scale(), "b": {"steps": [1, 2], "log2_scale": [None, NAN]}, "c": {}}),
    "static": (recipes.static_scale, STATIC, 2.45),
    "static, all near": (recipes.static_scale, STATIC[4:], 2.45),
    "static, nothing": (recipes.static_scale, [], 2.45),
    "static, one point": (recipes.static_scale, STATIC[:1], None),
    "static, all diverged": (recipes.static_scale, [p | {"zero_gradient_share": None} for p in STATIC[-3:]], NAN),
    "comparison": (recipes.recipe_comparison, [*map(a_row, SIX[:4]), a_row("float16", 8.5, 0.3, 1),
                                                a_row("float16-no-master", None, NAN, 3)]),
    "comparison, twelve recipes": (recipes.recipe_comparison, [a_row(r, 2.4 + i / 40) for i, r in enumerate(TWELVE)]),
    "comparison, nothing": (recipes.recipe_comparison, []),
    "comparison, one row": (recipes.recipe_comparison, [a_row("float32", spread=None, seeds=1)]),
    "comparison, not measured": (recipes.recipe_comparison, [
        a_row("float32", None, None, zero_gradient_share=None, bytes={}), a_row("x" * 300, NAN, None, 3, bytes=None)]),
}

LOST = {"log2_ratio": [-13.0, -12.0, -11.5, -11.0, -10.0], "expected": [1, 1, 0.41, 0, 0], "counted": [1, 1, 0.4, 0, NAN]}
DESCENT = {"steps": list(range(0, 2000, 20)), "loss": (10 * 0.9 ** np.arange(100) + 1e-4).tolist()}
STORED = {"size": np.geomspace(1e-9, 1, 50).tolist(), "error": np.linspace(1, 0, 50).tolist(), "zero": 0.27}
CASES |= {
    "lost updates": (updates.lost_updates, {"float16": LOST, "bfloat16": LOST | {"log2_ratio": [-10, -9, -8.5, -8, -7]}}),
    "lost updates, twelve": (updates.lost_updates, dict.fromkeys(TWELVE, LOST)),
    "lost updates, nothing": (updates.lost_updates, {}),
    "lost updates, not counted": (updates.lost_updates, {"a": LOST | {"counted": [None, 1, 1, 1, 1]}, "b": {}}),
    "descents": (updates.descents, dict.fromkeys(("float32", "master weights", "nearest"), DESCENT)),
    "descents, twelve": (updates.descents, dict.fromkeys(TWELVE, DESCENT)),
    "descents, nothing": (updates.descents, {}),
    "descents, hard": (updates.descents, {"a": {"steps": [0, 1, 2], "loss": [1e300, 0.0, None]}, "b": {}}),
    "maps": (updates.eight_bit_maps, {"linear": STORED, "dynamic": STORED}, np.geomspace(1e-12, 1, 999)),
    "maps, nothing": (updates.eight_bit_maps, {}),
    "maps, zeros": (updates.eight_bit_maps, {"a": {"size": [1.0], "error": [NAN]}, "b": {}}, [0.0, 0.0]),
    "maps, one entry": (updates.eight_bit_maps, {"a": STORED | {"zero": None}}, [1.0]),
}


def draw(case, path):
    function, records, *rest = CASES[case]
    return function(records, path, *rest)


@pytest.fixture
def texts(monkeypatch):
    """Every text that was drawn (ticks outside the axis are not)."""
    from matplotlib.text import Text

    drawn, really_draw = [], Text.draw
    monkeypatch.setattr(Text, "draw", lambda self, *a, **k: drawn.append(self) or really_draw(self, *a, **k))
    return drawn


def chunks(png):
    """The names of a PNG's chunks, and its width and height in pixels."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    names, at = [], 8
    while at < len(png):
        length, name = struct.unpack(">I4s", png[at : at + 8])
        names.append(name)
        at += 12 + length
    return names, struct.unpack(">II", png[16:24])


# ---- every figure, easy and hard ----


@pytest.mark.parametrize("case", CASES)
def test_a_figure_is_written_and_every_text_can_be_read(case, tmp_path, figures, texts):
    path = tmp_path / "new" / "folder" / "figure.png"
    assert draw(case, path) == path
    texts.clear()  # some were measured, and the figure has changed since
    assert really_save(figures[0], path) == path
    assert [file.name for file in path.parent.iterdir()] == ["figure.png"]  # no temporary file stays behind
    names, (width, _) = chunks(path.read_bytes())
    assert (names[0], names[-1], width) == (b"IHDR", b"IEND", 1050)
    readable(figures[0], texts)


def readable(figure, texts):
    """No text is small, cut off or over another; labels are no longer than their axes; the legend covers no axes."""
    seen = {text for text in texts if text.get_visible() and text.get_text().strip()}
    boxes = {text: text.get_window_extent().padded(-1) for text in seen}
    assert len(boxes) > 2
    for text, box in boxes.items():
        assert text.get_fontsize() >= 9, text
        assert all(figure.bbox.contains(x, y) for x, y in box.corners()), text
    for (one, box), (other, other_box) in combinations(boxes.items(), 2):
        assert not box.overlaps(other_box), (one, other)
    for axes in figure.axes:
        assert min(axes.bbox.width, 5 * axes.bbox.height) > 150
        assert axes.yaxis.label.get_window_extent().height < 1.05 * axes.bbox.height, axes.get_ylabel()
        assert not any(axes.bbox.overlaps(legend.get_window_extent()) for legend in figure.legends)


@pytest.mark.parametrize(("case", "labels"), [
    ("loss, one run", ["step", "nats per token"]),
    ("exponents", ["exponent of the cotangent, log2|g|", "share of all values"]),
    ("scale", ["optimizer attempt (step)", "a factor, no unit", "skipped"]),
    ("replays", ["optimizer attempt (step)", "a factor, no unit", "headroom (bits)", "skipped"]),
    ("static", ["a factor", "nats per token", "(%)"]),
    ("comparison", ["nats per token", "MB"]),
    ("lost updates", ["log2 |update / weight|", "(%)"]),
    ("descents", ["step", "mean squared error"]),
    ("maps", ["share of its block's largest", "relative error (%)", "entries (%)"]),
])
def test_axes_are_labelled_with_their_units(case, labels, tmp_path, figures):
    draw(case, tmp_path / "a.png")
    found = "\n".join(axes.get_xlabel() + "\n" + axes.get_ylabel() for axes in figures[0].axes)
    assert all(label in found for label in labels), found


def test_a_scale_that_sinks_to_0_ends_with_a_cross_and_says_so(tmp_path, figures):
    draw("replays", tmp_path / "a.png")
    scale, room, _ = figures[0].axes
    crosses = [(line.get_xdata()[0], line.get_ydata()[0]) for line in scale.lines if line.get_marker() == "X"]
    assert crosses == [(151, 15 - 150 // 70)]
    texts = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert texts == ["keras: 2 skipped, sinks to 0", "pytorch: 2 skipped, trains", "minillm: 2 skipped, trains"]
    assert [len(line.get_xdata()) for line in room.lines] == [150, 200, 200, 2]          # the last is the line at 0


@pytest.mark.parametrize("case", ["loss, six recipes", "exponents, three formats", "static"])
def test_the_same_records_give_the_same_bytes_whatever_the_readers_settings(case, tmp_path):
    import matplotlib

    first = draw(case, tmp_path / "a.png").read_bytes()
    with matplotlib.rc_context({"font.size": 20, "axes.grid": False, "lines.linewidth": 5, "savefig.bbox": "tight"}):
        assert draw(case, tmp_path / "b.png").read_bytes() == first
    assert set(chunks(first)[0]) <= {b"IHDR", b"pHYs", b"IDAT", b"IEND"}  # no time, no version of anything


def test_importing_loads_no_matplotlib_and_drawing_leaves_no_trace(tmp_path):
    script = f"""
import sys
import minillm.plotting, minillm.plotting.style, minillm.plotting.training, minillm.plotting.recipes, minillm.plotting.gradients
import minillm.plotting.updates
assert not [name for name in sys.modules if name.startswith("matplotlib")]
import matplotlib
before = matplotlib.rcParams.copy()
minillm.plotting.training.loss_curves({{}}, {str(tmp_path / "a.png")!r})
assert "matplotlib.pyplot" not in sys.modules
assert matplotlib.rcParams.copy() == before
"""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- style ----


def test_a_recipe_keeps_its_look_and_two_recipes_never_share_one():
    assert style.looks(TWELVE)["float16"] == style.looks(["x", "float16"])["float16"] == style.RECIPE_LOOKS["float16"]
    looks = style.looks(TWELVE)
    assert list(map(len, (looks, set(looks.values()), {look.color for look in looks.values()}))) == [12, 12, 7]
    assert "#F0E442" not in {look.color for look in looks.values()}  # yellow
    six = [looks[name] for name in SIX]
    assert len({look.marker for look in six}) == len({look.dashes for look in six}) == 6  # told apart in grey print


def test_names_that_are_no_recipes_take_the_colours_that_are_free():
    assert len({look.color for look in style.looks(["float16-mixed", *"abcdef"]).values()}) == 7


def test_thirty_five_names_have_thirty_five_looks():
    looks = list(style.looks(map(str, range(35))).values())
    assert len(set(looks)) == 35
    assert len({look.dashes for look in looks[:5]}) == len({look.marker for look in looks[:5]}) == 5


def test_text_is_wrapped_and_shortened_and_dollars_stay_dollars():
    assert style.shown("costs $5 or $6") == r"costs \$5 or \$6"  # between two bare ones matplotlib sets a formula
    assert style.shown("one two three", width=7) == "one two\nthree"
    short = style.shown("begin-" + "x" * 300 + "-end", longest=40)
    assert (len(short), short[:6], short[-4:]) == (39, "begin-", "-end")


def test_a_file_stands_where_the_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MiniLLMError, match=r"^cannot write .*a\.png: .*; choose a folder that can be written$"):
        draw("loss, nothing", tmp_path / "file" / "a.png")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    (tmp_path / "a.png").write_text("old")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(MiniLLMError, match="No space left on device"):
        draw("loss, nothing", tmp_path / "a.png")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.png", "old")]


def test_only_png_is_written(tmp_path):
    with pytest.raises(MiniLLMError, match=r"ends in \.png"):
        draw("loss, nothing", tmp_path / "a.pdf")


# ---- what the figures say ----


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_run_that_diverged_ends_with_a_cross_where_it_was_last_seen(tmp_path, figures):
    training.loss_curves({"float32": a_run(), "float16": a_run(diverged_at=37)}, tmp_path / "a.png")
    crosses = [line for line in figures[0].axes[0].lines if line.get_marker() == "X"]
    assert [line.get_xdata()[0] for line in crosses] == [37]
    assert crosses[0].get_ydata()[0] == a_run(diverged_at=37)["loss"][-1]
    assert legend_of(figures[0]) == ["float32", "float16: not finite at step 37", "markers: validation"]


def test_one_explosion_does_not_flatten_the_other_curves(tmp_path, figures):
    exploding = a_run()
    exploding["loss"][-3:] = [50.0, 1e4, 1e9]
    training.loss_curves({"float32": a_run(), "float16": exploding}, tmp_path / "a.png")
    assert figures[0].axes[0].get_ylim()[1] < 12


def test_the_training_line_is_the_median_that_its_label_names(tmp_path, figures):
    values = [8.0] + [3.0] * 118 + [4.0]
    values[60] = 5.0  # one spike
    training.loss_curves({"a": {"steps": list(range(1, 121)), "loss": values}}, tmp_path / "a.png")
    axes = figures[0].axes[0]
    assert "median of 5 points" in axes.get_ylabel()
    raw, smooth = (line.get_ydata() for line in axes.lines)
    assert raw.tolist() == values
    assert smooth.tolist() == [8.0] + [3.0] * 119


def test_steps_and_losses_of_different_number_are_an_error(tmp_path):
    with pytest.raises(MiniLLMError, match="2 steps and 1 values"):
        training.loss_curves({"a": {"steps": [1, 2], "loss": [1.0]}}, tmp_path / "a.png")


@pytest.mark.parametrize(("format", "zero", "tiny", "top"), [(FLOAT16, -25, -14, 16), (BFLOAT16, -134, -126, 128)])
def test_the_regions_are_those_of_the_format(format, zero, tiny, top, tmp_path, figures):
    gradients.gradient_exponents({"a": a_histogram()}, tmp_path / "a.png", (format,))
    strip, plot = figures[0].axes
    low, high = plot.get_xlim()
    expected = [(low, zero), (zero, tiny), (tiny, top), (top, high)]
    assert np.allclose([(bar.get_x(), bar.get_x() + bar.get_width()) for bar in strip.patches], expected)
    shades = [patch.get_window_extent() for patch in plot.patches[1:]]
    assert np.allclose([shade.x0 for shade in shades], [bar.get_window_extent().x0 for bar in strip.patches])


def test_the_regions_of_float16_are_named_and_are_what_numpy_does(tmp_path, figures):
    draw("exponents", tmp_path / "a.png")
    strip, plot = figures[0].axes
    assert [text.get_text() for text in strip.texts] == list(gradients.REGIONS)
    assert "largest 65504, normal ≥ 2^-14, subnormal ≥ 2^-24, zero < 2^-25" in plot.get_xlabel()
    assert [float(np.float32(2.0**e).astype(np.float16)) for e in (-25, -24)] == [0.0, FLOAT16.smallest_subnormal]
    assert np.float32(1.001 * 2.0**-25).astype(np.float16) > 0


def test_regions_that_are_too_narrow_for_their_name_are_in_the_legend(tmp_path, figures):
    draw("exponents, far out", tmp_path / "a.png")
    assert legend_of(figures[0]) == ["a: 0 % exactly zero", "subnormal"]


def test_shares_are_of_all_values_zeros_included_and_json_keys_are_read(tmp_path, figures):
    histogram = json.loads(json.dumps({-3: 30, -1: 10, "zero": 60}))
    gradients.gradient_exponents({"a": histogram}, tmp_path / "a.png")
    shares, edges, _ = figures[0].axes[1].patches[0].get_data()
    assert edges.tolist() == [-3, -2, -1, 0]
    assert np.allclose(shares, [0.3, 0, 0.1])
    assert legend_of(figures[0]) == ["a: 60.0 % exactly zero"]


def test_skipped_steps_are_marked_and_counted(tmp_path, figures):
    runs = {"float16-mixed": a_scale(), "float16": a_scale() | {"skipped": []}}
    training.loss_scale_history(runs, tmp_path / "a.png")
    scale, rug = figures[0].axes
    assert [events.get_positions() for events in rug.collections] == [[70, 140], []]
    assert legend_of(figures[0]) == ["float16-mixed: 2 skipped", "float16: 0 skipped"]
    assert [events.get_lineoffset() for events in rug.collections] == [0, 1]  # a row each
    assert [line.get_drawstyle() for line in scale.lines] == ["steps-post"] * 2


def test_losses_near_the_reference_and_far_from_it_can_both_be_read(tmp_path, figures):
    recipes.static_scale(STATIC, tmp_path / "a.png", 2.45)
    figures[0].draw_without_rendering()  # the layout
    far, near, _ = figures[0].axes
    pixels = [near.transData.transform((0, loss))[1] for loss in (2.43, 2.45)]
    assert pixels[1] - pixels[0] > 30
    for loss in (2.9, 8.5):
        assert far.viewLim.containsy(loss)
    for loss in (2.447, 2.45, 2.52):
        assert near.viewLim.containsy(loss)
    seen = [y for axes in (far, near) for line in axes.lines if line.get_marker() == "o" for y in line.get_ydata()]
    assert sorted(seen) == sorted(p["val_loss"] for p in STATIC if p["val_loss"])  # each point once
    assert figures[0].axes[2].lines[0].get_ydata()[0] == pytest.approx(93)


def test_scales_that_diverged_are_crosses_at_the_top_edge_and_interrupt_the_line(tmp_path, figures):
    points = [a_point(0, 2.5), a_point(1, None), a_point(2, 2.4)]
    recipes.static_scale(points, tmp_path / "a.png", 2.45)
    axes = figures[0].axes[0]
    crosses = next(line for line in axes.lines if line.get_marker() == "X")
    seen = crosses.get_transform().transform(crosses.get_xydata())
    assert np.allclose(seen, [[axes.transData.transform((1, 0))[0], axes.bbox.y1]])
    assert np.isnan(axes.lines[0].get_ydata()).tolist() == [False, True, False]


def test_a_scale_that_was_not_measured_is_no_cross(tmp_path, figures):
    unmeasured = {"log2_scale": 1, "val_loss": None, "diverged_at": None}
    recipes.static_scale([a_point(0, 2.5), unmeasured, a_point(2, NAN)], tmp_path / "a.png", 2.45)
    crosses = [line for line in figures[0].axes[0].lines if line.get_marker() == "X"]
    assert [line.get_xdata().tolist() for line in crosses] == [[2]]


def test_far_losses_are_written_out_and_bytes_are_stacked_in_megabytes(tmp_path, figures):
    draw("comparison", tmp_path / "a.png")
    losses, memory = figures[0].axes
    assert [text.get_text() for text in losses.texts] == ["8.50 ± 0.30"]
    assert losses.get_xlim()[1] < 2.6
    names = [label.get_text() for label in losses.get_yticklabels()]
    assert names[-1] == "float16-no-master\n31.0 % zero gradients\n3 of 3 not finite"
    first_row = [bars[0] for bars in memory.containers]
    assert [round(bar.get_x(), 6) for bar in first_row] == [0, 3.3, 6.6, 13.2]
    assert first_row[-1].get_x() + first_row[-1].get_width() == pytest.approx(26.6)
    assert memory.texts[0].get_text() == "26.6"


def test_lost_updates_are_percent_and_the_counted_ones_markers(tmp_path, figures):
    updates.lost_updates({"float16": LOST}, tmp_path / "a.png")
    expected, counted = figures[0].axes[0].lines
    assert expected.get_ydata().tolist() == [100, 100, 41, 0, 0]
    assert counted.get_ydata().tolist() == [100, 100, 40, 0]
    assert counted.get_linestyle() == "None"


def test_what_becomes_zero_and_where_a_descent_ends_stands_in_the_legend(tmp_path, figures):
    updates.eight_bit_maps({"linear": STORED, "dynamic": STORED | {"zero": 0.004}}, tmp_path / "a.png", [0.5, 0.1, 1.0])
    updates.descents({"a": {"steps": range(1, 41), "loss": [9.0] * 38 + [3.0, 5.0]}}, tmp_path / "b.png")
    assert legend_of(figures[0]) == ["linear: 27.0 % become zero", "dynamic: 0.4 % become zero"]
    assert sum(figures[0].axes[1].patches[0].get_data().values) == pytest.approx(100)
    assert legend_of(figures[1]) == ["a: 4 at the end"]


def test_the_panel_below_shows_gaps_to_the_reference(tmp_path, figures):
    runs = {name: a_run(4) | {"val_steps": [2, 4], "val_loss": [3.0 + gap, 2.0 + 2 * gap]}
            for name, gap in (("float32", 0), ("b", 0.002))}
    training.loss_curves(runs, tmp_path / "a.png", reference="float32")
    zero, gaps = figures[0].axes[1].lines
    assert list(zero.get_ydata()) == [0, 0]
    assert gaps.get_ydata() == pytest.approx([2, 4])
    assert "1/1000 nat" in figures[0].axes[1].get_ylabel()
