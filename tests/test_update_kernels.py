"""Kernels around the products: cross-entropy, embedding, dropout, AdamW, norms, casts: equal in bits, or within a derived bound."""
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels import EXP, SUBNORMAL, TINY, bits, g, laid_out

from minillm import kernels as room
from minillm.autograd.context import Context
from minillm.autograd.kernels import KERNELS
from minillm.autograd.rule import RULES
from minillm.autograd.tensor import Tensor, apply, backward
from minillm.errors import MiniLLMError
from minillm.formats import BFLOAT16, FLOAT8_E4M3, FLOAT16, FLOAT22_E8M13, FLOAT32, FORMATS, TF32
from minillm.optim import AdamW, global_norm
from minillm.rounding import round_to, to_grid, widen

LENGTHS = st.sampled_from([1, 2, 3, 15, 16, 17, 31, 32, 33, 64, 97, 103])
MINE = ("cross_entropy", "embedding", "dropout")

pytestmark = pytest.mark.usefixtures("kernels_on")


def rows(data, N, V, dtype):
    """Logits from flat to peaked, on the grid of float16."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    x = rng.standard_normal((N, V)) * data.draw(st.sampled_from([0.1, 3.0, 60.0])) + data.draw(st.sampled_from([0, 300]))
    return laid_out(data, np.asarray(x, np.float16).astype(dtype)), rng


# cross-entropy

def lse_bound(x):
    """The exact log-sum-exp of each row, and the largest error of the computed one."""
    V, top = x.shape[-1], x.max(-1, keepdims=True)
    far = top - x
    e = np.exp(-far)
    total = e.sum(-1, keepdims=True)
    off = (e * (np.expm1(g(1) * far) + EXP) + TINY).sum(-1, keepdims=True)               # e^-87.3 and below is 0
    off = (off + g(V) * (total + off)) / total
    log = np.log(total)
    off = -np.log1p(-off) + g(2) * abs(log)                                               # logf is within two roundings
    return top + log, off + g(1) * (abs(top + log) + off)


def cross_entropy_bound(x, targets, counted):
    lse, off = (a[:, 0] for a in lse_bound(x))
    losses = np.where(counted, lse - x[np.arange(len(x)), np.where(counted, targets, 0)], 0)
    size = (np.where(counted, off, 0) + abs(losses)).sum()
    return losses.sum() / counted.sum(), (np.where(counted, off, 0).sum() + g(len(x) + 3) * size) / counted.sum() + SUBNORMAL


def cross_entropy_vjp_bound(weight, x, targets, counted, lse):
    """For the log-sum-exp that forward kept, whatever its error: it is an input here."""
    p = np.exp(x - lse)
    at = np.zeros(x.shape)
    at[np.arange(len(x)), np.where(counted, targets, 0)] = 1
    share = np.where(counted, weight / counted.sum(), 0)[:, None]
    off = p * (np.expm1(g(1) * abs(x - lse)) + EXP) + TINY
    return (p - at) * share, (off + g(4) * (p + off + at)) * abs(share) + SUBNORMAL


def some_targets(rng, N, V, ignore):
    targets = rng.integers(0, V, N).astype(np.int32)
    if ignore is not None:
        targets[rng.random(N) < 0.4] = ignore
        targets[rng.integers(N)] = V - 1 if ignore != V - 1 else 0            # one counts at least, where there are two classes
    return targets


def test_cross_entropy_is_within_its_bound(capsys):
    shares = {"forward": [], "backward": []}

    @settings(max_examples=80)
    @given(st.data(), st.sampled_from([np.float16, np.float32]), st.sampled_from([1, 2, 7, 40, 97]), LENGTHS,
           st.sampled_from([None, -100]))
    def examples(data, dtype, N, V, ignore):
        x, rng = rows(data, N, V, dtype)
        targets = some_targets(rng, N, V, ignore)
        counted = targets != -100
        loss, extras = KERNELS["cross_entropy"].forward(x, targets, ignore=ignore, out=np.float32)
        exact, bound = cross_entropy_bound(x.astype(np.float64), targets, counted)
        assert (loss.dtype, loss.shape) == (np.float32, ())
        assert abs(loss - exact) <= bound
        shares["forward"].append(float(abs(loss - exact) / bound))
        cotangent = np.asarray(dtype(rng.choice([1.0, -0.37, 1024.0])))
        kept = {"logits": x, "targets": targets, "lse": extras["lse"], "ignore": ignore}
        found, none = KERNELS["cross_entropy"].vjp(cotangent, **kept)
        exact, bound = cross_entropy_vjp_bound(float(cotangent), x.astype(np.float64), targets, counted,
                                               extras["lse"].astype(np.float64))
        assert (found.dtype, found.shape, none) == (np.float32, x.shape, None)
        assert np.all(abs(found - exact) <= bound)
        shares["backward"].append(float(np.max(abs(found - exact) / bound)))
    examples()
    with capsys.disabled():
        print(" " + ", ".join(f"{way} reaches {max(found):.2f} of its bound" for way, found in shares.items()), end="")
    assert min(max(found) for found in shares.values()) > 0.01


def test_cross_entropy_of_fifty_thousand_classes():
    rng = np.random.default_rng(0)
    x, targets = rng.standard_normal((3, 50_000)).astype(np.float32) * 4, np.array([0, 49_999, 7], np.int32)
    loss, _ = KERNELS["cross_entropy"].forward(x, targets, ignore=None, out=np.float32)
    exact, bound = cross_entropy_bound(x.astype(np.float64), targets, np.ones(3, bool))
    assert abs(loss - exact) <= bound / 10       # sums are side by side: far below what one after the other may lose


def loss_and_gradient(x, targets, format, ignore=None):
    leaf = Tensor(x, format, name="x")
    loss = apply(RULES["cross_entropy"], leaf, targets, context=Context(), ignore=ignore)
    return loss.data, backward(loss)["x"]


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(1, 0), (1, 5), (1, 40)], ids=str)
@pytest.mark.parametrize("format", [FLOAT16, FLOAT32], ids=str)
def test_nan_and_infinity_pass_through_cross_entropy(bad, place, format, monkeypatch):
    x = np.random.default_rng(0).standard_normal((3, 41)).astype(format.storage)
    x[place] = bad
    for targets in (np.array([0, 5, 2]), np.array([0, -1, 2])):               # in a row that counts, and in one that does not
        found = loss_and_gradient(x, targets, format, -1)
        monkeypatch.setenv("MINILLM_KERNELS", "off")
        for a, b in zip(found, loss_and_gradient(x, targets, format, -1), strict=True):
            assert np.array_equal(np.isnan(a), np.isnan(b))
            assert np.array_equal(np.isinf(a), np.isinf(b))
        monkeypatch.setenv("MINILLM_KERNELS", "on")


def test_a_row_of_nothing_but_minus_infinity_is_nan():
    loss, _ = KERNELS["cross_entropy"].forward(np.full((2, 5), -np.inf, np.float32), np.array([0, 1]), ignore=None, out=np.float32)
    assert np.isnan(loss)


REFUSED = [("targets must lie in 0 ... 4", np.array([0, 5]), None), ("targets must lie in 0 ... 4", np.array([0, -1]), None),
           ("every target is the ignored one", np.array([-1, -1]), -1), ("the targets have shape", np.array([[0, 1]]), None)]


@pytest.mark.parametrize(("message", "targets", "ignore"), REFUSED)
def test_the_rule_speaks_where_targets_are_wrong(message, targets, ignore, monkeypatch):
    for kernels in ("on", "off"):
        monkeypatch.setenv("MINILLM_KERNELS", kernels)
        with pytest.raises(MiniLLMError, match=message):
            loss_and_gradient(np.zeros((2, 5), np.float32), targets, FLOAT32, ignore)


def test_kernels_read_nothing_beyond_their_table():
    """What the dispatcher would never let through becomes NaN, not another array's memory."""
    x, table = np.zeros((2, 5), np.float32), np.ones((3, 4), np.float32)
    for wrong in (-1, 5, 2**40):
        assert np.isnan(KERNELS["cross_entropy"].forward(x, np.array([0, wrong]), ignore=None, out=np.float32)[0])
        y = KERNELS["embedding"].forward(table, np.array([1, wrong]), out=np.float32)
        assert y[0].all()
        assert np.isnan(y[1]).all()
        assert KERNELS["embedding"].vjp(np.ones((2, 4), np.float32), weight_shape=(3, 4), ids=np.array([1, wrong]))[0].sum() == 4


