"""Heads, channels and whole layers taken away, chosen by the loss that each costs: what is left is smaller, and faster.

A head or a channel is gone when the matrix behind it (attention.out, mlp.down) no longer reads it; so columns of zeros there say
what its loss would be, before any array is cut. Michel et al. 2019, arXiv 1905.10650, remove heads in this way.
"""
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from minillm.autograd.tensor import Tensor
from minillm.errors import MiniLLMError
from minillm.models.gpt import GPT, PrunedShape

Kept = list[tuple[np.ndarray, np.ndarray]]       # of each block: which heads (H,) and which MLP channels (hidden,), bool
KINDS = ("head", "channels", "layer")


@dataclass(frozen=True, eq=False)
class Part:
    """Something to take away: heads and channels of a block; a layer is all heads of its attention, or all channels of its MLP."""

    name: str
    kind: str
    block: int
    heads: slice
    channels: slice


@dataclass
class Structure:
    """What came of it: a smaller model, its loss and that before, what each part alone would cost, what went and the loss then."""

    model: GPT
    before: float
    after: float
    costs: dict[str, float]
    removed: list[tuple[str, float]] = field(default_factory=list)


def prune_structure(model: GPT, batches: list[tuple], budget: float = 0.05, group: int = 32, limits: dict[str, int] | None = None,
                    at_once: int = 4) -> Structure:
    """Take away heads, groups of MLP channels and layers, those that cost least for their weights first, while the budget lasts.

    budget: by how much the loss on the batches may rise, in nats; infinity for none. limits: how many heads ("head") and channels
    ("channels") may go, and how many parts that are whole layers ("layer"); without them, all that the budget pays for. Costs are
    measured anew after each `at_once` parts. The model itself is left as it was; the new one has its recipe.
    """
    limits = dict.fromkeys(KINDS, math.inf) | (limits or {})
    if not budget >= 0 or group < 1 or at_once < 1 or limits.keys() - set(KINDS):
        raise MiniLLMError(f"a budget of {budget} nats, groups of {group}, {at_once} at once, limits of {[*limits]}: give a budget "
                           f"from 0, groups and numbers from 1, limits of {', '.join(KINDS)}")
    search = Search(model, batches, limits)
    kept, parts = everything(model), parts_of(model, group)
    before = now = search.loss(kept)
    found = Structure(model, before, before, {})
    while candidates := [part for part in parts if search.possible(kept, [part])]:
        costs = {part: search.loss(without(kept, [part])) - now for part in candidates}
        found.costs = found.costs or {part.name: cost for part, cost in costs.items()}
        candidates.sort(key=lambda part: costs[part] / search.weights(kept, part))
        taken = search.affordable(kept, candidates[:at_once], before + budget)
        if not taken:
            break
        kept = without(kept, taken)
        now = search.loss(kept)
        found.removed += [(part.name, now) for part in taken]
    found.model, found.after = narrowed(model, kept), now
    return found


