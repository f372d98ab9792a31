# %% [markdown]
"""
Number formats
==============

Eight bits have 256 patterns. A *number format* says which number each pattern stands for. There is nothing else to
it, and yet the same eight bits, cut in the same place, mean five different things in the literature, and what one
system reads as 480 another reads as *not a number*.

This tutorial builds formats from their three parts (sign, exponent, mantissa), puts all those that training uses on
one line, and measures the two things that decide whether a tensor fits into one: its **range** and its **spacing**.
Then it looks at the places where the dialects differ: the two ends.

You need to know binary numbers and powers of two; tutorial 03 shows why anyone cares. All quoted numbers are
asserted. The script runs for a few seconds, and ``MINILLM_QUICK=1`` changes nothing in it.
"""

# %%
import math
from collections import Counter

import numpy as np

from minillm.encoding import encode, pack
from minillm.experiments.formats import all_formats, describe_all, describe_value, one_value
from minillm.experiments.tables import table
from minillm.formats import (
    BFLOAT16,
    E8M0,
    FLOAT4_E2M1,
    FLOAT6_E2M3,
    FLOAT6_E3M2,
    FLOAT8_E4M3,
    FLOAT8_E5M2,
    FLOAT16,
    FLOAT32,
    INT4,
    INT8,
    TF32,
    Format,
    format_named,
)
from minillm.plotting.formats import number_lines, reach, relative_spacing
from minillm.rounding import round_to

# %% [markdown]
# Sixteen numbers
# ---------------
#
# The smallest format in use has four bits: one for the sign, two for the exponent, one for the mantissa. So it is
# called E2M1. Here is all of it. A pattern ``s ee m`` stands for
#
# (-1)^s times 2^(ee - 1) times 1.m
#
# where 1 is the **bias**, which puts the exponents around zero; and if ``ee`` is 00, for (-1)^s times 0.m.

# %%
for code in range(8):
    print(f"0 {code >> 1:02b} {code & 1}   {FLOAT4_E2M1.decode(code).item():g}")


def by_hand(code):
    """The value of a four-bit code, as the text above says it."""
    sign, exponent, mantissa = (-1) ** (code >> 3), code >> 1 & 3, code & 1
    return sign * (mantissa / 2 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + mantissa / 2))


assert [by_hand(code) for code in range(16)] == FLOAT4_E2M1.decode(np.arange(16)).tolist()
assert FLOAT4_E2M1.values().tolist() == [-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]

# %% [markdown]
# There are 15 numbers, since 0 has two patterns. Between 2 and 4 they are as far apart as their size demands: twice as
# far as between 1 and 2. Every binary format looks like that. Each further bit of mantissa puts a value into every
# gap; each further bit of exponent squares the range.

# %%
SMALL = (FLOAT4_E2M1, FLOAT6_E2M3, FLOAT6_E3M2, FLOAT8_E4M3, FLOAT8_E5M2, INT4, INT8)
print(number_lines(SMALL, "figures/04-number-lines.png"))

counts = {f: int(((f.values() >= 0) & (f.values() <= 8)).sum()) for f in SMALL}
print({f.name: n for f, n in counts.items()})

assert counts[FLOAT6_E2M3] == 32            # all that it has: its largest is 7.5
assert counts[FLOAT6_E3M2] == 25            # as many bits, but a part of them is spent on numbers up to 28
assert (FLOAT6_E2M3.max, FLOAT6_E3M2.max) == (7.5, 28)
assert counts[FLOAT8_E4M3] - 1 == 80 > counts[FLOAT8_E5M2] - 1 == 72
assert counts[INT8] == 9                    # 0, 1, ..., 8: a whole number has no finer steps near 0

# %% [markdown]
# The two formats of six bits show the bargain. E2M3 has 32 values from 0 to 7.5, and nothing beyond. E3M2 has 25 up to
# 8, and reaches 28. The eight-bit formats repeat it: from 0 to 8, E4M3 has 81 values and E5M2 73, but E5M2 reaches
# 57344, and E4M3 only 448.
#
# All of them on one line each
# ----------------------------
#
# The command ``minillm formats`` prints this table.

# %%
print(describe_all(all_formats()))

# %% [markdown]
# What the columns mean:
#
# - **max** is the largest finite value;
# - **tiny** the smallest one that still has all digits of its mantissa;
# - **smallest** the smallest above zero: below ``tiny`` come the *subnormal* values, evenly spaced down to zero;
# - **eps** the distance from 1 to the next value: 2 to the power of minus the mantissa bits.
#
# Two rows look odd. ``e8m0`` is nothing but an exponent. It has no sign, no zero and no mantissa, only the powers of
# two from 2^-127 to 2^127: it is the scale that a block of 32 narrow values shares. And the integers have no exponent
# at all, so that their values are evenly spaced throughout, and there is one more of them below zero.

