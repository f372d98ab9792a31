# %% [markdown]
"""
Pruning and distillation
========================

What can be taken out of a trained model, and what does it cost?

*Unstructured* pruning sets single weights to 0. The arrays keep their shapes, and nothing gets faster by itself.
*Structured* pruning takes whole heads, channels and layers away: less to store, less to multiply.
*Distillation* lets a small model learn from the probabilities of a large one.

All of it is measured here on a small GPT that has just begun to learn, with three seeds, and each time beside the same
model trained for as many further steps without pruning. On one machine with two cores it takes a few minutes. With
``MINILLM_QUICK=1`` models train for 20 steps and one seed, and what is asserted of losses is asserted for the full run
only.
"""

# %%
import dataclasses
import os
from statistics import fmean

import numpy as np

from minillm.conversion.int8_model import to_int8, under, weight_bytes
from minillm.data.batches import random_batch
from minillm.experiments.data import load_data
from minillm.experiments.options import TrainOptions, make_trainer
from minillm.experiments.running import Run, follow, new_run
from minillm.experiments.tables import table
from minillm.hybrid.distillation import distill
from minillm.hybrid.pruning import cubic, largest, prune
from minillm.hybrid.structure import prune_structure
from minillm.plotting.quantization import over
from minillm.plotting.quantized_training import by_seed
from minillm.recipes import PRESETS
from minillm.training.evaluation import validation_loss

QUICK = os.environ.get("MINILLM_QUICK") == "1"
STEPS, SEEDS = (20, (1,)) if QUICK else (200, (1, 2, 3))
first = TrainOptions(layers=2, heads=4, channels=64, steps=STEPS, lr=3e-3, min_lr=1e-3, warmup=STEPS // 10,
                     eval_every=0, watch_every=0)
further = dataclasses.replace(first, lr=1e-3, min_lr=1e-4)
data = load_data(first)
data = dataclasses.replace(data, validation=data.validation[:64 * (40 if QUICK else 200) + 1])

# %% [markdown]
# Which weights, and when
# -----------------------
#
# Half of the weights go, those of the least size in each matrix. The pattern "2:4" wants two zeros in each four
# neighbours, which some tensor cores can skip. Weights do not go at once: their share grows along a cubic curve, fast
# at first, while there is much to spare, and the model mends itself on the way.

