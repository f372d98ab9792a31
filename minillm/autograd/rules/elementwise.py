"""Ops that work on each value alone: arithmetic with broadcasting, functions, where, dropout."""
from minillm.autograd.rule import rule
from minillm.rounding import random_bits


def unbroadcast(xp, g, shape):
    """Undo broadcasting: sum the cotangent over the axes along which a value was repeated, in the type of g."""
    axes = tuple(range(g.ndim - len(shape)))
    axes += tuple(i + g.ndim - len(shape) for i, n in enumerate(shape) if n == 1 and g.shape[i + g.ndim - len(shape)] != 1)
    return g.sum(axes, dtype=g.dtype).reshape(shape) if axes else g


@rule
def cast(xp, x):                   # the dispatcher's rounding does the rest
    return x


@cast.vjp
def _(xp, g):
    return (g,)


@rule
def add(xp, x, z):
    return x + z


@add.vjp
def _(xp, g, x_shape, z_shape):    # two shapes are kept, no array
    return unbroadcast(xp, g, x_shape), unbroadcast(xp, g, z_shape)


@rule
def sub(xp, x, z):
    return x - z


@sub.vjp
def _(xp, g, x_shape, z_shape):
    return unbroadcast(xp, g, x_shape), unbroadcast(xp, -g, z_shape)


@rule
def mul(xp, x, z):
    return x * z


@mul.vjp
def _(xp, g, x, z):
    return unbroadcast(xp, g * z, x.shape), unbroadcast(xp, g * x, z.shape)


@rule
def div(xp, x, z):
    return x / z


@div.vjp
def _(xp, g, x, z):
    return unbroadcast(xp, g / z, x.shape), unbroadcast(xp, -g * (x / z) / z, z.shape)


@rule
def neg(xp, x):
    return -x


@neg.vjp
def _(xp, g):
    return (-g,)


@rule
def pow(xp, x, exponent):
    return x**exponent


@pow.vjp
def _(xp, g, x, exponent, needs):
    dx = xp.where(exponent == 0, 0, exponent * x ** (exponent - 1))           # 0 x^-1 is 0, at x = 0 too
    de = xp.where(x == 0, 0, x**exponent * xp.log(x)) if needs[1] else None    # the limit at 0
    return unbroadcast(xp, g * dx, x.shape), None if de is None else unbroadcast(xp, g * de, exponent.shape)


@rule
def exp(xp, x):
    return xp.exp(x)


@exp.vjp
def _(xp, g, y):
    return (g * y,)


@rule
def log(xp, x):
    return xp.log(x)


@log.vjp
def _(xp, g, x):
    return (g / x,)


@rule
def sqrt(xp, x):
    return xp.sqrt(x)


@sqrt.vjp
def _(xp, g, y):
    return (g / (2 * y),)


@rule
def tanh(xp, x):
    return xp.tanh(x)


@tanh.vjp
def _(xp, g, y):
    return (g * (1 - y * y),)


@rule
def sigmoid(xp, x):
    z = xp.exp(-abs(x))                          # never overflows
    return xp.where(x >= 0, 1 / (1 + z), z / (1 + z))


@sigmoid.vjp
def _(xp, g, y):
    return (g * y * (1 - y),)


@rule
def relu(xp, x):
    return xp.maximum(x, 0)


@relu.vjp
def _(xp, g, y):
    return (g * (y > 0),)


GELU_C, GELU_A = 0.7978845608028654, 0.044715    # sqrt(2 / pi); Hendrycks and Gimpel, arXiv 1606.08415, section 2


@rule
def gelu(xp, x):                   # the tanh form
    return x / 2 * (1 + xp.tanh(GELU_C * (x + GELU_A * x * x * x)))


@gelu.vjp
def _(xp, g, x):
    t = xp.tanh(GELU_C * (x + GELU_A * x * x * x))
    return (g * ((1 + t) / 2 + x / 2 * (1 - t * t) * GELU_C * (1 + 3 * GELU_A * x * x)),)


@rule(plain=("mask",))
def where(xp, mask, x, z):         # x where the mask holds, z elsewhere
    return xp.where(mask, x, z)


@where.vjp
def _(xp, g, mask, x_shape, z_shape):
    zero = xp.zeros((), g.dtype)
    return None, unbroadcast(xp, xp.where(mask, g, zero), x_shape), unbroadcast(xp, xp.where(mask, zero, g), z_shape)


def kept_by_dropout(xp, shape, rate, key):
    return random_bits(xp, key, shape) >= xp.uint32(int(rate * 2**32))       # shape, bool


@rule
def dropout(xp, x, *, rate, key=0):              # Srivastava et al. 2014; values that stay are divided by 1 - rate
    return xp.where(kept_by_dropout(xp, x.shape, rate, key), x / (1 - rate), xp.zeros((), x.dtype))


@dropout.vjp
def _(xp, g, *, rate, key):                      # the mask is drawn again from its key: nothing is kept
    return (xp.where(kept_by_dropout(xp, g.shape, rate, key), g / (1 - rate), xp.zeros((), g.dtype)),)
