# %% [markdown]
"""
GPTQ and AWQ
============

Rounding with an eye on what goes in.

Rounding to nearest takes each weight by itself. What a model needs is another thing: that the *outputs* of a
layer stay as they were, for the inputs that it meets. Two methods look at these inputs:

- **GPTQ** rounds one column after the other, and makes good in the rest what each is off by;
- **AWQ** scales up the columns that carry much before it rounds, so that they get a finer grid.

Both are derived here step by step, and then measured twice: in decibels of a layer, and in a model's loss,
which is not the same. The script trains three small GPTs and runs for less than three minutes. With
``MINILLM_QUICK=1`` it trains one of them for 40 steps, and what is asserted of losses is asserted for the full
run only.
"""

# %%
import os
import statistics
from dataclasses import replace

import numpy as np

from minillm.conversion.awq import POWERS, output_error, scaled
from minillm.conversion.convert import Conversion, both_uses, convert
from minillm.conversion.gptq import gptq, hessian
from minillm.conversion.rounding import round_to_nearest
from minillm.data.batches import random_batch
from minillm.experiments.bits import row
from minillm.experiments.data import load_data
from minillm.experiments.options import TrainOptions
from minillm.experiments.quantize import Trained, costs_of_layers
from minillm.experiments.running import follow, new_run
from minillm.experiments.tables import table
from minillm.plotting.quantization import loss_over_bits, over
from minillm.quantization.affine import Scheme, grid
from minillm.quantization.error import sqnr_db

QUICK = os.environ.get("MINILLM_QUICK") == "1"
rng = np.random.default_rng(0)

# %% [markdown]
# Two weights that share their inputs
# -----------------------------------
#
# A row of three weights on a grid of whole numbers, -3 ... 3. The first two inputs are nearly the same; the third has
# nothing to do with them (its weight is there to make the scale 1).

# %%
weight = np.array([[0.4, 0.4, 3.0]], np.float32)
common = rng.standard_normal((1000, 1), np.float32)
inputs = np.hstack([common + np.float32(0.2) * rng.standard_normal((1000, 1), np.float32) for _ in range(2)]
                   + [rng.standard_normal((1000, 1), np.float32)])                           # (1000,3)
whole = Scheme(grid(3))


def error_of_outputs(codes):
    """Mean squared error of the row's outputs."""
    return float(((inputs @ (codes - weight[0])) ** 2).mean())


rounded = np.rint(weight[0])
print(f"rounded {rounded}: error of the outputs {error_of_outputs(rounded):.3f}")

# %% [markdown]
# Both 0.4 became 0. The inputs being alike, their errors add up: 0.8 of what goes in is lost.
#
# The error of the outputs is (q - w) H (q - w) / 2 with the Hessian H = 2/n sum of x x^T. Fix the first weight at
# q, and ask which change d of the *others* makes that least. The answer is Hassibi and Stork's (1993): d = -(w -
# q) / [H^-1]_11 times the first row of H^-1.

# %%
inverse = np.linalg.inv(hessian(inputs))
first = np.rint(weight[0, 0])
corrected = weight[0] - (weight[0, 0] - first) / inverse[0, 0] * inverse[0]
print(f"the first weight at {first:.0f}, the others then {corrected[1]:.3f} and {corrected[2]:.3f}")
by_hand = np.rint(corrected)
print(f"rounded {by_hand}: error of the outputs {error_of_outputs(by_hand):.3f}")

assert np.isclose(corrected[0], 0, atol=1e-6)
assert by_hand.tolist() == [0, 1, 3]
assert error_of_outputs(by_hand) < error_of_outputs(rounded) / 3
assert gptq(weight, inputs, whole).weight.codes.tolist() == [[0, 1, 3]]

# %% [markdown]
# The second weight takes over what the first has lost, and 0.78 rounds to 1. That is the whole of GPTQ: do this
# for each column in turn. The rows of all the inverses that are needed are those of one Cholesky factor of H^-1,
# so it costs one factorization a layer.
#
# A layer
# -------
#
# K = 512 inputs, six of them 60 times as large as the rest, in groups of 64.

