"""The vector micro-kernel: a tile of the result in registers, and what one step along k is for each kind of number.

Operands come as panels of 32-bit units, in the order in which they are used. A unit is what one lane multiplies in one step: one
float32, four int8, two bfloat16. The type of a value, `zero`, names the kind, so that one source is compiled for all of them.
"""
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numba.np.numpy_support import from_dtype

from minillm.kernels.pool import features
from minillm.kernels.scalars import INSTRUCTION, JIT
from minillm.kernels.simd import LANES, call, moved, multiply_add, read, spread, stay_whole, write

VNNI, BFLOAT16_DOT = "avx512vnni" in features(), "avx512bf16" in features()
# A tile of 6 x 4 vectors takes 24 of 32 registers of 16 lanes, and 34 instructions for 24 products. One of 14 x 2 takes 45 for 28:
# as fast where a thread has a core for itself, a sixth slower where another takes half of what the core can begin. Elsewhere 12 of
# 16 registers of 8 lanes.
ROWS, WIDE = 6, (4 if "avx512f" in features() else 1)
COLUMNS = WIDE * LANES
HEIGHTS = (1, 2, 4, ROWS)
UNROLL = 4                         # steps of k in one turn of the loop

BYTE, SHORT, INT, FLOAT = (ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType())
HALF = ir.HalfType() if INSTRUCTION else FLOAT                     # without the instruction no float16 comes here
WORDS = ir.VectorType(INT, LANES)


def vector_of(kind, like):
    return ir.VectorType(kind, like.type.count)


@dataclass(frozen=True)
class Kind:
    """What stands in a panel: `group` values of k a unit; `piece` makes a vector of values the parts of units."""

    source: ir.Type                # of a value in memory
    group: int
    sums: ir.Type                  # of a lane of the tile
    piece: Callable                # (builder, values) -> the same number of integers of 32 / group bits
    product: Callable              # (builder, sums, left, right) -> sums; left and right are units
    shift: int = 0                 # what is xor-ed to units of the left operand


def as_words(builder, values):
    return builder.bitcast(values, vector_of(INT, values))


def widened(builder, values):
    return as_words(builder, values if values.type.element == FLOAT else builder.fpext(values, vector_of(FLOAT, values)))


def float_product(builder, sums, left, right):
    return multiply_add(builder, *(builder.bitcast(x, vector_of(FLOAT, x)) for x in (left, right)), sums)


def byte_product(builder, sums, left, right):
    """Four products a lane, unsigned by signed bytes, added to 32 bits without saturation."""
    return call(builder, "llvm.x86.avx512.vpdpbusd.512", sums.type, sums, left, right)


def pair_product(builder, sums, left, right):
    """Two products a lane of 16 bits each. LLVM finds the instruction that multiplies and adds pairs: SSE2 and AVX2 have it."""
    pairs = ir.VectorType(INT, 2 * LANES)
    left, right = (builder.sext(builder.bitcast(x, ir.VectorType(SHORT, 2 * LANES)), pairs) for x in (left, right))
    products = builder.mul(left, right)
    first, second = (builder.shuffle_vector(products, ir.Constant(pairs, ir.Undefined),
                                            ir.Constant(WORDS, list(range(part, 2 * LANES, 2)))) for part in (0, 1))
    return builder.add(sums, builder.add(first, second))


def bfloat16_product(builder, sums, left, right):
    """Two products a lane; subnormal operands and results count as 0, ties to even whatever the mode."""
    return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", sums.type, sums, left, right)


FLOATS = Kind(FLOAT, 1, FLOAT, widened, float_product)
# The instruction takes the left operand unsigned: 128 is added to it, which turns one bit, and taken away from the result as 128
# times the sum of the column. Both sums may pass 2^31 on the way; they wrap, and so the difference is exact.
BYTES = Kind(BYTE, 4, INT, lambda builder, x: x, byte_product, shift=0x80808080)
PAIRS = Kind(BYTE, 2, INT, lambda builder, x: builder.sext(x, vector_of(SHORT, x)), pair_product)
BFLOAT16S = Kind(FLOAT, 2, FLOAT, lambda builder, x: builder.trunc(
    builder.lshr(as_words(builder, x), ir.Constant(vector_of(INT, x), [16] * x.type.count)), vector_of(SHORT, x)), bfloat16_product)

KINDS = {types.float32: FLOATS, types.int32: BYTES if VNNI else PAIRS}
ZEROS = (np.float32(0), np.int32(0))             # a value of the type that names a kind
if BFLOAT16_DOT:                                 # elsewhere LLVM cannot compile the instruction and ends the process
    KINDS[types.uint32], ZEROS = BFLOAT16S, (*ZEROS, np.uint32(0))
