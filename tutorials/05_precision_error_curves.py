# %% [markdown]
"""
Precision and error curves
==========================

How wrong is one rounding, and how wrong is a sum of thousands of them?

A number format has two properties that are easily mixed up: its *range* and its *precision*. And a sum has a third
that most programs do not even let you see: the *accumulator*, the number in which the sum so far is kept. This
script draws the error of each, from the values themselves:

- the error of one rounding against the size of what is rounded, for many formats and for every rounding;
- the error of a sum against the number of its terms, for many accumulators;
- what a narrow accumulator does to a product of matrices, and what repairs it.

All sums here are made by ``minillm.precision.accumulation``: products are exact, and every addition is rounded
exactly once. The script runs for less than a minute. With ``MINILLM_QUICK=1`` sums have up to 1024 terms instead of
16384 and fewer columns; what is asserted of long sums is then asserted for the full run only, the rest for both.
"""

# %%
import dataclasses
import os

import numpy as np
from threadpoolctl import threadpool_limits

from minillm import backward, round_to
from minillm.experiments.data import load_data
from minillm.experiments.options import TrainOptions
from minillm.experiments.running import new_run
from minillm.experiments.tables import table
from minillm.formats import BFLOAT16, FLOAT8_E4M3, FLOAT8_E5M2, FLOAT16, FLOAT16_E6M9, FLOAT32, TF32, format_named
from minillm.plotting.accumulation import error_curves
from minillm.precision.accumulation import dot, matmul, total
from minillm.rounding import ROUNDINGS

QUICK = os.environ.get("MINILLM_QUICK") == "1"
rng = np.random.default_rng(0)

# %% [markdown]
# One rounding
# ------------
#
# Take values of every size, from 2^-40 to 2^20, a thousand in each *binade*, that is, between one power of two and
# the next. Round them into a format and look at the error relative to the value.

# %%
POWERS = np.arange(-40, 20)
VALUES = np.ldexp(rng.uniform(1, 2, (1000, 60)), POWERS)      # float64, so that float32 has an error too


def errors(format, rounding="nearest_even"):
    """The mean relative error in each binade; overflow leaves a gap."""
    rounded = round_to(VALUES, format, rounding, 1).astype(np.float64)
    with np.errstate(invalid="ignore"):
        relative = abs(rounded / VALUES - 1).mean(0)
    return np.where(np.isfinite(relative), relative, np.nan)


FORMATS = [FLOAT32, TF32, FLOAT16, BFLOAT16, FLOAT16_E6M9, FLOAT8_E4M3, FLOAT8_E5M2]
FORMATS += [format_named(name) for name in ("float6_e3m2", "float6_e2m3", "float4_e2m1")]
curves = {f.name: (2.0**POWERS, errors(f)) for f in FORMATS}
print(error_curves(curves, "figures/05-one-rounding.png", "One rounding to nearest: how far off is it?",
                   xlabel="size of the value (a number)", ylabel="mean relative error (a share)"))

at_one = {name: y[40] for name, (_, y) in curves.items()}
assert 0 < at_one["float32"] < 2.0**-24
assert at_one["tf32"] == at_one["float16"]                           # ten mantissa bits each
assert 7 < at_one["bfloat16"] / at_one["float16"] < 9                # three bits fewer: eight times the error
assert curves["float16"][1][0] == 1 > curves["bfloat16"][1][0]       # 2^-40 is zero in float16
assert np.isnan(curves["float16"][1][-1])                            # 2^19 is infinity
assert at_one["float8_e4m3"] < at_one["float8_e5m2"]

# %% [markdown]
# Each curve is a bathtub. The flat bottom is the *precision*: one more mantissa bit halves it. The length of the
# bottom is the *range*. On the left the walls slope, because subnormal numbers lose one digit after the other, until
# everything is rounded to zero and the error is 1, which is all of it. On the right there is no wall: beyond the
# largest value the line ends.
#
# float16 and TF32 have the same bottom, bfloat16 lies eight times higher and is as long as float32's. Neither is the
# better one; it depends on what is to be stored.
#
# Formats without infinity (float6 and float4) keep their largest value instead, so their error grows up to 1 again.
#
# Six ways to round
# -----------------
#
# The same for float16 with every rounding. The mean error is one thing, the *bias* another: the mean of the signed
# error, which does not average out in a sum.

# %%
curves = {mode: (2.0**POWERS, errors(FLOAT16, mode)) for mode in ROUNDINGS}
print(error_curves(curves, "figures/05-roundings.png", "One rounding to float16, six ways",
                   xlabel="size of the value (a number)", ylabel="mean relative error (a share)"))

X = rng.uniform(1, 2, 20_000).astype(np.float32)
bias = {mode: float((round_to(X, FLOAT16, mode, 5).astype(np.float64) - X).mean()) * 2**10 for mode in ROUNDINGS}
print(table(["rounding", "bias (ulps)"], [[mode, f"{b:+.3f}"] for mode, b in bias.items()]))

