"""The options of a training run, with the published small configuration as defaults, and the run that they describe."""
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minillm.data.batches import check_batch, check_long_enough, random_batch
from minillm.data.corpora import load_corpus, load_text
from minillm.data.tokenizers import TOKENIZERS, BytePairTokenizer, CharTokenizer, Tokenizer
from minillm.errors import MiniLLMError, unknown
from minillm.models.gpt import GPT, GPTShape
from minillm.optim import SGD, AdamW
from minillm.precision.loss_scaling import LossScaler
from minillm.precision.recipe import Recipe
from minillm.recipes import recipe_named
from minillm.training.trainer import Objective, Schedule, Trainer

OPTIMIZERS = ("adamw", "sgd")


@dataclass(frozen=True)
class TrainOptions:
    """What `minillm train` takes. Defaults: nanoGPT's small CPU configuration, 0.8 M parameters, 2000 steps of 12 x 64 tokens.

    `loss_scale`: "recipe", "dynamic" or a number (static); the fields after it settle the dynamic one. `eps` 0 means the recipe's.
    """

    layers: int = 4
    heads: int = 4
    channels: int = 128
    context: int = 64
    batch: int = 12
    steps: int = 2000
    lr: float = 1e-3
    min_lr: float = 1e-4
    warmup: int = 100
    optimizer: str = "adamw"
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.1
    clip: float = 1.0
    dropout: float = 0.0
    bias: bool = False
    accumulate: int = 1
    tokenizer: str = "char"
    vocab: int = 512
    seed: int = 1337
    recipe: str = "float32"
    loss_scale: str = "recipe"
    growth_interval: int = 0
    scale_floor: float = 0.0
    eps: float = 0.0
    eval_every: int = 500
    watch_every: int = 50
    corpus: str = "pydoc"
    text: str = ""

    def __post_init__(self):
        least = {"batch": 1, "steps": 1, "warmup": 0, "clip": 0, "accumulate": 1, "seed": 0, "eval_every": 0, "watch_every": 0,
                 "growth_interval": 0, "scale_floor": 0, "eps": 0, "weight_decay": 0, "min_lr": 0}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise MiniLLMError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it must be at least {low}")
        if not 0 < self.lr < float("inf"):
            raise MiniLLMError(f"--lr is {self.lr}: it must be positive")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise MiniLLMError(f"--{name} is {getattr(self, name)}: it must lie in 0 ... 1, 1 excluded")
        if self.optimizer not in OPTIMIZERS:
            raise unknown("optimizer", self.optimizer, OPTIMIZERS)
        if self.tokenizer not in TOKENIZERS:
            raise unknown("tokenizer", self.tokenizer, TOKENIZERS)
        self.make_recipe()
        self.shape(1)
        if self.channels % self.heads:
            raise MiniLLMError(f"--heads {self.heads} does not divide --channels {self.channels}: choose heads that do")

    def make_recipe(self) -> Recipe:
        """The preset, with the loss scaling and eps that were asked for."""
        recipe = recipe_named(self.recipe)
        scaling = recipe.loss_scaling
        if self.loss_scale == "dynamic":
            scaling = dataclasses.replace(scaling, dynamic=True, initial=scaling.initial if scaling.dynamic else 65536.0)
        elif self.loss_scale != "recipe":
            scaling = dataclasses.replace(scaling, dynamic=False, initial=number(self.loss_scale))
        if self.growth_interval:
            scaling = dataclasses.replace(scaling, growth_interval=self.growth_interval)
        if self.scale_floor:
            scaling = dataclasses.replace(scaling, floor=self.scale_floor)
        return dataclasses.replace(recipe, loss_scaling=scaling, eps=self.eps or recipe.eps)

    def shape(self, vocabulary: int) -> GPTShape:
        return GPTShape(vocabulary, self.layers, self.heads, self.channels, self.context, self.bias, self.dropout)

    def schedule(self) -> Schedule:
        return Schedule(self.steps, self.lr, self.min_lr, self.warmup, self.clip, self.accumulate, self.watch_every)


def number(text: str) -> float:
    """A loss scale as a number; powers of two may be written 2^-6."""
    try:
        base, power, exponent = text.partition("^")
        return float(base) ** int(exponent) if power else float(base)
    except (ValueError, OverflowError) as error:
        raise MiniLLMError(f"--loss-scale {text!r}: give recipe, dynamic, or a number such as 1024 or 2^-6") from error


@dataclass(frozen=True)
class Data:
    """Token ids of both parts, (n,) int32, the tokenizer that made them, and how many characters validation has a token."""

    tokenizer: Tokenizer
    train: np.ndarray
    validation: np.ndarray
    characters_per_token: float


def load_data(options: TrainOptions, tokenizer: Tokenizer | None = None) -> Data:
    """The text that was asked for, tokenized; a tokenizer is trained where none is given. Too short a text is a MiniLLMError."""
    corpus = load_text(options.text) if options.text else load_corpus(options.corpus)
    if tokenizer is None:
        tokenizer = CharTokenizer.train(corpus.train + corpus.validation) if options.tokenizer == "char" \
            else BytePairTokenizer.train(corpus.train, options.vocab)
    train, validation = tokenizer.encode(corpus.train), tokenizer.encode(corpus.validation)
    check_batch(options.batch)
    check_long_enough(train, options.context, "training")
    check_long_enough(validation, options.context, "validation")
    return Data(tokenizer, train, validation, len(corpus.validation) / len(validation))


def make_optimizer(options: TrainOptions, recipe: Recipe, parameters: list):
    """The optimizer that was asked for, its state in the recipe's format, its eps the recipe's."""
    if options.optimizer == "sgd":
        return SGD(parameters, options.beta1, options.weight_decay, recipe.optimizer_state)
    return AdamW(parameters, (options.beta1, options.beta2), recipe.eps, options.weight_decay, recipe.optimizer_state)


def make_trainer(options: TrainOptions, data: Data, model: GPT) -> Trainer:
    """A trainer of this model on random windows of the training part, the same for every recipe."""
    recipe = model.ops.recipe

    def batch(step, micro):
        return random_batch(data.train, options.batch, options.context, (options.seed, step, micro))

    if recipe.quantizers and not model.ops.learned:
        with model.ops.context.no_record():
            model.loss(*batch(0, 0))                         # a dry forward pass makes what quantizers learn
    optimizer = make_optimizer(options, recipe, [*model.parameters(), *model.ops.learned.values()])
    return Trainer(Objective(model.loss, model.ops, optimizer, LossScaler(recipe.loss_scaling)), batch, options.schedule())


def make_model(options: TrainOptions, data: Data) -> GPT:
    return GPT(options.shape(data.tokenizer.vocabulary), options.make_recipe(), options.seed)


def default_out(options: TrainOptions) -> Path:
    """Where a run goes that was given no folder."""
    source = Path(options.text).stem if options.text else options.corpus
    return Path("runs") / f"{source}-{options.recipe}-{options.seed}"
