"""--strategy: runs that prepare, go on after a stop as if there had been none, and end as another model."""
import contextlib
import dataclasses
import json
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from test_cli import assert_one_line
from tiny_run import contents, write_text

from minillm.data import tasks as tasks_module
from minillm.data.special import NO_TARGET, PAD
from minillm.data.tasks import Example, Task
from minillm.experiments import train as train_module
from minillm.experiments.compare import compare
from minillm.experiments.data import load_data
from minillm.experiments.evaluate import evaluate
from minillm.experiments.kinds import KINDS
from minillm.experiments.options import TrainOptions, options_for
from minillm.experiments.run_folder import load_run
from minillm.experiments.running import follow, new_run
from minillm.experiments.strategies import STRATEGIES, bar, prepare
from minillm.experiments.train import fine_tune, resume, train
from minillm.files import write_whole
from minillm.formats import FLOAT32
from minillm.hybrid.augmentation import Augmented
from minillm.hybrid.distillation import distill
from minillm.hybrid.ensemble import Ensemble, mean_probabilities
from minillm.hybrid.joint import with_hidden
from minillm.models.lstm import LSTMClassifier, LSTMShape
from minillm.models.seq2seq import Seq2Seq, Seq2SeqShape
from minillm.nn import Linear
from minillm.recipes import recipe_named
from minillm.testing import gamma
from minillm.training.checkpoint import read_state
from minillm.training.trainer import Trainer

KINDS_OF_WORD = ("big", "film", "fast")          # each has synonyms
WORDS = [" ".join(words) for words in product(KINDS_OF_WORD, repeat=3)]
EXAMPLES = tuple(Example(words, words.split()[0]) for words in WORDS)
FIRST = Task("first", EXAMPLES, EXAMPLES[::4], ("accuracy",), classes=KINDS_OF_WORD, unit="word")
SIZE = {"layers": 1, "heads": 2, "channels": 16, "batch": 4, "context": 8, "steps": 6, "eval_every": 3, "warmup": 2, "vocab": 256,
        "members": 2}
RUNS = [("bert", "pretrain,joint,prune,ema", "float32"), ("bert", "self-train,augment,swa", "float32"),
        ("bert", "augment-gan,distill", "float32"), ("bert", "pretrain,prune-movement,ensemble", "float16-mixed"),
        ("lstm", "self-train,distill", "float32"), ("lstm", "augment-span,ensemble", "int8-qat"),
        ("gpt", "prune-2:4,swa,ensemble", "float32"), ("gpt", "prune-structure", "float32"), ("gpt", "prune,distill", "int4-qat")]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    """A tiny task in place of the real ones, and figures as the text that they are drawn from."""
    monkeypatch.setitem(tasks_module.TASKS, "first", lambda seed: FIRST)
    monkeypatch.setattr(train_module, "loss_curves", lambda lines, path: write_whole(path, json.dumps(lines)))


def options(model, strategy, text, recipe="float32", **more):
    given = {"text": str(text)} if model == "gpt" else {"task": "first", "labels": 12}
    return options_for({**SIZE, **given, "model": model, "strategy": strategy, "recipe": recipe, **more})


def started(model, strategy, text, **more):
    """A run that is prepared."""
    chosen = options(model, strategy, text, **more)
    prepare(run := new_run(chosen, load_data(chosen)))
    return run


def refused(said):
    """The one line that a command said, which did nothing."""
    code, out, err = said
    assert (code, out) == (2, "")
    assert_one_line(err)
    return err


def stop_after(monkeypatch, attempts):
    """Stops the next training after so many of its own attempts."""
    @contextlib.contextmanager
    def interruptible():
        made.clear()
        yield lambda: len(made) >= attempts

    made, advance = [], Trainer.advance
    monkeypatch.setattr(Trainer, "advance", lambda self: made.append(0) or advance(self))
    monkeypatch.setattr(train_module, "interruptible", interruptible)


