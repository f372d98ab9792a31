"""The command line as a user types it: what goes right, and for all that goes wrong one line, exit code 2, and nothing lost."""
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import SMALL, contents, write_text

from minillm import cli, files
from minillm.errors import MiniLLMError
from minillm.experiments import options as options_module
from minillm.experiments import running, workers
from minillm.experiments import train as train_module
from minillm.experiments.options import TrainOptions
from minillm.training.checkpoint import read_state
from minillm.training.metrics import read_metrics

SIZE = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return str(write_text(tmp_path_factory.mktemp("text")))


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    """A finished run; tests that change it take a copy."""
    run = tmp_path_factory.mktemp("trained") / "run"
    assert cli.main(["train", *SIZE, "--text", text, "--out", str(run), "--quiet"]) == 0
    return run


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(say, tmp_path):
    """Runs a command that must be refused: exit code 2, one line that says all of `words`, and every file as it was."""
    def run(*argv, says=()):
        before = contents(tmp_path)
        code, out, err = say(*argv)
        assert (code, out) == (2, ""), (argv, err)
        assert_one_line(err)
        for word in (says,) if isinstance(says, str) else says:
            assert word in err, (argv, err)
        assert contents(tmp_path) == before
    return run


@pytest.fixture(autouse=True)
def quick_figures(request, monkeypatch):
    """The loss figure is left out: drawing it takes longer than these runs. Tests that want it say so."""
    if "figures" not in request.fixturenames:
        monkeypatch.setattr(train_module, "loss_curves", lambda lines, path: files.write_whole(path, json.dumps(lines)))


@pytest.fixture
def figures():
    """Figures are drawn."""


def assert_one_line(err):
    assert err.startswith("minillm: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err


PATIENCE = 600                                                 # seconds; then a program that hangs is a failed test


@pytest.fixture
def started():
    """Starts the command in a process of its own; one that a failed test leaves behind is ended."""
    processes = []

    def start(*argv, **options):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([sys.executable, *map(str, argv)], **pipes, **options))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


# --- texts

@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize(("make", "says"), [
    (lambda p: None, "does not exist; check the spelling"), (lambda p: p.write_bytes(b""), "has no text in it"),
    (lambda p: p.write_bytes(b" \n\t\n"), "has no text in it"), (lambda p: p.mkdir(), "is a directory; name one text file"),
    (lambda p: p.write_bytes(b"caf\xe9 " * 99), ("not UTF-8: byte 0xe9 at offset 3", "iconv")),
    (lambda p: p.write_text("too short"), ("the training part has 8 tokens", "context 16 needs 17", "smaller --context")),
    (lambda p: p.write_text("long enough to train on, but not to validate" * 2), "the validation part has 9 tokens"),
], ids=["missing", "empty", "blank", "a directory", "not UTF-8", "short", "short validation"])
def test_a_text_that_cannot_be_used(command, make, says, refused, here):
    make(here / "my text")
    if command == "compare":
        refused(command, *SIZE, "--text", "my text", "--recipes", "float32", "--quiet", "--out", ".", says=says)
    else:
        refused(command, *SIZE, "--text", "my text", "--out", "run", says=says)


def test_a_text_of_one_letter_is_a_text(say, here):
    (here / "a").write_text("a" * 400)
    code, out, _ = say("train", *SIZE, "--text", "a", "--out", "run", "--json", "--quiet")
    assert (code, json.loads(out)["val_loss"]) == (0, 0.0)                               # one class: a probability of 1


# --- names

