# %% [markdown]
"""
An autograd engine in one sitting
=================================

Training needs one number for every weight: if this weight moved up a little, how much would the loss move? That
number is the *gradient*. A language model has many weights and one loss, and *autograd* is the machinery that finds
all gradients in one walk from the loss back to the weights.

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
# A *number format* says which numbers exist. float16 has 16 bits: one for the sign, five for the exponent, ten for
# the digits. Between 1 and 2 it knows 1024 numbers, each 1/1024 from the next. That distance is called an **ulp**, a
# *unit in the last place*. It doubles with every power of two: between 1024 and 2048 it is 1, so float16 has no
# 1024.5.
#
# Whatever falls between two neighbours is *rounded* to the nearer one; of two equally near ones, the one whose last
# digit is even is taken. Beyond the largest number, 65504, stands infinity.

# %%
x = tensor([0.1, 1.0, 1024.5, 1025.5, 70000.0], FLOAT16)
print(x)                    # Tensor([9.998e-02, 1.000e+00, 1.024e+03, 1.026e+03, inf], FLOAT16)
print(x.data.dtype)         # float16: a plain NumPy array

assert x.data.tolist() == [0.0999755859375, 1.0, 1024.0, 1026.0, np.inf]
assert np.spacing(np.float16(1)) == FLOAT16.eps == 1 / 1024          # one ulp at 1
assert np.spacing(np.float16(1024)) == 1
assert FLOAT16.max == 65504

# %% [markdown]
# A rounding is wrong by at most half an ulp. Relative to the number itself that is at most 1/2048 in float16: the
# *unit roundoff*. float32 has 24 bits where float16 has 11, and a unit roundoff of 2 to the power of -24, 0.00000006.
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
print(thousands.mean())     # Tensor(1.e+03, FLOAT16): the sum lived in float32

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
# A **vjp** (vector-Jacobian product) turns the cotangent of an operation's *result* into the cotangent of its
# *input*. That is the chain rule: if ``y = tanh(x)``, then ``dy/dx = 1 - y * y``, and so
#
# cotangent of x = cotangent of y, times 1 - y * y.
#
# A vjp says what it needs by the names of its parameters. This one wants ``g`` and the result ``y``, but not the
# input ``x``, so ``x`` need not be kept in memory. That matters later.

# %% [markdown]
# A computation that fits on a napkin
# -----------------------------------
#
# One neuron: ``y = tanh(w x + b)``. It should say 1, and the loss is the square of what it is off by. A tensor that
# has a *name* is a weight (a *leaf* of the graph): it will get a gradient.
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
print(y)                    # Tensor(0.4621172, FLOAT32)
print(loss)                 # Tensor(0.2893179, FLOAT32)

assert abs(y.item() - np.tanh(0.5)) < 1e-7
assert abs(loss.item() - 0.289318) < 1e-6

# %% [markdown]
# While it computed, the dispatcher wrote down a *graph*: for each result a node, with the rule that made it, the
# nodes that it was made from (its *parents*), and what the vjp will want to read.


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
#          tanh, keeps {'y': 0.46211719512939453}
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
print(gradients)            # {'w': array(-1.692067, dtype=float32), 'b': array(-0.846033, dtype=float32)}

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
# Written like that, exp(x) overflows for x = 90 in float32. The same thing written as max(x, 0) + log(1 +
# exp(-abs(x))) never does. Its derivative is the sigmoid, 1 / (1 + exp(-x)), which can be had from the result alone:
# 1 - exp(-y). ``expm1(-y)`` is exp(-y) - 1 without the loss of digits near 0. So this vjp reads ``y``, and ``x`` need
# not be kept.

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
# moves. The slope between is the *central difference*, (f(x + h) - f(x - h)) / 2h, and the gradient must agree with
# it.
#
# How small is small? A large step cuts off the bend of the function, a small one drowns in rounding: the two values
# share most of their digits, and the difference keeps only the rest. The figure shows both.

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
    axes.plot(steps, errors32, color=style.BLUE, linestyle=(0, (4, 1.5)), label="computed in float32")
    axes.plot(steps, errors64, color=style.BLACK, label="computed in float64")
    axes.set_xscale("log", base=2)
    axes.set(yscale="log", title="A central difference of softplus at 0.9", xlabel="step h (no unit)",
             ylabel="relative error of the slope\n(no unit)")
    style.legend(figure, axes.get_lines())
    print(style.save(figure, "figures/01-finite-differences.png"))

assert errors32.min() > 1e-6                                         # never six digits in float32
assert errors32[19] > 0.01                                           # a step of a millionth: one per cent off, or more
assert steps[19] == 2.0**-20
assert errors32[steps < 2.0**-26].min() == 1                         # h is lost beside 0.9, and the slope is 0
assert errors64[16] < 1e-9                                           # at 2^-17, the step that the library takes

# %% [markdown]
# That is why gradients are checked in float64, where there is room between the two errors, and why float64 is found
# in no other place of the library. The rule can go there because it knows arrays, not formats.
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
# A check that never fails is worth nothing. So plant three mistakes that happen to everybody, and see each of them
# found.

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
    "div": ((1.5 + values[::-1] ** 2,), (), {}), "softmax": ((), (), {}), "log_softmax": ((), (), {}),
    "layer_norm": ((gain,), (), {}), "linear": ((matrix,), (), {}),
    "attention": ((values[::-1], values[:, ::-1]), (), {"heads": 4}), "cross_entropy": ((), (ids,), {}),
}


def gradient_of(name, format):
    """The gradient of the sum of the operation's results, each times a random weight, with respect to its first input."""
    others, plain, options = OPERATIONS[name]
    leaf = tensor(values, format, name="x")
    y = getattr(recipe_named("float32").bind(), name)(leaf, *(tensor(other, format) for other in others), *plain, **options)
    weights = np.random.default_rng(2).standard_normal(y.shape).astype(np.float16).astype(np.float64)
    return backward((y * tensor(weights, format)).sum())["x"].astype(np.float64)


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
    print(style.save(figure, "figures/01-gradient-errors.png"))