@pytest.mark.parametrize(("model", "strategy", "recipe"), RUNS, ids=[f"{m}-{s}" for m, s, _ in RUNS])
def test_a_resumed_run_is_the_run_that_never_stopped(model, strategy, recipe, text, tmp_path, monkeypatch):
    chosen = options(model, strategy, text, recipe)
    train(chosen, tmp_path / "whole", quiet=True)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        assert train(chosen, tmp_path / "stopped", quiet=True)["steps"] == 4
    assert resume(tmp_path / "stopped", {}, quiet=True)["steps"] == 6
    ours, theirs = contents(tmp_path / "stopped"), contents(tmp_path / "whole")
    assert [key for key in theirs if ours[key] != theirs[key]] == []
    evaluate(tmp_path / "whole")


@pytest.mark.parametrize(("model", "name"), [(model, name) for model, kind in KINDS.items() if model != "seq2seq"
                                             for name in kind.strategies])
def test_each_strategy_makes_another_model(model, name, text, monkeypatch):
    """Of the same seed and data; a model that has just begun is sure of little."""
    monkeypatch.setattr("minillm.experiments.strategies.SURE", 0.0)
    found = []
    for strategy in ("", name):
        run = started(model, strategy, text, augment_rate=0.5)
        follow(run, quiet=True)
        found.append(run.data.loss(run.result)[0])
    assert found[0] != found[1]


def test_what_changes_the_data_builds_on_what_changed_it_before(text, monkeypatch):
    """12 labelled texts, each written into twice, beside 15 that the model labelled itself, all of them with words exchanged."""
    monkeypatch.setattr("minillm.experiments.strategies.SURE", 0.0)
    mixture = started("bert", "augment-swap,self-train,augment-gan", text).data.mixture
    assert isinstance(mixture, Augmented)
    assert [len(examples) for examples in mixture.mixture.tasks] == [36, 15]


def test_every_strategy_is_somebodys():
    assert {name for kind in KINDS.values() for name in kind.strategies} == STRATEGIES.keys()


def test_pruned_weights_are_gone_in_the_file(text, tmp_path):
    train(options("gpt", "prune-2:4,swa", text), tmp_path / "run", quiet=True)
    model, *_ = load_run(tmp_path / "run")
    for _, owner, key, value in model.walk():
        if isinstance(owner, Linear) and key == "weight":
            assert ((value.data.reshape(-1, 4) != 0).sum(-1) <= 2).all()


def test_what_structure_left_is_saved_quantized_and_trained_further(text, tmp_path, say):
    train(options("gpt", "prune-structure", text), tmp_path / "run", quiet=True)
    model, *_ = load_run(tmp_path / "run")
    assert sum(heads for heads, _ in model.shape.kept) < 2 or sum(hidden for _, hidden in model.shape.kept) < 64
    assert evaluate(tmp_path / "run")["metrics"]["language_model"]["val_loss"] \
        == pytest.approx(json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["val_loss"], rel=1e-6)
    assert say("quantize", tmp_path / "run", "--out", tmp_path / "codes", "--calibrate", 2, "--quiet")[0] == 0
    assert say("evaluate", tmp_path / "codes", "--json")[0] == 0
    assert say("inspect", tmp_path / "run", "--json", "--quiet")[0] == 0
    fine_tune(tmp_path / "run", {"steps": 2}, tmp_path / "further", quiet=True)
    assert load_run(tmp_path / "further")[0].shape.kept == model.shape.kept


def test_an_ensemble_is_the_mean_of_its_members(text, tmp_path, say):
    train(options("gpt", "ensemble", text, members=3), tmp_path / "run", quiet=True)
    model, *_ = load_run(tmp_path / "run")
    assert len(model.members) == 3
    ids = np.arange(8, dtype=np.int32)[None] % model.shape.vocabulary
    exact = np.mean([softmax(member(ids).data) for member in model.members], 0)
    assert np.abs(np.exp(model(ids).data.astype(np.float64)) - exact).max() <= gamma(32, FLOAT32)
    alone = [load_data(options("gpt", "", text)).loss(member)[0] for member in model.members]
    assert len(set(alone)) == 3
    assert evaluate(tmp_path / "run")["metrics"]["language_model"]["val_loss"] < sum(alone) / 3        # Jensen
    assert say("sample", tmp_path / "run", "--prompt", "the", "--tokens", 5, "--quiet")[0] == 0
    for argv in (("quantize", tmp_path / "run", "--out", tmp_path / "codes"),
                 ("train", "--from", tmp_path / "run", "--out", tmp_path / "more")):
        assert "an ensemble of 3 models, which cannot be" in refused(say(*argv))


