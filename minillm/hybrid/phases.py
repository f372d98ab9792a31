"""How one of several phases of training goes: a model, its batches, and the one trainer."""
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from minillm.autograd.tensor import Tensor
from minillm.errors import MiniLLMError
from minillm.nn import Module
from minillm.optim import AdamW, Optimizer
from minillm.precision.loss_scaling import LossScaler
from minillm.training.trainer import Objective, Schedule, Trainer


def adamw(parameters: list[Tensor], ops) -> Optimizer:
    """AdamW as a recipe says."""
    recipe = ops.recipe
    return AdamW(parameters, eps=recipe.eps, state_format=recipe.optimizer_state, update=recipe.update, seed=ops.context.seed)


@dataclass(frozen=True)
class Phase:
    """A schedule, how many examples a batch has, a seed for what is drawn, and what makes the optimizer of (parameters, ops)."""

    schedule: Schedule
    batch: int = 32
    seed: int = 0
    optimizer: Callable[..., Optimizer] = adamw

    def trainer(self, model: Module, batch: Callable[[tuple], tuple], targets: Callable[..., int] | None = None) -> Trainer:
        """A trainer of the model's loss on batch((seed, step, micro-batch)); `targets` as in Objective."""
        def drawn(step: int, micro: int) -> tuple:
            return batch((self.seed, step, micro))

        if model.ops.recipe.quantizers:
            with model.ops.context.no_record():
                model.loss(*drawn(0, 0))                     # a dry forward pass makes what quantizers learn
        optimizer = self.optimizer([*model.parameters(), *model.ops.learned.values()], model.ops)
        return Trainer(Objective(model.loss, model.ops, optimizer, LossScaler(model.ops.recipe.loss_scaling), targets), drawn,
                       self.schedule)


def finish(trainer: Trainer, shown: Callable[[Iterable[dict]], Iterable[dict]] = iter) -> list[dict]:
    """Train to the end and give the records, which pass through `shown`, a progress bar; MiniLLMError where training diverges."""
    records = list(shown(trainer.run()))
    if trainer.diverged_at:
        raise MiniLLMError(f"training diverged at step {trainer.diverged_at} ({trainer.blame}): lower the learning rate, or take "
                           "another recipe")
    return records