# %%
x, w = rng.standard_normal((1024, 512), np.float32), rng.standard_normal((64, 512), np.float32) * np.float32(0.02)
x[:, rng.choice(512, 6, False)] *= np.float32(60)
WAYS = {"rounding": round_to_nearest, "GPTQ": gptq, "GPTQ, largest inputs first": lambda *a: gptq(*a, activation_order=True)}
y, db, curves = x @ w.T, {}, {}
for bits in (4, 3, 2):
    scheme = Scheme(grid(bits, narrow=False), symmetric=False, granularity="group", group=64)
    for name, way in WAYS.items():
        matrix = way(w, x, scheme)
        db[name, bits] = sqnr_db(y, matrix.apply(x))
        if bits == 3:
            off = matrix.values() - w
            done = range(16, 513, 16)
            curves[name] = list(done), [float(((x[:, :k] @ off[:, :k].T) ** 2).mean()) for k in done]
print(table(["outputs, dB", "4 bits", "3 bits", "2 bits"],
            [[name, *(f"{db[name, bits]:.1f}" for bits in (4, 3, 2))] for name in WAYS]))
print(over(curves, "figures/12-columns.png", "What the first columns of a layer are off by (3 bits)",
           "columns counted (a number)", "mean squared error of their outputs (a number)", markers=False))

for bits in (4, 3):
    assert db["rounding", bits] < db["GPTQ", bits] < db["GPTQ, largest inputs first", bits]
assert db["GPTQ", 2] < db["rounding", 2] < db["GPTQ, largest inputs first", 2]

# %% [markdown]
# The six large inputs make all the steps in the figure. GPTQ can shift little into or out of their columns, but
# if they come *first*, in **activation order**, they are rounded while they are still what they were, and 506
# others are there to make good what they are off by.
#
# At two bits plain GPTQ is worse than rounding: what has been shifted into the last columns is more than the few
# codes can hold.
#
# Three trained models
# --------------------

# %%
STEPS, SEEDS = (40, (1,)) if QUICK else (300, (1, 2, 3))
runs = []
for seed in SEEDS:
    options = TrainOptions(layers=2, heads=4, channels=64, steps=STEPS, warmup=20, eval_every=0, watch_every=0, seed=seed)
    data = load_data(options)
    run = new_run(options, data)
    follow(run, quiet=True)
    batches = [random_batch(data.train, 32, options.context, (seed, i)) for i in range(2)]
    judged = replace(data, validation=data.validation[:64 * (20 if QUICK else 200)])
    runs.append(Trained(run.model, run.model, options, batches, judged))
exact = [run.data.loss(run.model)[0] for run in runs]
print("float32:", ", ".join(f"{loss:.4f}" for loss in exact), "nats")

# %% [markdown]
# AWQ's search
# ------------
#
# Each input channel k is divided by s_k = (mean |x_k|) ^ alpha, and its column of weights multiplied by it.
# Nothing changes but which weights are rounded finely. Which alpha? AWQ tries 20 and takes the one with the least
# error of the outputs.

# %%
how, parts = Conversion("int3", "awq", "group"), {p.name: p.data for p in runs[0].model.parameters()}
NAMES = ["block0.attention.value.weight", "block0.attention.out.weight", "block1.mlp.up.weight", "block1.mlp.down.weight"]
searched = {}
for name in NAMES:
    errors = [output_error(scaled(parts[name], runs[0].inputs[name], how.make_scheme(), a), parts[name], runs[0].inputs[name])
              for a in POWERS]
    searched[name] = POWERS, [e / errors[0] for e in errors]
    print(f"{name:32} best alpha {POWERS[int(np.argmin(errors))]:.2f}, error {min(errors) / errors[0]:.3f} of that of rounding")
print(over(searched, "figures/12-alpha.png", "AWQ's search: error of the outputs against alpha (3 bits)",
           "alpha (a number)", "error, as a share of that at alpha 0", markers=False))

assert all(min(shares) <= 1 for _, shares in searched.values())

# %% [markdown]
# AWQ was made for large models whose inputs have outliers. These have none to speak of, so there is little to
# win. Its published code cuts off the largest weights, too, where that lowers the error of the outputs. This
# makes *all* outputs a little smaller, an error that goes one way; in minillm the scales make the size good again
# (``minillm/conversion/awq.py`` has the numbers).
#
# A table with two uses
# ---------------------
#
# The token table is embedding *and* head. Who converts it for the head's inputs alone spoils the embedding: GPTQ
# bends its rows so that logits stay as they were, and the first layer meets other rows. So minillm counts both:
# the head's inputs, and as much again of inputs that are unit vectors, for which each error of a row counts
# alike.

