"""Objectives small enough to work out by hand: a loss of a few numbers, and plain SGD, whose update at lr 1 is the gradient."""
import numpy as np
from tiny_gpt import recipe_of

from minillm.autograd.tensor import Tensor
from minillm.formats import FLOAT32
from minillm.optim import SGD
from minillm.precision.loss_scaling import NO_SCALING, LossScaler
from minillm.training.trainer import Objective


def constant(values) -> Tensor:
    return Tensor(np.asarray(values, np.float32), FLOAT32)


def by_hand(loss, parameters: dict, recipe="float32", scaling=NO_SCALING) -> Objective:
    """An objective of loss(ops, parameters, *batch) over float32 leaves, without momentum and decay."""
    ops = recipe_of(recipe).bind(0)
    leaves = {name: Tensor(np.array(values, np.float32), FLOAT32, name=name) for name, values in parameters.items()}
    return Objective(lambda *batch: loss(ops, leaves, *batch), ops, SGD(leaves.values(), momentum=0.0), LossScaler(scaling))


def dot(ops, p: dict, x) -> Tensor:
    """The mean over rows of x w, x (rows,n), w (n,): its gradient is the mean of the rows."""
    return ops.mean(ops.sum(ops.mul(constant(x), p["w"]), axis=-1))


def values(objective: Objective) -> dict[str, list]:
    """The weights as they are now."""
    return {name: p.data.tolist() for name, p in objective.optimizer.parameters.items()}
