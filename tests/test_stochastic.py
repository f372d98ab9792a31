"""Stochastic rounding: unbiased, one of two neighbours, a function of key and place alone; and the random bits that it draws."""
import math
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from number_cases import SIMULATED, bits, every_edge, some

from minillm.errors import MiniLLMError
from minillm.formats import BFLOAT16, E8M0, FLOAT4_E2M1, FLOAT8_E4M3, FLOAT16, INT8, format_named
from minillm.rounding import random_bits, round_to
from minillm.testing import exact_neighbours

# --- random bits

KEY = 0x0123456789ABCDEF
COUNT = 2**14
SIX_SIGMA = 6 * 0.5 / COUNT**0.5                                               # of the share of ones among COUNT fair bits


def share_of_ones(words):
    """For each of the 32 positions, the share of words that have a one there."""
    return (words[:, None] >> np.arange(32, dtype=np.uint32) & np.uint32(1)).sum(0, dtype=np.int64) / len(words)


def test_random_bits_are_a_function_of_key_and_place():
    a = random_bits(np, KEY, (64, 32))
    assert a.dtype == np.uint32
    assert np.array_equal(a, random_bits(np, KEY, (64, 32)))
    assert np.array_equal(a.ravel()[:100], random_bits(np, KEY, (100,)))
    assert random_bits(np, KEY, (0, 3)).shape == (0, 3)
    assert random_bits(np, KEY, ()).shape == ()
    assert len(np.unique(random_bits(np, KEY, (2**16,)))) == 2**16            # a bijection of the place


@pytest.mark.parametrize("key", [0, 1, 2**32 - 1, 2**63, 2**64 - 1, KEY])
def test_every_random_bit_is_fair_and_no_bit_follows_its_neighbour(key):
    words = random_bits(np, key, (COUNT + 1,))
    assert np.all(abs(share_of_ones(words[1:]) - 0.5) < SIX_SIGMA)
    assert np.all(abs(share_of_ones(words[1:] ^ words[:-1]) - 0.5) < SIX_SIGMA)
    for turn in range(1, 32):                                                 # no two bits of one word go together
        turned = words << np.uint32(turn) | words >> np.uint32(32 - turn)
        assert np.all(abs(share_of_ones((words ^ turned)[1:]) - 0.5) < SIX_SIGMA)


@pytest.mark.parametrize("bit", range(64))
def test_keys_that_differ_in_one_bit_have_nothing_in_common(bit):
    difference = random_bits(np, KEY, (COUNT,)) ^ random_bits(np, KEY ^ 1 << bit, (COUNT,))
    assert np.all(abs(share_of_ones(difference) - 0.5) < SIX_SIGMA)


def test_random_bytes_are_uniform():
    counts = np.bincount(random_bits(np, KEY, (2**16,)).view(np.uint8), minlength=256)
    expected = 2**18 / 256
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - 255) < 6 * math.sqrt(2 * 255)                     # mean and deviation of chi-square with 255 degrees


@settings(max_examples=50)
@given(st.integers(0, 2**64 - 2))
def test_adjacent_keys_are_independent(key):
    difference = random_bits(np, key, (COUNT,)) ^ random_bits(np, key + 1, (COUNT,))
    assert np.all(abs(share_of_ones(difference) - 0.5) < SIX_SIGMA)


# --- rounding with them

DRAWS = 2**16
PLACES = [Fraction(1, 2), Fraction(1, 4), Fraction(1, 3), Fraction(7, 8), Fraction(1, 100), Fraction(99, 100)]


def draws(x, format, mode="stochastic", key=KEY, count=DRAWS):
    """The same number, rounded many times, each with bits of its own, float64."""
    return round_to(np.full(count, x, np.float64), format, mode, key).astype(np.float64)


@pytest.mark.parametrize("format", [FLOAT16, FLOAT8_E4M3, FLOAT4_E2M1, INT8, E8M0, format_named("float16_flush")], ids=str)
@pytest.mark.parametrize("at", ["one", "smallest"])
def test_the_mean_is_the_number_within_four_sigma(format, at, kernels):
    """Of n draws of a or b with P(b) = p the mean has deviation (b - a) sqrt(p (1 - p) / n)."""
    below = 1.0 if at == "one" else format.smallest if not format.zero else 0.0
    above = format.neighbours(below)[1]
    for sign in (1, -1) if format.signed else (1,):
        for i, p in enumerate(PLACES):
            x = sign * float(Fraction(below) + p * (Fraction(above) - Fraction(below)))
            for wide in (np.float32, np.float64):
                got = round_to(np.full(DRAWS, x, wide), format, "stochastic", KEY + i).astype(np.float64)
                assert set(np.abs(got)) <= {below, above}
                sigma = (above - below) * math.sqrt(p * (1 - p) / DRAWS)
                assert abs(np.mean(got) - x) <= 4 * sigma, (p, wide)


