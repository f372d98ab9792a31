"""Kernels of rows and values in numba's pool: each within a derived bound, the same bits on any number of threads."""
import inspect
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from test_kernels import EXP, LENGTHS, SUBNORMAL, TINY, bits, check, g, halves, laid_out

from minillm import kernels as room
from minillm.autograd.context import Context
from minillm.autograd.kernels import KERNELS, kernel_for
from minillm.autograd.rule import RULES
from minillm.autograd.tensor import Tensor, apply, backward
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT16, FLOAT32
from minillm.rounding import round_to
from minillm.testing import softmax_bound

pytestmark = pytest.mark.usefixtures("kernels_on")

STATIC = {"gelu": {}, "add": {}, "layer_norm": {"eps": 1e-5}, "rms_norm": {"eps": 1e-5}, "softmax": {"axis": -1},
          "log_softmax": {"axis": -1}}
VECTORS = {"layer_norm": ("gain", "shift"), "rms_norm": ("gain",)}


def forward(name, arrays, out=np.float32):
    y = KERNELS[name].forward(*arrays, **STATIC[name], out=out)
    return y if isinstance(y, tuple) else (y, {})


def kept(name, arrays, y, extras):
    """What the rule's vjp names."""
    known = dict(zip(RULES[name].inputs, arrays, strict=False)) | extras | STATIC[name]
    known |= {"y": y, **{f"{n}_shape": np.shape(a) for n, a in zip(RULES[name].inputs, arrays, strict=False)}}
    return {n: a for n, a in known.items() if n in RULES[name].reads}


def inputs_of(name, make, *shape):
    """Arrays for a kernel: rows, and vectors or a second array beside them."""
    rows = [make(*shape)]
    return rows + [make(shape[-1]) for _ in VECTORS.get(name, ())] + ([make(*shape)] if name == "add" else [])


# bounds

def rms_norm_bound(x, gain):
    """The sum of C squares, its mean and eps; root, reciprocal and two products."""
    C = x.shape[-1]
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * gain
    return y, abs(y) * ((1 - g(C + 3)) ** -0.5 - 1 + g(5)) + (1 + abs(gain)) * SUBNORMAL


def rms_norm_vjp_bound(cotangent, x, gain, rms):
    """For the rms that forward kept: it is an input here."""
    C, rows, axes = x.shape[-1], x.size // x.shape[-1], tuple(range(x.ndim - 1))
    n, h = x * rms, cotangent * gain
    exact = rms * (h - n * (h * n).mean(-1, keepdims=True)), (cotangent * n).sum(axes)
    size = abs(rms) * (abs(h) + abs(n) * abs(h * n).mean(-1, keepdims=True)), abs(cotangent * n).sum(axes)
    return exact, [g(K) * s + C * rows * SUBNORMAL for K, s in zip((C + 8, rows + 4), size, strict=True)]


def exact_softmax_bound(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True), softmax_bound(x)                      # with 3 ulps for exp, of which ours needs 1


def softmax_vjp_bound(cotangent, y):
    along = (cotangent * y).sum(-1, keepdims=True)
    size = abs(y) * (abs(cotangent) + abs(cotangent * y).sum(-1, keepdims=True))
    return [y * (cotangent - along)], [g(y.shape[-1] + 3) * size + (y.shape[-1] + 1) * SUBNORMAL]


def log_softmax_bound(x):
    """Each exponential errs by its rounded argument and exp's own error, or is flushed; log may err by two ulps, four u."""
    C, below = x.shape[-1], x - x.max(-1, keepdims=True)
    e = np.exp(below)
    total = e.sum(-1, keepdims=True)
    off = (e * (np.expm1(g(1) * -below) + 2 * EXP)).sum(-1, keepdims=True) + C * TINY
    relative = off / total + g(C)
    log = np.log(total)
    return below - log, relative / (1 - relative) + g(6) * (abs(below) + abs(log))


