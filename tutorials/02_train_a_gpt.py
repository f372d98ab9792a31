# %% [markdown]
"""
Train a GPT
===========

A language model reads a text and says, for every character that could come next, how likely it is. This tutorial
trains a very small one: one transformer block with some 60,000 weights, on the language reference that every Python
carries. It goes through all the parts once:

- text, tokens, windows, and a yardstick to measure the model with;
- the model, and one training step, first by hand and then line by line as the library does it;
- training, in float32 and in float16 side by side;
- what was learned: text, attention, embeddings; and the memory that it took.

The engine behind it, and words such as *gradient*, *rounding* and *recipe*, are the subject of tutorial 01.

The text differs a little between versions of Python, so the script asserts differences and ratios between runs, and
no loss as such. It runs for about half a minute. With ``MINILLM_QUICK=1`` it trains for 100 steps instead of 600, at
half the learning rate, and asserts less of the trained model: that it beats the frequencies of single characters, not
that it beats those of pairs, and nothing of where its attention looks.
"""

# %%
import dataclasses
import inspect
import math
import os

import numpy as np
from threadpoolctl import threadpool_limits

from minillm import backward, watch
from minillm.experiments.data import load_data
from minillm.experiments.options import TrainOptions
from minillm.experiments.running import follow, new_run
from minillm.experiments.tables import table
from minillm.models.ngram import NGram
from minillm.plotting import style
from minillm.plotting.ngrams import among_ngrams
from minillm.plotting.recipes import PARTS
from minillm.plotting.training import loss_curves
from minillm.training.memory import measure
from minillm.training.metrics import curves
from minillm.training.scores import bits_per_character
from minillm.training.trainer import one_update

QUICK = os.environ.get("MINILLM_QUICK") == "1"
threadpool_limits(1)        # products as small as these are slower on two threads than on one

steps = 100 if QUICK else 600
options = TrainOptions(layers=1, heads=4, channels=64, context=32, batch=16, steps=steps, warmup=steps // 10,
                       lr=2e-3 if QUICK else 4e-3, min_lr=1e-4, eval_every=50 if QUICK else 100)

# %% [markdown]
# From text to numbers
# --------------------
#
# The text is cut into paragraphs, and every tenth paragraph is held back as the *validation* part: text that the
# model is never trained on, so that it shows whether something general was learned.
#
# A *tokenizer* turns text into whole numbers. The simplest gives every character its place in an alphabet.

# %%
data = load_data(options)
tokenizer, V = data.tokenizer, data.tokenizer.vocabulary
print(f"{len(data.train):,} characters to train on, {len(data.validation):,} to validate with, {V} different ones")

ids = tokenizer.encode("The for statement")
print(ids)                  # 17 numbers
print(tokenizer.decode(ids))                                         # The for statement

assert tokenizer.decode(ids) == "The for statement"
assert 80 < V < 200
assert len(data.train) > 7 * len(data.validation)

# %% [markdown]
# A yardstick
# -----------
#
# If a model gave the character that really came the probability p, it is charged -log(p). The mean of that over a
# text is its *loss*, in **nats** (with the natural logarithm). A model that knows nothing gives each of V characters
# 1/V and pays log(V). The exponential of a loss is called perplexity: as unsure as among that many equally likely
# characters.
#
# Three tables tell what such a number is worth. They are counted from the training part and charged on the validation
# part:
#
# - the *unigram* table: how often each character occurs;
# - the *bigram* table: how often each character follows each other one;
# - the *trigram* table: how often each follows each pair.
#
# What never occurred must not get probability 0, or one surprise would cost infinitely much. So each table is filled
# up with two imagined observations a row that follow the simpler table.


# %%
def table_losses(train, validation, V):
    """The losses of the three tables in nats a character."""
    unigram = (np.bincount(train, minlength=V) + 1.0) / (len(train) + V)                     # (V,)
    pairs = np.zeros((V, V))
    np.add.at(pairs, (train[:-1], train[1:]), 1)
    bigram = (pairs + 2 * unigram) / (pairs.sum(-1, keepdims=True) + 2)                      # (V,V)
    triples = np.bincount((train[:-2] * V + train[1:-1]) * V + train[2:], minlength=V**3).reshape(V, V, V)
    trigram = (triples + 2 * bigram) / (triples.sum(-1, keepdims=True) + 2)                  # (V,V,V)
    charged = {"unigram": unigram[validation], "bigram": bigram[validation[:-1], validation[1:]],
               "trigram": trigram[validation[:-2], validation[1:-1], validation[2:]]}
    return bigram, {name: float(-np.log(p).mean()) for name, p in charged.items()}