# %%
assert (FLOAT16.max, FLOAT16.tiny, FLOAT16.smallest, FLOAT16.eps) == (65504, 2.0**-14, 2.0**-24, 2.0**-10)
assert (BFLOAT16.tiny, BFLOAT16.eps) == (2.0**-126, 2.0**-7)
assert len(E8M0.values()) == 255
assert (E8M0.values()[0], E8M0.values()[-1]) == (2.0**-127, 2.0**127)
assert (INT8.lowest, INT8.max, INT4.lowest, INT4.max) == (-128, 127, -8, 7)

# %% [markdown]
# Range
# -----
#
# How many powers of two lie between the smallest and the largest value?

# %%
RANGES = (FLOAT32, TF32, BFLOAT16, E8M0, FLOAT16, FLOAT8_E5M2, FLOAT8_E4M3, FLOAT6_E3M2, FLOAT6_E2M3, FLOAT4_E2M1)
print(reach(RANGES, "figures/04-range.png"))

binades = {f: math.floor(math.log2(f.max)) - math.floor(math.log2(f.smallest)) + 1 for f in RANGES}
print(table(["format", "bits", "powers of two"], [[f.name, f.bits, n] for f, n in binades.items()]))

assert binades[FLOAT16] == 40
assert binades[FLOAT8_E5M2] == 32
assert binades[FLOAT8_E4M3] == 18
assert binades[FLOAT4_E2M1] == 4
assert binades[FLOAT32] == 277
assert binades[TF32] == binades[FLOAT32] - 13
assert binades[BFLOAT16] == binades[FLOAT32] - 16

# %% [markdown]
# float16 spans 40 powers of two, of which 10 are subnormal. bfloat16 spans 261: the exponent of float32 in half of its
# bits. That is why bfloat16 is trained without a loss scale, and float16 is not (tutorial 03).
#
# E4M3 spans 18 and E5M2 32. The gradients of one model spread over more than 18 powers of two, and so E5M2 was made
# for gradients, and E4M3, with its finer steps, for weights and activations.
#
# Spacing
# -------
#
# The distance from a value to the next is its **ulp**, unit in the last place. It doubles at every power of two.
# Divided by the value itself it swings between eps and half of eps, until the subnormal values begin: there the ulp
# stays as it is while values get smaller, and the digits run out.

# %%
SPACED = (FLOAT16, BFLOAT16, FLOAT8_E4M3, FLOAT8_E5M2, FLOAT4_E2M1)
print(relative_spacing(SPACED, "figures/04-spacing.png"))

for x in (0.001, 0.02, 1.0, 300.0):
    print(f"at {x:g}:  " + ",  ".join(f"{f.name} {f.ulp(x):.2g}" for f in (FLOAT16, BFLOAT16, FLOAT8_E4M3)))

assert FLOAT16.ulp(0.02) == 2.0**-16
assert BFLOAT16.ulp(0.02) == 2.0**-13
assert FLOAT8_E4M3.ulp(300.0) == 32
assert FLOAT16.ulp(2048.0) == 2
assert all(f.eps / 2 < f.ulp(x) / x <= f.eps for f in (FLOAT16, BFLOAT16) for x in np.geomspace(1e-4, 6e4, 500).tolist())
below, above = FLOAT16.neighbours(2048.0)
assert (below, above) == (2047, 2050)

# %% [markdown]
# At 2048, the neighbours of a float16 number are 2047 and 2050: whoever counts in steps of one stays there for ever.
# Rounding to nearest is wrong by half an ulp at most, which just above a power of two is half of eps. This is the **unit
# roundoff** u: 0.05 % for float16, 0.4 % for bfloat16, 6 % for E4M3, 25 % for E2M1. A number that is wrong by so much
# lies in the middle of a gap, and is a little larger than the power of two: so the worst relative error is u / (1 + u),
# for E2M1 20 % (1.25 becomes 1).

# %%
for f, percent in ((FLOAT16, 0.05), (BFLOAT16, 0.4), (FLOAT8_E4M3, 6), (FLOAT4_E2M1, 25)):
    x = np.random.default_rng(0).uniform(f.tiny, 4, 20_000).astype(np.float32)
    worst = float(np.max(np.abs(round_to(x, f).astype(np.float32) - x) / x))
    print(f"{f.name:12} worst relative error of 20,000 roundings {100 * worst:.3g} %, unit roundoff {100 * f.roundoff:.3g} %")
    assert 0.99 * f.roundoff / (1 + f.roundoff) < worst < 1.000001 * f.roundoff / (1 + f.roundoff)
    assert 0.97 < 100 * f.roundoff / percent < 1.05