GROUPS = {type(zero): KINDS[from_dtype(zero.dtype)].group for zero in ZEROS}


def kind_of(zero) -> Kind:
    return KINDS[zero]


def group(zero):
    """Values of k in a unit."""
    raise NotImplementedError("for use inside a kernel")


def as_it_is(zero):
    """Whether a unit is one float32, which needs no packing."""
    raise NotImplementedError("for use inside a kernel")


@overload(as_it_is)
def _as_it_is(zero):
    plain = kind_of(zero) is FLOATS
    return lambda zero: plain


@overload(group)
def _group(zero):
    size = kind_of(zero).group
    return lambda zero: size


def tile_of(height):
    """The micro-kernel: tile += left rows times right panel, `height` x COLUMNS, `steps` units deep.

    Rows of the left operand lie `row_step` bytes apart, steps of the right one 4 COLUMNS bytes or, for fewer rows than a whole
    tile's, `right_step`. The sums stay in registers from the first step to the last. With `fresh` they start at 0.
    """
    @intrinsic
    def operation(typingctx, zero, left, row_step, right, right_step, tile, stride, steps, fresh):
        signature = types.void(zero, *[types.intp] * 7, types.boolean)
        kind = kind_of(zero)

        def emit(context, builder, signature, args):
            _, left, row_step, right, right_step, tile, stride, steps, fresh = args
            places = [moved(builder, moved(builder, tile, builder.mul(stride, stride.type(r)), 4), v * LANES, 4)
                      for r in range(height) for v in range(WIDE)]
            before = first_sums(builder, kind, places, moved(builder, right, steps, 4 * COLUMNS), fresh)
            sums = [cgutils.alloca_once_value(builder, start) for start in before]
            rows = [moved(builder, left, builder.mul(row_step, row_step.type(r))) for r in range(height)]
            whole = builder.and_(steps, steps.type(-UNROLL))
            for begin, end, size in ((steps.type(0), whole, UNROLL), (whole, steps, 1)):
                with cgutils.for_range_slice(builder, begin, end, steps.type(size)) as (k, _):
                    for part in range(size):
                        here = moved(builder, k, part)
                        column = builder.mul(here, right_step) if height < ROWS else builder.mul(here, here.type(4 * COLUMNS))
                        one_step(builder, kind, [moved(builder, row, here, 4) for row in rows], builder.add(right, column), sums)
            for place, each in zip(places, sums, strict=True):
                write(builder, builder.load(each), place)
            return context.get_dummy_value()
        return signature, emit

    def one_step(builder, kind, rows, right, sums):
        unit = FLOAT if kind is FLOATS else INT
        columns = [read(builder, moved(builder, right, v * LANES, 4), unit) for v in range(WIDE)]
        for r, row in enumerate(rows):
            value = spread(builder, read_one(builder, row, unit))
            for v, column in enumerate(columns):
                held = sums[r * WIDE + v]
                builder.store(kind.product(builder, builder.load(held), value, column), held)
    return operation


def read_one(builder, address, kind):
    return builder.extract_element(read(builder, address, kind, 1), INT(0))


def first_sums(builder, kind, places, behind, fresh):
    """What the sums of a tile start at: 0 or what it holds, and what stands behind the panel where a shift has to be undone."""
    zeros = ir.Constant(ir.VectorType(kind.sums, LANES), [0] * LANES)
    sums = [builder.select(fresh, zeros, read(builder, place, kind.sums)) for place in places]
    if kind.shift:
        undone = [read(builder, moved(builder, behind, v * LANES, 4), INT) for v in range(WIDE)]
        sums = [builder.add(each, undone[i % WIDE]) for i, each in enumerate(sums)]
    return sums


tile1, tile2, tile4, tile = map(tile_of, HEIGHTS)


@njit(**JIT)
def multiply_rows(zero, rows, left, row_step, right, right_step, sums, stride, steps, fresh):
    """Add the product of any number of rows and a right panel to as many rows of sums; `zero` is only looked at for its type."""
    stay_whole()
    i = 0
    while i < rows:
        here, place, more = left + i * row_step, sums + i * stride * 4, rows - i
        if more >= ROWS:
            tile(zero, here, row_step, right, right_step, place, stride, steps, fresh)
            i += ROWS
        elif more >= 4:
            tile4(zero, here, row_step, right, right_step, place, stride, steps, fresh)
            i += 4
        elif more >= 2:
            tile2(zero, here, row_step, right, right_step, place, stride, steps, fresh)
            i += 2
        else:
            tile1(zero, here, row_step, right, right_step, place, stride, steps, fresh)
            i += 1
