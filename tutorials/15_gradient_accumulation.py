# %% [markdown]
"""
Gradient accumulation
=====================

And what the usual listing gets wrong.

A batch that does not fit into memory can be cut into T *micro-batches*: their gradients are added up, and one update
is made from the sum. Done rightly this *is* the big batch. This script shows

- that it is, to the last bit where the arithmetic is exact, and to rounding elsewhere;
- what goes wrong with micro-batches of unequal size, and with a sum that is kept in float16;
- what a listing does that is often printed under this heading: it divides each gradient by T and applies it at once;
- whether accumulation lowers the risk of exploding gradients, as is said.

The model is an LSTM that tells good reviews from bad ones. The full run takes about three minutes on two cores. With
``MINILLM_QUICK=1`` it makes a few steps of everything, and what is asserted of trained models is asserted for the full
run only.
"""

# %%
import os
import time
from statistics import fmean

import numpy as np

from minillm.autograd.tensor import Tensor
from minillm.data.batches import epoch_batch, padded
from minillm.data.tasks import load_task
from minillm.data.words import WordTokenizer
from minillm.experiments.tables import table
from minillm.formats import FLOAT16, FLOAT32
from minillm.models.lstm import LSTMClassifier, LSTMShape
from minillm.optim import SGD, AdamW
from minillm.plotting.micro_batches import side_by_side
from minillm.precision.loss_scaling import NO_SCALING, LossScaler
from minillm.recipes import recipe_named
from minillm.rounding import round_to
from minillm.training.trainer import Objective, Schedule, Trainer, training_step

QUICK = os.environ.get("MINILLM_QUICK") == "1"
SEEDS = (0,) if QUICK else (0, 1, 2)
T = 4

# %% [markdown]
# One big batch, exactly
# ----------------------
#
# Take a loss whose gradient can be worked out by hand: the mean over rows of x w, so that the gradient of w is the mean
# of the rows. With small whole numbers and 16 rows no operation rounds, and four micro-batches of 4 must give the bits
# of one batch of 16.

# %%


def one_weight(rows, recipe="float32", targets=None):
    """An objective of one vector of weights, plain SGD at its side, for batches (rows,)."""
    ops, w = recipe_named(recipe).bind(0), Tensor(np.zeros(rows.shape[1], np.float32), FLOAT32, name="w")
    return Objective(lambda x: ops.mean(ops.sum(ops.mul(Tensor(x, FLOAT32), w), axis=-1)), ops, SGD([w], momentum=0.0),
                     LossScaler(NO_SCALING), targets)


def gradient_of(rows, parts, accumulation="mean", **more):
    """What an update gets that is made from these parts of the rows."""
    found = {}
    training_step(one_weight(rows, **more), [(part,) for part in parts], 0, 1.0, 0, found.update, accumulation)
    return found["w"]


rows = np.random.default_rng(0).integers(-8, 9, (16, 5)).astype(np.float32)
whole, cut = gradient_of(rows, [rows]), gradient_of(rows, np.split(rows, T))
print(whole, cut)

assert np.array_equal(whole, rows.mean(0))
assert np.array_equal(whole, cut)
assert np.array_equal(gradient_of(rows, np.split(rows, T), "sum"), T * whole)

# %% [markdown]
# ``"sum"`` is the formula that is usually printed: the sum of the micro-batches' gradients, without 1/T. It is the big
# batch at T times the learning rate.
#
# Micro-batches of unequal size
# -----------------------------
#
# The mean of means is the mean only where all have as many targets. Texts have not: padding is no target, nor is what
# a masked language model does not hide. So each micro-batch must count by its share of all targets, which
# ``Objective.targets`` tells.

# %%
unequal = [rows[:1], rows[1:4], rows[4:16]]
of_means = gradient_of(rows, unequal)
weighted = gradient_of(rows, unequal, targets=len)
print("mean of means ", of_means)
print("by their share", weighted)

assert np.allclose(weighted, whole, rtol=0, atol=3 * 16 * 8 * 2.0**-24)          # 3 products and 2 sums of values below 8
assert abs(of_means - whole).max() > 1                                             # the one row counts as much as twelve

