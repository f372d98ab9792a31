# %% [markdown]
"""
Integer only
============

A GPT that computes with integers alone, from token ids to logits.

Products of int8 codes are only half of it. Between two of them there are scales to apply, a softmax, a layer norm, a
GELU, and all of these are mostly left in float:

- LLM.int8 and SmoothQuant multiply int8 codes; softmax and layer norm stay in float16.
- TensorFlow Lite's "full integer" conversion leaves the model's input and output in float unless told otherwise.
- I-BERT replaces all of them by integer arithmetic, on paper. Its published PyTorch code finds the integers, but
  computes with them in float tensors: one has to export them to something else in order to run on integers (its
  authors say so in the first issue of its repository).

Here the last step is taken, and checked: at the end of this script a model runs on arrays that raise an error as soon
as anything makes a float of them.

The script trains one small GPT and runs for about a minute. With ``MINILLM_QUICK=1`` it trains for 40 steps instead of
300, and what is asserted of losses is asserted for the full run only.
"""

# %%
import os

import numpy as np

from minillm.autograd.rule import RULES
from minillm.conversion.calibration import calibrate
from minillm.conversion.convert import Conversion
from minillm.conversion.integer_model import SKEWED, Activation, gelu_table, observe, to_integers
from minillm.data.batches import random_batch, windows
from minillm.experiments.data import load_data
from minillm.experiments.options import TrainOptions
from minillm.experiments.running import follow, new_run
from minillm.experiments.tables import table
from minillm.plotting.integer import errors
from minillm.plotting.quantization import over_bits, staircases
from minillm.quantization.error import sqnr_db
from minillm.quantization.fixed_point import Multiplier, multiplier, multiply
from minillm.quantization.integer_ops import ONE, exponential, normalized, softmax_codes
from minillm.quantization.observers import MeanSquaredError, MinMax, Percentile
from minillm.training.evaluation import validation_loss

QUICK = os.environ.get("MINILLM_QUICK") == "1"
rng = np.random.default_rng(0)

# %% [markdown]
# A real number in integers
# -------------------------
#
# A product of codes has the scale of its inputs times the scale of its weights. The next layer wants codes of another
# scale. So each sum has to be multiplied by M = S_in S_w / S_out, a real number, and rounded. With integers:
# M = m 2^(s - 31), where m has 31 bits, is a product of 64 bits and a shift.

# %%
M = 0.0037
by = multiplier(M)
accumulator = np.array([12345, -12345, 135, 136], np.int32)
print(f"M = {M} = {by.mantissa} x 2^({by.shift} - 31), off by {int(by.mantissa) * 2.0**(int(by.shift) - 31) / M - 1:.1e} of itself")
codes = multiply(accumulator, by)
rows = [[x, f"{x * M:.3f}", x * int(by.mantissa), code] for x, code in zip(accumulator.tolist(), codes, strict=True)]
print(table(["sum", "times M", "times m", "after the shift"], rows))

assert 2**30 <= by.mantissa < 2**31
assert [row[-1] for row in rows] == [46, -46, 0, 1]                  # 135 M is 0.4995
assert abs(int(by.mantissa) * 2.0**(int(by.shift) - 31) / M - 1) < 2**-31

# %% [markdown]
# Two roundings
# -------------
#
# "The shift rounds" can mean two things. gemmlowp, and TensorFlow Lite after it, drop 31 bits first, since there is a
# processor instruction for that, halves going up; and the rest of the bits after it, halves going away from zero. Or all
# bits are dropped at once, halves going up. The figure shows both for M = 1/8: rounded twice, 3/8 becomes 2/4, and that
# becomes 1.

# %%
x = np.arange(-20, 21, dtype=np.int32)
eighth = multiplier(1 / 8)
print(staircases(x / 8, {name: multiply(x, eighth, name) for name in ("single", "double")}, "figures/14-roundings.png",
                 "x / 8 in integers, rounded once and rounded twice"))

