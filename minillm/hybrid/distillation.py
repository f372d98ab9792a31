"""What several models know, put into one: it learns their probabilities beside the text. Hinton et al. 2015, arXiv 1503.02531."""
import numpy as np

from minillm.autograd.context import PLAIN, Context
from minillm.autograd.rule import RULES
from minillm.autograd.tensor import Tensor, apply
from minillm.data.special import NO_TARGET
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

    def loss(*batch: np.ndarray) -> Tensor:
        *inputs, targets = batch
        logits, p = student(*inputs), mean_probabilities(teachers, *inputs, temperature=temperature)
        wide = beside_zero(student.ops.cast(logits, FLOAT32))
        far = divergence(wide, p, temperature, student.ops.context, targets != NO_TARGET)
        hard = student.ops.cast(student.criterion(student.ops, logits, targets), FLOAT32)
        return far * (soft * temperature**2) + hard * (1 - soft)

    trainer.objective.loss = loss


def beside_zero(logits: Tensor) -> Tensor:
    """A single logit z of two classes, (B,), as the two (-z/2, z/2), whose softmax is the same; others as they are."""
    return logits.reshape(-1, 1) * Tensor(np.float32([-0.5, 0.5]), FLOAT32) if len(logits.shape) == 1 else logits


def divergence(logits: Tensor, p: np.ndarray, temperature: float, context: Context = PLAIN,
               counts: np.ndarray | None = None) -> Tensor:
    """The mean over rows of KL(p || softmax(logits / temperature)) in nats, for float32 logits and probabilities (..., V).

    counts: which rows do, bool (...); all, unless given.
    """
    if counts is not None:
        p = p * counts[..., None].astype(np.float32)
    rows = int(counts.sum()) if counts is not None else p.size // p.shape[-1]
    log_q = apply(RULES["log_softmax"], logits * (1 / temperature), context=context)
    entropy = -(p * np.log(np.where(p > 0, p, np.float32(1)))).sum(dtype=np.float32).item() / rows
    return (log_q * Tensor(p, FLOAT32)).sum() * (-1 / rows) - entropy
