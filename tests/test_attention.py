"""Attention's kernel at the sizes where its blocks begin and end, and on processors other than this one."""
import os
import subprocess
import sys

import numpy as np
import pytest
from test_kernels import attention_bound, attention_statistics, attention_vjp_bound, bits

from minillm import kernels
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


PROGRAM = """
import hashlib, numpy as np
from minillm import kernels
room, rng = kernels.load("attention"), np.random.default_rng(0)
q, k, v, g = rng.standard_normal((4, 3, 140, 120)).astype(np.float16)
y, rows = room.attention(q, k, v, None, heads=5, out=np.float16)
found = y, *rows.values(), *room.attention_vjp(g, q, k, v, **rows, heads=5)[:3]
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
