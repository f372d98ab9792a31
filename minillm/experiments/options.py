"""The options of a training run, with the published small configuration as defaults, and the run that they describe."""
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from minillm.backend import memory_bytes
from minillm.data.corpora import CORPORA
from minillm.data.mixing import loss_weights, temperature
from minillm.data.tasks import TASKS
from minillm.data.tokenizers import TOKENIZERS
from minillm.errors import MiniLLMError, unknown
from minillm.experiments.kinds import KINDS, sizes
from minillm.formats import FLOAT32
from minillm.models.gpt import GPT, PrunedShape
from minillm.nn import Module
from minillm.optim import SGD, AdamW
from minillm.precision.loss_scaling import SCALERS, LossScaler
from minillm.precision.recipe import Recipe
from minillm.recipes import product_named, recipe_named
from minillm.training.trainer import ACCUMULATIONS, Objective, Schedule, Trainer

OPTIMIZERS = ("adamw", "sgd")
EITHER = ("prune prune-2:4 prune-movement prune-structure", "ema swa prune-structure", "distill joint", "distill ensemble",
          "prune-structure ensemble")                                                         # strategies: of each one at most
LARGEST = 2**32 - 1        # of whole numbers, where the seeds of most programs end; a number beyond it is a slip of the hand
LEAST = {"layers": 1, "heads": 1, "channels": 1, "context": 1, "batch": 1, "steps": 1, "accumulate": 1, "vocab": 256,
         "order": 1, "members": 2}                                                                                    # others: 0


