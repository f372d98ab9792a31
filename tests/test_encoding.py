"""Codes: encode and decode are inverse on every one, agree with ml_dtypes, and pack into as few bytes as they take."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from number_cases import HALVES, PEERS, RANDOM, SIMULATED, SMALL, bits

from minillm.encoding import code_type, encode, pack, unpack
from minillm.errors import MiniLLMError
from minillm.formats import E8M0, FLOAT8_E4M3, FLOAT8_E5M2, FLOAT16, FLOAT32, INT4, INT8, TF32, Format
from minillm.rounding import ROUNDINGS, round_to
from minillm.testing import FLOAT64, exact_decode

CODES = {f: np.arange(2**f.bits) for f in SMALL}


@pytest.mark.parametrize("format", SMALL, ids=str)
def test_every_code_is_decoded_as_its_fields_say(format):
    codes = CODES[format] if format.bits <= 10 else np.random.default_rng(0).choice(CODES[format], 1000, replace=False)
    got = format.decode(codes)
    expected = np.array([float(exact_decode(int(code), format)) for code in codes])
    nan = np.isnan(expected)
    assert np.array_equal(np.isnan(got), nan)
    assert np.array_equal(got[~nan].astype(np.float64), expected[~nan])
    assert np.array_equal(np.signbit(got[~nan]), np.signbit(expected[~nan]))
    assert got.dtype == format.storage


@pytest.mark.parametrize("format", SMALL, ids=str)
def test_encode_is_the_inverse_of_decode_on_every_code(format, kernels):
    codes = CODES[format]
    values = format.decode(codes)
    regular = ~np.isnan(values)
    if not format.subnormals:                                                  # whose codes all stand for 0
        regular &= (values != 0) | (codes % 2 ** (format.bits - format.signed) == 0)
    back = encode(values, format)
    assert back.dtype == code_type(format)
    assert np.array_equal(back[regular], codes[regular])
    again = format.decode(back)
    assert np.array_equal(np.isnan(again), np.isnan(values))                   # codes of NaN may be many: all become the quiet one
    assert len(np.unique(back[np.isnan(values)])) <= 2


@pytest.mark.parametrize("format", SIMULATED, ids=str)
def test_decoding_a_code_gives_the_rounded_value(format):
    if format.bits > 32:
        return
    x = RANDOM[:4096]
    for mode in ROUNDINGS:
        kept, coded = round_to(x, format, mode, 7), format.decode(encode(x, format, mode, 7))
        nan = np.isnan(kept)
        assert np.array_equal(bits(kept[~nan]), bits(coded[~nan]))
        assert np.array_equal(np.isnan(coded), nan)


@pytest.mark.parametrize("format", PEERS, ids=str)
def test_codes_are_those_of_ml_dtypes(format):
    theirs = CODES[format].astype(code_type(format)).view(PEERS[format])
    with np.errstate(all="ignore"):
        values = theirs.astype(np.float32)
    got = format.decode(CODES[format]).astype(np.float32)
    nan = np.isnan(values)
    assert np.array_equal(np.isnan(got), nan)
    assert np.array_equal(bits(got[~nan]), bits(values[~nan]))
    x = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    assert np.array_equal(encode(np.abs(x), format), bits(np.abs(x).astype(PEERS[format])))


def test_float32_has_its_own_bits():
    number = RANDOM[~np.isnan(RANDOM)]
    assert np.array_equal(encode(number, FLOAT32), bits(number))
    assert np.array_equal(bits(FLOAT32.decode(bits(number))), bits(number))
    assert np.array_equal(encode(HALVES[:0x7C01], FLOAT16), np.arange(0x7C01))
    assert encode(np.float32([1, -2]), TF32).dtype == np.uint32


def test_codes_by_hand():
    assert encode(np.float32([0, 1, -1, 448, 1e9, np.nan]), FLOAT8_E4M3).tolist() == [0, 0x38, 0xB8, 0x7E, 0x7F, 0x7F]
    assert encode(np.copysign(np.float32(np.nan), -1), FLOAT8_E4M3).item() == 0xFF
    assert encode(np.float32([1, np.inf, -np.inf, np.nan]), FLOAT8_E5M2).tolist() == [0x3C, 0x7C, 0xFC, 0x7E]
    assert encode(np.float32([-1, -128, 127, 1]), INT8).tolist() == [255, 128, 127, 1]
    assert encode(np.float32([2**-127, 1, 2**127, 0]), E8M0).tolist() == [0, 127, 254, 255]


def test_single_values_and_empty_arrays_have_codes():
    assert encode(1.0, FLOAT8_E4M3).shape == ()
    assert FLOAT8_E4M3.decode(0x38).item() == INT8.decode(np.uint8(1)).item() == 1
    assert FLOAT8_E4M3.decode(np.array(0x7F)).shape == ()
    assert encode(np.zeros((0, 3), np.float32), INT4).shape == (0, 3)
    assert INT4.decode(np.zeros((0, 3), np.uint8)).shape == (0, 3)


@pytest.mark.parametrize("codes", [[256], [-1], [0.5], ["a"], [True]])
def test_what_is_no_code_is_refused(codes):
    with pytest.raises(MiniLLMError, match="codes of 8 bits are integers from 0 to 255"):
        FLOAT8_E4M3.decode(np.array(codes))


def test_formats_wider_than_32_bits_have_no_codes():
    with pytest.raises(MiniLLMError, match="codes of 64 bits are not made here"):
        encode(1.0, FLOAT64)
    with pytest.raises(MiniLLMError, match="codes of 64 bits are not made here"):
        FLOAT64.decode(np.array([0]))
    with pytest.raises(MiniLLMError, match="codes of 40 bits"):
        encode(1.0, Format("wide", 9, 30, np.float64))


# --- packing

@given(bits=st.integers(1, 8), data=st.data())
def test_packed_codes_come_back_from_as_few_bytes_as_they_take(bits, data):
    codes = np.array(data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=40)), np.uint8)
    packed = pack(codes, bits)
    assert (packed.dtype, packed.size) == (np.uint8, -(-len(codes) * bits // 8))
    assert np.array_equal(unpack(packed, bits, len(codes)), codes)
    as_one_number = sum(int(code) << i * bits for i, code in enumerate(codes))             # what "without gaps" means
    assert int.from_bytes(packed.tobytes(), "little") == as_one_number


def test_packed_bytes_are_those_of_the_format():
    for format in SMALL:
        if format.bits <= 8:
            x = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
            assert pack(encode(x, format), format.bits).nbytes == format.nbytes(35)
    assert pack(np.array([1, 2]), 4).tolist() == [0x21]
    assert pack(np.array([1, 2, 3, 4]), 6).tolist() == [0x81, 0x30, 0x10]


@pytest.mark.parametrize(("call", "says"), [
    (lambda: pack(np.array([16]), 4), "codes of 4 bits are integers from 0 to 15"), (lambda: pack(np.array([0.0]), 4), "float64"),
    (lambda: pack(np.array([1]), 9), "1 to 8 bits are packed, not of 9"), (lambda: pack(np.array([1]), 0), "not of 0"),
    (lambda: unpack(np.zeros(1, np.uint8), -4, 2), "not of -4"),
    (lambda: unpack(np.zeros(2, np.uint8), 4, 2), "take 1 bytes, not 2"),
    (lambda: unpack(np.zeros(1, np.int8), 4, 2), "1 of int8"), (lambda: unpack(np.zeros(0, np.uint8), 4, -1), "-1 codes"),
])
def test_packing_refuses_what_it_cannot_pack(call, says):
    with pytest.raises(MiniLLMError, match=says):
        call()
