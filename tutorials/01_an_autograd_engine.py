# %% [markdown]
"""
An autograd engine in one sitting
=================================

Training needs one number for every weight: if this weight moved up a little, how much would the loss move?
That number is the *gradient*. A language model has many weights and one loss, and *autograd* is the machinery that
finds all gradients in one walk from the loss back to the weights.

This tutorial takes the engine of minillm apart. It is built from five ideas:

- a **tensor** is an array and a number format;
- a **rule** is how one operation is computed and, beside it, how its gradient is computed;
- one **dispatcher** applies every rule, computes in float32 and rounds the result once;
- the **backward** pass walks the graph once, and sums in float32 what meets;
- whoever wants to **watch** is shown every rounding.

You need Python and a little calculus (the derivative of a function of one variable, and the chain rule). Every number
that the text quotes is asserted by the script. It runs in a few seconds, and ``MINILLM_QUICK=1`` changes nothing.
"""

# %%
import inspect
import os

import numpy as np
from threadpoolctl import threadpool_limits

from minillm import FLOAT16, FLOAT32, MiniLLMError, backward, recipe_named, tensor, watch
from minillm.autograd.check import check_float32, check_gradient
from minillm.autograd.rule import RULES, rule
from minillm.nn import Linear, Maker, Module
from minillm.optim import AdamW
from minillm.plotting import style
from minillm.precision.loss_scaling import LossScaler
from minillm.testing import FLOAT64
from minillm.training.trainer import Objective, training_step

FIGURES = os.environ.get("MINILLM_FIGURES", "figures")
threadpool_limits(1)        # products as small as these are slower on two threads than on one


def refusal(action):
    """The message of the error that action() must raise."""
    try:
        action()
    except MiniLLMError as error:
        return str(error)
    raise AssertionError("this should have been refused")


# %% [markdown]
# A tensor is an array and a format
# ---------------------------------
#
# A *number format* says which numbers exist. float16 has 16 bits: one for the sign, five for the exponent, ten for the
# digits. Between 1 and 2 it knows 1024 numbers, each 1/1024 from the next. That distance is called an **ulp**, a *unit
# in the last place*. It doubles with every power of two: between 1024 and 2048 it is 1, so float16 has no 1024.5.
#
# Whatever falls between two neighbours is *rounded* to the nearer one; of two equally near ones, the one whose last
# digit is even is taken. Beyond the largest number, 65504, stands infinity.

# %%
x = tensor([0.1, 1.0, 1024.5, 1025.5, 70000.0], FLOAT16)
print(x)                    # Tensor([0.09998, 1., 1024., 1026., inf], FLOAT16)
print(x.data.dtype)         # float16: a plain NumPy array

assert x.data.tolist() == [0.0999755859375, 1.0, 1024.0, 1026.0, np.inf]
assert np.spacing(np.float16(1)) == FLOAT16.eps == 1 / 1024          # one ulp at 1
assert np.spacing(np.float16(1024)) == 1
assert FLOAT16.max == 65504

# %% [markdown]
# A rounding is wrong by at most half an ulp. Relative to the number itself that is at most 1/2048 in float16: the *unit
# roundoff*. float32 has 24 bits where float16 has 11, and a unit roundoff of 2 to the power of -24, 0.00000006.
#
# Two tensors of different formats do not mix. NumPy would quietly pick the wider format, and half of what you believe
# to be float16 would not be. Here it is an error, and the error says what to write.

# %%
half, single = tensor([1.0, 2.0], FLOAT16), tensor([1.0, 2.0], FLOAT32)
message = refusal(lambda: half + single)
print(message)              # add: float16 and float32 do not mix: cast one, e.g. x.to(FLOAT32) of the float16 one
print(half.to(FLOAT32) + single)                                     # Tensor([2., 4.], FLOAT32)

assert "float16 and float32 do not mix" in message
assert "x.to(FLOAT32)" in message

# %% [markdown]
# Inside an operation everything is float32, and only the result is rounded. So the mean of float16 numbers is right
# even where their sum has no place in float16.

# %%
thousands = tensor(np.full(100, 1000.0), FLOAT16)
print(thousands.sum())      # Tensor(inf, FLOAT16): 100000 is beyond 65504
print(thousands.mean())     # Tensor(1000., FLOAT16): the sum lived in float32

assert np.isinf(thousands.sum().item())
assert thousands.mean().item() == 1000

