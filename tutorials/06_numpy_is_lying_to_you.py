# %% [markdown]
"""
NumPy is lying to you
=====================

Whoever studies low precision in NumPy believes that a float16 array is computed in float16. Sometimes it is. Sometimes
the same sum is made in float32 and rounded at the end, and which of the two depends on the *axis*. Integers wrap around
without a word, a small constant turns into zero, a logarithm is rounded to the wrong side, and a square root turns a
whole model into float64.

None of this is a bug: each piece is documented, or at least known. But whoever compares number formats measures these
things instead of the formats. This tutorial shows six of them, and what minillm does in each place.

You should know what a rounding is, and what float16 looks like (tutorials 03 and 04). All quoted numbers are asserted.
The script runs for a few seconds. With ``MINILLM_QUICK=1`` nothing changes but the number of points in the first
figure.
"""

# %%
import math
import os

import numpy as np

from minillm import FLOAT16, FLOAT32, MiniLLMError, backward, recipe_named, round_to, tensor, watch
from minillm.autograd.context import Address
from minillm.autograd.watching import Event
from minillm.experiments.tables import table
from minillm.models.gpt import GPT, GPTShape
from minillm.optim import AdamW
from minillm.plotting import style
from minillm.precision.underflow import Microscope

QUICK = os.environ.get("MINILLM_QUICK") == "1"
half, single, double = np.float16, np.float32, np.float64

# %% [markdown]
# The accumulator that you do not see
# -----------------------------------
#
# From 2048 on, float16 numbers are 2 apart. So 2048 + 1 lies in the middle between 2048 and 2050, and is rounded to
# 2048. Whoever counts in float16, one by one, never gets beyond 2048. What does NumPy get when it adds 4096 ones?

# %%
ones, columns = np.ones(4096, half), np.ones((4096, 8), half)
ways = {
    "ones.sum()": ones.sum(), "ones @ ones": ones @ ones, "ones.mean() * 4096": ones.mean() * half(4096),
    "columns.T.copy().sum(axis=1)": columns.T.copy().sum(axis=1)[0], "(columns.T @ columns)[0]": (columns.T @ columns)[0, 0],
    "columns.mean(axis=0) * 4096": columns.mean(axis=0)[0] * half(4096),
    "columns.sum(axis=0)": columns.sum(axis=0)[0], "ones.cumsum()[-1]": ones.cumsum()[-1],
    'np.einsum("ij->j", columns)': np.einsum("ij->j", columns)[0],
}
print(table(["4096 ones in float16", "type", "result"], [[name, y.dtype, int(y)] for name, y in ways.items()]))

assert all(y.dtype == half for y in ways.values())
assert [int(y) for y in ways.values()] == [4096] * 6 + [2048] * 3

# %% [markdown]
# Nine ways to the same number, all of type float16. Six of them are right, because they add in float32 and round once,
# at the end. Three add in float16. The type of the result does not tell which.
#
# - A sum over the last axis of an array that lies in one piece is made in float32.
# - A sum over the *first* axis is made in float16. It is the sum of every bias gradient.
# - A mean over the first axis is made in float32 again, so a mean is not a sum divided by a count.
# - A running sum is made in float16, since each of its results is one.
#
# The variance of columns of ones is 0, as everybody knows.

# %%
print("variance of 4096 ones, by columns:", columns.var(axis=0)[0], " and along a row:", ones.var())

assert columns.var(axis=0)[0] == 0.125
assert ones.var() == 0

# %% [markdown]
# An eighth. The mean that ``var`` makes for itself is a sum over the first axis, so it is one half, and then all
# deviations are one half too.
#
# float32 has the same two ways. There the flat sum is made in pairs of pairs, whose errors stay small, and the sum over
# the first axis one by one, so that each addition loses up to half an ulp of a sum that grows and grows.

# %%
tenths = np.full((1_000_000, 2), 0.1, single)
by_columns, flat = float(tenths.sum(axis=0)[0]), float(tenths[:, 0].copy().sum())
print(f"a million times 0.1 in float32: {by_columns:,.2f} by columns, {flat:,.2f} along a row")

assert abs(flat - 100_000) < 0.1
assert by_columns - 100_000 > 900

