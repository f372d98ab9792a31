"""Ops that reduce an axis: sum, mean, max. Every reduction accumulates in the type of its argument, which is the compute type."""
from math import prod

from minillm.autograd.rule import rule


def spread(xp, g, shape, axis, keepdims):
    """A reduced cotangent with the reduced axes put back as 1, so that it broadcasts over `shape`."""
    if axis is None:
        return g.reshape((1,) * len(shape))
    axes = {a % len(shape) for a in (axis if isinstance(axis, tuple) else (axis,))}
    return g if keepdims else g.reshape(tuple(1 if i in axes else n for i, n in enumerate(shape)))


@rule
def sum(xp, x, *, axis=None, keepdims=False):
    return x.sum(axis, dtype=x.dtype, keepdims=keepdims)


@sum.vjp
def _(xp, g, x_shape, *, axis, keepdims):
    return (xp.broadcast_to(spread(xp, g, x_shape, axis, keepdims), x_shape),)


@rule
def mean(xp, x, *, axis=None, keepdims=False):
    total = x.sum(axis, dtype=x.dtype, keepdims=keepdims)
    return total / (x.size // max(total.size, 1))                             # not x.mean: it divides in float64


@mean.vjp
def _(xp, g, x_shape, *, axis, keepdims):
    rest = prod(x_shape) // max(g.size, 1)                                    # how many values one mean is over
    return (xp.broadcast_to(spread(xp, g, x_shape, axis, keepdims) / max(rest, 1), x_shape),)


@rule
def max_(xp, x, *, axis=None, keepdims=False):
    return x.max(axis, keepdims=keepdims)


@max_.vjp
def _(xp, g, x, y, *, axis, keepdims):                                        # equal maxima share the cotangent
    top = x == spread(xp, y, x.shape, axis, keepdims)
    return (top * (spread(xp, g, x.shape, axis, keepdims) / top.sum(axis, keepdims=True, dtype=g.dtype)),)