bigram, tables = table_losses(data.train, data.validation, V)
print(f"nothing known: {math.log(V):.2f} nats;", ", ".join(f"{name}: {loss:.2f}" for name, loss in tables.items()))

assert math.log(V) > tables["unigram"] + 1
assert tables["unigram"] > tables["bigram"] + 0.5
assert tables["bigram"] > tables["trigram"] + 0.4

# %% [markdown]
# Windows
# -------
#
# The model reads 32 characters at a time, its *context*. A batch is 16 such windows from random places. The *target*
# of each character is the one after it, so that a window of 32 asks 32 questions at once: what comes after the first,
# after the first two, and so on.

# %%
run = new_run(options, data)
model, trainer = run.model, run.trainer
ids, targets = trainer.batch(0, 0)                                   # (B,T) int32 each
print(ids.shape, repr(tokenizer.decode(ids[0])), "->", repr(tokenizer.decode(targets[0])))

assert ids.shape == targets.shape == (16, 32)
assert np.array_equal(ids[:, 1:], targets[:, :-1])

# %% [markdown]
# The model
# ---------
#
# Every character of the window becomes a row of 64 numbers (channels), and so does every position; the two are added.
# Then comes the *block*:
#
# - **attention**: each position looks back at the earlier ones and takes from them what it asks for. Its *query* is
#   compared with their *keys*, and the *values* behind the keys that fit are mixed. Four heads do so side by side.
# - **mlp**: each position by itself: 64 channels to 256, a bend (GELU), and back to 64.
#
# Both add their result to the row that they started from, and both read it through a *layer norm*, which brings every
# row to mean 0 and spread 1. At last each row is compared with the row of every character (the same table as at the
# entrance), which gives V numbers, the *logits*. The larger a character's logit, the likelier it is.

# %%
for parameter in model.parameters():
    print(f"{parameter.name:30}{parameter.shape!s:12}{parameter.size:7,}")
print(f"{'':42}{sum(p.size for p in model.parameters()):7,}")

before = model.loss(ids, targets).item()
print(f"loss before training: {before:.3f}, log(V) = {math.log(V):.3f}")

assert sum(p.size for p in model.parameters()) == 64 * (V + 32 + 12 * 64 + 3)
assert abs(before - math.log(V)) < 0.25

# %% [markdown]
# An untrained model pays about log(V), what it costs to know nothing. A number far from it would be the first sign of
# a mistake. And this is how it writes, one character drawn after the other from the probabilities that it gives:

# %%
PROMPT = "The "


def sample(model, characters=160):
    """A continuation of the prompt. The temperature, 0.8, sharpens the probabilities a little; the seed makes it repeatable."""
    return model.generate(tokenizer.encode(PROMPT), characters, temperature=0.8, seed=1)


untrained = sample(model)
print(tokenizer.decode(untrained))

# %% [markdown]
# A training step by hand
# -----------------------
#
# The gradient of every weight, from one batch:

# %%
weights = {p.name: p.data.copy() for p in model.parameters()}
model.ops.context.begin(step=0)                                      # operations are numbered from 0 again
gradients = backward(model.loss(ids, targets))
norm = math.sqrt(sum(float(np.sum(g * g)) for g in gradients.values()))
print(f"length of all gradients together: {norm:.3f}")

assert gradients.keys() == weights.keys()

# %% [markdown]
# The optimizer is **AdamW**. It remembers two numbers for each weight, its *moments*:
#
# - ``m``, a running mean of the gradient: the direction;
# - ``v``, a running mean of the squared gradient: how large it usually is.
#
# The weight moves by the learning rate times m / sqrt(v). Both means begin at 0, which is corrected for at the start.
# ``eps``, 0.00000001, only keeps the division from going wrong where v is 0. Remember it: tutorial 03 is about it.
#
# Two more things happen. Gradients whose length together exceeds 1 are *clipped*: all are scaled down by the same
# factor. And matrices *decay*: they are pulled towards 0 a little. The learning rate itself rises from almost 0 in
# the first steps, the *warm-up*, and then falls along half a cosine.

# %%
lr, clip = trainer.schedule.lr_at(0), min(1.0, options.clip / norm)
beta1, beta2, eps = options.beta1, options.beta2, 1e-8
by_hand = {}
for name, w in weights.items():
    g = gradients[name] * clip
    m, v = (1 - beta1) * g, (1 - beta2) * g * g                      # from m = v = 0
    update = (m / (1 - beta1)) / (np.sqrt(v / (1 - beta2)) + eps)
    decay = 1 - lr * options.weight_decay if w.ndim > 1 else 1
    by_hand[name] = w * decay - lr * update