# %% [markdown]
# A rule: forward, and backward beside it
# ---------------------------------------
#
# Here is the hyperbolic tangent, in the very words of the library. ``xp`` is NumPy, handed in from outside.

# %%
tanh = RULES["tanh"]
print(inspect.getsource(tanh.forward))      # def tanh(xp, x): return xp.tanh(x)
print(inspect.getsource(tanh.backward))     # def _(xp, g, y): return (g * (1 - y * y),)

assert tanh.reads == {"y"}

# %% [markdown]
# The second function needs two words.
#
# A **cotangent** is the gradient of the loss with respect to some value on the way, not only to a weight. It has the
# shape of that value. In the code it is called ``g``.
#
# A **vjp** (vector-Jacobian product) turns the cotangent of an operation's *result* into the cotangent of its *input*.
# That is the chain rule: if ``y = tanh(x)``, then ``dy/dx = 1 - y * y``, and so
#
# cotangent of x = cotangent of y, times 1 - y * y.
#
# A vjp says what it needs by the names of its parameters. This one wants ``g`` and the result ``y``, but not the input
# ``x``, so ``x`` need not be kept in memory. That matters later.

# %% [markdown]
# A computation that fits on a napkin
# -----------------------------------
#
# One neuron: ``y = tanh(w x + b)``. It should say 1, and the loss is the square of what it is off by. A tensor that has
# a *name* is a weight (a *leaf* of the graph): it will get a gradient.
#
# The operations come from a *recipe*, which says in which format each of them works. The recipe ``float32`` is the
# plainest: everything in float32.

# %%
ops = recipe_named("float32").bind()
w, b, x = tensor(0.5, name="w"), tensor(-0.5, name="b"), tensor(2.0)

z = ops.add(ops.mul(w, x), b)
y = ops.tanh(z)
off = ops.sub(y, 1.0)
loss = ops.mul(off, off)
print(y)                    # Tensor(0.46211717, FLOAT32)
print(loss)                 # Tensor(0.28931797, FLOAT32)

assert abs(y.item() - np.tanh(0.5)) < 1e-7
assert abs(loss.item() - 0.289318) < 1e-6

# %% [markdown]
# While it computed, the dispatcher wrote down a *graph*: for each result a node, with the rule that made it, the nodes
# that it was made from (its *parents*), and what the vjp will want to read.


# %%
def outline(node, depth=0):
    """Print a node and all that it was made from, further to the right."""
    if node is None:
        return
    if not hasattr(node, "rule"):
        print("    " * depth + f"the weight {node.name}")
        return
    kept = {name: float(value) for name, value in node.kept.items() if isinstance(value, np.ndarray)}
    print("    " * depth + f"{node.address}, keeps {kept}")
    for parent in node.parents:
        outline(parent, depth + 1)


outline(loss.node)
#  mul#1, keeps {'x': -0.5378828048706055, 'z': -0.5378828048706055}
#      sub, keeps {}
#          tanh, keeps {'y': 0.46211716532707214}
#              add, keeps {}
#                  mul, keeps {'x': 0.5, 'z': 2.0}
#                      the weight w
#                  the weight b
#      sub, keeps {}
#          ... the same node again, since off was used twice

assert str(loss.node.address) == "mul#1"                             # the second mul: numbers count from 0
assert loss.node.parents[0] is loss.node.parents[1]
assert loss.node.parents[0].kept == {"x_shape": (), "z_shape": ()}   # a difference needs no numbers, only shapes

# %% [markdown]
# Now backwards. The cotangent of the loss is 1, since the loss moves exactly as the loss moves. Every node passes on
# what its vjp makes of the cotangent that has arrived. By hand:
#
# - ``loss = off * off``: off is used twice, and receives 1 times off from each side, together 2 off = -1.075766
# - ``off = y - 1``: passed on as it is
# - ``y = tanh(z)``: times 1 - y y = 0.786448, so -0.846034
# - ``z = w x + b``: b receives -0.846034, and w the same times x, so -1.692067

# %%
gradients = backward(loss)
print(gradients)            # {'b': array(-0.84603..., dtype=float32), 'w': array(-1.69206..., dtype=float32)}

by_hand = 2 * (np.tanh(0.5) - 1) * (1 - np.tanh(0.5) ** 2)
assert abs(by_hand - -0.846034) < 1e-6
assert abs(gradients["b"] - by_hand) < 1e-6
assert abs(gradients["w"] - 2 * by_hand) < 1e-6