@pytest.mark.parametrize(("argv", "says"), [
    (["trian"], ("unknown command 'trian'", "did you mean 'train'?")), (["TRAIN"], "did you mean 'train'?"),
    (["--layers", "3"], "unknown command '--layers'"), ([""], "unknown command ''"),
    (["train", "--layrs", "3"], ("unknown option '--layrs'", "did you mean '--layers'?")),
    (["train", "--lay", "3"], "unknown option '--lay'"), (["train", "text.txt"], "unknown option 'text.txt'"),
    (["evaluate"], "the following arguments are required: RUN"), (["evaluate", "a", "b"], "unknown option 'b'"),
    (["train", "--recipe", "flaot32"], ("unknown recipe 'flaot32'", "did you mean 'float32'?")),
    (["train", "--recipe", "fp16"], "unknown recipe 'fp16': did you mean 'float16'?"),
    (["compare", "--recipes", "float32,bfloat-mixed"], ("'bfloat-mixed'", "did you mean 'bfloat16-mixed'?")),
    (["compare", "--recipes", ","], "--recipes is ''"), (["compare", "--recipes", "float32,float32"], "each once"),
    (["train", "--corpus", "pydocs"], ("unknown corpus 'pydocs'", "did you mean 'pydoc'?")),
    (["train", "--corpus", "x", "--text", "y"], "unknown corpus 'x'"),
    (["train", "--tokenizer", "chra"], ("unknown tokenizer 'chra'", "did you mean 'char'?")),
    (["train", "--optimizer", "adam"], ("unknown optimizer 'adam'", "did you mean 'adamw'?")),
    (["demo", "--steps", "3"], "unknown option '--steps'"), (["train", "--lr"], "--lr: expected one argument"),
], ids=" ".join)
def test_a_name_that_does_not_exist(argv, says, refused, here):
    refused(*argv, says=says)


# --- values

BAD = {int: ["-1", "1.5", "nan", "inf", "x", "", "1e3", str(10**18), str(10**400)],
       float: ["-1", "nan", "inf", "-inf", "1e999", "x", ""], str: ["x", "nan", "-1", "", "float32 ", "é" * 300]}
ODD = {int: ["0", str(2**32 - 1)], float: ["0", "1e-320", "1e-45", "1e308", "3.4e38", "1e12"], str: ["\t"]}
FIELDS = {f"--{f.name.replace('_', '-')}": f.type for f in dataclasses.fields(TrainOptions) if f.type is not bool}
LONG = ("--steps", str(2**32 - 1))                                                       # is just that


@pytest.mark.parametrize("option", FIELDS)
def test_every_bad_value_of_every_option_is_refused_by_name(option, refused, here, text):
    says = {"--text": "", "--loss-scale": "scale"}.get(option, option[2:])
    for value in BAD[FIELDS[option]]:
        refused("train", *SIZE, "--text", text, "--out", "run", f"{option}={value}", says=says)


@pytest.mark.parametrize("option", FIELDS)
def test_no_odd_value_of_any_option_gives_a_traceback_or_hangs(option, say, here, text, monkeypatch):
    monkeypatch.setattr(options_module, "memory_bytes", lambda: 1e10)
    for i, value in enumerate(ODD[FIELDS[option]]):
        if (option, value) != LONG:
            code, _, err = say("train", *SIZE, "--steps", "2", "--text", text, "--out", f"run{i}", "--quiet", f"{option}={value}")
            assert code in (0, 2), (option, value)
            if code == 2:
                assert_one_line(err)


@pytest.mark.parametrize("value", ["0^-1", "2^99999999999", "2^", "^", "nan^0", "-8^3", "2^-140", "2^200", "1e-50", "2^1.5", "0"])
def test_a_loss_scale_that_is_none(value, refused, here, text):
    refused("train", *SIZE, "--text", text, f"--loss-scale={value}", says="scale")


@pytest.mark.parametrize("value", ["2^-6", "2^15", "1024", "dynamic", "recipe", "0.5"])
def test_a_loss_scale_that_is_one(value, say, here, text):
    argv = ["train", *SIZE, "--steps", "1", "--text", text, "--recipe", "float16-mixed", "--quiet"]
    assert say(*argv, f"--loss-scale={value}")[0] == 0


