"""minillm quantize, as a user types it: the folder of codes is a run like any other, and what is wrong is one clear line."""
import json
import shutil

import numpy as np
import pytest
from tiny_run import SMALL, contents, small, write_text

from minillm import cli
from minillm.conversion.convert import Conversion
from minillm.conversion.int8_model import replace_matrices, under
from minillm.conversion.rounding import round_to_nearest
from minillm.errors import MiniLLMError
from minillm.experiments.data import Data
from minillm.experiments.run_folder import RunFolder, load_run
from minillm.recipes import PRESETS
from minillm.training.checkpoint import as_file, read_state
from minillm.training.evaluation import validation_loss


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Trained runs by recipe; tests that change one take a copy."""
    home = tmp_path_factory.mktemp("runs")
    text = write_text(home)
    size = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    for recipe in ("float32", "float16-mixed", "int4-qat", "bitnet-b1.58"):
        assert cli.main(["train", *size, "--text", str(text), "--recipe", recipe, "--out", str(home / recipe), "--quiet"]) == 0
    return home


def quantized(say, run, out, *argv):
    code, text, err = say("quantize", run, "--out", out, "--calibrate", 8, "--quiet", "--json", *argv)
    assert (code, err) == (0, "")
    return json.loads(text)


@pytest.mark.parametrize("recipe", ["float32", "float16-mixed", "int4-qat"])
@pytest.mark.parametrize("argv", [(), ("--scheme", "int4", "--granularity", "group", "--group", "16"), ("--method", "smoothquant"),
                                  ("--scheme", "int3", "--method", "gptq-act"), ("--method", "full-integer")], ids=" ".join)
def test_the_folder_is_a_run_like_any_other(recipe, argv, runs, say, tmp_path):
    before = contents(runs / recipe)
    result = quantized(say, runs / recipe, tmp_path / "q", *argv)
    assert result.keys() == {"scheme", "method", "granularity", "bytes", "bytes_float32", "val_loss", "val_loss_float32", "layers",
                             "logits_sqnr_db", "out"}
    assert result["bytes"] == (tmp_path / "q" / "state.safetensors").stat().st_size < 0.6 * result["bytes_float32"]
    assert all(layer.keys() == {"name", "sqnr_db", "bytes", "worst_steps", "clipped"} for layer in result["layers"])
    evaluated = json.loads(say("evaluate", tmp_path / "q", "--json", "--quiet")[1])["metrics"]["language_model"]["val_loss"]
    assert evaluated == pytest.approx(result["val_loss"], abs=1e-6)
    code, text, _ = say("sample", tmp_path / "q", "--prompt", "the ", "--tokens", 30, "--quiet")       # beyond the context of 16
    assert code == 0
    assert text.startswith("the ")
    assert contents(runs / recipe) == before


def test_eight_bits_lose_next_to_nothing_and_two_lose_much(runs, say, tmp_path):
    int8, int2 = (quantized(say, runs / "float32", tmp_path / s, "--scheme", s) for s in ("int8", "int2"))
    assert int8["val_loss_float32"] == int2["val_loss_float32"]
    assert abs(int8["val_loss"] - int8["val_loss_float32"]) < 0.01
    assert int2["val_loss"] > int8["val_loss"]
    assert int8["logits_sqnr_db"] > int2["logits_sqnr_db"] + 20
    for layer in int8["layers"] + int2["layers"]:
        assert (layer["worst_steps"] <= 0.5001, layer["clipped"]) == (True, 0)             # nothing was clipped, and all rounded
    assert min(layer["sqnr_db"] for layer in int8["layers"]) > 35 > 15 > max(layer["sqnr_db"] for layer in int2["layers"])


def test_the_file_holds_codes(runs, say, tmp_path):
    quantized(say, runs / "float32", tmp_path / "q", "--scheme", "int4", "--granularity", "group")
    arrays, facts = read_state(tmp_path / "q" / "state.safetensors")
    codes = {name: a for name, a in arrays.items() if name.endswith(".codes")}
    assert {a.dtype.name for a in codes.values()} == {"uint8"}
    assert codes["model/block0.mlp.up.codes"].nbytes == 4 * 32 * 32 // 2
    assert facts["quantized"] == {"scheme": "int4", "method": "rtn", "granularity": "group", "group": 32}
    assert json.loads((tmp_path / "q" / "config.json").read_text())["from"] == str(runs / "float32")


def test_a_model_in_integers_holds_nothing_else(runs, say, tmp_path):
    result = quantized(say, runs / "float32", tmp_path / "q", "--method", "full-integer")
    assert abs(result["val_loss"] - result["val_loss_float32"]) < 0.03
    assert min(layer["sqnr_db"] for layer in result["layers"]) > 25
    assert len(result["layers"]) == 8
    arrays, facts = read_state(tmp_path / "q" / "state.safetensors")
    assert {name for name, a in arrays.items() if a.dtype.kind not in "iu"} == {"model/logit_scale"}
    assert facts["integer"] == {"rounding": "single", "bits": 16}
    code, _, err = say("sample", tmp_path / "q", "--weights", "int8")
    assert code == 2
    assert "already quantized" in err
    code, _, err = say("inspect", tmp_path / "q")
    assert code == 2
    assert "already quantized" in err
def test_ternary_weights_are_taken_over_from_training(runs, say, tmp_path):
    """The loss is the run's but for the order of float32 sums; a matrix takes two bits a weight and one scale."""
    before = json.loads(say("evaluate", runs / "bitnet-b1.58", "--json", "--quiet")[1])["metrics"]["language_model"]["val_loss"]
    result = quantized(say, runs / "bitnet-b1.58", tmp_path / "q", "--scheme", "ternary")
    evaluated = json.loads(say("evaluate", tmp_path / "q", "--json", "--quiet")[1])["metrics"]["language_model"]["val_loss"]
    assert result["val_loss_float32"] == pytest.approx(before, abs=1e-6)
    assert result["val_loss"] == pytest.approx(before, abs=1e-4)
    assert evaluated == pytest.approx(result["val_loss"], abs=1e-6)
    layers = {layer["name"]: layer for layer in result["layers"]}
    assert layers["block0.mlp.up.weight"]["bytes"] == 4 * 32 * 32 // 4 + 4
    assert {name for name, layer in layers.items() if layer.get("left_in_float32")} == {"tokens.weight", "positions.weight"}
    code, text, _ = say("sample", tmp_path / "q", "--prompt", "the ", "--tokens", 30, "--quiet")
    assert (code, text[:4]) == (0, "the ")


