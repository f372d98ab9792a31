"""Compiled products: within the bound of their sums, in the same bits on every path, int8 exact to its last K."""
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minillm
from minillm import kernels
from minillm.autograd.context import Context
from minillm.autograd.kernels import KERNELS
from minillm.autograd.rule import RULES
from minillm.autograd.rules.products import FLOAT32_PRODUCTS, PRODUCTS
from minillm.autograd.tensor import Tensor, apply, backward
from minillm.errors import MiniLLMError
from minillm.formats import BFLOAT16, FLOAT16, FLOAT32
from minillm.precision import block_scaling, float8
from minillm.rounding import round_to
from minillm.testing import gamma

SIZES = st.sampled_from([1, 2, 3, 5, 6, 7, 8, 13, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97])     # around a tile's 6, 16 and 64
DEPTHS = st.sampled_from([1, 2, 3, 7, 15, 16, 17, 33, 64, 255, 256, 257, 300, 515])       # around a vector's 16, a block's 256
LAYOUTS = ("plain", "turned", "strided", "backwards")

pytestmark = pytest.mark.usefixtures("kernels_on")


def room():
    return kernels.load("matmul")


def bits(x):
    return np.ascontiguousarray(x).tobytes()


def laid_out(x, layout):
    """The same values, in memory in another order."""
    if layout == "turned":
        return np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2)
    if layout == "strided":
        return np.repeat(x, 2, -1)[..., ::2]
    return np.ascontiguousarray(x[..., ::-1, ::-1])[..., ::-1, ::-1] if layout == "backwards" else x


def values(seed, *shape, dtype=np.float32):
    """Values of many sizes; some are 0."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-6, 7, shape) * rng.choice([0, 1], shape, p=[0.1, 0.9])).astype(dtype)


def check(y, a, b):
    """Within gamma(K) of |a| |b|: the bound of a sum in any order, products rounded or not."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    error = abs(y - a @ b)
    assert y.shape == error.shape
    assert np.all(error <= gamma(a.shape[-1], FLOAT32) * (abs(a) @ abs(b)) + a.shape[-1] * FLOAT32.smallest_subnormal)


types, layouts = st.sampled_from([np.float32, np.float16]), st.sampled_from(LAYOUTS)


@given(SIZES, SIZES, DEPTHS, types, types, layouts, layouts, st.integers(0, 2**32))
@settings(max_examples=120)
def test_products_are_within_their_bound_and_round_once(M, N, K, a_type, b_type, a_layout, b_layout, seed):
    a, b = laid_out(values(seed, M, K, dtype=a_type), a_layout), laid_out(values(seed + 1, K, N, dtype=b_type), b_layout)
    y = room().matmul(a, b)
    check(y, a, b)
    bias = values(seed + 2, N, dtype=b_type)
    shifted = room().matmul(a, b, bias=bias)
    assert bits(shifted) == bits(y + bias.astype(np.float32))
    assert bits(room().matmul(a, b, out=np.float16, bias=bias)) == bits(round_to(shifted, FLOAT16))


@pytest.mark.parametrize("shape", [(300, 70, 513), (29, 200, 40), (1, 33, 300), (200, 1, 20)])
def test_each_rung_of_the_ladder_gives_the_bits_of_the_first(shape):
    (M, N, K), ladder = shape, kernels.load("ladder")
    a, b = values(3, M, K), values(4, K, N)
    first = ladder.naive(a, b)
    check(first, a, b)
    for rung in (ladder.tiled, ladder.packed, room().matmul):
        assert bits(rung(a, b)) == bits(first), rung


BATCHES = [((2, 3), (2, 3)), ((2, 3), ()), ((), (3,)), ((2, 1), (3,)), ((0, 2), (2,)), ((1,), (4,))]


