# %% [markdown]
"""
Underflow and loss scaling
==========================

Tutorial 03 took float16 apart, and met the *loss scale*: a factor S that lifts small gradients into float16's range.
The loss is multiplied by S before the backward pass, and the gradients are divided by S after it. How large should S
be? Every framework has a *scaler* that looks for it while training runs, and when it goes wrong, its users see a
number sink to zero and a loss that is not a number.

This tutorial is a clinic for such scalers:

- it counts how many gradients are lost at which scale, in a trained model and in theory;
- it records the sizes of the gradients of one run, and replays them through the scalers of PyTorch, Apex and Keras;
- it reproduces the failures that users of those report, and shows what keeps them away;
- it puts a listing right that many introductions print, in which the loss scale does nothing at all;
- and it shows a place where no loss scale helps: a float16 probability inside a logarithm.

You should know what float16's subnormal numbers and cotangents are; tutorial 03 explains both. All quoted numbers are
asserted. The script runs for less than a minute. With ``MINILLM_QUICK=1`` training runs have 30 steps instead of 100,
after which more cotangents are small, so that the limit for their share is 4 % instead of 2 %. The rest is asserted
as it stands.
"""

# %%
import dataclasses
import math
import os

import numpy as np
from threadpoolctl import threadpool_limits

from minillm import FLOAT16, FLOAT32, backward, recipe_named, round_to, tensor, watch
from minillm.autograd.context import PLAIN
from minillm.autograd.rule import RULES
from minillm.autograd.tensor import apply
from minillm.experiments.data import load_data
from minillm.experiments.options import TrainOptions
from minillm.experiments.running import follow, new_run
from minillm.experiments.tables import table
from minillm.plotting import style
from minillm.plotting.training import scaler_replays
from minillm.precision.clinic import (
    Circumstances,
    GradientTrace,
    TraceStep,
    history,
    normal_underflow,
    replay,
    replay_per_layer,
    summary,
    underflow_share,
)
from minillm.precision.loss_scaling import SCALERS, static_scale
from minillm.precision.underflow import ZeroedCotangents
from minillm.recipes import PRESETS

QUICK = os.environ.get("MINILLM_QUICK") == "1"
threadpool_limits(1)        # products as small as these are slower on two threads than on one

steps = 30 if QUICK else 100
options = TrainOptions(layers=1, heads=4, channels=64, context=32, batch=16, steps=steps, warmup=steps // 10,
                       eval_every=0, watch_every=0)
data = load_data(options)
data = dataclasses.replace(data, validation=data.validation[:10_000])

# %% [markdown]
# A run, and the sizes of its gradients
# -------------------------------------
#
# We train a small GPT in mixed precision, with the loss scale 2^16, and let an observer note every step: how large
# the largest cotangent was, which tensor it belonged to, and how many cotangents have which exponent. The loss scale
# is divided out, so these are the sizes that the cotangents have by themselves.

# %%
mixed = recipe_named("float16-mixed")
run = new_run(dataclasses.replace(options, watch_every=1), data, mixed)
trace = GradientTrace(run.trainer.objective)
run.trainer.observers = (trace,)
follow(run, quiet=True)