def test_people_get_a_table(runs, say, tmp_path):
    code, text, _ = say("quantize", runs / "float32", "--out", tmp_path / "q", "--method", "dynamic", "--calibrate", 4)
    assert code == 0
    assert "positions.weight" in text
    assert "fewer than 1,024 values" in text                               # 16 x 32 positions
    assert f"the model is in {tmp_path / 'q'}" in text


def test_a_layer_costs_the_loss_with_it_less_the_loss_without(runs, say, tmp_path):
    result = quantized(say, runs / "float32", tmp_path / "q", "--scheme", "int2", "--leave-one-out")
    costs = {layer["name"]: layer["cost"] for layer in result["layers"]}
    model, _, options = load_run(runs / "float32")
    ids, name = RunFolder(runs / "float32").read_data(options).validation, "block0.mlp.up.weight"
    without = replace_matrices(under(model, PRESETS["float32"]), lambda weight: None if weight.name == name else
                               round_to_nearest(weight.data, weight.data, Conversion("int2").make_scheme()))
    assert costs[name] == pytest.approx(result["val_loss"] - validation_loss(without, ids)[0], abs=1e-6)
    assert len(set(costs.values())) == len(costs) == 8
    evaluated = json.loads(say("evaluate", tmp_path / "q", "--json", "--quiet")[1])["metrics"]["language_model"]["val_loss"]
    assert evaluated == pytest.approx(result["val_loss"], abs=1e-6)        # each layer was put back


REFUSED = [
    (["--scheme", "int5"], "unknown scheme 'int5'"), (["--method", "gptx"], "did you mean 'gptq'"),
    (["--granularity", "row"], "unknown granularity 'row'"),
    (["--group", "0"], "a group of 0"), (["--calibrate", "0"], "--calibrate is 0"), (["--calibrate", "many"], "--calibrate"),
    (["--scheme", "int4", "--method", "smoothquant"], "take --scheme int8"), (["--out", ""], "--out: it is empty"),
    (["--scheme", "int4", "--method", "full-integer"], "take --scheme int8"),
    (["--granularity", "group", "--method", "full-integer"], "take --scheme int8 by tensor or channel"),
    (["--leave-one-out", "--method", "full-integer"], "--leave-one-out puts a layer back into float32"),
]


