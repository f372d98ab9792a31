# %% [markdown]
"""
Master weights, and how to do without
=====================================

A training step changes a weight by little: by about one learning rate, with Adam. A narrow format has few digits. If
the change is less than half of the distance to the next number, the new weight is rounded back to the old one, and the
step has not happened. It is not an error that averages out. The same weight may lose every one of its updates.

The usual remedy is a float32 copy of the weights, the **master weights**, that collects the updates. This tutorial
measures what is lost without it, and what two other remedies save, which keep no float32 copy:

- **stochastic rounding**: round up or down at random, so that the *expected* weight is the exact one;
- **Kahan's compensation**: keep what rounding took away, and add it back at the next update.

Then it goes on to the other numbers that an optimizer keeps for each weight, its moments: why eps = 1e-8 is a trap in
float16, why bfloat16 moments can be stuck as well, and how Adam's moments fit into eight bits.

You should know what an ulp and a rounding are (tutorials 03 and 04). Losses are in nats a character, as differences to
float32. All quoted numbers are asserted. The script runs for less than a minute. With ``MINILLM_QUICK=1`` the GPT is
trained for 30 steps of 8 windows instead of 100 steps of 12, and least squares for 1000 steps instead of 2000. Then it
is only asserted that bfloat16 to nearest is the farthest from float32, and that the linear map ruins the run.
"""

# %%
import dataclasses
import math
import os

import numpy as np
from threadpoolctl import threadpool_limits

from minillm import BFLOAT16, FLOAT16, FLOAT32, Tensor, format_named, recipe_named, round_to, watch
from minillm.experiments.data import load_data
from minillm.experiments.least_squares import least_squares
from minillm.experiments.options import TrainOptions
from minillm.experiments.running import follow, new_run
from minillm.experiments.tables import table
from minillm.optim import DYNAMIC8, LINEAR8, SGD, AdamW
from minillm.plotting.training import loss_curves
from minillm.plotting.updates import descents, eight_bit_maps, lost_updates
from minillm.precision.master_weights import lost_share, measured_lost_share
from minillm.training.memory import measure
from minillm.training.metrics import curves

QUICK = os.environ.get("MINILLM_QUICK") == "1"
threadpool_limits(1)        # products as small as these are slower on two threads than on one

# %% [markdown]
# An update that vanishes
# -----------------------
#
# bfloat16 has seven digits after the leading one. Behind 1 comes 1 + 2^-7, which is 1.0078125. Add a thousandth to 1,
# a hundred times:

# %%
w = np.float32(1)
for _ in range(100):
    w = round_to(w + np.float32(0.001), BFLOAT16)
print(f"1 and a hundred times 0.001, in bfloat16: {float(w)}")

assert BFLOAT16.ulp(1.0) == 2.0**-7
assert w == 1

# %% [markdown]
# What matters is the size of an update compared with its weight. In a format with p digits, the weights from 1 to 2
# lie 2^-p apart. An update r w is lost if it is less than half of that, which is so for every weight below
# 2^-(p+1) / r. If weights are spread evenly from 1 to 2, the share that loses its update is therefore
#
# 2^-(p+1) / r - 1, or 0 or 1 where that is less or more.
#
# It is 1 up to r = 2^-(p+2), one half at 2^-(p+1) / 1.5, and 0 from 2^-(p+1) on. The same holds between any two powers
# of two. So one can count: take *every* weight from 1 to 2, and try.

# %%
ratios = np.arange(-14, -3, 0.25)
names = ("float16", "bfloat16", "float8_e4m3")
print(lost_updates({name: {"log2_ratio": ratios.tolist(),
                           "expected": [lost_share(r, format_named(name)) for r in ratios],
                           "counted": [measured_lost_share(r, format_named(name)) for r in ratios]} for name in names},
                   "figures/08-lost-updates.png"))

for name in names:
    format = format_named(name)
    half = -(format.mantissa_bits + 1) - math.log2(1.5)
    print(f"{name}: half of the updates are lost at 2^{half:.2f} of the weight, one in {2**-half:,.0f}")
    assert max(abs(lost_share(r, format) - measured_lost_share(r, format)) for r in ratios) <= 1.25 * format.eps