@pytest.mark.parametrize(("argv", "says"), [
    (["--heads", "5"], ("--heads 5 does not divide --channels 32", "choose heads that do")),
    (["--heads", "64"], "--heads 64 does not divide --channels 32"),
    (["--dropout", "1"], "--dropout is 1.0: it must lie in 0 ... 1, 1 excluded"), (["--beta2", "1"], "--beta2 is 1.0"),
    (["--lr", "0"], "--lr is 0.0: it must be positive"),
    (["--lr", "1e-5"], ("--lr is 1e-05", "at least --min-lr (0.0001): lower that too")),
    (["--vocab", "255"], "--vocab is 255: it must be at least 256"), (["--layers", "0"], "--layers is 0: it must be at least 1"),
    (["--threads", "-1"], "--threads is -1"), (["--threads", "x"], "--threads"), (["--out", ""], "--out: it is empty"),
    (["--scale-floor", "1e-40", "--recipe", "float16-mixed"], "floor"),
])
def test_a_value_that_does_not_fit_the_others(argv, says, refused, here, text):
    refused("train", *SIZE, "--text", text, *argv, says=says)


@pytest.mark.parametrize("argv", [
    ["--layers", "4000000000"], ["--channels", "4000000000", "--heads", "1"], ["--batch", "4000000000"],
    ["--accumulate", "4000000000"], ["--layers", "100000", "--channels", "512"],
])
def test_what_does_not_fit_into_memory_is_refused_before_it_is_tried(argv, refused, here, text, monkeypatch):
    monkeypatch.setattr(options_module, "memory_bytes", lambda: 16e9)
    refused("train", *SIZE, "--text", text, *argv, says=("need at least", "GB, this machine has 16: lower"))


def test_memory_that_runs_out_all_the_same_is_one_line(refused, here, text, monkeypatch):
    def all_gone(*_):
        raise MemoryError("Unable to allocate 9 TiB")

    monkeypatch.setattr(train_module, "new_run", all_gone)
    refused("train", *SIZE, "--text", text, says=("out of memory", "9 TiB", "lower --layers"))


@pytest.mark.parametrize("option", ["--tokens", "--top-k", "--seed", "--temperature", "--threads"])
@pytest.mark.parametrize("value", ["-1", "nan", "inf", "-inf", "x", "", str(10**400), "1e39"])
def test_a_bad_value_for_sampling(option, value, refused, trained):
    refused("sample", trained, f"{option}={value}", says=option[2:])


@pytest.mark.parametrize("value", ["0", "-3", "1001", "x", "1.5"])
def test_a_bad_number_of_seeds(value, refused, here, text):
    refused("compare", *SIZE, "--text", text, f"--seeds={value}", says="--seeds")


# --- folders

def test_a_run_that_exists_is_refused_without_force_and_replaced_with_it(refused, say, here, text, trained):
    run = shutil.copytree(trained, here / "run")
    (run / "notes.md").write_text("mine")
    refused("train", *SIZE, "--text", text, "--out", run, says=("run exists", "--out", "--resume", "--force"))
    assert say("train", *SIZE, "--steps", "3", "--text", text, "--out", run, "--force", "--quiet")[0] == 0
    assert contents(run).keys() == {*contents(trained), "notes.md"}
    assert read_metrics(run / "metrics.jsonl")[-1]["step"] == 3


def test_force_deletes_no_files_of_others(refused, here, text):
    (here / "project").mkdir()
    (here / "project" / "config.json").write_text("{}")
    says = ("project is not a run, but holds a config.json", "choose another --out")
    refused("train", *SIZE, "--text", text, "--out", "project", "--force", says=says)


def test_force_may_write_among_files_of_others_and_an_empty_folder_needs_none(say, here, text):
    (here / "with notes").mkdir()
    (here / "with notes" / "notes.md").write_text("mine")
    (here / "empty").mkdir()
    assert say("train", *SIZE, "--text", text, "--out", "with notes", "--quiet")[0] == 2
    assert say("train", *SIZE, "--text", text, "--out", "with notes", "--force", "--quiet")[0] == 0
    assert (here / "with notes" / "notes.md").read_text() == "mine"
    assert say("train", *SIZE, "--text", text, "--out", "empty", "--quiet")[0] == 0


