"""Observers: which range of values a grid should span, found from the values that come along.

Each is told of arrays with `observe(x)` and asked for `range()`: (low, high), one for each row of its scheme. What lies outside
will saturate. MinMax keeps everything, MovingAverage forgets, the others clip: a share of values, or what costs the least squared
error or information.
"""
from dataclasses import replace

import numpy as np

from minillm.errors import MiniLLMError
from minillm.quantization.affine import PER_TENSOR, Scheme, extent, quantize

BINS = 4096                # of a histogram: 2048 on each side of 0
SHRINKS = np.arange(100, 4, -1, np.float32) / np.float32(100)      # shares of the whole range that are tried: 1, 0.99 ... 0.05


class MinMax:
    """The least and the largest value seen so far."""

    def __init__(self, scheme: Scheme = PER_TENSOR):
        self.scheme, self.low, self.high = scheme, None, None

    def observe(self, x: np.ndarray) -> None:
        """MiniLLMError for NaN and infinity, which no grid spans."""
        if not np.isfinite(x).all():
            raise MiniLLMError(f"{x.size - np.isfinite(x).sum()} of {x.size} observed values are not finite: "
                               "find out what made them before choosing a range")
        low, high = extent(self.scheme.rows(x))
        self.low, self.high = (low, high) if self.low is None else self.merged(low, high)

    def merged(self, low, high):
        return np.minimum(self.low, low), np.maximum(self.high, high)

    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """(low, high), (S,) float32 each. MiniLLMError where nothing was observed."""
        if self.low is None:
            raise MiniLLMError("nothing was observed, so there is no range: give at least one batch to calibrate with")
        return self.low, self.high


class MovingAverage(MinMax):
    """The ends of each array, averaged: new = old + momentum (seen - old). Jacob et al. 2018, section 3.1."""

    def __init__(self, scheme: Scheme = PER_TENSOR, momentum: float = 0.01):
        super().__init__(scheme)
        self.momentum = np.float32(momentum)

    def merged(self, low, high):
        return self.low + self.momentum * (low - self.low), self.high + self.momentum * (high - self.high)


