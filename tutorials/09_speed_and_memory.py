# %% [markdown]
"""
Speed and memory
================

Low precision is sold as less time and less memory. Memory is easy: half of the digits are half of the bytes. Time is
not. A processor is faster with a narrow type only if it has an instruction for it, and only where the arithmetic, and
not the memory, is what one waits for. This tutorial measures both on the machine that it runs on:

- what a machine could do at best: operations in its registers, bytes from its memory, and the **roofline** they make;
- a matrix product that climbs a **ladder** from three loops to what the processor can do, rung by rung;
- float16, bfloat16 and int8 products, and which of them is faster than float32 on a CPU;
- the bytes that a training step holds for its backward pass;
- what a GPU's tensor core does that this does not.

You should know what float16, bfloat16 and int8 are (tutorial 04). Times differ from machine to machine and from minute
to minute, so they are printed and drawn, and never asserted; what is asserted are results, bytes and counts. The
script needs compiled kernels, and runs for less than a minute once they are compiled. With ``MINILLM_QUICK=1``
products are at most 256 wide instead of 1024, the model is smaller, and every time is taken for a moment only; what
is asserted is the same.
"""

# %%
import os

import numpy as np

from minillm import FLOAT16, kernels, round_to
from minillm.autograd.kernels import KERNELS
from minillm.bench import machine, peers, side_by_side
from minillm.bench.matmul import one_size, operands, ours
from minillm.bench.measure import Call, interleaved
from minillm.bench.roofline import bandwidth, peaks
from minillm.bench.step import Stepper
from minillm.experiments.tables import table
from minillm.models.gpt import GPTShape
from minillm.plotting import style
from minillm.plotting.speed import rates, roofline
from minillm.training.memory import measure

QUICK = os.environ.get("MINILLM_QUICK") == "1"
SECONDS = 0.1 if QUICK else 1.5
THREADS = peers.most_threads()
print(machine.describe(machine.machine()))

# %% [markdown]
# What could be reached
# ---------------------
#
# Two numbers describe a machine well enough for this. The first is how many multiplications and additions its cores
# can do if everything stays in registers. It depends on the instruction: one that multiplies 16 float32 values and
# adds them to 16 sums counts as 32 operations, and one that does the same with 64 pairs of bytes as 128. The second is
# how many bytes come from memory and go there.

# %%
one_core, all_cores = peaks(1, SECONDS), peaks(THREADS, SECONDS)
stream = bandwidth(THREADS, SECONDS, 2**20 if QUICK else 2**24)
print(table(["type", "one core (10^9/s)", f"{THREADS} threads (10^9/s)"],
            [[name, f"{one_core[name] / 1e9:.0f}", f"{all_cores[name] / 1e9:.0f}"] for name in all_cores]))
print(f"memory: {stream / 1e9:.1f} GB/s")

assert "float32" in all_cores
assert min(all_cores.values()) > 0 < stream

# %% [markdown]
# A product of two n x n matrices takes n multiplications and n additions for each of its n x n values, 2 n^3
# operations. What must come from memory is less: both operands, once, and the result. The number of operations for
# each byte is the **intensity**. It grows with n, which is why large products can be fast at all.

# %%
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}


def intensity(n, name):
    """Operations for each byte of a product whose result has four bytes a value."""
    return 2 * n**3 / (2 * n**2 * BYTES[name] + 4 * n**2)


print(table(["n", *BYTES], [[n, *(f"{intensity(n, name):.0f}" for name in BYTES)] for n in (64, 256, 1024)]))
print(f"one byte is worth {all_cores['float32'] / stream:.0f} float32 operations here")

assert intensity(600, "float32") == 100                               # n / 6
assert intensity(600, "float16") == 150                               # n / 4
assert intensity(600, "int8") == 200                                  # n / 3
assert 2 * 768 * 128 * 512 == 100_663_296                             # one linear layer of a small GPT: 0.1 GFLOP

# %% [markdown]
# As long as the intensity is above what a byte is worth, memory can keep up. Below it, the arithmetic waits for
# memory, and nothing is gained by doing it faster. Adding two arrays has an intensity of 1/12: it will never see the
# peak.
#
# The ladder
# ----------
#
# Here is the definition of a product, three loops, compiled. And three rungs above it, each with one idea more:
#
# - **naive**: the definition. It walks down the columns of b, so that every step reads another cache line, and each
#   addition waits for the one before.
# - **tiled**: the loops change places, so that the innermost runs along rows and one instruction takes 16 columns at
#   once; and b is taken in blocks that stay in the cache until all rows of a have used them.
# - **packed**: what is used together is first copied together, in the order of its use, and each value that is read
#   serves several rows.
# - **micro-kernel**: a tile of the result, 14 x 32 values, stays in 28 of the processor's 32 registers from the first
#   step of k to the last. This rung is ``minillm.kernels.matmul``, which training uses.
#
# All of them add in the order of k, and fuse each multiplication with its addition. So they do not agree within some
# tolerance, they agree in every bit.

