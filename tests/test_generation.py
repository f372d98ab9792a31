"""Generation token by token: the compiled way beside the general one, weights in float16 and int8, caches and casts."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gpt import SHAPE, batch, make, recipe_of

from minillm import kernels as room
from minillm.autograd.tensor import Tensor, apply
from minillm.autograd.watching import watch
from minillm.bench import torch_gpt
from minillm.conversion.int8_model import WEIGHTS, in_weights, weight_bytes
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT16, FLOAT32
from minillm.models.decoding import Decoder, table
from minillm.models.gpt import GPT
from minillm.nn.caches import Int8Rows, KeyValueCache, Rows
from minillm.nn.quantized import QuantizedEmbedding, QuantizedLinear, QuantizedMatrix
from minillm.quantization.affine import PER_ROW, Quantized, as_scale
from minillm.quantization.products import codes_of_rows, int8_product
from minillm.rounding import round_to, widen
from minillm.testing import dot_bound

IDS = batch(rows=1)[0][0]                        # (T,)
SERVED = ("float32", "float16-mixed", "float16", "float16-no-master")


def int8_matrix(codes, scale):
    return QuantizedMatrix(Quantized(codes, scale, None, PER_ROW), int8=True)


def int8_layer(codes, scale, bias=None):
    return QuantizedLinear(None, int8_matrix(codes, scale), bias)


def livelier(model: GPT) -> GPT:
    """Weights ten times as large: an untrained GPT says nearly the same for every text."""
    for p in model.parameters():
        if p.ndim > 1:
            p.data = round_to(widen(p.data, np.float32) * np.float32(10), p.format)
    return model


def step_by_step(model: GPT, ids: np.ndarray, first: int = 3, on: bool = True, caches=None) -> tuple[np.ndarray, Decoder]:
    """Logits (T - first + 1, V) of a decoder that reads `first` tokens in one pass and then one at a time; the decoder."""
    with pytest.MonkeyPatch.context() as patch, model.ops.context.unchanged():
        patch.setenv("MINILLM_KERNELS", "on" if on else "off")
        decoder, caches = Decoder(model), caches or model.new_caches()
        logits = [decoder.logits(ids[:first].tolist(), caches, 0)]
        logits += [decoder.logits([int(token)], caches, first + i) for i, token in enumerate(ids[first:])]
        return np.array(logits), decoder


def in_one_pass(model: GPT, ids: np.ndarray, first: int = 3) -> np.ndarray:
    with model.ops.context.no_record():
        return model(ids[None]).data[0, first - 1:].astype(np.float32)


# --- the compiled way beside the general one

def check_a_compiled_token(recipe, bias):
    model = livelier(make(recipe, bias=bias))
    ours, decoder = step_by_step(model, IDS)
    assert decoder.blocks
    whole, format = in_one_pass(model, IDS), FLOAT32 if recipe == "float32" else FLOAT16
    # As for the general way with a cache: each of the 20 ops on the way is off by about one roundoff of the largest value.
    share = abs(ours - whole).max() / (20 * format.roundoff * abs(whole).max())
    print(f"{recipe}: {share:.2f} of the bound")
    assert share < 1
    assert len({row.tobytes() for row in ours}) == len(ours)                   # and every position has logits of its own


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("recipe", SERVED)
def test_a_compiled_token_has_the_logits_of_a_whole_pass(recipe, bias):
    check_a_compiled_token(recipe, bias)


@pytest.mark.parametrize("recipe", SERVED)
def test_keys_and_values_are_held_in_the_recipes_format(recipe):
    model, format = make(recipe), FLOAT32 if recipe == "float32" else FLOAT16
    for on in (True, False):
        with pytest.MonkeyPatch.context() as patch, model.ops.context.unchanged():
            patch.setenv("MINILLM_KERNELS", "on" if on else "off")
            decoder, caches = Decoder(model), model.new_caches()
            decoder.logits([3, 1], caches, 0)
            held = [cache.keys.array for cache in caches]
            decoder.logits([4], caches, 2)
            assert all(cache.keys.array is a and cache.count == 3 for cache, a in zip(caches, held, strict=True))
            assert all(cache.keys.format is format and cache.keys.array[:, 2].any() for cache in caches)


@pytest.mark.parametrize("recipe", ["bfloat16-mixed", "float32-scaled", "apex-O1", recipe_of("float32", composed=("attention",)),
                                    recipe_of("float32", forward_rounding="stochastic")], ids=str)
def test_what_the_compiled_way_does_not_serve_goes_the_general_way(recipe):
    model = livelier(make(recipe))
    ours, decoder = step_by_step(model, IDS)
    assert bool(decoder.blocks) == (recipe == "float32-scaled")
    assert np.isfinite(ours).all()


def test_whoever_watches_sees_every_op_of_every_token():
    model, seen = livelier(make()), []
    plain = model.generate(IDS[:3], 6, temperature=0)
    with watch(seen.append):
        assert model.generate(IDS[:3], 6, temperature=0).tolist() == plain.tolist()
    assert sum(event.address.op == "attention" for event in seen) == 6 * SHAPE.layers


def test_without_kernels_nothing_compiled_is_asked_for(monkeypatch):
    monkeypatch.setattr(room, "load", lambda name: pytest.fail(f"{name} was loaded"))
    logits, decoder = step_by_step(livelier(make()), IDS, on=False)
    assert decoder.blocks is None
    assert np.isfinite(logits).all()


# --- kernels

shapes = st.tuples(st.sampled_from([1, 2, 3, 4, 5, 7, 64, 300]), st.sampled_from([1, 2, 31, 32, 33, 97, 128, 257]))


@pytest.fixture(scope="module")
def kernel():
    return room.load("generation")


@settings(max_examples=25)
@given(shapes, st.booleans(), st.booleans(), st.integers(0, 9))
def test_a_matrix_times_a_vector_is_within_its_bound_and_rounded_once(kernel, shape, half, biased, seed):
    (N, K), rng = shape, np.random.default_rng(seed)
    weight, x, bias = (rng.standard_normal(s, np.float32) for s in ((N, K), K, N))
    weight = weight.astype(np.float16) if half else weight
    exact, wide, narrow = weight.astype(np.float64) @ x, np.empty(N, np.float32), np.empty(N, np.float16)
    given_bias = bias if biased else np.zeros(N, np.float32)
    for y in (wide, narrow):
        kernel.linear_float(x, y.view(np.uint16) if y.dtype == np.float16 else y,
                            weight.view(np.uint16) if half else weight, given_bias)
    extra = (abs(exact) + abs(bias)) * 2 * FLOAT32.roundoff
    assert (abs(wide - exact - biased * bias) <= dot_bound(weight, x[:, None])[:, 0] + extra).all()
    assert narrow.tobytes() == wide.astype(np.float16).tobytes()


@pytest.mark.parametrize("place", [0, 40])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_pass_through(kernel, value, place):
    x, weight, y = np.ones(41, np.float32), np.ones((5, 41), np.float32), np.empty(5, np.float32)
    x[place] = value
    kernel.linear_float(x, y, weight, np.zeros(5, np.float32))
    assert np.array_equal(y, np.full(5, value, np.float32), equal_nan=True)
    kernel.linear_int8(x, y, weight.astype(np.int8), np.ones(5, np.float32), np.zeros(5, np.float32))
    assert np.isnan(y).all()                                                   # codes have no infinity


def rows(seed, K, count=6):
    """Rows of many sizes, some of them odd."""
    x = np.random.default_rng(seed).standard_normal((count, K), np.float32)
    x[1] = 0
    x[2, -1] = np.inf
    x[3, 0] = np.nan
    x[4] *= np.float32(1e-42)
    x[5] = np.sign(x[5]) * FLOAT32.max
    return x


@pytest.mark.parametrize("K", [1, 5, 256])
def test_activations_have_the_codes_that_numpy_gives_them(kernel, K):
    x = rows(0, K)
    codes, scale = codes_of_rows(x)
    for row, expected, factor in zip(x, codes, scale[:, 0], strict=True):
        ours, ours_scale = kernel.to_codes(row)
        assert (ours == expected).all()
        assert np.float32(ours_scale).tobytes() == factor.tobytes()
    assert codes.min() >= -127
    assert (codes[1] == 0).all()
    assert (scale[1], scale[5]) == (1, as_scale(np.float32(np.inf)))
    assert np.isnan(scale[2:4]).all()


@pytest.mark.parametrize("K", [1, 32, 1040, 1041, 3000])
def test_int8_products_are_exact(kernels, K):
    rng = np.random.default_rng(K)
    a, b = np.where(rng.random((3, K)) < 0.9, 127, -127).astype(np.int8), np.full((K, 2), 127, np.int8)
    assert (int8_product(a, b) == a.astype(np.int64) @ b.astype(np.int64)).all()
    x, layer = a[:1].astype(np.float32), int8_layer(b.T.copy(), np.array([1, 2], np.float32))
    exact = (a[0].astype(np.int64) @ b.astype(np.int64)).astype(np.float32) * layer.scale
    assert layer(make().ops.cast(Tensor(x), FLOAT32)).data[0].tobytes() == exact.tobytes()


@pytest.mark.parametrize(("N", "K"), [(1, 1), (5, 33), (300, 257), (1024, 256)])
@pytest.mark.parametrize("biased", [True, False])
def test_the_compiled_int8_layer_has_the_bits_of_numpys(kernel, N, K, biased, monkeypatch):
    monkeypatch.setenv("MINILLM_KERNELS", "off")
    rng = np.random.default_rng(N)
    codes, scale = codes_of_rows(rng.standard_normal((N, K), np.float32))
    bias, x = rng.standard_normal(N, np.float32), rng.standard_normal(K, np.float32)
    layer = int8_layer(codes, scale[:, 0], Tensor(bias) if biased else None)
    y = np.empty(N, np.float32)
    kernel.linear_int8(x, y, codes, scale[:, 0].copy(), bias if biased else np.zeros(N, np.float32))
    assert y.tobytes() == layer(Tensor(x[None])).data.tobytes()
    # each operand is off by at most half a step: |x w - x' w'| <= K (x/2 |w| + w/2 |x| + x w / 4) for steps x and w
    step, steps = abs(x).max() / 127, scale[:, 0]
    true = (codes * scale).astype(np.float64) @ x + (bias if biased else 0)
    assert (abs(y - true) <= step / 2 * abs(codes * scale).sum(1) * 1.001 + 1e-6 * steps).all()


PROGRAM = """
import hashlib, numpy as np
from minillm.conversion.int8_model import WEIGHTS, in_weights
from minillm.models.decoding import Decoder, table
from minillm.models.gpt import GPT, GPTShape
from minillm.recipes import PRESETS
model = GPT(GPTShape(300, 1, 4, 256, 160), PRESETS["float32"])
for name in WEIGHTS:
    copy = in_weights(model, name)
    with copy.ops.context.unchanged():
        decoder, caches = Decoder(copy), copy.new_caches()
        decoder.logits(list(range(150)), caches, 0)
        print(hashlib.blake2b(b"".join(decoder.logits([i], caches, 150 + i).tobytes() for i in range(4))).hexdigest())
    assert decoder.blocks
