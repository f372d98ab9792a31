"""`minillm inspect` as a user types it: tables, figure, runs that diverged, and all that can be wrong with the input."""
import json
import shutil
from itertools import combinations

import numpy as np
import pytest
from test_cli import SIZE, assert_one_line
from test_plotting import chunks, really_save
from test_plotting import texts as drawn
from tiny_run import contents, write_text

from minillm import cli
from minillm.autograd.watching import watch
from minillm.experiments import inspect as module
from minillm.experiments.inspect import attempt, by_layer, float32_twin, inspect, watched_steps
from minillm.experiments.run_folder import RunFolder
from minillm.experiments.running import load_run
from minillm.formats import BFLOAT16, FLOAT4_E2M1, FLOAT16, FLOAT32
from minillm.plotting.microscope import inspection
from minillm.training.checkpoint import read_state

PLAIN = ["--quiet", "--watch-every", "0", "--eval-every", "4"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A good run in mixed precision, and one whose gradients all overflow after its first checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    text = write_text(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minillm.experiments.train.loss_curves", lambda lines, path: None)
        for name, options in {"good": ["--recipe", "float16-mixed"],
                              "pure": ["--recipe", "float16", "--eval-every", "1", "--lr", "1e-4", "--min-lr", "0"],
                              "hopeless": ["--recipe", "float16-mixed", "--loss-scale", "2^60"]}.items():
            cli.main(["train", *SIZE, "--text", str(text), *PLAIN, *options, "--out", str(folder / name)])
    return folder


@pytest.fixture
def undrawn(monkeypatch):
    """Without the figure, which takes longer than the step."""
    monkeypatch.setattr(module, "inspection", lambda *records: records[2])


def say(capfd, *argv):
    capfd.readouterr()
    return cli.main([str(word) for word in argv]), *capfd.readouterr()


def test_a_run_is_inspected_and_stays_what_it_was(runs, capfd, tmp_path):
    before = contents(runs / "good")
    code, out, err = say(capfd, "inspect", runs / "good", "--out", tmp_path / "figures")
    assert (code, err) == (0, "")
    assert contents(runs / "good") == before
    assert out.startswith(f"step 13 of {runs / 'good'}, float16-mixed, loss scale 65536: every value was finite\n")
    for words in ("forward     block0      linear", "backward    head        linear", "accumulate  tokens      gradient",
                  "update      block0      weight", "what if all were", "float8_e5m2"):
        assert words in out, words
    assert out.rstrip().endswith("inspect.png")
    assert chunks((tmp_path / "figures" / "inspect.png").read_bytes())[0][-1] == b"IEND"


def test_the_figure_goes_into_the_run_where_no_folder_is_given(runs, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(runs / "good", copy)
    result = inspect(copy, "bfloat16")
    assert result["figure"] == str(copy / "inspect.png")
    assert {*contents(copy)} - {*contents(runs / "good")} == {"inspect.png"}


def test_json_has_what_the_docstring_promises(runs, capfd, tmp_path, undrawn):
    code, out, _ = say(capfd, "inspect", runs / "good", "--json", "--steps", "2", "--format", "float16", "--out", tmp_path)
    result = json.loads(out)
    assert code == 0
    assert {*result} == {"run", "recipe", "steps", "history", "diverged_at", "rows", "what_if", "formats", "figure"}
    assert [(s["step"], s["finite"], s["first_not_finite"]) for s in result["steps"]] == [(13, True, None), (14, True, None)]
    assert {row["step"] for row in result["rows"]} == {13, 14}
    assert (result["formats"], result["history"], result["diverged_at"]) == (["float16"], [], None)
    assert {*result["what_if"]} == {"step", "rows", "lost_updates"}
    assert len([r for r in result["what_if"]["rows"] if r["kind"] == "backward"]) == 41


def test_it_watches_the_very_step_that_the_run_would_make_next(runs):
    folder = RunFolder(runs / "good")
    options, recipe = folder.read_config()
    seen, alone = (load_run(folder, options, folder.read_data(options), recipe) for _ in range(2))
    watched_steps(seen, 2)
    for _ in range(2):
        alone.trainer.advance()
    for p, q in zip(seen.model.parameters(), alone.model.parameters(), strict=True):
        assert p.data.tobytes() == q.data.tobytes(), p.name


def test_what_if_is_seen_in_float32_with_the_runs_weights(runs):
    folder = RunFolder(runs / "pure")
    options, recipe = folder.read_config()
    arrays, _ = read_state(folder.state)
    twin = float32_twin(load_run(folder, options, folder.read_data(options), recipe))
    formats = set()
    for p in twin.model.parameters():
        assert np.array_equal(p.data, arrays[f"model/{p.name}"].astype(np.float32))
        moment = twin.trainer.objective.optimizer.state["m"][p.name]
        assert np.array_equal(moment, arrays[f"optimizer/m/{p.name}"].astype(np.float32))
    with watch(lambda e: formats.add(e.format)):
        result = attempt(twin)
    assert (formats, result.scale) == ({FLOAT32}, 1.0)


@pytest.mark.parametrize("recipe", ["float32-adam8-dynamic", "bfloat16-kahan", "float16-stochastic", "float32-scaled"])
def test_whatever_the_optimizer_keeps_can_be_inspected(recipe, runs, tmp_path, undrawn):
    text = RunFolder(runs / "good").read_config()[0].text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minillm.experiments.train.loss_curves", lambda lines, path: None)
        assert cli.main(["train", *SIZE, "--text", text, *PLAIN, "--recipe", recipe, "--steps", "4", "--warmup", "1", "--out",
                         str(tmp_path / "run")]) == 0
    result = inspect(tmp_path / "run", "float16")
    assert result["steps"][0]["first_not_finite"] is None
    assert {row["phase"] for row in result["rows"]} == {"forward", "backward", "accumulate", "update"}


def test_layers_are_their_rows_added_up():
    row = {"phase": "forward", "op": "linear", "format": "float16", "infinite": 0, "nan": 0, "saturated": 0, "overflowed": 1,
           "lost": 0}
    rows = [row | {"scope": "block1.mlp.up", "values": 10, "zeroed": 2, "subnormal": 1, "headroom": 5.0, "error": 0.1,
                   "exponents": {-3: 8, "zero": 2}},
            row | {"scope": "block1.attention.key", "values": 20, "zeroed": 3, "subnormal": 0, "headroom": None, "error": 0.2,
                   "exponents": {-3: 15, 4: 5, "zero": 0}},
            row | {"scope": "block10", "values": 1, "zeroed": 0, "subnormal": 0, "headroom": 1.0, "error": None, "exponents": {}}]
    first, second = by_layer(rows)
    assert (first["layer"], second["layer"]) == ("block1", "block10")
    assert [first[name] for name in ("values", "zeroed", "subnormal", "overflowed", "headroom", "error", "exponents")] == \
        [30, 5, 1, 2, 5.0, 0.2, {-3: 23, "zero": 2, 4: 5}]


# --- runs that were not finite

def test_a_run_that_diverged_says_what_it_was_and_the_next_step_what_it_will_be(runs, capfd, tmp_path, undrawn):
    code, out, _ = say(capfd, "inspect", runs / "pure", "--steps", "3", "--out", tmp_path)
    assert code == 0
    assert "the run ended at step" in out
    assert any("(overflow in rounding to float16)" in line for line in out.split("\n")[:3]), out[:600]


def test_steps_of_the_run_that_overflowed_are_told(runs, capfd, tmp_path, undrawn):
    copy = tmp_path / "run"
    shutil.copytree(runs / "good", copy)
    blame = "backward head/linear (overflow in rounding to float16)"
    with (copy / "metrics.jsonl").open("a") as file:
        for step in (13, 14):
            file.write(json.dumps({"step": step, "loss": 3.0, "skipped": True, "first_not_finite": blame}) + "\n")
    code, out, _ = say(capfd, "inspect", copy)
    assert code == 0
    assert f"2 steps of the run were not finite, the last of them step 14: {blame}" in out


def test_without_a_checkpoint_it_still_says_why_the_run_ended(runs, capfd, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(runs / "hopeless", copy)
    (copy / "state.safetensors").unlink(missing_ok=True)
    code, out, err = say(capfd, "inspect", copy)
    assert (code, out) == (2, "")
    assert_one_line(err)
    assert "has no checkpoint to inspect" in err
    assert "backward head/linear (overflow in rounding to float16)" in err


# --- what is wrong with the input

@pytest.mark.parametrize(("argv", "says"), [
    (["nowhere"], "there is no run nowhere"), (["good", "--format", "flaot16"], "did you mean 'float16'?"),
    (["good", "--format", "int8"], "int8 is no format for gradients"), (["good", "--format", "e8m0"], "no format for gradients"),
    (["good", "--steps", "0"], "--steps is 0: it must be at least 1"), (["good", "--formt", "x"], "did you mean '--format'?"),
    (["good", "--format", ""], "it is empty"), ([], "required: RUN"), (["text.txt"], "there is no run text.txt"),
    (["good", "--out", "text.txt"], "text.txt"),
])
def test_what_cannot_be_inspected_is_refused_in_one_line(argv, says, runs, capfd, monkeypatch):
    monkeypatch.chdir(runs)
    before = contents(runs)
    code, out, err = say(capfd, "inspect", *argv)
    assert (code, out) == (2, "")
    assert_one_line(err)
    assert says in err
    assert contents(runs) == before


# --- the figure

texts = drawn                                    # a fixture

ROW = {"phase": "forward", "layer": "block0", "values": 10, "exponents": {"-3": 8, "zero": 2}}
IFS = [{"kind": "backward", "log2_scale": k, "zeroed": 0.3, "subnormal": 0.1, "overflowed": 0.05 * (k > 20)}
       for k in range(-16, 25)]
MANY = [ROW | {"layer": f"a_layer_with_a_very_long_name_{i}", "phase": p} for i in range(14) for p in ("forward", "backward")]


@pytest.mark.parametrize(("rows", "ifs", "format"), [
    ([ROW, ROW | {"phase": "backward"}], IFS, FLOAT16),
    (MANY, IFS, BFLOAT16),
    ([], [], FLOAT16), ([ROW], IFS[:1], FLOAT4_E2M1), ([ROW | {"exponents": {-140: 1, 120: 9}}], IFS, FLOAT32),
    ([ROW | {"exponents": {"zero": 10}}], [], FLOAT16),
], ids=["two", "many", "nothing", "one scale", "far out", "zeros"])
def test_figures_are_drawn_of_anything_and_can_be_read(rows, ifs, format, tmp_path, figures, texts):
    path = tmp_path / "inspect.png"
    inspection(rows, ifs, path, format, "a run", 16)
    texts.clear()                                      # some were measured, and the figure has changed since
    assert chunks(really_save(figures[0], path).read_bytes())[1][0] == 1050
    boxes = {t: t.get_window_extent().padded(-1) for t in texts if t.get_visible() and t.get_text().strip()}
    assert len(boxes) > 5
    assert all(figures[0].bbox.contains(x, y) for box in boxes.values() for x, y in box.corners())
    assert all(text.get_fontsize() >= 9 or "10^" in text.get_text() for text in boxes)
    for (one, box), (other, other_box) in combinations(boxes.items(), 2):
        assert not box.overlaps(other_box), (one, other)