def test_a_run_that_exists_is_refused_before_the_text_is_read(refused, trained, here):
    refused("train", *SIZE, "--text", "missing", "--out", trained, says="exists")


@pytest.mark.parametrize("place", ["file", "file/below", "x" * 300])
@pytest.mark.parametrize("argv", [["train"], ["train", "--force"], ["demo"], ["compare"]], ids=" ".join)
def test_a_folder_that_cannot_be_written(place, argv, refused, here, text):
    (here / "file").write_text("")
    more = [] if argv == ["demo"] else [*SIZE, "--text", text]
    refused(*argv, *more, "--out", place, "--quiet", says=place)


@pytest.mark.parametrize("command", ["evaluate", "sample", "resume"])
@pytest.mark.parametrize(("place", "says"), [
    ("nothing", "there is no run nothing: train one"), ("file", "there is no run file"), ("file/below", "there is no run"),
    ("folder", "folder is not a run: config.json is missing"), ("x" * 300, "File name too long"),
])
def test_a_run_that_is_none(command, place, says, refused, here):
    (here / "file").write_text("")
    (here / "folder").mkdir()
    refused(*(["train", "--resume", place] if command == "resume" else [command, place]), says=says)


@pytest.mark.parametrize(("argv", "says"), [
    (["--resume"], "--resume needs the run to go on with"), (["--resume", "--quiet"], "--resume needs the run"),
    (["--resume", "a", "--out", "b"], "leave --out and --force away"), (["--resume", "--out", ""], "--out: it is empty"),
    (["--resume", "a", "--force"], "leave --out and --force away"),
])
def test_resume_takes_one_run_and_no_force(argv, says, refused, here):
    refused("train", *argv, says=says)


# --- checkpoints

SPOILT = {"truncated": lambda b: b[:-100], "cut to nothing": lambda b: b"", "foreign": lambda b: b"PK\3\4" + b"x" * 999,
          "tampered": lambda b: b[:-9] + bytes([b[-9] ^ 1]) + b[-8:], "header": lambda b: b[:40] + bytes([b[40] ^ 1]) + b[41:]}


@pytest.mark.parametrize("command", ["evaluate", "sample", "resume"])
@pytest.mark.parametrize("spoil", SPOILT)
def test_a_checkpoint_that_is_not_whole(command, spoil, refused, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    state = run / "state.safetensors"
    state.write_bytes(SPOILT[spoil](state.read_bytes()))
    argv = ["train", "--resume", run, "--steps", "20"] if command == "resume" else [command, run]
    refused(*argv, says=("the checkpoint", "state.safetensors", "restore it or train again"))


@pytest.mark.parametrize("command", ["evaluate", "sample", "resume"])
def test_a_run_without_a_checkpoint(command, refused, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "state.safetensors").unlink()
    argv = ["train", "--resume", run] if command == "resume" else [command, run]
    refused(*argv, says=("there is no checkpoint", "train it anew with --force"))


@pytest.mark.parametrize(("argv", "says"), [
    (["--layers", "2"], ("--layers is 2", "made with 1")), (["--channels", "64"], "--channels is 64"),
    (["--bias"], "--bias is True"), (["--recipe", "float16"], "--recipe is float16"), (["--seed", "2"], "--seed is 2"),
    (["--steps", "5"], "has made 12 steps already"), (["--steps", "0"], "--steps is 0"), (["--text", "other"], "--text is other"),
])
def test_a_resume_as_another_model(argv, says, refused, trained):
    refused("train", "--resume", trained, *argv, says=says)


# --- Ctrl-C, and losses that are not finite

def wait_for(condition, process):
    """Until the condition holds; the process must not have ended before."""
    while not condition():
        assert process.poll() is None, process.communicate(timeout=PATIENCE)
        time.sleep(0.01)


PRESSING = """
import os, signal, sys
from minillm.cli import main
from minillm.training.trainer import Trainer

at, advance = {int(step) for step in sys.argv.pop(1).split(",")}, Trainer.advance

def pressing(self):
    if self.step in at:
        os.kill(os.getpid(), signal.SIGINT)
    return advance(self)

Trainer.advance = pressing
sys.exit(main())
"""


@pytest.mark.usefixtures("figures")
def test_ctrl_c_writes_a_checkpoint_from_which_the_run_goes_on_bit_for_bit(started, text, tmp_path):
    argv = ["train", *SIZE, "--text", text, "--recipe", "float16-mixed", "--dropout", "0.1"]
    run, whole = tmp_path / "run", tmp_path / "whole"
    process = started("-c", PRESSING, "7", *argv, "--out", run, "--json")                # in the midst of the eighth attempt
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, json.loads(out)["steps"], json.loads(out)["diverged_at"]) == (130, 8, None)
    assert err.splitlines()[-1] == f"minillm: stopped after step 8, checkpoint written: go on with minillm train --resume {run}"
    assert read_metrics(run / "metrics.jsonl")[-1]["step"] == 8
    assert cli.main(["train", "--resume", str(run), "--quiet"]) == 0
    assert cli.main([*argv, "--out", str(whole), "--quiet"]) == 0
    assert contents(run) == contents(whole)


