# %% [markdown]
"""
Training with quantization
==========================

Weights that know what will become of them.

A model can be trained in float32 and rounded to codes afterwards: *post-training quantization*. Or rounding can be part
of the training: each forward pass computes with the values that codes stand for, and the float32 weights behind them
move until the *rounded* model is good. This script shows how that is possible at all, since rounding has no slope, and
what it brings:

- the straight-through estimator, on one weight;
- LSQ, where the step of the grid is learned, too;
- a GPT fine-tuned for int4, beside the same GPT converted to int4 by three methods;
- BitNet b1.58, whose weights are -1, 0 or 1 times a scale;
- int8 products in training: which of the three products may be in int8, and which had better not.

It trains small GPTs and runs for about two minutes. With ``MINILLM_QUICK=1`` it trains one seed for a few steps, and
what is asserted of losses is asserted for the full run only.
"""

# %%
import dataclasses
import os

import numpy as np

from minillm.autograd.context import Context
from minillm.autograd.rule import RULES
from minillm.autograd.rules.products import PRODUCTS
from minillm.autograd.tensor import apply, backward, tensor
from minillm.conversion.calibration import calibrate
from minillm.conversion.convert import Conversion, convert
from minillm.conversion.int8_model import under
from minillm.data.batches import random_batch
from minillm.experiments.data import load_data
from minillm.experiments.options import TrainOptions
from minillm.experiments.running import follow, new_run
from minillm.experiments.tables import table
from minillm.formats import FLOAT32
from minillm.plotting.quantization import over
from minillm.plotting.quantized_training import among_codes, by_seed
from minillm.precision.recipe import Recipe
from minillm.quantization.error import sqnr_db
from minillm.quantization.products import quantized_product
from minillm.recipes import PRESETS
from minillm.training.evaluation import validation_loss
from minillm.training.quantized_checkpoint import float32_bytes, quantized_file

QUICK = os.environ.get("MINILLM_QUICK") == "1"
context = Context()


def leaf(values, name):
    """A float32 tensor that gets a gradient."""
    return tensor(np.asarray(values, np.float32), FLOAT32, name=name)


def on_grid(x, step):
    """Values of the codes -8 ... 7 times a step."""
    return apply(RULES["lsq"], x, step, context=context, lowest=-8, highest=7)


# %% [markdown]
# One weight
# ----------
#
# A weight w is rounded to whole numbers, and its value should be 1.4. The loss (round(w) - 1.4)^2 is a staircase: its
# slope is 0 nearly everywhere, so there is nothing to descend. The *straight-through estimator* leaves rounding out of
# the gradient: the slope of the loss where round(w) is, applied to w.

# %%
TARGET = 1.4
one = leaf([1.0], "step")


def loss_and_slope(w):
    """The loss of one weight, its value on the grid, and the gradient that goes straight through."""
    x = leaf([w], "w")
    value = on_grid(x, one)
    loss = ((value - TARGET) * (value - TARGET)).sum()
    return loss.item(), float(value.data[0]), float(backward(loss)["w"][0])


w, seen = 0.2, []
for _ in range(140):
    loss, value, slope = loss_and_slope(w)
    seen.append((w, value))
    w -= 0.02 * slope
below, above = loss_and_slope(0.3)[0], loss_and_slope(0.3 + 1e-3)[0]
weights, values = np.array(seen).T
print(f"at w = 0.3 the loss rises by {above - below:g} in a small step, and the estimated slope is {loss_and_slope(0.3)[2]:.1f}")
print(f"w ends in {weights[80:].min():.2f} ... {weights[80:].max():.2f}; the mean of its rounded values there is "
      f"{values[80:].mean():.2f}")
print(over({"w": (range(140), weights), "w rounded": (range(140), values)}, "figures/13-one-weight.png",
           "One weight, rounded to whole numbers, that should be 1.4", xlabel="step (a number)",
           ylabel="value (a number)", markers=False, level=TARGET))