trainer.advance()                                                    # the same step, by the library
difference = max(np.abs(p.data - by_hand[p.name]).max() for p in model.parameters())
moved = max(np.abs(p.data - weights[p.name]).max() for p in model.parameters())
print(f"weights moved by up to {moved:.1e}; by hand and by the library they differ by {difference:.1e}")

assert difference < 3e-7                                             # float32's last digit at 1
assert moved > 100 * difference

# %% [markdown]
# In the first step m is a multiple of the gradient and sqrt(v) the same multiple of its size. So m / sqrt(v) is 1 or
# -1, and every weight moves by the learning rate, however large or small its gradient is. *Adam does not care about
# the size of gradients.* This too will matter in tutorial 03.

# %%
moves = np.concatenate([(weights[p.name] - p.data).ravel() / lr for p in model.parameters() if p.ndim > 1])
share = np.mean(np.abs(np.abs(moves) - 1) < 0.05)
print(f"{share:.1%} of the matrix entries moved by the learning rate, give or take 5 %")

assert share > 0.95

# %% [markdown]
# The same, line by line
# ----------------------
#
# This is the function that every training run of the library goes through.

# %%
print(inspect.getsource(one_update))

# %% [markdown]
# - ``parts`` may be several *micro-batches*, whose gradients are added up before the update. Here it is one.
# - ``objective.loss(*batch)`` is the forward pass.
# - ``backward(loss * (scale / divisor))``: the loss is multiplied by the *loss scale* before the backward pass,
#   so that small gradients lie within float16's range. In float32 the scale is 1.
# - ``global_norm(...)`` measures all gradients, scaled back. If any of them is infinite or not a number, so is the
#   norm. That is the one check of the step.
# - ``if finite``: the optimizer unscales, clips and updates in one go. If not, *nothing* is touched, and the step is
#   skipped.
# - ``scaler.update(finite)``: after a skipped step the scale is halved, after many good ones it is doubled.
#
# Train
# -----
#
# Twice the same: the same first weights, the same batches, the same learning rates. Only the *recipe* differs. With
# ``float16-mixed`` weights and activations are float16, and the optimizer updates float32 weights.


# %%
def train(recipe):
    """A run under this recipe, to its end."""
    run = new_run(dataclasses.replace(options, recipe=recipe), data)
    follow(run, title=recipe)
    print(f"{recipe:14} validation loss {run.val_loss:.4f} nats, perplexity {math.exp(run.val_loss):.1f}, {run.seconds:.0f} s")
    return run


runs = {recipe: train(recipe) for recipe in ("float32", "float16-mixed")}
print(loss_curves({recipe: curves(run.records) for recipe, run in runs.items()}, "figures/02-loss.png",
                  "A small GPT and three tables", reference="float32", levels=tables))

single, half = runs["float32"].val_loss, runs["float16-mixed"].val_loss
print(f"float16-mixed is off by {half - single:+.4f} nats, {runs['float16-mixed'].trainer.skipped} steps were skipped")

assert single < tables["unigram"] - 0.3
assert abs(half - single) < 0.01
if not QUICK:
    assert single < tables["bigram"] - 0.3
    assert single > tables["trigram"] + 0.1

# %% [markdown]
# The two runs end within a hundredth of a nat of each other; usually it is less than a thousandth. Half the bits of
# weights and activations made no difference that counts. (Under ``float16-mixed``, that is. Tutorial 03 takes away
# its safeguards one by one.)
#
# The model has left the bigram table behind by more than 0.3 nats. The trigram table is still ahead of it by more
# than 0.1: one block, 600 steps and 60,000 weights against a million counted triples. That is worth knowing before
# one is impressed by a falling curve. The published small configuration (``minillm train``: four blocks, 128
# channels, 2,000 steps) takes some minutes more.
#
# Longer memories
# ---------------
#
# Counting goes further than triples. An *n-gram* model looks at the n - 1 characters before; where it has not seen
# them, it falls back on fewer, with the smoothing of Kneser and Ney. In bits per character, since models that cut text
# differently can be compared in those:

# %%
counted = [NGram(V, n).fit(data.train) for n in range(1, 5 if QUICK else 11)]
ngrams = [bits_per_character(model.loss(data.validation), 1) for model in counted]
validated = {recipe: curves(run.records) for recipe, run in runs.items()}
print(table(["n", "bits per character", "counts to keep"],
            [[model.order, f"{bits:.3f}", f"{sum(len(level.keys) for level in model.levels):,}"]
             for model, bits in zip(counted, ngrams, strict=True)]))
