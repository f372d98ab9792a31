"""The rules made of products, on the compiled product: matmul and linear, forward and backward, operands as stored."""
import numpy as np

from minillm.kernels.columns import sums
from minillm.kernels.matmul import matmul as product


def matrices(x, z):
    """Vectors as a row on the left, as a column on the right; rows of a batch beside one matrix as rows of one matrix."""
    x, z = x.reshape(1, -1) if x.ndim == 1 else x, z.reshape(-1, 1) if z.ndim == 1 else z
    return (x.reshape(-1, x.shape[-1]) if z.ndim == 2 else x), z


def matmul(x, z, *, out, **_):
    """(..., M,K) (..., K,N), leading axes equal or only on the left."""
    return product(*matrices(x, z), out=out).reshape(x.shape[:-1] + z.shape[-1:] * (z.ndim > 1))


def matmul_vjp(g, x, z, *, out=(np.float32, np.float32), **_):
    x2, z2 = matrices(x, z)
    g = g.reshape(*x2.shape[:-1], z2.shape[-1])
    dx = product(g, z2.swapaxes(-1, -2), out=out[0])
    dz = product(x2.swapaxes(-1, -2), g, out=out[1])
    return dx.reshape(x.shape), dz.reshape(z.shape)


def linear(x, weight, bias=None, *, out, **_):
    """(..., K), (N,K), (N,) -> (..., N)."""
    if x.ndim == 1:
        return linear(x[None], weight, bias, out=out)[0]
    return product(x, weight.T, out=out, bias=bias)


def linear_vjp(g, x, weight, bias_shape, *, out=(np.float32,) * 3, **_):
    rows = g.reshape(-1, g.shape[-1])
    dx = product(rows, weight, out=out[0]).reshape(x.shape)
    dw = product(rows.T, x.reshape(-1, x.shape[-1]), out=out[1])
    return dx, dw, sums(rows, bias_shape, out[2]) if bias_shape else None
