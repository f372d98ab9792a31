"""Every format that ml_dtypes has, bit for bit: all halves, every tie, random float32 patterns; on request all 2^32 of them."""
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
from number_cases import HALVES, PEERS, RANDOM, SPECIAL, around, every_edge

from minillm.formats import E8M0
from minillm.rounding import round_to
from minillm.testing import exact_round


def wrong_in_ml_dtypes(x):
    """The numbers that it rounds to 2^-126 although 2^-127 is nearer: subnormal in float32."""
    return (x > np.float32(2**-127)) & (x < np.float32(1.5 * 2**-127))


def theirs(x, format):
    with np.errstate(all="ignore"):
        return x.astype(PEERS[format]).astype(np.float32)


def comparable(x, format):
    """All but NaN where the format has none, and what ml_dtypes rounds wrongly."""
    if not format.has_nan:
        return x[~np.isnan(x)]
    return x[~wrong_in_ml_dtypes(x)] if format is E8M0 else x


def agree(x, format):
    x = comparable(x, format)
    got, expected = round_to(x, format).astype(np.float32), theirs(x, format)
    wrong = ~((got == expected) & (np.signbit(got) == np.signbit(expected)) | np.isnan(got) & np.isnan(expected))
    assert not wrong.any(), (x[wrong][:5], got[wrong][:5], expected[wrong][:5])


@pytest.mark.parametrize("format", PEERS, ids=str)
def test_all_halves(format, kernels):
    with np.errstate(invalid="ignore"):
        agree(HALVES.astype(np.float32), format)


@pytest.mark.parametrize("format", PEERS, ids=str)
def test_every_value_and_every_tie_and_what_lies_beside_them(format, kernels):
    agree(np.concatenate([every_edge(format, np.float32), around(SPECIAL)]), format)


@pytest.mark.parametrize("format", PEERS, ids=str)
def test_random_patterns(format, kernels):
    agree(RANDOM, format)


def test_ml_dtypes_rounds_subnormal_block_scales_wrongly():
    x = around(np.array([2**-149, 2**-130, 2**-128, 2**-127, 1.25 * 2**-127, 1.5 * 2**-127, 2**-126], np.float32))
    x = x[x > 0]
    ours = round_to(x, E8M0)
    assert ours.tolist() == [exact_round(Fraction(float(v)), E8M0) for v in x]
    assert set(ours[wrong_in_ml_dtypes(x)]) == {2**-127}
    assert set(theirs(x, E8M0)[wrong_in_ml_dtypes(x)]) == {2**-126}
    assert (theirs(x, E8M0) != ours).tolist() == wrong_in_ml_dtypes(x).tolist()


def test_ml_dtypes_rounds_doubles_twice():
    x = np.array([1 + 2**-8 + 2**-40])                                         # beside a tie, of which float32 makes one
    bfloat16 = next(f for f in PEERS if f.name == "bfloat16")
    assert exact_round(x.item(), bfloat16) == round_to(x, bfloat16).item() == 1 + 2**-7
    assert theirs(x, bfloat16).item() == 1


@pytest.mark.exhaustive
@pytest.mark.parametrize("format", PEERS, ids=str)
def test_all_floats(format):
    """All 2^32 of them, on two threads; ml_dtypes takes most of the time."""
    def chunk(start):
        agree(np.arange(start, start + 2**20, dtype=np.uint32).view(np.float32), format)

    round_to(np.ones(1, np.float32), format)
    with np.errstate(all="ignore"), ThreadPoolExecutor(2) as threads:
        for _ in threads.map(chunk, range(0, 2**32, 2**20)):
            pass