assert above == below                                                # the true slope is 0
assert loss_and_slope(0.3)[2] < -2                                   # the estimate says: upwards
assert 1.4 < weights[80:].min() < 1.5 < weights[80:].max() < 1.6
assert set(values[80:]) == {1.0, 2.0}
assert abs(values[80:].mean() - TARGET) < 0.05

# %% [markdown]
# The weight climbs to the place where rounding goes from 1 to 2 and stays there, going to and fro. Neither 1 nor 2 is
# right, and it spends just as much time on each that the mean is. In a model many weights do so; a learning rate that
# falls towards the end brings them to rest.
#
# A step that is learned
# ----------------------
#
# LSQ (Esser et al. 2019) trains the step of the grid like a weight. With v = x / step, a rounded value has the slope
# round(v) - v by the step where v lies on the grid, and -8 or 7 beyond it. Is that a slope of anything? Here is the
# squared error of rounding 4,096 normal numbers to 16 codes, as a function of the step. It is not smooth: each value
# jumps from code to code. So differences are taken over a tenth of the step.

# %%
x = np.random.default_rng(0).standard_normal(4096, np.float32)


def error_and_slope(step):
    """The mean squared error of rounding x to a step, and LSQ's slope of it."""
    learned = leaf([step], "step")
    off = on_grid(tensor(x, FLOAT32), learned) - tensor(x, FLOAT32)
    loss = (off * off).sum() * (1 / x.size)
    return loss.item(), float(backward(loss)["step"][0]) * np.sqrt(x.size * 7)     # LSQ divides its gradient by this


STEPS = np.geomspace(0.2, 1, 40)
errors, slopes = np.array([error_and_slope(step) for step in STEPS]).T
differences = np.array([(error_and_slope(1.05 * s)[0] - error_and_slope(0.95 * s)[0]) / (0.1 * s) for s in STEPS])
best = STEPS[errors.argmin()]
balance = STEPS[np.flatnonzero(slopes > 0)[0]]                       # where LSQ's slope changes its sign
paper = 2 * abs(x).mean() / np.sqrt(7)                               # the first step that the paper takes
print(f"least error at a step of {best:.2f}; LSQ's slope is 0 at {balance:.2f}; the paper begins at {paper:.2f}, with "
      f"{10 * np.log10(error_and_slope(paper)[0] / errors.min()):.1f} dB more noise")
print(over({"LSQ's slope": (STEPS, slopes), "differences of the error": (STEPS, differences)}, "figures/13-slope-of-a-step.png",
           "Slope of the squared error by the step, 4 bits", xlabel="step (in standard deviations)",
           ylabel="slope (squared error by step)", markers=False, level=0))

assert abs(balance / best - 1) < 0.15
assert abs(slopes - differences).max() < 0.05 * abs(slopes).max()
assert paper > 1.5 * best

# %% [markdown]
# The estimate lies on the differences, and has its zero near the least error, where clipping and rounding balance. But
# the step must get there. Adam moves a parameter by about its learning rate, whatever the size of its gradient; the
# paper's first step is nearly twice too long for 4 bits; and weights grow in training. So the recipe ``int4-qat``
# learns something nearer: for each group of 32 weights the *share* of the group's range that the grid spans. It begins
# at 1, where nothing is clipped, and follows the weights by itself.
#
# A GPT for int4
# --------------
#
# A fair comparison gives both sides the same number of steps. A float32 model is trained; then it is trained on for a
# while, in float32 or under ``int4-qat``; then it is converted to int4 in groups of 32. (On the command line:
# ``minillm train --from RUN --recipe int4-qat``, and ``minillm quantize --scheme int4 --granularity group``, which takes
# over the steps that training has learned.)

# %%
SEEDS = [1] if QUICK else [1, 2, 3]
FIRST, MORE = (12, 6) if QUICK else (300, 100)
OPTIONS = TrainOptions(layers=1 if QUICK else 2, heads=4, channels=64, steps=FIRST, warmup=20, eval_every=0, watch_every=0)
FURTHER = {"steps": MORE, "lr": 5e-4, "min_lr": 2e-5, "warmup": 5}
data = load_data(OPTIONS)
text = data.validation[:64 * (20 if QUICK else 200)]
INT4 = {name: Conversion("int4", method, "group") for name, method in
        (("rounded", "rtn"), ("GPTQ", "gptq"), ("AWQ", "awq"))}