# embedding

@settings(max_examples=60)
@given(st.data(), st.sampled_from([np.float16, np.float32]), st.sampled_from([(), (1,), (3, 7), (40,), (2, 100)]), LENGTHS,
       st.sampled_from([1, 2, 50]))
def test_embedding_has_the_bits_of_its_rule(data, dtype, shape, C, V):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    table = laid_out(data, rng.standard_normal((V, C)).astype(dtype))
    ids = np.asarray(rng.integers(0, V, shape), data.draw(st.sampled_from([np.int32, np.int64])))
    assert bits(KERNELS["embedding"].forward(table, ids, out=np.float32)) == bits(widen(table, np.float32)[ids])
    cotangent = laid_out(data, rng.standard_normal((*shape, C)).astype(dtype))
    found, none = KERNELS["embedding"].vjp(cotangent, weight_shape=table.shape, ids=ids)
    exact, _ = RULES["embedding"].backward(np, widen(cotangent, np.float32), table.shape, ids)
    assert none is None
    assert found.dtype == np.float32
    assert bits(found) == bits(exact)            # one order of additions, that of the ids


def test_rows_used_often_are_summed_in_float32():
    ids, cotangent = np.zeros(4096, np.int32), np.full((4096, 20), 1, np.float16)
    found = KERNELS["embedding"].vjp(cotangent, weight_shape=(2, 20), ids=ids)[0]
    assert np.all(found[0] == 4096)
    assert not found[1].any()