def log_softmax_vjp_bound(cotangent, y):
    p, whole = np.exp(y), abs(cotangent).sum(-1, keepdims=True)
    exact = cotangent - p * cotangent.sum(-1, keepdims=True)
    return [exact], [(p * (g(y.shape[-1] + 3) + 2 * EXP) + TINY) * whole + g(1) * abs(cotangent) + SUBNORMAL]


BOUNDS = {"rms_norm": (rms_norm_bound, rms_norm_vjp_bound), "softmax": (exact_softmax_bound, softmax_vjp_bound),
          "log_softmax": (log_softmax_bound, log_softmax_vjp_bound)}


def wide(arrays):
    return [a.astype(np.float64) for a in arrays]


@pytest.mark.parametrize("name", BOUNDS)
def test_both_ways_are_within_their_bounds(name, capsys):
    shares, vjp_shares = [], []

    @settings(max_examples=60)
    @given(st.data(), LENGTHS, st.lists(st.integers(1, 7), max_size=2), st.sampled_from([np.float16, np.float32]))
    def examples(data, C, rows, dtype):
        arrays = inputs_of(name, lambda *shape: laid_out(data, halves(data, *shape).astype(dtype)), *rows, C)
        y, extras = forward(name, arrays)
        assert y.dtype == np.float32
        check(y, *BOUNDS[name][0](*wide(arrays)), shares)
        cotangent = laid_out(data, halves(data, *y.shape).astype(dtype))
        known = kept(name, arrays, y, extras)
        exact, bound = BOUNDS[name][1](*wide([cotangent, *(a for a in known.values() if isinstance(a, np.ndarray))]))
        for found, e, b in zip(KERNELS[name].vjp(cotangent, **known), exact, bound, strict=False):
            assert found.dtype == np.float32
            check(found, e, b, vjp_shares)
    examples()
    with capsys.disabled():
        print(f" {name} reaches {max(shares):.2f} of its bound, its vjp {max(vjp_shares):.2f}", end="")
    assert min(max(shares), max(vjp_shares)) > 0.01      # a bound a hundred times too wide says nothing


def test_an_addition_is_numpys():
    @settings(max_examples=40)
    @given(st.data(), LENGTHS, st.lists(st.integers(1, 7), max_size=2), st.sampled_from([np.float16, np.float32]))
    def examples(data, C, rows, dtype):
        x, z = (laid_out(data, halves(data, *rows, C).astype(dtype)) for _ in range(2))
        exact = x.astype(np.float32) + z
        assert bits(forward("add", [x, z])[0]) == bits(exact)
        assert bits(forward("add", [x, z], np.float16)[0]) == bits(round_to(exact, FLOAT16))
    examples()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_cotangent_of_an_addition_is_handed_on(dtype):
    cotangent = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4).astype(dtype)
    shapes = {"x_shape": (3, 4), "z_shape": (3, 4)}
    dx, dz = KERNELS["add"].vjp(cotangent, **shapes, out=(dtype, dtype))
    assert dx is dz is cotangent                 # nothing is computed, nothing is copied
    dx, dz = KERNELS["add"].vjp(cotangent, **shapes, out=(np.float32, np.float16))
    assert (dx.dtype, dz.dtype) == (np.float32, np.float16)
    assert np.array_equal(dx, cotangent.astype(np.float32))
    assert bits(dz) == bits(round_to(cotangent, FLOAT16))


