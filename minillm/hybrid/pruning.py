"""Weights taken away one by one while a model trains: the smallest, or those that training moves towards zero.

A matrix keeps its shape, so that nothing gets faster by itself; 2:4, two zeros in each four neighbours, is what some tensor cores
skip. Whole heads and channels, which leave smaller arrays, are in minillm.hybrid.structure.
"""
import numpy as np

from minillm.errors import MiniLLMError, unknown
from minillm.hybrid.callbacks import after_each
from minillm.nn import Linear, Module
from minillm.optim import Optimizer
from minillm.rounding import widen
from minillm.training.trainer import Trainer

PATTERNS = ("any", "2:4")
SCORES = ("magnitude", "movement")


def prune(model: Module, trainer: Trainer, sparsity: float = 0.5, pattern: str = "any", score: str = "magnitude", begin: int = 0,
          end: int | None = None, every: int = 10) -> "Pruner":
    """Have a trainer that has not begun take away a share `sparsity` of each linear layer's weights as it goes, and keep it so.

    The share grows from 0 at step `begin` to all of it at `end` (half of the steps, unless given), anew every `every`
    steps. pattern: "any", or "2:4": at most two of four neighbours of a row. score: what stays is what is largest ("magnitude"),
    or what training has moved away from zero ("movement": Sanh et al. 2020, arXiv 2005.07683). MiniLLMError for what cannot be.
    """
    end = end or max(trainer.schedule.steps // 2, begin + 1)
    for name, value, known in (("pattern", pattern, PATTERNS), ("score", score, SCORES)):
        if value not in known:
            raise unknown(name, value, known)
    if not 0 <= sparsity < 1 or (pattern == "2:4" and sparsity > 0.5):
        raise MiniLLMError(f"a sparsity of {sparsity} is not possible: from 0 to below 1, with 2:4 at most 0.5")
    if not 0 <= begin < end <= trainer.schedule.steps or every < 1:
        raise MiniLLMError(f"pruning from step {begin} to {end}, every {every}, does not fit into {trainer.schedule.steps} steps: "
                           "begin before the end, and end with them at the latest")
    pruner = Pruner(model, trainer, sparsity, pattern, score, begin, end, every)
    after_each(trainer, pruner)
    return pruner


def cubic(step: int, begin: int, end: int, final: float, initial: float = 0.0) -> float:
    """The share that is taken away at a step: fast first, while there is much to spare. Zhu and Gupta 2017, arXiv 1710.01878."""
    left = 1 - min(max((step - begin) / (end - begin), 0), 1)
    return final + (initial - final) * left**3


class Pruner:
    """Called after each update: takes weights away when it is time, and sets those that are away to 0, with their moments."""

    def __init__(self, model: Module, trainer: Trainer, sparsity: float, pattern: str, score: str, begin: int, end: int,
                 every: int):
        self.trainer, self.sparsity, self.pattern, self.score = trainer, sparsity, pattern, score
        self.begin, self.end, self.every = begin, end, every
        self.weights = {value.name: value for _, owner, key, value in model.walk() if isinstance(owner, Linear) and key == "weight"}
        for name, w in self.weights.items():
            if pattern == "2:4" and w.shape[1] % 4:
                raise MiniLLMError(f"{name} has rows of {w.shape[1]} weights, which do not part into fours: take the pattern any")
        self.masks = {name: np.ones(w.shape, bool) for name, w in self.weights.items()}
        if score == "movement":
            self.moved = {name: np.zeros(w.shape, np.float32) for name, w in self.weights.items()}
            self.before = {name: w.data.copy() for name, w in self.weights.items()}  # of what is away: what it was last

    def __call__(self, gradients: dict) -> None:
        step = self.trainer.step + 1
        if self.score == "movement":
            self.follow(gradients)
        if self.begin <= step <= self.end and (step % self.every == 0 or step == self.end):
            share = cubic(step, self.begin, self.end, self.sparsity)
            for name, w in self.weights.items():
                self.masks[name] = largest(self.scores(name), share, self.pattern)
                if self.score == "movement":
                    w.data = self.before[name]                                       # what comes back is what it was
        self.hold()

    def follow(self, gradients: dict) -> None:
        """Add -gradient times weight, for one that is away the weight that it was: positive where a step grows its size."""
        for name, w in self.weights.items():
            gradient = widen(gradients[name], np.float32) / np.float32(self.trainer.objective.scaler.scale)
            self.moved[name] -= gradient * widen(self.before[name], np.float32)
            self.before[name] = np.where(self.masks[name], w.data, self.before[name])

    def scores(self, name: str) -> np.ndarray:
        """Of each weight, the higher the rather it stays."""
        return self.moved[name] if self.score == "movement" else np.abs(widen(self.weights[name].data, np.float32))

    def hold(self) -> None:
        """Weights that are away are 0, and the optimizer forgets them, so that its next update leaves them 0."""
        for name, w in self.weights.items():
            w.data = np.where(self.masks[name], w.data, w.data.dtype.type(0))
            forget(self.trainer.objective.optimizer, name, self.masks[name])

    def state(self) -> dict[str, np.ndarray]:
        """What a checkpoint has to hold for the pruning to go on."""
        kinds = {"mask": self.masks} | ({"moved": self.moved, "before": self.before} if self.score == "movement" else {})
        return {f"{kind}/{name}": a for kind, named in kinds.items() for name, a in named.items()}

    def load(self, state: dict[str, np.ndarray]) -> None:
        for name in self.weights:
            self.masks[name] = state[f"mask/{name}"]
            if self.score == "movement":
                self.moved[name], self.before[name] = state[f"moved/{name}"], state[f"before/{name}"]

    @property
    def share(self) -> float:
        """Of the weights that can be taken away, the share that is."""
        return 1 - sum(int(m.sum()) for m in self.masks.values()) / sum(m.size for m in self.masks.values())


def forget(optimizer: Optimizer, name: str, mask: np.ndarray) -> None:
    """Moments, and what rounding took from a weight, are 0 where the mask is."""
    for slot in optimizer.slots:
        if optimizer.format_of(slot, name):
            optimizer.state[slot][name][~mask] = 0
        else:                                            # codes
            optimizer.put(slot, name, np.where(mask, optimizer.recall(slot, name), np.float32(0)))
    if name in optimizer.state.get("compensation", {}):
        optimizer.state["compensation"][name][~mask] = 0


def largest(scores: np.ndarray, share: float, pattern: str) -> np.ndarray:
    """True for all but a share of the scores (N,K), the lowest; with 2:4 only the two lowest of each four may be among them."""
    if pattern == "2:4":
        fours = scores.reshape(-1, 4)
        low = np.argsort(np.argsort(fours, axis=-1, kind="stable"), axis=-1).reshape(scores.shape) < 2
        scores = np.where(low, scores, np.float32(np.inf))
    away = round(share * scores.size)
    mask = np.ones(scores.size, bool)
    mask[np.argpartition(scores, away, axis=None)[:away]] = False
    return mask.reshape(scores.shape)
