"""Models that learn tasks, from the command line: train, evaluate, go on, and all that can be wrong with the input."""
import json

import numpy as np
import pytest
from test_cli import assert_one_line

from minillm.data import tasks as tasks_module
from minillm.data.mixing import Mixture
from minillm.data.special import BEGIN, END, NO_TARGET, PAD
from minillm.data.tasks import Example, Task
from minillm.data.tokenizers import CharTokenizer
from minillm.errors import MiniLLMError
from minillm.training.readers import ContinuationReader, LabelReader, PairReader, of_like_length

WORDS = [f"{a}{b}{c}" for a in "abc" for b in "abc" for c in "abc"]


def task(name, score, change, sign, train, held_out, **more):
    """Pairs of a sign with a word, and what `change` makes of the word."""
    def parts(words):
        return tuple(Example(f"{sign} {word}", change(word)) for word in words)

    return Task(name, parts(train), parts(held_out), (score,), **more)


COPY = task("copy", "exact_match", str, ">", WORDS[:20], WORDS[20:])
REVERSE = task("reverse", "exact_match", lambda word: word[::-1], "<", WORDS[:10], WORDS[20:])
CLASSES = task("first", "accuracy", lambda word: word[0], "", map(" ".join, WORDS), map(" ".join, WORDS[::4]),
               classes=("a", "b", "c"), unit="word")
SIZE = ("--layers", "1", "--heads", "2", "--channels", "16", "--batch", "8", "--context", "16", "--quiet", "--json")


@pytest.fixture(autouse=True)
def tasks(monkeypatch):
    """Three tiny tasks in place of the real ones."""
    for name in list(tasks_module.TASKS):
        monkeypatch.delitem(tasks_module.TASKS, name)
    for task in (COPY, REVERSE, CLASSES):
        monkeypatch.setitem(tasks_module.TASKS, task.name, lambda seed, task=task: task)


def test_a_task_is_learned_evaluated_and_gone_on_with(say, tmp_path):
    run = tmp_path / "run"
    code, out, err = say("train", "--model", "seq2seq", "--task", "copy", "--steps", 60, "--lr", 0.01, "--out", run, *SIZE)
    assert (code, err) == (0, "")
    assert json.loads(out)["val_loss"] < 1.2                                  # letters drawn from three, and the end: log 4 is 1.39
    code, out, err = say("evaluate", run, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)["metrics"]
    assert found.keys() == {"copy"}
    assert found["copy"]["examples"] == 7
    code, out, _ = say("train", "--resume", run, "--steps", 62, "--quiet", "--json")
    assert (code, json.loads(out)["steps"]) == (0, 62)


def test_a_gpt_answers_too_and_learns_a_task_after_a_text(say, tmp_path):
    text, run, tuned = tmp_path / "text", tmp_path / "run", tmp_path / "tuned"
    text.write_text("> abc abc\n" * 300)
    for tokenizer, code in (("char", 2), ("bpe", 0)):
        how = ("--tokenizer", tokenizer, "--vocab", 256, "--steps", 2, "--force")
        assert say("train", "--text", text, *how, "--out", run, *SIZE)[0] == 0
        found, _, err = say("train", "--from", run, "--task", "copy", "--steps", 60, "--lr", 0.01, "--out", tuned, "--quiet")
        assert (found, "no sign for where an answer begins" in err) == (code, code == 2)
    assert json.loads(say("evaluate", tuned, "--json")[1])["metrics"].keys() == {"copy"}
    assert set(json.loads(say("sample", tuned, "--prompt", "> abc", "--quiet", "--json")[1])["text"]) <= set("abc")
    code, *_ = say("train", "--from", tuned, "--text", text, "--steps", 2, "--out", tmp_path / "back", "--quiet", "--json")
    assert (code, json.loads((tmp_path / "back" / "config.json").read_text())["options"]["task"]) == (0, "")


@pytest.mark.parametrize("strategy", ["prune-structure", "ensemble", "distill"])
def test_a_gpt_that_learns_a_task_follows_strategies(say, tmp_path, strategy):
    run = tmp_path / "run"
    how = ("--strategy", strategy, "--members", 2, "--steps", 4, "--context", 24)
    assert say("train", "--task", "copy,reverse", "--out", run, *SIZE, *how)[0] == 0
    assert json.loads(say("evaluate", run, "--json")[1])["metrics"].keys() == {"copy", "reverse"}
    for beam in (1, 2):
        assert say("sample", run, "--prompt", "copy: > abc", "--beam", beam, "--quiet")[0] == 0


def test_several_tasks_in_one_model_have_scores_of_their_own(say, tmp_path):
    code, *_ = say("train", "--model", "seq2seq", "--task", "copy,reverse", "--sampling", "2", "--steps", 2, "--out",
                   tmp_path / "run", *SIZE)
    assert code == 0
    assert json.loads(say("evaluate", tmp_path / "run", "--json")[1])["metrics"].keys() == {"copy", "reverse"}


