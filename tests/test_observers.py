"""Observers: which range they choose, over how many batches, and that a clipping one errs less where clipping pays."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minillm.errors import MiniLLMError
from minillm.quantization.affine import PER_ROW, PER_TENSOR, Scheme, grid, quantize
from minillm.quantization.error import sqnr_db
from minillm.quantization.observers import (
    BINS,
    Entropy,
    Histogram,
    MeanSquaredError,
    MinMax,
    MovingAverage,
    Percentile,
    divergence,
    least_error_range,
)

OBSERVERS = (MinMax, MovingAverage, Percentile, MeanSquaredError, Entropy)
batches = st.lists(hnp.arrays(np.float32, 5, elements=st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=4)


def observed(observer, *arrays):
    for x in arrays:
        observer.observe(x)
    return observer


@given(batches)
def test_min_max_is_that_of_all_batches_together_and_0(arrays):
    low, high = observed(MinMax(), *arrays).range()
    together = np.concatenate([*arrays, np.zeros(1, np.float32)])
    assert (low, high) == (together.min(), together.max())


def test_min_max_keeps_a_range_for_each_row():
    low, high = observed(MinMax(PER_ROW), np.float32([[1, 2], [-3, -4]]), np.float32([[5, -1], [0, 0]])).range()
    assert low.tolist() == [-1, -4]
    assert high.tolist() == [5, 0]


def test_a_moving_average_begins_with_the_first_and_moves_by_its_momentum():
    low, high = observed(MovingAverage(momentum=0.25), np.float32([-8, 8]), np.float32([-4, 16])).range()
    assert (low, high) == (-7, 10)


@given(batches)
def test_a_histogram_counts_every_value_once_in_its_bin(arrays):
    found = observed(Histogram(), *arrays)
    together = np.concatenate(arrays)
    assert found.counts.sum() == together.size
    if found.top > 0:
        # doubling merges pairs of bins, so the counts are those of the final bins, but for values on a boundary between two
        width = found.top / np.float32(BINS // 2)
        place = np.repeat(np.arange(BINS) - BINS // 2, found.counts)
        assert np.all(abs(np.sort(together).astype(np.float64) - (place + 0.5) * width) <= width * 0.51 + 1e-38)


def test_a_histogram_doubles_without_losing_where_values_lie():
    once = observed(Histogram(), np.linspace(-8, 8, 4000, dtype=np.float32))
    grown = observed(Histogram(), np.float32([1]), np.linspace(-8, 8, 4000, dtype=np.float32))
    assert grown.top == once.top == 8
    assert abs(grown.counts - once.counts).sum() == 1


@pytest.mark.parametrize(("symmetric", "low", "high"), [(True, -98, 98), (False, -97.98, 97.98)])
def test_a_percentile_leaves_out_its_share(symmetric, low, high):
    x = np.linspace(-100, 100, 20001, dtype=np.float32)
    found = observed(Percentile(Scheme(symmetric=symmetric), 0.98), x).range()
    assert found[0][0] == pytest.approx(low, abs=0.1)                          # two bins of 0.049
    assert found[1][0] == pytest.approx(high, abs=0.1)


def test_a_percentile_of_one_side_leaves_the_other_alone():
    x = np.abs(np.random.default_rng(0).standard_normal(10000)).astype(np.float32)
    low, _ = observed(Percentile(Scheme(symmetric=False), 0.99), x).range()
    assert low == 0


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_least_squared_error_is_that_of_the_best_share(bits):
    """The observer's choice from a histogram is as good as trying all shares on the values themselves, within a tenth of a dB."""
    x = np.random.default_rng(1).standard_t(4, 20000).astype(np.float32)
    scheme = Scheme(grid(bits))
    tried = [sqnr_db(x, quantize(x, scheme, -abs(x).max(keepdims=True) * s, abs(x).max(keepdims=True) * s).values())
             for s in np.arange(5, 101) / 100]
    assert sqnr_db(x, quantize(x, scheme, *observed(MeanSquaredError(scheme), x).range()).values()) >= max(tried) - 0.1


def test_every_row_has_its_own_best_share():
    rng = np.random.default_rng(2)
    flat, peaked = rng.uniform(-1, 1, 4096), np.append(rng.uniform(-1, 1, 4095), 20)
    rows = np.stack([flat, peaked]).astype(np.float32)
    _, high = least_error_range(rows, Scheme(grid(4)))
    assert high[0] > 0.9 * abs(flat).max()
    assert high[1] < 5              # 15 steps of 20 / 7 leave nothing of the other 4095


def test_kullback_leibler_is_least_where_the_levels_fit():
    uniform = np.ones(2048, np.float32)
    assert divergence(uniform, 2048, 128) == pytest.approx(0, abs=1e-5)                    # nothing clipped, nothing told apart
    assert divergence(uniform, 1024, 128) > 0.1                                            # half of it in one bin


def test_entropy_clips_a_long_tail_and_keeps_a_short_one():
    rng = np.random.default_rng(3)
    tail = np.append(rng.standard_normal(100000), [100.0, -100.0]).astype(np.float32)
    assert observed(Entropy(), tail).range()[1][0] < 10
    assert observed(Entropy(), rng.uniform(-1, 1, 100000).astype(np.float32)).range()[1][0] > 0.95


@pytest.mark.parametrize("observer", OBSERVERS)
def test_all_zeros_have_an_empty_range_and_scale_1(observer):
    zeros = np.zeros(9, np.float32)
    found = observed(observer(), zeros, zeros).range()
    assert [end[0] for end in found] == [0, 0]
    assert quantize(zeros, PER_TENSOR, *found).scale == 1


@pytest.mark.parametrize("observer", OBSERVERS)
def test_a_constant_is_kept(observer):
    x = np.full(100, 5, np.float32)
    found = observed(observer(), x).range()
    assert abs(quantize(x, PER_TENSOR, *found).values() - 5).max() <= 5 / 127


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(observer, value):
    with pytest.raises(MiniLLMError, match="1 of 3 observed values are not finite"):
        observed(observer(), np.float32([1, value, 2]))


@pytest.mark.parametrize(("make", "says"), [
    (lambda: MinMax().range(), "nothing was observed"), (lambda: Percentile(share=0), "a share of 0"),
    (lambda: Histogram(PER_ROW), "not of each channel"), (lambda: Entropy(Scheme(symmetric=False)), "symmetric grid")])
def test_wrong_observers_are_named(make, says):
    with pytest.raises(MiniLLMError, match=says):
        make()