# %% [markdown]
# One value, looked at closely
# ----------------------------
#
# ``minillm formats float8_e4m3 0.3`` shows the bits, the error, the neighbours, and what each rounding would make of
# it. Stochastic rounding takes one of the two neighbours at random, the nearer one more often, so that it is right on
# average.

# %%
closer = one_value("float8_e4m3", "0.3")
print(describe_value(closer))

assert closer["kept"] == 0.3125
assert closer["fields"] == {"sign": "0", "exponent": "0101", "mantissa": "010"}
assert closer["neighbours"] == [0.28125, 0.3125]
drawn = round_to(np.full(100_000, 0.3, np.float32), FLOAT8_E4M3, "stochastic", key=4)
print(Counter(drawn.tolist()), f"mean {drawn.mean(dtype=np.float32):.5f}")
assert abs(drawn.mean(dtype=np.float32) - 0.3) < 4 * 0.03125 * math.sqrt(0.24 / 100_000) + 1e-6

# %% [markdown]
# Five things called E4M3
# -----------------------
#
# Four bits of exponent, three of mantissa: that much is agreed. What remains is what to do with the patterns at the
# upper end. IEEE's rule gives the whole highest exponent to infinity and NaN. The eight-bit standard of 2023 keeps
# NaN alone and goes on to 448. Others have neither, and go on to 480. Others move the bias, and make -0 the NaN. And
# what a number beyond the end becomes is another choice.

# %%
E4M3S = ("float8_e4m3", "float8_e4m3_saturate", "float8_e4m3_max240", "float8_e4m3_max480", "float8_e4m3_fnuz")
rows = {name: round_to(np.array([240, 300, 470, 1000, math.inf, math.nan], np.float32), format_named(name)) for name in E4M3S}
print(table(["dialect", "240", "300", "470", "1000", "inf", "NaN"], [[n, *(f"{v:g}" for v in row)] for n, row in rows.items()]))

assert [format_named(name).max for name in E4M3S] == [448, 448, 240, 480, 240]
becomes = {name: row[3].item() for name, row in rows.items()}
assert math.isnan(becomes["float8_e4m3"])
assert math.isnan(becomes["float8_e4m3_fnuz"])
assert (becomes["float8_e4m3_saturate"], becomes["float8_e4m3_max240"], becomes["float8_e4m3_max480"]) == (448, math.inf, 480)

# %% [markdown]
# The same 1000 becomes NaN, 448, infinity, or 480. None of them is wrong; but a paper that says "E4M3" and no more has
# not said what it did. In this project each dialect has a name, and differs in a field that can be set. To make one of
# your own:

# %%
mine = Format("mine", exponent_bits=3, mantissa_bits=4, bias=5, specials="none", overflow="saturate", subnormals=False)
print(mine.name, "from", mine.smallest, "to", mine.max, "with", len(mine.values()), "values")

assert mine.max == (2 - 2.0**-4) * 2.0**2
assert mine.smallest == mine.tiny == 2.0**-4
assert round_to(100.0, mine).item() == mine.max
assert len(mine.values()) == 2 * 7 * 16 + 1

# %% [markdown]
# Bits in memory
# --------------
#
# NumPy has float32 and float16. All other formats are *simulated* here: an array of float32 holds their values, and
# ``encode`` gives the bits when bytes count. Codes of four and six bits are packed without gaps.

# %%
weights = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
sizes = {f: pack(encode(weights, f), f.bits).nbytes for f in (FLOAT8_E4M3, FLOAT6_E3M2, FLOAT4_E2M1)}
print({f.name: n for f, n in sizes.items()}, "bytes for 1000 values")

assert list(sizes.values()) == [1000, 750, 500] == [f.nbytes(1000) for f in sizes]
assert np.array_equal(FLOAT4_E2M1.decode(encode(weights, FLOAT4_E2M1)), round_to(weights, FLOAT4_E2M1))

# %% [markdown]
# What to take along
# ------------------
#
# - Exponent bits buy range, mantissa bits buy digits. float16 has 40 powers of two and three decimal digits, bfloat16
#   261 and two.
# - The ulp doubles at every power of two; relative to the value, rounding to nearest is wrong by half of eps at most.
# - Below ``tiny`` values are evenly spaced, and digits are lost one by one before zero is reached.
# - A name like E4M3 leaves the ends open. Ask for the largest value, and for what 1000 becomes.
