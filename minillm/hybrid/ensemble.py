"""Several models as one: their probabilities averaged, at the cost of all of them, or their weights, at the cost of one."""
import math
from collections.abc import Callable

import numpy as np

from minillm.errors import MiniLLMError
from minillm.hybrid.callbacks import after_each
from minillm.nn import Module
from minillm.rounding import round_to, widen
from minillm.training.trainer import Trainer

BATCH = 32                 # windows at once


def mean_probabilities(models: list[Module], ids: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """The mean over the models of softmax(logits / temperature), computed in float32: ids (B,T) -> (B,T,V)."""
    check_alike(models)
    total = np.float32(0)
    for model in models:
        with model.ops.context.no_record():
            model.ops.context.begin(0)
            logits = widen(model(ids).data, np.float32) / np.float32(temperature)            # (B,T,V) f32
        total = total + softmax(logits)
    return total / np.float32(len(models))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, float32."""
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True, dtype=np.float32)


class Committee:
    """Several classifiers, of any kinds, that answer as one, by the mean of their probabilities."""

    def __init__(self, models: list[Module]):
        classes = {model.shape.classes for model in models}
        if len(classes) != 1:
            raise MiniLLMError(f"classifiers of {sorted(classes)} classes make no ensemble: give one or more that are alike")
        self.models = models

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """The logarithms of mean probabilities: ids (B,T) -> (B,K) float32, as a classifier gives logits."""
        total = np.float32(0)
        for model in self.models:
            total = total + softmax(model.logits(ids))                                       # (B,K) f32
        with np.errstate(divide="ignore"):
            return np.log(total / np.float32(len(self.models)))


def check_alike(models: list[Module]) -> None:
    """MiniLLMError for no model at all, and for models whose vocabulary or context differs."""
    shapes = {(model.shape.vocabulary, model.shape.context) for model in models}
    if len(shapes) != 1:
        raise MiniLLMError(f"models of (vocabulary, context) {sorted(shapes)} make no ensemble: give one or more that are alike")


def scores(models: list[Module], inputs: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """(nats a token, accuracy) of the averaged probabilities, over windows of inputs (n,) that stand before targets (n,)."""
    check_alike(models)
    T = models[0].shape.context
    if len(inputs) < T or len(inputs) != len(targets):
        raise MiniLLMError(f"{len(inputs)} inputs and {len(targets)} targets: as many of both, at least {T}")
    end, losses, right = len(inputs) // T * T, [], 0
    inputs, targets = inputs[:end].reshape(-1, T), targets[:end].reshape(-1, T)
    for at in range(0, len(inputs), BATCH):
        p, wanted = mean_probabilities(models, inputs[at:at + BATCH]), targets[at:at + BATCH]
        losses.append(-np.log(np.take_along_axis(p, wanted[..., None], -1)).sum(dtype=np.float32).item())
        right += int((p.argmax(-1) == wanted).sum())
    return math.fsum(losses) / end, right / end


# one model of averaged weights

def soup(models: list[Module]) -> Module:
    """A model whose weights are the means of theirs. Wortsman et al. 2022, arXiv 2203.05482: for models with a common beginning."""
    check_alike(models)
    if len({model.shape for model in models}) != 1:
        raise MiniLLMError("weights of models of different shapes have no mean: average their probabilities")
    parameters = [{p.name: widen(p.data, np.float32) for p in model.parameters()} for model in models]
    means = {name: sum(each[name] for each in parameters) / np.float32(len(models)) for name in parameters[0]}
    return with_weights(models[0], means)


def greedy_soup(models: list[Module], loss: Callable[[Module], float]) -> tuple[Module, list[int]]:
    """The soup of the best model and of each further one that does not raise the loss, and who is in it. Ibid., recipe 1."""
    order = sorted(range(len(models)), key=lambda i: loss(models[i]))
    chosen, best = order[:1], loss(models[order[0]])
    for i in order[1:]:
        if (found := loss(soup([models[j] for j in (*chosen, i)]))) <= best:
            chosen, best = [*chosen, i], found
    return soup([models[i] for i in chosen]), chosen


def with_weights(model: Module, weights: dict[str, np.ndarray]) -> Module:
    """A model like this one with other weights (float32, by name), each rounded once into its parameter's format."""
    new = type(model)(model.shape, model.ops.recipe, model.ops.context.seed)
    formats = {p.name: p.format for p in model.parameters()}
    new.load_state_dict(model.state_dict() | {name: round_to(w, formats[name]) for name, w in weights.items()})
    new.ops.learned.update(model.ops.learned)
    return new


class Average:
    """The running mean of a model's weights while it trains, in float32: exponential, or of all steps since `begin` alike.

    With a decay it is mean += (1 - decay) (weight - mean); without, every weight counts the same, as in stochastic weight
    averaging (Izmailov et al. 2018, arXiv 1803.05407). It looks each `every` updates.
    """

    def __init__(self, model: Module, trainer: Trainer, decay: float | None = None, begin: int = 0, every: int = 1):
        if not (decay is None or 0 <= decay < 1) or every < 1 or begin < 0:
            raise MiniLLMError(f"a mean with decay {decay} from step {begin}, every {every}: decay 0 to below 1, every from 1")
        self.source, self.trainer, self.decay, self.begin, self.every = model, trainer, decay, begin, every
        self.mean, self.count = {}, 0
        after_each(trainer, self)

    def __call__(self, gradients: dict) -> None:
        step = self.trainer.step
        if step < self.begin or (step - self.begin) % self.every:
            return
        self.count += 1
        share = np.float32(1 / self.count if self.decay is None or self.count == 1 else 1 - self.decay)
        for p in self.source.parameters():
            w = widen(p.data, np.float32)
            self.mean[p.name] = self.mean[p.name] + share * (w - self.mean[p.name]) if self.count > 1 else w.copy()

    def model(self) -> Module:
        """A model of the mean; MiniLLMError before the first step."""
        if not self.count:
            raise MiniLLMError(f"there is no mean before step {self.begin}, where it begins: train longer")
        return with_weights(self.source, self.mean)