@dataclass(frozen=True)
class TrainOptions:
    """What `minillm train` takes. Defaults: nanoGPT's small CPU configuration, 0.8 M parameters, 2000 steps of 12 x 64 tokens.

    `task`: names with commas between, none for a text to continue; `sampling` says how often each of several is drawn,
    `loss_weights` how much a target of each counts.
    `strategy`: names likewise, of minillm.experiments.strategies; `labels`: how many of a classification are kept, 0 for all.
    `products`: "recipe", or an accumulator ("float16/chunked_64") for all products in place of the recipe's.
    `loss_scale`: "recipe", "dynamic", the name of a published scaler or a number (static); the fields after it settle a
    dynamic one. `eps` 0 means the recipe's.
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
    scaled: bool = False
    accumulate: int = 1
    accumulation: str = "mean"
    tokenizer: str = "char"
    vocab: int = 512
    order: int = 7
    seed: int = 1337
    recipe: str = "float32"
    products: str = "recipe"
    loss_scale: str = "recipe"
    growth_interval: int = 0
    scale_floor: float = 0.0
    eps: float = 0.0
    eval_every: int = 500
    watch_every: int = 50
    corpus: str = "pydoc"
    text: str = ""
    model: str = "gpt"
    task: str = ""
    sampling: str = "size"
    loss_weights: str = ""
    strategy: str = ""
    labels: int = 0
    pretrain_steps: int = 0
    sparsity: float = 0.5
    members: int = 3
    augment_rate: float = 0.1

    def __post_init__(self):
        for f in dataclasses.fields(self):
            check_type(f.name, getattr(self, f.name), f.type)
            if f.type in (int, float):
                check_range(f.name, getattr(self, f.name), LEAST.get(f.name, 0))
        for name in ("beta1", "beta2", "dropout", "sparsity", "augment_rate"):
            if not getattr(self, name) < 1:
                raise MiniLLMError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it must lie in 0 ... 1, 1 excluded")
        for name, known in (("optimizer", OPTIMIZERS), ("tokenizer", TOKENIZERS), ("corpus", CORPORA), ("model", KINDS),
                            ("accumulation", ACCUMULATIONS)):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        self.check_tasks()
        self.check_strategies()
        if not 0 < self.lr >= self.min_lr:
            raise MiniLLMError(f"--lr is {self.lr}: it must be positive, and at least --min-lr ({self.min_lr}): lower that too")
        if self.channels % self.heads:
            raise MiniLLMError(f"--heads {self.heads} does not divide --channels {self.channels}: choose heads that do")
        self.make_recipe()

    @property
    def tasks(self) -> list[str]:
        return names_in(self.task)

    @property
    def strategies(self) -> list[str]:
        return names_in(self.strategy)

    def check_tasks(self) -> None:
        """Tasks that there are, each once, and one at least for a model that learns from examples."""
        temperature(self.sampling)
        loss_weights(self.loss_weights, len(self.tasks))
        for name in self.tasks:
            if name not in TASKS:
                raise unknown("task", name, TASKS)
        if len(set(self.tasks)) < len(self.tasks):
            raise MiniLLMError(f"--task {self.task} names a task twice: name each once")
        if self.tasks and self.text:
            raise MiniLLMError(f"--task {self.task} and --text {self.text}: a run learns from one of them, drop the other")
        if KINDS[self.model].task and not self.tasks:
            raise MiniLLMError(f"--model {self.model} learns tasks, and none is named: give a --task of {', '.join(TASKS)}")

    def check_strategies(self) -> None:
        """Strategies that this model can follow, each once, and none that excludes another."""
        chosen = self.strategies
        for name in chosen:
            able = [model for model, kind in KINDS.items() if name in kind.strategies]
            if not able:
                raise unknown("strategy", name, dict.fromkeys(name for kind in KINDS.values() for name in kind.strategies))
            if self.model not in able:
                raise MiniLLMError(f"--strategy {name} is not for --model {self.model}: choose --model {' or '.join(able)}")
        if len(set(chosen)) < len(chosen):
            raise MiniLLMError(f"--strategy {' '.join(chosen)} names a strategy twice: name each once")
        for group in EITHER:
            if len(both := [name for name in chosen if name in group.split()]) > 1:
                raise MiniLLMError(f"--strategy {both[0]} and {both[1]} exclude each other: choose one")
        if "self-train" in chosen and not self.labels:
            raise MiniLLMError("--strategy self-train needs texts whose label is not known: say by --labels how many are")
        if self.loss_weights and "distill" in chosen:
            raise MiniLLMError("--strategy distill has a loss of its own, which knows no --loss-weights: drop one of them")
        if self.labels and not KINDS[self.model].classes:
            raise MiniLLMError(f"--labels {self.labels}: only classifications have labels to leave out, drop it or choose --model "
                               f"{' or '.join(name for name, kind in KINDS.items() if kind.classes)}")

    def make_recipe(self) -> Recipe:
        """The preset, with the products, the loss scaling and the eps that were asked for."""
        recipe = recipe_named(self.recipe)
        scaling = recipe.loss_scaling
        if self.loss_scale == "dynamic":
            scaling = dataclasses.replace(scaling, dynamic=True, initial=scaling.initial if scaling.dynamic else 65536.0)
        elif self.loss_scale in SCALERS:
            scaling = SCALERS[self.loss_scale]
        elif self.loss_scale != "recipe":
            scaling = dataclasses.replace(scaling, dynamic=False, initial=number(self.loss_scale))
        if self.growth_interval:
            scaling = dataclasses.replace(scaling, growth_interval=self.growth_interval)
        if self.scale_floor:
            scaling = dataclasses.replace(scaling, floor=self.scale_floor)
        products = recipe.products if self.products == "recipe" else {"*": product_named(self.products)}
        return dataclasses.replace(recipe, products=products, loss_scaling=scaling, eps=self.eps or recipe.eps)

    def schedule(self) -> Schedule:
        return Schedule(self.steps, self.lr, self.min_lr, self.warmup, self.clip, self.accumulate, self.watch_every,
                        self.accumulation)


def names_in(text: str) -> list[str]:
    """Names with commas between."""
    return [name.strip() for name in text.split(",") if name.strip()]


def options_for(given: dict) -> TrainOptions:
    """Options that were named, and for the others the defaults of this model and these tasks."""
    kind = KINDS.get(given.get("model", "gpt"), KINDS["gpt"])                  # an unknown one is refused by TrainOptions
    task = given.get("task", kind.task)
    own = kind.of_task.get("several" if "," in task else task, {})
    return TrainOptions(**{"task": task} | kind.defaults | own | given)


def check_type(name: str, value, type_: type) -> None:
    """Options also come from Python and from config.json."""
    if isinstance(value, bool) is not (type_ is bool) or not isinstance(value, (int, float) if type_ is float else type_):
        raise MiniLLMError(f"--{name.replace('_', '-')} is {value!r}: it must be of type {type_.__name__}")


def check_range(name: str, value: float, low: float) -> None:
    """Neither too small, nor NaN, nor beyond what float32 or anybody's patience can hold."""
    high = LARGEST if isinstance(value, int) else FLOAT32.max
    if not low <= value <= high:
        limit = f"at most {high:.6g}" if value > high else f"at least {low}"
        raise MiniLLMError(f"--{name.replace('_', '-')} is {value}: it must be {limit}")