# %% [markdown]
# The accumulator has a format
# ----------------------------
#
# In a float16 sum, whatever lies below half an ulp of the sum so far is lost: 2048 + 1 is 2048. Here one micro-batch
# has a large gradient, and 63 have a small one. ``Recipe.gradients`` says in which format the sum is kept.

# %%
steps = [np.full((1, 1), 64 * 2048.0, np.float32), *[np.full((1, 1), 64.0, np.float32)] * 63]
sums = {recipe: gradient_of(steps[0], steps, recipe=recipe)[0] for recipe in ("float32", "float16")}
print({recipe: float(total) for recipe, total in sums.items()}, "the true one is 2111")

assert sums["float32"] == 2111
assert sums["float16"] == 2048                                                     # 63 updates lost
assert round_to(np.float32(2111), FLOAT16) == 2112                                 # the sum itself float16 can hold

# %% [markdown]
# Reviews
# -------
#
# The listing trains an LSTM on reviews. Ours are made by rule: a negator turns an adjective round, an intensifier
# doubles it, so that counting words gets 65 % of them right, and order is all. The model is the listing's, with 64
# channels in place of 128: embedding, LSTM, one logit of the last state.

# %%
task = load_task("reviews")
words = WordTokenizer.train("\n".join(example.source for example in task.train), 10_000)


def arrays_of(examples):
    """Ids (N,40), filled up on the left, and labels (N,)."""
    ids = padded([words.encode(example.source) for example in examples], 40, left=True)
    return ids, np.array([task.classes.index(example.target) for example in examples], np.int32)


train_set, (held_ids, held_labels) = arrays_of(task.train), arrays_of(task.held_out)
print(f"{len(task.train)} reviews to train on, {len(task.held_out)} held out, {words.vocabulary} ids")
print(task.train[0].target, "-", task.train[0].source)


def f1_of(model):
    """Of the positive class, on the held-out reviews."""
    said, true = model.logits(held_ids).argmax(1) == 1, held_labels == 1
    return 2 * (said & true).sum() / (said.sum() + true.sum())


def trainer_of(seed, optimizer, lr, batch, micro_batches, updates, accumulation="mean"):
    """A model and what trains it at a constant rate, without clipping; batches come in the same order for all of one seed."""
    model = LSTMClassifier(LSTMShape(words.vocabulary, 64, 64), recipe_named("float32"), seed)
    objective = Objective(model.loss, model.ops, optimizer(model.parameters()), LossScaler(NO_SCALING))
    return model, Trainer(objective, lambda step, micro: epoch_batch(train_set, batch, seed, step * micro_batches + micro),
                          Schedule(updates, lr, lr, 0, 0, micro_batches, 0, accumulation))


# %% [markdown]
# First the gradient itself: that of a batch of 100 against those of four times 25. Sums are made in another order, so
# they differ by rounding.

# %%
gradients = []
for batch, micro_batches in ((100, 1), (25, T)):
    model, trainer = trainer_of(0, lambda p: SGD(p, momentum=0.0), 1.0, batch, micro_batches, 1)
    found = {}
    training_step(trainer.objective, trainer.batches(0), 0, 1.0, 0, found.update)
    gradients.append(np.concatenate([found[name].ravel() for name in sorted(found)]))
apart = np.linalg.norm(gradients[0] - gradients[1]) / np.linalg.norm(gradients[0])
print(f"relative difference {apart:.1e}; a rounding to float32 is {2.0**-24:.1e}")

# The two differ in the order in which 100 rows are added up, where the error of a sum is at most 100 roundings of its terms' sizes.
assert apart < 100 * 2.0**-24

# %% [markdown]
# What the listing does
# ---------------------
#
# It sets ``accumulation_steps = 4``, divides each gradient by 4, and calls the optimizer *at every micro-step*. Nothing
# is accumulated. Where an update is linear in the gradient, as SGD's is, that is plain training at a quarter of the
# learning rate, and 1/4 costs no digit. So the listing at a rate of 4 must be plain training at a rate of 1, bit for
# bit.

# %%


def sgd(parameters):
    return SGD(parameters, momentum=0.0)


def adam(parameters):
    return AdamW(parameters, (0.9, 0.999), 1e-7, 0.0)


UPDATES_OF = {sgd: 2, adam: 2} if QUICK else {sgd: 60, adam: 125}


