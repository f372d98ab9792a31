"""The main job at a tiny size, as its command runs it: every recipe, the sweep, int8, the figures, and what it says."""
import dataclasses
import functools
import json
import math
from pathlib import Path

import pytest
from tiny_run import small, write_text

from minillm import cli
from minillm.errors import MiniLLMError
from minillm.experiments import demo as demo_module
from minillm.experiments import workers
from minillm.experiments.experiment import experiment

SCALES = (-10, 0, 16)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return small(write_text(tmp_path_factory.mktemp("text")), watch_every=4)


@pytest.fixture(scope="module")
def printed(options, tmp_path_factory):
    """(exit code, standard output as data, the figures' folder) of `minillm demo --json --quiet`, at a tiny size."""
    out, lines = tmp_path_factory.mktemp("demo") / "figures", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_module, "demo", functools.partial(demo_module.demo, options=options))
        patch.setattr(demo_module, "LOG2_SCALES", SCALES)
        patch.setattr("builtins.print", lambda text, file=None: lines.append((text, file)))
        code = cli.main(["demo", "--json", "--quiet", "--out", str(out)])
    (text, file), = lines
    assert file is None
    return code, json.loads(text), out


def test_the_json_is_what_the_readme_says(printed):
    code, result, _ = printed
    assert code == 0
    assert result.keys() == {"recipes", "static_scale", "int8", "figures"}
    assert list(result["recipes"]) == ["float32", "bfloat16-mixed", "float16-mixed", "float16-unscaled", "float16"]
    for row in result["recipes"].values():
        assert row.keys() >= {"val_loss", "diverged_at", "skipped_steps", "zero_gradient_share", "bytes", "seconds"}
        assert row["bytes"].keys() == {"weights", "gradients", "optimizer", "activations"}
        assert (row["val_loss"] is None) == (row["diverged_at"] is not None)
    assert [p["log2_scale"] for p in result["static_scale"]] == list(SCALES)
    assert all(p.keys() == {"log2_scale", "val_loss", "diverged_at", "zero_gradient_share"} for p in result["static_scale"])
    assert result["int8"].keys() == {"val_loss", "bytes", "bytes_float32"}


def test_four_figures_are_drawn(printed):
    _, result, out = printed
    assert sorted(result["figures"]) == sorted(str(p) for p in out.iterdir())
    assert len(result["figures"]) == 4
    assert all(Path(p).read_bytes().startswith(b"\x89PNG") for p in result["figures"])


def test_float16_diverges_and_a_smaller_scale_loses_more(printed):
    _, result, _ = printed
    assert [name for name, row in result["recipes"].items() if row["diverged_at"]] == ["float16"]
    shares = [p["zero_gradient_share"] for p in result["static_scale"]]
    assert shares[0] > shares[1] > shares[2] >= 0
    assert result["recipes"]["float32"]["zero_gradient_share"] == 0


def test_int8_takes_a_quarter_of_the_bytes_and_hardly_any_loss(printed):
    _, result, _ = printed
    int8, float32 = result["int8"], result["recipes"]["float32"]
    assert int8["bytes_float32"] == float32["bytes"]["weights"]
    assert 0.25 < int8["bytes"] / int8["bytes_float32"] < 0.3                            # a code each, and a scale for 16 or more
    assert 0 < abs(int8["val_loss"] - float32["val_loss"]) < 0.01


def test_a_recipe_of_the_demo_is_the_run_that_train_would_make(printed, options):
    _, result, _ = printed
    assert result["recipes"]["float32"]["val_loss"] == experiment(options)["val_loss"]
    mixed = dataclasses.replace(options, recipe="float16-mixed", growth_interval=50)
    assert result["recipes"]["float16-mixed"]["val_loss"] == experiment(mixed)["val_loss"]


def test_the_table_says_what_the_json_says(printed):
    _, result, _ = printed
    text = demo_module.describe(result)
    for name, row in result["recipes"].items():
        line = next(line for line in text.splitlines() if line.startswith(f"{name} "))
        assert f"{row['val_loss']:.4f}" in line if row["val_loss"] else f"not finite, step {row['diverged_at']}" in line
    assert f"validation loss {result['int8']['val_loss']:.4f}" in text
    assert all(f"figure: {path}" in text for path in result["figures"])
    assert all(line.isprintable() for line in text.splitlines())


def test_a_demo_whose_float32_run_diverges_says_so(options, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_module, "LOG2_SCALES", (0,))
    wild = dataclasses.replace(options, lr=1e6, clip=0.0, warmup=0, steps=5)
    with pytest.raises(MiniLLMError, match=r"float32 was not finite at step \d+.*lower lr, which is 1000000"):
        demo_module.demo(tmp_path, wild, quiet=True)


# --- experiments side by side

def test_results_come_in_the_order_of_their_jobs_and_are_those_of_one_process(options):
    jobs = [(dataclasses.replace(options, seed=seed, steps=3 + seed), False) for seed in range(5)]
    results = workers.experiments(jobs, quiet=True)
    assert [r["seed"] for r in results] == list(range(5))
    alone = experiment(jobs[4][0])
    for key in alone.keys() - {"seconds"}:
        assert results[4][key] == alone[key], key


def test_an_error_in_one_of_them_ends_them_all(options):
    jobs = [(dataclasses.replace(options, steps=10**6), False), (dataclasses.replace(options, text="missing"), False)]
    with pytest.raises(MiniLLMError, match="missing does not exist"):
        workers.experiments([jobs[1], *jobs], quiet=True)


def test_a_worker_that_dies_is_an_error_and_no_silence(options, monkeypatch):
    monkeypatch.setattr(workers, "__name__", "minillm.nowhere")                          # what the process is started as
    with pytest.raises(MiniLLMError, match=r"a worker process ended with code 1 in the midst of float32: is there enough memory"):
        workers.experiments([(options, False)], quiet=True)


def test_a_diverged_experiment_has_no_int8_and_no_loss(options):
    result = experiment(dataclasses.replace(options, lr=1e6, clip=0.0, warmup=0), int8=True)
    assert (result["val_loss"], "int8" in result) == (None, False)
    assert result["diverged_at"] == len([r for r in result["records"] if "loss" in r])
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert math.isfinite(result["zero_gradient_share"])