# %%
N = 128 if QUICK else 512
rungs = {name: getattr(kernels.load("ladder"), name) for name in ("naive", "tiled", "packed")}
rungs["micro-kernel"] = kernels.load("matmul").matmul
a, b = operands(N)["float32"]                                         # (M,K), (K,N) f32
reference = rungs["naive"](a, b)
exact = a.astype(np.float64) @ b.astype(np.float64)
for name, multiply in rungs.items():
    assert (multiply(a, b) == reference).all(), name
assert abs(reference - exact).max() < N * 2.0**-24 * (abs(a) @ abs(b)).max()

with peers.ours_on(1), side_by_side.started("numpy") as processes:     # two pools of threads in one process spoil each other
    blas = side_by_side.calls(processes, "matmul", 1, n=N)["openblas-float32"]
    taken = interleaved([*(Call(lambda f=f: f(a, b)) for f in rungs.values()), blas], 2 * SECONDS, least=3)
speeds = {name: 2 * N**3 / s for name, s in zip([*rungs, "OpenBLAS"], taken, strict=True)}
print(table(["rung", "10^9/s", "of the peak"],
            [[name, f"{v / 1e9:.1f}", f"{v / one_core['float32']:.1%}"] for name, v in speeds.items()]))

# %%
with style.applied():
    figure, axes = style.figure(height=3)
    axes.barh(list(speeds), [v / 1e9 for v in speeds.values()], color=style.BLUE, height=0.6)
    axes.axvline(one_core["float32"] / 1e9, color=style.GREY, linestyle="--")
    for y, v in enumerate(speeds.values()):
        axes.annotate(f"{v / 1e9:.1f}", (v / 1e9, y), xytext=(4, 0), textcoords="offset points", va="center")
    axes.set(title=f"One core, M = N = K = {N}", xlabel="operations a second (10$^9$/s); dashed: registers alone",
             ylabel="rung (a name)")
    axes.invert_yaxis()
    print(style.save(figure, "figures/09-ladder.png"))

# %% [markdown]
# The same operations in the same order, and from the first rung to the last some fifty times faster. None of them does
# less arithmetic. What they do less of is waiting: for a cache line, for the sum before, for a value that was read a
# moment ago.
#
# OpenBLAS stands at the end as the peer that everybody knows. Its kernel is written in assembly for each processor;
# ours is one source that LLVM turns into whatever the processor has.
#
# Narrower types
# --------------
#
# Now every type, on all cores. A processor of this kind has no float16 arithmetic. It can only convert. So the float16
# product widens its operands, which is exact, while it packs them; from then on it *is* the float32 product:

# %%
M, K = 96, 200
half = [x[:M, :K] if i == 0 else x[:K] for i, x in enumerate(operands(256)["float16"])]
product = ours()["float16"]
wide = ours()["float32"](*(x.astype(np.float32) for x in half))

assert (product(*half) == wide).all()
assert product(*half).dtype == np.float32
as_float16 = rungs["micro-kernel"](*half, out=np.float16)
assert (as_float16 == round_to(wide, FLOAT16)).all()                  # rounded once, at the end

# %% [markdown]
# bfloat16 has an instruction of its own on some processors, which adds two products a lane; on others its product is
# the float32 one, too. int8 is another matter. One instruction multiplies 64 pairs of bytes and adds them to 16 sums of
# 32 bits, four times as many as in float32. And it is exact. NumPy has an int8 product as well, but keeps the sum in
# eight bits, where it wraps:

# %%
codes = operands(256)["int8"]
exact_sum = codes[0].astype(np.int64) @ codes[1].astype(np.int64)
wrong = float((codes[0] @ codes[1] != exact_sum).mean())
print(f"NumPy's int8 product: {wrong:.1%} of the values are wrong")

assert (ours()["int8"](*codes) == exact_sum).all()
assert ours()["int8"](*codes).dtype == np.int32
assert wrong > 0.99
assert 131_071 * 128 * 128 < 2**31 <= 131_072 * 128 * 128             # the longest K that 32 bits always hold

# %%
SIZES = (64, 128, 256) if QUICK else (64, 128, 256, 512, 1024)
with side_by_side.started("ours", "numpy") as processes:
    found = [row for n in SIZES for row in one_size(processes, n, THREADS, SECONDS) if row["peer"] == "openblas-float32"]
