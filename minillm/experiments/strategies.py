"""What --strategy names: ways to get more out of the same training, each by itself or several together.

A strategy prepares a run before its first step; it may change the data, teach the model something first, train others, change the
loss, or have the last word after the last step. What it does is a pure function of the options, so that a resumed run is prepared
anew and goes on as if it had never stopped; what has changed since then is in the checkpoint.
"""
import dataclasses
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from minillm.data.mixing import Mixture
from minillm.data.tasks import Example
from minillm.errors import MiniLLMError
from minillm.experiments.options import TrainOptions, make_optimizer, make_trainer
from minillm.experiments.running import Run, follow, new_run
from minillm.hybrid.adversarial import gan_trainer, hidden_batches, written
from minillm.hybrid.augmentation import CHANGES, Augmented
from minillm.hybrid.distillation import distill
from minillm.hybrid.ensemble import Average, Ensemble
from minillm.hybrid.joint import with_hidden
from minillm.hybrid.masking import masked
from minillm.hybrid.phases import Phase, finish
from minillm.hybrid.pretraining import pretrain
from minillm.hybrid.pruning import prune
from minillm.hybrid.self_training import pseudo_labels
from minillm.hybrid.structure import prune_structure
from minillm.models.gan import GAN, GANShape
from minillm.nn import Module
from minillm.training.readers import LabelReader
from minillm.training.trainer import Schedule

COMMON = 150               # words that are not hidden, where there are many: hiding a comma teaches grammar (tutorial 16)
HIDDEN = 0.3               # share of the others that is hidden
WEIGHT = 0.5               # of the unsupervised part of a joint loss
SURE = 0.9                 # probability above which a model's own label counts
WRITTEN = 0.15             # share of the words that a generator writes
TEMPERATURE, SOFT = 1.0, 0.7             # of distillation, as in tutorial 20
LOOKED_AT = 64             # windows on which the loss of what may be cut away is measured


class Strategy(NamedTuple):
    """What --help says of it, what it does before the first step, and whether members of an ensemble do the same.

    `once`: what it does is in the weights, so that a resumed run has it already; `ends`: it makes another model after the last
    step, so that no further steps are possible.
    """

    about: str
    prepare: Callable[[Run, bool], None]
    of_members: bool = True
    once: bool = False
    ends: bool = False


def prepare(run: Run, quiet: bool = True, resumed: bool = False) -> None:
    """Have a run that has made no step follow its strategies, in the order of the table."""
    began = time.perf_counter()
    for name, strategy in STRATEGIES.items():
        if name in run.options.strategies and not (strategy.once and resumed):
            strategy.prepare(run, quiet)
    run.prepared += time.perf_counter() - began


# data

def use(run: Run, mixture: Mixture | Augmented) -> None:
    """Draw batches from other examples."""
    run.data = dataclasses.replace(run.data, mixture=mixture)
    run.trainer.batch = partial(run.data.batch, run.options)


def self_train(run: Run, quiet: bool) -> None:
    """Another model learns first; what it is sure of is half of what this one learns from."""
    teacher, = trained(run, 1, {"pretrain"}, "teacher", quiet)
    rows, labels = pseudo_labels(teacher, run.data.reader.ids(run.data.unlabelled), SURE)
    own = [Example(run.data.unlabelled[i], run.data.classes[k]) for i, k in zip(rows, labels, strict=True)]
    if not quiet:
        print(f"self-train: sure of {len(own):,} of {len(run.data.unlabelled):,} texts", file=sys.stderr)
    if own:
        use(run, Mixture([run.data.tasks[0].train, own], "uniform"))


def augment(run: Run, quiet: bool, names: tuple[str, ...] = tuple(CHANGES)) -> None:
    """Texts are changed anew each time that they are drawn."""
    use(run, Augmented(run.data.mixture, [CHANGES[name] for name in names], run.options.augment_rate))


def augment_by_generator(run: Run, quiet: bool) -> None:
    """A generator is trained against a discriminator, and writes into each labelled text, twice."""
    options, (task,), tokenizer = run.options, run.data.tasks, run.data.tokenizer
    reader = LabelReader(tokenizer, options.context, run.data.classes)
    gan = GAN(GANShape(tokenizer.vocabulary, channels=32, context=options.context, classes=len(run.data.classes)),
              run.model.ops.recipe, options.seed)
    batch = hidden_batches(reader, Mixture([task.train]), options.batch, WRITTEN, gan.shape.special, options.seed)
    finish(gan_trainer(gan, batch, beforehand(options)), bar(beforehand(options).steps, "generator", quiet))
    more = [e for key in (1, 2) for e in written(gan, reader, task.train, WRITTEN, key)]
    run.data = dataclasses.replace(run.data, tasks=[dataclasses.replace(task, train=(*task.train, *more))])
    use(run, Mixture([run.data.tasks[0].train]))


# what is learned first, or besides