@pytest.mark.parametrize("name", STATIC)
@given(data=st.data(), C=LENGTHS, rows=st.lists(st.integers(1, 7), max_size=2), dtype=st.sampled_from([np.float16, np.float32]))
@settings(max_examples=25)
def test_float16_results_are_float32_results_rounded_once_both_ways(name, data, C, rows, dtype):
    arrays = inputs_of(name, lambda *shape: halves(data, *shape).astype(dtype), *rows, C)
    (half, extras), (y, same) = (forward(name, arrays, out) for out in (np.float16, np.float32))
    assert bits(half) == bits(round_to(y, FLOAT16))
    assert {n: bits(a) for n, a in extras.items()} == {n: bits(a) for n, a in same.items()}
    cotangent = halves(data, *y.shape).astype(dtype)
    count = len(RULES[name].inputs)
    halved, whole = (KERNELS[name].vjp(cotangent, **kept(name, arrays, half, extras), out=(out,) * count)
                     for out in (np.float16, np.float32))
    for a, b in zip(halved, whole, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a.dtype == np.float16 and bits(a) == bits(round_to(b, FLOAT16)))


# masks

@pytest.mark.parametrize("shape", [(95,), (1, 95), (7, 95), (1, 7, 95), (3, 1, 7, 95), (3, 1, 1, 95), (7, 1), (1, 1, 1, 1), (),
                                   (3, 5, 7, 95)])
@pytest.mark.parametrize("rows", [1, 40])        # 40: more than one task, which begins in the middle of the mask
def test_a_mask_spreads_over_the_rows(shape, rows):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 5, 7, 95)).astype(np.float32).repeat(rows, 0)
    mask = np.asarray(rng.random(shape) < 0.5)
    mask = mask.repeat(rows, 0) if mask.shape[:1] == (3,) else mask
    found = apply(RULES["softmax"], Tensor(x), mask, context=Context()).data
    seen = np.broadcast_to(mask, x.shape)
    assert kernel_for(RULES["softmax"], np.float32, {"axis": -1}, (x, mask)) is not None
    assert not found[~seen].any()
    some = seen.any(-1)
    masked = np.where(seen, x, -np.inf)[some].astype(np.float64)
    exact = np.exp(masked - masked.max(-1, keepdims=True))
    exact /= exact.sum(-1, keepdims=True)
    assert np.all(abs(found[some] - exact) <= np.where(exact > 0, g(95 + 12) * exact + TINY, 0))     # sum, exp, argument, quotient


@pytest.mark.parametrize(("x", "mask", "axis"), [((3, 4), (2, 3, 4), -1), ((1, 4), (3, 1), -1), ((3, 4), None, 0), ((), None, -1)])
def test_what_a_softmax_kernel_cannot_do_goes_to_the_rule(x, mask, axis):
    mask = None if mask is None else np.ones(mask, bool)
    assert not KERNELS["softmax"].serves({"axis": axis}, np.ones(x, np.float32), mask)


@pytest.mark.parametrize("size", [1, 17, 40_000])
def test_a_cast_rounds_once_on_the_way_down_and_nothing_on_the_way_back(size):
    x = np.random.default_rng(size).standard_normal(size, np.float32) * np.float32(2.0**-14)      # half of them subnormal
    half = KERNELS["cast"].forward(x, out=np.float16)
    assert half.tobytes() == round_to(x, FLOAT16).tobytes()
    assert KERNELS["cast"].forward(half, out=np.float32).tobytes() == half.astype(np.float32).tobytes()
    assert KERNELS["cast"].vjp(half)[0].tobytes() == half.astype(np.float32).tobytes()
    assert KERNELS["cast"].vjp(x, out=(np.float16,))[0].tobytes() == half.tobytes()


# what is not finite

def with_bad(name, format, where, bad):
    rng = np.random.default_rng(0)
    inputs = [Tensor(a, format, name=str(i)) for i, a in enumerate(inputs_of(
        name, lambda *shape: rng.standard_normal(shape).astype(format.storage), 2, 3, 21))]
    inputs[where].data[(1, 2, 18)[-inputs[where].ndim:]] = bad                 # in the part of a register
    y = apply(RULES[name], *inputs, context=Context(), **STATIC[name])
    weights = Tensor(rng.standard_normal(y.shape).astype(format.storage), format)
    return {"y": y.data} | backward((y * weights).sum())


