"""Validation loss: the mean over every non-overlapping window, in nats a token."""
import math

import numpy as np

from minillm.autograd.rule import RULES
from minillm.autograd.tensor import Tensor, apply
from minillm.data.batches import window_batches
from minillm.formats import FLOAT32
from minillm.models.gpt import GPT
from minillm.rounding import widen

EVALUATION_BATCH = 32      # windows at once; the loss does not depend on it beyond float32's last digits


def validation_loss(model: GPT, ids: np.ndarray) -> tuple[float, int]:
    """(nats a token, tokens) over ids (n,), computed in the model's recipe up to the logits; the loss itself in float32.

    Not finite where the model's logits are not. Raises MiniLLMError for fewer ids than one window.
    """
    total, tokens = [], 0
    with model.ops.context.no_record():
        for i, (inputs, targets) in enumerate(window_batches(ids, EVALUATION_BATCH, model.shape.context)):
            model.ops.context.begin(0, i)
            logits = Tensor(widen(model(inputs).data, np.float32), FLOAT32)                  # (B,T,V) f32
            total.append(apply(RULES["cross_entropy"], logits, targets).item() * targets.size)
            tokens += targets.size
    return math.fsum(total) / tokens if all(map(math.isfinite, total)) else math.nan, tokens