# %% [markdown]
# The first is wrong by almost one per cent. In float32, with a million numbers, in a program that nobody suspected.
#
# How wrong is it, for how many numbers? Here random numbers between 0 and 1 are added by columns, against the sum in
# float64.

# %%
counts = np.unique(np.geomspace(16, 65536 if QUICK else 1_048_576, 9 if QUICK else 17).astype(int))
rng = np.random.default_rng(0)
uniform = rng.random((counts[-1], 2), single)
errors = {}
for name, dtype in (("float16, by columns", half), ("float16, along a row", half), ("float32, by columns", single),
                    ("float32, along a row", single)):
    low = uniform.astype(dtype) / dtype(32)                                    # so that no sum overflows float16
    sums = [low[:n].sum(axis=0)[0] if "columns" in name else low[:n, 0].copy().sum() for n in counts]
    exact = [low[:n, 0].sum(dtype=double) for n in counts]
    errors[name] = [abs(float(y) - x) / x for y, x in zip(sums, exact, strict=True)]

with style.applied():
    figure, axes = style.figure()
    looks = ((style.VERMILLION, "-"), (style.VERMILLION, "--"), (style.BLUE, "-"), (style.BLUE, "--"))
    for (name, error), (color, dashes) in zip(errors.items(), looks, strict=True):
        axes.plot(counts, np.maximum(error, 1e-9), color=color, linestyle=dashes, label=name)
    axes.set(xscale="log", yscale="log", xlabel="how many numbers are added (a count)",
             ylabel="relative error of the sum (no unit)", title="One array, two sums: what the axis decides")
    style.legend(figure, axes.get_lines())
    print(style.save(figure, "figures/06-sums.png"))

assert errors["float16, by columns"][-1] > 0.4
assert max(errors["float16, along a row"]) < 2 * FLOAT16.roundoff
assert max(errors["float32, along a row"]) < 1e-6

# %% [markdown]
# By columns, float16 has lost half of the sum and more. Along a row, its error is that of one rounding, however many
# numbers there are, because it is not a float16 sum at all. (float32 fares better here than with the tenths: the errors
# of random numbers have both signs, those of equal numbers need not.)
#
# In minillm every reduction names its accumulator: it is float32 unless a recipe says otherwise, and the result is
# rounded once. So the axis does not matter.

# %%
columns_sum = tensor(np.ones((4096, 8)), FLOAT16).sum(axis=0)
rows_sum = tensor(np.ones((8, 4096)), FLOAT16).sum(axis=1)
print("minillm:", columns_sum.data[0], "by columns,", rows_sum.data[0], "along a row")

assert columns_sum.format is FLOAT16
assert set(columns_sum.data.tolist()) == set(rows_sum.data.tolist()) == {4096.0}

# %% [markdown]
# Integers that wrap around
# -------------------------
#
# A product of two int8 matrices is the heart of every quantized model. In NumPy it is int8: sums and all.

# %%
codes = np.full((1, 4096), 100, np.int8)
print("int8 @ int8:", (codes @ codes.T)[0, 0], "of type", (codes @ codes.T).dtype)
print("in int32:   ", np.matmul(codes, codes.T, dtype=np.int32)[0, 0])
print("codes.sum():", codes.sum(), "of type", codes.sum().dtype)
print("abs(-128):  ", np.abs(np.array([-128], np.int8))[0])

assert (codes @ codes.T)[0, 0] == 0
assert np.matmul(codes, codes.T, dtype=np.int32)[0, 0] == 4096 * 100 * 100
assert codes.sum() == 409_600
assert np.abs(np.array([-128], np.int8))[0] == -128

# %% [markdown]
# - 4096 times 100 times 100 is 40,960,000. That is a multiple of 256, so in int8 it is zero. No warning.
# - ``sum`` does not wrap: it takes a wider type by itself. ``@`` does not. One has to name it.
# - The absolute value of -128 is -128, so whoever looks for the largest absolute value of int8 codes may miss it.
#
# So in minillm the integers of a quantized weight stay within -127 ... 127, and nothing is summed in eight bits.
# Rounding an integer array is refused, because it has no bits that could be rounded.

# %%
try:
    round_to(codes, FLOAT16)
    refused = ""
except MiniLLMError as error:
    refused = str(error)
print(refused)

assert "cannot round int8" in refused