@pytest.mark.parametrize(("name", "where"), [("add", 0), ("add", 1), ("rms_norm", 0), ("rms_norm", 1), ("softmax", 0),
                                             ("log_softmax", 0)])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("format", [FLOAT16, FLOAT32], ids=str)
def test_nan_and_infinity_pass_through(name, where, bad, format, monkeypatch):
    found = with_bad(name, format, where, bad)
    monkeypatch.setenv("MINILLM_KERNELS", "off")
    for n, a in with_bad(name, format, where, bad).items():
        assert np.array_equal(np.isfinite(found[n]), np.isfinite(a)), n


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("row", [[-np.inf] * 20, [np.inf] * 20, [np.nan] * 20, [-np.inf] * 19 + [0], [np.inf] + [0] * 19])
def test_rows_of_infinities_are_the_rules(name, row):
    x = np.array([row, [0] * 20], np.float32)
    with np.errstate(all="ignore"):
        exact = RULES[name].forward(np, x, **STATIC[name])
    assert np.allclose(forward(name, [x])[0], exact, rtol=g(30), atol=0, equal_nan=True)


# tasks and threads

PROGRAM = """
import hashlib, numpy as np
from test_rowwise import STATIC, everything
print({name: hashlib.blake2b(everything(name)).hexdigest() for name in STATIC})
"""


def everything(name) -> bytes:
    """The bits of all results of a kernel, forward and backward, on rows of many tasks: 61,009 values."""
    rng = np.random.default_rng(1)
    arrays = inputs_of(name, lambda *shape: rng.standard_normal(shape).astype(np.float32), 13, 361, 13)
    y, extras = forward(name, arrays)
    found = KERNELS[name].vjp(rng.standard_normal(y.shape).astype(np.float32), **kept(name, arrays, y, extras))
    return b"".join(a.tobytes() for a in (y, *extras.values(), *found) if a is not None)


def test_one_thread_and_two_give_the_same_bits():
    found = [subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True,
                            env=os.environ | {"NUMBA_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(sys.path)}).stdout
             for threads in "12"]
    assert found[0] == found[1]
    assert len(set(eval(found[0]).values())) == len(STATIC)


def test_what_is_shared_out_really_splits():
    assert room.load("rowwise").row_shares((13, 361, 13))[3] > room.load("launch").ALONE


@given(st.integers(0, 10**7), st.integers(0, 5000))
def test_tasks_cover_what_there_is_once(n, least):
    tasks = room.load("tasks")
    each, count = tasks.shares(n, least)
    assert (count - 1) * each < max(n, 1) <= max(count * each, 1)
    assert count <= tasks.TASKS
    assert count <= 1 or each >= least


# memory

def test_shapes_that_do_not_fit_are_refused():
    x, v, r = np.ones((3, 8), np.float32), np.ones(8, np.float32), np.ones((3, 1), np.float32)
    rowwise, softmax, elementwise = (room.load(name) for name in ("rowwise", "softmax", "elementwise"))
    for call in (lambda: rowwise.layer_norm(x, v[:7], v, eps=0, out=np.float32),
                 lambda: rowwise.layer_norm(x, v, v[:7], eps=0, out=np.float32),
                 lambda: rowwise.rms_norm(x, v[:7], eps=0, out=np.float32), lambda: rowwise.rms_norm_vjp(x[:2], x, v, r),
                 lambda: rowwise.rms_norm_vjp(x, x, v[:7], r), lambda: rowwise.rms_norm_vjp(x, x, v, r[:2]),
                 lambda: rowwise.layer_norm_vjp(x[:2], x, v, r, r), lambda: rowwise.layer_norm_vjp(x, x, v[:7], r, r),
                 lambda: rowwise.layer_norm_vjp(x, x, v, r[:2], r), lambda: rowwise.layer_norm_vjp(x, x, v, r, r[:2]),
                 lambda: softmax.softmax_vjp(x[:2], x), lambda: softmax.log_softmax_vjp(x[:2], x),
                 lambda: elementwise.gelu_vjp(x[:2], x), lambda: elementwise.add(x, x[:2], out=np.float32),
                 lambda: elementwise.add_vjp(x[:2], (3, 8), (3, 8))):
        with pytest.raises(MiniLLMError, match=r"of shapes? \("):
            call()
    with pytest.raises((MiniLLMError, ValueError)):
        softmax.softmax(x, np.ones((2, 8), bool), out=np.float32)


@pytest.mark.parametrize("name", STATIC)
@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0,), (2, 0, 5)])
def test_nothing_gives_nothing(name, shape):
    arrays = inputs_of(name, lambda *shape: np.ones(shape, np.float32), *shape)
    y, extras = forward(name, arrays)
    assert y.shape == shape
    found = KERNELS[name].vjp(y, **kept(name, arrays, y, extras))
    assert found[0].shape == shape
    assert all(not d.any() for d in found if d is not None)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_part_of_a_register_touches_nothing_beyond(dtype):
    lanes, scalars = room.load("lanes"), room.load("scalars")
    read, write = lanes.read, lanes.write

    @njit
    def copy(x, y, count):
        write(y, 3, count, read(x, 2, count, np.float32(7)))
    for count in range(-2, 19):
        x, y = np.arange(40).astype(dtype), np.full(40, -1, dtype)
        copy(scalars.bits(x), scalars.bits(y), count)
        n = min(max(count, 0), 16)
        assert np.array_equal(y[3:3 + n], x[2:2 + n])
        assert np.all(y[:3] == -1)
        assert np.all(y[3 + n:] == -1)