@pytest.mark.parametrize(("argv", "says"), REFUSED, ids=[" ".join(argv) for argv, _ in REFUSED])
def test_wrong_options_are_one_line(argv, says, runs, say, tmp_path):
    code, out, err = say("quantize", runs / "float32", *(() if "--out" in argv else ("--out", tmp_path / "q")), *argv)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert says in err
    assert not (tmp_path / "q").exists()


def test_what_cannot_be_converted_is_refused_and_nothing_is_overwritten(runs, say, tmp_path):
    codes = tmp_path / "codes"
    quantized(say, runs / "float32", codes)
    before = contents(tmp_path)
    for argv, says in ((["quantize", codes, "--out", tmp_path / "q"], "already quantized"),
                       (["train", "--resume", codes, "--steps", 20], "already quantized"),
                       (["train", "--from", codes, "--out", tmp_path / "q"], "already quantized"),
                       (["sample", codes, "--weights", "int8"], "already quantized"),
                       (["sample", runs / "bitnet-b1.58", "--weights", "float32"], "has ternary weights"),
                       (["bits", runs / "bitnet-b1.58", "--out", tmp_path / "q", "--calibrate", 4], "have no other number of bits"),
                       (["quantize", runs / "float32", "--out", codes], "exists"),
                       (["quantize", runs / "float32", "--out", runs / "float32", "--force"], "give another --out"),
                       (["quantize", runs / "bitnet-b1.58", "--out", tmp_path / "q"], "convert it by --scheme ternary"),
                       (["quantize", runs / "bitnet-b1.58", "--out", tmp_path / "q", "--scheme", "ternary", "--leave-one-out"],
                        "taken over as they are"),
                       (["quantize", tmp_path / "none", "--out", tmp_path / "q"], "there is no run"),
                       (["train", "--from", runs / "float32", "--resume", codes], "give one of them")):
        code, out, err = say(*argv)
        assert (code, out, len(err.splitlines())) == (2, "", 1), argv
        assert says in err, (argv, err)
        assert contents(tmp_path) == before


@pytest.mark.parametrize("method", ["rtn", "full-integer"])
def test_a_changed_code_is_found(method, runs, say, tmp_path):
    quantized(say, runs / "float32", tmp_path / "q", "--method", method)
    state = tmp_path / "q" / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[-100] ^= 1
    state.write_bytes(content)
    code, _, err = say("evaluate", tmp_path / "q")
    assert code == 2
    assert "was changed after it was written" in err


def test_a_text_too_short_to_calibrate_with_is_refused(tmp_path):
    with pytest.raises(MiniLLMError, match="the calibration part has 16 tokens, but one window of context 16 needs 17"):
        Data(None, np.zeros(16, np.int32), np.zeros(0, np.int32), 1.0, "").calibration(small(tmp_path), 1)


def test_a_folder_is_replaced_by_force_alone(runs, say, tmp_path):
    quantized(say, runs / "float32", tmp_path / "q")
    shutil.copy(runs / "float32" / "metrics.jsonl", tmp_path / "q")
    quantized(say, runs / "float32", tmp_path / "q", "--scheme", "int4", "--force")
    assert not (tmp_path / "q" / "metrics.jsonl").exists()
    assert read_state(tmp_path / "q" / "state.safetensors")[1]["quantized"]["scheme"] == "int4"


def change(arrays, facts, place, value):
    """A file's content with something else at a place: of an array, or "layer/field" of the facts."""
    if "/" in place:
        layer, *path, field = place.split("/")
        fields = facts["layers"][layer]
        for key in path:
            fields = fields[key]
        fields[field] = value
    elif value is None:
        del arrays[f"model/{place}"]
    else:
        array = arrays[f"model/{place}"]
        arrays[f"model/{place}"] = value(array) if callable(value) else np.full_like(array, value)