"""


def said(program: str, **variables: str) -> str:
    """What a program prints under these environment variables."""
    root = Path(__file__).parents[1]
    environment = os.environ | {"MINILLM_KERNELS": "on", "PYTHONPATH": str(root)} | variables
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment).stdout


def test_logits_have_the_same_bits_on_one_thread_and_on_two(kernels_on):
    one, two = (said(PROGRAM, NUMBA_NUM_THREADS=count) for count in "12")
    assert len(set(one.split())) == 3
    assert one == two


WITHOUT = """
import numpy as np
from minillm import kernels
scalars, kernel = kernels.load("scalars"), kernels.load("generation")
rng, y = np.random.default_rng(0), np.empty(70, np.float32)
weight, x = rng.standard_normal((70, 100), np.float32).astype(np.float16), rng.standard_normal(100, np.float32)
kernel.linear_float(x, y, weight.view(np.uint16), np.zeros(70, np.float32))
print(scalars.INSTRUCTION, y.tolist())
kernel.linear_int8(x, y, rng.integers(-127, 128, (70, 100)).astype(np.int8), np.ones(70, np.float32), np.zeros(70, np.float32))
print(y.tolist())
"""


def test_a_processor_without_f16c_and_vector_sums_of_pairs_gives_the_same(kernels_on):
    old, new = (said(WITHOUT, **more).splitlines() for more in ({"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ""}, {}))
    assert old[0].startswith("False")
    assert old[1] == new[1]                                                    # of whole numbers, in bits
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((70, 100), np.float32).astype(np.float16), rng.standard_normal(100, np.float32)
    for line in (old[0], new[0]):
        y = np.array([float(v) for v in line.partition("[")[2].rstrip("]").split(",")])
        assert (abs(y - weight.astype(np.float64) @ x) <= dot_bound(weight, x[:, None])[:, 0]).all()


# --- caches and casts

def test_a_cache_is_full_at_the_context_and_follows_no_gradient():
    cache = KeyValueCache(4)
    k = Tensor(np.ones((1, 3, 2), np.float32))
    assert cache.extend(k, k)[0].shape == (1, 3, 2)
    with pytest.raises(MiniLLMError, match="6 tokens do not fit into a cache of 4"):
        cache.extend(k, k)
    assert cache.count == 3
    with pytest.raises(MiniLLMError, match="call the model inside no_record"):
        KeyValueCache(4).extend(Tensor(np.ones((1, 1, 2), np.float32), name="k"), k)


def test_int8_rows_are_codes_by_token_and_head():
    rows, x = Int8Rows(8, heads=2), np.arange(-12, 12, dtype=np.float32).reshape(2, 3, 4) ** 3
    rows.write(1, Tensor(x))
    heads = x.reshape(2, 3, 2, 2)
    codes, scale = codes_of_rows(heads)
    assert (rows.codes[:, 1:4] == codes.reshape(x.shape)).all()
    assert (rows.scale[:, 1:4] == scale[..., 0]).all()
    assert not rows.codes[:, 0].any()
    assert not rows.codes[:, 4:].any()
    off = abs(rows.read(4).data[:, 1:].reshape(heads.shape) - heads)
    assert (off <= scale / 2 * (1 + 2**-20)).all()
    assert off.any()
    plain = Rows(8)
    plain.write(0, Tensor(np.zeros((2, 1, 64), np.float32)))
    wide = Int8Rows(8, heads=2)
    wide.write(0, Tensor(np.zeros((2, 1, 64), np.float32)))
    assert wide.nbytes == plain.nbytes * (1 / 4 + 1 / 32)


@pytest.mark.parametrize("recipe", ["float32", "float16-mixed", "bfloat16-mixed"])
@pytest.mark.parametrize("kernels", ["on", "off"])
def test_an_int8_cache_gives_nearly_the_logits_of_a_plain_one(recipe, kernels):
    model = livelier(make(recipe))
    caches, whole = model.new_caches(int8=True), model.new_caches(int8=True)
    got, decoder = step_by_step(model, IDS, on=kernels == "on", caches=caches)
    with model.ops.context.no_record():
        want = model(IDS[None], whole).data[0, 2:].astype(np.float32)
    plain = in_one_pass(model, IDS)
    step = abs(plain).max() / 127
    assert abs(got - want).max() < step / 4                                    # a code that fell the other way is far less
    assert 0 < abs(got - plain).max() < 4 * step
    assert bool(decoder.blocks) == (kernels == "on" and recipe != "bfloat16-mixed")
    for ours, theirs in zip(caches, whole, strict=True):
        off = abs(ours.keys.codes.astype(np.int16) - theirs.keys.codes)
        assert off.max() <= (1 if recipe == "float32" else 3)
        assert (off == 0).mean() > 0.9
        assert np.allclose(ours.values.scale, theirs.values.scale, rtol=1e-2)  # float16 and bfloat16 round k and v to 2^-8 at worst


def test_what_is_not_finite_reaches_the_logits_through_an_int8_cache():
    model = make("float32")
    for on in (True, False):
        caches = model.new_caches(int8=True)
        with pytest.MonkeyPatch.context() as patch, model.ops.context.unchanged():
            patch.setenv("MINILLM_KERNELS", "on" if on else "off")
            decoder = Decoder(model)
            decoder.logits([3, 1], caches, 0)
            caches[0].values.scale[0, 0] = np.nan
            assert np.isnan(decoder.logits([4], caches, 2)).all()


@pytest.mark.parametrize("recipe", ["float16-mixed", "bfloat16-mixed"])
def test_no_text_is_made_with_the_weights_of_yesterday(recipe, kernels):
    model = livelier(make(recipe))
    before = model.generate(IDS[:3], 12, temperature=0).tolist()
    with model.ops.context.no_record():
        model(IDS[None])                                                       # an evaluation between
        for p in model.parameters():
            p.data *= np.float32(-1)                                           # an update in place, where the array stays the same
        model.ops.context.begin(1)
        now = model(IDS[None]).data.tobytes()
    fresh = make(recipe)
    fresh.load_state_dict(model.state_dict())
    assert now == fresh_logits(fresh).tobytes()
    after = model.generate(IDS[:3], 12, temperature=0).tolist()
    assert after == fresh.generate(IDS[:3], 12, temperature=0).tolist() != before
    assert model.ops.context.leaf_casts == {}


def fresh_logits(model):
    with model.ops.context.no_record():
        return model(IDS[None]).data


def test_weights_are_cast_once_for_a_whole_text(monkeypatch):
    monkeypatch.setenv("MINILLM_KERNELS", "off")
    model, casts = make("float16-mixed"), []

    def noted(rule, p, **how):
        casts.append(p.name)
        return apply(rule, p, **how)

    monkeypatch.setattr("minillm.precision.master_weights.apply", noted)
    model.generate(IDS[:3], 8)
    assert len(casts) == len(set(casts)) > 10


# --- weights in other formats

def test_bytes_are_true():
    model = make(bias=True)
    matrices = [p.data for p in model.parameters() if p.ndim == 2]
    vectors = sum(p.size for p in model.parameters() if p.ndim == 1)
    size = sum(w.size for w in matrices)
    assert weight_bytes(in_weights(model, "float32")) == 4 * (size + vectors)
    assert weight_bytes(in_weights(model, "float16")) == 2 * (size + vectors)
    assert weight_bytes(in_weights(model, "int8")) == size + 4 * sum(len(w) for w in matrices) + 4 * vectors


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("recipe", ["float32", "float16-mixed", "bfloat16-pure"])
def test_a_text_in_other_weights_is_nearly_the_same(recipe, weights, kernels):
    model = livelier(make(recipe))
    copy, state = in_weights(model, weights), model.state_dict()
    wide = make("float32")
    wide.load_state_dict({name: widen(a, np.float32) for name, a in state.items()})
    ours, whole = step_by_step(copy, IDS, on=kernels == "on")[0], in_one_pass(wide, IDS)
    # An operand in int8 is off by a step / sqrt(12) on average, a step being 3 to 4 deviations / 127: 0.9 %. Two operands, nine
    # products one behind the other: 1.3 % x 3. In float16 20 ops are off by 2^-11 each; a text of other weights is off by 140 %.
    error = np.sqrt(np.mean((ours - whole) ** 2) / np.var(whole))
    print(f"{recipe} in {weights}: {error:.5f}")
    assert error < {"float32": 1e-5, "float16": 20 * 2.0**-11, "int8": 0.1}[weights]
    assert copy.generate(IDS[:3], 20).shape == (23,)
    assert all(state[name].tobytes() == a.tobytes() for name, a in model.state_dict().items())


def test_int8_tokens_have_the_logits_of_an_int8_pass():
    model = in_weights(livelier(make()), "int8")
    ours, decoder = step_by_step(model, IDS)
    assert decoder.blocks
    whole = in_one_pass(model, IDS)
    # a last bit decides which of two codes is taken, now and then: a step of 1/127 of one value among 32
    assert abs(ours - whole).max() < abs(whole).max() / 50


def test_rows_of_an_int8_table_have_their_own_scales():
    exact = np.array([[1, -2], [100, 50], [0, 0]], np.float32)
    codes, scale = codes_of_rows(exact)
    rows = QuantizedEmbedding(None, int8_matrix(codes, scale[:, 0]))(np.array([[2, 1], [0, 0]])).data
    assert (abs(rows - exact[[[2, 1], [0, 0]]]) <= scale[[[2, 1], [0, 0]]] / 2).all()
    with pytest.raises(MiniLLMError, match=r"ids must lie in 0 \.\.\. 2"):
        QuantizedEmbedding(None, int8_matrix(codes, scale[:, 0]))(np.array([3]))


def test_a_token_finds_the_row_of_an_int8_table():
    codes, scale = codes_of_rows(np.random.default_rng(0).standard_normal((5, 33), np.float32))
    embedding = QuantizedEmbedding(None, int8_matrix(codes, scale[:, 0]))
    row_of = table(embedding, None)
    assert [row_of(i).tobytes() for i in range(5)] == [embedding.matrix.rows(np.array(i)).tobytes() for i in range(5)]


def test_what_cannot_be_converted_or_trained_is_refused():
    model = make()
    with pytest.raises(MiniLLMError, match="unknown weights 'int4': did you mean 'int8'"):
        in_weights(model, "int4")
    with pytest.raises(MiniLLMError, match="codes of weights cannot be trained"):
        in_weights(model, "int8").loss(*batch())
    model.block0.mlp.up.weight.data[3, 4] = 70_000
    with pytest.raises(MiniLLMError, match=r"block0\.mlp\.up\.weight has weights beyond 65504"):
        in_weights(model, "float16")
    model.block0.mlp.up.weight.data[3, 4] = np.nan
    with pytest.raises(MiniLLMError, match="int8 cannot hold"):
        in_weights(model, "int8")


# --- the bench

def test_pytorch_generates_the_same_text():
    torch = pytest.importorskip("torch")
    model = livelier(make(bias=False))
    ours = model.generate([0], 12, temperature=0).tolist()
    assert torch_gpt.generate(torch, torch_gpt.torch_gpt(torch, model), model.shape, 12) == ours
