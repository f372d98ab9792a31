"""What several models know, put into one: it learns their probabilities beside the text. Hinton et al. 2015, arXiv 1503.02531."""
import numpy as np

from minillm.autograd.context import PLAIN, Context
from minillm.autograd.rule import RULES
from minillm.autograd.tensor import Tensor, apply
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32
from minillm.hybrid.ensemble import check_alike, mean_probabilities
from minillm.nn import Module
from minillm.training.trainer import Trainer


def distill(student: Module, teachers: list[Module], trainer: Trainer, temperature: float = 2.0, soft: float = 0.5) -> None:
    """Have the student's trainer lower soft T^2 KL(teachers || student) + (1 - soft) cross-entropy, under any recipe.

    The probabilities of both are taken at the temperature T; T^2 keeps the size of the gradient. Teachers are only asked:
    nothing of theirs is recorded or trained. MiniLLMError where vocabularies or contexts differ.
    """
    if not temperature > 0 or not 0 <= soft <= 1:
        raise MiniLLMError(f"temperature {temperature} and a share {soft} of soft targets: above 0, and from 0 to 1")
    check_alike([student, *teachers])

    def loss(ids: np.ndarray, targets: np.ndarray) -> Tensor:
        logits, p = student(ids), mean_probabilities(teachers, ids, temperature)
        far = divergence(student.ops.cast(logits, FLOAT32), p, temperature, student.ops.context)
        hard = student.ops.cast(student.ops.cross_entropy(logits, targets), FLOAT32)
        return far * (soft * temperature**2) + hard * (1 - soft)

    trainer.objective.loss = loss


def divergence(logits: Tensor, p: np.ndarray, temperature: float, context: Context = PLAIN) -> Tensor:
    """The mean over rows of KL(p || softmax(logits / temperature)) in nats, for float32 logits and probabilities (..., V)."""
    rows = p.size // p.shape[-1]
    log_q = apply(RULES["log_softmax"], logits * (1 / temperature), context=context)
    entropy = -(p * np.log(np.where(p > 0, p, np.float32(1)))).sum(dtype=np.float32).item() / rows
    return (log_q * Tensor(p, FLOAT32)).sum() * (-1 / rows) - entropy