print(among_ngrams({"pydoc": {recipe: (found["val_steps"], [bits_per_character(loss, 1) for loss in found["val_loss"]])
                             for recipe, found in validated.items()}}, {"pydoc": ngrams}, "figures/02-ngrams.png",
                   "A small GPT in two recipes, among n-grams"))

assert all(longer < shorter for longer, shorter in zip(ngrams[1:], ngrams, strict=False))
assert abs(ngrams[0] - bits_per_character(tables["unigram"], 1)) < 0.1
assert bits_per_character(single, 1) > ngrams[3]

# %% [markdown]
# Each longer memory is worth less than the one before: 2.04 bits with n = 4, 1.68 with 7, 1.64 with 10. And it costs
# more: for n = 7 there are 320,000 counts to keep, five times the weights of this GPT. At this scale counting is hard
# to beat.
#
# Where does that scale end? On twelve times as much text, the leads of an encyclopedia (``--corpus wiki``), n = 4, 7 and
# 10 reach 2.34, 1.70 and 1.64 bits, and the published configuration 2.70 in its 2,000 steps. More steps, tokens of 2.6
# characters and windows of 128 of them (``minillm train --corpus wiki --tokenizer bpe --vocab 1024 --context 128
# --batch 12 --lr 2e-3 --warmup 200 --steps 20000``) take the same four blocks past them, one seed: 1.81 bits after 5,000
# steps, 1.68 after 10,000, 1.63 after 13,000 and 1.60 after 15,000, which took three quarters of an hour of one core.
# A million weights are then ahead of 7.6 million counts.
#
# What it writes
# --------------

# %%
trained = sample(runs["float32"].model)
print(tokenizer.decode(untrained))
print("---")
print(tokenizer.decode(trained))


def surprise(ids):
    """What the bigram table is charged for a text, in nats a character: low for text that looks like the language."""
    return float(-np.log(bigram[ids[:-1], ids[1:]]).mean())


print(f"surprise of the bigram table: {surprise(untrained):.1f} nats a character before, {surprise(trained):.1f} after")

assert surprise(untrained) > surprise(trained) + 2

# %% [markdown]
# Not yet English, but words of the right length, with vowels where vowels go. The bigram table, asked as a neutral
# judge, is at least 2 nats a character less surprised by it than by what the untrained model wrote.
#
# What the embeddings know
# ------------------------
#
# Every character has a row of 64 numbers, its *embedding*. Nobody told the model what a vowel or a digit is. Look
# which rows point in the same direction (their *cosine* is near 1).

# %%
table_of = runs["float32"].model.tokens.weight.data                  # (V,C)
directions = table_of / np.linalg.norm(table_of, axis=1, keepdims=True)
cosines = directions @ directions.T                                  # (V,V)


def places(characters):
    """The ids of characters."""
    return tokenizer.encode(characters)


for character in "aeTS57(":
    nearest = np.argsort(-cosines[places(character)[0]])[1:6]
    print(character, "is near", " ".join(repr(tokenizer.decode([i]))[1:-1] for i in nearest))


def mean_cosine(these, those):
    """The mean cosine between two groups of characters, each with every other one."""
    return float(np.mean([cosines[i, j] for i in places(these) for j in places(those) if i != j]))


vowels, consonants, digits = "aeiou", "bcdfghklmnprstvw", "0123456789"
groups = {"vowels": (vowels, consonants), "digits": (digits, vowels)}
for name, (group, others) in groups.items():
    print(f"{name}: {mean_cosine(group, group):.2f} among themselves, {mean_cosine(group, others):.2f} with the others")
    assert mean_cosine(group, group) > mean_cosine(group, others) + 0.1

# %% [markdown]
# Where attention looks
# ---------------------
#
# The attention weights are never stored: the rule computes them and throws them away. But an observer is shown the
# inputs of every operation, and from query and key they can be had again.


# %%
def attention_weights(model, ids):
    """How much each position (row) takes from each (column), for ids (N,T): (N,heads,T,T), rows sum to 1."""
    seen = []
    with model.ops.context.no_record(), watch(seen.append):
        model(ids)
    query, key, _ = next(event.inputs[:3] for event in seen if event.address.op == "attention")
    split = (*query.shape[:2], options.heads, -1)
    q, k = (x.data.reshape(split).swapaxes(1, 2) for x in (query, key))                      # (N,H,T,D)
    scores = q @ k.swapaxes(2, 3) / math.sqrt(q.shape[-1])                                   # (N,H,T,T)
    scores = np.where(np.tri(ids.shape[1], dtype=bool), scores, -np.inf)                     # nobody sees the future
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


