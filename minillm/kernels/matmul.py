"""Matrix products in numba's own threads: float32 and float16 operands as they lie, float32 accumulate, rounded once at the end.

The result is cut into tiles that fit into vector registers. What a tile needs of the left operand, 14 rows, and of the right one,
32 columns, is copied into a panel: the values in the order in which they are used, float16 made float32 on the way. The
micro-kernel reads both panels from end to end. Sums run over k in order, one fused multiply-add each, whatever the shape, the
batch, the path and the number of threads: a row of the result has the same bits alone as among others.
"""
import functools
import math
import threading

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic
from numba.np.numpy_support import from_dtype

from minillm.errors import MiniLLMError
from minillm.kernels import rounding
from minillm.kernels.panels import close_panel, pack, value_size
from minillm.kernels.scalars import INSTRUCTION, JIT
from minillm.kernels.simd import LANES, read, stay_whole, write
from minillm.kernels.tasks import POOL
from minillm.kernels.tiles import BFLOAT16_DOT, COLUMNS, HALF, KINDS, ROWS, group, height_of, kind_of, multiply_panels

DEPTH = 256                        # units of k at a time: a panel of rows, 14 KB, stays in the first cache
LONGEST = 131_071                  # 128 x 128 times this is the largest sum of int8 products that 32 bits hold


# the result

def finishing(half, count):
    """Result = sum + bias, `count` values side by side, rounded to float16 where the result is."""
    @intrinsic
    def operation(typingctx, panels, sums, bias, biased, result):
        kind = kind_of(panels).sums

        def emit(context, builder, signature, args):
            _, sums, bias, biased, result = args
            y = read(builder, sums, kind, count)
            if kind == ir.FloatType():
                y = builder.select(biased, builder.fadd(y, read(builder, bias, kind, count)), y)
                y = builder.fptrunc(y, ir.VectorType(HALF, count)) if half and kind != HALF else y
            write(builder, y, result)
            return context.get_dummy_value()
        return types.void(panels, types.intp, types.intp, types.boolean, types.intp), emit
    return operation


finish_values, finish_value = (finishing(False, count) for count in (LANES, 1))
finish_halves, finish_half = (finishing(True, count) for count in (LANES, 1))


@njit(**JIT)
def finish(panels, sums, stride, bias, result, half, rows, columns, N):
    """Sums as values of the result, `rows` rows of `columns` of its N columns."""
    stay_whole()
    size, biased, whole = 2 if half else 4, bias != 0, columns // LANES * LANES
    for i in range(rows):
        source, place = sums + i * stride * 4, result + i * N * size
        shift = bias if biased else source
        for j in range(0, whole, LANES):
            if half:
                finish_halves(panels, source + j * 4, shift + j * 4, biased, place + j * size)
            else:
                finish_values(panels, source + j * 4, shift + j * 4, biased, place + j * size)
        for j in range(whole, columns):
            if half:
                finish_half(panels, source + j * 4, shift + j * 4, biased, place + j * size)
            else:
                finish_value(panels, source + j * 4, shift + j * 4, biased, place + j * size)


# tasks

@njit(**JIT)
def parts(whole, size):
    """How many parts of this size cover the whole."""
    return (whole + size - 1) // size


@njit(**JIT)
def address_of(array):
    return np.intp(array.ctypes.data)            # signed: int64 + uint64 is float64 in numba, as in NumPy


@njit(**JIT)
def of_batch(operand, offset, panels):
    address, half, across, along, shifted = operand
    return address + offset * value_size(panels, half), half, across, along, shifted