# %% [markdown]
# Both gradients are negative: to make the loss smaller, make both weights larger.
#
# A graph is walked once and taken apart on the way, so that the memory is free as soon as it can be. A second walk
# would find nothing, and says so.

# %%
message = refusal(lambda: backward(loss))
print(message)              # backward: this graph was walked already, or never recorded (...)

assert "walked already" in message

# %% [markdown]
# A rule of your own
# ------------------
#
# The library has no *softplus*, log(1 + exp(x)): a smooth bend from 0 to x. Let us add it.
#
# Written like that, exp(x) overflows for x = 90 in float32. The same thing written as max(x, 0) + log(1 + exp(-abs(x)))
# never does. Its derivative is the sigmoid, 1 / (1 + exp(-x)), which can be had from the result alone: 1 - exp(-y).
# ``expm1(-y)`` is exp(-y) - 1 without the loss of digits near 0. So this vjp reads ``y``, and ``x`` need not be kept.

# %%
RULES.pop("softplus", None)          # a name may be taken only once; this lets you run the cell twice


@rule
def softplus(xp, x):
    return xp.maximum(x, 0) + xp.log1p(xp.exp(-abs(x)))


@softplus.vjp
def _(xp, g, y):
    return (g * -xp.expm1(-y),)


# %% [markdown]
# Is it right? Ask the function itself: go a small step h to the right and to the left, and see how far the result
# moves. The slope between is the *central difference*, (f(x + h) - f(x - h)) / 2h, and the gradient must agree with it.
#
# How small is small? A large step cuts off the bend of the function, a small one drowns in rounding: f(x + h) and
# f(x - h) share most of their digits, and the difference keeps only the rest. The figure shows both.

# %%
steps = 2.0 ** -np.arange(1, 50)
sigmoid = 1 / (1 + np.exp(-0.9))                                     # the true slope of softplus at 0.9


def difference_errors(dtype):
    """The relative error of the central difference at 0.9 for each step, computed in this type."""
    at, h = dtype(0.9), steps.astype(dtype)
    above, below = softplus.forward(np, at + h), softplus.forward(np, at - h)
    return np.abs((above - below) / (2 * h) - sigmoid) / sigmoid


errors32, errors64 = difference_errors(np.float32), difference_errors(np.float64)
print(f"best in float32 {errors32.min():.1e}, in float64 {errors64.min():.1e}")

with style.applied():
    figure, axes = style.figure()
    for name, errors, color, dashes in (("float32", errors32, style.BLUE, (0, (4, 1.5))), ("float64", errors64, style.BLACK, "-")):
        axes.loglog(steps, np.maximum(errors, 1e-13), color=color, linestyle=dashes, label=f"computed in {name}", base=2)
    axes.set(title="A central difference of softplus at 0.9", xlabel="step h (no unit)",
             ylabel="relative error of the slope\n(no unit)")
    axes.set_yscale("log", base=10)
    style.legend(figure, axes.get_lines())
    print(style.save(figure, f"{FIGURES}/01-finite-differences.png"))

assert 1e-7 < errors32.min() < 1e-3
assert errors32[steps < 2.0**-24].min() > 0.2                        # h is lost beside 0.9: the slope is nonsense
assert errors64.min() < 1e-9
assert errors64[16] < 1e-8                                           # at the step that the library takes
assert steps[16] == 2.0**-17

# %% [markdown]
# That is why gradients are checked in float64, where there is room between the two errors, and why float64 is found in
# no other place of the library. The rule can go there because it knows arrays, not formats.
#
# ``check_gradient`` does this for a whole array at once, along a random direction. It returns how much of the allowed
# error was used (below 1 is a pass), or raises an error that names the rule and the input. ``check_float32`` then
# compares the gradient computed in float32 with that of the same graph in float64.

# %%
values = np.random.default_rng(0).standard_normal((8, 16))
print(check_gradient(softplus, values), check_float32(softplus, values))

assert check_gradient(softplus, values)[0] < 1
assert check_float32(softplus, values)[0] < 1

# %% [markdown]
# A check that never fails is worth nothing. So plant three mistakes that happen to everybody, and see each of them found.

