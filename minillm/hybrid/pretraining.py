"""Unsupervised pre-training: an encoder first learns to guess hidden words of texts without labels. Devlin et al. 2018."""
import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from minillm.data.batches import random_rows
from minillm.data.special import NO_TARGET
from minillm.errors import MiniLLMError
from minillm.hybrid.masking import masked
from minillm.hybrid.phases import Phase, finish
from minillm.models.bert import Encoder, EncoderClassifier, EncoderShape, MaskedLanguageModel
from minillm.nn import Module
from minillm.rounding import round_to, widen
from minillm.training.trainer import Trainer

Hide = Callable[..., tuple[np.ndarray, np.ndarray]]


def pretrain(model: EncoderClassifier, texts: np.ndarray, phase: Phase, hide: Hide = masked,
             shown: Callable[[Iterable[dict]], Iterable[dict]] = iter) -> list[dict]:
    """Teach the model's encoder to guess hidden words of texts (N,T), under its recipe: the records of that training.

    The heads of the model stay as they are, and its supervised training is still to come. `hide`: `masked`, or what else says from
    (ids, key, vocabulary) what is seen and what is asked. `shown`: what the records pass through, a progress bar.
    """
    language_model = language_model_of(model)
    records = finish(masked_trainer(language_model, texts, phase, hide), shown)
    carry_over(language_model, model)
    return records


def language_model_of(model: EncoderClassifier) -> MaskedLanguageModel:
    """A masked language model that begins with the encoder of a classifier."""
    check_encoder(model)
    fields = {f.name: getattr(model.shape, f.name) for f in dataclasses.fields(EncoderShape)}
    language_model = MaskedLanguageModel(EncoderShape(**fields), model.ops.recipe, model.ops.context.seed)
    carry_over(model, language_model)
    return language_model


def check_encoder(model: Module) -> None:
    if not isinstance(model, Encoder):
        raise MiniLLMError(f"{type(model).__name__} is no encoder and cannot guess hidden words: take --model bert")


def masked_trainer(model: MaskedLanguageModel, texts: np.ndarray, phase: Phase, hide: Hide = masked) -> Trainer:
    """Trains a model to guess words hidden anew in each batch of texts (N,T)."""
    def batch(key: tuple) -> tuple:
        return hide(random_rows((texts,), phase.batch, key)[0], (*key, 1), model.shape.vocabulary)

    return phase.trainer(model, batch, lambda ids, targets: int((targets != NO_TARGET).sum()))


def carry_over(source: Module, target: Module) -> list[str]:
    """Give a model the weights of another that both have by name, rounded into its own format; returns their names.

    MiniLLMError for shapes that differ, and where they have no weight in common.
    """
    own, others = ({p.name: p for p in model.parameters()} for model in (target, source))
    names = sorted(own.keys() & others.keys())
    if wrong := [name for name in names if own[name].shape != others[name].shape] or (not names and ["all of them"]):
        raise MiniLLMError(f"weights of {type(source).__name__} do not fit into {type(target).__name__}: {wrong[0]} differs; take "
                           "models of the same shape")
    for name in names:
        own[name].data = round_to(widen(others[name].data, np.float32), own[name].format)
    return names