UP = "block0.mlp.up"
TAMPERED = [
    ("int8", f"{UP}.codes", -128, "a code of -128"), ("int8", f"{UP}.scale", np.nan, "a scale of nan"),
    ("int8", f"{UP}.scale", -1, "a scale of -1"), ("int8", f"{UP}.scale", None, "'scale' is missing"),
    ("int8", f"{UP}.scale", lambda a: a[:-1], "scale is float32 (127,) instead"),
    ("int8", f"{UP}.codes", None, "'codes' is missing"),
    ("int8", f"{UP}.codes", lambda a: a.T.copy(), "codes is int8 (32, 128) instead"),
    ("int8", f"{UP}/shape", [32, 128], "codes of shape (32, 128), the model has (128, 32)"),
    ("int8", f"{UP}/scheme/lowest", "low", "is missing or wrong"),
    ("int8", f"{UP}/scheme/granularity", "row", "unknown granularity"),
    ("int4", f"{UP}.codes", lambda a: a[:-1], "codes of 4 bits are 2048 bytes"),
    ("int4", f"{UP}.zero_point", 100, "a zero point of 100"), ("int4", f"{UP}.zero_point", None, "'zero_point' is missing"),
    ("int4", f"{UP}.scale", lambda a: a.astype(np.float32), "instead of float16"),
    ("int8", "norm.gain", None, "weights are of another model: missing"),
]


@pytest.mark.parametrize(("scheme", "place", "value", "says"), TAMPERED, ids=[f"{case[1]} {case[3]}" for case in TAMPERED])
def test_a_file_that_cannot_be_is_one_line_though_its_digest_is_right(scheme, place, value, says, runs, say, tmp_path):
    granularity = "channel" if scheme == "int8" else "group"
    quantized(say, runs / "float32", tmp_path / "q", "--scheme", scheme, "--granularity", granularity)
    state = tmp_path / "q" / "state.safetensors"
    arrays, facts = read_state(state)
    change(arrays, facts, place, value)
    state.write_bytes(as_file(arrays, facts))
    for argv in (["evaluate", tmp_path / "q"], ["sample", tmp_path / "q", "--tokens", 2]):
        code, out, err = say(*argv)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert says in err


@pytest.mark.parametrize("damage", [lambda b: b[:-50], lambda b: b[:20], lambda b: b"", lambda b: b.replace(b'{\\"', b'[\\"')])
def test_a_file_that_was_cut_off_is_one_line(damage, runs, say, tmp_path):
    quantized(say, runs / "float32", tmp_path / "q")
    state = tmp_path / "q" / "state.safetensors"
    state.write_bytes(damage(state.read_bytes()))
    code, out, err = say("evaluate", tmp_path / "q")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "truncated or foreign" in err


def with_weight(run, home, name, value, at=5):
    """A copy of a run with one value of a parameter changed, or those at a slice of it."""
    shutil.copytree(run, home)
    arrays, facts = read_state(home / "state.safetensors")
    arrays[f"model/{name}"].flat[at] = value
    (home / "state.safetensors").write_bytes(as_file(arrays, facts))
    return home


@pytest.mark.parametrize(("name", "value", "argv", "says"), [
    (f"{UP}.weight", np.nan, (), "not finite"),
    (f"{UP}.weight", 1e6, ("--scheme", "int4", "--granularity", "group"), "holds 1e+06, beyond float16 scales"),
    (f"{UP}.weight", 1e30, (), "a weight of block0.mlp.up.weight is 1e+30"),
    (f"{UP}.weight", 1e30, ("--method", "full-integer"), "a weight of block0.mlp.up.weight is 1e+30"),
    ("block0.norm2.gain", 1e30, ("--method", "gptq"), "an input of block0.mlp.up.weight is")])
def test_outliers_beyond_what_can_be_converted_are_one_line(name, value, argv, says, runs, say, tmp_path):
    run = with_weight(runs / "float32", tmp_path / "run", name, value)
    code, out, err = say("quantize", run, "--out", tmp_path / "q", "--calibrate", 8, "--quiet", *argv)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert says in err
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "smoothquant", "full-integer"])
def test_an_activation_that_is_always_the_same_does_no_harm(method, runs, say, tmp_path):
    run = with_weight(runs / "float32", tmp_path / "run", "block0.norm2.gain", 0, at=slice(None))
    result = quantized(say, run, tmp_path / "q", "--method", method, "--calibrate", 8)
    assert abs(result["val_loss"] - result["val_loss_float32"]) < 0.03


def test_a_text_with_fewer_windows_than_asked_for_is_said(runs, say, tmp_path):
    code, out, err = say("quantize", runs / "float32", "--out", tmp_path / "q", "--calibrate", 5000)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "the training text has" in err
    assert not (tmp_path / "q").exists()