class Search:
    """Losses of a model without some of its parts."""

    def __init__(self, model: GPT, batches: list[tuple], limits: dict[str, float]):
        self.model, self.batches, self.limits, self.begin = model, batches, limits, everything(model)

    def loss(self, kept: Kept) -> float:
        """The mean over the batches, with columns of zeros where nothing is kept."""
        context, total = self.model.ops.context, 0.0
        writers = [(w, w.data, columns) for w, columns in writing(self.model, kept)]
        try:
            for w, data, columns in writers:
                w.data = np.where(columns, data, data.dtype.type(0))
            with context.no_record():
                for number, batch in enumerate(self.batches):
                    context.begin(0, number)
                    total += self.model.loss(*batch).item()
        finally:
            for w, data, _ in writers:
                w.data = data
        return total / len(self.batches)

    def possible(self, kept: Kept, parts: list[Part]) -> bool:
        """Whether each of these parts has something left to take, and the limits allow it."""
        after = without(kept, parts)
        gone = {"head": lost(self.begin, after, 0), "channels": lost(self.begin, after, 1),
                "layer": sum(not left.any() for pair in after for left in pair)}
        return all(self.weights(kept, part) for part in parts) and all(gone[kind] <= self.limits[kind] for kind in KINDS)

    def affordable(self, kept: Kept, parts: list[Part], most: float) -> list[Part]:
        """As many of the first parts as limits and loss allow, by halves."""
        while parts and not (self.possible(kept, parts) and self.loss(without(kept, parts)) <= most):
            parts = parts[:len(parts) // 2]
        return parts

    def weights(self, kept: Kept, part: Part) -> int:
        """How many weights a part still has: query, key, value and out of each head, up and down of each channel."""
        (heads, channels), C = kept[part.block], self.model.shape.channels
        return int(heads[part.heads].sum()) * 4 * C * (C // self.model.shape.heads) + int(channels[part.channels].sum()) * 2 * C


def writing(model: GPT, kept: Kept) -> Iterator[tuple[Tensor, np.ndarray]]:
    """The weights by which each attention and MLP writes to the residual stream, and which of their columns are kept.

    A bias is kept until the last column goes.
    """
    for block, (heads, channels) in zip(model.blocks, kept, strict=True):
        last = [(block.attention.out, np.repeat(heads, model.shape.channels // model.shape.heads))] if block.attention else []
        for layer, columns in last + ([(block.mlp.down, channels)] if block.mlp else []):
            yield layer.weight, columns
            if layer.bias is not None:
                yield layer.bias, columns.any()


def everything(model: GPT) -> Kept:
    return [(np.ones(H, bool), np.ones(hidden, bool)) for H, hidden in model.shape.widths]


def parts_of(model: GPT, group: int) -> list[Part]:
    """Every head, every group of channels, every attention and every MLP."""
    none, everyone, parts = slice(0), slice(None), []
    for i, (H, hidden) in enumerate(model.shape.widths):
        parts += [Part(f"block{i}.head{h}", "head", i, slice(h, h + 1), none) for h in range(H)]
        parts += [Part(f"block{i}.channels{c}", "channels", i, none, slice(c, c + group)) for c in range(0, hidden, group)]
        parts += [Part(f"block{i}.attention", "layer", i, everyone, none), Part(f"block{i}.mlp", "layer", i, none, everyone)]
    return parts


def without(kept: Kept, parts: list[Part]) -> Kept:
    """The same without some parts."""
    kept = [(heads.copy(), channels.copy()) for heads, channels in kept]
    for part in parts:
        heads, channels = kept[part.block]
        heads[part.heads], channels[part.channels] = False, False
    return kept


def lost(before: Kept, after: Kept, which: int) -> int:
    """How many heads (0) or channels (1) went."""
    return sum(int(b[which].sum() - a[which].sum()) for b, a in zip(before, after, strict=True))


def narrowed(model: GPT, kept: Kept) -> GPT:
    """A new model of what is kept, its arrays cut out of the model's."""
    shape = {f.name: getattr(model.shape, f.name) for f in dataclasses.fields(model.shape)}
    shape["kept"] = tuple((int(heads.sum()), int(channels.sum())) for heads, channels in kept)
    new = type(model)(PrunedShape(**shape), model.ops.recipe, model.ops.context.seed)
    state, D = model.state_dict(), model.shape.channels // model.shape.heads
    for i, (heads, channels) in enumerate(kept):
        for part, rows, columns, keep in ((f"block{i}.attention.", ("query", "key", "value"), "out", np.repeat(heads, D)),
                                          (f"block{i}.mlp.", ("up",), "down", channels)):
            for name in [f"{part}{row}.{kind}" for row in rows for kind in ("weight", "bias")]:
                if name in state:
                    state[name] = state[name][keep]
            if (name := f"{part}{columns}.weight") in state:
                state[name] = state[name][:, keep]
    new.load_state_dict({name: state[name] for name in new.state_dict()})
    return new