in_roundoffs = {format: np.array(found) / format.roundoff for format, found in errors.items()}
print({format.name: f"{found.min():.2f} ... {found.max():.2f} unit roundoffs" for format, found in in_roundoffs.items()})
assert in_roundoffs[FLOAT16].max() < 2
assert in_roundoffs[FLOAT32].max() < 16

# %% [markdown]
# Every float16 gradient is within two unit roundoffs of the truth, although some of these operations add up dozens of
# numbers for each entry. That is what "compute in float32, round once" buys.

# %% [markdown]
# Cotangents that meet
# --------------------
#
# In the neuron above ``off`` was used twice, and its two cotangents had to be added. In a language model a value may
# be used often: a residual stream feeds every block, an embedding row every place where its token occurs.
#
# Added one by one in float16, small shares vanish beside a large one. At 1 the next float16 number is 1 + 1/1024. A
# share of 1/4096 is a quarter of that step, so 1 + 1/4096 rounds back to 1, and it does so eight times in a row. The
# engine adds the shares in float32 and rounds the sum once.

# %%
one_by_one = np.float16(1)
for _ in range(8):
    one_by_one = one_by_one + np.float16(1 / 4096)

x = tensor(1.0, FLOAT16, name="x")
total = x * 1.0
for _ in range(8):
    total = total + x * (1 / 4096)
summed_once = backward(total)["x"]
print(one_by_one, summed_once)                                       # 1.0 1.002

assert one_by_one == 1
assert summed_once.dtype == np.float16
assert summed_once == 1 + 8 / 4096                                   # the exact sum, and a float16 number

# %% [markdown]
# What is kept for the way back
# -----------------------------
#
# Memory in training is mostly *activations*: arrays of the forward pass that wait for the backward pass. Since a vjp
# names what it reads, nothing else is kept, and everything in the format that it has. Here is what one float16
# operation on a batch of 64 rows of 256 channels leaves behind, counted in arrays of the input's size.

# %%
rows, channels = 64, 256
activations = np.random.default_rng(3).standard_normal((rows, channels))


