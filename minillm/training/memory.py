"""How many bytes a recipe takes: weights, gradients, optimizer state, and what the graph holds for the backward pass."""
from collections.abc import Callable

import numpy as np

from minillm.autograd.tensor import Node, Tensor, topological
from minillm.autograd.watching import watch
from minillm.formats import Format
from minillm.training.trainer import Objective


def owner(array):
    """The array whose memory this one shows."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def held_buffers(loss: Tensor) -> dict[int, np.ndarray]:
    """Distinct buffers of floating values that the graph behind a loss keeps alive, by identity."""
    found = {}
    for node in topological(loss.node):
        for value in node.kept.values() if isinstance(node, Node) else ():
            if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                found[id(owner(value))] = owner(value)
    return found


def format_bytes(format: Format | None, array: np.ndarray) -> int:
    """Bytes in the number format itself."""
    return format.nbytes(array.size) if format else array.nbytes


def stored_bytes(format: Format | None, array: np.ndarray) -> int:
    """Bytes of an array that holds it here: more, where a format is simulated."""
    return array.size * np.dtype(format.storage).itemsize if format else array.nbytes


def measure(objective: Objective, batch: tuple) -> dict[str, dict[str, int]]:
    """{"bytes": ..., "stored_bytes": ...} by role for one micro-batch: in the format's own bits, and as held here.

    They differ where a format is simulated (bfloat16 in float32 arrays). Casts of weights count as weights.
    """
    formats, alive = {}, []

    def remember(event):
        alive.append(owner(event.rounded))                   # kept, so that no other array can take its identity
        formats[id(alive[-1])] = event.format

    objective.ops.context.begin(0)
    with watch(remember):
        loss = objective.loss(*batch)
    sizes = {"bytes": format_bytes, "stored_bytes": stored_bytes}
    return {name: by_role(objective, loss, formats, size) for name, size in sizes.items()}


def by_role(objective: Objective, loss: Tensor, formats: dict, size: Callable) -> dict[str, int]:
    """Bytes by role, each array measured by size(format, array)."""
    parameters, optimizer = list(objective.optimizer.parameters.values()), objective.optimizer
    casts = [cast for _, cast in objective.ops.context.leaf_casts.values()]
    weights = {id(owner(t.data)): size(t.format, t.data) for t in (*parameters, *casts)}
    return {
        "weights": sum(weights.values()),
        "gradients": sum(size(objective.ops.recipe.gradients, p.data) for p in parameters),
        "optimizer": sum(size(optimizer.format_of(slot, name), a) for slot, state in optimizer.state.items()
                         for name, a in state.items()),
        "activations": sum(size(formats.get(i), a) for i, a in held_buffers(loss).items() if i not in weights),
    }
