"""Self-training: what a model is sure of becomes a label that it learns from. Lee 2013; Xie et al. 2019, arXiv 1911.04252."""
from typing import NamedTuple

import numpy as np

from minillm.data.batches import random_rows
from minillm.errors import MiniLLMError
from minillm.hybrid.phases import Phase, finish
from minillm.nn import Module

TOGETHER = 64              # texts that are labelled at once

Labelled = tuple[np.ndarray, np.ndarray]           # ids (N,T), labels (N,)


class Round(NamedTuple):
    """One round: how many texts the teacher labelled, what was learned from them as records."""

    taken: int
    records: list[dict]


def self_train(model: Module, labelled: Labelled, texts: np.ndarray, phase: Phase, rounds: int = 2,
               threshold: float = 0.9) -> list[Round]:
    """Train a classifier on labelled texts for a phase, then for `rounds` more on those and on its own labels of texts (M,T).

    Before each round the model, as it is then, labels the texts anew; only labels of a probability above `threshold` count. Half of
    a batch is labelled by hand, half by the model, and where it is sure of nothing all is by hand. There are `rounds` + 1 phases.
    """
    if not 0 <= threshold < 1 or rounds < 1:
        raise MiniLLMError(f"{rounds} rounds with labels above a probability of {threshold}: at least 1, and from 0 to below 1")
    found = []
    for number in range(rounds + 1):
        rows, labels = pseudo_labels(model, texts if number else texts[:0], threshold)
        found.append(Round(len(rows), learn(model, labelled, (texts[rows], labels), phase, number)))
    return found


def learn(model: Module, labelled: Labelled, own: Labelled, phase: Phase, number: int) -> list[dict]:
    """One phase on texts that are labelled by hand and, half of each batch, by the model."""
    def batch(key: tuple) -> Labelled:
        key, half = (*key, number), phase.batch // 2 if len(own[1]) else 0
        parts = [random_rows(labelled, phase.batch - half, key)] + ([random_rows(own, half, (*key, 1))] if half else [])
        return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))

    return finish(phase.trainer(model, batch))


def pseudo_labels(model: Module, texts: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Which texts have a class whose probability is above the threshold, and that class: rows (n,) int64, labels (n,) int32."""
    rows, labels = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    for at in range(0, len(texts), TOGETHER):
        logits = model.logits(texts[at:at + TOGETHER])                         # (b,K) f32
        p = np.exp(logits - logits.max(-1, keepdims=True))
        sure = np.flatnonzero(p.max(-1) > np.float32(threshold) * p.sum(-1, dtype=np.float32))
        rows.append(at + sure)
        labels.append(logits[sure].argmax(-1).astype(np.int32))
    return np.concatenate(rows), np.concatenate(labels)
