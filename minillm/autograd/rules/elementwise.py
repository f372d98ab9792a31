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


# log(erfc(z) / t) + z^2 for z >= 0 as a polynomial in 2 t - 1, t = 2.5 / (2.5 + z): 16 Chebyshev terms, highest power first.
# Off by less than 6e-11 of erfc(z) everywhere. Their sizes add up to 1.8: in float32 the sum is off by a few ulps at most.
ERFC = (3.141059995668e-06, 6.640695461653e-06, -2.487385542354e-05, -5.143323589924e-05, 0.0001113908574288, 0.0002432109619286,
        -0.000392235751935, -0.00104299064179, 0.001156677736314, 0.004719764041454, -0.001946198556092, -0.02378783717048,
        -0.01798381920419, 0.1392529001112, 0.7634037551235, -0.8636680921147)


def upper_tail(xp, x):             # the normal distribution's share above x >= 0: erfc(x / sqrt(2)) / 2
    t = 2.5 / (2.5 + x * 0.7071067811865476)
    y = 2 * t - 1
    log = ERFC[0] * y + ERFC[1]
    for c in ERFC[2:]:
        log *= y                   # in place: half the time
        log += c
    return t / 2 * xp.exp(log - x * x / 2)


@rule
def gelu_erf(xp, x):               # the exact form, x times the share below x; Hendrycks and Gimpel, section 2
    size = xp.minimum(abs(x), 40)  # beyond it the tail is 0, and infinity times 0 NaN
    return xp.maximum(x, 0) - size * upper_tail(xp, size)


@gelu_erf.vjp
def _(xp, g, x):
    near = xp.clip(x, -40, 40)
    tail = upper_tail(xp, abs(near))
    return (g * (xp.where(x < 0, tail, 1 - tail) + near * xp.exp(-near * near / 2) * 0.3989422804014327),)      # 1 / sqrt(2 pi)


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
