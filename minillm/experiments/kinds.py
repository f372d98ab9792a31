"""What can be trained: for each --model its class, what it can learn, how it reads examples, and defaults that work."""
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from minillm.hybrid.joint import JointModel
from minillm.models.bert import ClassifierShape, EncoderClassifier
from minillm.models.gpt import GPT, GPTShape
from minillm.models.lstm import LSTMClassifier, LSTMShape
from minillm.models.ngram import NGram
from minillm.models.seq2seq import Seq2Seq, Seq2SeqShape
from minillm.nn import Module
from minillm.precision.recipe import Recipe
from minillm.training.readers import ContinuationReader, LabelReader, PairReader

AVERAGES = ("ema", "swa", "distill")
PRUNING = ("prune", "prune-2:4", "prune-movement")
LABELS = ("self-train", "augment", "augment-dropout", "augment-swap", "augment-synonym", "augment-span", "augment-gan")


@dataclass(frozen=True)
class Kind:
    """One kind of model. `make(options, vocabulary, classes, recipe)`; `reader(tokenizer, context, classes)`, if it learns tasks.

    `strategies`: what --strategy may name. `defaults`: options that differ from the published GPT's, where they are not given.
    `of_task`: and those of one task, "several" those of more than one.
    """

    make: Callable[..., Module | NGram]
    reader: Callable | None = None
    task: str = ""                           # which is learned where none is named; none: a corpus
    classes: bool = False                    # whether its tasks are classifications
    counted: bool = False                    # whether one look at the text makes it, without a trainer
    strategies: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)
    of_task: dict[str, dict[str, Any]] = field(default_factory=dict)


def sizes(options, vocabulary: int) -> tuple:
    return vocabulary, options.layers, options.heads, options.channels, options.context, options.bias, options.dropout


def gpt(options, vocabulary: int, classes: int, recipe: Recipe) -> GPT:
    return GPT(GPTShape(*sizes(options, vocabulary)), recipe, options.seed)


def seq2seq(options, vocabulary: int, classes: int, recipe: Recipe) -> Seq2Seq:
    return Seq2Seq(Seq2SeqShape(*sizes(options, vocabulary), options.scaled), recipe, options.seed)


def bert(options, vocabulary: int, classes: int, recipe: Recipe) -> EncoderClassifier:
    C = options.channels
    shape = ClassifierShape(vocabulary, options.layers, options.heads, C, 4 * C, options.context, C, activation="gelu", eps=1e-5,
                            deviation=C**-0.5, classes=classes)
    return (JointModel if "joint" in options.strategies else EncoderClassifier)(shape, recipe, options.seed)


def lstm(options, vocabulary: int, classes: int, recipe: Recipe) -> LSTMClassifier:
    shape = LSTMShape(vocabulary, options.channels, options.channels, classes, masked=True)
    return LSTMClassifier(shape, recipe, options.seed)


def ngram(options, vocabulary: int, classes: int, recipe: Recipe) -> NGram:
    return NGram(vocabulary, options.order)


# The words of these tasks are few: 95 to 184 merges make a token of each, texts are 4 times shorter than in characters, and a word
# is copied by one glance. 300 steps of an encoder-decoder reach 0.9 on each.
FEW_WORDS = {"tokenizer": "bpe", "context": 64, "steps": 600}

# Real texts: of 1,024 tokens a pair needs 18 to 65 on average, where it has 59 to 168 characters.
REAL_TEXTS = {"tokenizer": "bpe", "vocab": 1024}

# What models that answer have in common, and what differs by task.
ANSWERS = {"batch": 64, "context": 128, "steps": 1200, "lr": 2e-3, "warmup": 100, "weight_decay": 0.01, "beta2": 0.98}
OF_WORDS = dict.fromkeys(("summarization", "question-answering", "dialogue"), FEW_WORDS) | {
    "several": FEW_WORDS | {"vocab": 1024, "context": 128, "steps": 2400}}
OF_TASK = OF_WORDS | dict.fromkeys(("translation-emoji", "summarization-wiki", "question-answering-wiki"), REAL_TEXTS) | {
    "translation": {}, "dialogue-chatterbot": REAL_TEXTS | {"steps": 300}}

KINDS = {
    "gpt": Kind(gpt, ContinuationReader, strategies=(*PRUNING, "prune-structure", *AVERAGES, "ensemble"),
                of_task={name: ANSWERS | own for name, own in OF_TASK.items()} |
                        {"summarization-wiki": ANSWERS | REAL_TEXTS | {"context": 192}}),          # lead and line, up to 130 tokens
    "ngram": Kind(ngram, counted=True),
    "seq2seq": Kind(seq2seq, PairReader, "translation", strategies=(*PRUNING, *AVERAGES), defaults=ANSWERS | {"layers": 2},
                    of_task=OF_TASK | {name: own | {"scaled": True} for name, own in OF_WORDS.items()}),
    "bert": Kind(bert, LabelReader, "reviews", True,
                 strategies=(*LABELS, "pretrain", "joint", *PRUNING, *AVERAGES, "ensemble"), defaults={
        "layers": 2, "batch": 32, "context": 64, "steps": 1000, "lr": 1e-3, "tokenizer": "word", "vocab": 10000}),
    "lstm": Kind(lstm, partial(LabelReader, left=True), "reviews", True, strategies=(*LABELS, *AVERAGES, "ensemble"), defaults={
        "layers": 1, "batch": 32, "context": 64, "steps": 1000, "lr": 1e-3, "weight_decay": 0.0, "beta2": 0.999,
        "tokenizer": "word", "vocab": 10000}),
}