print(table(["n", "type", "10^9/s", "times as fast as OpenBLAS float32"],
            [[row["shape"][0], row["name"], f"{row['rate']:.0f}", f"{row['ratio']:.2f}"] for row in found], left=2))
print(rates(found, all_cores, "figures/09-products.png"))

# %% [markdown]
# - float16 is about as fast as float32, and no faster. The arithmetic is the same; half as many bytes are read, but
#   products of this size do not wait for memory. That it is not *slower* is already the work of the packing. NumPy's
#   own float16 product converts each value each time it is used, and is hundreds of times slower.
# - int8 gains, and gains more with n: packing and the call itself cost the same for every type, and are a larger part
#   of a small product.
# - Below n = 128 all of them are far from the peak. A small product is mostly overhead.
#
# The roofline
# ------------
#
# Everything in one figure (Williams, Waterman and Patterson 2009): the intensity to the right, the rate upwards, both
# logarithmic. What comes from memory cannot lie above the roof: its slope is memory, its level part the registers.
# Two more ops are in it, GELU and layer_norm, on arrays that are too large for the caches. They do some 20 and some 10
# operations with each value that they read and write.

# %%
ROWS, C = (2048, 512) if QUICK else (8192, 2048)
x = np.random.default_rng(0).standard_normal((ROWS, C), np.float32)    # (rows, C) f32
ones, zeros = np.ones(C, np.float32), np.zeros(C, np.float32)
gelu, norm = KERNELS["gelu"].forward, KERNELS["layer_norm"].forward
with peers.ours_on(THREADS):
    taken = interleaved([Call(lambda: gelu(x, out=np.float32)), Call(lambda: norm(x, ones, zeros, eps=1e-5, out=np.float32))],
                        SECONDS, least=3)
points = [{"name": name, "type": "float32", "intensity": work / 8, "rate": work * x.size / s}
          for name, work, s in zip(("GELU", "layer_norm"), (20, 10), taken, strict=True)]
points += [{"name": f"n = {row['shape'][0]}", "type": row["name"], "intensity": intensity(row["shape"][0], row["name"]),
            "rate": row["rate"] * 1e9} for row in found if row["name"] in ("float32", "int8")]
print(roofline(points, {name: peak for name, peak in all_cores.items() if name in ("float32", "int8")}, stream,
               "figures/09-roofline.png"))

assert points[0]["intensity"] == 2.5
assert all(p["intensity"] > 10 for p in points[2:])

# %% [markdown]
# Products of a reasonable size lie below the level part. There a narrow type pays only with an instruction of its own.
# Ops on rows lie below the slope. There fewer bytes are less time, whatever the arithmetic: float16 in and out moves
# half of them, and the conversion is done in registers, with one instruction for 16 values.

# %%
narrow = x.astype(np.float16)
small, small_narrow = x[:64], narrow[:64]
with peers.ours_on(THREADS):
    calls = [Call(lambda v=v, t=t: gelu(v, out=t)) for v, t in
             ((x, np.float32), (narrow, np.float16), (small, np.float32), (small_narrow, np.float16))]
    taken = interleaved(calls, SECONDS, least=3)
print(table(["GELU of", "float32 (ms)", "float16 (ms)"],
            [[f"{x.size:,} values", f"{taken[0] * 1e3:.2f}", f"{taken[1] * 1e3:.2f}"],
             [f"{small.size:,} values", f"{taken[2] * 1e3:.3f}", f"{taken[3] * 1e3:.3f}"]]))

assert (gelu(narrow, out=np.float16) == round_to(gelu(narrow, out=np.float32), FLOAT16)).all()
assert narrow.nbytes * 2 == x.nbytes

# %% [markdown]
# In the cache there is nothing to gain, since nothing waits for memory. And a new large array has a price that has
# nothing to do with arithmetic: the system hands it out in pages, and clears each of them.
#
# Bytes held
# ----------
#
# Memory, then. A training step holds what the backward pass will need: inputs of products, of GELU, of layer norms.
# It is much more than the weights, as soon as a batch has more than a few hundred tokens. Take one forward pass under
# three recipes and count:

# %%
SHAPE, BATCH = (GPTShape(65, 2, 4, 64, 32), 8) if QUICK else (GPTShape(65, 4, 4, 128, 64), 12)
steps = {name: Stepper(SHAPE, BATCH, name) for name in ("float32", "float16-mixed", "bfloat16-mixed")}
held = {name: measure(s.objective, s.batch) for name, s in steps.items()}
print(table(["recipe", "activations (MB)", "stored here (MB)", "weights (MB)"],
            [[name, *(f"{h / 1e6:.2f}" for h in (found["bytes"]["activations"], found["stored_bytes"]["activations"],
                                                   found["bytes"]["weights"]))] for name, found in held.items()]))


