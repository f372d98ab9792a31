"""Moments in eight bits: a code of one byte for each entry, and a float32 number for each block of 256.

A block is divided by its largest magnitude, and each entry stored as the code of the nearest of at most 256 values in -1 ... 1.
Which values these are is the map. Dettmers et al. 2022, 8-bit optimizers via block-wise quantization, arXiv 2110.02861.
"""
import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

BLOCK = 256             # entries that share a largest magnitude, so that an outlier spoils no more than these
SMALLEST = 4096         # arrays with fewer entries stay float32: they weigh little, and norms and biases are sensitive


def linear_values(signed: bool) -> list[float]:
    """Evenly spaced: k / 127 from -1 to 1, which leaves one code without a value; k / 255 from 0 to 1 without a sign."""
    return [k / 127 for k in range(-127, 128)] if signed else [k / 255 for k in range(256)]


def dynamic_values(signed: bool) -> list[float]:
    """Seven decades, each cut into twice as many parts as the one below it; the values are the middles of the parts, 0, and 1.

    Decade i, from 10^(i-7) to 10^(i-6), has 2^i parts for each sign, or 2^(i+1) without one. So the smallest value is 5.5e-7
    (3.25e-7 without a sign), and those of the highest decade are 1.4 % of the largest magnitude apart (0.7 %).
    """
    middles = []
    for i in range(7):
        parts = 2 ** (i if signed else i + 1)
        middles += [10.0 ** (i - 6) * (0.1 + 0.9 * (k + 0.5) / parts) for k in range(parts)]
    return sorted([*middles, *(-x for x in middles if signed), 0.0, 1.0])


@dataclass(frozen=True)
class BlockMap:
    """How a moment is stored in eight bits. `listing(signed)` are the map's values in order; the largest is 1."""

    name: str
    listing: Callable[[bool], list[float]]
    bits = 8

    def values(self, signed: bool) -> np.ndarray:
        """The map: a code is an index into it, (256,) or (255,) f32."""
        return np.array(self.listing(signed), np.float32)

    def encode(self, x: np.ndarray, signed: bool) -> tuple[np.ndarray, np.ndarray]:
        """Float32 to (codes of x.shape u8, the largest magnitude of each block (n / 256,) f32).

        An infinity or NaN spoils its block: zeros in it come back as NaN.
        """
        flat = x.reshape(-1)
        largest = np.maximum.reduceat(np.abs(flat), np.arange(0, flat.size, BLOCK)) if flat.size else np.zeros(0, np.float32)
        scaled = flat / spread(np.where(largest == 0, np.float32(1), largest), flat.size)
        return nearest(self, scaled, signed).reshape(x.shape), largest

    def decode(self, codes: np.ndarray, largest: np.ndarray, signed: bool) -> np.ndarray:
        """The values that codes stand for, float32."""
        return np.take(search_table(self, signed)[0], codes) * spread(largest, codes.size).reshape(codes.shape)


def nearest(map: BlockMap, scaled: np.ndarray, signed: bool) -> np.ndarray:
    """The code of the value nearest to each entry: the number of middles below it, so that a tie goes to the lower neighbour.

    Counted from where an entry's upper 16 bits put it: a few gathers, where np.searchsorted takes twenty times as long.
    """
    _, middles, first, more = search_table(map, signed)
    codes = np.take(first, scaled.view(np.uint32) >> np.uint32(16))          # u8
    for _ in range(more):
        codes = codes + (np.take(middles, codes) < scaled)
    return codes


@functools.cache
def search_table(map: BlockMap, signed: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """A map's values; the middles between neighbours, then infinity, (256,) f32; how many lie below all numbers that begin with
    some 16 bits, (65536,) u8; and how many more at most lie below the largest of these.
    """
    values = map.values(signed)
    middles = (values[1:] + values[:-1]) / np.float32(2)
    begin = np.arange(2**16, dtype=np.uint32) << np.uint32(16)
    end = np.where(np.isfinite(begin.view(np.float32)), begin | np.uint32(0xFFFF), begin)
    below = [np.searchsorted(middles, bits.view(np.float32)) for bits in (begin, end)]
    first = np.minimum(*below)
    filled = np.concatenate([middles, np.full(257 - len(values), np.inf, np.float32)])
    return values, filled, first.astype(np.uint8), int((np.maximum(*below) - first).max())


def spread(largest, size):
    """One number a block to one number an entry."""
    return np.repeat(largest, BLOCK)[:size]


LINEAR8 = BlockMap("linear8", linear_values)
DYNAMIC8 = BlockMap("dynamic8", dynamic_values)
BLOCK_MAPS = {m.name: m for m in (LINEAR8, DYNAMIC8)}