def number(text: str) -> float:
    """A loss scale as a number; powers of two may be written 2^-6."""
    try:
        return 2.0 ** int(text[2:]) if text.startswith("2^") else float(text)
    except (ValueError, OverflowError) as error:
        raise MiniLLMError(f"--loss-scale {text!r}: give recipe, dynamic, a number such as 1024 or 2^-6, or one of "
                           f"{', '.join(SCALERS)}") from error


def make_optimizer(options: TrainOptions, recipe: Recipe, parameters: list):
    """The optimizer that was asked for; how it keeps its state and writes weights, and its eps, are the recipe's."""
    how = recipe.optimizer_state, recipe.update, options.seed
    if options.optimizer == "sgd":
        return SGD(parameters, options.beta1, options.weight_decay, *how)
    return AdamW(parameters, (options.beta1, options.beta2), recipe.eps, options.weight_decay, *how)


def make_trainer(options: TrainOptions, data, model: Module, batch: Callable[[int, int], tuple] | None = None) -> Trainer:
    """A trainer of this model on batches of `data`, or on others that have as many targets, the same for every recipe."""
    recipe, batch = model.ops.recipe, batch or partial(data.batch, options)
    if recipe.quantizers and not model.ops.learned:
        with model.ops.context.no_record():
            model.loss(*batch(0, 0))                         # a dry forward pass makes what quantizers learn
    optimizer = make_optimizer(options, recipe, [*model.parameters(), *model.ops.learned.values()])
    objective = Objective(model.loss, model.ops, optimizer, LossScaler(recipe.loss_scaling), data.targets)
    return Trainer(objective, batch, options.schedule())


def make_model(options: TrainOptions, vocabulary: int, recipe: Recipe, classes: int = 0, kept: tuple = ()) -> Module:
    """A model that has not been trained; `classes`: how many a classifier tells apart; `kept`: what pruning left of a GPT."""
    check_memory(options, vocabulary)
    if kept:
        return GPT(PrunedShape(*sizes(options, vocabulary), kept=kept), recipe, options.seed)
    return KINDS[options.model].make(options, vocabulary, classes, recipe)


def check_memory(options: TrainOptions, vocabulary: int) -> None:
    """Refuse what no recipe could hold: in float16, 4 values a parameter, 16 a token and channel in each layer; and the ids."""
    C, tokens = options.channels, options.batch * options.context
    parameters = (vocabulary + options.context + 12 * options.layers * C) * C
    need = 8 * parameters + 2 * tokens * (16 * options.layers * C + vocabulary) + 8 * tokens * options.accumulate
    if need > memory_bytes():
        raise MiniLLMError(f"{parameters:,} parameters and {tokens * options.accumulate:,} tokens a step need at least "
                           f"{need / 1e9:,.0f} GB, this machine has {memory_bytes() / 1e9:,.0f}: lower --layers, --channels, "
                           "--batch or --accumulate")


def default_out(options: TrainOptions) -> Path:
    """Where a run goes that was given no folder."""
    source = "-".join(options.tasks) or (Path(options.text).stem if options.text else options.corpus)
    return Path("runs") / "-".join([source, *options.strategies, options.recipe, str(options.seed)]).replace(":", "")
