"""Sums whose accumulator has a format, an order and a rounding of its own: dot products, matrix products, and training with them.

Every product of two float32 values has 48 digits and is exact in float64. Every addition is rounded once: float64's own sum is
first rounded *to odd* (where float64 cannot hold it, its last digit is made odd, from its exact error; Boldo and Melquiond 2008),
because a sum rounded to even might come to lie on a tie, or on a value, of the narrow format and be rounded from there again. For
halves in a float16 accumulator, to nearest even, this never differs: their products have 22 digits, so a sum that float64 cannot
hold adds less than 2^-30 of it to a half, which is 2^-13 of itself or more away from any tie. There the kernels leave it out.

A sum begins at +0, a zero result is +0, and whatever is not a number is one NaN. Arrays here are the specification, a loop over k
with `round_to`; kernels/accumulation.py gives the same bits, and much faster.
"""
import functools
import math
import re
from dataclasses import dataclass

import numpy as np

from minillm import kernels
from minillm.autograd.rules.products import FLOAT32_PRODUCTS, PRODUCTS, Products
from minillm.autograd.rules.products import dot as blas
from minillm.errors import MiniLLMError, unknown
from minillm.formats import FLOAT32, Format, format_named
from minillm.rounding import check_rounding, round_to, widen

COMPENSATIONS = ("kahan", "neumaier")
ROLES = ("forward", "input_gradient", "weight_gradient")


@dataclass(frozen=True)
class Accumulator:
    """What a sum is kept in, and the order in which it is formed; data only.

    `order`: "sequential": one term after another. "pairwise": neighbours first, then their sums, an odd one waits (Higham 2002,
    section 4.1: log2 K roundings on the way of a term instead of K). "chunked": `chunk` terms are summed, then the sums, all in
    the format (Wang et al. 2018, arXiv 1812.08011, section 3.1). "blocked": `block` products are added exactly (106 digits) and
    enter the accumulator with one rounding; every `promote` terms, 0 for never, it is emptied into a float32 sum, nearest even
    (DeepSeek-V3, arXiv 2412.19437, section 3.3.2). `compensation`: "kahan" carries what an addition lost into the next,
    "neumaier" sums the losses apart and adds them at last (Higham 2002, section 4.3; Neumaier 1974); every one of their four
    additions a term is rounded. `rounding`: any of round_to's. MiniLLMError for what does not go together.
    """

    format: Format
    order: str = "sequential"
    rounding: str = "nearest_even"
    chunk: int = 0
    block: int = 0
    promote: int = 0
    compensation: str | None = None

    def __post_init__(self):
        check_rounding(self.rounding)
        if self.order not in ORDERS or self.order in COMPENSATIONS:
            raise unknown("order", self.order, ORDERS.keys() - set(COMPENSATIONS))
        if self.compensation not in (None, *COMPENSATIONS):
            raise unknown("compensation", self.compensation, COMPENSATIONS)
        if not (self.format.signed and self.format.zero):
            raise MiniLLMError(f"{self.format.name} has no sign or no zero, so it cannot hold a sum: take another format")
        for name, order in (("chunk", "chunked"), ("block", "blocked")):
            size = getattr(self, name)
            if not isinstance(size, int) or (size > 0) != (self.order == order) or size < 0:
                raise MiniLLMError(f"{name} is {size!r} in {self.order} order: a whole number above 0 with {order}, else 0")
        if self.promote and (self.order != "blocked" or self.promote < 0 or self.promote % self.block):
            raise MiniLLMError(f"promote is {self.promote} in {self.order} order: a multiple of block, with blocked order only")
        if self.compensation and self.order != "sequential":
            raise MiniLLMError(f"{self.compensation} compensates a sequential sum, not a {self.order} one: leave one of them away")

    @property
    def name(self) -> str:
        """What it is called in JSON: "bfloat16/kahan", "float16/chunked_64", "float22_e8m13/toward_zero/block_32/promote_128"."""
        order = {"chunked": f"chunked_{self.chunk}", "blocked": f"block_{self.block}", "pairwise": "pairwise"}.get(self.order, "")
        parts = ["" if self.rounding == "nearest_even" else self.rounding, order, f"promote_{self.promote}" if self.promote else "",
                 self.compensation or ""]
        if self.format is FLOAT32 and not any(parts):
            parts = ["sequential"]                               # "float32" alone is BLAS, in the order that it likes
        return "/".join([self.format.name, *filter(None, parts)])


@functools.cache
def accumulator_named(name: str) -> Accumulator:
    """The accumulator of a name: a format, then rounding, order and compensation with strokes between; MiniLLMError otherwise."""
    format, *parts = name.split("/")
    fields = {}
    for part in parts:
        kind, _, size = part.rpartition("_")
        if part in ("sequential", "pairwise"):
            new = {"order": part}
        elif part in COMPENSATIONS:
            new = {"compensation": part}
        elif re.fullmatch(r"(chunked|block|promote)_[1-9]\d{0,8}", part):
            new = {"chunked": {"order": "chunked", "chunk": int(size)}, "block": {"order": "blocked", "block": int(size)},
                   "promote": {"promote": int(size)}}[kind]
        else:
            new = {"rounding": part}
        if fields.keys() & new.keys():
            raise MiniLLMError(f"accumulator {name!r} says {', '.join(new)} twice: leave one of them away")
        fields |= new
    return Accumulator(format_named(format), **fields)


