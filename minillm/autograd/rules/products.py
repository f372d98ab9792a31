"""Ops made of matrix products: matmul, linear, attention; and `Products`, the one seam where the products can be exchanged."""
from collections.abc import Callable
from dataclasses import dataclass

from minillm.autograd.rule import rule
from minillm.autograd.rules.elementwise import unbroadcast
from minillm.errors import MiniLLMError
from minillm.kernels import product


def dot(xp, a, b, key):
    """(..., M,K) (..., K,N) -> (..., M,N): float32 operands, float32 accumulate."""
    return product(a, b)


@dataclass(frozen=True)
class Products:
    """The three products behind matmul, linear and attention: (xp, a, b, key), the cotangent first, leading axes are batches.

    Another accumulator, fp8 operands, int8 products: each is another Products, data that goes to JSON by its name.
    """

    name: str = "float32"
    forward: Callable = dot            # x w
    input_gradient: Callable = dot     # g w^T
    weight_gradient: Callable = dot    # g^T x


FLOAT32_PRODUCTS = Products()
PRODUCTS = {FLOAT32_PRODUCTS.name: FLOAT32_PRODUCTS}


def turned(a):
    return a.swapaxes(-1, -2)


def matrices(x, z):
    """Vectors as a row on the left, as a column on the right."""
    return x.reshape(1, -1) if x.ndim == 1 else x, z.reshape(-1, 1) if z.ndim == 1 else z


@rule
def matmul(xp, x, z, *, products=FLOAT32_PRODUCTS, key=0):                    # (..., M,K) (..., K,N), broadcast over the rest
    y = products.forward(xp, *matrices(x, z), key)
    return y.reshape(y.shape[:-2] + (y.shape[-2],) * (x.ndim > 1) + (y.shape[-1],) * (z.ndim > 1))


@matmul.vjp
def _(xp, g, x, z, *, products, key):
    x2, z2 = matrices(x, z)
    g = g.reshape(*g.shape[: g.ndim - (x.ndim > 1) - (z.ndim > 1)], x2.shape[-2], z2.shape[-1])
    dx = products.input_gradient(xp, g, turned(z2), key)
    dz = turned(products.weight_gradient(xp, turned(g), x2, key))
    return unbroadcast(xp, dx, x2.shape).reshape(x.shape), unbroadcast(xp, dz, z2.shape).reshape(z.shape)


@rule(wide=("bias",))
def linear(xp, x, weight, bias=None, *, products=FLOAT32_PRODUCTS, key=0):    # (..., K), (N,K), (N,) -> (..., N)
    y = products.forward(xp, x.reshape(-1, x.shape[-1]), weight.T, key).reshape(*x.shape[:-1], weight.shape[0])
    return y if bias is None else y + bias


@linear.vjp
def _(xp, g, x, weight, bias_shape, *, products, key):
    rows, x2 = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
    dx = products.input_gradient(xp, rows, weight, key).reshape(x.shape)
    dw = products.weight_gradient(xp, rows.T, x2, key)
    return dx, dw, rows.sum(0, dtype=rows.dtype) if bias_shape else None


def heads_of(x, heads):            # (B,T,C) -> (B,H,T,D)
    if x.shape[-1] % heads:
        raise MiniLLMError(f"attention: {heads} heads do not divide {x.shape[-1]} channels")
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(0, 2, 1, 3)


def merged(x):                     # (B,H,T,D) -> (B,T,C)
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], x.shape[1] * x.shape[3])


def visible(xp, Tq, Tk, mask, causal):
    """Which key a query may see, (Tq,Tk) or broadcast with the mask; None: all. The last query stands at the last key."""
    seen = xp.tri(Tq, Tk, Tk - Tq, dtype=bool) if causal else None
    return mask if seen is None else seen if mask is None else seen & mask


def scores(xp, q, k, mask, causal, products, key):                            # (B,H,Tq,Tk), -inf where nothing may be seen
    s = products.forward(xp, q, turned(k), key) * q.shape[-1] ** -0.5
    seen = visible(xp, *s.shape[-2:], mask, causal)
    return s if seen is None else xp.where(seen, s, -xp.inf)


@rule(plain=("mask",))
def attention(xp, q, k, v, mask=None, *, heads, causal=True, products=FLOAT32_PRODUCTS, key=0):
    # (B,Tq,C), (B,Tk,C), (B,Tk,C); mask broadcasts to (B,H,Tq,Tk). Vaswani et al. 2017, arXiv 1706.03762, section 3.2
    q, k, v = (heads_of(a, heads) for a in (q, k, v))
    s = scores(xp, q, k, mask, causal, products, key)
    top = xp.maximum(s.max(-1, keepdims=True), -3e38)                         # a row that sees nothing gives 0, not NaN
    e = xp.exp(s - top)
    total = e.sum(-1, keepdims=True, dtype=s.dtype)
    total = xp.where(total == 0, 1, total)
    # Two numbers a row are kept and no T x T matrix. Their log-sum-exp would be one, but its rounding shifts a whole row: gradients
    # of peaked attention were off by 1e-4 of their largest entry, with two numbers by 5e-6.
    # key ^ 1: the second product of one role draws other random bits than the first.
    return merged(products.forward(xp, e / total, v, key ^ 1)), {"top": top, "total": total}


@attention.vjp
def _(xp, g, q, k, v, top, total, mask, *, heads, causal, products, key):
    g, q, k, v = (heads_of(a, heads) for a in (g, q, k, v))
    p = xp.exp(scores(xp, q, k, mask, causal, products, key) - top) / total
    dp = products.input_gradient(xp, g, turned(v), key)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True, dtype=p.dtype)) * q.shape[-1] ** -0.5
    dk = products.weight_gradient(xp, turned(ds), q, key)
    dv = turned(products.weight_gradient(xp, turned(g), p, key ^ 1))
    return merged(products.input_gradient(xp, ds, k, key ^ 1)), merged(dk), merged(dv), None
