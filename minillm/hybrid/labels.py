"""What it is to have few labels: some of a task's examples, all of its classes."""
from collections.abc import Sequence

import numpy as np

from minillm.data.tasks import Example
from minillm.errors import MiniLLMError


def few_labels(examples: Sequence[Example], number: int, seed: int = 0) -> list[Example]:
    """`number` of the examples in random order, one of each class among them; MiniLLMError where that cannot be."""
    order = np.random.default_rng((seed, number)).permutation(len(examples))
    first = {examples[i].target: i for i in reversed(order)}                   # where each class stands first
    if not len(first) <= number <= len(examples):
        raise MiniLLMError(f"{number} labels of {len(examples)} examples in {len(first)} classes: ask for one of each class or "
                           "more, and for no more than there are")
    chosen = {*first.values()}
    chosen.update([i for i in order if i not in chosen][:number - len(chosen)])
    return [examples[i] for i in order if i in chosen]
