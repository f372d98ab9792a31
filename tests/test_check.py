"""The gradient check passes what is right, in float32 too, and fails what is wrong: a little, a lot, or in one place."""
import numpy as np
import pytest

from minillm.autograd.check import check_float32, check_gradient
from minillm.autograd.rule import RULES, rule
from minillm.autograd.tensor import Tensor
from minillm.errors import MiniLLMError

CHECKS = [check_gradient, check_float32]


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape)


@pytest.fixture
def cube():
    """Makes a rule x^3 + z with a given vjp; it leaves the table when the test is over."""
    def make(vjp):
        @rule
        def cube_test(xp, x, z):
            return x * x * x + z
        cube_test.vjp(vjp)
        return cube_test
    yield make
    RULES.pop("cube_test", None)


def wrong(factor=1.0, offset=0.0, one=0.0):
    def vjp(xp, g, x):
        dx = factor * 3 * x * x * g + x.dtype.type(offset)
        dx = xp.where(xp.arange(x.size).reshape(x.shape) == 5, dx * x.dtype.type(1 + one), dx)
        return dx, g
    return vjp


@pytest.mark.parametrize("check", CHECKS)
def test_a_right_gradient_passes_and_tells_its_shares(check, cube):
    shares = check(cube(wrong()), normal(3, 4), normal(3, 4))
    assert len(shares) == 2
    assert all(0 <= share < 1 for share in shares)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("vjp", [wrong(100), wrong(-1), wrong(0), wrong(1.001), wrong(1 + 2**-13), wrong(offset=1e-3),
                                 wrong(one=2**-10), wrong(float("nan"))])
def test_a_wrong_gradient_fails(check, vjp, cube):
    if check is check_float32:                   # that of float64 is right here, that of float32 is not
        right, bad = wrong(), vjp
        def vjp(xp, g, x):
            return (right if x.dtype == np.float64 else bad)(xp, g, x)
    with pytest.raises(MiniLLMError, match=r"cube_test, input 0 \(x\): .* off by"):
        check(cube(vjp), normal(3, 4), normal(3, 4))


def test_an_error_of_a_millionth_is_seen(cube):
    with pytest.raises(MiniLLMError, match="central difference"):
        check_gradient(cube(wrong(1 + 1e-6)), normal(3, 4), normal(3, 4))


def test_a_wrong_second_gradient_names_the_second_input(cube):
    with pytest.raises(MiniLLMError, match=r"input 1 \(z\)"):
        check_gradient(cube(lambda xp, g, x: (3 * x * x * g, 2 * g)), normal(3, 4), normal(3, 4))


def test_a_gradient_that_went_through_halves_fails(cube):
    def vjp(xp, g, x):
        return (3 * x * x * g).astype(np.float16).astype(g.dtype), g
    with pytest.raises(MiniLLMError, match="is not that of float64"):
        check_float32(cube(lambda xp, g, x: vjp(xp, g, x) if g.dtype == np.float32 else wrong()(xp, g, x)), normal(9), normal(9))


def test_a_function_of_tensors_is_checked_as_a_whole():
    def loss(x, w, ids):
        assert isinstance(ids, np.ndarray)
        return ((x @ w) * x[ids[0]:ids[0] + 1, :1]).max(axis=-1).mean()
    for check in CHECKS:
        assert len(check(loss, normal(3, 4), normal(4, 5), np.array([1]))) == 2


def test_a_function_that_hides_a_dependence_fails():
    with pytest.raises(MiniLLMError, match="input 0: "):
        check_gradient(lambda x: x * Tensor(x.data, x.format), normal(4))


def test_an_input_that_does_not_matter_has_gradient_zero():
    for check in CHECKS:
        assert check(lambda x, z: x * 2.0, normal(4), normal(3))[1] == 0


def test_differences_in_float32_would_fail_a_right_gradient():
    x, h = np.float32(0.9), np.float32(1e-6)     # d tanh = 1 - tanh^2 = 0.487
    numeric = (np.tanh(x + h) - np.tanh(x - h)) / (2 * h)
    assert abs(numeric - (1 - np.tanh(x) ** 2)) > 0.01
    assert check_gradient(RULES["tanh"], np.array([0.9]))[0] < 0.01
    assert check_float32(RULES["tanh"], np.array([0.9]))[0] < 1