def trained(options, recipe, weights=None):
    """A model after its steps under a recipe; it begins with the weights of another, where one is given."""
    run = new_run(options, dataclasses.replace(data, validation=text), recipe, weights)
    follow(run, quiet=True)
    return run.model


def loss_of(model):
    return validation_loss(model, text)[0]


def converted(model, how, inputs):
    return convert(model, how, inputs)[0]


firsts, above_float32 = {}, {name: [] for name in (*INT4, "int4-qat")}
for seed in SEEDS:
    options = dataclasses.replace(OPTIONS, seed=seed)
    first = firsts[seed] = trained(options, PRESETS["float32"])
    further = dataclasses.replace(options, **FURTHER)
    exact, aware = (trained(further, PRESETS[name], first) for name in ("float32", "int4-qat"))
    inputs = calibrate(exact, [random_batch(data.train, 32, options.context, (seed, i)) for i in range(2)])
    for name, how in INT4.items():
        above_float32[name].append(loss_of(converted(exact, how, inputs)) - loss_of(exact))
    four_bits = converted(aware, INT4["rounded"], inputs)
    above_float32["int4-qat"].append(loss_of(four_bits) - loss_of(exact))
rows = [[name, *(f"{gap:+.4f}" for gap in gaps), f"{np.mean(gaps):+.4f}"] for name, gaps in above_float32.items()]
print(table(["int4 by", *(f"seed {seed}" for seed in SEEDS), "mean"], rows))
print(by_seed(above_float32, "figures/13-int4.png", "int4 in groups of 32, the same number of steps",
              xlabel="loss above float32's (nats)"))

mean = {name: np.mean(gaps) for name, gaps in above_float32.items()}
assert abs(loss_of(four_bits) - loss_of(aware)) < 1e-3               # codes are those that training had
steps_learned = sum(leaf.size for leaf in aware.ops.learned.values())
print(f"int4-qat trains {steps_learned:,} shares besides {sum(p.size for p in aware.parameters()):,} weights")
assert steps_learned * 32 == sum(p.size for p in aware.parameters() if p.ndim == 2)
if not QUICK:
    assert mean["int4-qat"] < min(mean["rounded"], mean["GPTQ"], mean["AWQ"])

# %% [markdown]
# Training that knows of its codes loses less than any conversion of a model that did not. It also costs more: a training
# run, and a parameter more for each group. At 8 bits there is nothing left to win, as the next cell shows.
#
# What is often sold as quantization training
# -------------------------------------------
#
# A well-known listing hands a trained float32 model to a converter with ``Optimize.DEFAULT``, writes the bytes to a file,
# and calls this quantization training. Nothing is trained: the converter sees no data, and the weights that go in stay as
# they are. It is a post-training conversion to int8, with inputs quantized on the fly; ours is ``--method dynamic``.

# %%
before = {p.name: p.data.copy() for p in exact.parameters()}
dynamic = converted(exact, Conversion("int8", "dynamic"), inputs)
int8_aware = trained(further, PRESETS["int8-qat"], first)
rows = [["float32", f"{loss_of(exact):.4f}", "-"],
        ["float32, converted by dynamic (Optimize.DEFAULT)", f"{loss_of(dynamic):.4f}", "after training"],
        ["trained under int8-qat", f"{loss_of(int8_aware):.4f}", "in training"]]
print(table(["model", "loss", "rounding"], rows, left=1))

assert all(np.array_equal(before[p.name], p.data) for p in exact.parameters())     # conversion trains nothing
assert not int8_aware.ops.learned                                    # int8-qat takes the range as it is
if not QUICK:
    assert abs(loss_of(dynamic) - loss_of(exact)) < 0.003
    assert abs(loss_of(int8_aware) - loss_of(exact)) < 0.01