@pytest.mark.parametrize("format", SIMULATED, ids=str)
def test_only_ever_one_of_the_two_neighbours(format, kernels):
    x = some(every_edge(format, np.float64), 200)
    x = x[(np.abs(x) <= format.max) & (x >= format.lowest) & (format.zero | (x != 0))]
    for key in (KEY, 0, 2**64 - 1):
        for v, got in zip(x.tolist(), np.abs(round_to(x, format, "stochastic", key).astype(np.float64)), strict=True):
            assert Fraction(got) in exact_neighbours(abs(Fraction(v)), format)


def test_beyond_the_largest_value_it_is_that_or_what_overflow_says(kernels):
    assert set(draws(65510.0, FLOAT16)) == {65504, math.inf}
    assert set(draws(500.0, format_named("float8_e4m3_saturate"))) == {448}
    assert set(draws(-1e9, FLOAT16)) == {-math.inf}


@pytest.mark.parametrize("format", [FLOAT16, BFLOAT16, FLOAT8_E4M3, E8M0, INT8], ids=str)
def test_the_same_key_gives_the_same_bits_on_any_thread_in_any_pieces(format, kernels):
    x = np.abs(np.random.default_rng(0).standard_normal(5000)).astype(np.float32)
    expected = round_to(x, format, "stochastic", KEY)
    with ThreadPoolExecutor(4) as threads:
        for got in threads.map(lambda _: round_to(x, format, "stochastic", KEY), range(8)):
            assert np.array_equal(bits(got), bits(expected))
    for n in (1, 2047, 2048, 2049):                                            # a value's bits come from its own place
        assert np.array_equal(bits(round_to(x[:n], format, "stochastic", KEY)), bits(expected[:n]))
    assert np.array_equal(bits(round_to(x.reshape(50, 100), format, "stochastic", KEY)).ravel(), bits(expected))
    turned = round_to(np.asfortranarray(x.reshape(50, 100)), format, "stochastic", KEY)
    assert np.array_equal(bits(np.ascontiguousarray(turned)).ravel(), bits(expected))
    assert not np.array_equal(round_to(x, format, "stochastic", KEY + 1), expected)


@pytest.mark.parametrize("n", [1, 2, 4, 8])
@pytest.mark.parametrize("wide", [np.float32, np.float64])
def test_few_bits_cut_the_probability_and_so_the_size(n, wide, kernels):
    for p in (Fraction(1, 3), Fraction(99, 100), Fraction(1, 2)):
        x = float(1 + p * Fraction(FLOAT8_E4M3.eps))
        got = round_to(np.full(DRAWS, -x, wide), FLOAT8_E4M3, f"stochastic_{n}", KEY).astype(np.float64)
        cut = Fraction(math.floor(p * 2**n), 2**n)                             # the documented bias: less than 2^-n
        assert 0 <= p - cut < Fraction(1, 2**n)
        sigma = FLOAT8_E4M3.eps * math.sqrt(cut * (1 - cut) / DRAWS)
        assert abs(np.mean(got) + 1 + float(cut) * FLOAT8_E4M3.eps) <= 4 * sigma + 1e-12


@pytest.mark.parametrize("key", [-1, 2**64, 1.5, "7"])
def test_a_key_that_has_no_64_bits_is_refused(key, kernels):
    with pytest.raises(MiniLLMError, match=r"give a whole number from 0 to 2\^64 - 1"):
        round_to(np.ones(3, np.float32), FLOAT8_E4M3, "stochastic", key)


@pytest.mark.parametrize("mode", ["stochastic", "stochastic_8"])
def test_a_stochastic_mode_needs_a_key(mode, kernels):
    with pytest.raises(MiniLLMError, match=f"{mode} rounding to float16 needs a key"):
        round_to(np.ones(3, np.float32), FLOAT16, mode)


@pytest.mark.parametrize("key", [0, np.uint64(2**64 - 1), np.int32(5)])
def test_keys_may_be_numpys_integers(key, kernels):
    x = np.full(64, 1.01, np.float32)
    assert np.array_equal(round_to(x, FLOAT8_E4M3, "stochastic", key), round_to(x, FLOAT8_E4M3, "stochastic", int(key)))


@pytest.mark.parametrize("mode", ["stochastic_0", "stochastic_33", "stochastic_", "stochastic_x", "Stochastic"])
def test_no_other_number_of_bits(mode):
    with pytest.raises(MiniLLMError, match="unknown rounding"):
        round_to(np.ones(1, np.float32), FLOAT16, mode, 1)