assert [lost_share(-12, FLOAT16), lost_share(-11, FLOAT16)] == [1, 0]
assert [lost_share(-9, BFLOAT16), lost_share(-8, BFLOAT16)] == [1, 0]
assert 3000 < 2 ** (11 + math.log2(1.5)) < 3100

# %% [markdown]
# So in float16 the point at which half of the updates are lost lies between 2^-12 and 2^-11, in bfloat16 between 2^-9
# and 2^-8: an update by a four-hundredth of the weight. Adam's updates are about a learning rate, often 0.001 or less.
# A weight of 0.02 can take them. A weight near 1 cannot.
#
# Which weights that is
# ---------------------
#
# In a GPT, the gains of the layer norms start at 1. So train one with everything in bfloat16: weights, activations,
# gradients, moments. After the warm-up, watch a step. An observer is told of each new weight before it is rounded
# (``exact``) and after.

# %%
steps = 30 if QUICK else 100
options = TrainOptions(layers=1, heads=4, channels=64, context=32, batch=8 if QUICK else 12, steps=steps,
                       warmup=steps // 10, lr=1e-3, min_lr=1e-4, eval_every=0 if QUICK else steps // 4, watch_every=0)
data = load_data(options)
data = dataclasses.replace(data, validation=data.validation[:10_000])         # enough for differences between runs


def start(name):
    """A run that has not made a step."""
    return new_run(options, data, recipe_named(name))


def train(name):
    """A run, trained to its end."""
    run = start(name)
    follow(run, quiet=True)
    return run


pure = start("bfloat16-pure")
for _ in range(options.warmup):
    pure.trainer.advance()
before, lost, events = {p.name: p.data for p in pure.model.parameters()}, {}, []
with watch(events.append):
    pure.trainer.advance()
for event in events:
    if event.phase == "update" and event.address.op == "weight":
        name = event.address.scope
        lost[name] = float(np.mean((event.rounded == before[name]) & (event.exact != before[name])))
print(table(["weights", "typical size", "updates lost"],
            [[n, f"{np.abs(before[n]).mean():.3f}", f"{share:.1%}"] for n, share in lost.items()]))

gains = [name for name in lost if name.endswith("gain")]
matrices = [name for name in lost if name.endswith("weight")]
assert all(lost[name] == 1 for name in gains)
assert all(0.01 < lost[name] < 0.4 for name in matrices)

# %% [markdown]
# Every gain has lost its update, and will lose all others: the learning rate never is above 0.001, and from 1 down to
# the next number it is 2^-8, of which half is 0.002. Of the matrices, a few weights in a hundred lose theirs: the large
# ones.
#
# Three remedies, on the smallest problem
# ---------------------------------------
#
# To see what that does and what helps, take a problem in which nothing else can go wrong: linear least squares with
# 16 weights and noise of 0.01 in the targets, so that no weights reach an error below 0.0001. Plain stochastic gradient
# descent, learning rate 0.003, batches of 32. Five ways to keep the weights, the same batches for all:
#
# - ``float32``;
# - ``master weights``: the weights are float32, but products see them rounded to bfloat16;
# - ``kahan``: the weights are bfloat16, and beside each lies a second bfloat16 number: what its last rounding took;
# - ``stochastic``: the weights are bfloat16, and rounded up or down at random;
# - ``nearest``: the weights are bfloat16, rounded to nearest.

# %%
squares = least_squares(steps=1000 if QUICK else 2000)
end = {name: float(np.mean(record["loss"][-20:])) for name, record in squares.items()}
print(table(["weights", "mean squared error"], [[name, f"{loss:.2e}"] for name, loss in end.items()]))
print(descents(squares, "figures/08-least-squares.png"))

assert end["nearest"] > 0.1
if not QUICK:
    assert 0.9e-4 < end["float32"] < 1.1e-4
    assert all(1.1 < end[name] / end["float32"] < 2 for name in ("master weights", "kahan"))
    assert 1.5 < end["stochastic"] / end["float32"] < 4
    assert end["nearest"] > 500 * end["stochastic"]

# %% [markdown]
# To nearest, the descent comes to a halt at an error of 0.4, thousands of times that of the others. It has not
# converged: it is stuck, far from the solution, since what remains of the gradient is too small for the digits.
#
# Master weights and Kahan's compensation end within a factor of two of float32, at the error that weights of eight
# digits have. Stochastic rounding ends a little higher: its weights never come to rest.
#
# Stochastic: right on average
# ----------------------------
#
# A value a quarter of the way from one bfloat16 number to the next is rounded up with probability 1/4. So each single
# rounding is *worse* than to nearest, but the mean over many is exact. Try one update on forty thousand equal weights:

# %%
n, quarter = 40_000, BFLOAT16.eps / 4
w = Tensor(np.ones(n, np.float32), BFLOAT16, name="w")
SGD([w], momentum=0.0, update="stochastic", seed=1).step({"w": np.full(n, -quarter, np.float32)}, lr=1.0)
up = float(np.mean(w.data > 1))
print(f"the update is {quarter:.6f}; {up:.2%} of the weights went up, to {float(w.data.max())}; the mean moved by "
      f"{up * BFLOAT16.eps:.6f}")

assert set(w.data.tolist()) == {1.0, 1 + BFLOAT16.eps}
assert abs(up - 0.25) < 4 * math.sqrt(0.25 * 0.75 / n)               # four standard deviations

# %% [markdown]
# The random bits are a function of the seed, the number of the attempt and the name of the weight, and of nothing else.
# So a run that was stopped and resumed goes on with the same bits, and any step can be made again.
#
# Kahan: nothing is thrown away
# -----------------------------
#
# The compensation is what the weight lacks. Add a tenth of a step 25 times to a weight of 1:

# %%
w = Tensor(np.ones(1, np.float32), BFLOAT16, name="w")
optimizer = SGD([w], momentum=0.0, update="kahan")
for step in range(1, 26):
    optimizer.step({"w": np.full(1, -BFLOAT16.eps / 10, np.float32)}, lr=1.0)
    if step % 5 == 0:
        kept = float(optimizer.state["compensation"]["w"][0])
        print(f"after {step:2} tenths of an ulp: weight 1 + {(float(w.data[0]) - 1) / BFLOAT16.eps:.0f} ulp, kept beside it "
              f"{kept / BFLOAT16.eps:+.3f} ulp")
total = (float(w.data[0]) - 1 + kept) / BFLOAT16.eps

assert abs(total - 2.5) < 0.01

# %% [markdown]
# The GPT
# -------
#
# Now train it: in float32, with master weights (``bfloat16-mixed``), and three times with everything in bfloat16.

# %%
bfloats = ("bfloat16-mixed", "bfloat16-pure", "bfloat16-stochastic", "bfloat16-kahan")
runs = {name: train(name) for name in ("float32", *bfloats)}
reference = runs["float32"].val_loss


def above(run):
    """How far a run's validation loss lies above that of float32, in nats."""
    return math.inf if run.trainer.diverged_at else run.val_loss - reference


gap = {name: above(run) for name, run in runs.items()}


def bytes_of(run):
    """Megabytes of weights, and of what the optimizer keeps, in the recipe's own formats."""
    sizes = measure(run.trainer.objective, run.trainer.batch(0, 0))["bytes"]
    return sizes["weights"] / 1e6, sizes["optimizer"] / 1e6


print(table(["recipe", "minus float32 (nats)", "weights (MB)", "optimizer (MB)"],
            [[name, f"{gap[name]:+.4f}", *(f"{size:.2f}" for size in bytes_of(run))] for name, run in runs.items()]))
print(loss_curves({name: curves(run.records) | {"diverged_at": None} for name, run in runs.items()}, "figures/08-gpt.png",
                  "One GPT in bfloat16, by the way weights are written", reference="float32" if not QUICK else None))

assert gap["bfloat16-pure"] == max(gap.values()) > 0.005
if not QUICK:
    assert 0.02 < gap["bfloat16-pure"] < 0.08
    assert all(abs(gap[name]) < 0.006 for name in bfloats if name != "bfloat16-pure")
    assert all((p.data == 1).all() for p in runs["bfloat16-pure"].model.parameters() if p.name.endswith("gain"))
weights, moments = bytes_of(runs["float32"])
assert math.isclose(sum(bytes_of(runs["bfloat16-kahan"])), 2 / 3 * (weights + moments), rel_tol=0.01)
assert math.isclose(sum(bytes_of(runs["bfloat16-stochastic"])), 1 / 2 * (weights + moments), rel_tol=0.01)

# %% [markdown]
# To nearest, the run lost a few hundredths of a nat, and every gain still is 1 at the end. Written stochastically, or
# with a compensation, the same formats end within a few thousandths of float32, no farther than with master weights.
#
# That is remarkable, since those two have no float32 number in them that lasts from one step to the next: not the
# weights, not the moments. For each weight, float32 keeps 12 bytes (weight, m, v), bfloat16 with a compensation 8, and
# bfloat16 with stochastic rounding 6.
#
# The trap of eps
# ---------------
#
# Adam divides by sqrt(v) + eps, with eps = 1e-8, so that nothing is divided by zero. In float16 the smallest number is
# 2^-24, about 6e-8. Written in float16 from end to end, Adam has no eps at all:


# %%
def adam_in_float16(gradient, eps):
    """One step of Adam, in learning rates, every operation in float16."""
    f = np.float16
    m, v = f(0.1) * f(gradient), f(0.01) * (f(gradient) * f(gradient))
    with np.errstate(all="ignore"):
        return float(f(m / f(0.1)) / (np.sqrt(f(v / f(0.01))) + f(eps)))


def adam_here(gradient, eps):
    """The same with float16 weights and moments, as this package computes it."""
    w = Tensor(np.zeros(1, np.float16), FLOAT16, name="w")
    AdamW([w], eps=eps, weight_decay=0.0, state_format=FLOAT16).step({"w": np.full(1, gradient, np.float16)}, lr=2.0**-10)
    return abs(float(w.data[0])) * 2.0**10


print(f"1e-8 in float16 is {float(np.float16(1e-8))}")
print(table(["gradient", "all in float16", "here, eps 1e-8", "here, eps 1e-4"],
            [[g, f"{adam_in_float16(g, 1e-8):.4g}", f"{adam_here(g, 1e-8):.4g}", f"{adam_here(g, 1e-4):.4g}"]
             for g in (0.1, 1e-3, 1e-5, 0.0)]))

assert np.float16(1e-8) == 0
assert math.isinf(adam_in_float16(1e-5, 1e-8))
assert math.isnan(adam_in_float16(0.0, 1e-8))
assert adam_here(0.0, 1e-8) == 0
assert math.isfinite(adam_here(1e-5, 1e-8))
assert adam_here(1e-5, 1e-4) < 1

# %% [markdown]
# A gradient of zero gives 0 / 0: a single row of an embedding whose token did not occur makes the whole model NaN.
#
# Here eps is a Python number and added in float32, whatever the moments are stored in, so 0 / (0 + eps) is 0. That does
# not repair a v that was rounded to zero: the step for a gradient of 1e-5 is finite and absurd. Moments in float16 want
# a larger eps (a recipe may set it), or a wider format. bfloat16 has float32's range, and none of this.
#
# A moment that cannot fall
# -------------------------
#
# It has another trap instead. v is a running mean: each step, v loses a share 1 - beta2 of itself and gains as much of
# the squared gradient. With beta2 = 0.999 that share is less than half an ulp of bfloat16. So v can still grow when a
# gradient is large, but never fall again:

# %%
for format, beta2 in ((FLOAT32, 0.999), (BFLOAT16, 0.999), (BFLOAT16, 0.99)):
    w = Tensor(np.zeros(1, np.float32), name="w")
    optimizer = AdamW([w], betas=(0.9, beta2), state_format=format)
    for gradient in [1.0] + [0.0] * 500:
        optimizer.step({"w": np.full(1, gradient, np.float32)}, lr=1e-3)
    share = float(optimizer.state["v"]["w"][0]) / (1 - beta2)
    print(f"v in {format.name}, beta2 = {beta2}: after 500 steps without a gradient {share:.2g} of it is left")
    assert {(FLOAT32, 0.999): 0.60 < share < 0.61, (BFLOAT16, 0.999): 0.99 < share < 1.01,
            (BFLOAT16, 0.99): share < 0.3}[format, beta2]

# %% [markdown]
# The recipes above have beta2 = 0.99, as is usual for small models. Whoever takes the textbook's 0.999 should keep v in
# float32, or round it stochastically, too.
#
# Eight bits for a moment
# -----------------------
#
# m and v take eight bytes a weight in float32. One byte each is enough, if it is well used. Cut the array into blocks of
# 256, divide each by its largest magnitude, and store for each entry the number of the nearest of 256 fixed values
# between -1 and 1. These values are the *map*. The **linear** one spaces them evenly. The **dynamic** one (Dettmers and
# others, arXiv 2110.02861) has seven decades, each cut into twice as many parts as the one below it: the values of the
# highest are 0.7 % of the largest magnitude apart, and the smallest is 0.000000325 of it.
#
# Entries of v are squares, so they spread over twice as many decades as gradients do. Take gradients with sizes over
# four decades, v over eight:

# %%
rng = np.random.default_rng(0)
v = ((rng.standard_normal(2**17) * 10 ** rng.uniform(-4, 0, 2**17)) ** 2).astype(np.float32).reshape(-1, 256)
shares = (v / v.max(1, keepdims=True)).ravel()
sizes = np.geomspace(1e-11, 1, 4000).astype(np.float32)
maps = {}
for name, map in (("linear", LINEAR8), ("dynamic", DYNAMIC8)):
    blocks = np.concatenate([np.ones((16, 1), np.float32), sizes.reshape(16, 250)], 1)          # each with a largest of 1
    padded = np.pad(blocks, ((0, 0), (0, 5)))
    decoded = map.decode(*map.encode(padded, signed=False), signed=False)[:, 1:251].ravel()
    error = np.abs(decoded - sizes) / sizes
    worst = np.maximum.accumulate(error.reshape(-1, 20).max(1)[::-1])[::-1]
    back = map.decode(*map.encode(v, signed=False), signed=False)
    maps[name] = {"size": sizes[10::20].tolist(), "error": worst.tolist(), "zero": float(np.mean(back == 0))}
print(eight_bit_maps(maps, "figures/08-eight-bits.png", shares))

assert 0.75 < maps["linear"]["zero"] < 0.80
assert 0.25 < maps["dynamic"]["zero"] < 0.29
error_at = {name: np.interp([0.01, 1e-6], record["size"], record["error"]) for name, record in maps.items()}
assert error_at["dynamic"][0] < 0.07
assert error_at["dynamic"][1] < 0.5
assert 0.15 < error_at["linear"][0] < 0.25
assert np.isclose(LINEAR8.values(signed=False)[1] / 2, 1 / 510)
assert np.isclose(np.diff(DYNAMIC8.values(signed=False))[-10], 0.9 / 128)
assert DYNAMIC8.values(signed=False)[1] == np.float32(3.25e-7)

# %% [markdown]
# The linear map sends more than three quarters of the entries to zero, the dynamic one about a quarter. And its error
# grows slowly: at most 7 % for entries down to a hundredth of the largest, at most half down to a millionth. With the
# linear map it is about 20 % at a hundredth, and what is below a 510th is gone.
#
# Does it matter? Arrays of fewer than 4096 entries stay float32, as published; here that leaves the matrices.

# %%
eight = {name: train(f"float32-adam8-{name}") for name in ("dynamic", "linear")}
for name, run in eight.items():
    print(f"{name:8} map: {above(run):+9.4f} nats, optimizer {bytes_of(run)[1]:.2f} MB (float32: {moments:.2f})")

assert above(eight["linear"]) > reference
assert bytes_of(eight["dynamic"])[1] < 0.3 * moments
if not QUICK:
    assert abs(above(eight["dynamic"])) < 0.02

# %% [markdown]
# With the dynamic map the run ends where float32 does, with a quarter of the memory. With the linear map it is ruined.
# A v that was stored as zero starts again from this step's square alone, a hundredth of what it should be or less, and
# where the gradient happens to be small, m / sqrt(v) is a step of many learning rates.
#
# What to take along
# ------------------
#
# - An update is lost below half an ulp of its weight: half of them at one 3000th of the weight in float16, at one 384th
#   in bfloat16. It hits large weights first, and gains at 1 before all.
# - Master weights, Kahan's compensation and stochastic rounding all cure that. They differ in bytes: a float32 copy, a
#   second narrow number, nothing.
# - eps belongs to float32. Written in float16 it is zero, and Adam divides by zero.
# - A running mean is an update as well. Its share, 1 - beta2, must not be below half an ulp.
# - Eight bits are enough for moments if their map follows the sizes, and not if it is linear.
