"""More texts from a generator that has been trained against a discriminator."""
from collections.abc import Callable, Sequence

import numpy as np

from minillm.autograd.tensor import Tensor
from minillm.data.mixing import Mixture
from minillm.data.special import PAD
from minillm.data.tasks import Example
from minillm.errors import MiniLLMError
from minillm.models.gan import GAN
from minillm.nn import Module
from minillm.optim import AdamW
from minillm.precision.loss_scaling import LossScaler
from minillm.training.readers import LabelReader
from minillm.training.trainer import Objective, Schedule, Trainer

BETAS = (0.5, 0.99)        # the first as in Radford et al. 2015, arXiv 1511.06434, section 4: with 0.9 a pair swings


def gan_trainer(gan: GAN, batch: Callable[[int, int], tuple], schedule: Schedule) -> Trainer:
    """The one trainer with two objectives: the generator's, and in turn the discriminator's, each with its own weights and scale.

    Batches: ids (B,T), which of them are hidden (B,T) bool, classes (B,). What quantizers learn is not trained.
    """

    def objective(loss: Callable[..., Tensor], side: Module) -> Objective:
        recipe, mine = gan.ops.recipe, {id(leaf) for _, _, _, leaf in side.walk()}
        owned = [p for p in gan.parameters() if id(p) in mine]                 # under their full names
        optimizer = AdamW(owned, BETAS, recipe.eps, 0.0, recipe.optimizer_state, recipe.update, gan.ops.context.seed)
        return Objective(loss, gan.ops, optimizer, LossScaler(recipe.loss_scaling))

    return Trainer(objective(gan.generator_loss, gan.generator), batch, schedule,
                   others=(objective(gan.discriminator_loss, gan.discriminator),))


def hiding(reader: LabelReader, examples: Sequence[Example], rate: float, special: int, key: Sequence[int]) -> tuple:
    """A batch for a pair: each word that is not special is hidden with a chance of `rate`, and one of all in any case."""
    ids, labels = reader.batch(examples)
    if not (words := ids >= special).any():
        raise MiniLLMError("a batch without a single word has nothing to hide: give longer texts")
    chance = np.where(words, np.random.default_rng(key).random(ids.shape), 1)
    return ids, (chance < rate) & words | (chance == chance.min()), labels


def hidden_batches(reader: LabelReader, mixture: Mixture, size: int, rate: float, special: int, seed: int) -> Callable:
    """Batches for a pair's trainer, a pure function of (step, micro-batch)."""
    def batch(step: int, micro: int) -> tuple:
        return hiding(reader, mixture.batch(size, (seed, step, micro)), rate, special, (seed, step, micro, 1))
    return batch


def written(gan: GAN, reader: LabelReader, examples: Sequence[Example], rate: float, key: int) -> list[Example]:
    """Each example with about `rate` of its words written by the generator, which knows the class; targets stay."""
    batch = hiding(reader, examples, rate, gan.shape.special, (key,))
    texts = [reader.tokenizer.decode(row[1:][row[1:] != PAD]) for row in gan.write(*batch, key)]          # without BEGIN
    return [Example(text, e.target) for text, e in zip(texts, examples, strict=True)]
