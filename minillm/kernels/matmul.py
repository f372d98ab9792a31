"""Matrix products in numba's own threads: float32 and float16 operands as they lie, float32 accumulate, rounded once at the end.

The result is cut into tiles that fit into vector registers. What a tile needs of the right operand, 64 columns, is copied into a
panel: the values in the order in which they are used, float16 made float32 on the way. Rows of the left operand are read where they
lie if they are float32, values side by side; else they are copied likewise. Sums run over k in order, one fused multiply-add each,
whatever the shape, the batch, the path and the number of threads: a row of the result has the same bits alone as among others.
"""
import functools
import math
import threading
from typing import NamedTuple

import numpy as np

from minillm.errors import MiniLLMError
from minillm.kernels import rounding
from minillm.kernels.blocks import DEPTH, TASKS, Job, run_product
from minillm.kernels.scalars import INSTRUCTION
from minillm.kernels.simd import LANES
from minillm.kernels.tasks import code_of
from minillm.kernels.tiles import BFLOAT16_DOT, COLUMNS, GROUPS, ROWS

LONGEST = 131_071                  # 128 x 128 times this is the largest sum of int8 products that 32 bits hold


# By the type of panels: who takes which types, and what to do with others.
DOORS = {np.float32: ("matmul", (np.float16, np.float32), "round it first"),
         np.int32: ("matmul_int8", (np.int8,), "quantize it first"),
         np.uint32: ("matmul_bfloat16", (np.float32,), "it takes bfloat16 values held as float32")}


# plans

def check(kind, given, what):
    door, accepted, remedy = DOORS[kind]
    if given not in accepted:                    # other bytes would be read as what they are not
        names = " and ".join(each.__name__ for each in accepted)
        raise MiniLLMError(f"{door} takes {names}, {what} is {given}: {remedy}")


def result_shape(a, b):
    if a[-1] != b[-2]:
        raise MiniLLMError(f"no product of {a} and {b}: the columns of one are the rows of the other")
    lead = np.broadcast_shapes(a[:-2], b[:-2]) if len(a) > 2 or len(b) > 2 else ()
    return (*lead, a[-2], b[-1])


class Plan(NamedTuple):
    """What is known of a product before its arrays are: the result's shape, whether it is the product of b and a turned over."""

    shape: tuple
    job: np.ndarray | None = None  # the numbers of a Job but for addresses; None where the product is not run as it is
    turned: bool = False
    size: int = 0                  # of the panels of columns, in units
    kept: tuple = ()               # arrays whose addresses stand in the job


