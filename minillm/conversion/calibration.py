"""What goes into each linear layer of a model, over batches of text: what every conversion but the plainest wants to know."""
from collections.abc import Iterable

import numpy as np

from minillm.errors import MiniLLMError
from minillm.nn.module import Module
from minillm.rounding import widen

MOST_ROWS = 4096           # kept of each layer's inputs: 64 windows of 64 tokens


def calibrate(model: Module, batches: Iterable[tuple]) -> dict[str, np.ndarray]:
    """The inputs (n,K) float32 of every linear layer by its weight's name, for batches of inputs and, last, targets.

    At most 4,096 rows of each, spread evenly. MiniLLMError where there are no batches, or an input is not finite.
    """
    seen: dict[str, list] = {}
    linear = model.ops.linear

    def recording(x, weight, bias=None, **static):
        seen.setdefault(weight.name, []).append(widen(x.data, np.float32).reshape(-1, x.shape[-1]))
        return linear(x, weight, bias, **static)

    model.ops.linear = recording
    try:
        with model.ops.context.no_record():
            for number, (*inputs, _) in enumerate(batches):
                model.ops.context.begin(0, number)
                model(*inputs)
    finally:
        model.ops.linear = linear
    if not seen:
        raise MiniLLMError("there is no text to calibrate with: give at least one window")
    return {name: some_rows(name, np.concatenate(parts)) for name, parts in seen.items()}


def some_rows(name: str, rows: np.ndarray) -> np.ndarray:
    """At most MOST_ROWS of them, evenly spread."""
    if not np.isfinite(rows).all():
        raise MiniLLMError(f"the inputs of {name} are not finite on the calibration text: this model has diverged")
    return rows[np.linspace(0, len(rows) - 1, min(MOST_ROWS, len(rows))).astype(np.int64)]