rows, share = [], {}
sums = rng.integers(-2**20, 2**20, 200_000, dtype=np.int32)
for shift in (0, -1, -2, -4, -8, -12):
    by = Multiplier(rng.integers(2**30, 2**31 - 1, sums.size, dtype=np.int64).astype(np.int32), np.int8(shift))
    once, twice = (multiply(sums, by, name) for name in ("single", "double"))
    exact = sums * (by.mantissa * 2.0**(shift - 31))
    share[shift] = float((once != twice).mean())
    rows.append([shift, f"{share[shift]:.3%}", *(f"{abs(found - exact).max():.3f}" for found in (once, twice))])
print(table(["shift", "results that differ", "worst error, once", "worst error, twice"], rows))

assert multiply(np.array([-6, -2, 2, 6], np.int32), multiplier(1 / 4), "single").tolist() == [-1, 0, 1, 2]
assert multiply(np.array([-6, -2, 2, 6], np.int32), multiplier(1 / 4), "double").tolist() == [-2, -1, 1, 2]
assert share[0] == 0                                                 # nothing is left for the second rounding
assert 0.2 < share[-1] < 0.3
assert share[-12] < 0.001

# %% [markdown]
# With a shift of -1 a quarter of all results differ by one; with each further bit half as many. Shifts into int8 are
# mostly -8 to -11 in a model: one result in some hundreds differs, and both roundings are as good. But they are not the
# same, and who compares two programs bit for bit has to know which one each uses. In minillm it is a parameter.
#
# exp, a root, a table
# --------------------
#
# Softmax needs exp of numbers at or below 0. In integers (I-BERT): x = -n ln 2 + p, a polynomial of degree two for
# exp(p), and n shifts to the right. A layer norm needs a root, by Newton's method in integers, and one division. A
# GELU of an int8 code has 256 results, which are looked up.

# %%
below = -np.arange(0, 8 << 16, 64, dtype=np.int64)                   # 0 ... -8, in units of 2^-16
exp_error = exponential(below) / ONE - np.exp(below / 2.0**16)

row = rng.standard_normal((1, 128))
levels, norm_error = np.unique(np.geomspace(2, 8000, 60).astype(np.int64)), []
for level in levels:
    codes = np.rint(row * level).astype(np.int32)                    # a row whose deviation is so many codes
    found = normalized(codes, np.array(0)) / 2.0**30
    norm_error.append(float(np.abs(found - (row - row.mean()) / np.linalg.norm(row - row.mean())).max() * 128**0.5))

x, y = Activation(8 / 127), Activation(8.2 / 255, -123, SKEWED)     # inputs -8 ... 8, results -0.16 ... 8.04
codes = np.arange(-127, 128)
gelu = (gelu_table(x, y)[codes + 128] - float(y.zero_point)) * y.scale
gelu_error = gelu - RULES["gelu"].forward(np, codes * x.scale)
print(errors({"exp by a polynomial and shifts": (below / 2.0**16, exp_error, "x (a number)", "error (a number)"),
              "Layer norm of a row of 128": (np.log2(levels), norm_error, "deviation of the row (log2, in codes)",
                                             "worst error (deviations)"),
              "GELU from a table": (codes * x.scale, gelu_error, "x (a number)", "error (a number)")},
             "figures/14-functions.png"))

print(f"exp: off by {abs(exp_error).max():.4f} at most")
print(f"layer norm: off by {norm_error[0]:.3f} at a deviation of {levels[0]} codes, {norm_error[-1]:.6f} at {levels[-1]}")
print(f"GELU: off by {abs(gelu_error).max() / y.scale:.2f} steps at most")
assert abs(exp_error).max() < 0.0022                                 # 0.0019 of the polynomial, and what ONE is above 1
assert norm_error[-1] < 0.002 < 0.02 < norm_error[0]
assert abs(gelu_error).max() < 0.51 * y.scale

# %% [markdown]
# exp is as good as eight bits ask for. A layer norm can only be as good as what goes in: if a row's deviation is two
# codes, each value is off by up to a quarter of a deviation before anything is computed. So what goes in must have more
# than eight bits: this is the residual stream, of which more below. The table is exact but for rounding.
#
# Shares of attention
# -------------------
#
# TensorFlow Lite stores a softmax's results in 256 steps of 1/256. Attention over 64 tokens alike has shares of 1/64:
# four steps, and with a bit of spread some are 3 and some 5. minillm stores exp itself, before it is divided by its
# sum, in 127 steps of the largest one. Values are multiplied by these codes, and the sum of the codes divides last.