# %%
table_weight, seen = parts["tokens.weight"], runs[0].inputs["tokens.weight"]
rows = []
for name, matrix in (("rounding", round_to_nearest(table_weight, seen, how.make_scheme())),
                     ("GPTQ for the head", gptq(table_weight, seen, how.make_scheme())),
                     ("GPTQ for both uses", gptq(table_weight, both_uses(seen), how.make_scheme()))):
    rows.append([name, sqnr_db(seen @ table_weight.T, matrix.apply(seen)), sqnr_db(table_weight, matrix.values())])
print(table(["the table at 3 bits", "logits, dB", "rows, dB"], [[name, f"{a:.1f}", f"{b:.1f}"] for name, a, b in rows]))

assert rows[0][1] < rows[2][1]
assert rows[1][2] < rows[2][2]

# %% [markdown]
# Bits against loss
# -----------------
#
# Every matrix by groups of 32, by every method. ``minillm bits RUN RUN RUN`` draws the same for runs of your own.

# %%
METHODS, BITS = ("rtn", "gptq", "gptq-act", "awq"), (4, 2) if QUICK else (8, 7, 6, 5, 4, 3, 2)
points = [row(Conversion(f"int{bits}", method, "group"), runs, exact) for method in METHODS for bits in BITS]
print(table(["method", "bits", "above float32", "each seed", "median layer dB"],
            [[p["method"], p["bits"], f"{p['loss_above']:+.4f}", " ".join(f"{a:+.4f}" for a in p["losses_above"]),
              f"{p['sqnr_db']:.1f}"] for p in points]))
print(loss_over_bits(points, "figures/12-bits.png", "Small GPTs, each matrix by groups of 32: means and seeds"))

at = {(p["method"], p["bits"]): p for p in points}
if not QUICK:
    assert all(abs(at[method, 8]["loss_above"]) < 0.001 for method in METHODS)
    assert at["gptq", 4]["loss_above"] < at["rtn", 4]["loss_above"]
    assert at["awq", 2]["loss_above"] < at["rtn", 2]["loss_above"]
    assert at["gptq", 3]["sqnr_db"] > at["rtn", 3]["sqnr_db"] + 3

# %% [markdown]
# The points are seeds. Two methods whose points overlap are not told apart by three runs.
#
# Which layer costs the most
# --------------------------
#
# Two bits, GPTQ. Each layer in turn is put back into float32: what it costs is the loss with its codes, less the loss
# without.

# %%
converted, layers = convert(runs[0].model, Conversion("int2", "gptq", "group"), runs[0].inputs)
loss = runs[0].data.loss(converted)[0]
costs = costs_of_layers(runs[0], converted, loss, True)
decibels = {layer.name: layer.sqnr_db for layer in layers}
print(table(["layer", "costs nats", "dB"], [[name, f"{costs[name]:+.4f}", f"{decibels[name]:.1f}"]
                                            for name in sorted(costs, key=costs.get, reverse=True)]))
print(f"all of them {loss - exact[0]:+.4f}")

if not QUICK:
    assert max(costs, key=costs.get) == "tokens.weight"

# %% [markdown]
# The tied table costs more than all the others together: what it gets wrong at the entrance goes through the
# whole model, and at the exit it meets the softmax with nothing behind to correct it. Leave it in more bits, and
# two bits begin to work.
#
# Decibels are not loss
# ---------------------
#
# A layer's dB count every output alike, on the calibration text, and know nothing of the layers behind; a loss
# counts what is left of an error at the end. With outliers planted (above) the order of columns is worth 1 dB and
# more at every number of bits. In the loss of trained models without such outliers it is a matter of chance: where
# this was written, GPTs of 2 x 128 (three seeds) lost 0.0021 nats at four bits without the order and 0.0037 with
# it, 0.0150 and 0.0154 at three, 0.0795 and 0.0703 at two.

# %%
median = {method: statistics.median(at[method, 2]["losses_above"]) for method in METHODS}
print(table(["2 bits", "median layer dB", "median seed's loss above float32"],
            [[m, f"{at[m, 2]['sqnr_db']:.1f}", f"{median[m]:+.4f}"] for m in METHODS]))

# %% [markdown]
# So print both, and believe the loss: it is what the model is for. For your own runs, ``minillm quantize RUN
# --scheme int4
# --granularity group --method gptq --leave-one-out`` says what each layer costs, and ``minillm bits`` draws the curve.