# %% [markdown]
# A constant takes the type of its neighbour
# ------------------------------------------
#
# Since NumPy 2, a Python number beside an array has the type of the array. So 0.00000001 beside a float16 array is
# *rounded to float16* before anything is computed. And there it is zero.

# %%
v = np.array([1e-10, 1e-3], single).astype(half)                               # Adam's second moment, as float16 stores it
eps = 1e-8
print("v:", v, " sqrt(v) + eps:", np.sqrt(v) + eps, "of type", (np.sqrt(v) + eps).dtype)
with np.errstate(divide="ignore"):
    step = half(1e-5) / (np.sqrt(v) + eps)
print("m / (sqrt(v) + eps):", step)

assert half(eps) == 0
assert (np.sqrt(v) + eps).dtype == half
assert np.isinf(step[0])

# %% [markdown]
# The eps of Adam is there so that nobody divides by zero. In float16 it *is* zero, and somebody does: the first weight
# is now infinite.
#
# In minillm a Python number enters an op in the format in which the op computes, which is float32. The optimizer works
# in float32 too, whatever the format in which it stores its memory.

# %%
quotient = tensor([1e-5], FLOAT16) / (tensor([0.0], FLOAT16) * 1.0 + 1e-6)
weight = tensor([0.5], FLOAT32, name="weight")
optimizer = AdamW([weight], eps=1e-8, weight_decay=0.0, state_format=FLOAT16)
optimizer.step({"weight": np.array([1e-4], single)}, lr=1e-6)
print("1e-5 / (0 + 1e-6), rounded once an op:", quotient.data[0], "  the weight after Adam:", weight.data[0])

assert 9 < quotient.data[0] < 11
assert np.isfinite(weight.data[0])
assert optimizer.state["v"]["weight"][0] == 0                                  # its square is lost all the same
assert abs(weight.data[0] - 0.5) > 5e-4                                        # and so the step is many learning rates long

# %% [markdown]
# This is not a cure. The step is finite, but it is m divided by eps, which is a thousand learning rates and more. What
# helps is to store v in float32, and tutorial 03 shows it. But at least the eps is the one that was asked for.
#
# A NumPy scalar is not a Python number
# -------------------------------------
#
# A Python number takes the type of the array. A NumPy scalar insists on its own, and NumPy's functions return NumPy
# scalars. Here are the scores of an attention head with 64 channels, divided by the root of 64, in two spellings:

# %%
scores = np.ones((4, 4), single)
print("scores / math.sqrt(64):", (scores / math.sqrt(64)).dtype, "  scores / np.sqrt(64):", (scores / np.sqrt(64)).dtype)
for name, made in {"np.zeros(3)": np.zeros(3), "np.linspace(0, 1)": np.linspace(0, 1), "np.arange(3) / 2": np.arange(3) / 2,
                   "rng.standard_normal(3)": rng.standard_normal(3), "codes.mean()": codes.mean()}.items():
    print(f"{name:24}{made.dtype}")
    assert made.dtype == double

assert (scores / math.sqrt(64)).dtype == single
assert (scores / np.sqrt(64)).dtype == double
assert (ones * single(1)).dtype == single                                      # float16 beside a float32 scalar

# %% [markdown]
# Two letters, and everything after it is float64: twice the memory, and numbers that no float32 model has. Such a leak
# does not show in a loss. One has to look for it.
#
# In minillm two formats that meet are an error which names both, and one can watch every value that a training step
# rounds, with its type before the rounding.

# %%
try:
    tensor([1.0], FLOAT16) + tensor([1.0], FLOAT32)
    mixed = ""
except MiniLLMError as error:
    mixed = str(error)
print(mixed)

model = GPT(GPTShape(vocabulary=19, layers=2, heads=4, channels=32, context=16), recipe_named("float16-mixed"))
ids = rng.integers(0, 19, (4, 17), np.int32)
types = set()
with watch(lambda event: types.add((event.exact.dtype.name, event.format.name))):
    gradients = backward(model.loss(ids[:, :-1], ids[:, 1:]))
print("computed in, rounded to:", sorted(types))

assert "do not mix" in mixed
assert types == {("float32", "float16"), ("float32", "float32")}
assert {g.dtype.name for g in gradients.values()} == {"float32"}