for number in (1, steps // 2, steps):
    at = trace.steps[number - 1]
    print(f"step {number:3}: largest cotangent {at.largest:.3f}, of {at.where}; {sum(at.exponents.values()):,} are not zero")

assert len(trace.steps) == steps
assert run.trainer.skipped == 0
assert all(at.where.startswith("head") for at in trace.steps)
assert all(2.0**-6 < at.largest < 1 for at in trace.steps)

# %% [markdown]
# The largest cotangent always belongs to the head, the last layer of the model, where the backward pass begins. It is
# below 1, and float16 ends at 65504. So there is room above: a factor of 2^16 nearly always fits.
#
# How many are lost?
# ------------------
#
# What is at most 2^-25 becomes zero in float16. With a loss scale S, that is what is at most 2^-25 / S. Five scales
# that people use: none, 8 (which was enough for the object detector of Micikevicius and others, 2018, arXiv
# 1710.03740, section 3.2), 128, 1024, and 65536 where PyTorch and Apex begin.
#
# We count in two ways, on one batch and with the trained weights. From the exponents, recorded at the scale 2^16, it
# can be computed what *would* become zero at any other scale. And one backward pass at each scale shows what *does*.

# %%
SCALES = (1, 8, 128, 1024, 65536)


def watched_backward(observer, scale):
    """One backward pass of the trained model at this loss scale."""
    run.model.ops.context.begin(steps)
    with watch(observer):
        backward(run.model.loss(*run.trainer.batch(steps, 0)) * float(scale))
    return observer


trained_trace = watched_backward(GradientTrace(run.trainer.objective), run.trainer.objective.scaler.scale)
last = trained_trace.steps[0]
computed_shares = {scale: underflow_share(last.exponents, scale) for scale in SCALES}
measured_shares = {scale: watched_backward(ZeroedCotangents(), scale).share for scale in SCALES}
print(table(["loss scale", "computed from exponents", "measured"],
            [[scale, f"{computed_shares[scale]:.4%}", f"{measured_shares[scale]:.4%}"] for scale in SCALES]))

assert 0.0005 < measured_shares[1] < (0.04 if QUICK else 0.02)
assert measured_shares[8] < measured_shares[1] / 3
assert measured_shares[128] < measured_shares[8] / 3
assert measured_shares[1024] < 0.0001
assert max(computed_shares[65536], measured_shares[65536]) < 0.00002
assert all(0.5 < measured_shares[s] / computed_shares[s] < 2 for s in (1, 8, 128))

# %% [markdown]
# Without a scale, less than 2 % are lost. A scale of 8 brings that to below a third, 128 to below a third of that, and
# at 65536 hardly one in a million is lost, if any. The two ways of counting agree within a factor of two. They are not
# the same: what was lost in one layer is missing in the layers before it.
#
# What theory says
# ----------------
#
# A common model of gradients: the *logarithm* of their size is spread normally. Let log2 of the size have the mean m
# and the standard deviation s, both in bits. Then the share that underflows at the scale S is
#
# Phi((-25 - log2 S - m) / s),
#
# where Phi is the normal distribution's cumulative function. Let us draw such gradients, round them, and compare.

# %%
rng = np.random.default_rng(0)
SPREADS = {(-15, 3): style.BLUE, (-20, 3): style.GREEN, (-20, 6): style.ORANGE, (-25, 3): style.VERMILLION}
COUNT = 200_000
rows, worst = [], 0.0
for mean, deviation in SPREADS:
    g = np.exp2(rng.normal(mean, deviation, COUNT)).astype(np.float32)                       # (COUNT,) f32
    found = [np.mean(round_to(g * np.float32(scale), FLOAT16) == 0) for scale in SCALES]
    expected = [normal_underflow(mean, deviation, scale) for scale in SCALES]
    shares = [f"{a:.3%} ({b:.3%})" for a, b in zip(found, expected, strict=True)]
    rows.append([f"mean 2^{mean}, deviation {deviation} bits", *shares])
    sigma = [math.sqrt(p * (1 - p) / COUNT) + 1 / COUNT for p in expected]
    worst = max(worst, *(abs(a - b) / s for a, b, s in zip(found, expected, sigma, strict=True)))
print(table(["gradients", *(f"S = {scale}" for scale in SCALES)], rows))
print(f"in brackets: the formula; the farthest of them is {worst:.1f} standard errors off")

assert worst < 4
assert normal_underflow(-25, 3, 1) == 0.5

# %% [markdown]
# The formula holds, as it must: rounding to zero is a sharp limit. Does it describe our model?

# %%
exponents = np.array([e + 0.5 for e in last.exponents])            # the middle of each binade
counts = np.array([*last.exponents.values()])
mean = float(np.average(exponents, weights=counts))
deviation = math.sqrt(np.average((exponents - mean) ** 2, weights=counts))
predicted = normal_underflow(mean, deviation, 1)
print(f"our GPT: mean 2^{mean:.1f}, deviation {deviation:.1f} bits; the formula says {predicted:.3%} without a scale, "
      f"{computed_shares[1]:.3%} are lost")

powers = np.arange(-12, 25)
with style.applied():
    figure, axes = style.figure(height=4.4)
    for (m, s), color in SPREADS.items():
        axes.plot(powers, [100 * normal_underflow(m, s, 2.0**k) for k in powers], color=color,
                  label=f"normal, mean 2^{m}, deviation {s} bits")
    axes.plot(powers, [100 * normal_underflow(mean, deviation, 2.0**k) for k in powers], color=style.GREY, linestyle=(0, (4, 1.5)),
              label=f"normal, as our GPT: 2^{mean:.1f}, {deviation:.1f} bits")
    axes.plot(powers, [100 * underflow_share(last.exponents, 2.0**k) or np.nan for k in powers], color=style.BLACK,
              label="our GPT, from its exponents")
    axes.plot([math.log2(s) for s in SCALES if measured_shares[s]], [100 * v for v in measured_shares.values() if v], "o",
              color=style.BLACK, label="our GPT, measured")
    axes.set(yscale="log", ylim=(1e-5, 150), xlabel="loss scale (a factor, no unit)", ylabel="gradients that become zero (%)",
             title="Underflow in float16 against the loss scale")
    style.power_ticks(axes.xaxis)
    style.legend(figure, axes.get_lines())
    print(style.save(figure, "figures/07-underflow.png"))

assert -18 < mean < -11
assert 2.5 < deviation < 4.5
assert computed_shares[1] > 2 * predicted

# %% [markdown]
# Not quite. The mean and the deviation of all cotangents are those of the dashed grey line, but at least twice as
# many are lost as it says, and it falls far more steeply than the black line. A model has layers, and in the layers
# far from the loss, and in the queries and keys of the attention, cotangents are smaller than elsewhere. The mixture
# has a longer tail than a single normal distribution. The tail is what underflows, so do not estimate it from a mean.
#
# The clinic: one run, every scaler
# ---------------------------------
#
# A scaler sees nothing of a step but whether it was finite. So the sizes of a run's gradients are enough to tell what
# any other scaler would have done. For each step the *headroom* tells how many times the scale could have been
# doubled before the largest cotangent overflowed.

# %%
replays = {name: replay(trace.steps, how) for name, how in SCALERS.items()} | {"per layer": replay_per_layer(trace.steps)}
rows = [[name, f"2^{math.log2(row['first_scale']):g}", f"2^{math.log2(row['last_scale']):g}", row["skipped"],
         f"{row['least_headroom_bits']:.1f}"] for name, row in ((n, summary(r)) for n, r in replays.items())]
print(table(["scaler", "first scale", "last scale", "skipped steps", "least headroom, bits"], rows))
print(scaler_replays({name: history(records) for name, records in replays.items()}, "figures/07-clinic.png",
                     "What each scaler would have done in our run"))

assert [r["loss_scale"] for r in replays["minillm"]] == [r["loss_scale"] for r in run.records if "loss" in r]
assert all(summary(replays[name])["skipped"] == 0 for name in ("minillm", "pytorch", "apex-amp", "keras", "fixed"))
assert 10 < summary(replays["apex-fp16-utils"])["skipped"] < 20
assert 0 < summary(replays["minillm"])["least_headroom_bits"] < 6
assert all(r["skipped"] for r in replays["apex-fp16-utils"][:10])
assert all(len(set(r["scales"].values())) > 3 for r in replays["per layer"][1:])
assert summary(replays["per layer"])["skipped"] < 10

# %% [markdown]
# Most of them are at rest: they begin at a scale that fits, and to grow takes 2000 steps. Only Apex's older scaler
# begins at 2^32, and pays more than ten skipped steps to come down. The line of ``minillm`` is the run itself: the
# replay gives back the very scales that it had.
#
# Below them is one with a scale for *each layer*, chosen from the layer's largest cotangent in the step before, with
# four bits to spare (the figure shows the smallest of its scales). It exists in the replay only. In training every
# cotangent would have to change its scale on the way from one layer to the next. It is not better here: four bits are
# not always enough for what a layer does from one step to the next.
#
# How scalers fail
# ----------------
#
# A scaler that meets a bad step halves its scale, for it cannot know whether the scale was to blame. Sometimes it was
# not. Say that 40 batches are so bad that the *forward* pass overflows. No scale can help, but the scale sinks by 2^40.
# After that all is well again, except for one thing: this model clips by norm and divides by it somewhere, and if all
# gradients have become zero, that is zero by zero, which is NaN.

# %%
good, hopeless = TraceStep(0.05), TraceStep(math.nan)              # the largest cotangent of a step: 0.05, or not finite
burst = [good] * 100 + [hopeless] * 40 + [good] * 260
dynamic = [name for name, how in SCALERS.items() if how.dynamic]
circle = {name: replay(burst, SCALERS[name], Circumstances(divides=True)) for name in dynamic}
for name, records in circle.items():
    print(f"{name:16} scale after the bad steps 2^{math.log2(records[140]['loss_scale']):g}, "
          f"skipped after them: {sum(r['skipped'] for r in records[140:])} of 260, {summary(records)['fate']}")
print(scaler_replays({name: history(records) for name, records in circle.items()}, "figures/07-vicious-circle.png",
                     "Forty bad steps, and what follows"))

lost = [name for name in dynamic if all(r["skipped"] for r in circle[name][140:])]
assert lost == ["pytorch", "apex-amp", "keras"]
assert circle["pytorch"][140]["loss_scale"] == 2.0**-24
assert circle["pytorch"][140]["why"] == "all gradients are zero"
assert circle["pytorch"][-1]["loss_scale"] == circle["keras"][-1]["loss_scale"] == 0
assert 0 < circle["apex-amp"][-1]["loss_scale"] < FLOAT32.smallest_subnormal
assert not any(r["skipped"] for name in ("minillm", "apex-fp16-utils") for r in circle[name][140:])

# %% [markdown]
# This is the *vicious circle* that a user describes in PyTorch's issue 40497: the scale was so small that steps
# failed because of it, and each failure made it smaller. In three of the five it never ends. PyTorch's and Keras's
# scale is a float32 and ends at exactly zero. Apex's is a Python number, which can be far smaller (issue 715 of Apex
# reports a scale of 1e-305), but below 2^-127 float32 cannot hold 1 / S, and every step is lost just the same.
#
# What keeps the other two away is one number: a *floor* of 1. A scale below 1 cannot have been the intention.
#
# The other failures, each from a made-up trace:
#
# - **Sinking to zero** (issue 834 of Apex): 200 bad steps in a row are enough, whatever the model does.
# - **Growing to infinity** (PyTorch's issue 98828, mended since): gradients near zero let the scale double until
#   float32 has no larger number. Keras's scaler still does it, and half of infinity is infinity. (To keep the trace
#   short, all scalers grow after a twentieth of their usual number of steps.)
# - **Halving that cannot help** (PyTorch's issue 96755): the scaled gradient is finite, the unscaled one is not. Here
#   gradients are unscaled into float16, and are too large for it.
# - **Swinging between two scales**: a scaler that grows too eagerly loses one step of every few. Apex's older one
#   swings between the last two powers of two at the end of float32.

# %%
tiny = [TraceStep(1e-36)] * 12_000                                 # a loss near zero, for a long time
traces = {
    "sinking": ([good] * 10 + [hopeless] * 200 + [good] * 50, Circumstances()),
    "growing": (tiny, Circumstances()),
    "halving in vain": ([TraceStep(1e5)] * 200, Circumstances(gradients=FLOAT16)),
}
hasty = {name: dataclasses.replace(SCALERS[name], growth_interval=SCALERS[name].growth_interval // 20) for name in dynamic}
fates = {name: {what: summary(replay(t, hasty[name], given)) for what, (t, given) in traces.items()} for name in dynamic}


def scale_text(scale):
    """A scale as a power of two, or in words."""
    return "0" if scale == 0 else "infinite" if math.isinf(scale) else f"2^{math.log2(scale):g}"


print(table(["last scale", *traces], [[name, *(scale_text(row["last_scale"]) for row in found.values())]
                                      for name, found in fates.items()]))
eager = {n: replay([TraceStep(0.7)] * 2000, dataclasses.replace(SCALERS["pytorch"], growth_interval=n))
         for n in (1, 10, 100, 2000)}
for interval, records in eager.items():
    print(f"doubling after {interval:4} clean steps: {sum(r['skipped'] for r in records):4} of 2000 steps skipped")

assert [fates[n]["sinking"]["last_scale"] for n in ("pytorch", "keras", "minillm", "apex-fp16-utils")] == [0, 0, 1, 1]
assert fates["keras"]["growing"]["last_scale"] == math.inf
assert fates["minillm"]["growing"]["last_scale"] == fates["pytorch"]["growing"]["last_scale"] == 2.0**127
assert fates["minillm"]["growing"]["skipped"] == 0 < fates["apex-fp16-utils"]["growing"]["skipped"]
assert fates["pytorch"]["halving in vain"]["last_scale"] == 0
assert fates["minillm"]["halving in vain"]["last_scale"] == 1
assert all(row["halving in vain"]["skipped"] == 200 for row in fates.values())
assert [sum(r["skipped"] for r in records) for records in eager.values()] == [1000, 181, 19, 0]

# %% [markdown]
# The defaults of this project (``minillm`` in the table) come through all of them: a floor of 1, growth only where
# float32 can hold the result, and patience of 2000 steps. They cannot make a hopeless run succeed. In the third
# column every step is skipped with any scaler. But then the trainer stops after a hundred skipped steps and names the
# tensor that overflowed, in place of halving in silence.
#
# A listing that does nothing
# ---------------------------
#
# Many introductions to mixed precision print a listing in which an optimizer is wrapped in a dynamic loss-scale
# optimizer, and the model is then trained. They leave out to set a float16 *policy*. So everything stays float32,
# and a loss scale is of no use there: float32 reaches down to 2^-149. The preset ``float32-scaled`` is that listing:
# the scale begins at 2^15, doubles after 2000 clean steps, and halves on overflow. Three runs from the same weights
# over the same batches, the third with Keras's ``mixed_float16``, which the listing meant:

# %%
KERAS = PRESETS.get("keras-mixed_float16") or dataclasses.replace(mixed, loss_scaling=SCALERS["keras"])
listed = {"float32": recipe_named("float32"), "float32-scaled": recipe_named("float32-scaled"), "mixed_float16": KERAS,
          "mixed_float16, no scale": dataclasses.replace(KERAS, loss_scaling=static_scale(1.0))}
trained, zero_shares = {}, {}
for name, recipe in listed.items():
    trained[name] = new_run(dataclasses.replace(options, steps=30, watch_every=10), data, recipe)
    follow(trained[name], quiet=True)
    zero_shares[name] = max(r["zero_gradient_share"] for r in trained[name].records if "zero_gradient_share" in r)


def weights(name):
    """All weights of a run as one vector."""
    return np.concatenate([p.data.ravel() for p in trained[name].model.parameters()])


difference = {name: float(np.abs(weights(name) - weights("float32")).max()) for name in listed}
same = {name: weights(name).tobytes() == weights("float32").tobytes() for name in listed}
print(table(["recipe", "weights as in float32", "largest difference", "cotangents made zero"],
            [[name, "every bit" if same[name] else "no", f"{difference[name]:.2g}", f"{zero_shares[name]:.3%}"]
             for name in listed]))

assert same["float32-scaled"]
assert difference["float32-scaled"] == zero_shares["float32"] == zero_shares["float32-scaled"] == 0
assert trained["float32-scaled"].records[0]["loss_scale"] == 2.0**15
assert not same["mixed_float16"]
assert zero_shares["mixed_float16, no scale"] > 0.0005
assert zero_shares["mixed_float16"] < zero_shares["mixed_float16, no scale"] / 100

# %% [markdown]
# Not one bit of the weights is different. A power of two changes exponents only, and float32 has exponents to spare.
# In mixed precision the same scaler earns its keep.
#
# Are there exceptions? Three, and none of them makes the listing useful: a scale so large that float32 itself
# overflows, and steps are skipped; cotangents below 2^-126, of which float32 keeps more digits with the scale than
# without; and a scale above 2^120 or so, where the inverse of the scale times the clipping factor is itself too small
# for float32's normal numbers.
#
# Where no scale helps: log of a float16 probability
# --------------------------------------------------
#
# A classifier of two classes ends in a *sigmoid*, p = 1 / (1 + exp(-x)), and is trained with the binary cross-entropy
# of p: minus log p if the answer is yes, minus log(1 - p) if it is no. In float16 there is no number between
# 1 - 2^-11 and 1. So p becomes exactly 1 for all x from 7.625 on, if each of the four operations is rounded to
# float16, and the loss contains log(0). Let us ask every float16 number there is.

# %%
halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
halves = np.sort(halves[np.isfinite(halves)])                                               # (63488,) f16


def leaf(x):
    """A float16 tensor of which a gradient is taken."""
    return tensor(x, FLOAT16, name="x")


def sigmoid_in_halves(x):
    """Each operation rounded to float16."""
    return 1.0 / (1.0 + apply(RULES["exp"], -x, context=PLAIN))


def sigmoid_rounded_once(x):
    """Computed in float32 and rounded to float16 once."""
    return apply(RULES["sigmoid"], x, context=PLAIN)


def on_probabilities(sigmoid):
    """The cross-entropy of a float16 probability, itself computed in float32."""
    return lambda x, answers: apply(RULES["bce"], sigmoid(x).to(FLOAT32), answers, context=PLAIN)


def on_logits(x, answers):
    """The cross-entropy of x itself: max(x, 0) - x answer + log(1 + exp(-abs(x)))."""
    return apply(RULES["bce_with_logits"], x.to(FLOAT32), answers, context=PLAIN)


def gradient(loss, answer):
    """The gradient of each float16 number's own loss, as float16."""
    x = leaf(halves)
    return backward(loss(x, np.full(x.shape, answer, np.float32)) * float(x.size))["x"]


in_halves, once = (s(leaf(halves)).data for s in (sigmoid_in_halves, sigmoid_rounded_once))
print(f"p is 1 from {halves[in_halves == 1].min()} on, or from {halves[once == 1].min():.4f} on if it is rounded once")
print(f"1 - 1e-7 in float16: {float(round_to(1 - 1e-7, FLOAT16))}")

WAYS = {"float16 sigmoid, then log": on_probabilities(sigmoid_in_halves),
        "sigmoid rounded once, then log": on_probabilities(sigmoid_rounded_once), "on logits": on_logits}
gradients = {name: {answer: gradient(loss, answer) for answer in (0, 1)} for name, loss in WAYS.items()}
for name, g in gradients.items():
    print(f"{name:32} gradients that are not finite: {np.mean(~np.isfinite(g[0])):.1%} of all numbers for no, "
          f"{np.mean(~np.isfinite(g[1])):.1%} for yes")

assert halves[in_halves == 1].min() == 7.625
assert halves[once == 1].min() == np.float16(8.3203125)
assert round_to(1 - 1e-7, FLOAT16) == 1
assert round_to(1e-7, FLOAT16) == 2.0**-23
assert all(np.mean(~np.isfinite(gradients[name][answer])) > 0.4 for name in list(WAYS)[:2] for answer in (0, 1))
assert all(np.isfinite(g).all() for g in gradients["on logits"].values())

# %% [markdown]
# For more than 40 % of all float16 numbers the gradient is infinite or NaN. The usual remedy is to clip p to the range
# from 1e-7 to 1 - 1e-7. In float16 the lower end becomes 2^-23, but 1 - 1e-7 is exactly 1: the upper end is gone.
#
# On logits nothing of that happens: there is no p, and every one of the 63,488 finite numbers has a finite loss and
# gradient. Here is the middle of the range, for the answer no.

# %%
middle = (halves >= -20) & (halves <= 12)
x = halves[middle].astype(np.float32)


def loss_of_no(p):
    """- (0 log p + 1 log(1 - p)), as a program computes it."""
    p = p[middle].astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        return -(0 * np.log(p) + np.log(1 - p))


losses = {"on logits": np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
          "float16 sigmoid, then log": loss_of_no(in_halves), "sigmoid rounded once, then log": loss_of_no(once)}
looks = {"on logits": (style.BLACK, "-"), "float16 sigmoid, then log": (style.VERMILLION, "-"),
         "sigmoid rounded once, then log": (style.SKY, "-")}
with style.applied():
    figure, (above, below) = style.figure(2, height=5.6, sharex=True)
    handles = []
    for row, (name, (color, dashes)) in enumerate(looks.items()):
        finite_loss, g = np.where(np.isfinite(losses[name]), losses[name], np.nan), gradients[name][0][middle].astype(np.float32)
        above.plot(x, finite_loss, color=color, linestyle=dashes)
        below.plot(x, np.where(np.isfinite(g), g, np.nan), color=color, linestyle=dashes)
        for axes, values, top in ((above, losses[name], 13), (below, g, 1.6)):
            bad = ~np.isfinite(values)
            axes.plot(x[bad], np.full(bad.sum(), top * (1 - 0.06 * row)), "|", color=color, markersize=6)
        handles.append(style.key(name, color=color, linestyle=dashes))
    above.set(ylabel="loss (nats)", ylim=(-0.7, 13.5), title="Cross-entropy for the answer no, against the logit")
    below.set(ylabel="gradient (nats per unit of x)", ylim=(-0.1, 1.7), xlabel="logit x (no unit)")
    style.legend(figure, [*handles, style.key("bars at the top: infinite or NaN", color=style.GREY, linewidth=5)])
    print(style.save(figure, "figures/07-sigmoid-and-log.png"))

first_bad = {name: float(x[~np.isfinite(losses[name]) & (x > 0)].min(initial=np.inf)) for name in losses}
highest = {name: float(losses[name][np.isfinite(losses[name])].max()) for name in losses}
in_float16 = gradients["float16 sigmoid, then log"][0][middle]
assert first_bad["float16 sigmoid, then log"] == 7.625
assert first_bad["on logits"] == math.inf
assert 6.9 < highest["float16 sigmoid, then log"] < highest["sigmoid rounded once, then log"] < 7.7
assert in_float16[(x > 6) & (x < 7.6)].min() < 0.55
assert in_float16[(x > 6) & (x < 7.6)].max() > 1.45
assert np.isnan(in_float16[x < -11.1]).all()

# %% [markdown]
# The loss in float16 rises in steps, since 1 - p has only a few values left, ends at 7 or so, and is infinite beyond.
# The gradient, which should approach 1, swings between 0.5 and 1.5 before it ends. At the left the answer is right,
# and yet there is no gradient: exp(11.1) is infinite in float16, and 0 times log(0) is NaN.
#
# Even where p has not become zero, the way through p is dangerous. The derivative of -log p is -1/p, which is beyond
# 65504 for p below 0.000015: the loss is 11.1, and the gradient is infinite. With a loss scale it happens sooner. At
# 2^15 and a batch of 25, a probability of 0.02 is too small, which is a logit of -3.9.

# %%
for logit, fits in ((-3.8, True), (-4.0, False)):
    one = leaf([logit])
    g = backward(on_probabilities(sigmoid_rounded_once)(one, np.ones(1, np.float32)) * (2.0**15 / 25))["x"]
    print(f"logit {logit}: gradient times 2^15 / 25 is {g[0]}")
    assert bool(np.isfinite(g[0])) is fits

# %% [markdown]
# What to take along
# ------------------
#
# - At 2^16 next to nothing underflows in this model, without a scale less than 2 %. Small cotangents are a *tail*:
#   their share cannot be told from mean and deviation.
# - A scaler needs a floor, or a run of bad steps takes it to zero. It needs an end above, or it becomes infinite.
# - Look at the *headroom* of a run, and at which tensor uses it up: here always the head.
# - In float32 a loss scale changes nothing, to the last bit.
# - Do not take the logarithm of a rounded probability. Use the loss on logits, and no scale will be needed for it.
