"""Matrix products in numba's own threads: float32 and float16 operands as they lie, float32 accumulate, rounded once at the end.

The result is cut into tiles that fit into vector registers. What a tile needs of the left operand, 14 rows, and of the right one,
32 columns, is copied into a panel: the values in the order in which they are used, float16 made float32 on the way. The
micro-kernel reads both panels once from end to end. Sums run over k in order, one fused multiply-add each, whatever the shape,
the batch, the path and the number of threads: a row of the result has the same bits alone as among others.

Operands are (address, is float16, stride across, stride along k), strides in values: one machine code for every layout.
"""
import math
import threading

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from minillm.errors import MiniLLMError
from minillm.kernels import rounding
from minillm.kernels.scalars import INSTRUCTION, JIT
from minillm.kernels.simd import LANES, VECTOR, ZEROS, moved, multiply_add, read, spread, transposed, write

FEATURES = set(cpu_target.target_context.codegen().magic_tuple()[2].split(","))
# 28 of 32 registers hold the tile where registers have 16 lanes; 12 of 16 with 8 lanes, and so many with 4
ROWS, WIDE = (14, 2) if "+avx512f" in FEATURES else (6, 1)
COLUMNS = WIDE * LANES
HEIGHTS = tuple(h for h in (1, 2, 4, 8) if h < ROWS) + (ROWS,)     # the last rows of a matrix take the least tile that holds them
DEPTH = 256                        # values of k at a time: a panel of rows stays in the first cache, 14 KB
BLOCK = 512                        # columns at a time: their panels stay in the second cache, 512 KB
HALF = ir.HalfType() if INSTRUCTION else ir.FloatType()            # without the instruction no float16 comes here


def tile_of(height):
    """The micro-kernel: adds `steps` products of columns of a panel of `height` rows with rows of a panel of columns to a tile.

    Registers hold the tile from the first step to the last. `fresh`: the tile starts at 0 and not from what is there.
    """
    @intrinsic
    def operation(typingctx, rows, columns, tile, stride, steps, fresh):
        signature = types.void(types.intp, types.intp, types.intp, types.intp, types.intp, types.boolean)

        def emit(context, builder, signature, args):
            rows, columns, tile, stride, steps, fresh = args
            places = [moved(builder, moved(builder, tile, builder.mul(stride, stride.type(r)), 4), v * LANES, 4)
                      for r in range(height) for v in range(WIDE)]
            before = [builder.select(fresh, ZEROS, read(builder, place, ir.FloatType())) for place in places]
            entry, loop, done = builder.block, builder.append_basic_block("k"), builder.append_basic_block("done")
            builder.branch(loop)
            builder.position_at_end(loop)
            k, sums = builder.phi(steps.type), [builder.phi(VECTOR) for _ in places]
            row, column = moved(builder, rows, k, 4 * height), moved(builder, columns, k, 4 * COLUMNS)
            right = [read(builder, moved(builder, column, v * LANES, 4), ir.FloatType()) for v in range(WIDE)]
            after = []
            for r in range(height):
                left = spread(builder, builder.extract_element(read(builder, moved(builder, row, r, 4), ir.FloatType(), 1),
                                                               ir.IntType(32)(0)))
                after += [multiply_add(builder, left, right[v], sums[r * WIDE + v]) for v in range(WIDE)]
            following = builder.add(k, k.type(1))
            k.add_incoming(k.type(0), entry)
            k.add_incoming(following, loop)
            for held, start, end in zip(sums, before, after, strict=True):
                held.add_incoming(start, entry)
                held.add_incoming(end, loop)
            builder.cbranch(builder.icmp_signed("<", following, steps), loop, done)
            builder.position_at_end(done)
            for place, end in zip(places, after, strict=True):
                write(builder, end, place)
            return context.get_dummy_value()
        return signature, emit
    return operation


TILES = {height: tile_of(height) for height in HEIGHTS}
tile1, tile2, tile4, tile8, tile = (TILES.get(h, TILES[ROWS]) for h in (1, 2, 4, 8, ROWS))


