"""Compiled kernels: each within a derived bound of its rule in float64, its float16 result its float32 result rounded once."""
import ast
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numba import njit
from numba.core.dispatcher import Dispatcher

import minillm
from minillm import kernels as room
from minillm.autograd.context import Context
from minillm.autograd.kernels import KERNELS
from minillm.autograd.rule import RULES
from minillm.autograd.rules import products
from minillm.autograd.tensor import Tensor, apply, backward
from minillm.errors import MiniLLMError
from minillm.formats import BFLOAT16, FLOAT16, FLOAT32
from minillm.optim import AdamW, global_norm
from minillm.rounding import round_to
from minillm.testing import gamma

TINY, SUBNORMAL = FLOAT32.tiny, FLOAT32.smallest_subnormal
EXP = gamma(3, FLOAT32)                          # kernels.scalars.exp promises a relative error below 1e-7, less than two roundings
PACKAGE = Path(minillm.__file__).parent


pytestmark = pytest.mark.usefixtures("kernels_on")


def g(K):
    return gamma(K, FLOAT32)


def bits(x):
    return np.ascontiguousarray(x).tobytes()


# bounds: (inputs in float64, static) -> exact result and the largest error, forward and backward

def gelu_parts(x):
    """The exact sigmoid of 2 z, and the relative error of the computed one; beyond |z| = 350 both are 0 or 1 in float64, too."""
    z = np.clip(0.7978845608028654 * (x + 0.044715 * x**3), -350, 350)
    s = 1 / (1 + np.exp(-2 * z))
    return s, (1 - s) * (np.expm1(2 * abs(z) * g(8)) + EXP) + g(2)


def gelu_bound(x):
    s, error = gelu_parts(x)
    return x * s, abs(x) * s * (error + g(1)) + abs(x) * TINY + SUBNORMAL      # e^-2z beyond 2^128 makes the result 0


def gelu_vjp_bound(g_, x):
    s, error = gelu_parts(x)
    slope = 0.7978845608028654 * (1 + 3 * 0.044715 * x * x)
    curve = 2 * abs(x) * slope
    exact = g_ * (s + 2 * x * s * (1 - s) * slope)
    lost = s * error + g(1)                                                    # 1 - s is off by as much as s, and a rounding
    relative = s * (error + g(2)) + curve * s * ((1 - s) * (error + g(9)) + lost)
    return exact, abs(g_) * (relative + (1 + curve) * TINY) + SUBNORMAL        # e^-2z beyond 2^128 makes it 0


def layer_norm_bound(x, gain, shift=None, eps=1e-5):
    C, shift = x.shape[-1], 0 if shift is None else shift
    mean = x.mean(-1, keepdims=True)
    c = x - mean
    off = g(C) * abs(x).mean(-1, keepdims=True) + g(1) * abs(c)                # of x - mean, as computed
    variance = (c * c).mean(-1, keepdims=True)
    wrong = (2 * abs(c) * off + off**2).mean(-1, keepdims=True) + g(C + 3) * ((abs(c) + off) ** 2).mean(-1, keepdims=True)
    relative = wrong / (variance + eps) + g(2)
    rstd, r = 1 / np.sqrt(variance + eps), np.where(relative < 1, 1 / np.sqrt(np.maximum(1 - relative, 1e-9)) - 1, np.inf) + g(2)
    y = c * rstd * gain + shift
    scaled = abs(gain) * rstd * (off + (abs(c) + off) * (r + g(3)))
    return y, scaled + g(1) * (abs(y) + scaled) + SUBNORMAL