assert all(abs(bias[mode]) < 0.02 for mode in ("nearest_even", "nearest_away", "stochastic"))
assert -0.52 < bias["toward_zero"] < -0.48
assert bias["down"] == bias["toward_zero"]
assert 0.48 < bias["up"] < 0.52
nearest, cut = curves["nearest_even"][1][40], curves["toward_zero"][1][40]
assert 1.9 < cut / nearest < 2.1

# %% [markdown]
# Cutting digits off is twice as wrong as rounding to nearest, which is bearable. But its bias is half an *ulp* (the
# distance to the next value), and nearest has none. Stochastic rounding, up or down by chance in proportion to the
# distance, lies between the two, and has no bias either. It will matter in sums.
#
# Deep below the smallest subnormal, nearest loses everything, an error of 1, and ``up`` makes of it something far too
# large. The stochastic mean wavers between 1 and a little more: in place of a sure loss there is a rare large gain.
#
# A sum that stops
# ----------------
#
# Count to 4096 in float16, one by one.

# %%
ones = np.ones(4096, np.float16)
for accumulator in ("float16", "float16/chunked_64", "float16/pairwise", "float16/kahan", "float32/sequential"):
    print(f"{accumulator:20} {float(total(ones, None, accumulator)):g}")

assert total(ones, None, "float16") == 2048
assert total(ones, None, "float16/chunked_64") == total(ones, None, "float16/pairwise") == 4096
assert dot(ones, ones, "float16/kahan") == 4096

# %% [markdown]
# From 2048 on, float16 has no odd numbers. 2048 + 1 lies in the middle between 2048 and 2050 and is rounded to the
# even one of the two, 2048. And so for ever. Each addition is as exact as it can be, the sum is half of what it
# should be. It is called **swamping**.
#
# Note that nothing warns. And note what helps: sums of 64 first, then the sum of those (**chunks**, Wang et al.
# 2018, arXiv 1812.08011); pairs of pairs of pairs; or remembering what each addition lost (Kahan).
#
# Error against the number of terms
# ---------------------------------
#
# Sums of values between 0 and 2. Every point is the mean over many sums.

# %%
LONGEST, COLUMNS = (1024, 16) if QUICK else (16384, 64)
LENGTHS = [2**n for n in range(3, LONGEST.bit_length())]
POSITIVE = rng.uniform(0, 2, (LONGEST, COLUMNS)).astype(np.float32)
ACCUMULATORS = ["float16", "bfloat16", "float16_e6m9", "float16/toward_zero", "float16/stochastic", "float16/neumaier",
                "float16/chunked_64", "float16/pairwise", "float16/kahan"]


def error_of_sums(x, accumulator):
    """For each number of terms, the mean error relative to the sum of sizes."""
    found = []
    for K in LENGTHS:
        exact = x[:K].sum(0, dtype=np.float64)
        sizes = abs(x[:K]).sum(0, dtype=np.float64)
        found.append((abs(total(x[:K], 0, accumulator, K) - exact) / sizes).mean())
    return LENGTHS, found


curves = {name: error_of_sums(POSITIVE, name) for name in ACCUMULATORS}
print(error_curves(curves, "figures/05-sums.png", "Sums of K values between 0 and 2",
                   xlabel="number of terms K (a number)", ylabel="mean relative error (a share)"))
last = {name: y[-1] for name, (_, y) in curves.items()}
print(table(["accumulator", f"error at {LONGEST} terms"], [[name, f"{y:.3%}"] for name, y in last.items()]))

assert last["bfloat16"] > 0.4
assert last["float16/kahan"] < 0.001
assert last["float16/pairwise"] < 0.001
assert last["float16/toward_zero"] > 10 * last["float16/pairwise"]
if not QUICK:
    assert 0.73 < last["float16"] < 0.77                             # it stops at 4096, a quarter of 16384
    assert 0.86 < last["float16_e6m9"] < 0.89                        # at 2048, an eighth
    assert last["float16/stochastic"] < 0.1
    assert last["float16/chunked_64"] < 0.003

# %% [markdown]
# - In **sequential** sums the error grows with K until the sum stops; then it runs towards 1. bfloat16 stops first:
#   at 512, where half of its ulp reaches 2.
# - **Stochastic** rounding never stops. A small term still moves a large sum now and then, and in the mean by the
#   right amount.
# - **Cutting off** has its bias added up in every step and fails long before it stops.
# - **Chunks** of 64 behave like a sum of 64 followed by a sum of K / 64. When that becomes too long, they stop as
#   well; then one needs chunks of chunks, and at the end of that road lies the **pairwise** sum.
# - **Kahan** does not depend on K at all. **Neumaier** keeps what was lost in a sum of its own, which is kept in
#   float16 too, so that this second sum stops in its turn. It is meant for a wide format with cancellation, not for
#   a narrow one.
#
# If signs alternate at random, the sum stays small, and hardly anything is swamped:

# %%
SIGNED = rng.standard_normal((LONGEST, COLUMNS)).astype(np.float32)
curves = {name: error_of_sums(SIGNED, name) for name in ACCUMULATORS}
print(error_curves(curves, "figures/05-signed-sums.png", "Sums of K values of both signs (standard normal)",
                   xlabel="number of terms K (a number)", ylabel="mean error over the sum of sizes (a share)"))
signed = {name: y[-1] for name, (_, y) in curves.items()}

assert signed["float16"] < 0.01 < last["bfloat16"]
assert signed["float16/pairwise"] < signed["float16"]
assert signed["float16/kahan"] < signed["float16"]

# %% [markdown]
# This is why narrow accumulators seem to work: dot products of a network at its beginning are of this kind. Mean
# activations that are not zero, as behind a ReLU, or a gradient summed over thousands of tokens that agree, are of
# the other.
#
# Fourteen digits and a promotion
# -------------------------------
#
# One processor for FP8 products adds 32 products at once and keeps the sum in 14 digits, cutting off the rest
# (DeepSeek-V3, arXiv 2412.19437). For long sums that is not enough, so its users empty the accumulator into a
# float32 number every 128 terms.

# %%
K, N = (1024, 32) if QUICK else (4096, 64)
a = round_to(rng.standard_normal((N, K)).astype(np.float32), FLOAT8_E4M3)
b = round_to(rng.standard_normal((K, N)).astype(np.float32), FLOAT8_E4M3)
exact = a.astype(np.float64) @ b.astype(np.float64)
worst = {name: abs(matmul(a, b, f"float22_e8m13/{name}") - exact).max() / abs(exact).max()
         for name in ("toward_zero/block_32", "toward_zero/block_32/promote_128", "block_32", "block_32/promote_128")}
print(table(["accumulator", "worst error (of the largest)"], [[name, f"{y:.4%}"] for name, y in worst.items()]))

assert worst["toward_zero/block_32"] > 5 * worst["toward_zero/block_32/promote_128"]
assert worst["toward_zero/block_32"] > 3 * worst["block_32"]
if not QUICK:
    assert 0.0015 < worst["toward_zero/block_32"] < 0.004
    assert worst["toward_zero/block_32/promote_128"] < 0.0002

# %% [markdown]
# Promotion makes the error about twenty times smaller. So would rounding to nearest in place of cutting off, to a
# good part: the bias is what adds up.
#
# In training
# -----------
#
# A linear layer has three products: the *forward* one, the one for the gradient of its *input*, and the one for the
# gradient of its *weights*. Each can have an accumulator of its own. Take one with five significant bits, ``e8m4``,
# put it into one product of a small GPT at a time, and see how far the gradients of the first step are off.

# %%
threadpool_limits(1)        # products as small as these are slower on two threads than on one
options = TrainOptions(layers=2, heads=4, channels=64, context=32, batch=4 if QUICK else 8)
data = load_data(options)


def first_gradients(products):
    """The gradients of the first step, all of them as one vector."""
    objective = (trainer := new_run(dataclasses.replace(options, products=products), data).trainer).objective
    objective.ops.context.begin(0)
    gradients = backward(objective.loss(*trainer.batch(0, 0)))
    return np.concatenate([g.ravel() for g in gradients.values()]).astype(np.float64)


reference = first_gradients("float32")
off = {}
for products in ("float16", "e8m4", "forward=e8m4", "input_gradient=e8m4", "weight_gradient=e8m4", "e8m4/chunked_16"):
    off[products] = np.linalg.norm(first_gradients(products) - reference) / np.linalg.norm(reference)
print(table(["accumulator", "gradient off by"], [[name, f"{share:.2%}"] for name, share in off.items()]))

assert off["float16"] < 0.01 < off["e8m4"]
assert off["e8m4/chunked_16"] < off["e8m4"] / 2
assert max(off[f"{role}=e8m4"] for role in ("forward", "input_gradient", "weight_gradient")) < 1.2 * off["e8m4"]

# %% [markdown]
# None of the gradients is useless, and none of the accumulators stops training. But ``e8m4`` has a price, which
# ``minillm.experiments.accumulators`` puts into a figure: the same model, trained for 150 steps, from two seeds.
#
# - float16, bfloat16, and ``e8m4`` in chunks of 16 end within a few thousandths of a nat of float32.
# - ``e8m4`` in all three products costs a tenth of a nat.
# - In the weight-gradient product alone it costs 0.06, in the forward product 0.03, in the input-gradient product 0.02
#   or less. The weight gradient sums over all tokens of a batch, which is the longest sum of the three.
#
# So it is not the digits that are missing but the order: chunks of 16 in the same five bits repair all of it.
#
# What to take along
# ------------------
#
# - Range and precision are two things. The error curve of a format shows both: how low it lies, and how far it goes.
# - Swamping depends on the sum, not on its terms: a sequential sum stops when its ulp is twice as large as what comes.
# - The order is as good as digits. Pairs and chunks cost nothing and gain more than a wider format.
# - A bias adds up with K, chance with the root of K. Therefore nearest or stochastic, and never cut off.
# - To train a model with any of these accumulators, give their name to ``minillm train --products``.
