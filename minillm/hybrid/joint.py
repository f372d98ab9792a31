"""A joint loss: labelled and unlabelled texts in one batch, through one encoder, with a head for each."""
import numpy as np

from minillm.autograd.tensor import Tensor
from minillm.data.batches import random_rows
from minillm.data.special import NO_TARGET, PAD
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32
from minillm.hybrid.masking import masked
from minillm.hybrid.phases import Phase, finish
from minillm.hybrid.pretraining import Hide, carry_over, check_encoder
from minillm.models.bert import ClassifierShape, EncoderClassifier, MaskedLanguageModel
from minillm.precision.recipe import Recipe
from minillm.training.trainer import Trainer


class JointModel(EncoderClassifier, MaskedLanguageModel):
    """A classifier whose encoder guesses hidden words too: the head of either, and a loss of both."""

    def __init__(self, shape: ClassifierShape, recipe: Recipe, seed: int = 0, weight: float = 1.0):
        if not weight >= 0:
            raise MiniLLMError(f"the unsupervised loss weighs {weight}: give 0 or more")
        super().__init__(shape, recipe, seed)
        self.weight = weight

    def loss(self, ids: np.ndarray, labels: np.ndarray, targets: np.ndarray | None = None) -> Tensor:
        """Cross-entropy of the labels + weight x that of the hidden words.

        The first rows of ids (B,T) are labelled, (b,); the others have hidden words, targets (B-b,T). Without targets it is the
        classifier's loss.
        """
        if targets is None:
            return EncoderClassifier.loss(self, ids, labels)
        x, b = self.hidden(ids), len(labels)                                   # (B,T,C)
        labelled, others = (self.ops.slice(x, index=(rows,)) for rows in (slice(b), slice(b, None)))
        supervised = EncoderClassifier.criterion(self, self.ops, self.verdicts(labelled), labels)
        return self.ops.cast(supervised, FLOAT32) + self.ops.cast(self.words_loss(others, targets), FLOAT32) * self.weight


def train_jointly(model: EncoderClassifier, labelled: tuple[np.ndarray, np.ndarray], texts: np.ndarray, phase: Phase,
                  weight: float = 1.0, unlabelled: int = 0, hide: Hide = masked) -> list[dict]:
    """Train a classifier on labelled (ids (N,T), labels (N,)) and on texts (M,T) without labels: the records of that training.

    A batch has `phase.batch` labelled texts and `unlabelled` others, 0: as many.
    """
    check_encoder(model)
    joint = JointModel(model.shape, model.ops.recipe, model.ops.context.seed, weight)
    carry_over(model, joint)
    records = finish(joint_trainer(joint, labelled, texts, phase, unlabelled or phase.batch, hide))
    carry_over(joint, model)
    return records


def joint_trainer(joint: JointModel, labelled: tuple[np.ndarray, np.ndarray], texts: np.ndarray, phase: Phase,
                  unlabelled: int, hide: Hide = masked) -> Trainer:
    """Trains a joint model on batches of `phase.batch` labelled texts and `unlabelled` others."""
    def batch(key: tuple) -> tuple:
        return with_hidden(random_rows(labelled, phase.batch, key), texts, unlabelled, key, joint.shape.vocabulary, hide)

    return phase.trainer(joint, batch)


def with_hidden(labelled: tuple[np.ndarray, np.ndarray], texts: np.ndarray, number: int, key: tuple, vocabulary: int,
                hide: Hide = masked) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A batch of a joint model: ids and labels, and below them `number` of the texts with hidden words, filled up alike."""
    ids, labels = labelled
    hidden, targets = hide(random_rows((texts,), number, (*key, 0))[0], (*key, 1), vocabulary)
    T = max(ids.shape[1], hidden.shape[1])
    return np.concatenate([filled(ids, T, PAD), filled(hidden, T, PAD)]), labels, filled(targets, T, NO_TARGET)


def filled(ids: np.ndarray, T: int, padding: int) -> np.ndarray:
    """Ids (B,t) with padding behind them, (B,T) int32."""
    return np.pad(ids, ((0, 0), (0, T - ids.shape[1])), constant_values=padding)