def layer_norm_vjp_bound(g_, x, gain, mean, rstd):
    """For the mean and rstd that forward kept, whatever their error: they are inputs here."""
    C, rows = x.shape[-1], x.size // x.shape[-1]
    n, h, axes = (x - mean) * rstd, g_ * gain, tuple(range(x.ndim - 1))
    along, across = (abs(a).mean(-1, keepdims=True) for a in (h, h * n))
    exact = [rstd * (h - h.mean(-1, keepdims=True) - n * (h * n).mean(-1, keepdims=True)), (g_ * n).sum(axes), g_.sum(axes)]
    size = [abs(rstd) * (abs(h) + along + abs(n) * across), abs(g_ * n).sum(axes), abs(g_).sum(axes)]
    return exact, [g(K) * s + C * rows * SUBNORMAL for K, s in zip((C + 10, rows + 4, rows + 1), size, strict=True)]


def attention_parts(q, k, v, heads, mask=None, causal=True):
    """Exact weights, and the relative error of the computed ones: that of the scores, and of e to it."""
    q, k, v = (products.heads_of(a, heads) for a in (q, k, v))
    scale, turned = q.shape[-1] ** -0.5, k.swapaxes(-1, -2)
    seen = products.visible(np, q.shape[-2], k.shape[-2], mask, causal)
    seen = True if seen is None else seen
    s = np.where(seen, q @ turned * scale, -np.inf)
    off = np.where(seen, g(q.shape[-1] + 4) * (abs(q) @ abs(turned)) * scale + g(4) * abs(np.where(seen, s, 0)), 0)
    e = np.exp(s - np.maximum(s.max(-1, keepdims=True), -3e38))
    return q, k, v, scale, e / np.maximum(e.sum(-1, keepdims=True), 1), np.expm1(2 * off.max(-1, keepdims=True)) + 2 * EXP


def attention_bound(q, k, v, heads, mask=None, causal=True):
    T = k.shape[1]
    _, _, v, _, p, relative = attention_parts(q, k, v, heads, mask, causal)
    flushed = T * TINY * abs(v).max(-2, keepdims=True)                         # weights below e^-87.3 count as 0
    return products.merged(p @ v), products.merged((relative + g(2 * T + 8)) * (p @ abs(v)) + flushed + SUBNORMAL)


def attention_vjp_bound(g_, q, k, v, heads, mask=None, causal=True):
    T = max(q.shape[1], k.shape[1])
    rows = attention_statistics(q, k, v, heads, mask, causal)
    exact = RULES["attention"].backward(np, g_, q, k, v, **rows, mask=mask, heads=heads, causal=causal,
                                        products=products.FLOAT32_PRODUCTS, key=0)[:3]
    q, k, v, scale, p, relative = attention_parts(q, k, v, heads, mask, causal)
    g_ = products.heads_of(g_, heads)
    size = abs(g_) @ abs(v.swapaxes(-1, -2))
    ds = scale * p * (size + (p * size).sum(-1, keepdims=True))
    relative = 2 * relative + g(q.shape[-1] + 3 * T + 20)                      # p twice, the row's mean, both products
    flushed = T * TINY * (1 + abs(g_).max()) * (1 + abs(v).max()) * (1 + abs(q).max() + abs(k).max()) * q.shape[-1]
    wide, turned = ds * relative, (ds * relative).swapaxes(-1, -2)
    off = wide @ abs(k), turned @ abs(q), (p * relative).swapaxes(-1, -2) @ abs(g_)
    return exact, [products.merged(x) + flushed for x in off]


def attention_statistics(q, k, v, heads, mask=None, causal=True):
    """The largest score of each row, and the sum of its exponentials."""
    return RULES["attention"].forward(np, q, k, v, mask, heads=heads, causal=causal)[1]


# one kernel after the other

LENGTHS = st.sampled_from([1, 2, 3, 7, 15, 16, 17, 31, 64, 97])
STATIC = {"gelu": {}, "layer_norm": {"eps": 1e-5}, "attention": {"heads": 2}}


def test_every_kernel_is_tested_here():
    elsewhere = {"matmul", "linear",                                           # in test_matmul
                 "add", "cast", "rms_norm", "softmax", "log_softmax",          # in test_rowwise
                 "cross_entropy", "embedding", "dropout"}                      # in test_update_kernels
    assert KERNELS.keys() == STATIC.keys() | elsewhere