def test_lanes_exp_keeps_the_promise_of_exp():
    lanes = room.load("lanes")
    read, write, exp = lanes.read, lanes.write, lanes.exp

    @njit(error_model="numpy")
    def each(x, y):
        for i in range(0, x.size, 16):
            write(y, i, x.size - i, exp(read(x, i, x.size - i, np.float32(0))))
    x = np.concatenate([np.linspace(-87.33, 88.72, 400_001), np.linspace(-1e-3, 1e-3, 10_001), np.geomspace(1e-40, 1, 1000)])
    x = x.astype(np.float32)
    y = np.empty_like(x)
    each(x, y)
    assert np.max(abs(y / np.exp(x.astype(np.float64)) - 1)) < 1e-7
    ends = np.array([88.7229, 1e30, np.inf, -87.34, -1e30, -np.inf, np.nan, 0.0, -0.0], np.float32)
    y = np.empty_like(ends)
    each(ends, y)
    assert np.array_equal(y, [np.inf] * 3 + [0] * 3 + [np.nan, 1, 1], equal_nan=True)


WITHOUT = """
import numpy as np
from minillm import kernels
from minillm.formats import FLOAT16
from minillm.rounding import round_to
elementwise, scalars = kernels.load("elementwise"), kernels.load("scalars")
x = np.concatenate([np.arange(1 << 16, dtype=np.uint16).view(np.float16), np.ones(5, np.float16)])
x = x[~np.isnan(x)]
half, whole = (elementwise.gelu(x, out=out) for out in (np.float16, np.float32))
assert np.array_equal(half.view(np.uint16), np.where(np.isnan(whole), half, round_to(whole, FLOAT16)).view(np.uint16))
assert np.array_equal(np.isnan(half), x == -np.inf)
print(scalars.INSTRUCTION)
"""


def test_a_processor_without_the_conversions_gives_float16_results_rounded_once():
    found = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True,
                           env=os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "",
                                             "PYTHONPATH": os.pathsep.join(sys.path)})
    assert found.stdout.strip() == "False"


def test_kernels_take_what_their_rules_take():
    for name in STATIC:
        assert list(inspect.signature(KERNELS[name].forward).parameters)[:len(RULES[name].inputs)] == list(RULES[name].inputs)
