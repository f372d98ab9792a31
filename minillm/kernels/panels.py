"""Operands as panels: the values in the order in which the micro-kernel uses them, converted on the way, from any layout.

An operand is (address, is float16, stride across, stride along k), whole numbers, strides in values: machine code is made once for
all layouts. "Across" runs over the rows of a left operand and over the columns of a right one. A function that is given a constant
is compiled for it alone, hence np.intp around some.
"""
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from minillm.kernels.scalars import JIT
from minillm.kernels.simd import LANES, moved, read, spread, stay_whole, transposed, write
from minillm.kernels.tiles import BYTE, COLUMNS, FLOATS, HALF, INT, WIDE, WORDS, as_it_is, byte_product, group, kind_of


def source_of(kind, half):
    """The type and the bytes of a value in memory."""
    source = HALF if half and kind is FLOATS else kind.source
    return source, 1 if source == BYTE else 2 if source == ir.HalfType() else 4


def units(builder, kind, values, flip):
    """Vectors of `group` values, which lie side by side along k, as units."""
    pieces = kind.piece(builder, values)
    words = builder.bitcast(pieces, ir.VectorType(INT, values.type.count // kind.group))
    if not kind.shift:
        return words
    shift = builder.select(flip, INT(kind.shift), INT(0))
    return builder.xor(words, spread(builder, shift, words.type.count))


def side_by_side(builder, vectors):
    """Lane 0 of each vector, then lane 1 of each, and so on."""
    while len(vectors) > 1:
        half = len(vectors) // 2
        order = [lane + side * vectors[0].type.count for lane in range(vectors[0].type.count) for side in (0, 1)]
        mask = ir.Constant(ir.VectorType(INT, len(order)), order)
        vectors = [builder.shuffle_vector(x, y, mask) for x, y in zip(vectors[:half], vectors[half:], strict=True)]
    return vectors[0]


def operations(half):
    """The ways to make units of values in memory."""
    @intrinsic
    def turn_block(typingctx, zero, source, across, last, target, width, flip):
        """16 rows of 16 units each, row number `last` again where there are no more, as 16 columns `width` units apart."""
        kind = kind_of(zero)
        value, size = source_of(kind, half)

        def emit(context, builder, signature, args):
            _, source, across, last, target, width, flip = args
            rows = []
            for r in range(LANES):
                there = builder.select(builder.icmp_signed("<", last, last.type(r)), last, last.type(r))
                begin = moved(builder, source, builder.mul(there, across), size)
                rows.append(units(builder, kind, read(builder, begin, value, LANES * kind.group), flip))
            for k, column in enumerate(transposed(builder, rows)):
                write(builder, column, moved(builder, target, builder.mul(width, width.type(k)), 4))
            return context.get_dummy_value()
        return types.void(zero, types.intp, types.intp, types.intp, types.intp, types.intp, types.boolean), emit

    @intrinsic
    def copy_lanes(typingctx, zero, source, along, target, flip):
        """16 units of values that lie side by side across."""
        kind = kind_of(zero)
        value, size = source_of(kind, half)

        def emit(context, builder, signature, args):
            _, source, along, target, flip = args
            steps = [read(builder, moved(builder, source, builder.mul(along, along.type(g)), size), value)
                     for g in range(kind.group)]
            write(builder, units(builder, kind, side_by_side(builder, steps), flip), target)
            return context.get_dummy_value()
        return types.void(zero, types.intp, types.intp, types.intp, types.boolean), emit

    @intrinsic
    def copy_along(typingctx, zero, source, target, flip):
        """16 units of values that lie side by side along k."""
        kind = kind_of(zero)
        value, _ = source_of(kind, half)

        def emit(context, builder, signature, args):
            _, source, target, flip = args
            write(builder, units(builder, kind, read(builder, source, value, LANES * kind.group), flip), target)
            return context.get_dummy_value()
        return types.void(zero, types.intp, types.intp, types.boolean), emit

    @intrinsic
    def turn_lanes(typingctx, zero, source, along, target, row_step, flip):
        """16 units along k of 16 rows whose values lie side by side, as rows."""
        kind = kind_of(zero)
        value, size = source_of(kind, half)

        def emit(context, builder, signature, args):
            _, source, along, target, row_step, flip = args
            columns = []
            for k in range(LANES):
                steps = [read(builder, moved(builder, source, builder.mul(along, along.type(k * kind.group + g)), size), value)
                         for g in range(kind.group)]
                columns.append(units(builder, kind, side_by_side(builder, steps), flip))
            for r, row in enumerate(transposed(builder, columns)):
                write(builder, row, moved(builder, target, builder.mul(row_step, row_step.type(r))))
            return context.get_dummy_value()
        return types.void(zero, *[types.intp] * 4, types.boolean), emit

    @intrinsic
    def copy_one(typingctx, zero, source, along, count, target, flip):
        """One unit, of which only `count` values are there; the others are 0."""
        kind = kind_of(zero)
        value, size = source_of(kind, half)

        def emit(context, builder, signature, args):
            _, source, along, count, target, flip = args
            values = ir.Constant(ir.VectorType(value, kind.group), [0] * kind.group)
            for g in range(kind.group):
                there = builder.icmp_signed("<", count.type(g), count)
                place = builder.select(there, builder.mul(along, along.type(g)), along.type(0))
                found = builder.extract_element(read(builder, moved(builder, source, place, size), value, 1), INT(0))
                values = builder.insert_element(values, builder.select(there, found, ir.Constant(value, 0)), INT(g))
            write(builder, units(builder, kind, values, flip), target)
            return context.get_dummy_value()
        return types.void(zero, types.intp, types.intp, types.intp, types.intp, types.boolean), emit
    return turn_block, copy_lanes, copy_along, turn_lanes, copy_one


turn_values, copy_values, copy_row, turn_columns, copy_value = operations(half=False)
turn_halves, copy_halves, copy_half_row, turn_half_columns, copy_half = operations(half=True)


@intrinsic
def value_size(typingctx, zero, half):
    """Bytes of a value in memory."""
    kind = kind_of(zero)

    def emit(context, builder, signature, args):
        plain, halves = (context.get_constant(types.intp, source_of(kind, half)[1]) for half in (False, True))
        return builder.select(args[1], halves, plain)
    return types.intp(zero, types.boolean), emit


@njit(**JIT)
def pack_columns(zero, operand, first, left, k0, steps, K, target):
    """Units k0, k0 + 1, ... of the columns from `first` on, `left` of which are there, into a panel: COLUMNS units for each step.

    Lanes beyond `left` hold whatever; the results that they give are not taken.
    """
    stay_whole()
    address, half, across, along = operand
    size, values, half, flip = value_size(zero, half != 0), np.intp(group(zero)), half != 0 and as_it_is(zero), False
    along_unit, unit, whole, lanes = along * values, np.intp(4 * COLUMNS), min(steps, K // values - k0), min(COLUMNS, left)
    source = address + (first * across + k0 * along_unit) * size
    if along == 1 and whole >= LANES:
        for block in range(0, whole, LANES):
            k = min(block, whole - LANES)        # the last block goes over steps that are there already
            for lane in range(0, lanes, LANES):
                here, place = source + (lane * across + k * along_unit) * size, target + k * unit + lane * 4
                if half:
                    turn_halves(zero, here, across, lanes - lane - 1, place, np.intp(COLUMNS), flip)
                else:
                    turn_values(zero, here, across, lanes - lane - 1, place, np.intp(COLUMNS), flip)
    elif across == 1 and left >= COLUMNS:
        for k in range(whole):
            for lane in range(0, COLUMNS, LANES):
                here, place = source + (k * along_unit + lane) * size, target + k * unit + lane * 4
                if half:
                    copy_halves(zero, here, along, place, flip)
                else:
                    copy_values(zero, here, along, place, flip)
    else:
        pack_singly(zero, source, half, across, along, np.intp(0), whole, values, target, unit, np.intp(4), lanes, flip)
    pack_singly(zero, source, half, across, along, whole, steps, K % values, target, unit, np.intp(4), lanes, flip)


@njit(**JIT)
def pack_rows(zero, operand, first, rows, k0, steps, K, target, row_step):
    """Units k0, k0 + 1, ... of so many rows from `first` on, each side by side, rows `row_step` bytes apart.

    Up to 16 rows before the target are written too, where a block begins before the first of few rows.
    """
    stay_whole()
    address, half, across, along = operand
    size, values, half, flip = value_size(zero, half != 0), np.intp(group(zero)), half != 0 and as_it_is(zero), True
    along_unit, whole = along * values, min(steps, K // values - k0)
    source = address + (first * across + k0 * along_unit) * size
    if along == 1 and whole >= LANES:
        for row in range(rows):
            for block in range(0, whole, LANES):
                k = min(block, whole - LANES)
                here, place = source + (row * across + k * along_unit) * size, target + row * row_step + k * 4
                if half:
                    copy_half_row(zero, here, place, flip)
                else:
                    copy_row(zero, here, place, flip)
    elif across == 1 and whole >= LANES and first + rows >= LANES:
        for block in range(0, whole, LANES):
            k = min(block, whole - LANES)
            for first_row in range(0, rows, LANES):
                row = min(first_row, rows - LANES)
                here, place = source + (k * along_unit + row) * size, target + row * row_step + k * 4
                if half:
                    turn_half_columns(zero, here, along, place, row_step, flip)
                else:
                    turn_columns(zero, here, along, place, row_step, flip)
    else:
        pack_singly(zero, source, half, across, along, np.intp(0), whole, values, target, np.intp(4), row_step, rows, flip)
    pack_singly(zero, source, half, across, along, whole, steps, K % values, target, np.intp(4), row_step, rows, flip)


@njit(**JIT)
def pack_singly(zero, source, half, across, along, begin, end, count, target, step, lane_step, lanes, flip):
    """Value after value: what no vector reaches, and the last unit, which may be incomplete."""
    stay_whole()
    size, values = value_size(zero, half), group(zero)
    for k in range(begin, end):
        for lane in range(lanes):
            here, place = source + (k * values * along + lane * across) * size, target + k * step + lane * lane_step
            if half:
                copy_half(zero, here, along, count, place, flip)
            else:
                copy_value(zero, here, along, count, place, flip)


@intrinsic
def close_panel(typingctx, zero, target, steps):
    """Behind a panel of columns: what undoes the shift of the left operand, -128 times the sum of each column, wrapping."""
    kind = kind_of(zero)

    def emit(context, builder, signature, args):
        _, target, steps = args
        if not kind.shift:
            return context.get_dummy_value()
        entry, loop, done = builder.block, builder.append_basic_block("k"), builder.append_basic_block("done")
        zeros, shift = ir.Constant(WORDS, [0] * LANES), ir.Constant(WORDS, [kind.shift] * LANES)
        builder.branch(loop)
        builder.position_at_end(loop)
        k, sums = builder.phi(steps.type), [builder.phi(WORDS) for _ in range(WIDE)]
        row, following = moved(builder, target, k, 4 * COLUMNS), builder.add(k, k.type(1))
        after = [byte_product(builder, each, shift, read(builder, moved(builder, row, v * LANES, 4), INT))
                 for v, each in enumerate(sums)]
        for value, start, end in zip((k, *sums), (k.type(0), *[zeros] * WIDE), (following, *after), strict=True):
            value.add_incoming(start, entry)
            value.add_incoming(end, loop)
        builder.cbranch(builder.icmp_signed("<", following, steps), loop, done)
        builder.position_at_end(done)
        behind = moved(builder, target, steps, 4 * COLUMNS)
        for v, each in enumerate(after):
            write(builder, builder.sub(zeros, each), moved(builder, behind, v * LANES, 4))
        return context.get_dummy_value()
    return types.void(zero, types.intp, types.intp), emit