@njit(**JIT)
def multiply_panels(height, rows, columns, sums, stride, steps, fresh):
    if height == ROWS:
        tile(rows, columns, sums, stride, steps, fresh)
    elif height == 1:
        tile1(rows, columns, sums, stride, steps, fresh)
    elif height == 2:
        tile2(rows, columns, sums, stride, steps, fresh)
    elif height == 4:
        tile4(rows, columns, sums, stride, steps, fresh)
    else:
        tile8(rows, columns, sums, stride, steps, fresh)


def height_of(rows):
    """The least tile for this many rows."""
    for height in HEIGHTS:
        if rows <= height:
            return height
    return ROWS


height_of = njit(**JIT)(height_of)


# packing

def copying(kind, size):
    """The operations on values of one kind: 16 side by side, a block of 16 x 16 turned, and one."""
    def widened(builder, vector):
        return vector if kind == ir.FloatType() else builder.fpext(vector, ir.VectorType(ir.FloatType(), vector.type.count))

    @intrinsic
    def copy_lanes(typingctx, source, target):
        def emit(context, builder, signature, args):
            write(builder, widened(builder, read(builder, args[0], kind)), args[1])
            return context.get_dummy_value()
        return types.void(types.intp, types.intp), emit

    @intrinsic
    def copy_one(typingctx, source, target):
        def emit(context, builder, signature, args):
            write(builder, widened(builder, read(builder, args[0], kind, 1)), args[1])
            return context.get_dummy_value()
        return types.void(types.intp, types.intp), emit

    @intrinsic
    def turn_block(typingctx, source, across, last, target, width):
        """16 rows of 16 values, the last one again where there are fewer, written as 16 columns `width` values apart."""
        def emit(context, builder, signature, args):
            source, across, last, target, width = args
            rows = []
            for r in range(LANES):
                there = builder.select(builder.icmp_signed("<", last, last.type(r)), last, last.type(r))
                rows.append(widened(builder, read(builder, moved(builder, source, builder.mul(there, across), size), kind)))
            for k, column in enumerate(transposed(builder, rows)):
                write(builder, column, moved(builder, target, builder.mul(width, width.type(k)), 4))
            return context.get_dummy_value()
        return types.void(types.intp, types.intp, types.intp, types.intp, types.intp), emit
    return copy_lanes, copy_one, turn_block


copy_floats, copy_float, turn_floats = copying(ir.FloatType(), 4)
copy_halves, copy_half, turn_halves = copying(HALF, 2)


@njit(**JIT)
def pack(operand, first, left, k0, steps, target, width):
    """Rows first, first + 1, ... of an operand, `left` of them there, steps k0, k0 + 1, ...: width values for each step.

    Lanes beyond `left` hold whatever; the results that they give are not taken. Up to 15 values behind the panel are written.
    """
    address, half, across, along = operand
    size = 2 if half else 4
    address += (first * across + k0 * along) * size
    lanes = (width + LANES - 1) // LANES
    if along == 1 and steps >= LANES and width > 1:
        for block in range(0, steps, LANES):
            k = min(block, steps - LANES)        # the last block goes over steps that are there already
            for lane in range(0, min(width, left), LANES):
                last = min(left - lane, LANES) - 1
                source, place = address + (lane * across + k) * size, target + (k * width + lane) * 4
                if half:
                    turn_halves(source, across, last, place, width)
                else:
                    turn_floats(source, across, last, place, width)
    elif across == 1 and left >= lanes * LANES:
        for k in range(steps):
            for lane in range(0, width, LANES):
                source, place = address + (k * along + lane) * size, target + (k * width + lane) * 4
                if half:
                    copy_halves(source, place)
                else:
                    copy_floats(source, place)
    else:
        for k in range(steps):
            for lane in range(min(width, left)):
                source, place = address + (k * along + lane * across) * size, target + (k * width + lane) * 4
                if half:
                    copy_half(source, place)
                else:
                    copy_float(source, place)


# the result

def finishing(kind, size, count):
    """Result = sum + bias, `count` values side by side, rounded to float16 where the result is."""
    @intrinsic
    def operation(typingctx, sums, bias, biased, result):
        def emit(context, builder, signature, args):
            sums, bias, biased, result = args
            y = read(builder, sums, ir.FloatType(), count)
            y = builder.select(biased, builder.fadd(y, read(builder, bias, ir.FloatType(), count)), y)
            write(builder, y if size == 4 else builder.fptrunc(y, ir.VectorType(kind, count)), result)
            return context.get_dummy_value()
        return types.void(types.intp, types.intp, types.boolean, types.intp), emit
    return operation


