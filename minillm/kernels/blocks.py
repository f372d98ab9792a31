"""A product as tasks: one packs a panel of columns, one multiplies a block of rows with a block of columns.

What a task has to know of its product are the whole numbers of a Job; machine code is made once for all layouts and shapes.
"""
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from minillm.kernels.panels import close_panel, pack_columns, pack_rows, value_size
from minillm.kernels.scalars import JIT
from minillm.kernels.simd import LANES, at, moved, read, stay_whole, write
from minillm.kernels.tasks import run_code
from minillm.kernels.tiles import COLUMNS, HALF, ROWS, ZEROS, as_it_is, group, kind_of, multiply_rows

DEPTH = 256                        # units of k at a time
ROW_STEP = 4 * (DEPTH + LANES)     # bytes from row to row of a packed left operand; a power of two would crowd the cache


# the result

def finishing(half, count):
    """Result = sum + bias, `count` values side by side, rounded to float16 where the result is."""
    @intrinsic
    def operation(typingctx, zero, sums, bias, biased, result):
        kind = kind_of(zero).sums

        def emit(context, builder, signature, args):
            _, sums, bias, biased, result = args
            y = read(builder, sums, kind, count)
            if kind == ir.FloatType():
                y = builder.select(biased, builder.fadd(y, read(builder, bias, kind, count)), y)
                y = builder.fptrunc(y, ir.VectorType(HALF, count)) if half and kind != HALF else y
            write(builder, y, result)
            return context.get_dummy_value()
        return types.void(zero, types.intp, types.intp, types.boolean, types.intp), emit
    return operation


finish_values, finish_value = (finishing(False, count) for count in (LANES, 1))
finish_halves, finish_half = (finishing(True, count) for count in (LANES, 1))


@njit(**JIT)
def finish(zero, sums, stride, bias, result, half, rows, columns, N):
    """Sums as values of the result, `rows` rows of `columns` of its N columns."""
    stay_whole()
    size, biased, whole = 2 if half else 4, bias != 0, columns // LANES * LANES
    for i in range(rows):
        source, place = sums + i * stride * 4, result + i * N * size
        shift = bias if biased else source
        for j in range(0, whole, LANES):
            if half:
                finish_halves(zero, source + j * 4, shift + j * 4, biased, place + j * size)
            else:
                finish_values(zero, source + j * 4, shift + j * 4, biased, place + j * size)
        for j in range(whole, columns):
            if half:
                finish_half(zero, source + j * 4, shift + j * 4, biased, place + j * size)
            else:
                finish_value(zero, source + j * 4, shift + j * 4, biased, place + j * size)


# tasks

class Job(NamedTuple):
    """A product in whole numbers. An operand's strides, and its offsets from the first matrix of a batch, count values."""

    a: int                         # addresses of values
    b: int
    y: int
    bias: int                      # 0 where there is none
    panels: int
    shared: int                    # whether threads share the tasks
    packing: int                   # tasks that pack, and tasks of the product
    products: int
    packing_code: int              # addresses of their machine code
    product_code: int
    M: int
    N: int
    K: int
    rows: int                      # of a block
    columns: int
    packed: int                    # whether panels of columns are packed before
    a_half: int                    # whether values are float16
    b_half: int
    y_half: int
    a_across: int                  # strides: from row to row of a, from column to column of b
    b_across: int
    a_along: int                   # from one k to the next
    b_along: int
    a_offsets: int                 # addresses of offsets
    b_offsets: int
    in_place: int                  # whether sums are made where the result lies: it is of 32 bits and whole panels wide


FIELDS = types.NamedUniTuple(types.intp, len(Job._fields), Job)


@intrinsic
def numbers_of(typingctx, address):
    """The job that lies at an address."""
    def emit(context, builder, signature, args):
        numbers = [builder.load(at(builder, moved(builder, args[0], i, 8), args[0].type)) for i in range(len(Job._fields))]
        return context.make_tuple(builder, signature.return_type, numbers)
    return FIELDS(types.intp), emit


@intrinsic
def number_at(typingctx, address, index):
    def emit(context, builder, signature, args):
        return builder.load(at(builder, moved(builder, args[0], args[1], 8), args[0].type))
    return types.intp(types.intp, types.intp), emit


@njit(**JIT)
def parts(whole, size):
    """How many parts of this size cover the whole."""
    return (whole + size - 1) // size


@njit(**JIT)
def address_of(array):
    return np.intp(array.ctypes.data)            # signed: int64 + uint64 is float64 in numba, as in NumPy


@njit(**JIT)
def left_operand(zero, job, batch):
    begin = job.a + number_at(job.a_offsets, batch) * value_size(zero, job.a_half != 0)
    return begin, job.a_half, job.a_across, job.a_along


@njit(**JIT)
def right_operand(zero, job, batch):
    begin = job.b + number_at(job.b_offsets, batch) * value_size(zero, job.b_half != 0)
    return begin, job.b_half, job.b_across, job.b_along