def kept_bytes(name, format, **options):
    """Bytes of floating values that one operation on the activations keeps."""
    leaf = tensor(activations, format, name="x")
    others = [tensor(np.ones(channels), format)] * (name == "layer_norm") + [leaf] * (name == "add")
    node = getattr(recipe_named("float32").bind(), name)(leaf, *others, **options).node
    arrays = {id(a): a for a in node.kept.values() if isinstance(a, np.ndarray) and a.dtype.kind == "f"}
    return sum(a.nbytes for a in arrays.values())


KEPT = {"add": {}, "relu": {}, "gelu": {}, "softmax": {}, "layer_norm": {}, "dropout": {"rate": 0.1}}
for name, options in KEPT.items():
    print(f"{name:11}{kept_bytes(name, FLOAT16, **options) / (2 * activations.size):.3f} arrays")

assert kept_bytes("add", FLOAT16) == kept_bytes("dropout", FLOAT16, rate=0.1) == 0
assert kept_bytes("gelu", FLOAT16) == 2 * activations.size           # its input, in two bytes a value
assert kept_bytes("gelu", FLOAT32) == 4 * activations.size
assert kept_bytes("layer_norm", FLOAT16) == 2 * activations.size + 2 * channels + rows * 2 * 4

# %% [markdown]
# An addition keeps nothing. Dropout keeps nothing either: its random mask is drawn again from a key on the way back.
# Layer norm keeps its input, its gain, and two float32 numbers a row, the mean and the spread. And float16 takes half
# of what float32 takes, because no hidden float32 copy is made.
#
# A network, its addresses, and whoever watches
# ---------------------------------------------
#
# A *module* owns weights and calls operations. Weights are found by their place in it, and so is every operation: its
# **address** is the place, the name of the operation, and a number if there are several.


# %%
class Network(Module):
    """Two inputs, two hidden layers with our softplus, one output: positive for one class, negative for the other."""

    def __init__(self, recipe, width=32, seed=0):
        self.ops, make = recipe.bind(seed), Maker(seed, recipe.parameters)
        self.first = Linear(self.ops, make, 2, width, deviation=1.0)
        self.second = Linear(self.ops, make, width, width, deviation=width**-0.5)
        self.third = Linear(self.ops, make, width, 1, deviation=width**-0.5)

    def forward(self, x):
        hidden = self.ops.softplus(self.first(x))                    # (N,width)
        return self.third(self.ops.softplus(self.second(hidden)))    # (N,1)

    def loss(self, x, targets):
        """Mean cross-entropy of the two classes, in nats."""
        return self.ops.bce_with_logits(self(x), targets)


network = Network(recipe_named("float16-mixed"))
print([parameter.name for parameter in network.parameters()])

# %% [markdown]
# The recipe ``float16-mixed`` keeps weights in float32, casts a copy of them to float16 in each forward pass, and
# computes the loss in float32. No line of the network says so, and none has to: the casts are operations like any
# other. *Watching* shows every rounding of a step in the order in which it happens.

# %%
events = []
with watch(events.append):
    backward(network.loss(tensor([[0.5, -0.5]]), np.float32([[1]])))
for event in events:
    print(f"{event.phase:9}{event.address!s:26}-> {event.format.name}")
#  forward  first/cast                -> float16        the input
#  forward  first/cast#1              -> float16        the working copy of the weight
#  forward  first/linear              -> float16
#  ...
#  backward third.weight/gradient     -> float32
#  backward third.bias/gradient       -> float32

places = {(event.phase, str(event.address)): event.format for event in events}
assert places["forward", "first/linear"] is FLOAT16
assert places["forward", "bce_with_logits"] is FLOAT32
assert places["backward", "second/linear"] is FLOAT16                # the cotangent of that result
assert places["backward", "second.weight/gradient"] is FLOAT32       # the gradient of the float32 weight

# %% [markdown]
# An event holds the values before and after the rounding. So a question such as "which cotangents became zero?" is a
# few lines. In this untrained network with one example, none did.

# %%
zeroed = [str(e.address) for e in events if e.phase == "backward" and np.any((e.exact != 0) & (e.rounded == 0))]
print(zeroed)               # []

assert zeroed == []

# %% [markdown]
# Does it learn?
# --------------
#
# Two spirals, wound into each other: 300 points of each, and 300 others to see whether what was learned is right. A
# training step is: loss, backward, a check that everything is finite, and an update of the weights by *AdamW*, which
# takes steps of about the learning rate in the direction against the gradient. Tutorial 02 reads it line by line.


