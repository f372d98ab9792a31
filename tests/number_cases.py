"""Formats to test, those of ml_dtypes beside ours, and the numbers on which roundings differ."""
import functools

import ml_dtypes
import numpy as np

from minillm.formats import FLOAT16, FLOAT32, FORMATS, Format, format_named

PEERS = {format_named(name): np.dtype(getattr(ml_dtypes, type)) for name, type in {
    "bfloat16": "bfloat16", "float8_e4m3": "float8_e4m3fn", "float8_e5m2": "float8_e5m2", "float6_e3m2": "float6_e3m2fn",
    "float6_e2m3": "float6_e2m3fn", "float4_e2m1": "float4_e2m1fn", "e8m0": "float8_e8m0fnu", "float8_e3m4": "float8_e3m4",
    "float8_e4m3_max240": "float8_e4m3", "float8_e4m3_fnuz": "float8_e4m3fnuz", "float8_e4m3_b11fnuz": "float8_e4m3b11fnuz",
    "float8_e5m2_fnuz": "float8_e5m2fnuz"}.items()} | {FLOAT16: np.dtype(np.float16)}

BUILT = (
    Format("no mantissa", 4, 0, specials="none"), Format("no mantissa but NaN", 3, 0, specials="nan"),
    Format("one exponent bit", 1, 4), Format("all in float32", 8, 22), Format("stored in halves", 4, 3, np.float16, specials="nan"),
    Format("stored in doubles", 9, 30, np.float64), Format("high bias", 4, 5, bias=60), Format("low bias", 4, 5, bias=-40),
    Format("spaced too wide to add", 2, 1, bias=-122), Format("below float32's normal range", 4, 3, bias=135),
    Format("flushed", 3, 4, specials="fnuz", subnormals=False),
    Format("flushed and saturating", 3, 2, specials="none", subnormals=False),
    Format("no sign", 4, 3, signed=False), Format("no sign, no NaN", 4, 3, specials="none", signed=False, nan="zero"),
    Format("no zero", 4, 3, specials="nan", zero=False), Format("no zero, no NaN", 3, 2, specials="none", zero=False),
    Format("infinite but saturating", 3, 3, overflow="saturate"), Format("infinite, overflow NaN", 3, 3, overflow="nan"),
    Format("uint6", 0, 6, specials="none", signed=False), Format("fixed point", 0, 9, bias=4, specials="none", nan="zero"),
)
SIMULATED = tuple(f for f in (*FORMATS.values(), *BUILT) if f is not FLOAT32)
SMALL = tuple(f for f in SIMULATED if f.bits <= 16)

HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16)
RANDOM = np.random.default_rng(0).integers(0, 2**32, 2**18, dtype=np.uint32).view(np.float32)             # all exponents, NaN too
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 2**-126, 3.4028235e38, -3.4028235e38], np.float32)


def around(x):
    """Each value, and those of the same type just below and just above it, flat."""
    infinity = x.dtype.type(np.inf)
    with np.errstate(over="ignore", under="ignore"):
        return np.concatenate([np.nextafter(x, -infinity), x, np.nextafter(x, infinity)])


@functools.cache
def positive_values(format):
    """Values of a format that are not negative, (n,) float64: all of a small one, else those at both ends and around 1."""
    codes = 2 ** (format.exponent_bits + format.mantissa_bits)
    chosen = np.arange(codes) if format.bits <= 16 else np.unique(np.clip(np.concatenate([np.arange(n, n + 64) for n in (
        0, 2**format.mantissa_bits - 32, int(format.code_below(np.float64(1))) - 32, codes - 64)]), 0, codes - 1))
    values = format.magnitude(chosen).astype(np.float64)
    return np.unique(values[values <= format.max])


@functools.cache
def ties(format):
    """The middle of each value and the next one, of both signs, float64; with the one above the largest value."""
    values = positive_values(format)
    step = np.maximum(np.exp2(np.floor(np.log2(np.maximum(values, format.tiny)))), format.tiny) * 2.0**-format.mantissa_bits
    step[values == 0] = format.smallest
    middle = np.append(values + step / 2, format.smallest / 2)                 # log2 is right at 11 bits
    return np.concatenate([middle, -middle])


@functools.cache
def every_edge(format, wide):
    """Values, ties and what lies just beside them, in a NumPy type that holds the ties."""
    values = positive_values(format)
    with np.errstate(over="ignore", under="ignore"):
        x = np.concatenate([values, -values, ties(format), [2 * format.max, -4 * format.max]]).astype(wide)
        x = np.unique(np.concatenate([around(x), SPECIAL.astype(wide)]))
        return x[~np.isnan(x)]


def bits(x):
    return np.asarray(x).view(f"u{x.dtype.itemsize}")


def same_values(a, b):
    """Equal in value and sign, NaN beside NaN."""
    nan = np.isnan(a)
    return a.shape == b.shape and np.array_equal(nan, np.isnan(b)) and np.array_equal(a[~nan], b[~nan]) and \
        np.array_equal(np.signbit(a[~nan]), np.signbit(b[~nan]))



def some(x, count):
    """At most so many of them, the same ones each time."""
    return x if len(x) <= count else np.random.default_rng(1).choice(x, count, replace=False)