def test_a_second_ctrl_c_ends_the_program_and_keeps_the_last_checkpoint(started, text, tmp_path):
    process = started("-c", PRESSING.replace("os.kill", "[os.kill(os.getpid(), signal.SIGINT) for _ in range(2)] or os.kill"), "7",
                      "train", *SIZE, "--text", text, "--out", tmp_path / "run", "--quiet")
    assert (*process.communicate(timeout=PATIENCE), process.returncode) == ("", "minillm: stopped\n", 130)
    assert read_state(tmp_path / "run" / "state.safetensors")[1]["step"] == 5


def test_ctrl_c_in_the_last_attempt_is_the_end_of_the_run(started, text, tmp_path):
    process = started("-c", PRESSING, "11", "train", *SIZE, "--text", text, "--out", tmp_path / "run", "--quiet", "--json")
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err, json.loads(out)["steps"]) == (0, "", 12)
    assert json.loads(out)["val_loss"] == read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["val_loss"]


def test_ctrl_c_in_an_attempt_that_diverges_writes_nothing_over_the_last_good_checkpoint(started, text, tmp_path):
    run = tmp_path / "run"
    process = started("-c", PRESSING, "3", "train", *SIZE, "--text", text, "--out", run, "--quiet", *DIVERGING, "--eval-every", "2")
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (2, "")
    assert_one_line(err)
    assert "not finite at step 4" in err
    assert read_state(run / "state.safetensors")[1]["step"] == 2


def test_ctrl_c_before_training_leaves_no_folder(say, here, text, monkeypatch):
    def pressed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "load_data", pressed)
    assert say("train", *SIZE, "--text", text, "--out", "run") == (130, "", "minillm: stopped\n")
    assert contents(here) == {}


IN_BACKGROUND = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"


def test_a_run_that_a_shell_started_in_the_background_ignores_ctrl_c(started, text, tmp_path):
    argv = ["train", *SIZE, "--text", text, "--out", tmp_path / "run", "--quiet", "--json"]
    process = started("-c", IN_BACKGROUND + PRESSING, "3", *argv)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err, json.loads(out)["steps"]) == (0, "", 12)


@pytest.mark.parametrize("command", [["train"], ["compare", "--recipes", "float32"], ["demo"]])
def test_compiling_is_announced_unless_quiet(command, say, here, text, monkeypatch):
    def ready(*_, **__):
        raise MiniLLMError("enough")

    monkeypatch.setattr(running.kernels, "must_compile", lambda *room: True)
    monkeypatch.setattr(running, "tqdm", ready)
    monkeypatch.setattr(workers, "tqdm", ready)
    argv = [*command, "--out", "new", *([] if command == ["demo"] else [*SIZE, "--text", text])]
    assert say(*argv)[2] == "compiling kernels, once on this machine: about half a minute\nminillm: enough\n"
    assert say(*argv, "--quiet", *(["--force"] if command == ["train"] else []))[2] == "minillm: enough\n"