# %% [markdown]
# At 8 bits both are as good as float32. The difference begins where bits are few.
#
# Three values
# ------------
#
# BitNet b1.58 (Ma et al. 2024) has weights of -1, 0 or 1 times one scale a matrix, the mean of their sizes: log2(3) =
# 1.58 bits. No conversion makes such weights out of a float32 model; they have to be trained so from the start. In
# front of each such layer its inputs are normalized and become int8 codes by token. Embeddings and the head stay
# float32.

# %%
options = dataclasses.replace(OPTIONS, seed=SEEDS[0])
ternary = trained(options, PRESETS["bitnet-b1.58"])
file = converted(ternary, Conversion("ternary"), {})
by_force = converted(firsts[SEEDS[0]], Conversion("ternary"), {})


def in_scales(model):
    """The weights of a layer in steps of the mean of their sizes."""
    w = model.block0.mlp.up.weight.data
    return w / abs(w).mean(dtype=np.float32)


panels = {"trained in float32": in_scales(firsts[SEEDS[0]]), "trained as ternary": in_scales(ternary)}
zeros = {name: float(np.mean(abs(w) < 0.5)) for name, w in panels.items()}
size, bytes_float32 = len(quantized_file(file, {})), float32_bytes(ternary)
linears = sum(p.size for p in ternary.parameters() if p.name.startswith("block") and p.ndim == 2)
rows = [["float32", f"{loss_of(firsts[SEEDS[0]]):.4f}"], ["bitnet-b1.58", f"{loss_of(ternary):.4f}"],
        ["its file of codes", f"{loss_of(file):.4f}"], ["float32, made ternary afterwards", f"{loss_of(by_force):.4f}"]]
print(table(["model", "loss"], rows))
print(f"{size:,} bytes instead of {bytes_float32:,}; {linears:,} ternary weights take {linears // 4:,}; "
      f"{zeros['trained as ternary']:.0%} of a layer are zeros")
print(among_codes(panels, "figures/13-ternary.png", "Weights of a layer, and which of them become -1, 0 and 1"))

codes = file.block0.mlp.up.codes
assert set(np.unique(codes)) == {-1, 0, 1}
assert abs(loss_of(file) - loss_of(ternary)) < 1e-3                  # the same model
assert size < bytes_float32 - 3.7 * linears
if not QUICK:
    assert 0.02 < loss_of(ternary) - loss_of(firsts[SEEDS[0]]) < 0.5
    assert loss_of(by_force) > loss_of(ternary) + 0.1

# %% [markdown]
# Two bits store a code, four codes a byte. (Five would fit, 3^5 = 243, and save a fifth of that; embeddings and head in
# float32 weigh far more here.) The float32 weights behind the codes exist in training only: small steps add up in them
# until a code changes.
#
# Three products, three switches
# ------------------------------
#
# Codes can also make *training* cheaper. A linear layer has three products: forward y = x W^T, the gradient of its input
# g W, and the gradient of its weight g^T x. SwitchBack (Wortsman et al. 2023) makes the first two in int8 and leaves the
# third in float. Why that one? Each can be switched by itself; here is what each switch does to the gradient of one step
# of a trained model.

# %%
SWITCHES = {"forward": "int8-forward", "input gradient": "int8-input-gradient", "weight gradient": "int8-weight-gradient",
            "SwitchBack: the first two": "int8-switchback", "all three": "int8-all"}
HEAD_LEFT_OUT = "all three, but not the head's"


def with_products(name, head=None):
    """Float32, but for the products of linear layers; those of the head are others, where they are named."""
    return Recipe(name, products={"linear": PRODUCTS[name], "head/linear": PRODUCTS[head or name]})


def gradients(recipe):
    model = under(firsts[SEEDS[0]], recipe)
    model.ops.context.begin(0)
    return backward(model.loss(*random_batch(data.train, 32, OPTIONS.context, (9, 9))))


float32_gradients, noise = gradients(PRESETS["float32"]), {}
linears = [name for name, g in float32_gradients.items() if name.startswith("block") and g.ndim == 2]
recipes = {name: with_products(products) for name, products in SWITCHES.items()}
recipes[HEAD_LEFT_OUT] = with_products("int8-all", head="float32")
for name, recipe in recipes.items():
    found = gradients(recipe)
    noise[name] = float(np.median([sqnr_db(float32_gradients[p], found[p]) for p in linears]))