def softmax(z):
    p = np.exp(z.astype(np.float64) - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def test_an_ensemble_of_two_class_lstms_answers_by_the_mean_of_both():
    models = [LSTMClassifier(LSTMShape(9, 4, 4, masked=True), recipe_named("float32"), seed) for seed in range(3)]
    for i, model in enumerate(models):
        model.head.weight.data = model.head.weight.data * np.float32(4 * i)
    ids = np.int32([[5, 6, 7], [0, 8, 5]])
    p = np.mean([1 / (1 + np.exp(-model(ids).data.astype(np.float64))) for model in models], 0)
    found = Ensemble(models)
    assert np.abs(found(ids).data - np.log(p / (1 - p))).max() <= 8 * gamma(32, FLOAT32)
    assert np.abs(softmax(found.logits(ids))[:, 1] - p).max() <= gamma(32, FLOAT32)


def loss_of_student(student, teacher, **how):
    trainer = SimpleNamespace(objective=SimpleNamespace(loss=student.loss))
    distill(student, [teacher], trainer, **how)
    return trainer.objective.loss


def test_padding_teaches_a_student_nothing():
    """Two targets more that do not count leave the loss as it is."""
    models = [Seq2Seq(Seq2SeqShape(9, 1, 2, 8, 8, True, 0.0), recipe_named("float32"), seed) for seed in range(2)]
    loss = loss_of_student(*models)
    source, written, targets = np.int32([[5, 6]]), np.int32([[1, 7]]), np.int32([[7, 2]])
    longer = np.pad(written, ((0, 0), (0, 2)), constant_values=PAD), np.pad(targets, ((0, 0), (0, 2)), constant_values=NO_TARGET)
    assert loss(source, *longer).item() == pytest.approx(loss(source, written, targets).item(), rel=gamma(64, FLOAT32))


def test_a_student_of_a_sure_teacher_with_one_logit_answers_like_it():
    teacher, student = (LSTMClassifier(LSTMShape(9, 4, 4, masked=True), recipe_named("float32"), seed) for seed in range(2))
    ids, labels = np.int32([[5, 6, 7], [0, 8, 5]]), np.int32([0, 1])
    loss = loss_of_student(student, teacher, temperature=1.0, soft=1.0)
    p, q = (1 / (1 + np.exp(-model(ids).data.astype(np.float64))) for model in (teacher, student))
    exact = np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    assert loss(ids, labels).item() == pytest.approx(exact, abs=gamma(64, FLOAT32))


def test_texts_of_another_length_are_filled_up():
    ids, labels, targets = with_hidden((np.full((2, 3), 5, np.int32), np.int32([0, 1])), np.full((4, 5), 6, np.int32), 3, (1, 2, 3),
                                       9)
    assert (ids.shape, labels.shape, targets.shape) == ((5, 5), (2,), (3, 5))
    assert (ids[:2, 3:] == PAD).all()
    assert (targets != NO_TARGET).any()


def test_labels_that_are_left_out_stay_out(text):
    run = started("bert", "", text)
    task, = run.data.tasks
    assert len(task.train) == 12
    assert {e.target for e in task.train} == set(task.classes)
    assert sorted([e.source for e in task.train] + list(run.data.unlabelled)) == sorted(WORDS)
    drawn = {e.source for step in range(40) for e in run.data.mixture.batch(4, (0, step, 0))}
    assert drawn == {e.source for e in task.train}
    assert {e.source for e in started("bert", "", text, seed=1).data.tasks[0].train} != {e.source for e in task.train}


def test_members_share_the_data_and_not_the_beginning(text):
    run = started("bert", "augment-swap,ensemble", text, members=3)
    follow(run, quiet=True)
    states = [member.state_dict()["head.weight"].tobytes() for member in run.result.members]
    assert len(set(states)) == 3
    p = mean_probabilities(run.result.members, run.data.reader.ids(WORDS[:4]))
    assert np.abs(p.sum(-1) - 1).max() <= gamma(8, FLOAT32)


def test_a_checkpoint_holds_what_is_attached(text, tmp_path):
    train(options("gpt", "prune,ema", text), tmp_path / "run", quiet=True)
    arrays, _ = read_state(tmp_path / "run" / "state.safetensors")
    kinds = {key.split("/")[1] + "/" + key.split("/")[2] for key in arrays if key.startswith("attached/")}
    assert kinds == {"pruner/mask", "average/mean", "average/count"}


@pytest.mark.parametrize("argv", [("--steps", 8), ()], ids=["further", "no further"])
def test_what_has_ended_as_another_model_does_not_go_on(argv, text, tmp_path, say):
    train(options("gpt", "ema", text), tmp_path / "run", quiet=True)
    assert "has ended with --strategy ema" in refused(say("train", "--resume", tmp_path / "run", *argv))


def test_a_table_sets_each_strategy_beside_none(text, tmp_path, monkeypatch):
    monkeypatch.setattr("minillm.experiments.compare.experiments", lambda jobs, *_: [made_up(options) for options, _ in jobs])
    chosen = [options("bert", strategy, text) for strategy in ("", "joint", "joint,prune")]
    result = compare(["float32", "int8-qat"], chosen, 2, tmp_path, quiet=True)
    assert [(r["strategy"], r["recipe"]) for r in result["rows"]] \
        == [(s, r) for s in ("", "joint", "joint,prune") for r in ("float32", "int8-qat")]
    assert result["rows"][0]["ranges"]["first"]["accuracy"] == [0.25, 0.5]
    assert len(set(result["figures"])) == 7


def made_up(options):
    """What a worker would say, with a score that tells seeds apart."""
    sizes = {"weights": 1, "gradients": 1, "optimizer": 1, "activations": 1}
    return {"model": options.model, "strategy": options.strategy, "recipe": options.recipe, "val_loss": 1.0, "diverged_at": None,
            "unigram_loss": 2.0, "metrics": {"first": {"accuracy": 0.25 * (1 + options.seed % 2)}}, "skipped_steps": 0,
            "zero_gradient_share": 0.0, "learned_steps": 0, "bytes": sizes, "stored_bytes": sizes, "seconds": 1.0,
            "records": [{"step": 1, "loss": 1.0, "loss_scale": 1.0}]}


@pytest.mark.parametrize(("argv", "says"), [
    (("--model", "bert", "--strategy", "pretrian"), "unknown strategy 'pretrian': did you mean 'pretrain'?"),
    (("--model", "lstm", "--strategy", "joint"), "--strategy joint is not for --model lstm: choose --model bert"),
    (("--strategy", "augment"), "--strategy augment is not for --model gpt: choose --model bert or lstm"),
    (("--model", "ngram", "--strategy", "ema"), "--strategy ema is not for --model ngram"),
    (("--model", "bert", "--strategy", "ema", "ema"), "names a strategy twice"),
    (("--model", "bert", "--strategy", "distill", "joint"), "exclude each other"),
    (("--strategy", "prune", "prune-2:4"), "exclude each other"),
    (("--model", "bert", "--strategy", "self-train"), "say by --labels how many are"),
    (("--model", "bert", "--task", "first", "--labels", 2), "2 labels of 27 in 3 classes"),
    (("--model", "bert", "--task", "first", "--labels", 100), "100 labels of 27"),
    (("--labels", 50), "only classifications have labels to leave out"),
    (("--strategy", "ensemble", "--members", 1), "--members is 1: it must be at least 2"),
    (("--strategy", "prune", "--sparsity", 1), "--sparsity is 1.0: it must lie in 0 ... 1, 1 excluded"),
    (("--strategy", ""), "it is empty"),
    (("--strategy", "prune-2:4", "--sparsity", 0.7), "with 2:4 at most 0.5")])
def test_what_cannot_be_is_one_line_and_nothing_is_written(say, tmp_path, argv, says):
    assert says in refused(say("train", "--out", tmp_path / "run", *argv))
    assert not (tmp_path / "run").exists()


def test_defaults_name_strategies_in_the_run_folder():
    chosen = dataclasses.replace(TrainOptions(), strategy="prune-2:4, ema")
    assert chosen.strategies == ["prune-2:4", "ema"]
    assert train_module.default_out(chosen).name == "pydoc-prune-24-ema-float32-1337"


def test_a_bar_hands_on_what_it_counts():
    assert list(bar(2, "two", True)(iter([1, 2]))) == [1, 2]