# the specification

def two_sum(x, y):
    """The sum of two float64 arrays and its exact error (Knuth); no error where the sum is not finite."""
    total = x + y
    back = total - x
    error = (x - (total - back)) + (y - back)
    return total, np.where(np.abs(error) > 0, error, 0.0)


def odd_sum(x, y):
    """The sum rounded to odd: cut off, and where something was cut off the last digit is set, so that it is never on a tie."""
    total, error = two_sum(x, y)
    toward_zero = (error != 0) & ((error < 0) != (total < 0))
    return (np.asarray(total).view(np.int64) - toward_zero | (error != 0)).view(np.float64)


class Adder:
    """Adds float64 arrays and rounds once; each addition of a stochastic one has a key of its own."""

    def __init__(self, how: Accumulator, keys):
        self.how, self.keys = how, iter(keys)

    def __call__(self, x, y):
        exact = x + y if self.how.format.storage is np.float64 else odd_sum(x, y)        # the oracle's format is float64 itself
        key = int(next(self.keys)) if self.how.rounding.startswith("stochastic") else None
        return np.asarray(round_to(exact, self.how.format, self.how.rounding, key)).astype(np.float64)


def sequential(add, term, ks, zero, how):
    total = zero
    for k in ks:
        total = add(total, term(k))
    return total


def chunked(add, term, ks, zero, how):
    total = zero
    for start in range(0, len(ks), how.chunk):
        total = add(total, sequential(add, term, ks[start:start + how.chunk], zero, how))
    return total


def pairwise(add, term, ks, zero, how):
    held = []                                    # (terms in it, their sum), each longer than the next
    for k in ks:
        count, total = 1, term(k)
        while held and held[-1][0] == count:
            count, total = 2 * count, add(held.pop()[1], total)
        held.append((count, total))
    while len(held) > 1:
        _, last = held.pop()
        held.append((0, add(held.pop()[1], last)))
    return add(zero, held[0][1]) if held else zero               # a single product has not been rounded yet


def blocked(add, term, ks, zero, how):
    total, wide = zero, zero
    for start in range(0, len(ks), how.block):
        high, low = zero, zero
        for k in ks[start:start + how.block]:
            high, error = two_sum(high, term(k))
            low = low + error
        both, error = two_sum(total, high)
        total = add(both, np.where(np.isfinite(both), odd_sum(low, error), 0.0))
        done = start + how.block
        if how.promote and (done % how.promote == 0 or done >= len(ks)):
            wide, total = round_to(odd_sum(wide, total), FLOAT32).astype(np.float64), zero
    return wide if how.promote else total


def kahan(add, term, ks, zero, how):
    total, lost = zero, zero                     # what the last addition gave too much
    for k in ks:
        y = add(term(k), -lost)
        new = add(total, y)
        lost = add(add(new, -total), -y)
        total = new
    return total


def neumaier(add, term, ks, zero, how):
    total, lost = zero, zero                     # what all additions left out
    for k in ks:
        x = term(k)
        new, first = add(total, x), np.abs(total) >= np.abs(x)
        large, small = np.where(first, total, x), np.where(first, x, total)
        lost = add(lost, add(add(large, -new), small))
        total = new
    return add(total, lost)


ORDERS = {"sequential": sequential, "chunked": chunked, "pairwise": pairwise, "blocked": blocked, "kahan": kahan,
          "neumaier": neumaier}