def run(seed, optimizer, lr, how):
    """Loss and norm of each attempt, f1 and seconds: plain training, a big batch, or a way to accumulate."""
    updates = UPDATES_OF[optimizer]
    shape = {"plain": (25, 1, T * updates), "big": (25 * T, 1, updates)}.get(how, (25, T, updates))
    model, trainer = trainer_of(seed, optimizer, lr, *shape, how if how not in ("plain", "big") else "mean")
    began = time.perf_counter()
    records = list(trainer.run())
    seconds = time.perf_counter() - began
    return {"losses": [r["loss"] if r["loss"] is not None else np.nan for r in records], "seconds": seconds, "model": model,
            "norms": [r["norm"] if r["norm"] is not None else np.inf for r in records], "f1": f1_of(model),
            "optimizer": optimizer, "updates": trainer.objective.optimizer.steps}


def last(result):
    """The mean loss over the last tenth of what was read."""
    return fmean(result["losses"][-max(1, len(result["losses"]) // 10):])


under_sgd = {(how, lr): run(0, sgd, lr, how) for how, lr in
             (("plain", 1), ("as-listed", 4), ("plain", 4), ("sum", 1), ("mean", 4), ("big", 4), ("sum", 4))}
print(table(["SGD", "lr", "updates", "last losses", "largest norm"],
            [[how, lr, r["updates"], f"{last(r):.4f}", f"{max(r['norms']):.3g}"]
             for (how, lr), r in under_sgd.items()]))


def weights(result):
    return {p.name: p.data for p in result["model"].parameters()}


def same_bits(a, b):
    return all(np.array_equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))


print("as listed at 4 is plain at 1:", same_bits(under_sgd["as-listed", 4], under_sgd["plain", 1]))
print("the sum at 1 is the mean at 4:", same_bits(under_sgd["sum", 1], under_sgd["mean", 4]))

assert same_bits(under_sgd["as-listed", 4], under_sgd["plain", 1])
assert same_bits(under_sgd["sum", 1], under_sgd["mean", 4])

# %% [markdown]
# Adam divides by the size of the gradients, so a factor of 1/4 should not matter at all. It matters through eps, and
# only where gradients are no larger than it: Keras adds its 1e-7 before it corrects the bias, which is 3.2e-6 at the
# first step. Here is the first update as listed, against plain training's, where a gradient is not 0.

# %%
ratios = {}
for eps in (1e-8, 1e-7, 3.2e-6):
    moved = []
    for how in ("mean", "as-listed"):
        model, trainer = trainer_of(0, lambda p, eps=eps: AdamW(p, (0.9, 0.999), eps, 0.0), 1e-3, 25, 1, 1)
        begun = {p.name: p.data for p in model.parameters()}
        if how == "as-listed":                                                     # a quarter of the gradient
            loss = trainer.objective.loss
            trainer.objective.loss = lambda *batch, loss=loss: loss(*batch) * (1 / T)
        trainer.advance()
        moved.append({name: abs(p.data - begun[name]) for name, p in trainer.objective.optimizer.parameters.items()})
    plain, listed = moved
    ratios[eps] = {name: np.median(listed[name][plain[name] > 0] / plain[name][plain[name] > 0])
                   for name in ("lstm.weight", "lstm.recurrent", "head.weight")}
print(table(["eps", *ratios[1e-8]], [[f"{eps:g}", *(f"{r:.3f}" for r in row.values())] for eps, row in ratios.items()]))

assert ratios[1e-8]["lstm.weight"] > ratios[1e-7]["lstm.weight"] > ratios[3.2e-6]["lstm.weight"]
assert ratios[3.2e-6]["lstm.weight"] < 0.7

# %% [markdown]
# Later the bias is corrected and gradients have grown. Now the whole training, as often as there are seeds.

# %%
under_adam = {(how, seed): run(seed, adam, 3e-3, how) for seed in SEEDS for how in ("plain", "as-listed", "big")}
under_adam |= {(how, SEEDS[0]): run(SEEDS[0], adam, 3e-3, how) for how in ("mean", "sum")}


def of(how, key):
    """One number for each seed: what `key` makes of a run."""
    return [key(result) for (name, _), result in under_adam.items() if name == how]


lines = []
for how in ("plain", "as-listed", "mean", "big", "sum"):
    f1, loss = of(how, lambda r: r["f1"]), of(how, last)
    norms, seconds = of(how, lambda r: max(r["norms"])), of(how, lambda r: r["seconds"])
    lines.append([how, len(of(how, len)), f"{fmean(f1):.3f}", f"{min(f1):.3f} to {max(f1):.3f}", f"{fmean(loss):.4f}",
                  ", ".join(f"{norm:.2f}" for norm in norms), f"{fmean(seconds):.0f}"])
print(table(["Adam", "seeds", "f1", "from, to", "last losses", "largest norm applied", "s"], lines))


def curve(result, key, make, points=25):
    """Over the reviews so far: what `make` makes of each of 25 stretches of a run."""
    stretches = np.array_split(np.array(result[key]), min(points, len(result[key])))
    read = 25 * T * UPDATES_OF[result["optimizer"]]
    return read * np.arange(1, len(stretches) + 1) / len(stretches), [make(x) for x in stretches]


shown = [how for how, seed in under_adam if seed == 0]
print(side_by_side({"Adam, lr 0.003": {how: curve(under_adam[how, 0], "losses", np.mean) for how in shown}},
                   "figures/15-losses.png", "The training loss, by what is made of micro-batches", "reviews read", "loss (nats)",
                   log=False))
print(side_by_side({"Adam, lr 0.003": {how: curve(under_adam[how, 0], "norms", max) for how in shown},
                    "SGD, lr 4": {how: curve(under_sgd[how, 4], "norms", max) for how in shown}},
                   "figures/15-norms.png", "The largest norm that the optimizer gets", "reviews read", "norm"))

mean, big = (weights(under_adam[how, 0]) for how in ("mean", "big"))
moved = max(abs(mean[name] - big[name]).max() for name in mean)
largest = {how: max(under_adam[how, 0]["norms"]) for how in ("mean", "big")}
print(f"mean and big: weights differ by at most {moved:.1e}, largest norms {largest['mean']:.4f} and {largest['big']:.4f}")

if not QUICK:
    assert min(of("plain", lambda r: r["f1"]) + of("as-listed", lambda r: r["f1"])) > 0.9
    assert max(of("big", lambda r: r["f1"])) < 0.85                                # a quarter as many updates
    assert fmean(of("plain", lambda r: max(r["norms"]))) > fmean(of("big", lambda r: max(r["norms"])))
    assert moved < 1e-2                                                            # the weights themselves move by tenths
    assert abs(largest["mean"] / largest["big"] - 1) < 1e-2
    assert max(under_adam["sum", 0]["norms"]) > 2 * largest["mean"]
    assert max(under_sgd["sum", 4]["norms"]) > 100 * max(under_sgd["big", 4]["norms"])

# %% [markdown]
# What the listing gets wrong
# ---------------------------
#
# The mean over micro-batches and the big batch are one run: the same losses, norms and f1, and weights that differ by
# roundings. The listing is plain training with batches of 25, under Adam too but for the first steps: f1 0.956 against
# 0.960, means of three seeds whose spread is 0.02. That is why it seems to work. Whoever believes
# to train with batches of 100 gets four times as many updates, and in a short training many noisy updates are worth
# more than few exact ones: after the same 12,500 reviews the true batch of 100 is at f1 0.754. What the listing does
# not give is what accumulation is for: the gradient of a batch that does not fit.
#
# Its second setting, a float16 constant that nothing reads, changes nothing at all.
#
# Does accumulation lower the risk of exploding gradients?
# --------------------------------------------------------
#
# *Holds when* the comparison is with the micro-batch by itself: the mean of four gradients is less noisy than one, as
# any larger batch's is. Under Adam the largest norms of three seeds were 1.9 to 3.5, with batches of 25 4.1 to 5.7.
# Against the big batch that it stands for it changes nothing: their largest norms are the same number. And the sum
# that is usually printed makes it worse: under SGD at a rate of 4 its largest gradient was 97 where the mean's was
# 0.39, and the loss ended at 22. What bounds a gradient is clipping (``Schedule.clip``), which this script switched
# off.