@pytest.mark.parametrize("ids", [np.array([0, 3]), np.array([-1])], ids=str)
def test_the_rule_speaks_where_an_id_is_no_row(ids, monkeypatch):
    for kernels in ("on", "off"):
        monkeypatch.setenv("MINILLM_KERNELS", kernels)
        with pytest.raises(MiniLLMError, match=r"embedding: ids must lie in 0 \.\.\. 2"):
            apply(RULES["embedding"], Tensor(np.ones((3, 4), np.float32), name="w"), ids, context=Context())


# dropout

@settings(max_examples=60)
@given(st.data(), st.sampled_from([np.float16, np.float32]), st.sampled_from([(1,), (7, 13), (2, 3, 31), (90, 300)]),
       st.sampled_from([0.0, 0.1, 0.5, 1 - 2.0**-32]), st.integers(0, 2**64 - 1))
def test_dropout_has_the_bits_of_its_rule(data, dtype, shape, rate, key):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(dtype)
    x.flat[0], x.flat[-1] = np.nan, -np.inf
    x = laid_out(data, x)
    exact = RULES["dropout"].forward(np, widen(x, np.float32), rate=rate, key=key)
    assert bits(KERNELS["dropout"].forward(x, rate=rate, key=key, out=np.float32)) == bits(exact)
    assert bits(KERNELS["dropout"].vjp(x, rate=rate, key=key)[0]) == bits(exact)


# all three