# %%
scores = rng.integers(-3000, 3000, (200, 64), dtype=np.int32)
visible, rows, worst = np.ones(scores.shape, bool), [], {}
for spread in (0.1, 1, 3, 8):
    scale = spread / 3000
    exact = np.exp((scores - scores.max(-1, keepdims=True)) * scale)
    exact /= exact.sum(-1, keepdims=True)
    shares = softmax_codes(scores, visible, multiplier(scale * 2**16), "single").astype(np.float32)
    ours = shares / shares.sum(-1, keepdims=True)
    steps = np.clip(np.rint(256 * exact), 0, 255) / 256
    worst[spread] = [float(abs(found - exact).sum(-1).mean()) for found in (ours, steps)]
    rows.append([f"-{spread} ... {spread}", *(f"{each:.2%}" for each in worst[spread])])
print(table(["scores", "moved, in steps of the largest", "moved, in steps of 1/256"], rows))

assert all(ours < steps for ours, steps in worst.values())
assert worst[0.1][1] > 5 * worst[0.1][0]

# %% [markdown]
# The more evenly attention is spread, the more this brings.
#
# A whole model
# -------------
#
# int8 weights with a scale for each row, int8 activations with one scale each, found on a calibration text. The
# residual stream, to which every block adds a little, is the exception: 16 bits.

# %%
STEPS = 40 if QUICK else 300
options = TrainOptions(layers=2, heads=4, channels=64, steps=STEPS, warmup=20, eval_every=0, watch_every=0, seed=1)
data = load_data(options)
run = new_run(options, data)
follow(run, quiet=True)
batches = [random_batch(data.train, 8 if QUICK else 32, options.context, (1, i)) for i in range(2)]
inputs, ranges = calibrate(run.model, batches), observe(run.model, batches)
text = data.validation[:64 * (10 if QUICK else 200) + 1]
ids, _ = windows(text, options.context)
how = Conversion("int8", "full-integer")


def above(model):
    """The loss above float32's."""
    return validation_loss(model, text)[0] - exact_loss


exact_loss = validation_loss(run.model, text)[0]
model, layers = to_integers(run.model, how, inputs, ranges)
with run.model.ops.context.no_record():
    expected = run.model(ids[:10]).data
logits = model.integer_logits(ids[:10])
same = float((logits.argmax(-1) == expected.argmax(-1)).mean())
print(table(["layer", "signal-to-noise dB", "bytes"], [[x.name, f"{x.sqnr_db:.1f}", f"{x.bytes:,}"] for x in layers]))
print(f"float32: {exact_loss:.4f} nats; in integers {above(model):+.4f}; the most likely next token is the same in {same:.1%}")

assert logits.dtype == np.int32
assert min(layer.sqnr_db for layer in layers) > 25
if not QUICK:
    assert abs(above(model)) < 0.01
    assert same > 0.97

# %% [markdown]
# Who chose the ranges, which rounding, how many bits of the residual stream:

# %%
rows, lost = [], {}
for name, observer in (("min-max", MinMax), ("percentile 99.9", lambda scheme: Percentile(scheme, 0.999)),
                       ("least squared error", MeanSquaredError)):
    other, _ = to_integers(run.model, how, inputs, observe(run.model, batches, observer))
    lost[name] = above(other)
    rows.append(["ranges by", name, f"{lost[name]:+.5f}"])
for rounding in ("single", "double"):
    other, _ = to_integers(run.model, how, inputs, ranges, rounding)
    lost[rounding] = above(other)
    rows.append(["rounding", rounding, f"{lost[rounding]:+.5f}"])
