"""How models that write find their answers: greedy and beam search, by a decoder alone, an encoder-decoder, and an ensemble."""
import itertools

import numpy as np
import pytest

from minillm.data.special import BEGIN, END
from minillm.hybrid.ensemble import Ensemble
from minillm.models.answering import log_softmax
from minillm.models.gpt import GPT, GPTShape
from minillm.models.seq2seq import Seq2Seq, Seq2SeqShape
from minillm.recipes import PRESETS

SOURCE = np.array([[5, 6, 7], [8, 9, 10]], np.int32)
KINDS = ("gpt", "seq2seq", "ensemble")


def make(kind, recipe="float32", seed=0, vocabulary=11, context=13, layers=2):
    """With weights large enough that every part matters."""
    if kind == "ensemble":
        return Ensemble([make("gpt", recipe, 10 * seed + i, vocabulary, context, layers) for i in range(2)])
    shape = {"gpt": GPTShape, "seq2seq": Seq2SeqShape}[kind](vocabulary, layers=layers, heads=2, channels=16, context=context)
    model, rng = {"gpt": GPT, "seq2seq": Seq2Seq}[kind](shape, PRESETS[recipe], seed), np.random.default_rng(seed)
    for p in model.parameters():
        p.data = (p.data + 0.3 * rng.standard_normal(p.shape, np.float32)).astype(p.data.dtype)
    return model


def logits(model, source, answer):
    """(B,n,V) behind BEGIN and each token of answers (B,n-1), all read at once."""
    ids = np.column_stack([np.full(len(source), BEGIN, np.int32), answer]).astype(np.int32)
    with model.ops.context.no_record():
        model.ops.context.begin(0)
        if isinstance(model, Seq2Seq):
            return model(source, ids).data
        return model(np.column_stack([source, ids])).data[:, source.shape[1]:]


def room(model, source):
    """How many tokens an answer can have."""
    return model.shape.context - (0 if isinstance(model, Seq2Seq) else source.shape[1])


def greedy_without_cache(model, source):
    """The same, every token from the whole text so far."""
    answer = np.empty((len(source), 0), np.int32)
    for _ in range(room(model, source)):
        answer = np.column_stack([answer, logits(model, source, answer)[:, -1].argmax(-1).astype(np.int32)])
    return answer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recipe", ["float32", "float16-mixed"])
def test_greedy_takes_the_most_likely_token_each_time_and_stops_at_the_end(kind, recipe):
    for seed in range(4):
        model = make(kind, recipe, seed)
        found, plain = model.greedy(SOURCE), greedy_without_cache(model, SOURCE)
        assert found.dtype == np.int32
        assert found.shape[1] <= plain.shape[1]
        for row, whole in zip(found, plain, strict=True):
            length = list(whole).index(END) + 1 if END in whole else len(whole)
            assert row[:length].tolist() == whole[:length].tolist()
            assert not row[length:].any()                      # PAD


def probability(model, source, answer):
    """The log-probability of an answer, END included."""
    found = log_softmax(logits(model, source[None], np.array([answer[:-1]], np.int32))[0])
    return float(found[np.arange(len(answer)), answer].sum(dtype=np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_a_beam_of_one_is_greedy(kind):
    for seed in range(4):
        model = make(kind, seed=seed)
        found = model.greedy(SOURCE[1:])[0]
        ends = list(found).index(END) if END in found else len(found) - 1
        assert model.beam(SOURCE[1], 1)[:-1].tolist() == found[:ends].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_beam_wide_enough_finds_the_best_of_all_answers(kind):
    """Of a vocabulary of 5 and answers of up to 3 tokens there are 85; a beam of 64 keeps them all."""
    source = np.array([4, 3], np.int32)
    for seed in range(3):
        model = make(kind, seed=seed, vocabulary=5, context=3 if kind == "seq2seq" else 5, layers=1)
        letters = [i for i in range(5) if i != END]
        every = [[*said, END] for n in range(3) for said in itertools.product(letters, repeat=n)]
        best = max(every, key=lambda answer: probability(model, source, answer) / len(answer))
        assert model.beam(source, 64).tolist() == best


def test_an_answer_has_what_the_source_leaves_of_a_decoders_context():
    model = make("gpt", context=4)
    assert model.greedy(SOURCE).shape[1] == 1                  # three tokens and BEGIN are read, one is written