model, T = runs["float32"].model, options.context
many = attention_weights(model, data.validation[: 200 * T].reshape(200, T)).mean(0)          # (H,T,T)
reach = np.array([[np.diagonal(head, -d)[T // 2 - d:].mean() for d in range(T // 2)] for head in many])      # (H,T/2)
for head, share in enumerate(reach):
    print(f"head {head}: {share[0]:.0%} on the character itself, {share[1]:.0%} on the one before, {share[2]:.0%} on the next")

even = np.mean(1 / np.arange(T // 2 + 1, T + 1))                     # the weight if all that is visible counted alike
assert 0.04 < even < 0.05
if not QUICK:
    assert reach[:, :4].sum(1).min() > 2 * 4 * even                  # every head, on the nearest four characters

# %%
sentence = "The for statement is"
one = attention_weights(model, tokenizer.encode(sentence)[None])[0]
head = int(reach[:, 1].argmax())
with style.applied():
    figure, (left, right) = style.figure(1, 2, height=3.9, width_ratios=(1.1, 1))
    picture = left.imshow(one[head], cmap="Greys", vmin=0, vmax=1)
    letters = [character.replace(" ", "␣") for character in sentence]
    left.set(title=f"Head {head} on one sentence", xticks=range(len(letters)), xticklabels=letters, yticks=range(len(letters)),
             yticklabels=letters, xlabel="looks at", ylabel="the position after which to predict", aspect="auto")
    left.grid(False)
    figure.colorbar(picture, ax=left, label="attention weight (no unit)", shrink=0.8)
    for i, (share, look) in enumerate(zip(reach, style.looks([f"head {i}" for i in range(len(reach))]).values(), strict=True)):
        right.plot(share, label=f"head {i}", **look.line, marker=look.marker, markersize=5)
    right.axhline(even, color=style.GREY, linestyle=":", label="all visible characters alike")
    right.set(title="How far back, 200 windows", xlabel="distance (characters)", ylabel="mean attention weight (no unit)")
    style.whole_ticks(right.xaxis)
    style.legend(figure, right.get_lines())
    print(style.save(figure, "figures/02-attention.png"))

# %% [markdown]
# Nobody told it about neighbours either. Yet every head puts more than twice as much weight on the nearest four
# characters as it would if it looked at all of them alike. That is where a language with words has most of what can
# be known about the next character.
#
# The memory it took
# ------------------
#
# ``measure`` walks the graph of one batch and adds up the distinct arrays that are alive, by *role*. What float16
# saves are activations. The weights take more: the float32 masters, and the float16 copies beside them.

# %%
sizes = {recipe: measure(run.trainer.objective, run.trainer.batch(0, 0))["bytes"] for recipe, run in runs.items()}
print(table(["recipe", *(f"{role}, kB" for role in sizes["float32"])],
            [[recipe, *(f"{size / 1000:,.0f}" for size in found.values())] for recipe, found in sizes.items()]))

with style.applied():
    figure, axes = style.figure(height=2.2)
    ends = np.zeros(len(sizes))
    for role, color in PARTS.items():
        widths = np.array([found[role] for found in sizes.values()]) / 1000
        axes.barh(list(sizes), widths, left=ends, color=color, edgecolor="black", linewidth=0.5, height=0.6, label=role)
        ends = ends + widths
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set(title="Memory of one training step", xlabel="kB (1,000 bytes)")
    style.legend(figure, axes.containers)
    print(style.save(figure, "figures/02-memory.png"))

ratio = {role: sizes["float16-mixed"][role] / sizes["float32"][role] for role in sizes["float32"]}
assert 0.5 <= ratio["activations"] < 0.6
assert 1.4 < ratio["weights"] <= 1.5
assert ratio["gradients"] == ratio["optimizer"] == 1
assert sizes["float32"]["activations"] > 3 * sizes["float32"]["weights"]

# %% [markdown]
# Even in this small model the activations of one batch take more than three times what the weights take, so halving
# them outweighs half a copy of the weights.
#
# What to take along
# ------------------
#
# - A loss means nothing without a yardstick: log(V), and what a table of pairs or triples would pay.
# - A training step is: forward, backward, one check that everything is finite, and an update by moments.
# - Adam divides the gradient by its usual size, so the size does not matter, as long as the division works.
# - Mixed float16 trained as well as float32 with nearly half of the activation memory.