BITS, db = [16, 12, 8] if QUICK else [16, 14, 12, 11, 10, 9, 8], {}
for bits in BITS:
    other, _ = to_integers(run.model, how, inputs, ranges, bits=bits)
    lost[bits], db[bits] = above(other), sqnr_db(expected, other(ids[:10]).data)
    rows.append(["bits of the residual", bits, f"{lost[bits]:+.5f}"])
print(table(["choice", "of", "loss above float32's"], rows))
print(over_bits({"residual stream": (BITS, [db[bits] for bits in BITS])}, "figures/14-residual.png",
                "A GPT in integers, by the bits of its residual stream", "logits' signal-to-noise ratio (dB)"))

assert abs(db[16] - db[12]) < 2
assert db[8] < db[12] - 5
if not QUICK:
    assert lost[8] > 0.001 > max(abs(lost[bits]) for bits in (16, 14, 12))
    assert abs(lost["single"] - lost["double"]) < 0.002

# %% [markdown]
# Small changes of a large number are rounded away, layer after layer. From twelve bits of the residual stream on, the
# other int8 activations are what limits the logits; with eight bits the stream does, and the longer a model was trained,
# the more it costs. Three models of 2 layers x 128 channels after 400 steps lost 0.024 to 0.040 nats with eight bits,
# 0.007 with nine, 0.002 with ten, and nothing that shows with twelve. All else here is lost in the noise. On larger
# models ranges are what is hard, since a few channels are far larger than the others.
#
# Is it true?
# -----------
#
# A program that says it is integer-only can be asked. Here is an array that raises an error as soon as a float goes into
# or comes out of anything that is computed with it. Every array of the model becomes one, and the ids, too. Kernels are
# off, so that all products go through NumPy, where it looks on.

# %%
class NoFloat(np.ndarray):
    """Integers, and whatever is computed from them."""

    def __array_finalize__(self, origin):
        assert self.dtype.kind in "biu", "a new array of floats"

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        plain = [np.asarray(x) if isinstance(x, NoFloat) else x for x in inputs]
        assert not any(np.asarray(x).dtype.kind == "f" for x in plain), f"a float goes into {ufunc}"
        result = np.asarray(getattr(ufunc, method)(*plain, **options))
        assert result.dtype.kind in "biu", f"a float comes out of {ufunc}"
        return result.view(NoFloat)


for _, owner, key, array in list(model.walk()):
    if key != "logit_scale":                                         # what turns int32 logits into float ones, afterwards
        setattr(owner, key, array.view(NoFloat))
kernels, os.environ["MINILLM_KERNELS"] = os.environ.get("MINILLM_KERNELS", "on"), "off"
found = model.integer_logits(ids[:2].view(NoFloat))
print(f"still a NoFloat: {isinstance(found, NoFloat)}; {found.dtype}; the same logits: {np.array_equal(found, logits[:2])}")
try:
    model.norm(found.astype(np.int32) / 2)
    caught = ""
except AssertionError as error:
    caught = str(error)
print("and when something is divided:", caught)
os.environ["MINILLM_KERNELS"] = kernels

assert isinstance(found, NoFloat)
assert np.array_equal(np.asarray(found), logits[:2])                 # the compiled products gave the same bits
assert caught == "a float comes out of <ufunc 'divide'>"

# %% [markdown]
# Integers have another virtue: their sums do not depend on the order in which they are made. So a text that is read token
# by token with a cache of int8 keys and values gives *the same bits* as one that is read at once, on any number of
# threads, with kernels and without. Of floats one can only ask that they agree within a bound.

# %%
caches = model.new_caches()
steps = [model.integer_logits(ids[:1, t:t + 1], caches, t) for t in range(options.context)]
cached = np.asarray(np.concatenate(steps, axis=1))
print(f"token by token: {(cached == logits[:1]).mean():.0%} of the logits are the same; "
      f"a token's keys and values take {sum(held[0, 0].nbytes for cache in caches for held in cache.held)} bytes")

assert np.array_equal(cached, logits[:1])

# %% [markdown]
# ``minillm quantize RUN --method full-integer --out DIR`` writes such a model: codes, biases, multipliers and tables, all
# of them integers, and one float32, which says what a logit of 1 stands for.
