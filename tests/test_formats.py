"""Formats: what they derive from their bits agrees with NumPy's and ml_dtypes' own words."""
import ml_dtypes
import numpy as np
import pytest

from minillm.errors import MiniLLMError
from minillm.formats import BFLOAT16, FLOAT16, FLOAT32, FORMATS, format_named
from minillm.testing import FLOAT64

INFO = {FLOAT16: np.finfo(np.float16), FLOAT32: np.finfo(np.float32), FLOAT64: np.finfo(np.float64),
        BFLOAT16: ml_dtypes.finfo(ml_dtypes.bfloat16)}


@pytest.mark.parametrize("format", INFO, ids=str)
def test_constants_are_those_of_the_type(format):
    info = INFO[format]
    assert (format.bits, format.exponent_bits, format.mantissa_bits) == (info.bits, info.iexp or info.nexp, info.nmant)
    assert (format.max, format.tiny, format.eps) == (float(info.max), float(info.tiny), float(info.eps))
    assert format.smallest_subnormal == float(info.smallest_subnormal)
    assert format.roundoff == format.eps / 2
    assert format.bias == 1 - info.minexp


def test_every_format_has_its_own_words():
    assert FLOAT64 not in FORMATS.values()                                    # the oracle's format is no choice of a recipe
    assert all(format_named(name) is format for name, format in FORMATS.items())
    assert (FLOAT16.max, FLOAT16.tiny, FLOAT16.smallest_subnormal) == (65504, 2**-14, 2**-24)


def test_bytes_of_a_format_and_bytes_of_its_storage_are_told_apart():
    assert [f.simulated for f in (FLOAT32, FLOAT16, BFLOAT16, FLOAT64)] == [False, False, True, False]
    assert [f.nbytes(3) for f in (FLOAT32, FLOAT16, BFLOAT16)] == [12, 6, 6]
    assert np.dtype(BFLOAT16.storage).itemsize == 4


def test_an_unknown_format_names_the_nearest():
    with pytest.raises(MiniLLMError, match="unknown format 'flaot16': did you mean 'float16'"):
        format_named("flaot16")