@njit(**JIT)
def panel_at(job, units, batch, k0, column):
    """The address of the panel of columns that begins at `column`, k0 units deep. They lie by batch, depth, column."""
    before = (batch * (units + parts(units, DEPTH)) + k0 + k0 // DEPTH) * parts(job.N, COLUMNS) * COLUMNS
    steps = min(DEPTH, units - k0)
    return job.panels + (before + column * (steps + 1)) * 4


def packing_of(zero):
    @njit(**JIT)
    def pack_panel(task, address):
        """One panel of columns, DEPTH units deep."""
        job = numbers_of(address)
        units, across = parts(job.K, group(zero)), parts(job.N, COLUMNS)
        deep = parts(units, DEPTH)
        batch, block, column = task // (across * deep), task // across % deep, task % across * COLUMNS
        k0 = block * DEPTH
        steps, target = min(DEPTH, units - k0), panel_at(job, units, batch, k0, column)
        pack_columns(zero, right_operand(zero, job, batch), column, job.N - column, k0, steps, job.K, target)
        close_panel(zero, target, steps)
    return pack_panel


def multiplication_of(zero):
    @njit(**JIT)
    def multiply_block(task, address):
        """`rows` x `columns` of the result. The columns are packed already, or are packed here."""
        job = numbers_of(address)
        units, down, side = parts(job.K, group(zero)), parts(job.M, job.rows), parts(job.N, job.columns)
        batch, first, start = task // (down * side), task // side % down * job.rows, task % side * job.columns
        rows, wide = min(job.rows, job.M - first), min(job.columns, job.N - start)
        a, b = left_operand(zero, job, batch), right_operand(zero, job, batch)
        plain = as_it_is(zero) and a[1] == 0 and a[3] == 1                     # rows are used where they lie
        thin = as_it_is(zero) and b[1] == 0 and b[2] == 1 and rows < ROWS      # so are columns, by few rows
        place, in_place = job.y + ((batch * job.M + first) * job.N + start) * (2 if job.y_half else 4), job.in_place != 0
        stride = job.N if in_place else parts(wide, COLUMNS) * COLUMNS
        row_panel = np.empty(1 if plain else (LANES + rows) * (DEPTH + LANES), np.float32)
        column_panel = np.empty(1 if job.packed else (DEPTH + 1) * COLUMNS + LANES, np.float32)
        held = np.empty(1 if in_place else rows * stride, np.float32)
        sums = place if in_place else address_of(held)
        left, row_step = address_of(row_panel) + LANES * ROW_STEP, np.intp(ROW_STEP)
        here = (address_of(column_panel) + 63) // 64 * 64
        for k0 in range(0, units, DEPTH):
            steps = min(DEPTH, units - k0)
            if plain:
                left, row_step = a[0] + (first * a[2] + k0) * 4, a[2] * 4
            else:
                pack_rows(zero, a, first, rows, k0, steps, job.K, left, row_step)
            for j in range(0, wide, COLUMNS):
                right, right_step = here, np.intp(4 * COLUMNS)
                if job.packed:
                    right = panel_at(job, units, batch, k0, start + j)
                elif thin and job.N - start - j >= COLUMNS:
                    right, right_step = b[0] + (k0 * b[3] + start + j) * 4, b[3] * 4
                else:
                    pack_columns(zero, b, start + j, job.N - start - j, k0, steps, job.K, right)
                    close_panel(zero, right, steps)
                multiply_rows(zero, rows, left, row_step, right, right_step, sums + j * 4, stride, steps, k0 == 0)
        bias = job.bias + start * 4 if job.bias else 0
        if bias or not in_place:
            finish(zero, sums, stride, bias, place, job.y_half != 0, rows, wide, job.N)
    return multiply_block


# By the type of panels: what packs and what multiplies.
TASKS = {type(zero): (packing_of(zero), multiplication_of(zero)) for zero in ZEROS}


# whole products

@intrinsic
def values_of(typingctx, array):
    """The address of the values of a NumPy array, given by its id: it stands behind the object's header."""
    def emit(context, builder, signature, args):
        return builder.load(at(builder, moved(builder, args[0], object.__basicsize__), args[0].type))
    return types.intp(types.intp), emit


@njit(**JIT)
def where(array):
    return values_of(array)


@njit(**JIT)
def run_product(numbers, a, b, y, bias, panels):
    """A product whose arrays are named by their ids, in a job that holds everything else."""
    numbers = numbers.copy()
    numbers[0], numbers[1], numbers[2], numbers[4] = values_of(a), values_of(b), values_of(y), panels
    if bias:
        numbers[3] = values_of(bias)
    address = address_of(numbers)
    job = numbers_of(address)
    run_code(job.packing, job.packing_code, address, job.shared != 0)
    run_code(job.products, job.product_code, address, job.shared != 0)
