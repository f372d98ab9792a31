"""A tiny GPT, its batch, and what one step of it gives: where many tests start."""
import dataclasses

import numpy as np

from minillm.autograd.tensor import backward
from minillm.models.gpt import GPT, GPTShape
from minillm.optim import AdamW
from minillm.precision.loss_scaling import LossScaler
from minillm.precision.recipe import Recipe
from minillm.recipes import PRESETS
from minillm.training.trainer import Objective

SHAPE = GPTShape(vocabulary=19, layers=2, heads=4, channels=32, context=16, bias=True)


def recipe_of(recipe: Recipe | str, **changes) -> Recipe:
    """A recipe, or the preset of this name, with some fields changed."""
    return dataclasses.replace(PRESETS[recipe] if isinstance(recipe, str) else recipe, **changes)


def make(recipe: Recipe | str = "float32", seed: int = 3, **shape) -> GPT:
    return GPT(dataclasses.replace(SHAPE, **shape), recipe_of(recipe), seed)


def batch(rows: int = 4, seed: int = 0, shape: GPTShape = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Random ids and targets (rows,T)."""
    text = np.random.default_rng(seed).integers(0, shape.vocabulary, (rows, shape.context + 1), np.int32)
    return text[:, :-1], text[:, 1:]


def gradients(recipe: Recipe | str, scale: float = 1.0, rows: int = 4) -> dict[str, np.ndarray]:
    """The raw gradients of loss * scale, as backward returns them."""
    model = make(recipe)
    model.ops.context.begin(0)
    return backward(model.loss(*batch(rows)) * scale)


def objective_of(model: GPT, scaler: LossScaler | None = None) -> Objective:
    """What the trainer trains: the model, AdamW as its recipe says, a loss scaler."""
    recipe = model.ops.recipe
    optimizer = AdamW([*model.parameters(), *model.ops.learned.values()], eps=recipe.eps,
                      state_format=recipe.optimizer_state, update=recipe.update, seed=model.ops.context.seed)
    return Objective(model.loss, model.ops, optimizer, scaler or LossScaler(recipe.loss_scaling))


def bits_of(arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    """Arrays by name as bytes: equal only if every bit is."""
    return {name: a.dtype.str.encode() + a.tobytes() for name, a in arrays.items()}


def state_bits(objective: Objective) -> dict[str, bytes]:
    """Every bit that training moves: weights, moments, and how many updates there were."""
    optimizer = objective.optimizer
    arrays = {name: p.data for name, p in optimizer.parameters.items()}
    arrays |= {f"{slot} of {name}": a for slot, named in optimizer.state.items() for name, a in named.items()}
    return bits_of(arrays) | {"steps": str(optimizer.steps).encode()}
