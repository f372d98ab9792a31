"""GELU, forward and backward, and the residual's addition: one pass, where NumPy makes eight and a tanh of 9 ns a value."""
import numpy as np
from numba import njit

from minillm.errors import MiniLLMError
from minillm.kernels.lanes import LANES, exp, fused, read, write
from minillm.kernels.launch import TASK, many_in_pool
from minillm.kernels.rounding import to_float16, to_float32
from minillm.kernels.scalars import JIT, bits
from minillm.kernels.tasks import VALUES, shares

C, A = np.float32(0.7978845608028654), np.float32(0.044715)
ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)


@njit(inline="always")
def minus_2z(u):                   # z = C (u + A u^3)
    return u * fused(u * u, -TWO * C * A, -TWO * C)


@njit(**TASK)
def _gelu(task, each, x, y):       # x / 2 (1 + tanh z) = x / (1 + e^-2z)
    stop = min((task + 1) * each, x.size)
    for i in range(task * each, stop, LANES):
        u = read(x, i, stop - i, ZERO)
        write(y, i, stop - i, u / (exp(minus_2z(u)) + ONE))


@njit(**JIT)
def _gelu_pool(tasks, each, x, y):
    many_in_pool(_gelu, tasks, (each, x, y))


@njit(**TASK)
def _gelu_vjp(task, each, g, x, dx):
    stop = min((task + 1) * each, x.size)
    for i in range(task * each, stop, LANES):
        u = read(x, i, stop - i, ZERO)
        s = ONE / (exp(minus_2z(u)) + ONE)
        slope = fused(u * u, np.float32(3) * A * C, C)
        write(dx, i, stop - i, read(g, i, stop - i, ZERO) * fused(TWO * u * s * (ONE - s), slope, s))


@njit(**JIT)
def _gelu_vjp_pool(tasks, each, g, x, dx):
    many_in_pool(_gelu_vjp, tasks, (each, g, x, dx))


@njit(**TASK)
def _add(task, each, x, z, y):
    stop = min((task + 1) * each, x.size)
    for i in range(task * each, stop, LANES):
        write(y, i, stop - i, read(x, i, stop - i, ZERO) + read(z, i, stop - i, ZERO))


@njit(**JIT)
def _add_pool(tasks, each, x, z, y):
    many_in_pool(_add, tasks, (each, x, z, y))


def on_values(pool, shape, out, *arrays) -> np.ndarray:
    """A new array of this shape and type, made from arrays of the same shape."""
    for a in arrays:
        if a.shape != shape:                     # the loop would read past its end
            raise MiniLLMError(f"a kernel on values got arrays of shapes {shape} and {a.shape}: they must be the same")
    y = np.empty(shape, out)
    blocks, tasks = shares(-(-y.size // LANES), VALUES // LANES)
    pool(tasks, blocks * LANES, *(bits(a.reshape(-1)) for a in arrays), bits(y.reshape(-1)))
    return y


def gelu(x: np.ndarray, *, out: type) -> np.ndarray:
    """The tanh form on any shape."""
    return on_values(_gelu_pool, x.shape, out, x)


def gelu_vjp(g: np.ndarray, x: np.ndarray, *, out: tuple = (np.float32,)) -> tuple[np.ndarray]:
    return (on_values(_gelu_vjp_pool, x.shape, out[0], g, x),)


def add(x: np.ndarray, z: np.ndarray, *, out: type) -> np.ndarray:
    """Two arrays of one shape: a residual stream and what is added to it."""
    return on_values(_add_pool, x.shape, out, x, z)


def stored(x: np.ndarray, dtype: type) -> np.ndarray:
    """The array itself if it has this type, else converted: float32 rounded once, or float16 widened."""
    if x.dtype == dtype:
        return x
    return to_float16(x) if dtype is np.float16 else to_float32(x)


def add_vjp(g: np.ndarray, x_shape: tuple, z_shape: tuple, *, out: tuple = (np.float32, np.float32)) -> tuple[np.ndarray, ...]:
    """The cotangent as it is, for both; converted, once, only where another type is asked for."""
    if not x_shape == z_shape == g.shape:
        raise MiniLLMError(f"add's kernel got arrays of shapes {x_shape}, {z_shape} and {g.shape}: they must be the same")
    dx = stored(g, out[0])
    return dx, dx if out[1] is out[0] else stored(g, out[1])


def cast(x: np.ndarray, *, out: type) -> np.ndarray:
    """The values in another type, rounded once where it is narrower."""
    return stored(x, out)


def cast_vjp(g: np.ndarray, *, out: tuple = (np.float32,)) -> tuple[np.ndarray]:
    return (stored(g, out[0]),)
