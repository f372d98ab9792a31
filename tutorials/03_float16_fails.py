# %% [markdown]
"""
float16 fails
=============

Take a training run that works in float32, and store everything in float16 instead: weights, activations, gradients,
and what the optimizer remembers. Within a few steps the loss is not a number any more. Everybody who tries it sees
this. This tutorial finds out *which tensor did it*, and it is not the one that most people suspect.

Then it takes the standard remedy, mixed precision, apart into its three pieces, and measures what each of them is worth:

- the optimizer's memory in float32,
- *master weights*: a float32 copy of the weights that collects the updates,
- *loss scaling*: a factor that lifts small gradients into float16's range.

Some of what the literature reports shows up here at once. Some of it does not show at this scale, with a model of 60,000
weights. Then the text says so, with the number, and looks for the scale at which it does show.

You should know what a gradient, a rounding and a training step are; tutorials 01 and 02 explain them. Losses are in
nats a character, always as differences to float32, since the text varies with the Python version. All quoted numbers
are asserted. The script runs for less than a minute. With ``MINILLM_QUICK=1`` runs have 40 steps instead of 150, one
seed instead of two, and of the losses only these differences are asserted: that ``float16-mixed`` and
``float16-unscaled`` are close to float32, and that a loss scale of 2^-10 is not.
"""

# %%
import dataclasses
import math
import os
from collections import Counter

import numpy as np
from threadpoolctl import threadpool_limits

from minillm import FLOAT16, FLOAT32, backward, recipe_named, round_to, watch
from minillm.experiments.options import TrainOptions, load_data
from minillm.experiments.running import follow, new_run
from minillm.experiments.tables import table
from minillm.plotting import style
from minillm.plotting.gradients import gradient_exponents
from minillm.plotting.recipes import static_scale as static_scale_figure
from minillm.plotting.training import loss_curves, loss_scale_history
from minillm.precision.loss_scaling import LossScaling, static_scale
from minillm.precision.master_weights import lost_updates
from minillm.precision.underflow import ExponentHistogram
from minillm.training.metrics import curves, mean_zero_share

QUICK = os.environ.get("MINILLM_QUICK") == "1"
threadpool_limits(1)        # products as small as these are slower on two threads than on one