def halves(data, *shape, size=8.0, seed=0):
    """Values on the grid of float16, some of them 0, drawn once per example."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    x = rng.standard_normal(shape) * size * rng.choice([0.0, 2.0**-10, 0.3, 1.0], shape, p=[0.05, 0.05, 0.4, 0.5])
    return np.asarray(x, np.float16)


def laid_out(data, x):
    """The same values in another layout: contiguous, every other of a larger array, turned, or backwards."""
    how = data.draw(st.sampled_from(["plain", "strided", "fortran", "backwards"] if x.ndim else ["plain"]))
    if how == "strided":
        return np.repeat(x, 2, -1)[..., ::2]
    if how == "fortran":
        return np.asfortranarray(x)
    return np.ascontiguousarray(x[..., ::-1])[..., ::-1] if how == "backwards" else x


def check(found, exact, bound, shares):
    """Within the bound, and finite where the exact value is."""
    error = abs(found.astype(np.float64) - exact)
    assert found.shape == exact.shape
    assert np.all(error <= bound), f"{np.max(error / bound):.3g} times the bound"
    shares.append(float(np.max(error / bound, initial=0)))


def arrays_of(name, data):
    """Inputs of a kernel: as many shapes and layouts as it may meet."""
    if name == "gelu":
        shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=40))
        return [halves(data, *shape, size=data.draw(st.sampled_from([1.0, 8.0, 1e4])))]
    if name == "layer_norm":
        C = data.draw(LENGTHS)
        x = halves(data, *data.draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=8)), C)
        x = x + np.float16(data.draw(st.sampled_from([0, 1, 30])))             # a mean far from 0 is the hard case
        return [x, halves(data, C), halves(data, C)][:data.draw(st.sampled_from([2, 3]))]
    B, T, D = data.draw(st.integers(1, 3)), data.draw(LENGTHS), data.draw(st.sampled_from([1, 3, 16, 20]))
    return [halves(data, B, T, 2 * D, size=data.draw(st.sampled_from([1.0, 4.0]))) for _ in range(3)]


BOUNDS = {"gelu": gelu_bound, "layer_norm": layer_norm_bound, "attention": attention_bound}
VJP_BOUNDS = {"gelu": gelu_vjp_bound, "layer_norm": layer_norm_vjp_bound, "attention": attention_vjp_bound}


def forward(name, arrays, out):
    missing = [None] * (len(RULES[name].inputs) - len(arrays))
    y = KERNELS[name].forward(*arrays, *missing, **STATIC[name], out=out)
    return y if isinstance(y, tuple) else (y, {})


@pytest.mark.parametrize("name", STATIC)
def test_forward_is_within_its_bound(name, capsys):
    shares = []

    @settings(max_examples=60)
    @given(st.data(), st.sampled_from([np.float16, np.float32]))
    def examples(data, dtype):
        arrays = [laid_out(data, a.astype(dtype)) for a in arrays_of(name, data)]
        before = [a.copy() for a in arrays]
        y, _ = forward(name, arrays, np.float32)
        assert y.dtype == np.float32
        check(y, *BOUNDS[name](*(a.astype(np.float64) for a in arrays), **STATIC[name]), shares)
        assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))
    examples()
    with capsys.disabled():
        print(f" {name} reaches {max(shares):.2f} of its bound", end="")
    assert max(shares) > 0.01                    # a bound a hundred times too wide says nothing


@pytest.mark.parametrize("name", STATIC)
def test_backward_is_within_its_bound(name, capsys):
    shares = []

    @settings(max_examples=60)
    @given(st.data(), st.sampled_from([np.float16, np.float32]))
    def examples(data, dtype):
        arrays = [laid_out(data, a.astype(dtype)) for a in arrays_of(name, data)]
        y, extras = forward(name, arrays, np.float32)
        cotangent = laid_out(data, halves(data, *y.shape).astype(dtype))
        kept = {n: a for n, a in zip(RULES[name].inputs, arrays, strict=False) if n in RULES[name].reads} | extras
        if name == "attention":
            exact = attention_statistics(*(a.astype(np.float64) for a in arrays), 2)
            kept |= {n: a.astype(np.float32) for n, a in exact.items()}
        found = KERNELS[name].vjp(cotangent, **kept, **(STATIC[name] if name == "attention" else {}))
        given = [a.astype(np.float64) for n, a in ({"g": cotangent} | kept).items() if n not in ("top", "total")]
        exact, bound = VJP_BOUNDS[name](*given,
                                        **(STATIC[name] if name == "attention" else {}))
        for f, e, b in zip(found, [exact] if name == "gelu" else exact, [bound] if name == "gelu" else bound, strict=False):
            assert f.dtype == np.float32
            check(f, e, b, shares)
    examples()
    with capsys.disabled():
        print(f" {name}_vjp reaches {max(shares):.2f} of its bound", end="")
    assert max(shares) > 0.01


@pytest.mark.parametrize("name", STATIC)
@given(data=st.data(), dtype=st.sampled_from([np.float16, np.float32]))
@settings(max_examples=40)
def test_a_float16_result_is_the_float32_result_rounded_once(name, data, dtype):
    arrays = [a.astype(dtype) for a in arrays_of(name, data)]
    (half, extras), (wide, wide_extras) = (forward(name, arrays, out) for out in (np.float16, np.float32))
    assert half.dtype == np.float16
    assert bits(half) == bits(round_to(wide, FLOAT16))
    assert {n: bits(a) for n, a in extras.items()} == {n: bits(a) for n, a in wide_extras.items()}


def results(name, format, where, bad):
    """Result and gradients with one value of input `where` that is not finite, in the middle of its last row."""
    rng = np.random.default_rng(0)
    shapes = {"gelu": [(2, 6, 8)], "layer_norm": [(2, 6, 8), (8,), (8,)], "attention": [(2, 6, 8)] * 3}[name]
    inputs = [Tensor(rng.standard_normal(shape).astype(format.storage), format, name=what)
              for shape, what in zip(shapes, RULES[name].inputs, strict=False)]
    inputs[where].data[(1, 5, 3)[-inputs[where].ndim:]] = bad
    y = apply(RULES[name], *inputs, context=Context(), **STATIC[name])
    return {"y": y.data} | backward((y * Tensor(rng.standard_normal(y.shape).astype(format.storage), format)).sum())


@pytest.mark.parametrize(("name", "where"), [("gelu", 0), *((name, i) for name in ("layer_norm", "attention") for i in range(3))])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("format", [FLOAT16, FLOAT32], ids=str)
def test_nan_and_infinity_pass_through(name, where, bad, format, monkeypatch):
    """A kernel makes finite what the rule makes finite, and hides nothing in the row that the value stands in."""
    found = results(name, format, where, bad)
    monkeypatch.setenv("MINILLM_KERNELS", "off")
    for n, a in results(name, format, where, bad).items():
        if name == "attention":                  # the rule's 0 x NaN spreads to queries that may not see the value
            assert np.all(np.isfinite(found[n]) >= np.isfinite(a)), n
            assert np.isfinite(found[n][1, 5]).all() == np.isfinite(a[1, 5]).all()
        else:
            assert np.array_equal(np.isfinite(found[n]), np.isfinite(a)), n
    if np.isnan(bad):                            # not so for infinity: a key of -inf has weight 0
        assert not np.isfinite(found["y"]).all()


def test_kernels_refuse_what_they_would_compute_in_double():
    x = np.ones((2, 8))
    for call in (lambda: forward("gelu", [x], np.float32), lambda: forward("layer_norm", [x, x[0]], np.float32),
                 lambda: room.load("rounding").to_float16(x), lambda: room.load("optimizers").sum_of_squares([x], np.float32(1))):
        with pytest.raises(MiniLLMError, match="kernels take float16 and float32, not float64"):
            call()


def test_empty_arrays_go_to_the_rule():
    x = Tensor(np.zeros((0, 8), np.float16), FLOAT16, name="x")
    assert backward(apply(RULES["gelu"], x, context=Context()).sum())["x"].shape == (0, 8)
    assert room.load("rounding").to_float32(x.data).shape == (0, 8)


def test_exp_keeps_its_promise():
    exp = room.load("scalars").exp

    @njit(error_model="numpy")
    def each(x, y):
        for i in range(x.size):
            y[i] = exp(x[i])
    x = np.concatenate([np.linspace(-87.33, 88.72, 400_001), np.linspace(-1e-3, 1e-3, 10_001), np.geomspace(1e-40, 1, 1000)])
    x = x.astype(np.float32)
    y = np.empty_like(x)
    each(x, y)
    exact = np.exp(x.astype(np.float64))
    assert np.max(abs(y / exact - 1)) < 1e-7
    ends = np.array([88.7229, 1e30, np.inf, -87.34, -1e30, -np.inf, np.nan, 0.0, -0.0], np.float32)
    y = np.empty_like(ends)
    each(ends, y)
    assert np.array_equal(y, [np.inf] * 3 + [0] * 3 + [np.nan, 1, 1], equal_nan=True)


# optimizers

shapes = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=40)


@given(st.data(), shapes, st.sampled_from([np.float16, np.float32]), st.sampled_from([1.0, 2.0**-16, 0.37]))
def test_sum_of_squares_is_within_its_bound(data, shape, dtype, factor):
    x = laid_out(data, halves(data, *shape).astype(dtype))
    scaled = x.astype(np.float64) * np.float64(np.float32(factor))
    exact = (scaled**2).sum()
    found = room.load("optimizers").sum_of_squares([x], np.float32(factor))
    assert abs(found - exact) <= g(terms_in_a_row(x.size) + 3) * exact + x.size * SUBNORMAL
    assert abs(global_norm([x], factor) - np.sqrt(exact)) <= g(x.size + 5) * np.sqrt(exact) + np.sqrt(x.size * SUBNORMAL)


def terms_in_a_row(n):
    """The longest chain of additions in sum_of_squares: a lane in a task, across lanes, the tasks."""
    optimizers = room.load("optimizers")
    each, tasks = room.load("tasks").shares(n, optimizers.LEAST)
    return min(n, each) // optimizers.LANES + optimizers.LANES.bit_length() + tasks


def test_a_long_sum_of_squares_loses_little():
    x = np.full(2**21, 0.1, np.float32)                                        # one after the other it would stop growing
    exact = x.size * float(x[0]) ** 2
    found = room.load("optimizers").sum_of_squares([x], np.float32(1))
    assert abs(found - exact) <= g(terms_in_a_row(x.size) + 3) * exact
    assert terms_in_a_row(x.size) < 1000


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_norm_is_not_finite_if_one_value_is_not(bad, dtype):
    for place in (0, 17, 4095, 4096, 5000):
        x = np.ones(5001, dtype)
        x[place] = bad
        assert not np.isfinite(global_norm([np.ones(3, dtype), x]))


def optimizer_steps(state, format, state_format, layout, kernels, monkeypatch):
    """Weights and moments after three steps, gradients with zeros, subnormals, an infinity and a NaN."""
    monkeypatch.setenv("MINILLM_KERNELS", kernels)
    rng = np.random.default_rng(state)
    w = Tensor(layout(round_to(rng.standard_normal((7, 11)).astype(np.float32), format)), format, name="w")
    optimizer = AdamW([w], state_format=state_format)
    for _ in range(3):
        gradient = round_to((rng.standard_normal((7, 11)) * 2.0 ** rng.integers(-26, 4, (7, 11))).astype(np.float32), format)
        gradient[0, :4] = 0, np.inf, np.nan, -0.0
        optimizer.step({"w": layout(gradient)}, 1e-2, 0.5)
    return [np.ascontiguousarray(a) for a in (w.data, optimizer.state["m"]["w"], optimizer.state["v"]["w"])]


@pytest.mark.parametrize("format", [FLOAT16, FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("state_format", [FLOAT16, FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray, lambda x: np.repeat(x, 2, 1)[:, ::2]])
def test_adamw_gives_the_bits_of_its_numpy_twin(format, state_format, layout, monkeypatch):
    fast, plain = (optimizer_steps(5, format, state_format, layout, kernels, monkeypatch) for kernels in ("on", "off"))
    for a, b in zip(fast, plain, strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(np.isnan(a), np.isnan(b))
        assert bits(np.where(np.isnan(a), 0, a)) == bits(np.where(np.isnan(b), 0, b))


def test_adamw_updates_moments_that_do_not_lie_in_one_piece():
    adamw = room.load("optimizers").adamw
    w, gradient = np.ones((3, 4), np.float32), np.full((3, 4), 2, np.float32)
    numbers = np.array([(1, 0.1, 0.01, 10, 100, 1e-8, 0.1, 1)], np.float32)
    results = []
    for order in "CF":
        m, v = np.zeros((3, 4), np.float32, order), np.zeros((3, 4), np.float32, order)
        results.append((*adamw([np.array(w, order=order)], [gradient], [m], [v], numbers), m, v))
    for a, b in zip(*results, strict=True):
        assert np.array_equal(a, b)
        assert a.any()


def test_a_gradient_of_another_shape_is_refused(monkeypatch):
    for kernels in ("on", "off"):
        monkeypatch.setenv("MINILLM_KERNELS", kernels)
        w = Tensor(np.ones((3, 4), np.float32), name="w")
        with pytest.raises(MiniLLMError, match=r"the gradient of w has shape \(4,\), the parameter \(3, 4\)"):
            AdamW([w]).step({"w": np.ones(4, np.float32)}, 1e-3)


# the machine code and its home

ROOMS = sorted(p.stem for p in Path(room.__file__).parent.glob("*.py") if p.stem != "__init__")
IN_DOUBLE = {"accumulation", "watching"}     # emulated accumulators add in float64; the microscope sums squared errors
DOUBLE = re.compile(r"= f(?:add|sub|mul|div|rem|neg|cmp)\b.*\bdouble\b|\bcall\b[^@]*\bdouble\b[^@]*@(?!PyFloat_)|@llvm\.[^(]*f64")


def intermediate_code(dispatcher, signature) -> str:
    """The LLVM text of a compiled function; inspect_llvm() has none for code that came from the cache."""
    return str(dispatcher.overloads[signature].library._get_module_for_linking())


def compiled():
    """Every function with machine code: all those that training and these tests have called."""
    for name in STATIC:
        arrays = {"gelu": [(2, 8)], "layer_norm": [(2, 8), (8,), (8,)], "attention": [(1, 4, 8)] * 3}[name]
        for dtype in (np.float16, np.float32):
            format = FLOAT16 if dtype is np.float16 else FLOAT32
            inputs = [Tensor(np.ones(s, dtype), format, name=str(i)) for i, s in enumerate(arrays)]
            backward(apply(RULES[name], *inputs, context=Context(), **STATIC[name]).sum())
            w = Tensor(np.ones(3, dtype), format, name="w")
            AdamW([w], state_format=format).step({"w": w.data}, 1e-3, global_norm([w.data]))
    round_to(np.ones(3, np.float32), BFLOAT16)
    one = np.ones((2, 2), np.float32)
    room.load("matmul").matmul(one, one)
    for name in set(ROOMS) - IN_DOUBLE:
        given = list(vars(room.load(name)).values())
        for each in given + [task for table in given if isinstance(table, dict) for pair in table.values()
                             if isinstance(pair, tuple) for task in pair]:
            if isinstance(each, Dispatcher) and each.py_func.__module__.endswith(f".{name}"):
                yield from ((f"{name}.{each.py_func.__name__}", each, signature) for signature in each.signatures)


def test_no_kernel_computes_in_double():
    seen = set()
    for name, dispatcher, signature in compiled():
        code = intermediate_code(dispatcher, signature)
        assert "define " in code
        assert not (found := DOUBLE.findall(code)), f"{name}{signature}: {found[:3]}"
        seen.add(name)
    assert len(seen) >= 8
    assert {"elementwise._gelu_pool", "rowwise._layer_norm_vjp_pool", "optimizers._adamw_pool", "rounding._copy_pool",
            "blocks.multiply_block"} <= seen


@pytest.mark.parametrize("double", [lambda x: x * 0.1, lambda x: np.exp(x + 0.5), lambda x: np.float64(x) * x + x])
def test_double_would_be_seen(double):
    inner = njit(double)

    @njit(error_model="numpy")
    def kernel(x):
        for i in range(x.size):
            x[i] = inner(x[i])
    kernel(np.ones(3, np.float32))
    assert DOUBLE.search(intermediate_code(kernel, kernel.signatures[0]))


def fastmath_of(node) -> list[str]:
    """What stands for fastmath in a call or a dictionary."""
    found = [node.value] if isinstance(node, ast.keyword) and node.arg == "fastmath" else []
    if isinstance(node, ast.Dict):
        found += [value for key, value in zip(node.keys, node.values, strict=True) if getattr(key, "value", "") == "fastmath"]
    return [ast.unparse(value) for value in found]


def test_fastmath_is_nowhere():
    """It deletes checks for NaN and breaks compensated sums; only fused multiply-adds may be allowed, by {"contract"}."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert set(fastmath_of(node)) <= {"{'contract'}"}, path.name
    for name in set(ROOMS) - IN_DOUBLE:
        for each in vars(room.load(name)).values():
            if isinstance(each, Dispatcher):
                assert each.targetoptions.get("fastmath", False) in (False, {"contract"})