# %%
MISTAKES = {
    "a wrong sign": lambda xp, g, y: (-g * -xp.expm1(-y),),
    "x taken for y": lambda xp, g, x: (g * -xp.expm1(-x),),
    "a thousandth too much": lambda xp, g, y: (g * -xp.expm1(-y) * 1.001,),
}
right = softplus.backward
for name, mistake in MISTAKES.items():
    softplus.vjp(mistake)
    message = refusal(lambda: check_gradient(softplus, values))
    print(f"{name}: {message}")
    assert "softplus, input 0 (x)" in message
softplus.vjp(right)
assert check_gradient(softplus, values)[0] < 1

# %% [markdown]
# How exact are gradients?
# ------------------------
#
# Now every operation at once: the same input, the same operation, its gradient in float16, in float32 and in float64,
# which is exact enough to count as the truth here. The inputs are numbers that float16 has, so that all three begin
# with the same.

# %%
rng = np.random.default_rng(1)
values = rng.standard_normal((4, 16, 32)).astype(np.float16).astype(np.float64)      # (B,T,C)
matrix = (rng.standard_normal((32, 32)) / 8).astype(np.float16).astype(np.float64)
gain = np.linspace(0.5, 1.5, 32).astype(np.float16).astype(np.float64)
ids = rng.integers(0, 32, (4, 16))

OPERATIONS = {                       # name: (other inputs that are arrays, plain arrays, options)
    "exp": ((), (), {}), "tanh": ((), (), {}), "sigmoid": ((), (), {}), "gelu": ((), (), {}), "softplus": ((), (), {}),
    "mul": ((values[::-1],), (), {}), "softmax": ((), (), {}), "log_softmax": ((), (), {}), "layer_norm": ((gain,), (), {}),
    "linear": ((matrix,), (), {}), "attention": ((values[::-1], values[:, ::-1]), (), {"heads": 4}),
    "cross_entropy": ((), (ids,), {}),
}


def gradient_of(name, format):
    """The gradient of the sum of the operation's results, each times 1 or -1, with respect to its first input."""
    others, plain, options = OPERATIONS[name]
    leaf = tensor(values, format, name="x")
    y = getattr(recipe_named("float32").bind(), name)(leaf, *(tensor(other, format) for other in others), *plain, **options)
    signs = tensor(np.random.default_rng(2).choice([-1.0, 1.0], y.shape), format)
    return backward((y * signs).sum())["x"].astype(np.float64)


def relative_error(name, format):
    """The largest error of the gradient against float64, relative to the largest entry of the gradient."""
    exact = gradient_of(name, FLOAT64)
    return np.abs(gradient_of(name, format) - exact).max() / np.abs(exact).max()


errors = {format: [relative_error(name, format) for name in OPERATIONS] for format in (FLOAT32, FLOAT16)}
for i, name in enumerate(OPERATIONS):
    print(f"{name:14} float32 {errors[FLOAT32][i]:.1e}   float16 {errors[FLOAT16][i]:.1e}")

with style.applied():
    figure, axes = style.figure(height=4.6)
    rows = np.arange(len(OPERATIONS))
    handles = []
    for format, color, marker in ((FLOAT32, style.BLACK, "o"), (FLOAT16, style.VERMILLION, "v")):
        axes.axvline(format.roundoff, color=color, linestyle="--", linewidth=1)
        style.marks(axes, errors[format], rows, color=color, marker=marker, markeredgecolor="white")
        handles += [style.key(f"{format.name}: largest error", color=color, marker=marker, linestyle="none"),
                    style.key(f"{format.name}: unit roundoff", color=color, linestyle="--")]
    axes.set(xscale="log", yticks=rows, yticklabels=list(OPERATIONS), ylim=(len(rows) - 0.5, -0.5),
             title="Gradients against the same graph in float64",
             xlabel="largest error of the gradient, relative to its largest entry (no unit)")
    style.legend(figure, handles)
    print(style.save(figure, f"{FIGURES}/01-gradient-errors.png"))

in_roundoffs = {format: np.array(found) / format.roundoff for format, found in errors.items()}
print({format.name: f"{found.min():.2f} ... {found.max():.2f} unit roundoffs" for format, found in in_roundoffs.items()})
assert in_roundoffs[FLOAT16].max() < 4
assert in_roundoffs[FLOAT32].max() < 32

# %% [markdown]
# Every float16 gradient is within four unit roundoffs of the truth, although some of these operations add up hundreds
# of numbers. That is what "compute in float32, round once" buys.