# %%
def spirals(points, seed):
    """Coordinates (2 * points, 2) between -1 and 1, and the spiral, 0 or 1, that each point lies on."""
    rng = np.random.default_rng(seed)
    turn = np.sqrt(rng.random((2, points))) * 3 * np.pi              # one and a half turns, evenly filled
    angle = turn + np.array([[0], [np.pi]])
    at = np.stack([np.cos(angle), np.sin(angle)], -1) * turn[..., None] / (3 * np.pi)
    return (at + rng.normal(0, 0.02, at.shape)).reshape(-1, 2), np.repeat([0, 1], points)


def train(recipe_name, steps=300):
    """A trained network; every recipe begins with the same weights and sees the same points."""
    recipe = recipe_named(recipe_name)
    network = Network(recipe)
    optimizer = AdamW(network.parameters(), eps=recipe.eps, weight_decay=0.0, state_format=recipe.optimizer_state)
    objective = Objective(network.loss, network.ops, optimizer, LossScaler(recipe.loss_scaling))
    points, classes = spirals(300, seed=0)
    batch = tensor(points), classes[:, None].astype(np.float32)
    for step in range(steps):
        result = training_step(objective, [batch], step, lr=0.03)
        if step % 100 == 99:
            print(f"{recipe_name:14} step {step + 1}: loss {result.loss:.4f}")
    return network


def outputs(network, points):
    """What the network says of points (N,2), as float64 (N,)."""
    with network.ops.context.no_record():
        return network(tensor(points)).data[:, 0].astype(np.float64)


networks = {name: train(name) for name in ("float32", "float16-mixed")}
unseen, truth = spirals(300, seed=1)
accuracy = {name: np.mean((outputs(network, unseen) > 0) == truth) for name, network in networks.items()}
print({name: f"{share:.1%} of unseen points right" for name, share in accuracy.items()})

line = np.linspace(-1.1, 1.1, 161)
grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
painted = {name: outputs(network, grid).reshape(161, 161) for name, network in networks.items()}
agreement = np.mean((painted["float32"] > 0) == (painted["float16-mixed"] > 0))
print(f"the two networks agree on {agreement:.1%} of the square")

assert min(accuracy.values()) > 0.97
assert agreement > 0.95

# %%
with style.applied():
    figure, panels = style.figure(1, 2, height=4.0, sharey=True)
    for axes, (name, values) in zip(panels, painted.items(), strict=True):
        axes.contourf(line, line, values, levels=[-np.inf, 0, np.inf], colors=["#DCEBF6", "#FBE3D0"])
        axes.contour(line, line, values, levels=[0], colors="black", linewidths=1.2)
        for spiral, color, marker in ((0, style.BLUE, "o"), (1, style.VERMILLION, "^")):
            axes.plot(*unseen[truth == spiral].T, color=color, marker=marker, markersize=3, linestyle="none")
        axes.set(title=f"{name}: {accuracy[name]:.1%} right", xlabel="first coordinate (no unit)", aspect="equal")
        axes.grid(False)
    panels[0].set_ylabel("second coordinate (no unit)")
    style.legend(figure, [style.key("spiral 0, unseen points", color=style.BLUE, marker="o", linestyle="none"),
                          style.key("spiral 1, unseen points", color=style.VERMILLION, marker="^", linestyle="none"),
                          style.key("where the network changes its mind", color="black")])
    print(style.save(figure, "figures/01-boundary.png"))

# %% [markdown]
# Both recipes find the spirals, and they draw nearly the same line, although one of them computed with three decimal
# digits. Our softplus worked in both, and knew nothing of either.
#
# What to take along
# ------------------
#
# - A gradient is the chain rule, walked once from the loss to the weights. Each rule brings its own link of the
#   chain.
# - A gradient that has not been checked is wrong until proven otherwise, and the check is done in float64.
# - float16 inside operations is float32, rounded once. Sums, where digits die, never see float16.
# - What a vjp does not name is not kept. That is where memory is saved.
#
# Tutorial 02 trains a language model with this engine. Tutorial 03 shows where float16 stops being harmless.
