"""round_to: every half and every tie, three implementations with the same bits, and exact fractions as the judge."""
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numba import njit

from minillm import kernels as room
from minillm.errors import MiniLLMError
from minillm.formats import BFLOAT16, FLOAT16, FLOAT32
from minillm.rounding import round_to, to_grid, widen
from minillm.testing import FLOAT64

HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16)
BFLOATS = (np.arange(2**16, dtype=np.uint32) << 16).view(np.float32)
SOME_FLOATS = np.random.default_rng(0).integers(0, 2**32, 2**20, dtype=np.uint32).view(np.float32)      # all exponents, NaN too
NARROW = [FLOAT16, BFLOAT16]
EDGES = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 65504.0, 65519.996, 65520.0, 65536.0, -65520.0,
         2**-14, 2**-24, 2**-25, 1.0000001 * 2**-25, 3 * 2**-25, -(2**-25), 1e-45, -1e-45, 1.1754944e-38,
         3.4028235e38, 3.3961775e38, 3.3895314e38]


def bits(x):
    return np.asarray(x).view(f"u{x.dtype.itemsize}")


def same_bits(a, b):
    assert type(a) is type(b) is np.ndarray
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert np.array_equal(bits(a), bits(b))


def in_storage(grid, format):
    """Values on the format's grid as the array that stores them: no rounding is left to do, payloads of NaN are kept."""
    return grid.astype(format.storage)