steps = 40 if QUICK else 150
options = TrainOptions(layers=1, heads=4, channels=64, context=32, batch=16, steps=steps, warmup=steps // 10, lr=1e-3,
                       min_lr=1e-4, eval_every=0, watch_every=steps // 2)
data = load_data(options)

# %% [markdown]
# What float16 has, and what it has not
# -------------------------------------
#
# A float16 number has five bits for the exponent and ten for the digits after the leading one.
#
# - The largest number is 65504. Beyond it stands infinity, and infinity minus infinity is *not a number*, NaN.
# - The smallest number with all its digits is 2^-14, about 0.00006.
# - Below that come the **subnormal** numbers: multiples of 2^-24. The smaller they are, the fewer digits they have. The
#   smallest is 2^-24 itself, about 0.00000006.
# - What is at most half of that, 2^-25, is rounded to **zero**.
#
# The distance from a number to the next is called an **ulp** (unit in the last place). A typical weight of our model is
# 0.02, and one ulp there is 2^-16, about 0.000015.

# %%
for value in (70000.0, 0.02, 1e-4, 1e-6, 1e-7, 1e-8):
    print(f"{value:8g} becomes {float(round_to(value, FLOAT16)):.9g}")

assert FLOAT16.max == 65504
assert FLOAT16.tiny == 2.0**-14
assert FLOAT16.smallest_subnormal == 2.0**-24
assert np.spacing(np.float16(0.02)) == 2.0**-16
assert np.isinf(round_to(70000.0, FLOAT16))
assert round_to(2.0**-25, FLOAT16) == 0 < round_to(2.0**-25 * 1.001, FLOAT16)

# %% [markdown]
# Note a square: 0.0001 is a number of float16, its square 0.00000001 is zero. Whoever stores squares in float16 has only
# half of the exponents left.
#
# Two runs
# --------
#
# The same model, the same first weights, the same batches. Only the recipe differs.


# %%
def start(recipe, **changes):
    """A run that has not made a step."""
    return new_run(dataclasses.replace(options, **changes), data, recipe)


def train(recipe, **changes):
    """A run, trained to its end or until it is not finite."""
    run = start(recipe, **changes)
    follow(run, quiet=True)
    return run


EVERY = {"eval_every": steps // 5}                                   # for the runs whose curves are drawn at the end
float32, pure = recipe_named("float32"), recipe_named("float16")
runs = {"float32": train(float32, **EVERY), "float16": train(pure, **EVERY)}
for name, run in runs.items():
    print(f"{name:8} loss of the first steps:", [r["loss"] and round(r["loss"], 2) for r in run.records[:4] if "loss" in r])

broken = runs["float16"].trainer
print(f"float16 is not finite at step {broken.diverged_at}: {broken.blame}")

assert runs["float32"].trainer.diverged_at is None
assert 2 <= broken.diverged_at <= 10

# %% [markdown]
# The first loss is the same. The second is enormous, and then it is over.
#
# When a step is not finite, the trainer runs it a second time and watches every rounding, which gives the same step bit
# for bit. So it can name the *first* value that was not finite: a result of the *forward* pass that was too large for
# float16.
#
# That is where the run died. It is not where the harm was done. The activations are too large because the weights are
# too large, and those were made in the step before, when everything was still finite.

# %%
assert broken.blame.startswith("forward block0")
assert "overflow in rounding to float16" in broken.blame

# %% [markdown]
# One step earlier
# ----------------
#
# So run the first step again and watch it. An observer is told of every rounding, with the values before (``exact``) and
# after (``rounded``). Rounding is where things get lost, so ask of each tensor: which share of it became zero?
#
# - the **gradient** of every weight, as it leaves the backward pass;
# - ``m``, the optimizer's running mean of the gradient;
# - ``v``, its running mean of the *squared* gradient;
# - the new **weight**.

# %%
run = start(pure)
before = max(float(np.abs(p.data).max()) for p in run.model.parameters())
events = []
with watch(events.append):
    first = run.trainer.advance()


def values(slot, of="rounded"):
    """All values of one kind in that step, as float32: gradient, m, v or weight, before or after their rounding."""
    wanted = [e for e in events if e.address.op == slot and e.phase in ("backward", "update")]
    return np.concatenate([np.ravel(getattr(e, of)).astype(np.float32) for e in wanted])


def zeroed(slot):
    """The share of values that were not zero before their rounding, and were zero after it."""
    return np.mean((values(slot, "exact") != 0) & (values(slot) == 0))


slots = ("gradient", "m", "v", "weight")
print(table(["tensor", "became zero", "largest"],
            [[slot, f"{zeroed(slot):.2%}", f"{np.abs(values(slot)).max():.3g}"] for slot in slots]))
print(f"the largest weight was {before:.2f}")

assert zeroed("v") > 0.5
assert zeroed("m") < 0.02
assert zeroed("gradient") < 0.001
assert np.abs(values("weight")).max() > 20 * before

# %% [markdown]
# There it is. Next to no gradient was lost, and next to none of ``m``. But more than half of ``v`` is zero.
#
# Adam moves a weight by
#
# learning rate times m / (sqrt(v) + eps), with eps = 0.00000001.
#
# Usually m and sqrt(v) are about equally large, and the weight moves by about the learning rate. If v was rounded to
# zero and m was not, what remains is m / eps: the gradient times a *hundred million*.
#
# The first v is a hundredth of the squared gradient. It is rounded to zero if it is at most 2^-25, which is the case for
# every gradient below 0.0017. And m is not, down to gradients of 0.0000003. Between those two lie most gradients. In
# the figure each point is a weight of our model in its first step.

# %%
trainer = run.trainer
optimizer = trainer.objective.optimizer
beta1, beta2 = optimizer.betas
v_limit, m_limit = math.sqrt(2.0**-25 / (1 - beta2)), 2.0**-25 / (1 - beta1)
gradient = values("m", "exact") / (1 - beta1)                        # after clipping
ratio = np.abs(values("m")) / (1 - beta1) / (np.sqrt(values("v") / (1 - beta2)) + optimizer.eps)
print(f"v is zero below |g| = {v_limit:.2g}, m below {m_limit:.2g}; {np.mean(ratio > 100):.0%} of the weights move more than "
      f"100 learning rates, the farthest {ratio.max():,.0f}")

assert 0.0017 < v_limit < 0.0018
assert 2.9e-7 < m_limit < 3.1e-7
assert np.mean(ratio > 100) > 0.5
assert ratio.max() > 100_000


def adam_ratio(g, eps, format):
    """|m| / (sqrt(v) + eps) after the first step, with m and v stored in this format."""
    m, v = (np.asarray(round_to(np.asarray(x, np.float32), format), np.float64) for x in ((1 - beta1) * g, (1 - beta2) * g * g))
    return m / (1 - beta1) / (np.sqrt(v / (1 - beta2)) + eps)


with style.applied():
    figure, axes = style.figure(height=4.4)
    grid = np.geomspace(1e-8, 0.5, 2000)
    shown = np.random.default_rng(0).choice(np.flatnonzero(ratio > 0), 1500, replace=False)
    axes.plot(np.abs(gradient[shown]), ratio[shown], color=style.VERMILLION, marker=".", markersize=3, linestyle="none",
              alpha=0.5)
    laws = {"moments in float32, eps 1e-8": (1e-8, FLOAT32, style.BLACK, "-"),
            "moments in float16, eps 1e-8": (1e-8, FLOAT16, style.VERMILLION, (0, (1.5, 1))),
            "moments in float16, eps 1e-4": (1e-4, FLOAT16, style.BLUE, (0, (4, 1.5)))}
    for label, (eps, format, color, dashes) in laws.items():
        y = adam_ratio(grid, eps, format)
        axes.plot(grid[y > 0], y[y > 0], color=color, linestyle=dashes, label=label)
    axes.axvline(v_limit, color=style.GREY, linewidth=1, linestyle="--")
    axes.annotate("v rounds to zero\nto the left of here", (v_limit, 3e-4), xytext=(-6, 0), textcoords="offset points",
                  ha="right", color=style.GREY, fontsize=9)
    axes.set(xscale="log", yscale="log", ylim=(1e-4, 1e6), xlabel="size of the gradient |g| (nats per unit of weight)",
             ylabel="step of the weight\n(in learning rates)", title="How far Adam's first step goes")
    style.legend(figure, [*axes.get_lines()[1:4],
                          style.key("the weights of our model", color=style.VERMILLION, marker=".", linestyle="none")])
    print(style.save(figure, "figures/03-adam-step.png"))

# %% [markdown]
# The black line is what Adam is meant to do: every weight moves by one learning rate, whatever its gradient. The dotted
# line is what it does when v is float16: most weights move by hundreds to a hundred thousand learning rates.
#
# So the chain of events is this:
#
# - step 1: v is rounded to zero, and the update is m / eps;
# - the weights become many times too large, though they are still finite;
# - step 2 or 3: products of such weights exceed 65504 and become infinite, the loss becomes NaN, and so does
#   everything after it.
#
# The gradients were innocent. They come to their end only after the loss has.