# %% [markdown]
# A logarithm on the wrong side
# -----------------------------
#
# Many programs find the exponent of a number as the floor of its base-2 logarithm: block formats, scales of 8-bit
# numbers, histograms. Right below a power of two the logarithm is so near to a whole number that it is *rounded to it*.
# Then the floor is one too high.


# %%
def wrong_binades(dtype, span):
    """Exponents k, -span ... span, for which the number just below 2^k does not get the exponent k - 1."""
    powers = range(-span, span + 1)
    return [k for k in powers if np.floor(np.log2(np.nextafter(dtype(2.0**k), dtype(0)))) != k - 1], len(powers)


def how_many(k):
    """How many float32 numbers in a row, from the one below 2^k downward, get the exponent k."""
    below = (np.array(2.0**k, single).view(np.uint32) - np.arange(1, 65, dtype=np.uint32)).view(single)
    return int(np.argmin(np.append(np.floor(np.log2(below)) == k, False)))


for dtype, span in ((single, 20), (double, 40)):
    wrong, all_of_them = wrong_binades(dtype, span)
    print(f"{np.dtype(dtype)}: wrong below {len(wrong)} of {all_of_them} powers of two")
    assert len(wrong) > 0.8 * all_of_them

powers = list(range(-24, 25))
numbers = [how_many(k) for k in powers]
with style.applied():
    figure, axes = style.figure(height=3.0)
    axes.bar(powers, numbers, color=style.VERMILLION, width=0.8)
    axes.set(xlabel="exponent k of the power of two (2 to the k)", ylabel="float32 numbers below it\nwith a wrong exponent (count)",
             title="floor(log2(x)) just below a power of two")
    style.whole_ticks(axes.yaxis)
    print(style.save(figure, "figures/06-log2.png"))

assert numbers[powers.index(0)] == 0
assert max(numbers) >= 5

# %% [markdown]
# It is wrong below most powers of two, in float64 as well, and the farther from 1, the more numbers are hit. (How many
# depends on the library behind NumPy. Around 1 the logarithm is near zero, where floats are dense.)
#
# The exponent is not a thing to be computed. It stands in the bits, and ``frexp`` reads it. minillm rounds on bit
# patterns, and its histograms come from bits.

# %%
below = np.array([np.nextafter(single(2.0**k), single(0)) for k in powers])
seen = Microscope()
seen(Event("forward", Address("", "below", 0), below, round_to(below, FLOAT16), FLOAT16))
row = seen.rows()[0]
print("exponents seen:", row["exponents"])

assert (np.frexp(below)[1] - 1 == np.array(powers) - 1).all()
assert {e for e in row["exponents"] if e != "zero"} == {k - 1 for k in powers}

# %% [markdown]
# Does it matter? A block of numbers that share one scale, the power of two of the largest of them, gets a scale that is
# twice too large, and all its numbers lose one bit. Here is a block whose largest value lies just below 2^20, in steps
# of a 64th of its scale.

# %%
block = np.append(rng.random(4096, single) * single(2.0**20), np.nextafter(single(2.0**20), single(0)))


def block_error(exponent):
    """The root mean square error of the block in steps of 2^(exponent - 6)."""
    quantum = single(2.0 ** (exponent - 6))
    return math.sqrt(np.mean(np.square(np.rint(block / quantum) * quantum - block), dtype=double))


by_log, by_bits = int(np.floor(np.log2(block.max()))), int(np.frexp(block.max())[1] - 1)
print(f"exponent {by_log} by the logarithm, {by_bits} by the bits; error {block_error(by_log):.0f} and {block_error(by_bits):.0f}")

assert (by_log, by_bits) == (20, 19)
assert 1.9 < block_error(by_log) / block_error(by_bits) < 2.1

# %% [markdown]
# What to take along
# ------------------
#
# - The type of a result says how it is stored, and nothing about how it was computed. Name the accumulator: ``dtype=``
#   in every ``sum``, ``mean`` and ``matmul`` on narrow numbers.
# - float16 sums over the first axis stop at 2048 ones, and float32 sums over the first axis lose a per cent in a
#   million.
# - int8 times int8 is int8. Ask for int32.
# - A Python constant is rounded into the type of the array, and 0.00000001 is zero in float16.
# - A NumPy scalar is float64 and makes float64. ``math.sqrt`` does not.
# - Exponents come from bits. Never take the floor of a logarithm.