def test_a_refusal_comes_before_the_compiling(refused, here, monkeypatch):
    monkeypatch.setattr(running.kernels, "must_compile", lambda *room: True)
    refused("train", "--text", "missing", says="does not exist")
    refused("train", "--resume", "missing", says="there is no run missing")


def test_ctrl_c_in_a_comparison_ends_its_workers(started, text, tmp_path):
    figures = tmp_path / "figures"
    process = started("-m", "minillm", "compare", *SIZE, "--text", text, "--steps", "1000000", "--recipes", "float32,float16-mixed",
                      "--out", figures, "--quiet")
    wait_for(figures.exists, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)           # ends when the last process that holds the pipe has ended
    assert (process.returncode, out, err) == (130, "", "minillm: stopped\n")
    assert contents(tmp_path) == {}


DIVERGING = ["--lr", "1e6", "--clip", "0", "--warmup", "0"]


@pytest.mark.parametrize(("every", "step", "says"), [(2, 4, "step 4: forward block0"), (1, 3, "step 3: in validation, forward")])
def test_a_loss_that_is_not_finite_in_float32_keeps_the_last_good_checkpoint(every, step, says, say, here, text):
    code, out, err = say("train", *SIZE, "--text", text, "--out", "run", "--eval-every", every, *DIVERGING, "--quiet", "--json")
    assert code == 2
    assert_one_line(err)
    assert says in err
    assert "the last good checkpoint is that of step 2; try a lower --lr" in err
    assert {"val_loss": None, "diverged_at": step, "steps": step}.items() <= json.loads(out).items()
    code, out, _ = say("evaluate", "run", "--json")
    assert code == 0
    validated = [r for r in read_metrics(here / "run" / "metrics.jsonl") if r.get("val_loss")]
    assert validated[-1] == {"step": 2, "val_loss": json.loads(out)["metrics"]["language_model"]["val_loss"]}


def test_one_without_a_checkpoint_says_so(say, here, text):
    code, _, err = say("train", *SIZE, "--text", text, "--out", "run", "--eval-every", "0", *DIVERGING, "--quiet")
    assert code == 2
    assert "no checkpoint was written before" in err
    assert not (here / "run" / "state.safetensors").exists()
    assert say("evaluate", "run")[0] == 2
    assert say("train", *SIZE, "--text", text, "--out", "run", "--force", "--quiet")[0] == 0


def test_under_a_narrow_recipe_it_is_a_finding_and_no_error(say, here, text):
    code, out, err = say("train", *SIZE, "--text", text, "--out", "run", "--recipe", "float16", "--quiet", "--json")
    data = json.loads(out)
    assert (code, data["val_loss"]) == (0, None)
    assert 1 <= data["diverged_at"] <= 10
    assert_one_line(err)
    assert "or another --recipe" in err


# --- what goes right