finish_floats, finish_float = (finishing(ir.FloatType(), 4, n) for n in (LANES, 1))
finish_halves, finish_half = (finishing(HALF, 2 if INSTRUCTION else 4, n) for n in (LANES, 1))


@njit(**JIT)
def finish(sums, stride, bias, result, half, first, rows, N, start, columns):
    """Rows of sums as rows of the result from its column `start` on."""
    size, biased = 2 if half else 4, bias != 0
    for i in range(rows):
        source, place = sums + i * stride * 4, result + ((first + i) * N + start) * size
        shift = bias + start * 4 if biased else source
        whole = columns // LANES * LANES
        for j in range(0, whole, LANES):
            if half:
                finish_halves(source + j * 4, shift + j * 4, biased, place + j * size)
            else:
                finish_floats(source + j * 4, shift + j * 4, biased, place + j * size)
        for j in range(whole, columns):
            if half:
                finish_half(source + j * 4, shift + j * 4, biased, place + j * size)
            else:
                finish_float(source + j * 4, shift + j * 4, biased, place + j * size)


# tasks

@njit(**JIT)
def of_batch(operand, offset):
    address, half, across, along = operand
    return address + offset * (2 if half else 4), half, across, along


@njit(**JIT)
def pack_columns(task, b, N, K, offsets, panels):
    """Task number `task` of the packing: one panel of columns, DEPTH steps of it. They lie by batch, steps, panel."""
    across, deep = -(-N // COLUMNS), -(-K // DEPTH)
    batch, rest = divmod(task, across * deep)
    block, panel = divmod(rest, across)
    k0, first = block * DEPTH, panel * COLUMNS
    steps = min(DEPTH, K - k0)
    target = panels + (batch * K + k0) * across * COLUMNS * 4 + panel * steps * COLUMNS * 4
    pack(of_batch(b, offsets[batch]), first, N - first, k0, steps, target, COLUMNS)


@njit(**JIT)
def multiply_block(task, a, M, N, K, rows, columns, offsets, panels, bias, result, half):
    """Task number `task` of the product: `rows` rows of the result by `columns` columns."""
    down, side, across = -(-M // rows), -(-N // columns), -(-N // COLUMNS)
    batch, rest = divmod(task, down * side)
    first, start = rest // side * rows, rest % side * columns
    end, wide = min(first + rows, M), min(columns, N - start)
    a = of_batch(a, offsets[batch])
    stride = -(-wide // COLUMNS) * COLUMNS
    panel, held = np.empty(ROWS * min(K, DEPTH) + LANES, np.float32), np.empty((rows + ROWS) * stride, np.float32)
    left, sums = panel.ctypes.data, held.ctypes.data
    for k0 in range(0, K, DEPTH):
        steps = min(DEPTH, K - k0)
        for i in range(first, end, ROWS):
            height = height_of(end - i)
            pack(a, i, M - i, k0, steps, left, height)
            for j in range(0, wide, COLUMNS):
                right = panels + (batch * K + k0) * across * COLUMNS * 4 + (start + j) * steps * 4
                multiply_panels(height, left, right, sums + ((i - first) * stride + j) * 4, stride, steps, k0 == 0)
    finish(sums, stride, bias, result + batch * M * N * (2 if half else 4), half, first, end - first, N, start, wide)


@njit(**JIT, parallel=True)
def product_in_tasks(packing, products, a, b, M, N, K, rows, columns, a_offsets, b_offsets, panels, bias, result, half):
    for task in prange(packing):
        pack_columns(np.intp(task), b, N, K, b_offsets, panels)
    for task in prange(products):
        multiply_block(np.intp(task), a, M, N, K, rows, columns, a_offsets, panels, bias, result, half)


@njit(**JIT)
def product_alone(packing, products, a, b, M, N, K, rows, columns, a_offsets, b_offsets, panels, bias, result, half):
    for task in range(packing):
        pack_columns(task, b, N, K, b_offsets, panels)
    for task in range(products):
        multiply_block(task, a, M, N, K, rows, columns, a_offsets, panels, bias, result, half)


# what others call

_memory = threading.local()


def scratch(size):
    """The address of `size` float32 values that begin a cache line, the same memory each time: new pages cost more than a product."""
    if size > 1 << 22:                           # 16 MB: not worth keeping
        held = np.empty(size + LANES, np.float32)
    else:
        held = getattr(_memory, "held", None)
        if held is None or held.size < size + LANES:
            held = _memory.held = np.empty(max(size, 1 << 18) + LANES, np.float32)
    return held, -(-held.ctypes.data // 64) * 64


def operand(x, across, along):
    """An array as the kernel takes it; across and along are axes."""
    size = x.itemsize
    return x.ctypes.data, int(size == 2), x.strides[across] // size, x.strides[along] // size


def offsets(x, lead):
    """Where each matrix of a batch begins, in values from the first."""
    x = np.broadcast_to(x, (*lead, *x.shape[-2:]))
    total = np.zeros(lead, np.int64)
    for axis, (length, stride) in enumerate(zip(lead, x.strides, strict=False)):
        total += (np.arange(length) * (stride // x.itemsize)).reshape((-1,) + (1,) * (len(lead) - axis - 1))
    return total.reshape(-1)


ALONE = np.zeros(1, np.int64)


def checked(x, what):
    """An operand as float32, or as float16 where the processor converts it."""
    if x.dtype == np.float16:
        x = x if INSTRUCTION else rounding.to_float32(x)
    elif x.dtype != np.float32:
        raise MiniLLMError(f"matmul takes float16 and float32, {what} is {x.dtype}: round it first")
    if x.strides[-1] % x.itemsize or x.strides[-2] % x.itemsize:
        x = np.ascontiguousarray(x)
    return x


def matmul(a, b, *, out=np.float32, bias=None):
    """(..., M,K) (..., K,N) -> (..., M,N), float32 accumulate over k in order, rounded once where `out` is float16.

    a, b: float32 or float16 in any layout, leading axes broadcast. bias: (N,), added before the rounding.
    """
    a, b = checked(a, "a"), checked(b, "b")
    (M, K), N = a.shape[-2:], b.shape[-1]
    if b.shape[-2] != K:
        raise MiniLLMError(f"no product of {a.shape} and {b.shape}: the columns of one are the rows of the other")
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2]) if a.ndim > 2 or b.ndim > 2 else ()
    if bias is not None:
        if bias.shape != (N,):
            raise MiniLLMError(f"a bias of shape {bias.shape} beside {N} columns: it must have shape {(N,)}")
        bias = np.ascontiguousarray(bias, np.float32)
    y = np.empty((*lead, M, N), out if INSTRUCTION else np.float32)
    batches = math.prod(lead)
    if not y.size or not K:
        y[...] = 0 if bias is None else bias
        return y.astype(out, copy=False)
    shared = not any(b.shape[:-2])               # one right operand for the whole batch
    a_offsets, b_offsets = (offsets(x, lead) if lead else ALONE for x in (a, b))
    across = -(-N // COLUMNS)
    held, panels = scratch(batches * K * across * COLUMNS)
    rows, columns = task_shape(batches, M, N)
    packing, products = batches * across * -(-K // DEPTH), batches * -(-M // rows) * -(-N // columns)
    run = product_in_tasks if batches * M * N * K > 1 << 17 else product_alone
    run(packing, products, operand(a, -2, -1), operand(b, -1, -2), M, N, K, rows, columns, a_offsets, b_offsets, panels,
        0 if bias is None else bias.ctypes.data, y.ctypes.data, y.itemsize == 2)
    return y if y.dtype == out else rounding.to_float16(y)


def task_shape(batches, M, N):
    """Rows and columns of a task: large enough to use what is in the caches, enough tasks for sixteen threads."""
    panels = -(-M // ROWS)
    rows = min(max(panels // 32, 1), 8) * ROWS
    tasks = batches * -(-M // rows)
    columns = BLOCK
    while columns > 2 * COLUMNS and tasks * -(-N // columns) < 8:
        columns //= 2
    return rows, columns
