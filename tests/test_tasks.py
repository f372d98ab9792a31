"""Tasks: what holds for each of them, and one clear line for a set of examples that is none."""
from collections import Counter
from functools import cache

import pytest

from minillm.data.tasks import TASKS, Example, Task, load_task
from minillm.errors import MiniLLMError

GENERATED = ("translation",)
loaded = cache(load_task)


@pytest.mark.parametrize("name", GENERATED)
def test_a_task_is_a_pure_function_of_its_seed_and_trains_nothing_that_is_held_out(name):
    task, same, other = loaded(name, 0), load_task(name), load_task(name, 1)
    assert task == same
    assert task.name == name
    assert (task.train, task.held_out) != (other.train, other.held_out)
    trained = {example.source for example in task.train}
    assert not any(example.source in trained for example in task.held_out)


# name: longest source, longest target, and the largest share of held-out examples that one constant answer may match
SIZES = {"translation": (48, 42, 0.001)}


@pytest.mark.parametrize("name", GENERATED)
def test_sizes_and_what_a_constant_answer_reaches_are_as_stated(name):
    task, (source, target, constant) = loaded(name, 0), SIZES[name]
    both = task.train + task.held_out
    assert max(len(example.source) for example in both) == source
    assert max(len(example.target) for example in both) == target
    answer, _ = Counter(example.target for example in task.train).most_common(1)[0]
    assert sum(example.target == answer for example in task.held_out) <= constant * len(task.held_out)
    assert not set("\0\1\2\3") & set("".join(example.source + example.target for example in both))     # the special characters


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


def test_every_task_in_the_table_is_tested():
    assert set(TASKS) == set(GENERATED)
