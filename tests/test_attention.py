"""Attention's kernel at the sizes where its blocks begin and end, and on processors other than this one."""
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels import attention_bound, attention_statistics, attention_vjp_bound, bits

from minillm import kernels
from minillm.autograd.kernels import plain_attention
from minillm.autograd.rule import RULES
from minillm.autograd.rules import products
from minillm.formats import FLOAT16
from minillm.rounding import round_to

pytestmark = pytest.mark.usefixtures("kernels_on")
ROOM = kernels.load("attention")
SHAPES = [(1, 1, 1, 1), (2, 31, 1, 7), (1, 33, 3, 20), (1, 129, 2, 33), (1, 161, 1, 80), (3, 64, 2, 32)]


def inputs(B, T, H, D, dtype=np.float32):
    rng = np.random.default_rng(T)
    return [rng.standard_normal((B, T, H * D)).astype(np.float16).astype(dtype) for _ in range(4)]


def run(g, q, k, v, heads, out=np.float32):
    y, rows = ROOM.attention(q, k, v, None, heads=heads, out=out)
    return y, *ROOM.attention_vjp(g, q, k, v, **rows, heads=heads, out=(out,) * 4)[:3]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_edge_is_within_the_bound(shape):
    g, q, k, v = inputs(*shape)
    exact = [a.astype(np.float64) for a in (g, q, k, v)]
    y, rows = ROOM.attention(q, k, v, None, heads=shape[2], out=np.float32)
    expected, bound = attention_bound(*exact[1:], shape[2])
    assert np.all(abs(y - expected) <= bound)
    true_rows = {n: a.astype(np.float32) for n, a in attention_statistics(*exact[1:], shape[2]).items()}
    for name, value in true_rows.items():
        assert rows[name] == pytest.approx(value, rel=1e-4, abs=1e-5)        # rounding of a score, times e
    found = ROOM.attention_vjp(g, q, k, v, **true_rows, heads=shape[2])
    for f, e, b in zip(found[:3], *attention_vjp_bound(*exact, shape[2]), strict=True):
        assert np.all(abs(f - e) <= b)


@pytest.mark.parametrize("shape", SHAPES)
def test_float16_results_are_the_float32_results_rounded_once(shape):
    arrays = inputs(*shape, np.float16)
    for half, wide in zip(run(*arrays, shape[2], np.float16), run(*arrays, shape[2]), strict=True):
        assert half.dtype == np.float16
        assert bits(half) == bits(round_to(wide, FLOAT16))


def test_float16_inputs_are_their_float32_values():
    for a, b in zip(run(*inputs(1, 40, 2, 24, np.float16), 2), run(*inputs(1, 40, 2, 24), 2), strict=True):
        assert bits(a) == bits(b)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("T", [97, 192])
def test_a_bad_value_or_key_spoils_no_query_that_stands_a_tile_before_it(bad, T):
    for which in (2, 3):
        arrays = inputs(1, T, 1, 16)
        arrays[which][0, 70] = bad
        y, dq = run(*arrays, 1)[:2]
        first = 70 if which == 2 else 70 - ROOM.ROWS + 1
        assert np.isfinite(y[0, :first]).all()
        assert np.isfinite(dq[0, :70 - ROOM.ROWS]).all()
        if np.isnan(bad):
            assert np.isnan(y[0, 70:]).all()


def test_large_scores_are_brought_to_the_largest():
    """A score far above all earlier ones, in a later block of keys: what is summed already must shrink to nothing."""
    q, k, v = np.ones((3, 1, 300, 8), np.float32)
    k[0, 200], v[0, 200] = 1000, 5
    y = ROOM.attention(q, k, v, None, heads=1, out=np.float32)[0]
    assert np.array_equal(y[0, 200:], np.full((100, 8), 5, np.float32))
    assert np.abs(y[0, :200] - 1).max() < 1e-5                                # a mean of 200 ones


# masks of keys, and from one sequence to another

def between(B, Tq, Tk, H, D, share, seed=0):
    """A cotangent, queries, keys, values, and a mask (B,1,1,Tk) that shows about this share of the keys; None where it is 1."""
    rng = np.random.default_rng(seed)
    g, q, k, v = (rng.standard_normal((B, T, H * D)).astype(np.float16) for T in (Tq, Tq, Tk, Tk))
    return g, q, k, v, None if share == 1 else rng.random((B, 1, 1, Tk)) < share