print(table(["in int8", "median layer: signal over noise dB"], [[name, f"{db:.1f}"] for name, db in noise.items()]))

# %% [markdown]
# What does most to it is the input gradient, and of it the head's product: with the head left in float32, a place that
# a recipe names, all three products in int8 do little. What is special about the head? The cotangent of a logit is the
# probability p of its character, less 1 if it is the right one. Most are small, and the one near -1 sets the scale of
# its row.

# %%
model = under(firsts[SEEDS[0]], PRESETS["float32"])
ids, targets = random_batch(data.train, 32, OPTIONS.context, (9, 9))
with model.ops.context.no_record():
    p = np.exp(model(ids).data)                                      # (B,T,V) f32
g = p / p.sum(-1, keepdims=True, dtype=np.float32) - np.eye(p.shape[-1], dtype=np.float32)[targets]
g, W = g.reshape(-1, p.shape[-1]), model.tokens.weight.data          # (B T,V) f32, (V,C) f32
product, in_codes = g @ W, quantized_product(np, g, W, 0)            # (B T,C) f32
lost = float(np.mean(abs(g) * 127 / abs(g).max(-1, keepdims=True) < 0.5))
one_by_one, summed = sqnr_db(product, in_codes), sqnr_db(product.mean(0, dtype=np.float32), in_codes.mean(0, dtype=np.float32))
print(f"{lost:.0%} of the codes are 0; signal over noise is {one_by_one:.1f} dB in single tokens, {summed:.1f} dB in their mean")

if not QUICK:
    assert lost > 0.5
    assert summed < one_by_one - 8
    assert noise["input gradient"] < 15 < 20 < min(noise["forward"], noise["weight gradient"], noise[HEAD_LEFT_OUT])

# %% [markdown]
# Token by token the product is as good as int8 makes it. But probabilities that become 0 were all rounded *down*: the
# error has the same direction in every token. The gradient of a weight is a sum over tokens, in which the signal of a
# trained model all but cancels, and such an error does not.
#
# And what the switches do to training: the same runs from the start, with several seeds.

# %%
SHORT = dataclasses.replace(OPTIONS, steps=5 if QUICK else 100)
losses = {name: [] for name in recipes}
for seed in SEEDS:
    options = dataclasses.replace(SHORT, seed=seed)
    reference = loss_of(trained(options, PRESETS["float32"]))
    for name, recipe in recipes.items():
        losses[name].append(loss_of(trained(options, recipe)) - reference)
print(table(["in int8", *(f"seed {seed}" for seed in SEEDS), "mean"],
            [[name, *(f"{gap:+.4f}" for gap in gaps), f"{np.mean(gaps):+.4f}"] for name, gaps in losses.items()]))
print(by_seed(losses, "figures/13-switches.png", "Which products are of int8 codes, in training",
              xlabel="loss above float32's (nats)"))

assert all(abs(gap) < 0.05 for gaps in losses.values() for gap in gaps)
if not QUICK:
    cost = {name: np.mean(gaps) for name, gaps in losses.items()}
    assert abs(cost["forward"]) < 0.003
    assert abs(cost[HEAD_LEFT_OUT]) < cost["all three"] / 2
    assert cost["SwitchBack: the first two"] < cost["all three"]

# %% [markdown]
# In the loss both gradients show, where this was written by +0.005 nats (the input's) and +0.011 (the weights'), and
# the forward product does not. It is the head again: without it hardly anything is left. In the gradient of its weights
# a scale belongs to a character over the whole batch, is set by the tokens that this character follows, and all other
# tokens' small probabilities become 0.
#
# SwitchBack keeps the weight gradient in float because it alone sums over all tokens, K = batch x context, and the
# noise of a sum grows with its length. Here that is 768 values, in the paper's batches tens of thousands. So in a small
# model one layer matters more than the kind of product. First and last layers are often left out of quantization, and a
# recipe can do so by their places.
