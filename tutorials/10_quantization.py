# %% [markdown]
"""
Quantization
============

Numbers as small integers: Q(x) = round(x / S + Z).

A number format such as float16 spaces its values out by powers of two. *Affine quantization* spaces them evenly:
an integer Q, the **code**, stands for S (Q - Z). S, the **scale**, is the size of one step; Z, the **zero point**,
is the code of 0. Everything else is a choice, and each one can be measured:

- which integers there are, and what range of values they span;
- how many values share a scale;
- who finds the range;
- how many bits, and what that does to the loss of a trained model.

The script trains one small GPT and runs for less than a minute. With ``MINILLM_QUICK=1`` it trains for 60 steps instead
of 300, and what is asserted of losses is asserted for the full run only.
"""

# %%
import os

import numpy as np

from minillm.conversion.calibration import calibrate
from minillm.conversion.convert import Conversion, convert
from minillm.data.batches import random_batch
from minillm.experiments.data import load_data
from minillm.experiments.options import TrainOptions
from minillm.experiments.running import follow, new_run
from minillm.experiments.tables import table
from minillm.formats import FLOAT16
from minillm.plotting.quantization import over_bits, ranges, staircases
from minillm.quantization.affine import INT4, INT8, TERNARY, Scheme, codes_of, grid, quantize
from minillm.quantization.error import error_of, sqnr_db
from minillm.quantization.observers import Entropy, MeanSquaredError, MinMax, MovingAverage, Percentile
from minillm.training.evaluation import validation_loss

QUICK = os.environ.get("MINILLM_QUICK") == "1"
rng = np.random.default_rng(0)

# %% [markdown]
# Scale and zero point
# --------------------
#
# Values from -1 to 3, three ways: on a *symmetric* grid, where Z is 0 and the scale is that of the largest size; on
# an *asymmetric* one, which begins at the least value; and with three codes only.

# %%
x = np.linspace(-1, 3, 2001, dtype=np.float32)
FULL4 = grid(4, narrow=False)                                        # -8 ... 7; INT4 is -7 ... 7
SCHEMES = {"4 bits, symmetric": Scheme(INT4), "4 bits, asymmetric": Scheme(FULL4, symmetric=False), "ternary": Scheme(TERNARY)}
quantized = {name: quantize(x, scheme) for name, scheme in SCHEMES.items()}
for name, q in quantized.items():
    print(f"{name:20} S = {q.scale:.4f}, Z = {q.zero_point if q.zero_point is not None else 0}, "
          f"{sqnr_db(x, q.values()):.1f} dB")
print(staircases(x, {name: q.values() for name, q in quantized.items()}, "figures/10-staircases.png",
                 "What becomes of values from -1 to 3"))

symmetric, asymmetric = quantized["4 bits, symmetric"], quantized["4 bits, asymmetric"]
assert symmetric.scale == np.float32(3) / 7
assert len(np.unique(symmetric.codes)) == 10                         # -2 ... 7: a third of the grid is never used
assert len(np.unique(asymmetric.codes)) == 16
assert sqnr_db(x, asymmetric.values()) > sqnr_db(x, symmetric.values()) + 3

# %% [markdown]
# If values lie on one side, as behind a ReLU or a GELU, a symmetric grid wastes codes. Weights lie on both sides, and
# a zero point of 0 makes products of codes simpler, so weights are mostly symmetric.
#
# Whatever lies beyond the grid *saturates*. It must never wrap: 128 as int8 would be -128.
#
# Where Z is added
# ----------------
#
# Much code computes round(x / S) + Z. Is that not the same? Not at ties, with halves rounded to even:

# %%
ties = np.arange(-40, 40, dtype=np.float32) + np.float32(0.5)        # x / S, all of them halves
rows = []
for Z in (3, 4):
    inside, outside = (codes_of(ties, np.float32(1), np.int8(Z), Scheme(zero_point_inside=where)) for where in (True, False))
    rows.append([Z, f"{(inside != outside).mean():.0%}"])
print(table(["Z", "ties with another code"], rows))

assert rows == [[3, "100%"], [4, "0%"]]

# %% [markdown]
# Where Z is odd, every tie goes the other way. So two programs that both "round half to even" differ, and neither is
# wrong. The field disagrees in two more things: whether halves go to even, up or away from zero, and whether the scale
# of a symmetric grid is max / 127 or max / 127.5. minillm takes the formula, halves to even and 127 unless a scheme
# says otherwise.
#
# How many values share a scale
# -----------------------------
#
# Here is a matrix as real models have them: most rows alike, one ten times as large, and one value that stands out.

# %%
weight = rng.standard_normal((64, 256), np.float32)
weight[5] *= 10
weight[20, 100] = 60
rows, db = [], {}
for granularity in ("tensor", "channel", "group"):
    for numbers in (INT8, INT4):
        half = FLOAT16 if granularity == "group" else Scheme().scale_format
        q = quantize(weight, Scheme(numbers, granularity=granularity, scale_format=half))
        db[granularity, numbers.bits] = np.median([sqnr_db(*pair) for pair in zip(weight, q.values(), strict=True)])
        rows.append([numbers.bits, granularity, f"{db[granularity, numbers.bits]:.1f}", f"{8 * q.nbytes / weight.size:.3f}"])
print(table(["bits", "a scale for each", "median row dB", "bits a weight, scales included"], rows))

error = error_of(weight, quantize(weight, Scheme(INT4, granularity="channel")))
print(f"worst error {error.worst_steps:.3f} steps, {error.clipped:.2%} clipped")