def run_between(g, q, k, v, mask, heads, causal, out=np.float32):
    """Result, statistics, and cotangents for these."""
    y, rows = ROOM.attention(q, k, v, mask, heads=heads, causal=causal, out=out)
    return y, *rows.values(), *ROOM.attention_vjp(g, q, k, v, **rows, mask=mask, heads=heads, causal=causal, out=(out,) * 4)[:3]


def check_between(g, q, k, v, mask, heads, causal):
    """Forward within its bound, backward too for the exact statistics; what nobody sees is 0."""
    exact = [a.astype(np.float64) for a in (g, q, k, v)]
    y, rows = ROOM.attention(q, k, v, mask, heads=heads, causal=causal, out=np.float32)
    expected, bound = attention_bound(*exact[1:], heads, mask, causal)
    assert np.all(abs(y - expected) <= bound)
    true_rows = {n: a.astype(np.float32) for n, a in attention_statistics(*exact[1:], heads, mask, causal).items()}
    for name, value in true_rows.items():
        assert rows[name] == pytest.approx(value, rel=1e-4, abs=1e-5)          # as above; -3e38 and 1 where nothing is seen
    found = ROOM.attention_vjp(g, q, k, v, **true_rows, mask=mask, heads=heads, causal=causal)[:3]
    for f, e, b in zip(found, *attention_vjp_bound(*exact, heads, mask, causal), strict=True):
        assert np.all(abs(f - e) <= b)


LENGTHS = st.sampled_from([1, 2, 7, 8, 9, 31, 32, 33, 64, 65, 101])


@given(st.integers(1, 3), LENGTHS, LENGTHS, st.sampled_from([1, 3, 16, 20]), st.sampled_from([0, 0.1, 0.7, 1]), st.booleans())
@settings(max_examples=60)
def test_masked_and_between_sequences_is_within_the_bound(B, Tq, Tk, D, share, causal):
    check_between(*between(B, Tq, Tk, 2, D, share), 2, causal)


WRONG = {"the next key": lambda mask: np.roll(mask, 1, -1), "the next row": lambda mask: np.roll(mask, 1, 0),
         "the first row": lambda mask: mask[:1], "hidden for seen": lambda mask: ~mask}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("causal", [False, True])
def test_a_wrong_mask_is_beyond_the_bound(wrong, causal, monkeypatch):
    right = ROOM.sight
    monkeypatch.setattr(ROOM, "sight", lambda mask, *rest: right(WRONG[wrong](mask), *rest))
    with pytest.raises(AssertionError):
        check_between(*between(3, 9, 33, 2, 16, 0.7), 2, causal)


@pytest.mark.parametrize("causal", [False, True])
def test_between_sequences_float16_is_float32_rounded_once(causal):
    arrays = between(3, 33, 70, 2, 20, 0.6)
    half, wide = run_between(*arrays, 2, causal, np.float16), run_between(*arrays, 2, causal)
    for which in (0, 3, 4, 5):
        assert bits(half[which]) == bits(round_to(wide[which], FLOAT16))


@pytest.mark.parametrize("causal", [False, True])
def test_a_row_has_its_bits_in_every_batch_and_however_far_it_is_padded(causal):
    g, q, k, v, mask = between(3, 24, 80, 2, 16, 0.5)
    mask[1, ..., 45:] = False
    whole = run_between(g, q, k, v, mask, 2, causal)
    alone = run_between(*(a[1:2] for a in (g, q, k, v, mask)), 2, causal)
    for a, b in zip(whole, alone, strict=True):
        assert bits(a[1:2]) == bits(b)
    if not causal:                               # where Tk says which key the last query stands at
        short = run_between(g[1:2], q[1:2], k[1:2, :45], v[1:2, :45], mask[1:2, ..., :45], 2, causal)
        for a, b in zip(alone, short, strict=True):
            assert bits(a[:, :b.shape[1]]) == bits(b)


