"""What is added to rows that share it, and the sums of columns that are its gradient."""
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm import kernels as room
from minillm.autograd.kernels import KERNELS
from minillm.autograd.rule import RULES
from minillm.autograd.tensor import Tensor, backward
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT16
from minillm.rounding import round_to, widen

pytestmark = pytest.mark.skipif(not room.enabled(), reason="MINILLM_KERNELS=off")

ends = st.sampled_from([(1,), (16,), (17,), (3, 5), (64, 33), ()])
fronts = st.sampled_from([(1,), (2,), (13,), (3, 4), (1, 1), (257,)])
types = st.sampled_from([np.float16, np.float32])


def values(shape, dtype, seed=0):
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    x.reshape(-1)[:2] = -0.0
    return x.astype(dtype)


def transposed(x):
    """The same values, the last axis first in memory."""
    return np.ascontiguousarray(x.T).T


@given(fronts, ends, types, types)
def test_sums_are_those_from_the_first_row_to_the_last(front, end, dtype, out):
    g = values((*front, *end), dtype)
    exact = np.zeros(end, np.float32)
    for row in widen(g, np.float32).reshape(-1, *end):
        exact = exact + row
    for given_ in (g, transposed(g)):
        found = room.load("columns").sums(given_, end, out)
        assert found.tobytes() == (exact if out is np.float32 else round_to(exact, FLOAT16)).tobytes()


@given(fronts, ends, types, types)
def test_what_rows_share_is_added_to_each(front, end, dtype, out):
    x, z = values((*front, *end), dtype), values(end, dtype, 1)
    exact = widen(x, np.float32) + widen(z, np.float32)
    found = KERNELS["add"].forward(transposed(x), z, out=out)
    assert found.tobytes() == (exact if out is np.float32 else round_to(exact, FLOAT16)).tobytes()
    dx, dz = KERNELS["add"].vjp(x, x_shape=x.shape, z_shape=end, out=(np.float32, out))
    assert dx.tobytes() == widen(x, np.float32).tobytes()
    assert dz.tobytes() == room.load("columns").sums(x, end, out).tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_column(bad):
    g = np.ones((5, 40), np.float32)
    g[3, 17] = bad
    sums, y = room.load("columns").sums(g, (40,), np.float32), KERNELS["add"].forward(g, g[3], out=np.float32)
    assert np.array_equal(np.isfinite(sums), np.arange(40) != 17)
    assert np.array_equal(np.isfinite(y), np.broadcast_to(np.arange(40) != 17, y.shape))


@pytest.mark.parametrize(("x", "z"), [((3, 4), (3, 1)), ((4,), (3, 4)), ((2, 3, 4), (2, 1, 4)), ((2, 3, 4), (1, 3, 4)),
                                      ((3, 1), (4,))])
def test_an_addition_that_repeats_otherwise_goes_to_the_rule(x, z):
    x, z = np.ones(x, np.float32), np.ones(z, np.float32)
    assert not KERNELS["add"].serves({}, x, z)
    gradients = backward((Tensor(x, name="x") + Tensor(z, name="z")).sum())
    for name, a in (("x", x), ("z", z)):
        assert np.array_equal(gradients[name], np.full(a.shape, (x + z).size / a.size))


def test_shapes_that_do_not_end_alike_are_refused():
    with pytest.raises(MiniLLMError, match=r"shapes \(3, 4\) and \(3,\): the second must be the end of the first"):
        KERNELS["add"].forward(np.ones((3, 4), np.float32), np.ones(3, np.float32), out=np.float32)


def everything() -> str:
    """The results of sizes that make more tasks than run alone, as hexadecimal digits."""
    g, z = values((768, 160), np.float32), values(160, np.float32, 1)
    columns = room.load("columns")
    assert columns.column_shares(768, 160)[1] > room.load("launch").ALONE
    return columns.sums(g, (160,), np.float32).tobytes().hex() + columns.add(g, z, out=np.float16).tobytes().hex()


def test_results_do_not_depend_on_threads():
    found = set()
    for threads in ("1", "2"):
        program = "from test_columns import everything; print(everything())"
        environment = os.environ | {"NUMBA_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(sys.path)}
        result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
        found.add(result.stdout)
    assert len(found) == 1


def test_a_bias_has_its_gradient_from_there():
    """A product's bias and the positions of a GPT are such additions."""
    g, x, weight = values((7, 5), np.float32), values((7, 3), np.float32), values((5, 3), np.float32)
    static = RULES["linear"].defaults
    found = KERNELS["linear"].vjp(g, x, weight, (5,), **static)[2]
    assert found.tobytes() == room.load("columns").sums(g, (5,), np.float32).tobytes()