assert error.worst_steps < 0.5001                                    # half a step, since nothing was clipped
assert error.clipped == 0
assert db["channel", 8] > db["tensor", 8] + 20
assert db["group", 4] > db["channel", 4] + 2
assert db["tensor", 4] < 1                                           # most rows are nothing but zeros

# %% [markdown]
# One scale for the whole tensor is set by the one value of 60. With a scale for each row only that row pays. Groups of
# 32 with float16 scales cost half a bit a weight and are finer still: the usual choice at four bits.
#
# Who finds the range
# -------------------
#
# Of weights the range is known. Of activations one sees samples, and has to choose: all of it, or less, so that what
# is left is finer? An *observer* looks at batches and decides. Here are values with a heavy tail.

# %%
values = rng.standard_t(4, (20, 5000)).astype(np.float32)
OBSERVERS = {"min-max": MinMax, "moving average": MovingAverage, "percentile 99.99": Percentile,
             "least squared error": MeanSquaredError, "entropy": Entropy}


def range_of(observer, bits):
    """The range that an observer chooses after twenty batches, and the scheme it is for."""
    scheme = Scheme(grid(bits))
    watcher = observer(scheme)
    for batch in values:
        watcher.observe(batch)
    return scheme, watcher.range()


BITS = [8, 7, 6, 5, 4, 3, 2]
curves, ends = {}, {}
for name, observer in OBSERVERS.items():
    found = []
    for bits in BITS:
        scheme, ends_found = range_of(observer, bits)
        found.append(sqnr_db(values, quantize(values, scheme, *ends_found).values()))
        if bits == 4:
            ends[name] = float(max(-ends_found[0][0], ends_found[1][0]))
    curves[name] = BITS, found
print(ranges(values, ends, "figures/10-ranges.png", "100,000 values, and where each observer ends a grid of 4 bits"))
print(over_bits(curves, "figures/10-observers.png", "Error against bits, by who chose the range",
                "signal-to-noise ratio (dB)"))
print(table(["observer", *(f"{bits} bits" for bits in BITS)],
            [[name, *(f"{db:.1f}" for db in found)] for name, (_, found) in curves.items()]))

at = {name: dict(zip(*curve, strict=True)) for name, curve in curves.items()}
assert all(at["least squared error"][bits] >= max(a[bits] for a in at.values()) - 0.2 for bits in BITS)
assert at["least squared error"][4] > at["min-max"][4] + 8
assert 4.5 < at["least squared error"][8] - at["least squared error"][7] < 6.1      # a bit is worth 6 dB, less what is clipped

# %% [markdown]
# With eight bits one can afford the whole range; with four it is a waste: most codes would be spent on a few values in
# the tail. The fewer bits, the more should be clipped. Least squared error is the best of them in dB, for that is what
# it looks for. Whether a layer's dB are what a model's loss depends on is another question.
#
# A trained model, bit by bit
# ---------------------------
#
# Every matrix of a GPT, the embeddings too, rounded to codes: one scale a row, or one for each group of 32.

# %%
STEPS = 60 if QUICK else 300
options = TrainOptions(layers=2, heads=4, channels=64, steps=STEPS, warmup=20, eval_every=0, watch_every=0, seed=1)
data = load_data(options)
run = new_run(options, data)
follow(run, quiet=True)
inputs = calibrate(run.model, [random_batch(data.train, 32, options.context, (1, i)) for i in range(2)])
text = data.validation[:64 * 200]
exact = validation_loss(run.model, text)[0]
rows, losses = [], {"row": ([], []), "group": ([], [])}
for scheme in ("int8", "int4", "int3", "int2"):
    for granularity, name in (("channel", "row"), ("group", "group")):
        model, layers = convert(run.model, Conversion(scheme, "rtn", granularity), inputs)
        above = validation_loss(model, text)[0] - exact
        losses[name][0].append(int(scheme[3:]))
        losses[name][1].append(above)
        size = sum(layer.bytes for layer in layers)
        rows.append([scheme, f"a scale for each {name}", f"{above:+.4f}", f"{size / 1e3:.0f} kB",
                     f"{np.median([layer.sqnr_db for layer in layers]):.0f}"])
print(f"float32: {exact:.4f} nats, {4 * sum(p.size for p in run.model.parameters()) / 1e3:.0f} kB")
print(table(["scheme", "granularity", "loss above float32's", "matrices", "median layer dB"], rows))
print(over_bits(losses, "figures/10-loss.png", "A GPT whose weights were rounded to few bits",
                "loss above float32's (nats)", log=True))

lost = {name: dict(zip(*curve, strict=True)) for name, curve in losses.items()}
if not QUICK:
    assert abs(lost["row"][8]) < 0.002
    assert max(lost["row"][4], lost["group"][4]) < 0.01
    assert 0.02 < lost["group"][2] < lost["row"][2]

# %% [markdown]
# Eight bits cost nothing that shows, and four a few thousandths of a nat. There, chance has its part: a model's loss
# is not at its lowest point for this text, so an error may happen to go downhill. Where this was written rows were
# better than groups at four bits in loss, and worse in dB. At two bits, groups are better in both. Compare means of
# several seeds before you believe in a difference of 0.002.
#
# Fewer bits need more thought: rounding with an eye on the inputs (GPTQ, AWQ: ``minillm quantize --method gptq``), or
# training that knows what will become of its weights (``minillm train --from RUN --recipe int4-qat``).