def share(recipe, role, kind="bytes"):
    """Bytes of a role, as a share of float32's."""
    return held[recipe][kind][role] / held["float32"][kind][role]


assert 0.5 <= share("float16-mixed", "activations") < 0.55
assert share("bfloat16-mixed", "activations") == share("float16-mixed", "activations")
assert share("bfloat16-mixed", "activations", "stored_bytes") > 0.95  # simulated: float32 arrays
assert 1.4 < share("float16-mixed", "weights") < 1.5                  # the master weights, and a copy in half the bytes
assert held["float32"]["bytes"]["activations"] > held["float32"]["bytes"]["weights"]

# %% [markdown]
# float16 halves what is held, but for a few numbers a row that stay float32 (the statistics of layer norms and of
# attention). The weights get *more*: the float32 master and the float16 copy. With a batch of some size the first
# outweighs the second by far.
#
# bfloat16 is simulated here, in float32 arrays. Its bytes are those it would have in hardware, and none of them is
# saved on this machine.
#
# Three steps of each, forward, backward and update, and then their time:

# %%
losses = {name: [s() for _ in range(3)] for name, s in steps.items()}
with peers.ours_on(THREADS):
    taken = interleaved([Call(s) for s in steps.values()], 2 * SECONDS, least=3)
print(table(["recipe", "loss after 3 steps", "ms a step", "of float32's"],
            [[name, f"{loss[-1]:.3f}", f"{s * 1e3:.1f}", f"{s / taken[0]:.2f}"]
             for (name, loss), s in zip(losses.items(), taken, strict=True)]))

assert all(loss[-1] < loss[0] for loss in losses.values())
assert max(loss[-1] for loss in losses.values()) - min(loss[-1] for loss in losses.values()) < 0.1

# %% [markdown]
# float16 costs about what float32 costs. It is bought for memory, and for what it teaches. bfloat16 pays for its
# simulation: each of its roundings is an extra pass over a float32 array.
#
# What a tensor core does
# -----------------------
#
# On a GPU the picture is another one, and it is the roofline that tells why. A tensor core multiplies small matrices
# of float16 in one instruction, with sums in float32, where an ordinary core does one multiplication and addition a
# lane. NVIDIA's data sheet of the H100 (SXM, dense) gives 67 TFLOP/s in float32, 989 in float16 and 1979 in eight bits,
# floating or integer, and 3.35 TB/s of memory.

# %%
H100 = {"float32": 67e12, "float16": 989e12, "int8": 1979e12}
H100_MEMORY = 3.35e12
worth = {name: peak / H100_MEMORY for name, peak in H100.items()}
least = worth["float16"] * 3                  # float16 in and out: an intensity of n / 3
print(table(["type", "times float32", "operations a byte is worth"],
            [[name, f"{peak / H100['float32']:.1f}", f"{worth[name]:.0f}"] for name, peak in H100.items()]))
print(f"float16 products of less than about {least:.0f} x {least:.0f} wait for memory there")

assert 14 < H100["float16"] / H100["float32"] < 15
assert 1.9 < H100["int8"] / H100["float16"] < 2.1
assert 290 < worth["float16"] < 300
assert 880 < least < 890

# %% [markdown]
# Fifteen times the rate for half of the digits, not twice: the instruction changed, not only the width. It is the same
# step as from our float32 to our int8 product, from lanes to small dot products in one instruction, taken further. Two
# more things follow. One byte must serve hundreds of operations, so that only large products reach such a peak, and
# everything else in a step, the norms, the GELUs, the optimizer, waits for memory. There the bytes count that a narrow
# type saves, and for this reason such ops are fused into one pass.
#
# The arithmetic is what this program does in the plain: operands of 16 bits, products that are exact, sums in float32,
# one rounding at the end. What is learned here of underflow, loss scales and master weights holds there.
#
# What to take along
# ------------------
#
# - Ask first what one waits for. The roofline answers: intensity, peak, bandwidth.
# - The way from three loops to the peak is not less arithmetic but less waiting, and the result has the same bits.
# - On a CPU float16 halves the bytes and leaves the time as it is. It takes work for it not to be slower.
# - int8 is faster, several times, where the processor has its dot product, and for large products.
# - ``minillm bench matmul``, ``rowwise``, ``cast``, ``step`` and ``generate`` print the tables for your machine, next to
#   whatever else is installed there.
