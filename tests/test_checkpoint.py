"""A resumed run is the run that never stopped, bit for bit; a file that is not whole is found and nothing is overwritten."""
import contextlib
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save
from tiny_gpt import batch, bits_of, make, objective_of, recipe_of, state_bits
from tiny_run import contents, small, write_text

from minillm.autograd.tensor import Tensor
from minillm.errors import MiniLLMError
from minillm.experiments import train as train_module
from minillm.experiments.evaluate import evaluate
from minillm.experiments.train import fine_tune, resume, train
from minillm.files import write_whole
from minillm.formats import FLOAT32
from minillm.training.checkpoint import load_model, load_trainer, read_state, save_state
from minillm.training.metrics import MetricsLog, read_metrics
from minillm.training.trainer import Schedule, Trainer

RUNS = {
    "float32": {},
    "float16-mixed": {"recipe": "float16-mixed", "dropout": 0.1, "accumulate": 2, "watch_every": 3, "growth_interval": 3,
                      "scale_floor": 2.0},
    "float16-no-master, overflowing": {"recipe": "float16-no-master", "growth_interval": 1, "dropout": 0.2},
    "float16-stochastic, overflowing": {"recipe": "float16-stochastic", "growth_interval": 1},
    "bfloat16-kahan": {"recipe": "bfloat16-kahan"}, "float32-adam8-dynamic": {"recipe": "float32-adam8-dynamic"},
    "int4-qat": {"recipe": "int4-qat"}, "bitnet-b1.58": {"recipe": "bitnet-b1.58"},
    "int8-switchback": {"recipe": "int8-switchback"},
    "sgd, bpe": {"optimizer": "sgd", "tokenizer": "bpe", "vocab": 280, "beta1": 0.9},
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module", autouse=True)
def _figures_as_text():
    """What the loss figure is drawn from, in its place: drawing takes longer than these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "loss_curves", lambda lines, path: write_whole(path, json.dumps(lines)))
        yield


@pytest.fixture
def stopping(monkeypatch):
    """Stops the next training after so many attempts, as Ctrl-C does."""
    made, limit, advance = [], [0], Trainer.advance
    monkeypatch.setattr(Trainer, "advance", lambda self: made.append(self.step) or advance(self))

    @contextlib.contextmanager
    def interruptible():
        yield lambda: len(made) >= limit[0]

    def stop_after(attempts):
        made.clear()
        limit[0] = attempts

    monkeypatch.setattr(train_module, "interruptible", interruptible)
    return stop_after


# --- resuming

@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    """Each run as it is without a stop."""
    folders = {}
    for name, changes in RUNS.items():
        folders[name] = tmp_path_factory.mktemp("whole") / "run"
        train(small(text, **changes), folders[name], quiet=True)
    return folders


@pytest.mark.parametrize("stops", [(1,), (4,), (5,), (10,), (11,), (3, 2, 1)], ids=str)
@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_is_the_run_that_never_stopped(name, stops, whole, text, tmp_path, stopping):
    run = tmp_path / "run"
    stopping(stops[0])
    result = train(small(text, **RUNS[name]), run, quiet=True)
    for more in (*stops[1:], 99):
        assert result["interrupted"]
        stopping(more)
        result = resume(run, {}, quiet=True)
    assert not result["interrupted"]
    ours, theirs = contents(run), contents(whole[name])
    assert ours.keys() == theirs.keys() == {"config.json", "tokenizer.json", "metrics.jsonl", "state.safetensors", "loss.png"}
    assert [key for key in ours if ours[key] != theirs[key]] == []


def test_those_runs_did_what_they_should(whole):
    records = {name: read_metrics(folder / "metrics.jsonl") for name, folder in whole.items()}
    scales = [r["loss_scale"] for r in records["float16-mixed"] if "loss" in r]
    assert {2.0**16, 2.0**17, 2.0**18} <= set(scales)
    for name in ("float16-no-master, overflowing", "float16-stochastic, overflowing"):
        assert any(r["skipped"] for r in records[name] if "loss" in r)
    arrays = {name: read_state(folder / "state.safetensors")[0] for name, folder in whole.items()}
    assert arrays["float32-adam8-dynamic"]["optimizer/v/block0.mlp.up.weight"].dtype == np.uint8
    assert arrays["float32-adam8-dynamic"]["optimizer/v_largest/block0.mlp.up.weight"].any()
    assert arrays["bfloat16-kahan"]["optimizer/compensation/block0.mlp.up.weight"].any()
    assert [r["step"] for r in records["float32"] if "val_loss" in r] == [5, 10, 12]
    assert any("zero_gradient_share" in r for r in records["float16-mixed"])


def test_metrics_beyond_the_checkpoint_and_a_line_cut_short_are_cut_back(whole, text, tmp_path, stopping):
    run, done = tmp_path / "run", contents(whole["float32"])
    stopping(5)
    train(small(text), run, quiet=True)
    lines = done["metrics.jsonl"].splitlines(keepends=True)
    for rest in (b"", b"".join(lines[6:9]) + b'{"step": 9, "lo', b"\xff\xfe", b"7\n" + lines[6], b'{"no": "step"}\n' + lines[7]):
        copy = shutil.copytree(run, tmp_path / "copy")
        with (copy / "metrics.jsonl").open("ab") as file:
            file.write(rest)
        stopping(99)
        resume(copy, {}, quiet=True)
        assert contents(copy) == done
        shutil.rmtree(copy)


def test_more_steps_may_be_asked_for_and_are_remembered(text, tmp_path, stopping):
    run = tmp_path / "run"
    stopping(4)
    train(small(text), run, quiet=True)
    stopping(3)
    assert resume(run, {"steps": 20, "eval_every": 0}, quiet=True)["steps"] == 7
    stopping(99)
    result = resume(run, {}, quiet=True)
    assert (result["steps"], result["interrupted"]) == (20, False)
    assert [r["step"] for r in read_metrics(run / "metrics.jsonl") if "val_loss" in r] == [20]


def test_a_finished_run_is_left_as_it_is(whole, tmp_path):
    run = shutil.copytree(whole["float32"], tmp_path / "run")
    before = contents(run)
    result = resume(run, {}, quiet=True)
    last = read_metrics(run / "metrics.jsonl")[-1]
    assert (result["val_loss"], result["steps"], result["diverged_at"]) == (last["val_loss"], 12, None)
    assert contents(run) == before


def test_a_finished_run_whose_metrics_are_lost_is_validated_again(whole, tmp_path):
    run = shutil.copytree(whole["float32"], tmp_path / "run")
    loss = read_metrics(run / "metrics.jsonl")[-1]["val_loss"]
    (run / "metrics.jsonl").unlink()
    assert resume(run, {}, quiet=True)["val_loss"] == loss


@pytest.mark.parametrize(("given", "message"), [
    ({"layers": 2}, "--layers is 2, but .* was made with 1"), ({"recipe": "float16"}, "--recipe is float16, but .* with float32"),
    ({"steps": 3}, "has made 12 steps already: give --steps more"), ({"lr": 0.5}, "--lr is 0.5, but .* was made with 0.001"),
    ({"eval_every": -1}, "--eval-every is -1"), ({"steps": 0}, "--steps is 0"),
], ids=str)
def test_a_run_is_not_resumed_as_another_one(given, message, whole, tmp_path):
    run = shutil.copytree(whole["float32"], tmp_path / "run")
    before = contents(run)
    with pytest.raises(MiniLLMError, match=message):
        resume(run, given, quiet=True)
    assert contents(run) == before


# --- beginning with the weights of another run

UNMOVED = {"steps": 1, "warmup": 0, "lr": 1e-30, "min_lr": 0.0, "weight_decay": 0.0, "loss_scale": "1"}


def arrays_of(run):
    return read_state(run / "state.safetensors")[0]


@pytest.mark.parametrize("recipe", ["float32", "float16-no-master", "int8-qat", "int4-qat", "int8-switchback", "bitnet-b1.58"])
@pytest.mark.parametrize("source", ["float32", "float16-mixed", "sgd, bpe"])
def test_a_run_begins_with_the_weights_of_another(source, recipe, whole, tmp_path):
    """With a learning rate of almost nothing its weights stay those of the other, rounded once into its own format."""
    given = UNMOVED | {"recipe": recipe}
    assert fine_tune(whole[source], given, tmp_path / "new", quiet=True)["steps"] == 1
    old, new = arrays_of(whole[source]), arrays_of(tmp_path / "new")
    for name in (name for name in old if name.startswith("model/")):
        assert np.array_equal(new[name], old[name].astype(new[name].dtype)), name
    assert any(name.startswith("learned/") for name in new) is (recipe == "int4-qat")
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["from"] == str(whole[source])
    assert {k: config["options"][k] for k in ("layers", "text", "tokenizer", "recipe")} == \
        {k: (given | json.loads((whole[source] / "config.json").read_text())["options"] | given)[k]
         for k in ("layers", "text", "tokenizer", "recipe")}


def test_steps_that_a_run_has_learned_are_taken_over(whole, tmp_path):
    fine_tune(whole["int4-qat"], UNMOVED, tmp_path / "new", quiet=True)
    old, new = arrays_of(whole["int4-qat"]), arrays_of(tmp_path / "new")
    learned = [name for name in old if name.startswith("learned/")]
    assert learned
    for name in learned:
        assert np.array_equal(old[name], new[name])


def test_a_fine_tuned_run_that_stops_goes_on_as_if_it_had_not(whole, tmp_path, stopping):
    given = {"recipe": "int4-qat", "steps": 6}
    stopping(99)
    fine_tune(whole["float32"], given, tmp_path / "whole", quiet=True)
    stopping(3)
    fine_tune(whole["float32"], given, tmp_path / "stopped", quiet=True)
    stopping(99)
    resume(tmp_path / "stopped", {}, quiet=True)
    assert bits_of(arrays_of(tmp_path / "stopped")) == bits_of(arrays_of(tmp_path / "whole"))
    assert json.loads((tmp_path / "stopped" / "config.json").read_text())["from"] == str(whole["float32"])


@pytest.mark.parametrize(("given", "message"), [
    ({"layers": 2}, "--layers is 2, but the weights of .* are for 1"), ({"tokenizer": "bpe"}, "--tokenizer is bpe"),
    ({"recipe": "int5"}, "unknown recipe 'int5'"), ({"text": "missing.txt"}, "missing.txt")], ids=str)
def test_a_run_is_not_begun_as_what_it_cannot_be(given, message, whole, tmp_path):
    with pytest.raises(MiniLLMError, match=message):
        fine_tune(whole["float32"], given, tmp_path / "new", quiet=True)
    assert not (tmp_path / "new").exists()


def test_a_run_is_not_replaced_by_what_begins_with_it(whole):
    before = contents(whole["float32"])
    with pytest.raises(MiniLLMError, match="--from and --out are both"):
        fine_tune(whole["float32"], {}, whole["float32"], force=True, quiet=True)
    assert contents(whole["float32"]) == before


@pytest.mark.parametrize("use", [evaluate, lambda run: resume(run, {}, quiet=True)], ids=["evaluate", "resume"])
def test_another_text_is_noticed(use, tmp_path):
    text = write_text(tmp_path)
    run = tmp_path / "run"
    train(small(text, steps=2), run, quiet=True)
    before = contents(run)
    text.write_text(text.read_text("utf-8").replace("cat sat", "sat cat", 1), "utf-8")
    with pytest.raises(MiniLLMError, match=r"is not the text that .*run was trained on"):
        use(run)
    text.unlink()
    with pytest.raises(MiniLLMError, match="does not exist"):
        use(run)
    assert contents(run) == before


# --- files that are not whole

def trainer_of(recipe="float32", **shape):
    model = make(recipe, **shape)
    return model, Trainer(objective_of(model), lambda step, micro: batch(seed=step, shape=model.shape), Schedule(9))


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """The bytes of a small checkpoint after two attempts."""
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    model, trainer = trainer_of(layers=1, heads=1, channels=2, context=2, bias=False)
    trainer.advance()
    trainer.advance()
    save_state(path, model, trainer)
    return path.read_bytes()


def header_end(state):
    return 8 + int.from_bytes(state[:8], "little")


def refused(path, content, message="the checkpoint .* (is truncated or foreign|was changed after)|but not a checkpoint of minillm"):
    path.write_bytes(content)
    with pytest.raises(MiniLLMError, match=message):
        read_state(path)
    assert path.read_bytes() == content


def test_the_whole_file_is_read(state, tmp_path):
    path = tmp_path / "state.safetensors"
    path.write_bytes(state)
    arrays, facts = read_state(path)
    assert (facts["step"], facts["optimizer_steps"], facts["shape"]["channels"]) == (2, 2, 2)
    assert sorted({name.partition("/")[0] for name in arrays}) == ["model", "optimizer"]


def test_a_truncated_file_is_refused_wherever_it_was_cut(state, tmp_path):
    ends = {*range(20), *range(20, len(state), 61), header_end(state), header_end(state) + 1, len(state) - 1}
    for end in ends:
        refused(tmp_path / "state", state[:end])


def test_a_file_with_more_behind_it_is_refused(state, tmp_path):
    for more in (b"\0", b"\0" * 64, state):
        refused(tmp_path / "state", state + more)


def test_one_flipped_bit_anywhere_is_found(state, tmp_path):
    header, end = range(8, header_end(state), 3), len(state)              # every third byte of it, every eleventh of the numbers
    places = [(i, bit) for i in range(8) for bit in range(8)]
    for i, bit in places + [(i, i % 8) for i in (*header, *range(header.stop, end, 11), end - 1)]:
        flipped = bytearray(state)
        flipped[i] ^= 1 << bit
        refused(tmp_path / "state", bytes(flipped))


def test_a_fact_that_was_changed_by_hand_is_found(state, tmp_path):
    for old, new in ((b'\\"step\\": 2', b'\\"step\\": 3'), (b'\\"skipped\\": 0', b'\\"skipped\\": 1'), (b"float32", b"float16")):
        assert state.count(old) == 1
        refused(tmp_path / "state", state.replace(old, new), "was changed after it was written")


@pytest.mark.parametrize("content", [
    b"", b"\0" * 8, b"PK\3\4 not ours at all, but long enough to have a length in front", b"{}",
    (1 << 60).to_bytes(8, "little") + b"{}", save({"w": np.ones(3)}), save({"w": np.ones(3)}, {"format": "pt"}),
    *(save({}, {"minillm": facts}) for facts in ("[]", "7", "{", '{"digest": null}', "{}")),
], ids=range(12))
def test_a_foreign_file_is_refused(content, tmp_path):
    refused(tmp_path / "state", content)


def test_nothing_and_a_directory_are_no_checkpoint(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("nothing", "folder"):
        with pytest.raises(MiniLLMError, match=r"there is no checkpoint .*: the run ended before its first, train it anew"):
            read_state(tmp_path / name)


@pytest.mark.parametrize("spoil", [
    lambda p: p.write_bytes(p.read_bytes()[:-7]), lambda p: p.write_bytes(b""), lambda p: p.unlink() or p.mkdir(),
    lambda p: p.write_bytes(save({"w": np.ones(3, np.float32)})),
], ids=["truncated", "empty", "a directory", "foreign"])
@pytest.mark.parametrize("use", [evaluate, lambda run: resume(run, {"steps": 20}, quiet=True)], ids=["evaluate", "resume"])
def test_a_run_with_a_bad_checkpoint_is_not_touched(spoil, use, whole, tmp_path):
    run = shutil.copytree(whole["float32"], tmp_path / "run")
    spoil(run / "state.safetensors")
    before = contents(run)
    with pytest.raises(MiniLLMError, match="checkpoint"):
        use(run)
    assert contents(run) == before


@pytest.mark.parametrize(("change", "message"), [
    (lambda c: c["options"].update(layers=2), "of another model: layers 1 there, 2 here"),
    (lambda c: c["options"].update(channels=64), "of another model: channels 32 there, 64 here"),
    (lambda c: c["options"].update(layers=10**9), "need at least .* GB"),
    (lambda c: c["options"].update(layers="two"), "--layers is 'two'"),
    (lambda c: c["options"].update(layers=True), "--layers is True"), (lambda c: c["options"].update(depth=3), "damaged or of"),
    (lambda c: c.update(options=[1]), "damaged or of"), (lambda c: c.pop("recipe"), "damaged or of"),
    (lambda c: c.update(recipe=7), "damaged or of"), (lambda c: c["recipe"].update(casts={"*": 5}), "damaged or of"),
    (lambda c: c["recipe"].update(parameters="float12"), "unknown format 'float12'"),
    (lambda c: c["recipe"].update(parameters="float16"), "of another model"), (lambda c: c.pop("text"), "not the text"),
], ids=range(13))
def test_a_config_that_was_changed_is_one_line(change, message, whole, tmp_path):
    run = shutil.copytree(whole["float32"], tmp_path / "run")
    config = json.loads((run / "config.json").read_text("utf-8"))
    change(config)
    (run / "config.json").write_text(json.dumps(config), "utf-8")
    before = contents(run)
    with pytest.raises(MiniLLMError, match=message):
        evaluate(run)
    assert contents(run) == before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"7", b'"text"', b"null"])
def test_a_run_file_that_is_not_ours_is_one_line(name, content, whole, tmp_path):
    run = shutil.copytree(whole["float32"], tmp_path / "run")
    (run / name).write_bytes(content)
    with pytest.raises(MiniLLMError, match=r"damaged|cannot be read|no tokenizer"):
        evaluate(run)


# --- what a checkpoint holds

@pytest.mark.parametrize("recipe", ["float32", "float16", "float16-mixed", "bfloat16-mixed", "float16-no-master"])
def test_weights_moments_scale_and_position_come_back_bit_for_bit(recipe, tmp_path):
    recipe = recipe_of(recipe, eps=1e-4)
    model, trainer = trainer_of(recipe)
    for _ in range(3):
        trainer.advance()
    trainer.skipped, trainer.in_a_row = 7, 5
    trainer.objective.scaler.scale, trainer.objective.scaler.clean_steps = 32.0, 4
    save_state(tmp_path / "state", model, trainer)
    other, again = trainer_of(recipe)
    arrays, facts = read_state(tmp_path / "state")
    load_model(tmp_path / "state", other, arrays, facts)
    load_trainer(again, arrays, facts)
    assert state_bits(again.objective) == state_bits(trainer.objective)
    assert again.objective.scaler == trainer.objective.scaler
    assert (again.step, again.skipped, again.in_a_row) == (3, 7, 5)
    trainer.advance()
    again.advance()
    assert state_bits(again.objective) == state_bits(trainer.objective)


def test_a_model_of_another_shape_is_refused_and_stays_as_it_is(tmp_path):
    model, trainer = trainer_of(layers=1)
    save_state(tmp_path / "state", model, trainer)
    other, _ = trainer_of(layers=2, bias=False)
    before = {p.name: p.data for p in other.parameters()}
    with pytest.raises(MiniLLMError, match=r"of another model: layers 1 there, 2 here, bias True there, False here"):
        load_model(tmp_path / "state", other, *read_state(tmp_path / "state"))
    assert all(p.data is before[p.name] for p in other.parameters())


def test_state_of_another_recipe_or_optimizer_is_refused(tmp_path):
    model, trainer = trainer_of("float32")
    save_state(tmp_path / "state", model, trainer)
    arrays, facts = read_state(tmp_path / "state")
    _, half = trainer_of("float16")
    with pytest.raises(MiniLLMError, match="optimizer state 'm' does not fit: resume with the recipe and optimizer"):
        load_trainer(half, arrays, facts)
    with pytest.raises(MiniLLMError, match="these weights are of another model"):
        load_model(tmp_path / "state", make("float16"), arrays, facts)


def times_learned(ops, x, name):
    """A stand-in for a quantizer that learns: x times a number of its own."""
    leaf = ops.learned.setdefault(name, Tensor(np.array([1.0], np.float32), FLOAT32, name=name))
    return ops.mul(x, leaf)


def test_what_quantizers_learn_is_kept_and_goes_on_learning(tmp_path):
    def learner():
        model = make(recipe_of("float32", quantizers={"gelu.x": times_learned}))
        with model.ops.context.no_record():
            model.loss(*batch())                                                         # the dry pass that makes them
        return model, Trainer(objective_of(model), lambda step, micro: batch(seed=step), Schedule(9))

    model, trainer = learner()
    trainer.advance()
    save_state(tmp_path / "state", model, trainer)
    arrays, facts = read_state(tmp_path / "state")
    other, again = learner()
    load_model(tmp_path / "state", other, arrays, facts)
    load_trainer(again, arrays, facts)
    names = [f"block{i}.mlp.gelu.x" for i in range(2)]
    assert [name for name in again.objective.optimizer.parameters if "gelu" in name] == names
    for run in (trainer, again):
        run.advance()
    for name in names:
        assert other.ops.learned[name].data.tobytes() == model.ops.learned[name].data.tobytes() != np.float32(1).tobytes()
    assert state_bits(again.objective) == state_bits(trainer.objective)
    untrained = make(recipe_of("float32", quantizers={"gelu.x": times_learned}))         # evaluating makes no dry pass
    load_model(tmp_path / "state", untrained, arrays, facts)
    assert [untrained.ops.learned[name].data for name in names] == [arrays[f"learned/{name}"] for name in names]


# --- writing

def full(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(call, tmp_path, monkeypatch):
    path = write_whole(tmp_path / "new" / "file", "old")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(MiniLLMError, match=r"cannot write .*file: No space left on device; the file that was there is as it was"):
        write_whole(path, b"new")
    assert contents(tmp_path) == {"new/file": b"old"}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_ctrl_c_in_the_midst_of_a_write_leaves_the_old_file_and_nothing_else(call, tmp_path, monkeypatch):
    def pressed(*_):
        raise KeyboardInterrupt

    path = write_whole(tmp_path / "file", "old")
    monkeypatch.setattr(os, call, pressed)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "new")
    assert contents(tmp_path) == {"file": b"old"}


def test_a_file_appears_under_its_name_only_when_all_of_it_is_on_the_disk(tmp_path, monkeypatch):
    order = []

    def noted(call, real):
        return lambda *a: order.append((call, (tmp_path / "file").exists())) or real(*a)

    for call in ("fsync", "replace"):
        monkeypatch.setattr(os, call, noted(call, getattr(os, call)))
    write_whole(tmp_path / "file", b"\0" * 100_000)
    assert order == [("fsync", False), ("replace", False)]
    assert (tmp_path / "file").stat().st_size == 100_000


def test_files_have_the_permissions_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        assert write_whole(tmp_path / "file", "").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


@pytest.mark.parametrize("place", ["file/below", "folder"])
def test_what_cannot_be_written_is_one_line(place, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "in it").mkdir(parents=True)
    with pytest.raises(MiniLLMError, match=r"cannot write .*: (Not a directory|File exists|Is a directory)"):
        write_whole(tmp_path / place, "x")
    assert contents(tmp_path) == {"file": b""}


def test_a_disk_that_is_full_at_the_second_checkpoint_leaves_the_first(text, tmp_path, monkeypatch):
    run, replaced, real = tmp_path / "run", [], os.replace

    def replace(source, target):
        replaced.append(Path(target).name)
        return full() if replaced.count("state.safetensors") == 2 else real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(MiniLLMError, match=r"cannot write .*state\.safetensors: No space left on device"):
        train(small(text), run, quiet=True)
    assert read_state(run / "state.safetensors")[1]["step"] == 5
    assert not [name for name in contents(run) if name.startswith(".")]


# --- metrics

def test_records_are_read_up_to_the_first_that_is_none(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    log = MetricsLog(path)
    log.write({"step": 1, "loss": 0.1})
    assert read_metrics(path) == [{"step": 1, "loss": 0.1}]                              # at once, not when the file is closed
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.write({"step": 2, "loss": float("nan")})
    log.close()
    assert path.read_bytes() == b'{"step": 1, "loss": 0.1}\n'
    for rest in (b'{"step": 2', b"\xff", b"[1]", b'{"loss": 1}', b'{"step": "2"}', b"\n"):
        path.write_bytes(b'{"step": 1}\n' + rest + b'\n{"step": 3}\n')
        assert read_metrics(path) == [{"step": 1}]


def test_there_is_no_clock_in_a_run_folder(text, tmp_path):
    train(small(text, steps=3), tmp_path / "one", quiet=True)
    time.sleep(0.01)
    train(small(text, steps=3), tmp_path / "two", quiet=True)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