@njit(**JIT)
def panel_at(panels, units, across, batch, k0, column):
    """The address of the panel of columns that begins at `column`, k0 units deep. They lie by batch, depth, column."""
    before = (batch * (units + parts(units, DEPTH)) + k0 + k0 // DEPTH) * across * COLUMNS
    steps = min(DEPTH, units - k0)
    return address_of(panels) + (before + column * (steps + 1)) * 4


@njit(**JIT)
def pack_columns(task, panels, b, N, K, offsets):
    """Task number `task` of the packing: one panel of columns, DEPTH units deep."""
    stay_whole()
    units, across = parts(K, group(panels)), parts(N, COLUMNS)
    deep = parts(units, DEPTH)
    batch, block, column = task // (across * deep), task // across % deep, task % across * COLUMNS
    k0 = block * DEPTH
    steps, target = min(DEPTH, units - k0), panel_at(panels, units, across, batch, k0, column)
    pack(panels, of_batch(b, offsets[batch], panels), column, N - column, k0, steps, K, target, np.intp(COLUMNS))
    close_panel(panels, target, steps)


@njit(**JIT)
def multiply_block(task, panels, packed, a, b, M, N, K, rows, columns, a_offsets, b_offsets, bias, result, half):
    """Task number `task` of the product: `rows` x `columns` of the result. The columns are packed already, or are packed here."""
    stay_whole()
    units, down, side, across = parts(K, group(panels)), parts(M, rows), parts(N, columns), parts(N, COLUMNS)
    batch, first, start = task // (down * side), task // side % down * rows, task % side * columns
    end, wide = min(first + rows, M), min(columns, N - start)
    a, b = of_batch(a, a_offsets[batch], panels), of_batch(b, b_offsets[batch], panels)
    stride = parts(wide, COLUMNS) * COLUMNS
    row_panel = np.empty(ROWS * DEPTH + LANES, panels.dtype)
    column_panel = np.empty(1 if packed else (DEPTH + 1) * COLUMNS, panels.dtype)
    held = np.empty((end - first + ROWS) * stride, panels.dtype)
    left, right, sums = address_of(row_panel), address_of(column_panel), address_of(held)
    for k0 in range(0, units, DEPTH):
        steps = min(DEPTH, units - k0)
        for i in range(first, end, ROWS):
            height = height_of(end - i)
            pack(panels, a, i, M - i, k0, steps, K, left, height)
            for j in range(0, wide, COLUMNS):
                if packed:
                    right = panel_at(panels, units, across, batch, k0, start + j)
                else:
                    pack(panels, b, start + j, N - start - j, k0, steps, K, right, np.intp(COLUMNS))
                    close_panel(panels, right, steps)
                multiply_panels(panels, height, left, right, sums + ((i - first) * stride + j) * 4, stride, steps, k0 == 0)
    place = result + ((batch * M + first) * N + start) * (2 if half else 4)
    finish(panels, sums, stride, bias + start * 4 if bias != 0 else 0, place, half, end - first, wide, N)


@njit(**POOL)
def product_in_tasks(packing, products, panels, a, b, M, N, K, rows, columns, a_offsets, b_offsets, bias, result, half):
    for task in prange(packing):
        pack_columns(np.intp(task), panels, b, N, K, b_offsets)
    for task in prange(products):
        multiply_block(np.intp(task), panels, packing > 0, a, b, M, N, K, rows, columns, a_offsets, b_offsets, bias, result, half)


@njit(**JIT)
def product_alone(packing, products, panels, a, b, M, N, K, rows, columns, a_offsets, b_offsets, bias, result, half):
    for task in range(packing):
        pack_columns(task, panels, b, N, K, b_offsets)
    for task in range(products):
        multiply_block(task, panels, packing > 0, a, b, M, N, K, rows, columns, a_offsets, b_offsets, bias, result, half)


@functools.lru_cache(maxsize=1024)
def plan(kind, batches, M, N, K):
    """(units of panels, tasks that pack, tasks of the product, rows and columns of one, whether threads share them).

    A task is large enough to use what is in the caches; there are enough for sixteen threads. Nothing depends on their number.
    """
    def tasks():
        return batches * -(-M // rows) * -(-N // columns)

    rows, columns = 4 * ROWS, 16 * COLUMNS
    if tasks() < 16:
        columns //= 2
    while rows > ROWS and tasks() < 16:
        rows //= 2
    while columns > COLUMNS and tasks() < 8:
        columns //= 2
    units, across = -(-K // KINDS[from_dtype(np.dtype(kind))].group), -(-N // COLUMNS)
    deep = -(-units // DEPTH)
    packing = batches * deep * across if rows < M else 0         # columns that only one task needs are packed there
    size = batches * (units + deep) * across * COLUMNS if packing else 0
    return size, packing, tasks(), rows, columns, batches * M * N * K > 1 << 17


# what others call

_memory = threading.local()
ALONE = np.zeros(1, np.int64)
NOTHING = {np.dtype(kind.name).type: np.empty(0, kind.name) for kind in KINDS}


def scratch(size, kind):
    """Units for panels that begin a cache line; the same memory each time, since new pages cost as much as a small product."""
    if not size:
        return NOTHING[kind]
    held = getattr(_memory, "held", None)
    if held is None or held.size < size:
        held = np.empty(max(size, 1 << 18) + LANES, np.float32)
        held = held[-address(held) % 64 // 4:]
        if held.size < 1 << 22:                  # 16 MB: more is not kept
            _memory.held = held
    return held[:size].view(kind)


def address(x):
    return x.__array_interface__["data"][0]


def operand(x, across, along, left):
    """An array as the kernel takes it; across and along are its axes."""
    size, strides = x.itemsize, x.strides
    return address(x), int(size == 2), strides[across] // size, strides[along] // size, left


def offsets(x, lead):
    """Where each matrix of a batch begins, in values from the first."""
    if not lead:
        return ALONE
    x = np.broadcast_to(x, (*lead, *x.shape[-2:]))
    total = np.zeros(lead, np.int64)
    for axis, (length, stride) in enumerate(zip(lead, x.strides, strict=False)):
        total += np.arange(length).reshape((-1,) + (1,) * (len(lead) - axis - 1)) * (stride // x.itemsize)
    return total.reshape(-1)


def whole_strides(x):
    """X, or a copy if its values do not lie whole values apart, as in an array of records."""
    return x if x.flags.aligned else np.ascontiguousarray(x)


def multiply(kind, a, b, y, bias=None):
    """Y = a b + bias, in panels of type `kind`; the arrays are checked, not empty, and y is C-contiguous."""
    if b.ndim == 2 < a.ndim and a.flags.c_contiguous:            # one right operand: one tall product
        a, y = a.reshape(-1, a.shape[-1]), y.reshape(-1, y.shape[-1])
    if y.shape[-1] == 1 < y.shape[-2] and bias is None:          # a column lies in memory like a row, which needs no panels
        a, b, y = (x.swapaxes(-1, -2) for x in (b, a, y))
    (M, K), N, lead = a.shape[-2:], b.shape[-1], y.shape[:-2]
    size, packing, products, rows, columns, shared = plan(kind, math.prod(lead), M, N, K)
    run = product_in_tasks if shared else product_alone
    run(packing, products, scratch(size, kind), operand(a, -2, -1, 1), operand(b, -1, -2, 0), M, N, K, rows, columns,
        offsets(a, lead), offsets(b, lead), 0 if bias is None else address(bias), address(y), y.itemsize == 2)


def result_shape(a, b):
    if a.shape[-1] != b.shape[-2]:
        raise MiniLLMError(f"no product of {a.shape} and {b.shape}: the columns of one are the rows of the other")
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2]) if a.ndim > 2 or b.ndim > 2 else ()
    return (*lead, a.shape[-2], b.shape[-1])


def floats(x, what):
    """An operand as float32, or as float16 where the processor converts it."""
    if x.dtype == np.float16:
        x = x if INSTRUCTION else rounding.to_float32(x)
    elif x.dtype != np.float32:
        raise MiniLLMError(f"matmul takes float16 and float32, {what} is {x.dtype}: round it first")
    return whole_strides(x)


def matmul(a, b, *, out=np.float32, bias=None):
    """(..., M,K) (..., K,N) -> (..., M,N): float32 accumulate over k in order, rounded once where `out` is float16.

    a, b: float32 or float16 in any layout, read as they lie; leading axes broadcast. bias: (N,), added before the rounding.
    MiniLLMError for other types and for shapes that do not fit.
    """
    y = np.empty(result_shape(a, b), out if INSTRUCTION else np.float32)
    if bias is not None:
        if bias.shape != y.shape[-1:]:
            raise MiniLLMError(f"a bias of shape {bias.shape} beside {y.shape[-1]} columns: it must have shape {y.shape[-1:]}")
        bias = np.ascontiguousarray(floats(bias, "bias"), np.float32)
    a, b = floats(a, "a"), floats(b, "b")
    if a.size and b.size:
        multiply(np.float32, a, b, y, bias)
    else:
        y[...] = 0 if bias is None else bias
    return y if y.dtype == out else rounding.to_float16(y)


def matmul_int8(a, b):
    """(..., M,K) (..., K,N) int8 -> (..., M,N) int32, exact.

    MiniLLMError for other types, and for K above 131,071, where the sum of products of -128 no longer fits into 32 bits.
    """
    for x, what in ((a, "a"), (b, "b")):
        if x.dtype != np.int8:                   # other bytes would be read as what they are not
            raise MiniLLMError(f"matmul_int8 takes int8, {what} is {x.dtype}: quantize it first")
    if a.shape[-1] > LONGEST:
        raise MiniLLMError(f"int8 products of K = {a.shape[-1]} may overflow int32: split K into parts of at most {LONGEST}")
    y = np.empty(result_shape(a, b), np.int32)
    if a.size and b.size:
        multiply(np.int32, a, b, y)
    else:
        y[...] = 0
    return y


def matmul_bfloat16(a, b):
    """(..., M,K) (..., K,N) -> (..., M,N) float32, of float32 arrays that hold bfloat16 values.

    Where numba compiles for the processor's bfloat16 dot instruction, each step adds two products with two roundings, subnormal
    operands and sums count as 0, and digits beyond bfloat16's are cut off. Elsewhere it is the float32 product: each product of
    two bfloat16 values is exact there, and so is every step up to the rounding of the sum. No recipe calls it by itself: a run
    would lose its subnormals, and have other bits, on some processors only.
    """
    for x, what in ((a, "a"), (b, "b")):
        if x.dtype != np.float32:
            raise MiniLLMError(f"matmul_bfloat16 takes float32 arrays of bfloat16 values, {what} is {x.dtype}")
    if not BFLOAT16_DOT or not a.size or not b.size:
        return matmul(a, b)
    y = np.empty(result_shape(a, b), np.float32)
    multiply(np.uint32, whole_strides(a), whole_strides(b), y)
    return y