def plain_matmul(a, b, how: Accumulator, keys) -> np.ndarray:
    """The product of (..., M,K) and (..., K,N) as the kernels must give it, one k after another."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    zero = np.zeros((*batch, a.shape[-2], b.shape[-1]))          # (..., M,N) float64, every value on the format's grid

    def term(k):
        return np.broadcast_to(a[..., :, k, None] * b[..., None, k, :], zero.shape)
    total = ORDERS[how.compensation or how.order](Adder(how, keys), term, range(a.shape[-1]), zero, how)
    return np.where(np.isnan(total), np.nan, total + 0.0)


# the products

def mixed(key: int, words) -> np.ndarray:
    """A key of 64 bits for each of some whole numbers, all different (splitmix64, Steele et al. 2014)."""
    z = np.atleast_1d(np.asarray(words, np.uint64)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key & 2**64 - 1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ z >> np.uint64(shift)) * np.uint64(factor)
    return z ^ z >> np.uint64(31)


def matmul(a, b, accumulator: Accumulator | str, key: int | None = None) -> np.ndarray:
    """A @ b in this accumulator: (..., M,K) (..., K,N) -> (..., M,N), batches broadcast.

    a, b: float16 or float32; the result is float32, exact. key: any whole number, for a stochastic accumulator only; a value's bits
    depend on it and on the value's place. MiniLLMError for other types, shapes that do not fit, and a stochastic one without a key.
    """
    how = accumulator_named(accumulator) if isinstance(accumulator, str) else accumulator
    a, b = operand(a, how), operand(b, how)
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise MiniLLMError(f"no product of {a.shape} and {b.shape}: give (..., M,K) and (..., K,N)")
    stochastic = how.rounding.startswith("stochastic")
    if stochastic and key is None:
        raise MiniLLMError(f"accumulator {how.name} needs a key: give a number, a new one for each product")
    keys = mixed(key, np.arange(1, 4 * a.shape[-1] + 3)) if stochastic else np.zeros(1, np.uint64)
    with np.errstate(all="ignore"):
        if kernels.enabled() and a.dtype == b.dtype == np.float32 and how.format.storage is not np.float64:
            return by_kernel(a, b, how, keys)
        return plain_matmul(a, b, how, keys).astype(a.dtype)


def by_kernel(a, b, how, keys):
    """The same bits from the compiled loops."""
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (np.ascontiguousarray(np.broadcast_to(x, (*batch, *x.shape[-2:])).reshape(-1, *x.shape[-2:])) if batch else x[None]
            for x in (a, b))
    out = np.empty((a.shape[0], a.shape[1], b.shape[2]), np.float32)
    mode, random = check_rounding(how.rounding)
    kernels.load("accumulation").matmul(np.ascontiguousarray(a), np.ascontiguousarray(b), out, how.compensation or how.order,
                                        how.format, mode, random, (how.chunk, how.block, how.promote), keys)
    out[np.isnan(out)] = np.nan
    return out.reshape(*batch, *out.shape[1:])


def operand(x, how) -> np.ndarray:
    """A float16 or float32 array as float32; float64 is for the oracle's format alone."""
    x = np.asarray(x)
    x = x.astype(x.dtype.newbyteorder("="), copy=False)
    if x.dtype == np.float64 and how.format.storage is np.float64:
        return x
    if x.dtype not in (np.float16, np.float32):
        raise MiniLLMError(f"products in {how.name} take float16 and float32, not {x.dtype}: round it first, round_to(x, FLOAT32)")
    return widen(x, np.float32)


def dot(a, b, accumulator: Accumulator | str, key: int | None = None) -> float:
    """The dot product of two vectors (K,) in this accumulator; types and errors as for matmul."""
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim != 1 or a.shape != b.shape:
        raise MiniLLMError(f"no dot product of {a.shape} and {b.shape}: give two vectors of one length")
    return float(matmul(a[None], b[:, None], accumulator, key)[0, 0])


def total(x, axis: int | None = None, accumulator: Accumulator | str = "float32/sequential", key: int | None = None) -> np.ndarray:
    """The sum of x along an axis, or of all its values, in this accumulator; types and errors as for matmul."""
    x = np.asarray(x)
    x = x.reshape(-1, 1) if axis is None else np.moveaxis(x, axis, 0)
    rest, ones = (() if axis is None else x.shape[1:]), np.ones((1, x.shape[0]), x.dtype)
    return matmul(ones, x.reshape(x.shape[0], math.prod(rest)), accumulator, key).reshape(rest)


@dataclass(frozen=True)
class Product:
    """One of the three products of a Products; each role has random bits of its own."""

    accumulator: Accumulator
    role: str

    def __call__(self, xp, a, b, key):
        if xp is not np:
            raise MiniLLMError(f"accumulator {self.accumulator.name} is emulated in NumPy only: leave it away on {xp.__name__}")
        return matmul(a, b, self.accumulator, int(mixed(key, ROLES.index(self.role) + 1)[0]))


def accumulated(forward: Accumulator | str = "float32", input_gradient: Accumulator | str = "float32",
                weight_gradient: Accumulator | str = "float32") -> Products:
    """Products with an accumulator for each of the three; "float32" is the product that is there without it, BLAS's."""
    given = [how if isinstance(how, Accumulator) or how == "float32" else accumulator_named(how)
             for how in (forward, input_gradient, weight_gradient)]
    if all(how == "float32" for how in given):
        return FLOAT32_PRODUCTS
    made = {role: blas if how == "float32" else Product(how, role) for role, how in zip(ROLES, given, strict=True)}
    if given[0] == given[1] == given[2]:
        return Products(given[0].name, **made)
    name = ",".join(f"{role}={how.name}" for role, how in zip(ROLES, given, strict=True) if how != "float32")
    return Products(name, **made)


@functools.cache
def products_named(name: str) -> Products:
    """One of PRODUCTS, an accumulator for all three products, or "forward=float16,weight_gradient=bfloat16/kahan"."""
    if name in PRODUCTS:
        return PRODUCTS[name]
    if "=" not in name:
        return accumulated(name, name, name)
    parts = [part.partition("=")[::2] for part in name.split(",")]
    for role, _ in parts:
        if role not in ROLES:
            raise unknown("product", role, ROLES)
    if len(dict(parts)) < len(parts):
        raise MiniLLMError(f"products {name!r} name one of the three twice: leave one of them away")
    return accumulated(**dict(parts))


