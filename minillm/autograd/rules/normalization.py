"""Ops that normalize rows: softmax, log_softmax, layer_norm, rms_norm. Row statistics are kept, not matrices."""
from minillm.autograd.rule import rule
from minillm.errors import MiniLLMError


def row_sum(x, axis=-1):
    return x.sum(axis, keepdims=True, dtype=x.dtype)


def row_mean(x):                                 # not x.mean: it divides by an integer, which NumPy does in float64
    return row_sum(x) / x.shape[-1]


def check_channels(x, **vectors):
    """Gains and shifts have one value a channel; anything else that NumPy would spread has no vjp here."""
    for name, vector in vectors.items():
        if vector is not None and vector.shape != x.shape[-1:]:
            raise MiniLLMError(f"a {name} of shape {vector.shape} beside rows of {x.shape[-1]}: it must have shape {x.shape[-1:]}")


@rule(plain=("mask",))
def softmax(xp, x, mask=None, *, axis=-1):       # where the mask is false: probability 0; a row without any true: all 0
    x = x if mask is None else xp.where(mask, x, -xp.inf)
    top = xp.maximum(x.max(axis, keepdims=True), -3e38)                       # -inf - -inf would be NaN
    e = xp.exp(x - top)
    total = row_sum(e, axis)
    return e / xp.where(total == 0, 1, total)


@softmax.vjp
def _(xp, g, y, *, axis):
    return y * (g - row_sum(g * y, axis)), None


@rule
def log_softmax(xp, x, *, axis=-1):
    shifted = x - x.max(axis, keepdims=True)
    return shifted - xp.log(row_sum(xp.exp(shifted), axis))


@log_softmax.vjp
def _(xp, g, y, *, axis):
    return (g - xp.exp(y) * row_sum(g, axis),)


@rule(wide=("gain", "shift"))
def layer_norm(xp, x, gain, shift=None, *, eps=1e-5):                         # Ba et al. 2016, arXiv 1607.06450; biased variance
    check_channels(x, gain=gain, shift=shift)
    mean = row_mean(x)
    rstd = 1 / xp.sqrt(row_mean((x - mean) ** 2) + eps)
    y = (x - mean) * rstd * gain
    return y if shift is None else y + shift, {"mean": mean, "rstd": rstd}    # two numbers a row are kept


@layer_norm.vjp
def _(xp, g, x, gain, mean, rstd):
    normal, h = (x - mean) * rstd, g * gain
    dx = rstd * (h - row_mean(h) - normal * row_mean(h * normal))
    rows = tuple(range(g.ndim - 1))
    return dx, (g * normal).sum(rows, dtype=g.dtype), g.sum(rows, dtype=g.dtype)


@rule(wide=("gain",))
def rms_norm(xp, x, gain, *, eps=1e-5):                                       # Zhang and Sennrich 2019, arXiv 1910.07467
    check_channels(x, gain=gain)
    rms = 1 / xp.sqrt(row_mean(x * x) + eps)
    return x * rms * gain, {"rms": rms}


@rms_norm.vjp
def _(xp, g, x, gain, rms):
    normal, h = x * rms, g * gain
    rows = tuple(range(g.ndim - 1))
    return rms * (h - normal * row_mean(h * normal)), (g * normal).sum(rows, dtype=g.dtype)
