"""Linear least squares by SGD, weights kept in several ways: so small that nothing but the writing of weights can go wrong."""
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from minillm.autograd.tensor import Tensor
from minillm.formats import BFLOAT16, FLOAT32, Format
from minillm.optim import SGD
from minillm.rounding import round_to, widen


class Way(NamedTuple):
    """How weights are kept: the format of what is updated, of the copy that products see, and how an update is written."""

    parameters: Format
    working: Format
    update: str = "nearest_even"


WAYS = {
    "float32": Way(FLOAT32, FLOAT32), "master weights": Way(FLOAT32, BFLOAT16), "kahan": Way(BFLOAT16, BFLOAT16, "kahan"),
    "stochastic": Way(BFLOAT16, BFLOAT16, "stochastic"), "nearest": Way(BFLOAT16, BFLOAT16),
}


class Problem(NamedTuple):
    """Rows x (N,C), targets y (N,), both f32."""

    x: np.ndarray
    y: np.ndarray

    def loss(self, w: np.ndarray) -> float:
        """The mean squared error."""
        return float(np.square(self.x @ w - self.y).mean(dtype=np.float32))

    def gradient(self, w: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Of the mean squared error of some rows, (C,) f32."""
        x = self.x[rows]
        return (x @ w - self.y[rows]) @ x * np.float32(2 / len(rows))


def make_problem(N: int = 1024, C: int = 16, noise: float = 0.01, seed: int = 0) -> Problem:
    """Normal rows, normal true weights, targets with noise: no weights reach a loss much below noise^2."""
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((N, C), np.float32), rng.standard_normal(C, np.float32)
    return Problem(x, x @ w + np.float32(noise) * rng.standard_normal(N, np.float32))


def descend(problem: Problem, way: Way, steps: int = 2000, lr: float = 0.003, batch: int = 32, seed: int = 0,
            every: int = 20) -> dict[str, list]:
    """SGD from 0 without momentum: {"steps": ..., "loss": ...}, the loss being that of the copy which products see."""
    w = Tensor(round_to(np.zeros(problem.x.shape[1], np.float32), way.parameters), way.parameters, name="w")
    optimizer, draw = SGD([w], momentum=0.0, update=way.update, seed=seed), np.random.default_rng((seed, 1))
    record = {"steps": [], "loss": []}
    for step in range(steps):
        copy = widen(round_to(w.data, way.working), np.float32)              # (C,) on the working format's grid
        if step % every == 0 or step == steps - 1:
            record["steps"].append(step)
            record["loss"].append(problem.loss(copy))
        optimizer.step({"w": problem.gradient(copy, draw.integers(0, len(problem.y), batch))}, lr, attempt=step)
    return record


def least_squares(ways: Mapping[str, Way] = WAYS, **how) -> dict[str, dict[str, list]]:
    """The record of each way, on the same problem and the same batches; `how` goes to descend."""
    problem = make_problem()
    return {name: descend(problem, way, **how) for name, way in ways.items()}
