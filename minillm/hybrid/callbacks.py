"""More than one thing to do after an update."""
from collections.abc import Callable

from minillm.training.trainer import Trainer


def after_each(trainer: Trainer, call: Callable[[dict], None]) -> None:
    """Have a trainer call this after each update, too, behind whatever it calls already."""
    first = trainer.after_step

    def both(gradients: dict) -> None:
        first(gradients)
        call(gradients)

    trainer.after_step = both if first else call
