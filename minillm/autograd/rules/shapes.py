"""Ops that move values and compute nothing: transpose, reshape, slice, concat, embedding."""
from minillm.autograd.rule import rule
from minillm.errors import MiniLLMError


@rule
def transpose(xp, x, *, axes=None):              # axes: a permutation; None turns all of them round
    return x.transpose(axes)


@transpose.vjp
def _(xp, g, *, axes):
    back = None if axes is None else sorted(range(g.ndim), key=lambda i: axes[i] % g.ndim)
    return (g.transpose(back),)


@rule
def reshape(xp, x, *, shape):
    return x.reshape(shape)


@reshape.vjp
def _(xp, g, x_shape):
    return (g.reshape(x_shape),)


@rule
def slice_(xp, x, *, index):                     # ints, slices, ... and None; rows by a list of ids are `embedding`
    parts = index if isinstance(index, tuple) else (index,)
    if not all(isinstance(i, int | slice) or i is None or i is Ellipsis for i in parts):
        raise MiniLLMError(f"slice takes ints, slices, ... and None, not {index!r}: use embedding to pick rows by ids")
    return x[index]


@slice_.vjp
def _(xp, g, x_shape, *, index):
    out = xp.zeros(x_shape, g.dtype)
    out[index] = g
    return (out,)


@rule
def concat(xp, *parts, axis=-1):
    return xp.concatenate(parts, axis)


@concat.vjp
def _(xp, g, shapes, *, axis):
    ends, n = [], 0
    for shape in shapes[:-1]:
        n += shape[axis]
        ends.append(n)
    return xp.split(g, ends, axis)


@rule(plain=("ids",))
def embedding(xp, weight, ids):                  # (V,C), ids (...) -> (...,C)
    if ids.size and (ids.min() < 0 or ids.max() >= weight.shape[0]):
        raise MiniLLMError(f"embedding: ids must lie in 0 ... {weight.shape[0] - 1}, found {ids.min()} ... {ids.max()}")
    return weight[ids]


@embedding.vjp
def _(xp, g, weight_shape, ids):                 # rows that were used twice get the sum, accumulated in the type of g
    out = xp.zeros(weight_shape, g.dtype)
    xp.add.at(out, ids.reshape(-1), g.reshape(-1, g.shape[-1]))
    return out, None
