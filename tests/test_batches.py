"""Batches: a pure function of the key, targets one on from inputs, and every id a target once in evaluation."""
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.data.batches import random_batch, window_batches, windows
from minillm.errors import MiniLLMError

unhurried = settings(deadline=None)                                            # the machine may be busy

COUNT = np.arange(1000, dtype=np.int32)                                        # an id is its own place
KEYS = st.lists(st.integers(0, 2**31), min_size=1, max_size=4).map(tuple)


@unhurried
@given(st.integers(1, 8), st.integers(1, 70), st.integers(1, 100), KEYS)
def test_random_windows_are_runs_of_the_text(batch, context, extra, key):
    ids = COUNT[:context + extra]
    inputs, targets = random_batch(ids, batch, context, key)
    for array in inputs, targets:
        assert array.shape == (batch, context)
        assert array.dtype == np.int32
        assert array.flags.c_contiguous
    assert (inputs == inputs[:, :1] + np.arange(context)).all()
    assert (targets == inputs + 1).all()
    assert targets.max() < len(ids)


def test_the_same_key_gives_the_same_batch_whatever_was_drawn_before():
    first = random_batch(COUNT, 12, 64, (3, 7, 1))
    np.random.default_rng((3, 7, 1)).integers(0, 9, 5)
    for step in range(5):
        random_batch(COUNT, 5, 9, (3, step, 1))
    assert np.array_equal(first, random_batch(COUNT, 12, 64, (3, 7, 1)))


def test_every_part_of_the_key_counts_and_so_does_its_length():
    keys = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 2), (2, 1), (1, 2, 0)]
    drawn = {random_batch(COUNT, 12, 64, key)[0].tobytes() for key in keys}
    assert len(drawn) == len(keys)


def test_every_window_is_drawn_and_about_equally_often():
    starts = np.concatenate([random_batch(COUNT[:30], 100, 10, (0, step))[0][:, 0] for step in range(40)])
    often = np.bincount(starts, minlength=20)                                  # starts 0 to 19: the last target is 29
    assert often.size == 20
    # 4000 draws over 20 starts: mean 200, deviation 13.8; five of them are 69
    assert abs(often - 200).max() < 69


def test_ids_of_another_integer_type_become_int32_and_the_batch_is_the_callers():
    wide = COUNT.astype(np.uint16)
    inputs, targets = random_batch(wide, 3, 5, (1,))
    assert inputs.dtype == targets.dtype == np.int32
    inputs += 1
    assert (inputs == targets).all()
    assert (wide == COUNT).all()


@unhurried
@given(st.integers(2, 300), st.integers(1, 299))
def test_every_id_but_the_first_is_a_target_once(length, context):
    ids = COUNT[:length]
    if length <= context:
        with pytest.raises(MiniLLMError):
            windows(ids, context)
        return
    inputs, targets = windows(ids, context)
    assert inputs.shape == targets.shape == ((length - 1) // context, context)
    assert inputs.ravel().tolist() == list(range(inputs.size))
    assert (targets == inputs + 1).all()
    assert 0 <= length - 1 - inputs.size < context


def test_windows_are_views_of_int32_ids():
    for array in windows(COUNT, 64):
        assert np.shares_memory(array, COUNT)
        assert array.dtype == np.int32
    assert windows(COUNT.astype(np.int64), 64)[0].dtype == np.int32
    assert windows(COUNT[::2], 64)[0].flags.c_contiguous


@unhurried
@given(st.integers(1, 40), st.integers(1, 90))
def test_window_batches_are_the_windows_in_order(batch, context):
    parts = list(window_batches(COUNT, batch, context))
    assert all(len(inputs) == batch for inputs, _ in parts[:-1])
    assert 1 <= len(parts[-1][0]) <= batch
    for joined, whole in zip(map(np.concatenate, zip(*parts, strict=True)), windows(COUNT, context), strict=True):
        assert np.array_equal(joined, whole)


def test_too_few_ids_name_the_part_and_the_remedy():
    message = ("the validation part has 40 tokens, but one window of context 64 needs 65; "
               "use a longer text or a smaller --context")
    for work in windows, lambda ids, context: window_batches(ids, 2, context):  # before the first batch is asked for
        with pytest.raises(MiniLLMError, match=f"^{re.escape(message)}$"):
            work(COUNT[:40], 64)
    with pytest.raises(MiniLLMError, match=r"the training part has 64 tokens, .* 64 needs 65"):
        random_batch(COUNT[:64], 2, 64, (0,))
    with pytest.raises(MiniLLMError, match="the second half part has 0 tokens"):
        random_batch(COUNT[:0], 2, 64, (0,), part="second half")
    assert random_batch(COUNT[:65], 2, 64, (0,))[1].max() == 64
    assert len(windows(COUNT[:65], 64)[0]) == 1


@pytest.mark.parametrize("number", [0, -3])
def test_empty_windows_and_empty_batches_are_errors(number):
    for work in windows, lambda ids, context: random_batch(ids, 2, context, (0,)):
        with pytest.raises(MiniLLMError, match=f"a context of {number} tokens is empty; use a --context of 1 or more"):
            work(COUNT, number)
    for work in window_batches, lambda ids, batch, context: random_batch(ids, batch, context, (0,)):
        with pytest.raises(MiniLLMError, match=f"a batch of {number} windows is empty; use a --batch of 1 or more"):
            work(COUNT, number, 8)