def hide(ids: np.ndarray, key: tuple, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Words to guess; of a large vocabulary none of the commonest."""
    return masked(ids, key, vocabulary, HIDDEN, *([COMMON] if vocabulary > 10 * COMMON else []))


def texts_of(run: Run) -> np.ndarray:
    """All texts of the training part, with a label or without, (N,T) int32."""
    return run.data.reader.ids([*(e.source for e in run.data.tasks[0].train), *run.data.unlabelled])


def beforehand(options: TrainOptions) -> Schedule:
    """As many steps as the run itself has, or --pretrain-steps."""
    steps = options.pretrain_steps or options.steps
    return dataclasses.replace(options.schedule(), steps=steps, warmup=min(options.warmup, steps // 10), watch_every=0)


def pretrain_on_texts(run: Run, quiet: bool) -> None:
    """The encoder guesses hidden words of all texts before it sees a label."""
    schedule = beforehand(run.options)
    phase = Phase(schedule, run.options.batch, run.options.seed,
                  lambda parameters, ops: make_optimizer(run.options, ops.recipe, parameters))
    pretrain(run.model, texts_of(run), phase, hide, bar(schedule.steps, "pretrain", quiet))


def learn_jointly(run: Run, quiet: bool) -> None:
    """Each batch has as many texts again, with hidden words to guess."""
    options, texts, vocabulary = run.options, texts_of(run), run.data.tokenizer.vocabulary
    run.model.weight = WEIGHT
    run.model.ops.learned.clear()                            # quantizers begin with this batch

    def batch(step: int, micro: int) -> tuple:
        key = options.seed, step, micro
        return with_hidden(run.data.batch(options, step, micro), texts, options.batch, key, vocabulary, hide)

    run.trainer = make_trainer(options, run.data, run.model, batch)
    run.trainer.objective.targets = None                     # every batch has as many labels


def learn_from_teachers(run: Run, quiet: bool) -> None:
    """--members models of other seeds learn first, and this one their probabilities besides."""
    teachers = trained(run, run.options.members, {"pretrain"}, "teacher", quiet)
    distill(run.model, teachers, run.trainer, TEMPERATURE, SOFT)


# weights

def prune_weights(run: Run, quiet: bool, pattern: str = "any", score: str = "magnitude") -> None:
    """A share --sparsity of each linear layer's weights goes in the first half of the steps."""
    run.attached["pruner"] = prune(run.model, run.trainer, run.options.sparsity, pattern, score)


def cut_structure(run: Run, quiet: bool) -> None:
    """After the last step heads, channels and layers go, those that cost least, until the loss has risen by 0.05 nats."""
    def cut(run: Run) -> None:
        before = run.trainer
        run.model = run.result = prune_structure(run.model, run.data.calibration(run.options, LOOKED_AT)).model
        run.trainer = make_trainer(run.options, run.data, run.model)         # moments of what is gone fit nowhere
        run.trainer.objective.scaler, run.trainer.step, run.trainer.skipped = before.objective.scaler, before.step, before.skipped
    run.endings.append(cut)


def average(run: Run, quiet: bool, exponential: bool) -> None:
    """The run's model becomes a mean of its weights: exponential over a tenth of the steps, or of the last quarter alike."""
    steps = run.options.steps
    decay, begin = (max(0.5, 1 - 10 / steps), steps // 2) if exponential else (None, 3 * steps // 4)     # pruning is over
    mean = run.attached["average"] = Average(run.model, run.trainer, decay, begin)

    def take(run: Run) -> None:
        run.result = mean.model()
    run.endings.append(take)


def train_ensemble(run: Run, quiet: bool) -> None:
    """--members models in all, of which this is one; their probabilities are averaged."""
    keep = {name for name, strategy in STRATEGIES.items() if strategy.of_members}
    others = trained(run, run.options.members - 1, keep, "member", quiet)

    def gather(run: Run) -> None:
        run.result = Ensemble([run.result, *others])
    run.endings.append(gather)


def trained(run: Run, number: int, keep: set[str], what: str, quiet: bool) -> list[Module]:
    """Models of the following seeds on the same data, each as many steps, which follow the strategies in `keep` too."""
    names = [name for name in run.options.strategies if name in keep]
    return [one_more(run, run.options.seed + i, names, f"{what} {i} of {number}", quiet) for i in range(1, number + 1)]


def one_more(run: Run, seed: int, names: list[str], title: str, quiet: bool) -> Module:
    other = new_run(dataclasses.replace(run.options, seed=seed, strategy=",".join(names), eval_every=0), run.data,
                    run.model.ops.recipe)
    prepare(other, quiet)
    follow(other, quiet, title)
    if other.trainer.diverged_at is not None:
        raise MiniLLMError(f"{title} diverged at step {other.trainer.diverged_at} ({other.trainer.blame}): try a lower --lr or "
                           "another --recipe")
    return other.result


def bar(steps: int, title: str, quiet: bool) -> Callable:
    """A progress line around the records of a training."""
    return partial(tqdm, total=steps, desc=title, unit="step", disable=quiet, leave=False, mininterval=0.5)


STRATEGIES = {             # in the order in which they prepare a run: each of the first three builds on the examples that it finds
    "augment-gan": Strategy("texts that a generator has written into", augment_by_generator, of_members=False),
    "self-train": Strategy("what a first model is sure of counts as a label", self_train, of_members=False),
    "augment": Strategy("words dropped, swapped, replaced, spans hidden, each time anew", augment, of_members=False),
    **{f"augment-{name}": Strategy(f"the same by {name} alone", partial(augment, names=(name,)), of_members=False)
       for name in CHANGES},
    "pretrain": Strategy("hidden words are guessed first", pretrain_on_texts, once=True),
    "joint": Strategy("hidden words are guessed besides", learn_jointly),
    "distill": Strategy("the probabilities of several models are learned besides", learn_from_teachers, of_members=False),
    "prune": Strategy("the smallest weights go", prune_weights),
    "prune-2:4": Strategy("two of each four weights go", partial(prune_weights, pattern="2:4")),
    "prune-movement": Strategy("weights go that move towards 0", partial(prune_weights, score="movement")),
    "prune-structure": Strategy("heads, channels and layers go in the end", cut_structure, ends=True),
    "ema": Strategy("the model is an exponential mean of its weights", partial(average, exponential=True), ends=True),
    "swa": Strategy("the model is the mean of its weights in the last quarter", partial(average, exponential=False), ends=True),
    "ensemble": Strategy("the probabilities of several models are averaged", train_ensemble, of_members=False, ends=True),
}
