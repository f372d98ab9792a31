"""What a run learns from, and is judged by: a text, or the examples of tasks."""
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from minillm.data.batches import check_long_enough, random_batch, window_batches
from minillm.data.corpora import Corpus, load_corpus, load_text
from minillm.data.mixing import Mixture, loss_weights, prefixed
from minillm.data.special import NO_TARGET, SPECIAL
from minillm.data.tasks import Example, Task, load_task
from minillm.data.tokenizers import TOKENIZERS, CharTokenizer, Tokenizer
from minillm.errors import MiniLLMError
from minillm.experiments.kinds import KINDS
from minillm.experiments.options import TrainOptions
from minillm.hybrid.augmentation import Augmented
from minillm.hybrid.labels import few_labels
from minillm.models.answering import weighted_targets
from minillm.models.ngram import NGram
from minillm.nn import Module
from minillm.training.evaluation import EVALUATION_BATCH, mean_loss, validation_loss
from minillm.training.readers import LabelReader, PairReader
from minillm.training.scores import SCORES, bits_per_character, perplexity
from minillm.training.trainer import finite_or_none

VALIDATED = 1000         # examples of a task that the validation loss is of; scores are of all


@dataclass(frozen=True)
class Data:
    """Token ids of both parts, (n,) int32, the tokenizer that made them, how many characters validation has a token, and a hash."""

    tokenizer: Tokenizer
    train: np.ndarray
    validation: np.ndarray
    characters_per_token: float
    digest: str
    classes: tuple[str, ...] = ()
    targets = None                           # every batch has as many

    def batch(self, options: TrainOptions, step: int, micro: int) -> tuple:
        """Random windows of the training part, the same for every recipe."""
        return random_batch(self.train, options.batch, options.context, (options.seed, step, micro))

    def calibration(self, options: TrainOptions, windows: int) -> list[tuple]:
        """Windows of the training text, drawn by the run's seed, a few at a time."""
        there = len(self.train) // options.context
        if windows > there:
            raise MiniLLMError(f"--calibrate is {windows}, but the training text has {there} windows of {options.context} tokens: "
                               "calibrate with fewer")
        return [random_batch(self.train, size, options.context, (options.seed, i), "calibration")
                for i, size in enumerate(in_batches(windows))]

    def first_batch(self, options: TrainOptions) -> tuple:
        """The first windows of the validation part."""
        return next(iter(window_batches(self.validation, EVALUATION_BATCH, options.context)))

    def unigram_loss(self) -> float:
        """What validation costs, in nats a token, who knows how often each token stands in the training part, and no more."""
        return unigram_loss(self.train, self.validation[1:])

    def loss(self, model: Module | NGram) -> tuple[float, int]:
        """(nats a token, tokens) of the validation part."""
        if isinstance(model, NGram):
            return model.loss(self.validation), len(self.validation) - 1
        return validation_loss(model, self.validation)

    def metrics(self, model: Module) -> dict[str, dict]:
        """{"language_model": {"val_loss" (nats a token), "perplexity", "bits_per_character", "tokens"}}."""
        loss, tokens = self.loss(model)
        found = {"val_loss": loss, "perplexity": perplexity(loss),
                 "bits_per_character": bits_per_character(loss, self.characters_per_token)}
        return {"language_model": {name: finite_or_none(value) for name, value in found.items()} | {"tokens": tokens}}


@dataclass(frozen=True)
class TaskData:
    """Tasks, how a model reads them, a hash of all examples, and texts of the training part whose label is not known."""

    tokenizer: Tokenizer
    tasks: Sequence[Task]
    reader: PairReader | LabelReader
    mixture: Mixture | Augmented
    digest: str
    weights: tuple[float, ...] = ()          # how much a target of each task counts; none where all count alike
    unlabelled: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        return self.tasks[0].classes

    def targets(self, *batch) -> float:
        """How many of a batch's targets count, each as often as its weight says."""
        return weighted_targets(*batch[-2:]).sum(dtype=np.float32).item() if self.weights else int((batch[-1] != NO_TARGET).sum())

    def batch(self, options: TrainOptions, step: int, micro: int) -> tuple:
        """Random examples of the training parts, the same for every recipe."""
        drawn = self.mixture.draw(options.batch, (options.seed, step, micro))
        weights = [np.array([self.weights[t] for t, _ in drawn], np.float32)] if self.weights else []       # (B,) f32
        return *self.reader.batch([example for _, example in drawn]), *weights

    def calibration(self, options: TrainOptions, windows: int) -> list[tuple]:
        """Examples to train on, drawn by the run's seed, a few at a time."""
        return [self.reader.batch(self.mixture.batch(size, (options.seed, i, 0))) for i, size in enumerate(in_batches(windows))]

    def first_batch(self, options: TrainOptions) -> tuple:
        """The first held-out examples."""
        return next(self.batches("held_out"))

    def unigram_loss(self) -> float:
        """What a target costs, in nats, who knows how often each stands in the training parts, and no more."""
        train, held_out = (np.concatenate([targets[targets != NO_TARGET] for *_, targets in self.batches(part)])
                           for part in ("train", "held_out"))
        return unigram_loss(train, held_out)

    def batches(self, part: str) -> Iterator[tuple]:
        """The first examples of each task's part, which lie there in random order; those of like length together."""
        some = [e for task in self.tasks for e in getattr(task, part)[:VALIDATED]]
        some.sort(key=lambda e: (len(e.source), len(e.target)))
        return (self.reader.batch(some[at:at + EVALUATION_BATCH]) for at in range(0, len(some), EVALUATION_BATCH))

    def loss(self, model: Module) -> tuple[float, int]:
        """(nats a target, targets) over the held-out parts."""
        return mean_loss(model, self.batches("held_out"))

    def metrics(self, model: Module) -> dict[str, dict]:
        """{task: {score: value}} of the held-out parts."""
        return {task.name: score(task, self.reader.answers(model, [e.source for e in task.held_out])) for task in self.tasks}