@pytest.mark.parametrize("code", ["njit(fastmath=True)", "JIT = {'fastmath': True}", "f(fastmath={'nnan'})", "f(fastmath=on)"])
def test_fastmath_would_be_found(code):
    assert any(set(fastmath_of(node)) - {"{'contract'}"} for node in ast.walk(ast.parse(code)))


def test_machine_code_lies_outside_the_checkout():
    folder = room.cache_folder().resolve()
    assert not folder.is_relative_to(PACKAGE.parent)
    assert not list(PACKAGE.rglob("*.nbi")) + list(PACKAGE.rglob("*.nbc"))
    kernel = room.load("elementwise")._gelu
    assert Path(kernel.stats.cache_path).is_relative_to(folder)


def test_the_cache_folder_can_be_chosen_and_need_not_exist(monkeypatch, tmp_path):
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path / "a" / "b"))
    assert room.cache_folder().is_relative_to(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path / "file"))
    assert room.cache_folder().is_dir()          # a temporary one: the place given is a file


def test_another_source_means_another_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path))
    before = room.cache_folder()
    monkeypatch.setattr(room, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "one.py").write_text("a")
    one = room.cache_folder()
    (tmp_path / "one.py").write_text("b")
    assert len({before, one, room.cache_folder()}) == 3


@pytest.mark.parametrize(("word", "on"), [("on", True), ("off", False), ("OFF", False), ("0", False), ("no", False), ("", True)])
def test_the_switch(word, on, monkeypatch):
    monkeypatch.setenv("MINILLM_KERNELS", word)
    assert room.enabled() is on


def test_kernels_document_what_they_take():
    for name in KERNELS:
        assert list(inspect.signature(KERNELS[name].forward).parameters)[:len(RULES[name].inputs)] == list(RULES[name].inputs)