def test_a_mask_that_shows_all_is_no_mask_and_one_for_all_rows_is_each_rows():
    *arrays, mask = between(3, 24, 45, 2, 16, 0.5)
    one = mask[:1]
    for causal in (False, True):
        for a, b in ((np.ones_like(mask), None), (one, np.repeat(one, 3, 0)), (one, np.broadcast_to(one, mask.shape))):
            for x, y in zip(run_between(*arrays, a, 2, causal), run_between(*arrays, b, 2, causal), strict=True):
                assert bits(x) == bits(y)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_hidden_key_or_value_reaches_nobody(bad):
    *arrays, mask = between(2, 24, 45, 2, 16, 0.5)
    mask[0, ..., 13] = False
    clean = run_between(*arrays, mask, 2, False)
    for which in (2, 3):
        spoilt = [a.copy() for a in arrays]
        spoilt[which][0, 13] = bad
        for a, b in zip(run_between(*spoilt, mask, 2, False), clean, strict=True):
            assert bits(a) == bits(b)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_what_the_rule_leaves_finite_between_sequences_stays_finite(bad, which):
    arrays = between(2, 24, 45, 2, 16, 0.5)
    arrays[4][:, ..., 40] = True
    arrays[which][1, -5, 3] = bad
    wide = [a.astype(np.float32) for a in arrays[:4]]
    with np.errstate(all="ignore"):
        y, rows = RULES["attention"].forward(np, *wide[1:], arrays[4], heads=2, causal=False)
        expected = y, *rows.values(), *RULES["attention"].backward(
            np, *wide, **rows, mask=arrays[4], heads=2, causal=False, products=products.FLOAT32_PRODUCTS, key=0)[:3]
    found = run_between(*arrays, 2, False)
    for f, e in zip(found, expected, strict=True):
        assert np.all(np.isfinite(f) >= np.isfinite(e))
    assert np.isfinite(found[0][1]).all() == np.isfinite(y[1]).all()


def test_the_kernel_serves_masks_of_keys_alone():
    static = RULES["attention"].defaults | {"heads": 2, "causal": False}
    _, q, k, v, mask = between(3, 24, 45, 2, 16, 0.5)

    def served(*arrays):
        return plain_attention(static, *arrays)
    assert served(q, k, v, None)
    assert served(q, k, v, mask)
    assert served(q, k, v, mask[:1])
    assert not served(q, k, v, np.ones((3, 1, 24, 45), bool))                  # another for each query
    assert not served(q, k, v, mask.astype(np.int8))
    assert not served(q, k, v, mask[..., :1])
    assert not served(q, k, v[:, :44], mask)
    assert not served(q, k[:1], v[:1], None)
    assert not served(q[0], k[0], v[0], None)


PROGRAM = """
import hashlib, numpy as np
from minillm import kernels
room, rng = kernels.load("attention"), np.random.default_rng(0)
q, k, v, g = rng.standard_normal((4, 3, 140, 120)).astype(np.float16)
y, rows = room.attention(q, k, v, None, heads=5, out=np.float16)
found = y, *rows.values(), *room.attention_vjp(g, q, k, v, **rows, heads=5)[:3]
mask, how = rng.random((3, 1, 1, 140)) < 0.7, {"heads": 5, "causal": False}
y, rows = room.attention(q[:, :40], k, v, mask, **how, out=np.float16)
found += y, *rows.values(), *room.attention_vjp(g[:, :40], q[:, :40], k, v, **rows, mask=mask, **how)[:3]
print(hashlib.sha256(b"".join(a.tobytes() for a in found)).hexdigest())
print(*[np.abs(a.astype(np.float32)).sum(dtype=np.float32) for a in found])
"""


def ran(**environment):
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True,
                            env=os.environ | {"MINILLM_KERNELS": "on"} | environment)
    digest, sums = result.stdout.strip().split("\n")
    return digest, np.array(sums.split(), np.float32)


def test_one_thread_gives_the_bits_of_two():
    assert ran(NUMBA_NUM_THREADS="1")[0] == ran(NUMBA_NUM_THREADS="2")[0]


@pytest.mark.parametrize("processor", ["haswell", "x86-64"])
def test_another_processor_gives_the_same_numbers(processor):
    other = ran(NUMBA_CPU_NAME=processor, NUMBA_CPU_FEATURES="+avx2,+fma,+f16c" if processor == "haswell" else "")
    assert np.allclose(other[1], ran()[1], rtol=1e-4)                         # float16 results may round to a neighbour
