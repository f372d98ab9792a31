"""Validation loss: the mean over every non-overlapping window, or over every example, in nats a token."""
import math
from collections.abc import Iterable

import numpy as np

from minillm.autograd.tensor import Tensor
from minillm.data.batches import window_batches
from minillm.data.special import NO_TARGET
from minillm.formats import FLOAT32
from minillm.models.gpt import GPT
from minillm.nn import Module
from minillm.precision.recipe import Recipe
from minillm.rounding import widen

PLAIN = Recipe("float32").bind()                           # a loss that says how good a model is is not rounded by its recipe
EVALUATION_BATCH = 32      # windows at once; the loss does not depend on it beyond float32's last digits


def validation_loss(model: GPT, ids: np.ndarray) -> tuple[float, int]:
    """(nats a token, tokens) over ids (n,). Raises MiniLLMError for fewer ids than one window."""
    return mean_loss(model, window_batches(ids, EVALUATION_BATCH, model.shape.context))


def mean_loss(model: Module, batches: Iterable[tuple]) -> tuple[float, int]:
    """(nats a target, targets) over batches, computed in the model's recipe up to the logits; the loss itself in float32.

    Not finite where the model's logits are not.
    """
    total, tokens = [], 0
    with model.ops.context.no_record(), PLAIN.context.no_record():
        for i, (*inputs, targets) in enumerate(batches):
            PLAIN.context.begin(0, i)
            model.ops.context.begin(0, i)
            logits = Tensor(widen(model(*inputs).data, np.float32), FLOAT32)                 # (B,T,V) f32
            count = int((targets != NO_TARGET).sum())
            total.append(model.criterion(PLAIN, logits, targets).item() * count)
            tokens += count
    return math.fsum(total) / tokens if all(map(math.isfinite, total)) else math.nan, tokens