@functools.lru_cache(maxsize=4096)
def plan(kind, out, a, b, bias):
    """The plan of a product; an operand is (type, shape, strides in bytes)."""
    (a_type, a_shape, a_strides), (b_type, b_shape, b_strides) = a, b
    shape = checked_shape(kind, a, b, bias)
    *lead, M, N = shape
    plain = as_it_lies(a) and as_it_lies(b) and (INSTRUCTION or out != np.float16)
    if 0 in (*a_shape, *b_shape) or not plain or not (bias is None or (bias[0] == np.float32 and (N == 1 or bias[2] == (4,)))):
        return Plan(shape)
    if len(b_shape) == 2 < len(a_shape) and one_stride(a_shape, a_strides):            # one right operand: one tall product
        lead, M, a_shape, a_strides = [], math.prod(a_shape[:-1]), a_shape[-2:], a_strides[-2:]
    turned = N == 1 < M and bias is None         # a column lies in memory like a row, which needs no panels
    sides = (b_type, b_shape, b_strides, (-1, -2)), (a_type, a_shape, a_strides, (-2, -1))
    left, right = sides if turned else ((a_type, a_shape, a_strides, (-2, -1)), (b_type, b_shape, b_strides, (-1, -2)))
    M, N, K, batches = *((N, M) if turned else (M, N)), a_shape[-1], math.prod(lead)
    packing, products, rows, columns, size = tasks(kind, batches, M, N, K)
    kept = tuple(offsets(tuple(lead), *each[:3]) for each in (left, right))
    code = [code_of(task) for task in TASKS[kind]]
    job = Job(0, 0, 0, 0, 0, batches * M * N * K > 1 << 17, packing, products, *code, M, N, K, rows, columns, packing > 0,
              *(int(np.dtype(each).itemsize == 2) for each in (left[0], right[0], out)),
              *(strides[axes[way]] // each.itemsize for way in (0, 1) for each, _, strides, axes in (left, right)),
              *(each.ctypes.data for each in kept), np.dtype(out).itemsize == 4 and N % COLUMNS == 0)
    return Plan(shape, np.array(job, np.int64), turned, size, kept)


def checked_shape(kind, a, b, bias):
    """The shape of a product; MiniLLMError for operands that have none."""
    check(kind, a[0], "a")
    check(kind, b[0], "b")
    shape = result_shape(a[1], b[1])
    if kind is np.int32 and a[1][-1] > LONGEST:
        raise MiniLLMError(f"int8 products of K = {a[1][-1]} may overflow int32: split K into parts of at most {LONGEST}")
    if bias is not None:
        check(kind, bias[0], "bias")
        if bias[1] != shape[-1:]:
            raise MiniLLMError(f"a bias of shape {bias[1]} beside {shape[-1]} columns: it must have shape {shape[-1:]}")
    return shape


def as_it_lies(operand):
    """Whether compiled code can read it: float16 where the processor converts it; values that lie whole values apart."""
    kind, _, strides = operand
    return (kind.itemsize != 2 or INSTRUCTION) and not any(stride % kind.itemsize for stride in strides)


def one_stride(shape, strides):
    """Whether one stride leads from row to row through all matrices of a batch."""
    return all(strides[i] == strides[i + 1] * shape[i + 1] for i in range(len(shape) - 2))


def tasks(kind, batches, M, N, K):
    """(tasks that pack, tasks of the product, rows and columns of one, units of panels).

    A task is large enough to use what is in the caches; large products have enough for sixteen threads. Tasks of fewer than 24
    rows were not faster. Nothing depends on the number of threads.
    """
    def count():
        return batches * -(-M // rows) * -(-N // columns)

    rows, columns = 32 * ROWS, 512
    if count() < 16:
        columns //= 2
    while rows > 4 * ROWS and count() < 16:
        rows //= 2
    while columns > COLUMNS and count() < 6:
        columns //= 2
    units, across = -(-K // GROUPS[kind]), -(-N // COLUMNS)
    deep = -(-units // DEPTH)
    packing = batches * deep * across if rows < M else 0         # columns that only one task needs are packed there
    return packing, count(), rows, columns, batches * (units + deep) * across * COLUMNS if packing else 0


def offsets(lead, kind, shape, strides):
    """Where each matrix of a batch begins, in values from the first."""
    missing = len(lead) + 2 - len(shape)
    total = np.zeros(lead, np.int64)
    for axis in range(missing, len(lead)):
        if shape[axis - missing] > 1:            # otherwise it is repeated
            step = strides[axis - missing] // kind.itemsize
            total += np.arange(lead[axis]).reshape((-1,) + (1,) * (len(lead) - axis - 1)) * step
    return total.reshape(-1)


# what others call

_memory = threading.local()
NOWHERE = 0, None


def scratch(size):
    """The address of memory for so many units that begins a cache line, and who holds it.

    It is the same memory each time, since new pages cost as much as a small product.
    """
    if not size:
        return NOWHERE
    held = getattr(_memory, "held", None)
    if held is None or held[1].size < size + LANES:
        array = np.empty(max(size, 1 << 18) + LANES, np.float32)
        held = (array.ctypes.data + 63) // 64 * 64, array
        if array.size < 1 << 22:                 # 16 MB: more is not kept
            _memory.held = held
    return held


def described(x):
    return x.dtype, x.shape, x.strides


def multiply(kind, out, a, b, bias=None):
    """A b + bias, of type `out`, in panels of type `kind`; types are checked."""
    planned = plan(kind, out, described(a), described(b), None if bias is None else described(bias))
    if planned.job is None:
        return multiply_otherwise(kind, out, a, b, bias)
    y = np.empty(planned.shape, out)
    left, right = (b, a) if planned.turned else (a, b)
    address, _held = scratch(planned.size)
    run_product(planned.job, id(left), id(right), id(y), 0 if bias is None else id(bias), address)
    return y


def multiply_otherwise(kind, out, a, b, bias):
    """The same for operands that are empty, or that compiled code does not read as they lie."""
    if not a.size or not b.size:
        y = np.zeros(result_shape(a.shape, b.shape), out)
        y[...] = 0 if bias is None else bias
        return y
    a, b = (x.copy() if INSTRUCTION or x.dtype != np.float16 else rounding.to_float32(x) for x in (a, b))
    exact = np.float32 if out == np.float16 and not INSTRUCTION else out
    y = multiply(kind, exact, a, b, None if bias is None else bias.astype(np.float32))
    return y if exact is out else rounding.to_float16(y)


def matmul(a, b, *, out=np.float32, bias=None):
    """(..., M,K) (..., K,N) -> (..., M,N): float32 accumulate over k in order, rounded once where `out` is float16.

    a, b: float32 or float16 in any layout, read as they lie; leading axes broadcast. bias: (N,), added before the rounding.
    MiniLLMError for other types and for shapes that do not fit.
    """
    return multiply(np.float32, out, a, b, bias)


def matmul_int8(a, b):
    """(..., M,K) (..., K,N) int8 -> (..., M,N) int32, exact.

    MiniLLMError for other types, and for K above 131,071, where the sum of products of -128 no longer fits into 32 bits.
    """
    return multiply(np.int32, np.int32, a, b)


def matmul_bfloat16(a, b):
    """(..., M,K) (..., K,N) -> (..., M,N) float32, of float32 arrays that hold bfloat16 values.

    Where numba compiles for the processor's bfloat16 dot instruction, each step adds two products with two roundings, subnormal
    operands and sums count as 0, and digits beyond bfloat16's are cut off. Elsewhere it is the float32 product: each product of
    two bfloat16 values is exact there, and so is every step up to the rounding of the sum. No recipe calls it by itself: a run
    would lose its subnormals, and have other bits, on some processors only.
    """
    for x, what in ((a, "a"), (b, "b")):
        check(np.uint32, x.dtype, what)
    if not BFLOAT16_DOT:
        return matmul(a, b)
    return multiply(np.uint32, np.float32, a, b)