def test_train_evaluate_and_sample_say_one_json_object_and_nothing_else(say, here, text):
    code, out, err = say("train", *SIZE, "--text", text, "--out", "run", "--json", "--quiet")
    trained = json.loads(out)
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert trained.keys() == {"val_loss", "diverged_at", "steps", "tokens_per_second", "parameters", "out"}
    assert (trained["diverged_at"], trained["steps"], trained["out"]) == (None, 12, "run")
    assert trained["parameters"] == 32 * (18 + 16) + 12 * 32 * 32 + 3 * 32
    code, out, err = say("evaluate", "run", "--json")
    metrics = json.loads(out)["metrics"]["language_model"]
    assert (code, err, metrics.keys()) == (0, "", {"val_loss", "perplexity", "bits_per_character", "tokens"})
    assert metrics["val_loss"] == trained["val_loss"]
    assert metrics["tokens"] == (len(Path(text).read_text()) - len(Path(text).read_text()) * 9 // 10 - 1) // 16 * 16
    code, out, err = say("sample", "run", "--prompt", "the ", "--tokens", "9", "--json", "--quiet")
    told = json.loads(out)
    assert (code, err, told.keys(), told["prompt"]) == (0, "", {"prompt", "text"}, "the ")
    assert (told["text"][:4], len(told["text"])) == ("the ", 4 + 9)


@pytest.mark.usefixtures("figures")
def test_a_run_folder_holds_what_the_design_says(say, here, text):
    code, out, err = say("train", *SIZE, "--text", text)
    assert (code, err.count("Traceback")) == (0, 0)
    assert out.startswith("validation loss ")
    run = here / "runs" / "text-float32-1337"
    assert f"the run is in {run.relative_to(here)}" in out
    assert contents(run).keys() == {"config.json", "tokenizer.json", "metrics.jsonl", "state.safetensors", "loss.png"}
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_quiet_is_quiet_and_progress_goes_to_standard_error(say, here, text):
    _, out, err = say("train", *SIZE, "--text", text, "--out", "loud")
    assert "validation loss" in out
    assert "12" in err
    assert say("train", *SIZE, "--text", text, "--out", "quiet", "--quiet")[2] == ""


def test_evaluate_says_for_people_what_it_says_as_json(say, trained):
    _, told, _ = say("evaluate", trained)
    _, out, _ = say("evaluate", trained, "--json")
    for key, value in json.loads(out)["metrics"]["language_model"].items():
        assert [line.split() for line in told.splitlines() if line.startswith(key)] == [[key, str(value)]]


def test_the_same_seed_samples_the_same_text_and_another_does_not(say, trained):
    texts = [say("sample", trained, "--tokens", "60", "--seed", seed)[1] for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("weights", ["float32", "float16", "int8"])
def test_a_text_may_come_from_narrower_weights(weights, say, trained):
    code, out, err = say("sample", trained, "--weights", weights, "--tokens", "5", "--prompt", "the ")
    assert (code, err, out[:4]) == (0, "", "the ")


def test_weights_of_another_name_are_refused(refused, trained):
    refused("sample", trained, "--weights", "int7", says=("unknown weights 'int7'", "did you mean 'int8'", "float16"))


def test_temperature_0_takes_the_most_likely_as_does_top_k_1(say, trained):
    likely = [say("sample", trained, "--prompt", "a ", "--tokens", "20", *more)[1] for more in (
        ["--temperature", "0"], ["--temperature", "0", "--seed", "5"], ["--top-k", "1"], ["--temperature", "1e-45"],
        ["--temperature", "1e-38", "--seed", "7"], ["--temperature", "0", "--top-k", "3"])]
    assert len(set(likely)) == 1


@pytest.mark.parametrize("argv", [
    ["--temperature", "3e38"], ["--top-k", "4294967295"], ["--tokens", "0"], ["--prompt", "the cat " * 9],
])
def test_odd_ways_of_sampling_work(argv, say, trained):
    code, out, err = say("sample", trained, "--tokens", "5", *argv)
    assert (code, err) == (0, "")
    assert out


@pytest.mark.parametrize(("prompt", "says"), [("the Z", ("character 'Z' at position 4", "remove it")), ("é", "'é' at position 0"),
                                              ("", "the prompt is empty"), ("\udcff", "position 0")])
def test_a_prompt_that_the_model_cannot_read(prompt, says, refused, trained):
    refused("sample", trained, "--prompt", prompt, says=says)


def test_without_a_prompt_it_begins_with_a_line_end_where_there_is_one(say, here, trained, text):
    assert say("sample", trained, "--tokens", "0")[1] == " \n"                           # this text has none: its first character
    lines = here / "lines"
    lines.write_text(Path(text).read_text().replace(".", "\n"))
    say("train", *SIZE, "--text", lines, "--out", "run", "--quiet")
    assert json.loads(say("sample", "run", "--json")[1])["prompt"] == "\n"


def test_byte_pairs_train_evaluate_and_sample(say, here, text):
    more = ["--tokenizer", "bpe", "--vocab", "270", "--text", text]
    code, out, _ = say("train", *SIZE, *more, "--out", "run", "--json", "--quiet")
    assert code == 0
    metrics = json.loads(say("evaluate", "run", "--json")[1])["metrics"]["language_model"]
    assert metrics["val_loss"] == json.loads(out)["val_loss"]
    per_token = metrics["bits_per_character"] / metrics["val_loss"]
    assert per_token < 1 / 0.6932                                                        # a token is more than a character
    assert json.loads(say("sample", "run", "--prompt", "é?", "--json")[1])["text"].startswith("é?")


def test_compare_says_a_row_for_each_recipe_and_draws_two_figures(say, here, text):
    code, out, err = say("compare", *SIZE, "--text", text, "--recipes", "float32,float16", "--seeds", "2", "--json", "--quiet")
    result = json.loads(out)
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert result.keys() == {"rows", "figures"}
    float32, float16 = result["rows"]
    assert float32.keys() >= {"recipe", "seeds", "val_loss", "val_loss_sd", "diverged", "skipped_steps", "zero_gradient_share",
                              "bytes", "seconds"}
    assert (float32["recipe"], float32["seeds"], float32["diverged"]) == ("float32", 2, 0)
    assert float32["val_loss_sd"] > 0
    assert (float16["val_loss"], float16["diverged"], float16["recipe"]) == (None, 2, "float16")
    assert float16["bytes"].keys() == {"weights", "gradients", "optimizer", "activations"}
    assert sorted(contents(here)) == sorted(result["figures"]) == ["figures/compare-loss.png", "figures/compare.png"]


def test_a_row_is_what_train_says_of_the_same_options(say, here, text):
    _, out, _ = say("compare", *SIZE, "--text", text, "--recipes", "float16-mixed", "--json", "--quiet")
    _, single, _ = say("train", *SIZE, "--text", text, "--recipe", "float16-mixed", "--out", "run", "--json", "--quiet")
    assert json.loads(out)["rows"][0]["val_loss"] == json.loads(single)["val_loss"]


def test_help_and_version(say):
    code, out, err = say("--help")
    assert (code, err) == (0, "")
    assert all(name in out for name in cli.COMMANDS)
    assert say("--version")[:2] == (0, f"minillm {cli.__version__}\n")
    assert say()[0] == 2
    for name in cli.COMMANDS:
        code, out, err = say(name, "--help")
        assert (code, err) == (0, "")
        assert f"usage: minillm {name}" in out
    assert all(f"--{f.name.replace('_', '-')}" in say("train", "--help")[1] for f in dataclasses.fields(TrainOptions))


def test_the_defaults_are_the_published_configuration():
    o = TrainOptions()
    assert (o.layers, o.heads, o.channels, o.context, o.batch, o.steps) == (4, 4, 128, 64, 12, 2000)
    assert (o.lr, o.min_lr, o.warmup, o.beta1, o.beta2, o.weight_decay, o.clip) == (1e-3, 1e-4, 100, 0.9, 0.99, 0.1, 1.0)
    assert (o.dropout, o.bias, o.accumulate, o.tokenizer, o.seed) == (0, False, 1, "char", 1337)
    assert (o.recipe, o.eval_every, o.corpus, o.watch_every) == ("float32", 500, "pydoc", 50)


def test_a_reader_that_is_gone_is_no_error(started, trained):
    process = started("-m", "minillm", "sample", trained, "--tokens", "1")
    process.stdout.close()
    assert process.wait(PATIENCE) == 0
    assert process.stderr.read() == ""
    process.stderr.close()


def test_an_error_that_nobody_expected_from_the_system_is_one_line(refused, here, text, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error", "some/file")

    monkeypatch.setattr(train_module, "load_data", broken)
    refused("train", *SIZE, "--text", text, says=("some/file: Input/output error", "check the path"))