@pytest.mark.parametrize(("left", "right"), BATCHES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_batches_broadcast_and_each_is_the_product_by_itself(left, right, layout):
    a, b = laid_out(values(1, *left, 17, 40), layout), laid_out(values(2, *right, 40, 35), layout)
    y = room().matmul(a, b)
    check(y, a, b)
    lead = np.broadcast_shapes(left, right)
    a, b = np.broadcast_to(a, (*lead, 17, 40)), np.broadcast_to(b, (*lead, 40, 35))
    for index in np.ndindex(lead):
        assert bits(y[index]) == bits(room().matmul(a[index], b[index]))


def test_heads_are_read_where_they_lie():
    x = values(5, 2, 7, 3, 16)                   # (B,T,H,D), as attention has it: no one stride leads from matrix to matrix
    q = x.transpose(0, 2, 1, 3)
    check(room().matmul(q, q.swapaxes(-1, -2)), q, q.swapaxes(-1, -2))


@pytest.mark.parametrize("slice_", [slice(0, 9, 2), slice(1, 2)])
def test_arrays_are_found_where_their_header_says(slice_):
    """The compiled code reads the address of the values from the array itself, which is given by its id."""
    code, x = kernels.load("blocks"), np.arange(20, dtype=np.float32)[slice_]
    assert code.where(id(x)) == x.__array_interface__["data"][0]


def test_values_that_lie_apart_by_parts_of_a_value_are_copied_first():
    records = np.zeros((6, 5), np.dtype([("mark", np.int8), ("x", np.float32), ("y", np.float16)]))
    records["x"], records["y"] = values(8, 6, 5), values(9, 6, 5)
    x, y = records["x"], records["y"]
    assert bits(room().matmul(x, y.T)) == bits(room().matmul(x.copy(), y.T.copy()))
    assert bits(room().matmul(x, x.T, bias=records["y"][:, 0][:6])) == bits(
        room().matmul(x, x.T) + records["y"][:, 0].astype(np.float32))


def test_a_row_has_the_same_bits_alone_and_among_others():
    a, b = values(6, 130, 600), values(7, 600, 70)
    whole = room().matmul(a, b)
    for rows in (slice(0, 1), slice(129, 130), slice(3, 5), slice(10, 24), slice(60, 130)):
        assert bits(room().matmul(a[rows], b)) == bits(whole[rows])
        assert bits(room().matmul(a[rows], b[:, 5:6])) == bits(whole[rows, 5:6])
    assert bits(room().matmul(a, b.T.copy().T)) == bits(whole)


@pytest.mark.parametrize("shape", [((0, 4), (4, 3)), ((3, 0), (0, 4)), ((3, 4), (4, 0)), ((0, 0), (0, 0)), ((2, 0, 4), (4, 3))])
def test_empty_operands_give_zeros_and_the_bias(shape):
    a, b = (np.ones(s, np.float32) for s in shape)
    assert np.array_equal(room().matmul(a, b), a @ b)
    bias = np.arange(b.shape[1], dtype=np.float32)
    assert np.array_equal(room().matmul(a, b, bias=bias, out=np.float16), (a @ b + bias).astype(np.float16))
    assert np.array_equal(room().matmul_int8(a.astype(np.int8), b.astype(np.int8)), (a @ b).astype(np.int32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_nan_and_infinity_stay_in_their_row_and_column(bad, dtype):
    for shape in ((30, 40, 50), (1, 40, 50), (14, 33, 3)):
        M, N, K = shape
        a, b = np.ones((M, K), dtype), np.ones((K, N), dtype)
        a[M // 2, K // 2] = bad
        y = room().matmul(a, b)
        assert np.array_equal(y[M // 2], np.full(N, bad, np.float32), equal_nan=True)
        assert np.isfinite(np.delete(y, M // 2, 0)).all()
        b[K - 1, N - 1] = bad
        assert not np.isfinite(room().matmul(a, b)[:, -1]).any()


def test_a_product_beyond_float16_is_infinite():
    a = np.full((20, 100), 30, np.float16)
    assert np.isposinf(room().matmul(a, a.T, out=np.float16)).all()
    assert np.all(room().matmul(a, a.T) == 90_000)


# int8

@given(SIZES, SIZES, DEPTHS, layouts, layouts, st.integers(0, 2**32))
@settings(max_examples=80)
def test_int8_products_are_exact(M, N, K, a_layout, b_layout, seed):
    rng = np.random.default_rng(seed)
    a, b = (laid_out(rng.choice(np.array([-128, -127, -1, 0, 1, 127], np.int8), shape), layout)
            for shape, layout in (((M, K), a_layout), ((K, N), b_layout)))
    assert np.array_equal(room().matmul_int8(a, b), a.astype(np.int64) @ b.astype(np.int64))


@pytest.mark.parametrize("K", [1039, 1040, 1041, 100_000, 131_071])
@pytest.mark.parametrize("extremes", [(-128, -128), (-128, 127), (127, -128), (127, 127)])
def test_int8_is_exact_where_sums_are_largest(K, extremes):
    a, b = np.full((3, K), extremes[0], np.int8), np.full((K, 5), extremes[1], np.int8)
    assert np.all(room().matmul_int8(a, b) == K * extremes[0] * extremes[1])


def test_int8_takes_batches_and_refuses_what_is_not_int8_or_too_deep():
    a = np.arange(-60, 60, dtype=np.int8).reshape(2, 3, 20)
    assert np.array_equal(room().matmul_int8(a, a[1].T), a.astype(np.int64) @ a[1].T.astype(np.int64))
    with pytest.raises(MiniLLMError, match="matmul_int8 takes int8, b is uint8"):
        room().matmul_int8(a, np.ones((20, 2), np.uint8))
    with pytest.raises(MiniLLMError, match="K = 131072 may overflow int32"):
        room().matmul_int8(np.ones((1, 131_072), np.int8), np.ones((131_072, 1), np.int8))


def test_doors_are_closed_to_other_types_and_shapes():
    x = np.ones((2, 3), np.float32)
    for call, message in ((lambda: room().matmul(x, x), "no product of"),
                          (lambda: room().matmul(x.astype(np.float64), x.T), "a is float64"),
                          (lambda: room().matmul(x, x.T, bias=x[0]), "a bias of shape"),
                          (lambda: room().matmul_bfloat16(x.astype(np.float16), x.T), "float16")):
        with pytest.raises(MiniLLMError, match=message):
            call()


def test_bfloat16_values_are_multiplied_exactly():
    a, b = (round_to(values(seed, *shape), BFLOAT16) for seed, shape in ((1, (20, 90)), (2, (90, 40))))
    y = room().matmul_bfloat16(a, b)
    if kernels.load("tiles").BFLOAT16_DOT:
        a64, b64 = a.astype(np.float64), b.astype(np.float64)                   # two roundings a step of two products
        assert np.all(abs(y - a64 @ b64) <= gamma(2 * 90, FLOAT32) * (abs(a64) @ abs(b64)) + 90 * FLOAT32.tiny)
    else:
        assert bits(y) == bits(room().matmul(a, b))


# the rules on it

SHAPES = [((7,), (7,)), ((5, 7), (7,)), ((7,), (7, 4)), ((5, 7), (7, 4)), ((2, 3, 5, 7), (7, 4)), ((2, 3, 5, 7), (2, 3, 7, 4)),
          ((2, 5, 7), (7,)), ((2, 1, 5, 7), (3, 7, 4)), ((0, 7), (7, 4))]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("format", [FLOAT32, FLOAT16], ids=str)
def test_matmul_and_its_gradients_are_the_rules(shapes, format, monkeypatch):
    found = []
    for switch in ("on", "off"):
        monkeypatch.setenv("MINILLM_KERNELS", switch)
        x, z = (Tensor((values(i, *s) / 64).astype(format.storage), format, name="xz"[i]) for i, s in enumerate(shapes))
        y = apply(RULES["matmul"], x, z, context=Context())
        found.append({"y": y.data} | backward((y * Tensor((values(2, *y.shape) / 64).astype(format.storage), format)).sum()))
    for name, ours in found[0].items():
        theirs = found[1][name]
        assert ours.shape == theirs.shape
        assert np.allclose(ours, theirs, rtol=0, atol=16 * 2.0**-format.mantissa_bits * abs(theirs).max(initial=0)), name


@given(st.sampled_from([1, 3, 14, 40]), st.sampled_from([1, 7, 64, 65, 130]), st.sampled_from([1, 5, 33]), types, st.booleans())
@settings(max_examples=40)
def test_linear_and_its_gradients_are_within_their_bounds(M, N, K, dtype, biased):
    x, w, g = values(1, 2, M, K, dtype=dtype), values(2, N, K, dtype=dtype), values(3, 2, M, N, dtype=dtype)
    bias = values(4, N) if biased else None
    kernel, static = KERNELS["linear"], {"products": FLOAT32_PRODUCTS, "key": 0}
    y = kernel.forward(x, w, bias, **static, out=np.float32)
    plain = kernel.forward(x, w, None, **static, out=np.float32)
    check(plain, x, w.T)
    assert bits(y) == bits(plain if bias is None else plain + bias)
    kept = {"x": x, "weight": w, "bias_shape": (N,) if biased else None} | static
    dx, dw, db = kernel.vjp(g, **kept)
    rows = g.reshape(-1, N)
    check(dx, g, w)
    check(dw, rows.T, x.reshape(-1, K))
    assert (db is None) is not biased
    if biased:
        check(db[None], np.ones((1, 2 * M), np.float32), rows)
    halves = kernel.vjp(g, **kept, out=(np.float16,) * 3)
    for half, wide in zip(halves, (dx, dw, db), strict=True):
        assert wide is None or bits(half) == bits(round_to(wide, FLOAT16))


def test_products_of_other_recipes_come_here_too(monkeypatch):
    """No product of NumPy's float32 arrays calls BLAS, whichever rule or recipe it belongs to."""
    calls = []
    monkeypatch.setattr(room(), "matmul", lambda a, b, inner=room().matmul: calls.append(a.shape) or inner(a, b))
    a = values(1, 4, 6)
    for name in ("float32", float8.FLOAT8_CURRENT.name, block_scaling.MXFP8_UP.name):
        for product in (PRODUCTS[name].forward, PRODUCTS[name].input_gradient, PRODUCTS[name].weight_gradient):
            product(np, a, a.T, 1)
    assert calls == 9 * [a.shape]
    before = len(calls)
    assert np.array_equal(kernels.product(a.astype(np.float64), a.T), a.astype(np.float64) @ a.T)
    monkeypatch.setenv("MINILLM_KERNELS", "off")
    assert np.array_equal(kernels.product(a, a.T), a @ a.T)
    assert len(calls) == before


# other processors, other numbers of threads

SMALL = [(10, 40, 300), (1, 40, 17), (29, 33, 105)]
SPLIT = [(60, 130, 1041), (3, 700, 130)]         # large enough for all threads


def results(cases):
    """The bits of float32 products, by case; the others are checked here."""
    found = {}
    for M, N, K in cases:
        rng = np.random.default_rng(K)
        x, z = (rng.integers(-128, 128, shape).astype(np.int8) for shape in ((M, K), (K, N)))
        y = room().matmul_int8(x, z.T.copy().T)
        assert np.array_equal(y, x.astype(np.int64) @ z.astype(np.int64))
        a, b = values(K, M, K, dtype=np.float16), values(K + 1, K, N, dtype=np.float16)
        y = room().matmul(a, b)
        check(y, a, b)
        half = room().matmul(a, b, out=np.float16)
        assert bits(half) == bits(round_to(y, FLOAT16))
        assert bits(room().matmul(a.astype(np.float32), b.T.astype(np.float32).T)) == bits(y)
        found[f"{M} {N} {K}"] = y.astype("<f4").tobytes().hex()
    return found


@functools.cache
def in_a_process(cases, **variables):
    """The results of a process with these variables, and what the kernels found its processor to have."""
    program = (f"import json, test_matmul as t; r = t.results(t.{cases}); tiles = t.kernels.load('tiles'); "
               "print(json.dumps([r, tiles.COLUMNS, tiles.VNNI, t.kernels.load('scalars').INSTRUCTION]))")
    folders = os.pathsep.join([str(Path(minillm.__file__).parents[1]), str(Path(__file__).parent)])
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False,
                            env=os.environ | variables | {"PYTHONPATH": folders})
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_one_thread_and_two_give_the_same_bits():
    assert in_a_process("SPLIT", NUMBA_NUM_THREADS="1")[0] == in_a_process("SPLIT", NUMBA_NUM_THREADS="2")[0] == results(SPLIT)


# A processor with AVX2, one with AVX-512 but neither its byte products nor float16, and one with none of it.
AVX512 = "+avx512f,+avx512bw,+avx512dq,+avx512vl"
PROCESSORS = {"haswell": ("", 16, False, True), "skylake-avx512": (f"{AVX512},-f16c,-avx512vnni", 64, False, False),
              "x86-64": ("", 16, False, False)}


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="names of x86 processors")
@pytest.mark.parametrize("name", PROCESSORS)
def test_other_processors_give_the_same_integers_and_floats_within_the_bound(name):
    features, *expected = PROCESSORS[name]
    host = kernels.load("pool").features()
    if name != "x86-64" and not {"avx2", "fma", "f16c"} | ({"avx512f"} if "512" in name else set()) <= host:
        pytest.skip("this processor could not run it")
    found, *has = in_a_process("SMALL", NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=features)
    assert has == expected
    if name != "x86-64" and "fma" in host:      # the same order of fused additions
        assert found == results(SMALL)