class Histogram(MinMax):
    """Counts of values in 4096 equal bins over -top ... top; where top is passed it doubles and neighbouring bins are merged."""

    def __init__(self, scheme: Scheme = PER_TENSOR):
        super().__init__(scheme)
        if scheme.granularity != "tensor":
            raise MiniLLMError(f"a histogram is of a whole tensor, not of each {scheme.granularity}: take MinMax or MovingAverage")
        self.top, self.counts = np.float32(0), np.zeros(BINS, np.int64)

    def observe(self, x: np.ndarray) -> None:
        super().observe(x)
        largest = max(-self.low[0], self.high[0])
        if self.top == 0:
            self.top = largest
            self.counts[BINS // 2] += x.size if largest == 0 else 0
        while largest > self.top:
            self.widen()
        if self.top > 0:
            self.counts += np.histogram(x, BINS, (-self.top, self.top))[0]

    def widen(self) -> None:
        """Bins twice as wide: pairs of the old ones, in the middle of the new ones."""
        pairs = self.counts.reshape(-1, 2).sum(1, dtype=np.int64)
        self.top, self.counts = self.top * np.float32(2), np.zeros_like(self.counts)
        self.counts[BINS // 4:BINS * 3 // 4] = pairs

    def centres(self) -> np.ndarray:
        """The middle of each bin, (BINS,) float32."""
        return (np.arange(BINS, dtype=np.float32) + np.float32(0.5 - BINS // 2)) * (self.top / np.float32(BINS // 2))

    def clipped(self, top) -> tuple[np.ndarray, np.ndarray]:
        """The range seen so far, cut off beyond -top and top."""
        low, high = super().range()
        return np.maximum(low, -top), np.minimum(high, top)


class Percentile(Histogram):
    """All but the outermost values: `share` of them lie within, by size where the scheme is symmetric, else at either end."""

    def __init__(self, scheme: Scheme = PER_TENSOR, share: float = 0.9999):
        super().__init__(scheme)
        if not 0 < share <= 1:
            raise MiniLLMError(f"a share of {share}: it must lie in 0 ... 1, 0 excluded")
        self.share = share

    def range(self):
        low, high = super().range()
        if self.top == 0 or self.share == 1:
            return low, high
        if self.scheme.symmetric:
            sizes = self.counts[BINS // 2:] + self.counts[BINS // 2 - 1::-1]               # of |x|
            return self.clipped(self.edge(sizes, self.share, 0))
        outside = (1 - self.share) / 2
        lower, upper = (self.edge(counts, 1 - outside, BINS // 2) for counts in (self.counts[::-1], self.counts))
        return np.maximum(low, -max(lower, np.float32(0))), np.minimum(high, max(upper, np.float32(0)))

    def edge(self, counts: np.ndarray, share: float, zero: int) -> np.float32:
        """The upper end of the bin at which `share` of the counts is reached; bin number `zero` begins at 0."""
        reached = np.searchsorted(np.cumsum(counts), share * counts.sum())
        return np.float32(reached + 1 - zero) * (self.top / np.float32(BINS // 2))


class MeanSquaredError(Histogram):
    """The share of the range that costs the least squared error, clipping and rounding together."""

    def range(self):
        low, high = super().range()
        if self.top == 0:
            return low, high
        used = np.flatnonzero(self.counts)
        return least_error_range(self.centres()[used][None], self.scheme, low, high, weights=self.counts[used])


def least_error_range(rows: np.ndarray, scheme: Scheme, low=None, high=None, power: float = 2.0, weights=1) -> tuple:
    """(low, high), (S,) each: of the shares 1, 0.99 ... 0.05 of each row's range, the one with the least sum of |error|^power."""
    low, high = extent(rows) if low is None else (low, high)
    best_low, best_high, least = low, high, np.full(len(rows), np.inf, np.float32)
    by_row = replace(scheme, granularity="channel", axis=0)
    for share in SHRINKS:
        error = abs(quantize(rows, by_row, low * share, high * share).values() - rows)          # (S,n) f32
        cost = (error**np.float32(power) * weights).sum(-1, dtype=np.float32)
        better = cost < least
        least, best_low = np.where(better, cost, least), np.where(better, low * share, best_low)
        best_high = np.where(better, high * share, best_high)
    return best_low, best_high


class Entropy(Histogram):
    """The range of |x| whose quantized distribution tells least apart from what was seen (Kullback-Leibler).

    Of every clipping point, values beyond it are counted into its last bin (P); the bins are merged into as many as the grid has
    levels and spread again over those that were not empty (Q). Migacz 2017, "8-bit Inference with TensorRT", slides 36 to 40.
    """

    def __init__(self, scheme: Scheme = PER_TENSOR):
        super().__init__(scheme)
        if not scheme.symmetric:
            raise MiniLLMError("entropy calibration is of |x|, for a symmetric grid: take Percentile or MeanSquaredError")

    def range(self):
        low, high = super().range()
        levels = self.scheme.grid.highest + 1
        sizes = (self.counts[BINS // 2:] + self.counts[BINS // 2 - 1::-1]).astype(np.float32)
        if self.top == 0:
            return low, high
        ends = range(levels, len(sizes) + 1, max(1, levels // 16))
        best = min(ends, key=lambda end: divergence(sizes, end, levels))
        return self.clipped(np.float32(best) * (self.top / np.float32(BINS // 2)))


def divergence(sizes: np.ndarray, end: int, levels: int) -> float:
    """KL(P, Q) in nats of the counts clipped at bin `end` and merged into `levels`."""
    reference = sizes[:end].copy()
    reference[-1] += sizes[end:].sum(dtype=np.float32)
    level = np.arange(end) * levels // end                                     # the level that each bin is merged into
    filled = reference > 0
    total = np.bincount(level, sizes[:end], levels)
    share = total / np.maximum(np.bincount(level, filled, levels), 1)
    q = np.where(filled, share[level], 0)
    p, q = reference / reference.sum(dtype=np.float32), q / max(q.sum(), 1e-30)
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))).sum())
