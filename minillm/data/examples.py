"""What a task is made of: pairs of texts in two parts, and what makes a set of them no task."""
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from minillm.errors import MiniLLMError

UNITS = ("char", "word")


@dataclass(frozen=True)
class Example:
    """What is given, and what is wanted: a text, or in a classification the name of a class."""

    source: str
    target: str


@dataclass(frozen=True)
class Task:
    """A name, examples in two parts, and which scores say how well it is done, the one that counts first.

    `classes`: the names that a target can have; none where the target is a text. `unit`: what its models read, "char" or "word".
    MiniLLMError for a part without examples, a label outside the classes, a class without an example to train on, another unit.
    """

    name: str
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    scores: tuple[str, ...]
    classes: tuple[str, ...] = ()
    unit: str = "char"

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise MiniLLMError(f"task {self.name!r} is read by {self.unit!r}; a unit is {' or '.join(UNITS)}")
        for part, examples in (("train", self.train), ("held_out", self.held_out)):
            if not examples:
                raise MiniLLMError(f"task {self.name!r} has no examples in {part}; give it one or more")
        if self.classes:
            self._check_labels()

    def _check_labels(self) -> None:
        """Every label is one of the classes, and every class can be learned."""
        for example in (*self.train, *self.held_out):
            if example.target not in self.classes:
                raise MiniLLMError(f"task {self.name!r} labels {example.source[:40]!r} as {example.target!r}, which is none of its "
                                   f"classes {', '.join(self.classes)}; correct the label or add the class")
        if empty := sorted(set(self.classes) - {example.target for example in self.train}):
            raise MiniLLMError(f"class {empty[0]!r} of task {self.name!r} has no example to train on; add some or drop the class")


def distinct(draw: Callable[[], Example], number: int, trained: Iterable[Example] = ()) -> tuple[Example, ...]:
    """That many examples from `draw`, no source twice and none that is trained already."""
    known, found = {example.source for example in trained}, {}
    while len(found) < number:
        example = draw()
        if example.source not in known:
            found[example.source] = example
    return tuple(found.values())