def example(name, dtype):
    """(inputs, static, g, what the vjp keeps) at a size that splits into many tasks."""
    rng = np.random.default_rng(0)
    if name == "cross_entropy":
        x, targets = rng.standard_normal((301, 103)).astype(dtype), rng.integers(0, 103, 301)
        lse = KERNELS[name].forward(x, targets, ignore=None, out=np.float32)[1]["lse"]
        return (x, targets), {"ignore": None}, np.asarray(dtype(3)), {"logits": x, "targets": targets, "lse": lse, "ignore": None}
    if name == "embedding":
        table, ids = rng.standard_normal((103, 144)).astype(dtype), rng.integers(0, 103, 700)
        return (table, ids), {}, rng.standard_normal((700, 144)).astype(dtype), {"weight_shape": (103, 144), "ids": ids}
    x, static = rng.standard_normal((700, 144)).astype(dtype), {"rate": 0.3, "key": 5}
    return (x,), static, rng.standard_normal((700, 144)).astype(dtype), static


@pytest.mark.parametrize("name", MINE)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_float16_result_is_the_float32_result_rounded_once(name, dtype):
    inputs, static, cotangent, kept = example(name, dtype)
    both = [KERNELS[name].forward(*inputs, **static, out=out) for out in (np.float16, np.float32)]
    half, wide = (y[0] if isinstance(y, tuple) else y for y in both)
    assert half.dtype == np.float16
    assert bits(half) == bits(round_to(wide, FLOAT16))
    half, wide = (KERNELS[name].vjp(cotangent, **kept, out=(out,) * len(inputs))[0] for out in (np.float16, np.float32))
    assert half.dtype == np.float16
    assert bits(half) == bits(round_to(wide, FLOAT16))


def adamw_result():
    rng = np.random.default_rng(0)
    w = Tensor(rng.standard_normal((257, 131)).astype(np.float32), name="w")
    optimizer, gradient = AdamW([w]), rng.standard_normal((257, 131)).astype(np.float32)
    optimizer.step({"w": gradient}, 1e-3)
    return [w.data, *(optimizer.state[slot]["w"] for slot in "mv"), np.float32(global_norm([gradient], 0.1))]


def everything() -> str:
    """A digest of all results whose work is shared out among threads."""
    import hashlib
    found = adamw_result()
    for name in MINE:
        inputs, static, cotangent, kept = example(name, np.float32)
        y = KERNELS[name].forward(*inputs, **static, out=np.float32)
        found += [y[0], y[1]["lse"]] if isinstance(y, tuple) else [y]
        found.append(KERNELS[name].vjp(cotangent, **kept)[0])
    x = np.random.default_rng(0).standard_normal((401, 257)).astype(np.float32)
    found += [round_to(x, f) for f in (FLOAT16, BFLOAT16, FLOAT8_E4M3)] + [round_to(x.copy(), BFLOAT16, overwrite=True)]
    return hashlib.sha256(b"".join(map(bits, found))).hexdigest()


def test_results_do_not_depend_on_threads():
    digests = set()
    for threads in ("1", "2"):
        program = "from test_update_kernels import everything; print(everything())"
        environment = os.environ | {"NUMBA_NUM_THREADS": threads, "MINILLM_KERNELS": "on", "PYTHONPATH": os.pathsep.join(sys.path)}
        result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
        digests.add(result.stdout)
    assert len(digests) == 1


