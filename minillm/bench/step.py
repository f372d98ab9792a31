"""A whole training step of two models under three recipes, next to PyTorch eager: time, bytes held for backward, peak memory."""
import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minillm import kernels
from minillm.bench import peers, torch_gpt
from minillm.bench.by_hand import ByHand
from minillm.bench.measure import rows
from minillm.bench.side_by_side import Process, started, times
from minillm.errors import MiniLLMError
from minillm.models.gpt import GPT, GPTShape
from minillm.optim import AdamW
from minillm.precision.loss_scaling import LossScaler
from minillm.recipes import recipe_named
from minillm.training.memory import measure
from minillm.training.trainer import Objective, training_step

MODELS = {"A": (GPTShape(65, 4, 4, 128, 64, bias=True), 12), "B": (GPTShape(65, 4, 4, 256, 256, bias=True), 8)}     # 0.81 M, 3.2 M
RECIPES = ("float32", "float16-mixed", "bfloat16-mixed")
BY_HAND = {"float32": np.float32, "float16-mixed": np.float16}       # the same kernels, called without autograd
PEERS = {"torch-float32": "", "torch-autocast-float16": "float16", "torch-autocast-bfloat16": "bfloat16"}


def batch_of(shape: GPTShape, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and targets (B,T) int32, at random."""
    return tuple(np.random.default_rng(0).integers(0, shape.vocabulary, (2, batch, shape.context), np.int32))


def objective_of(shape: GPTShape, recipe: str) -> tuple[GPT, Objective]:
    """A model that has not been trained, and its loss and optimizer."""
    recipe = recipe_named(recipe)
    model = GPT(shape, recipe)
    optimizer = AdamW(model.parameters(), (0.9, 0.99), recipe.eps, 0.1, recipe.optimizer_state, recipe.update)
    return model, Objective(model.loss, model.ops, optimizer, LossScaler(recipe.loss_scaling))


class Stepper:
    """Our training step under a recipe, again and again."""

    def __init__(self, shape: GPTShape, batch: int, recipe: str):
        self.batch, self.made = batch_of(shape, batch), 0
        self.model, self.objective = objective_of(shape, recipe)

    def __call__(self) -> float:
        self.made += 1
        return training_step(self.objective, [self.batch], self.made - 1, 1e-4).loss

    def held(self) -> int:
        """Bytes that the graph of one forward pass keeps for the backward pass."""
        return measure(self.objective, self.batch)["bytes"]["activations"]


def compared(recipe: str) -> tuple[str, ...]:
    """With whom a recipe is compared: PyTorch's float32; one of 16 bits also with PyTorch's of 16 bits, and with our float32.

    And, where there is one, with the same step by hand.
    """
    others = ("torch-float32",) if recipe == "float32" else (*PEERS, "ours-float32")
    return (*others, f"by-hand-{recipe}") if recipe in BY_HAND else others


def calls(pool: str, shape: dict, batch: int) -> dict[str, Callable]:
    """Steps of one model in one pool: ours by recipe and by hand, PyTorch's by peer; all begin with the same weights."""
    shape = GPTShape(**shape)
    data = batch_of(shape, batch)
    if pool == "torch":
        torch, (model, _) = peers.torch(), objective_of(shape, "float32")
        return {peer: torch_gpt.training_step(torch, model, *data, autocast) for peer, autocast in PEERS.items()}
    steppers = {recipe: Stepper(shape, batch, recipe) for recipe in RECIPES}
    hands = {recipe: ByHand(steppers[recipe].model, low) for recipe, low in BY_HAND.items()} if kernels.enabled() else {}
    return steppers | {f"by-hand-{recipe}": functools.partial(hand, *data, lr=1e-4) for recipe, hand in hands.items()}


def one_model(processes: Sequence[Process], name: str, shape: GPTShape, batch: int, threads: int, seconds: float,
              resident: bool) -> list[dict]:
    """All recipes and all peers on one model, taken in turn."""
    taken = times(processes, "step", threads, seconds, least=3, shape=dataclasses.asdict(shape), batch=batch)
    taken["ours-float32"] = taken["float32"]
    result = []
    for recipe in RECIPES:
        against = {peer: taken[peer] for peer in compared(recipe) if peer in taken}
        peak = peak_of(shape, batch, recipe, threads) if resident else None
        result += rows(f"{name}-{recipe}", (batch, shape.context), threads, taken[recipe], against, batch * shape.context,
                       "tokens/s", Stepper(shape, batch, recipe).held(), resident=peak)
    return result


def step(threads: int, quiet: bool = False, models: dict = MODELS, seconds: float = 40.0, resident: bool = True) -> list[dict]:
    """Rows for every model and recipe: shape (B,T), about `seconds` for a model; with `resident`, peak memory is measured too."""
    found = []
    with started("ours", "torch") as processes:
        for name, (shape, batch) in tqdm(models.items(), "step", disable=quiet, leave=False):
            found += one_model(processes, name, shape, batch, threads, seconds, resident)
    return found


def peak_of(shape: GPTShape, batch: int, recipe: str, threads: int) -> int | None:
    """The most memory that a process takes which makes three steps and does nothing else, in bytes."""
    what = json.dumps({"shape": dataclasses.asdict(shape), "batch": batch, "recipe": recipe})
    done = subprocess.run([sys.executable, "-m", __name__, what], capture_output=True, text=True,
                          env=os.environ | dict.fromkeys(("NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)))
    if done.returncode:
        raise MiniLLMError(f"a process that trains under {recipe} to measure its memory ended with {done.returncode}: "
                           f"{done.stderr.strip().rpartition(chr(10))[2]}")
    return json.loads(done.stdout)


def peak_resident() -> int | None:
    """The most memory that this process ever had, in bytes; None where the system does not say."""
    status = Path("/proc/self/status")               # getrusage would give the parent's peak, where that was higher
    lines = status.read_text("ascii").splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def main(shape: dict, batch: int, recipe: str) -> None:
    """Three steps in a process of its own; prints its peak."""
    stepper = Stepper(GPTShape(**shape), batch, recipe)
    for _ in range(3):
        stepper()
    print(json.dumps(peak_resident()))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
