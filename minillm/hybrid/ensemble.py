"""Several models as one: their probabilities averaged, at the cost of all of them, or their weights, at the cost of one."""
import math
from collections.abc import Callable

import numpy as np

from minillm.autograd.tensor import Tensor
from minillm.data.special import BEGIN
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32
from minillm.hybrid.callbacks import after_each
from minillm.models.answering import Writer, beam, greedy
from minillm.models.gpt import choose
from minillm.models.lstm import LSTMClassifier
from minillm.nn import Module
from minillm.rounding import round_to, widen
from minillm.training.trainer import Trainer

BATCH = 32                 # windows at once
TINY = np.float32(1e-38)   # what a probability of 0 counts as: a logarithm has to be finite


def mean_probabilities(models: list[Module], *inputs: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """The mean over the models of softmax(logits / temperature), in float32: of a GPT ids (B,T) -> (B,T,V).

    A single logit, as an LSTM has for two classes, is one beside 0: (B,) -> (B,2).
    """
    check_alike(models)
    total = np.float32(0)
    for model in models:
        with model.ops.context.no_record():
            model.ops.context.begin(0)
            logits = widen(model(*inputs).data, np.float32) / np.float32(temperature)        # (B,T,V) f32
        if logits.ndim == 1:
            logits = np.stack([np.zeros_like(logits), logits], 1)                            # (B,2) f32
        p = np.exp(logits - logits.max(-1, keepdims=True))
        total = total + p / p.sum(-1, keepdims=True, dtype=np.float32)
    return total / np.float32(len(models))


def check_alike(models: list[Module]) -> None:
    """MiniLLMError for no model at all, and for models whose vocabulary or context differs."""
    shapes = {(model.shape.vocabulary, getattr(model.shape, "context", None)) for model in models}
    if len(shapes) != 1:
        raise MiniLLMError(f"models of (vocabulary, context) {sorted(shapes)} make no ensemble: give one or more that are alike")


class Ensemble:
    """Models whose probabilities are averaged, to be evaluated like one; it is not trained."""

    def __init__(self, members: list[Module]):
        check_alike(members)
        self.members, self.shape, self.ops, self.criterion = members, members[0].shape, members[0].ops, members[0].criterion

    def __call__(self, *inputs: np.ndarray) -> Tensor:
        """Logits of the mean: its logarithm, or of a single logit how much likelier 1 is than 0."""
        log_p = np.log(mean_probabilities(self.members, *inputs) + TINY)
        return Tensor(log_p[:, 1] - log_p[:, 0] if self.single else log_p, FLOAT32)

    @property
    def single(self) -> bool:
        """Whether the members have one logit for two classes."""
        return isinstance(self.members[0], LSTMClassifier) and self.shape.classes == 2

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """(B,K) float32, of classifiers."""
        return np.log(mean_probabilities(self.members, ids) + TINY)

    def generate(self, ids: np.ndarray, tokens: int, temperature: float = 1.0, top_k: int = 0, seed: int = 0) -> np.ndarray:
        """As a GPT's, without a cache."""
        ids, rng, T = [int(i) for i in ids], np.random.default_rng(seed), self.shape.context
        for _ in range(tokens):
            p = mean_probabilities(self.members, np.array([ids[-T:]], np.int32))[0, -1]      # (V,) f32
            ids.append(choose(np.log(p + TINY), temperature, top_k, rng))
        return np.array(ids, np.int32)

    def greedy(self, source: np.ndarray) -> np.ndarray:
        """As a GPT's: answers (B,T) to sources (B,S) of one length."""
        return greedy(*self.writer(source), self.shape.context)

    def beam(self, source: np.ndarray, width: int = 4) -> np.ndarray:
        return beam(*self.writer(np.tile(source, (width, 1))), self.shape.context)

    def writer(self, source: np.ndarray) -> tuple[Writer, np.ndarray]:
        return Rereader(self, ()), np.column_stack([source, np.full(len(source), BEGIN, np.int32)])


class Rereader(Writer):
    """The same without a cache: for each token all is read anew."""

    ids: np.ndarray | None = None

    def after(self, ids: np.ndarray) -> np.ndarray:
        self.ids = ids if self.ids is None else np.column_stack([self.ids, ids])
        return self.forward(self.ids).data[:, -1]

    def keep(self, rows: np.ndarray) -> None:
        self.ids = self.ids[rows]


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

    def state(self) -> dict[str, np.ndarray]:
        """What a checkpoint has to hold for the mean to go on."""
        return {"count": np.int32(self.count)} | {f"mean/{name}": a for name, a in self.mean.items()}

    def load(self, state: dict[str, np.ndarray]) -> None:
        self.count = int(state["count"])
        self.mean = {name.removeprefix("mean/"): a for name, a in state.items() if name.startswith("mean/")}

    def model(self) -> Module:
        """A model of the mean; MiniLLMError before the first step."""
        if not self.count:
            raise MiniLLMError(f"there is no mean before step {self.begin}, where it begins: train longer")
        return with_weights(self.source, self.mean)