def test_what_is_shared_out_really_splits():
    """The sizes above make more tasks than run alone."""
    tasks, rounding, losses = room.load("tasks"), room.load("rounding"), room.load("losses")
    assert tasks.shares(401 * 257, rounding.LEAST)[1] > room.load("launch").ALONE
    assert tasks.shares(301, losses.LEAST // 103)[1] > room.load("launch").ALONE
    assert 144 // room.load("embedding").LANES > room.load("launch").ALONE
    assert tasks.shares(257 * 131, room.load("optimizers").LEAST)[1] > room.load("launch").ALONE


# optimizer

def test_an_update_makes_a_new_array():
    """Whoever holds the weights from before, a copy in the graph or a watcher, still has them."""
    w = Tensor(np.ones((64, 300), np.float32), name="w")
    before, kept = w.data, w.data.copy()
    AdamW([w]).step({"w": np.ones((64, 300), np.float32)}, 1e-2)
    assert w.data is not before
    assert np.array_equal(before, kept)
    assert not np.array_equal(w.data, kept)


@pytest.mark.parametrize("shape", [(1,), (4097,), (129, 130), (3, 5, 7)], ids=str)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_gives_the_bits_of_its_twin_at_sizes_that_split(shape, decay, monkeypatch):
    found = []
    for kernels in ("on", "off"):
        monkeypatch.setenv("MINILLM_KERNELS", kernels)
        rng = np.random.default_rng(1)
        w = Tensor(rng.standard_normal(shape).astype(np.float32), name="w")
        optimizer = AdamW([w], weight_decay=decay)
        for step in range(3):
            optimizer.step({"w": rng.standard_normal(shape).astype(np.float32)}, 1e-2 / (step + 1), 0.5)
        found.append([bits(w.data), *(bits(optimizer.state[slot]["w"]) for slot in "mv")])
    assert found[0] == found[1]


# casts

SHORTENED = [BFLOAT16, TF32, FLOAT22_E8M13]


def test_these_formats_are_float32_with_fewer_digits_and_no_others():
    shortens = room.load("rounding").shortens
    assert [f for f in FORMATS.values() if f.storage is np.float32 and f.bits > 1 and f is not FLOAT32 and shortens(f)] == \
        [f for f in FORMATS.values() if f in SHORTENED]


@pytest.mark.parametrize("format", SHORTENED, ids=str)
def test_shortening_has_the_bits_of_the_specification(format):
    """Every pattern of the upper half of a float32, with lower halves around each tie; in place and into a new array."""
    upper = np.arange(2**16, dtype=np.uint32) << np.uint32(16)
    half = np.uint32(1) << np.uint32(22 - format.mantissa_bits)
    for lower in (0, 1, int(half) - 1, int(half), int(half) + 1, 2**16 - 1):
        x = (upper | np.uint32(lower)).view(np.float32)
        exact = bits(to_grid(x, format))
        assert bits(round_to(x, format)) == exact
        assert bits(round_to(x.copy(), format, overwrite=True)) == exact


def test_overwriting_is_only_done_where_it_is_allowed():
    x = np.full((3, 5), 1 + 2.0**-9, np.float32)
    assert bits(round_to(x, BFLOAT16)) == bits(np.ones((3, 5), np.float32))
    assert np.all(x > 1)
    assert round_to(x, BFLOAT16, overwrite=True) is x
    assert np.all(x == 1)
    for y in (np.full((3, 5), 1 + 2.0**-9, np.float32).T, np.full((3, 10), 1 + 2.0**-9, np.float32)[:, ::2]):
        assert np.all(round_to(y, BFLOAT16, overwrite=True) == 1)               # not in one piece: a new array
    frozen = np.full(3, 1 + 2.0**-9, np.float32)
    frozen.flags.writeable = False
    assert np.all(round_to(frozen, BFLOAT16, overwrite=True) == 1)
    assert np.all(frozen > 1)


@pytest.mark.parametrize("shape", [(0, 3), (1,), (), (37, 1025)], ids=str)
@pytest.mark.parametrize("format", [FLOAT16, BFLOAT16, FLOAT8_E4M3], ids=str)
def test_casts_of_any_shape_and_layout(shape, format):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    exact = to_grid(x, format).astype(format.storage)
    for y in (x, np.asfortranarray(x).reshape(shape, order="F"), np.repeat(x, 2, -1)[..., ::2] if shape else x):
        found = round_to(y, format)
        assert found.shape == shape
        assert found.dtype == format.storage
        assert bits(found) == bits(exact)
        assert bits(widen(found, np.float32)) == bits(exact.astype(np.float32))
