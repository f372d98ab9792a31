"""Several tasks in one model: the names in front, and loss weights on their way to the gradients."""
import numpy as np
import pytest
from test_seq2seq import IDS, SOURCE, TARGETS, make

from minillm.autograd.tensor import Tensor, backward
from minillm.data.mixing import loss_weights, prefixed
from minillm.data.special import NO_TARGET
from minillm.data.tasks import Example, Task
from minillm.errors import MiniLLMError
from minillm.experiments.data import TaskData
from minillm.experiments.options import options_for
from minillm.formats import FLOAT32
from minillm.testing import gamma

WEIGHTS = np.array([1, 3], np.float32)


def test_a_weight_reaches_the_gradients_of_its_examples():
    model, V = make(), 11
    x = np.random.default_rng(0).uniform(-2, 2, (*TARGETS.shape, V)).astype(np.float32)
    logits = Tensor(x, FLOAT32, name="logits")
    found = backward(model.weighted(logits, TARGETS, WEIGHTS))["logits"]
    p = np.exp(x.astype(float)) / np.exp(x.astype(float)).sum(-1, keepdims=True)
    wanted, counts = np.eye(V)[TARGETS], TARGETS != NO_TARGET                               # (B,T,V), (B,T)
    share = (WEIGHTS[:, None] * counts / (WEIGHTS * counts.sum(1)).sum())[..., None]         # (B,T,1)
    # log sum exp: V + 2 roundings, below log V + 2 < 5; that less a logit, an exponential, a difference: 2 (5 + 2) + 4; shares: 6.
    assert (abs(found - share * (p - wanted)) <= gamma(V + 26, FLOAT32) * share * (p + wanted)).all()


def test_weights_that_are_equal_change_nothing():
    model = make()
    plain, weighted = model.loss(SOURCE, IDS, TARGETS), model.loss(SOURCE, IDS, TARGETS, np.full(2, 3, np.float32))
    assert weighted.item() == plain.item()                                  # one group, whose part of the whole is 1


def test_weighted_micro_batches_are_one_big_batch():
    model, data = make(), TaskData(None, (), None, None, "", (1, 3))
    both = SOURCE, IDS, TARGETS, WEIGHTS
    parts = [tuple(a[row:row + 1] for a in both) for row in (0, 1)]
    assert [data.targets(*part) for part in parts] == [3, 2 * 3]
    assert data.targets(*both) == 9
    mean = sum(data.targets(*part) * model.loss(*part).item() for part in parts) / 9
    # Rows of the same model: what differs is the order of sums over a row's 2 or 3 targets and over its groups, in float32.
    assert mean == pytest.approx(model.loss(*both).item(), rel=gamma(12, FLOAT32))


@pytest.mark.parametrize(("text", "tasks", "says"), [
    ("1,2", 3, "for 3 tasks: give one for each"), ("2", 1, "for 1 task: give one"), ("1,0", 2, "give numbers above 0"),
    ("1,-2", 2, "give numbers above 0"), ("1,much", 2, "give numbers above 0"), ("1,nan", 2, "give numbers above 0"),
    ("1,1e39", 2, "give numbers above 0")])
def test_weights_that_fit_no_tasks_are_refused(text, tasks, says):
    with pytest.raises(MiniLLMError, match=says):
        loss_weights(text, tasks)


def test_the_name_of_a_task_stands_in_front_of_its_sources():
    task = Task("sums", (Example("1+1", "2"),), (Example("1+2", "3"),), ("exact_match",))
    assert prefixed(task) == Task("sums", (Example("sums: 1+1", "2"),), (Example("sums: 1+2", "3"),), ("exact_match",))


def test_a_task_may_have_defaults_of_its_own_and_what_is_given_comes_first():
    assert [options_for({"model": "seq2seq", "task": name}).tokenizer for name in ("translation", "dialogue")] == ["char", "bpe"]
    assert options_for({"model": "seq2seq"}).task == "translation"
    assert options_for({"model": "seq2seq", "task": "translation,dialogue"}).tokenizer == "bpe"
    assert options_for({"model": "seq2seq", "task": "dialogue", "tokenizer": "char"}).tokenizer == "char"