def with_kernels(state, function, *inputs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINILLM_KERNELS", state)
        return function(*inputs)


def rounded(x, format):
    """round_to of x, after making sure that kernels, NumPy and the specification agree on it to the last bit."""
    fast, plain = (with_kernels(state, round_to, x, format) for state in ("on", "off"))
    same_bits(fast, plain)
    if x.dtype.itemsize > format.bits // 8 and x.dtype != np.float16:
        same_bits(fast, in_storage(to_grid(x, format), format))
    return fast


def exactly(value: float, format) -> float:
    """The nearest value of a format, ties to even, by exact fractions."""
    if not math.isfinite(value):
        return value
    exponent = max(math.frexp(value)[1] - 1, 1 - format.bias)
    step = Fraction(2) ** (exponent - format.mantissa_bits)
    nearest = round(Fraction(value) / step) * step                             # Python rounds fractions half to even
    return math.copysign(float(nearest) if abs(nearest) <= format.max else math.inf, value)


def around(values):
    """Each value, and the values of the same type just below and just above it."""
    infinity = values.dtype.type(np.inf)
    with np.errstate(over="ignore"):
        return np.stack([np.nextafter(values, -infinity), values, np.nextafter(values, infinity)])


# every half, every tie

def ties_between_halves():
    """The middle between each positive half and the next, (0x7C00,) float64; beyond the last one lies infinity, at 65536."""
    values = HALVES[:0x7C00].astype(np.float64)
    return (values + np.append(values[1:], 65536)) / 2


def test_every_half_survives_widening_and_rounding():
    fast, plain = (with_kernels(state, widen, HALVES, np.float32) for state in ("on", "off"))
    same_bits(fast, plain)
    same_bits(fast, rounded(HALVES, FLOAT32))
    number = ~np.isnan(HALVES)
    assert np.array_equal(bits(rounded(fast, FLOAT16))[number], bits(HALVES)[number])
    assert np.array_equal(bits(rounded(fast, FLOAT16))[~number], bits(HALVES)[~number] | 0x200)           # quiet, payload kept
    assert np.array_equal(fast[number].astype(np.float64), HALVES[number].astype(np.float64))


@pytest.mark.parametrize("wide", [np.float32, np.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_every_tie_between_two_halves_goes_to_the_even_one(wide, sign):
    below = np.arange(0, 0x7C00, dtype=np.uint16)                              # 0 ... 65504, whose successor is infinity
    down, tie, up = rounded(around((sign * ties_between_halves()).astype(wide)), FLOAT16)[::sign]
    signs = np.uint16(0x8000 if sign < 0 else 0)
    assert np.array_equal(bits(down), below | signs)
    assert np.array_equal(bits(up), below + 1 | signs)
    assert np.array_equal(bits(tie), below + (below & 1) | signs)


@pytest.mark.parametrize("wide", [np.float32, np.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_every_tie_between_two_bfloats_goes_to_the_even_one(wide, sign):
    below = np.arange(0, 0x7F80, dtype=np.uint32)
    values = np.append((below[1:] << 16).view(np.float32).astype(np.float64), 2.0**128)
    ties = (sign * ((below << 16).view(np.float32).astype(np.float64) + values) / 2).astype(wide)
    down, tie, up = rounded(around(ties), BFLOAT16)[::sign]
    signs = np.uint32(0x8000 if sign < 0 else 0)
    assert np.array_equal(bits(down) >> 16, below | signs)
    assert np.array_equal(bits(up) >> 16, below + 1 | signs)
    assert np.array_equal(bits(tie) >> 16, below + (below & 1) | signs)


def test_the_overflow_threshold_of_halves():
    x = np.array([65504, 65519.996, 65520, -65519.996, -65520, 3.4e38], np.float32)
    assert rounded(x, FLOAT16).tolist() == [65504, 65504, math.inf, -65504, -math.inf, math.inf]


def test_zeros_and_subnormals_keep_sign_and_value():
    x = np.array([-0.0, 2**-25, np.nextafter(np.float32(2**-25), np.float32(1)), 3 * 2**-25, -(2**-25), 2**-24], np.float32)
    y = rounded(x, FLOAT16)
    assert y.tolist() == [0, 0, 2**-24, 2**-23, 0, 2**-24]
    assert np.signbit(y).tolist() == [True, False, False, False, True, False]


# the implementations against each other, and against foreign ones

@pytest.mark.parametrize("format", NARROW, ids=str)
def test_three_implementations_agree_on_a_million_random_floats(format):
    rounded(np.append(SOME_FLOATS, around(np.array(EDGES, np.float32))), format)


def by_ml_dtypes(x):
    with np.errstate(invalid="ignore"):
        return x.astype(ml_dtypes.bfloat16).astype(np.float32)


def test_bfloat16_is_that_of_ml_dtypes():
    x = np.append(SOME_FLOATS, around(np.array(EDGES, np.float32)))
    number = ~np.isnan(x)
    assert np.array_equal(bits(rounded(x, BFLOAT16))[number], bits(by_ml_dtypes(x))[number])


def test_float16_is_that_of_numpy():
    number = ~np.isnan(SOME_FLOATS)
    with np.errstate(all="ignore"):
        theirs = SOME_FLOATS.astype(np.float16)
    assert np.array_equal(bits(rounded(SOME_FLOATS, FLOAT16))[number], bits(theirs)[number])


@pytest.mark.parametrize("format", NARROW, ids=str)
def test_nan_stays_nan_and_is_quiet_with_sign_and_upper_payload(format):
    payloads = np.arange(1, 2**23, 997, dtype=np.uint32)
    x = np.concatenate([0x7F800000 | payloads, 0xFF800000 | payloads]).view(np.float32)
    y = rounded(x, format)
    assert np.isnan(y).all()
    digits = 23 - format.mantissa_bits
    stored = bits(y).astype(np.uint32) >> (0 if y.dtype == np.float16 else digits)
    quiet = 1 << (format.mantissa_bits - 1)
    assert np.array_equal(stored & (2**format.mantissa_bits - 1), (bits(x) & 0x7FFFFF) >> digits | quiet)
    assert np.array_equal(np.signbit(y), np.signbit(x))


@pytest.mark.parametrize("format", NARROW, ids=str)
def test_nan_of_float64_is_rounded_like_that_of_float32(format):
    x = (np.uint32(0x7F800001) + np.arange(0, 2**23 - 1, 997, dtype=np.uint32)).view(np.float32)
    wide = (np.uint64(0x7FF) << np.uint64(52)) | (bits(x) & np.uint32(0x7FFFFF)).astype(np.uint64) << np.uint64(29)
    same_bits(rounded(wide.view(np.float64), format), rounded(x, format))


@pytest.mark.parametrize("format", [*NARROW, FLOAT32], ids=str)
@given(value=st.floats(width=64) | st.floats(-1e5, 1e5) | st.floats(-1e-4, 1e-4) | st.sampled_from(EDGES))
def test_float64_is_rounded_once_from_its_own_bits(format, value):
    y = rounded(np.array([value], np.float64), format)
    assert np.array_equal(y.astype(np.float64), [exactly(value, format)], equal_nan=True)
    assert np.signbit(y[0]) == np.signbit(value)


@pytest.mark.parametrize("format", [*NARROW, FLOAT32], ids=str)
@given(value=st.floats(2**-14, 60000), nudge=st.sampled_from([-1, 0, 1]))
def test_float64_beside_a_tie_does_not_pass_through_float32(format, value, nudge):
    grid = exactly(value, format)
    tie = grid + math.ldexp(format.eps, math.frexp(grid)[1] - 2)               # half a step above a value of the format
    value = tie * (1 + nudge * FLOAT64.eps)
    assert rounded(np.array([value]), format).item() == exactly(value, format)


def test_the_double_rounding_that_is_avoided():
    x = np.array([1 + 2**-11 + 2**-30])                                        # float32 makes a tie of it, which goes to 1
    assert rounded(x, FLOAT16).item() == 1 + 2**-10
    assert rounded(x.astype(np.float32), FLOAT16).item() == 1


@pytest.mark.parametrize("format", NARROW, ids=str)
@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_idempotent_monotone_and_odd(format, values):
    x = np.array(values, np.float32)
    y = widen(rounded(x, format), np.float32)
    same_bits(widen(rounded(y, format), np.float32), y)
    ordered = np.sort(x[~np.isnan(x)])
    assert np.all(np.diff(np.nan_to_num(rounded(ordered, format).astype(np.float64), posinf=1e39, neginf=-1e39)) >= 0)
    same_bits(rounded(-x, format), -rounded(x, format))


# any array

LAYOUTS = {
    "empty": lambda x: x[:0], "no columns": lambda x: x[:, :, :0], "no axes": lambda x: x[0, 0, 0, ...],
    "every other": lambda x: x[::2, :, ::3], "reversed": lambda x: x[::-1, :, ::-1], "one column": lambda x: x[:, 2:3],
    "transposed": lambda x: x.T, "turned": lambda x: x.swapaxes(0, 1), "fortran": np.asfortranarray,
    "spread": lambda x: np.broadcast_to(x[:1], x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("format", [*NARROW, FLOAT32], ids=str)
@pytest.mark.parametrize("wide", [np.float16, np.float32, np.float64])
def test_every_layout_gives_the_same_values(layout, format, wide, kernels):
    x = np.random.default_rng(1).standard_normal((4, 5, 6)).astype(wide)
    x = LAYOUTS[layout](x)
    before = x.copy()
    y = round_to(x, format)
    assert type(y) is np.ndarray
    assert (y.shape, y.dtype) == (x.shape, format.storage)
    assert y.ravel().tolist() == [round_to(np.array([v]), format).item() for v in x.ravel()]
    assert np.array_equal(before, x)


@pytest.mark.parametrize("wide", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("format", [*NARROW, FLOAT32], ids=str)
def test_byte_order_does_not_matter(wide, format, kernels):
    x = np.array([1.1, -2.7, math.inf, 0.0, 1e-6, math.nan], wide)
    same_bits(round_to(x.astype(x.dtype.newbyteorder()), format), round_to(x, format))


@pytest.mark.parametrize("format", [*NARROW, FLOAT32], ids=str)
def test_single_values_become_arrays_without_axes(format, kernels):
    for value in (np.array(1.1), np.float64(1.1), 1.1):
        same_bits(round_to(value, format), np.array(exactly(1.1, format), format.storage))


@given(x=hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)),
       axes=st.randoms(use_true_random=False), format=st.sampled_from(NARROW))
def test_any_shape_in_any_order_of_axes(x, axes, format):
    turned = x.transpose(axes.sample(range(x.ndim), x.ndim))
    same_bits(np.ascontiguousarray(rounded(turned, format)).reshape(turned.shape),
              np.ascontiguousarray(round_to(turned.copy("C"), format)).reshape(turned.shape))


def test_nothing_to_round_is_handed_back(kernels):
    for format, dtype in ((FLOAT16, np.float16), (FLOAT32, np.float32), (FLOAT64, np.float64)):
        x = np.ones(3, dtype)
        assert round_to(x, format) is x
        assert widen(x, dtype) is x


@pytest.mark.parametrize("values", [np.arange(3), np.array([True]), np.array([1j]), 3, np.array(["1"]), np.longdouble([1.5])])
@pytest.mark.parametrize("format", [*NARROW, FLOAT32], ids=str)
def test_what_has_no_float_bits_is_refused(values, format, kernels):
    with pytest.raises(MiniLLMError, match=f"cannot round .* to {format.name}"):
        round_to(values, format)


def test_an_unknown_rounding_names_the_nearest():
    with pytest.raises(MiniLLMError, match="did you mean 'nearest_even'"):
        round_to(np.ones(1, np.float32), FLOAT16, "nearest-even")


def test_read_only_and_unaligned_arrays(kernels):
    x = np.frombuffer(b"\0" + np.array([1.1, 2**-25, 7e4], np.float32).tobytes(), np.float32, offset=1)
    assert not x.flags.aligned
    assert round_to(x, FLOAT16).tolist() == round_to(x.copy(), FLOAT16).tolist()


# the integer conversion, which stands in where the processor has no instruction

def integer_conversions():
    scalars = room.load("scalars")
    to_float, to_half = scalars.half_to_float_integer, scalars.float_to_half_integer

    @njit(error_model="numpy")
    def widened(x, out):
        for i in range(x.size):
            out[i] = to_float(x[i])

    @njit(error_model="numpy")
    def narrowed(x, out):
        for i in range(x.size):
            out[i] = to_half(x[i])
    return widened, narrowed


def test_integer_arithmetic_converts_as_the_instruction_does(monkeypatch):
    monkeypatch.setenv("MINILLM_KERNELS", "on")
    widened, narrowed = integer_conversions()
    ties = around(ties_between_halves().astype(np.float32)).ravel()
    wide, ties = np.empty(2**16, np.float32), np.concatenate([ties, -ties, SOME_FLOATS, BFLOATS])
    widened(bits(HALVES), wide)
    same_bits(wide, widen(HALVES, np.float32))
    narrow = np.empty(ties.size, np.uint16)
    narrowed(ties, narrow)
    same_bits(narrow.view(np.float16), round_to(ties, FLOAT16))


@pytest.mark.exhaustive
def test_integer_arithmetic_converts_all_floats_as_the_instruction_does(monkeypatch):
    """All 2^32 of them; test_rounding_peers compares the instruction with NumPy."""
    monkeypatch.setenv("MINILLM_KERNELS", "on")
    _, narrowed = integer_conversions()
    narrow = np.empty(2**22, np.uint16)
    for start in range(0, 2**32, 2**22):
        x = np.arange(start, start + 2**22, dtype=np.uint32).view(np.float32)
        narrowed(x, narrow)
        assert np.array_equal(narrow, bits(round_to(x, FLOAT16)))