def in_batches(number: int) -> list[int]:
    """Sizes of batches that sum up to a number."""
    return [min(EVALUATION_BATCH, number - at) for at in range(0, number, EVALUATION_BATCH)]


def unigram_loss(train: np.ndarray, held_out: np.ndarray) -> float:
    """Mean cross-entropy of ids under the frequencies of others, each counted once more than it was seen."""
    counts = np.bincount(train, minlength=int(held_out.max()) + 1) + 1
    return math.fsum(math.log(len(train) + len(counts)) - math.log(counts[i]) for i in held_out) / len(held_out)


def score(task: Task, answers: list[str]) -> dict[str, float]:
    """How good the answers to a task's held-out part are, by each of its scores."""
    wanted = [example.target for example in task.held_out]
    return {name: SCORES[name](answers, wanted) for name in task.scores} | {"examples": len(wanted)}


def load_data(options: TrainOptions, tokenizer: Tokenizer | None = None) -> Data | TaskData:
    """What was asked for; a tokenizer is trained where none is given. MiniLLMError for what does not fit."""
    return load_tasks(options, tokenizer) if options.tasks else load_corpus_data(options, tokenizer)


def load_corpus_data(options: TrainOptions, tokenizer: Tokenizer | None) -> Data:
    """A text, tokenized."""
    corpus = load_text(options.text) if options.text else load_corpus(options.corpus)
    if tokenizer is None:
        tokenizer = CharTokenizer.train(corpus.train + corpus.validation) if options.tokenizer == "char" \
            else TOKENIZERS[options.tokenizer].train(corpus.train, options.vocab)
    train, validation = tokenizer.encode(corpus.train), tokenizer.encode(corpus.validation)
    check_long_enough(train, options.context, "training")
    check_long_enough(validation, options.context, "validation")
    return Data(tokenizer, train, validation, len(corpus.validation) / len(validation), digest(corpus))


def load_tasks(options: TrainOptions, tokenizer: Tokenizer | None) -> TaskData:
    """The tasks that were named; the data does not depend on the run's seed."""
    kind, tasks = KINDS[options.model], [load_task(name) for name in options.tasks]
    for task in tasks:
        able = [name for name, other in KINDS.items() if other.reader and other.classes is bool(task.classes)]
        if options.model not in able:
            raise MiniLLMError(f"--model {options.model} cannot learn {task.name}: choose --model {' or '.join(able)}")
    if kind.classes and len(tasks) > 1:
        raise MiniLLMError(f"--task {options.task}: {options.model} has the classes of one task, name one")
    if len(tasks) > 1:
        tasks = [prefixed(task) for task in tasks]
    tokenizer = tokenizer or train_tokenizer(options, tasks)
    if isinstance(tokenizer, CharTokenizer) and not tokenizer.alphabet.startswith(SPECIAL):
        raise MiniLLMError("this alphabet was made from a text, and has no sign for where an answer begins and ends: begin with a "
                           "run that was trained with --tokenizer bpe")
    reader = kind.reader(tokenizer, options.context, tasks[0].classes)
    for task in tasks:
        reader.check(task.name, (*task.train, *task.held_out))
    known, unlabelled = digest_of(tasks), ()
    if options.labels:
        tasks[0], unlabelled = few_of(tasks[0], options)
    mixture, weights = Mixture([task.train for task in tasks], options.sampling), loss_weights(options.loss_weights, len(tasks))
    return TaskData(tokenizer, tasks, reader, mixture, known, weights, unlabelled)


def few_of(task: Task, options: TrainOptions) -> tuple[Task, tuple[str, ...]]:
    """A task of which --labels examples are left to train on, and the texts of the others; which, the seed says."""
    kept = few_labels([e.target for e in task.train], options.labels, options.seed)
    others = np.setdiff1d(np.arange(len(task.train)), kept)
    return dataclasses.replace(task, train=tuple(task.train[i] for i in kept)), tuple(task.train[i].source for i in others)


def train_tokenizer(options: TrainOptions, tasks: Sequence[Task]) -> Tokenizer:
    """Of the training parts; an alphabet is of both, or a held-out text could not be read."""
    def texts(examples: Sequence[Example]) -> str:
        return "\n".join(f"{e.source}\n{e.target}" for e in examples)

    train = "\n".join(texts(task.train) for task in tasks)
    if options.tokenizer == "char":
        return CharTokenizer.train(SPECIAL + train + "".join(texts(task.held_out) for task in tasks))
    return TOKENIZERS[options.tokenizer].train(train, options.vocab)


def digest(corpus: Corpus) -> str:
    """A hash of both parts, by which a run knows its text again."""
    return hash_of(f"{corpus.train}\0{corpus.validation}")


def digest_of(tasks: Sequence[Task]) -> str:
    """The same of tasks."""
    return hash_of(json.dumps([asdict(task) for task in tasks]))


def hash_of(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