# %%
scores = np.abs(np.random.default_rng(0).standard_normal((64, 64), np.float32))
masks = {pattern: largest(scores, 0.5, pattern) for pattern in ("any", "2:4")}
kept = {pattern: float(scores[mask].sum() / scores.sum()) for pattern, mask in masks.items()}
print(", ".join(f"{pattern}: {share:.1%} of the size of all weights is kept" for pattern, share in kept.items()))
steps = list(range(0, STEPS + 1, max(STEPS // 40, 1)))
shares = [100 * cubic(step, 0, STEPS // 2, 0.5) for step in steps]
print(over({"share of the weights": (steps, shares)}, "figures/19-schedule.png", "How many weights are 0, step by step",
           "step", "share (%)", markers=False))

assert all((~mask).sum() == mask.size // 2 for mask in masks.values())
assert (masks["2:4"].reshape(-1, 4).sum(-1) == 2).all()
assert kept["any"] > kept["2:4"] > 0.7
assert shares[0] == 0
assert shares[-1] == 50

# %% [markdown]
# What half of the weights are worth
# ----------------------------------
#
# Three models, each trained, then trained further: dense, with half of its weights going in the first half of these
# steps, and by movement: there what stays is not what is large, but what training moves away from zero.

# %%
WAYS = {"magnitude": {}, "2:4 by magnitude": {"pattern": "2:4"}, "movement": {"score": "movement"}}
dense, trained, losses = {}, {}, {way: [] for way in ("dense", *WAYS)}
for seed in SEEDS:
    run = new_run(dataclasses.replace(first, seed=seed), data)
    follow(run, quiet=True)
    trained[seed] = run.model
    for way in losses:
        run = new_run(dataclasses.replace(further, seed=seed), data, weights=trained[seed])
        pruner = prune(run.model, run.trainer, **WAYS[way]) if way in WAYS else None
        follow(run, quiet=True)
        losses[way].append(run.val_loss)
        if pruner is None:
            dense[seed] = run
        else:
            assert pruner.share == 0.5
        if way == "magnitude":
            pruned = run.model
above = {way: [a - d for a, d in zip(losses[way], losses["dense"], strict=True)] for way in WAYS}
print(table(["weights", "nats, mean of the seeds", "above dense", "of each seed"],
            [[way, f"{fmean(found):.4f}", f"{fmean(above.get(way, [0])):+.4f}",
              " ".join(f"{a:+.4f}" for a in above.get(way, []))] for way, found in losses.items()]))
print(by_seed(above, "figures/19-unstructured.png", "Half of the weights set to 0, after the same further steps",
              "loss above the dense model's (nats)"))
before = validation_loss(trained[SEEDS[0]], data.validation)[0]
print(f"seed {SEEDS[0]}: {before:.4f} nats before the further steps, {losses['dense'][0]:.4f} after them, dense")

if not QUICK:
    assert fmean(above["magnitude"]) < 0.03
    assert fmean(above["2:4 by magnitude"]) < 0.03
    assert before > losses["dense"][0]

# %% [markdown]
# Half of the weights of the blocks are 0, and the loss is 0.013 nats above the dense model's, 0.017 with two zeros in
# each four (where this was written; 0.011 to 0.021 over the seeds). Both are less than the further steps brought,
# 0.09. Movement pruning is far behind, 0.11. Its authors had a pretrained model to adapt, and what fine-tuning moves
# away from zero was their clue; a model that is still learning its text moves everything, and 200 steps are few to
# sum over.
#
# That half of the weights can go "for free": *does not hold* in so short a training; it costs a hundredth of a nat.
#
# And as int8
# -----------
#
# Zeros stay zeros when weights become int8 codes, so both can be had.

# %%
sparse = to_int8(under(pruned, PRESETS["float32"]))
codes = sparse.block0.mlp.up.codes
rounded = validation_loss(sparse, data.validation)[0]
print(f"{weight_bytes(pruned):,} bytes, {weight_bytes(sparse):,} as int8, of whose codes {np.mean(codes == 0):.1%} are 0; "
      f"loss {rounded:.4f}, in float32 {losses['magnitude'][-1]:.4f}")

assert np.mean(codes == 0) >= 0.5
assert weight_bytes(sparse) < weight_bytes(pruned) / 3
assert abs(rounded - losses["magnitude"][-1]) < 0.01

# %% [markdown]
# Structure, chosen by what it costs
# ----------------------------------
#
# What does the loss become when a head is taken away, or 32 channels of an MLP, or a whole layer? Measure each, take
# the cheapest for its weights, measure again, until 0.1 nats are spent.

# %%
found = {}
for seed in SEEDS:
    batches = [random_batch(data.train, 8 if QUICK else 32, further.context, (seed, 0))]
    found[seed] = prune_structure(dense[seed].model, batches, budget=0.1)
costs = found[SEEDS[0]].costs
print(table(["part", "loss it costs (nats)"], [[name, f"{cost:+.4f}"] for name, cost in sorted(costs.items(), key=lambda i: i[1])]))
of_each = {name: [s.costs[name] for s in found.values()] for name in costs if "channels" not in name}
print(by_seed(of_each, "figures/19-parts.png",
              "What a head, or a whole layer, is worth", "loss when it is taken away (nats)"))
print("gone:", ", ".join(name for name, _ in found[SEEDS[0]].removed) or "nothing")
sizes = {seed: sum(p.size for p in s.model.parameters()) / sum(p.size for p in dense[seed].model.parameters())
         for seed, s in found.items()}
print(table(["seed", "heads and MLP channels of each block", "weights left", "loss before", "and after, on the same batch"],
            [[seed, s.model.shape.widths, f"{sizes[seed]:.0%}", f"{s.before:.4f}", f"{s.after:.4f}"] for seed, s in found.items()]))

assert all(s.after <= s.before + 0.1 for s in found.values())
assert all(max(costs[f"block{i}.head{h}"] for h in range(4)) < costs[f"block{i}.attention"] + 0.05 for i in range(2)) or QUICK

# %% [markdown]
# The smaller model mended, with and without a teacher
# ----------------------------------------------------
#
# The smaller model is trained further: on the text alone, or with the dense model as a teacher, too. So is the dense
# one.

# %%
after = {"dense": [], "smaller": [], "smaller, with a teacher": []}
for seed in SEEDS:
    for way, ends in after.items():
        model = dense[seed].model if way == "dense" else found[seed].model
        model, options = under(model, PRESETS["float32"]), dataclasses.replace(further, seed=seed + 10)
        run = Run(options, data, model, make_trainer(options, data, model))
        if way == "smaller, with a teacher":
            distill(model, [dense[seed].model], run.trainer, temperature=1.0, soft=0.5)
        follow(run, quiet=True)
        ends.append(run.val_loss)
behind = {way: [a - d for a, d in zip(ends, after["dense"], strict=True)] for way, ends in after.items()}
print(table(["model", "nats, mean of the seeds", "above dense", "of each seed"],
            [[way, f"{fmean(ends):.4f}", f"{fmean(behind[way]):+.4f}", " ".join(f"{b:+.4f}" for b in behind[way])]
             for way, ends in after.items()]))

if not QUICK:
    assert max(sizes.values()) < 0.5
    assert fmean(behind["smaller"]) < 0.06
    assert fmean(behind["smaller"]) < fmean(behind["smaller, with a teacher"])

# %% [markdown]
# Where this was written the search left 36 to 40 % of the weights: nearly the whole MLP or attention of the last
# block went, and half of the first block's MLP, while one head there (in the first seed) costs more than the last
# block's MLP. After further steps the smaller model is 0.036 nats above the dense one, of 0.09 that its structure had
# cost.
#
# The teacher does harm: 0.060 instead of 0.036. It is the dense model as it was before these steps, so it knows less
# than its student could learn from the text. That a small model learns better from a large one *holds when* the teacher
# is better than what the student would become alone; tutorial 20 gives it three teachers.
#
# And what is saved is real: with a head in four and 30 % of the MLP channels gone, a step of a GPT of 4 layers with 128
# channels took 1.25 to 1.3 times less time, in float32 and in float16-mixed.
