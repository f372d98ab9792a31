"""Tasks: pairs of texts, what is given and what is wanted, in a part to train on and one that training never sees."""
from collections.abc import Callable
from dataclasses import dataclass

from minillm.data.reviews import reviews
from minillm.errors import unknown


@dataclass(frozen=True)
class Example:
    """What is given, and what is wanted: a text, or in a classification the name of a class."""

    source: str
    target: str


@dataclass(frozen=True)
class Task:
    """A name, examples in two parts, and which scores say how well it is done, the one that counts first.

    `classes`: the names that a target can have; none where the target is a text. `unit`: what its models read, "char" or "word".
    """

    name: str
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    scores: tuple[str, ...]
    classes: tuple[str, ...] = ()
    unit: str = "char"


def classes_task(name: str, make: Callable[[int], tuple[list, list]], classes: tuple[str, ...], unit: str) -> Callable[[int], Task]:
    """A classification made from what `make(seed)` gives: (text, class) pairs to train on, and held-out ones."""
    def task(seed: int) -> Task:
        parts = (tuple(Example(*pair) for pair in part) for part in make(seed))
        return Task(name, *parts, ("f1", "accuracy", "precision", "recall"), classes, unit)
    return task


TASKS: dict[str, Callable[[int], Task]] = {
    "reviews": classes_task("reviews", reviews, ("negative", "positive"), "word"),
}


def load_task(name: str, seed: int = 0) -> Task:
    """One of the tasks in the table TASKS, drawn from a seed; MiniLLMError for a name that is not there."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name](seed)