def test_loss_weights_change_what_is_learned_from_the_same_batches(say, tmp_path):
    def losses(*more):
        run, tasks = tmp_path / f"run{len(more)}", ("--task", "copy,reverse")
        argv = ("train", "--model", "seq2seq", *tasks, "--accumulate", 2, "--steps", 3, "--out", run, *more, *SIZE)
        assert say(*argv)[0] == 0
        return [json.loads(line).get("loss") for line in (run / "metrics.jsonl").read_text().splitlines()]

    plain, weighted = losses(), losses("--loss-weights", "1,5")
    assert plain[0] != weighted[0]
    assert plain[2] != weighted[2]


@pytest.mark.parametrize("model", ["bert", "lstm"])
@pytest.mark.parametrize("recipe", ["float32", "float16-mixed", "bfloat16-mixed", "int8-qat"])
def test_a_classifier_learns_the_class(say, tmp_path, recipe, model):
    code, *_ = say("train", "--model", model, "--task", "first", "--steps", 60, "--warmup", 5, "--lr", 0.01, "--recipe", recipe,
                   "--out", tmp_path / "run", *SIZE)
    assert code == 0
    assert json.loads(say("evaluate", tmp_path / "run", "--json")[1])["metrics"]["first"]["accuracy"] == 1


@pytest.mark.parametrize(("argv", "says"), [
    (("--model", "seq2sec"), "unknown model 'seq2sec'"),
    (("--model", "seq2seq", "--task", "copi"), "unknown task 'copi'"),
    (("--task", "first"), "--model gpt cannot learn first: choose --model bert or lstm\n"),
    (("--task", "copy", "--context", "8"), "a text of copy has 9 tokens, the context is 8: give --context 9"),
    (("--task", "copy", "--text", __file__), "a run learns from one of them, drop the other"),
    (("--model", "seq2seq", "--task", ""), "it is empty"),
    (("--model", "seq2seq", "--task", "first"), "--model seq2seq cannot learn first: choose --model bert or lstm\n"),
    (("--model", "bert", "--task", "copy"), "--model bert cannot learn copy: choose --model gpt or seq2seq\n"),
    (("--model", "seq2seq", "--task", "copy,copy"), "names a task twice"),
    (("--model", "bert", "--task", "first", "--context", "1"), "a context of 1 has no room for a word of first"),
    (("--model", "ngram", "--task", "copy"), "--model ngram cannot learn copy: choose --model gpt or seq2seq\n"),
    (("--model", "seq2seq", "--task", "copy", "--context", "4"), "a text of copy has 5 tokens, the context is 4: give --context 5"),
    (("--model", "seq2seq", "--task", "copy", "--sampling", "-1"), "sampling is '-1'"),
    (("--model", "seq2seq", "--task", "copy,reverse", "--loss-weights", "1"), "for 2 tasks: give one for each"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_be_is_said_in_one_line(say, tmp_path, argv, says):
    code, out, err = say("train", "--out", tmp_path / "run", *argv)
    assert (code, out) == (2, "")
    assert_one_line(err)
    assert says in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("model", "task", "prompt", "answers"), [
    ("gpt", "copy", "> abc", None), ("seq2seq", "copy", "> abc", None),
    ("bert", "first", "a b c", {"a", "b", "c"}), ("lstm", "first", "b b c", {"a", "b", "c"})])
def test_a_run_on_a_task_answers_is_converted_and_inspected(say, tmp_path, model, task, prompt, answers):
    run = tmp_path / "run"
    assert say("train", "--model", model, "--task", task, "--steps", 3, "--out", run, *SIZE)[0] == 0
    for argv in ((), ("--weights", "int8"), *[("--beam", 3)] * (task == "copy")):
        code, out, err = say("sample", run, "--prompt", prompt, "--quiet", "--json", *argv)
        assert (code, err) == (0, "")
        assert answers is None or json.loads(out)["text"] in answers
    for method in ("rtn", "gptq", "smoothquant", *["full-integer"] * (model == "gpt")):
        code, out, err = say("quantize", run, "--method", method, "--out", tmp_path / method, "--quiet", "--json")
        assert (code, err) == (0, "")
        found = json.loads(say("evaluate", tmp_path / method, "--quiet", "--json")[1])["metrics"]
        assert found.keys() == {task}
        assert abs(json.loads(out)["val_loss"] - json.loads(out)["val_loss_float32"]) < 0.05
    assert say("inspect", run, "--out", tmp_path, "--quiet", "--json")[0] == 0
    if model != "gpt":
        code, _, err = say("quantize", run, "--method", "full-integer", "--out", tmp_path / "whole", "--quiet")
        assert (code, "full-integer is for a gpt" in err) == (2, True)
    wrong = [((), "this model answers a text"), (("--prompt", prompt, "--beam", 0), "--beam is 0"),
             (("--prompt", prompt, "--int8-cache"), "this one answers: drop it")]
    if task == "copy":
        wrong += [(("--prompt", "> " + 9 * "abc", "--beam", width), "larger --context") for width in (1, 2)]
    for argv, says in wrong:
        code, _, err = say("sample", run, *argv, "--quiet")
        assert (code, says in err) == (2, True)


def test_an_ngram_model_is_counted_kept_and_sampled(say, tmp_path):
    text = tmp_path / "text"
    text.write_text("abracadabra " * 50)
    run = tmp_path / "run"
    size = ("--text", text, "--context", 8)
    code, out, err = say("train", "--model", "ngram", "--order", 4, *size, "--out", run, "--quiet", "--json")
    assert (code, err) == (0, "")
    loss = json.loads(out)["val_loss"]
    assert json.loads(say("evaluate", run, "--json")[1])["metrics"]["language_model"]["val_loss"] == loss < 1
    assert "abracadabra" in json.loads(say("sample", run, "--prompt", "abra", "--tokens", 30, "--quiet", "--json")[1])["text"]
    for argv in (("quantize", run, "--out", tmp_path / "q"), ("compare", "--models", "ngram", *size),
                 ("train", "--from", run, "--out", tmp_path / "other"), ("train", "--resume", run), ("inspect", run)):
        code, _, err = say(*argv, "--quiet")
        assert code == 2, argv
        assert_one_line(err)
    code, _, err = say("train", "--model", "ngram", "--order", 5000, *size, "--out", tmp_path / "long")
    assert (code, "hold no 5000-gram" in err, (tmp_path / "long").exists()) == (2, True, False)


# --- batches

def test_a_mixture_draws_tasks_by_size_evenly_or_by_temperature():
    big, small = [Example("b", "")] * 900, [Example("s", "")] * 100
    for sampling, share in (("size", 0.1), ("uniform", 0.5), ("2", 1 / (1 + 3))):      # 900^(1/2) is 30, 100^(1/2) is 10
        drawn = [e.source for step in range(16) for e in Mixture([big, small], sampling).batch(64, (0, step, 0))]
        found = drawn.count("s") / len(drawn)
        assert abs(found - share) < 5 * (share * (1 - share) / len(drawn)) ** 0.5, sampling           # 5 deviations


def test_a_batch_is_a_function_of_its_key():
    mixture = Mixture([[Example(str(n), "") for n in range(64)]])
    assert mixture.batch(8, (1, 5, 0)) == mixture.batch(8, (1, 5, 0)) != mixture.batch(8, (2, 5, 0))


def test_a_pair_reader_moves_the_answer_by_one_and_leaves_padding_out():
    reader = PairReader(CharTokenizer("\0\1\2\3abc"), 8)
    source, ids, targets = reader.batch([Example("ab", "c"), Example("c", "ab")])
    assert source.tolist() == [[4, 5], [6, PAD]]
    assert ids.tolist() == [[BEGIN, 6, END], [BEGIN, 4, 5]]
    assert targets.tolist() == [[6, END, NO_TARGET], [4, 5, END]]
    assert reader.text(np.array([4, 5, END, PAD])) == "ab"


def test_a_continuation_reader_asks_for_the_answer_and_for_nothing_before_it():
    reader = ContinuationReader(CharTokenizer("\0\1\2\3abc"), 8)
    ids, targets = reader.batch([Example("ab", "c"), Example("c", "ab"), Example("a", "")])
    assert ids.tolist() == [[4, 5, BEGIN, 6], [6, BEGIN, 4, 5], [4, BEGIN, END, PAD]]
    assert targets.tolist() == [[NO_TARGET, NO_TARGET, 6, END], [NO_TARGET, 4, 5, END], [NO_TARGET, END, NO_TARGET, NO_TARGET]]


def test_a_label_reader_cuts_long_texts():
    reader = LabelReader(CharTokenizer("\0\1\2\3abc"), 3, ("no", "yes"))
    ids, labels = reader.batch([Example("abc", "yes"), Example("c", "no")])
    assert (ids.tolist(), labels.tolist()) == ([[BEGIN, 4, 5], [BEGIN, 6, PAD]], [1, 0])


def test_answers_come_in_the_order_of_the_sources():
    sources = ["x" * (n % 7) + str(n) for n in range(600)]
    for same in (False, True):
        seen = []

        def answer(texts, seen=seen):
            seen.append({len(text) for text in texts})
            return [text.upper() for text in texts]

        assert of_like_length(sources, answer, same) == [text.upper() for text in sources]
        assert (max(map(len, seen)) == 1) is same


def test_a_temperature_is_a_positive_number():
    with pytest.raises(MiniLLMError, match="sampling is 'much'"):
        Mixture([[Example("a", "")]], "much")
