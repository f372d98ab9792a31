"""The vector micro-kernel: a tile of the result in registers, and what one step along k is for each kind of number.

Operands come as panels of 32-bit units, in the order in which they are used. A unit is what one lane multiplies in one step: one
float32, four int8, two bfloat16. The type of a panel's array names its kind, so that one source is compiled for all of them.
"""
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic, overload
from numba.np.numpy_support import from_dtype

from minillm.kernels.scalars import INSTRUCTION, JIT
from minillm.kernels.simd import LANES, call, moved, multiply_add, read, spread, stay_whole, write

FEATURES = set(cpu_target.target_context.codegen().magic_tuple()[2].split(","))      # of what numba compiles for
VNNI = "+avx512vnni" in FEATURES
BFLOAT16_DOT = "+avx512bf16" in FEATURES
# A tile takes 28 of 32 registers of 16 lanes; elsewhere 12 of 16 registers of 8 lanes, which leaves room for a row and a column.
ROWS, WIDE = (14, 2) if "+avx512f" in FEATURES else (6, 1)
COLUMNS = WIDE * LANES
HEIGHTS = (*(h for h in (1, 2, 4, 8) if h < ROWS), ROWS)           # the last rows of a matrix take the least tile that holds them

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


@overload(group)
def _group(zero):
    size = kind_of(zero).group
    return lambda zero: size


def tile_of(height):
    """The micro-kernel: tile += left panel times right panel, `height` x COLUMNS, `steps` units deep.

    The sums stay in registers from the first step to the last. With `fresh` they start at 0, not at what the tile holds.
    """
    @intrinsic
    def operation(typingctx, zero, left, right, tile, stride, steps, fresh):
        signature = types.void(zero, types.intp, types.intp, types.intp, types.intp, types.intp, types.boolean)
        kind = kind_of(zero)

        def emit(context, builder, signature, args):
            _, left, right, tile, stride, steps, fresh = args
            places = [moved(builder, moved(builder, tile, builder.mul(stride, stride.type(r)), 4), v * LANES, 4)
                      for r in range(height) for v in range(WIDE)]
            before = first_sums(builder, kind, places, moved(builder, right, steps, 4 * COLUMNS), fresh)
            entry, loop, done = builder.block, builder.append_basic_block("k"), builder.append_basic_block("done")
            builder.branch(loop)
            builder.position_at_end(loop)
            k, sums = builder.phi(steps.type), [builder.phi(start.type) for start in before]
            after = one_step(builder, kind, moved(builder, left, k, 4 * height), moved(builder, right, k, 4 * COLUMNS), sums)
            following = builder.add(k, k.type(1))
            for value, start, end in zip((k, *sums), (k.type(0), *before), (following, *after), strict=True):
                value.add_incoming(start, entry)
                value.add_incoming(end, loop)
            builder.cbranch(builder.icmp_signed("<", following, steps), loop, done)
            builder.position_at_end(done)
            for place, end in zip(places, after, strict=True):
                write(builder, end, place)
            return context.get_dummy_value()
        return signature, emit

    def one_step(builder, kind, left, right, sums):
        unit = FLOAT if kind is FLOATS else INT
        columns = [read(builder, moved(builder, right, v * LANES, 4), unit) for v in range(WIDE)]
        after = []
        for r in range(height):
            row = spread(builder, read_one(builder, moved(builder, left, r, 4), unit))
            after += [kind.product(builder, sums[r * WIDE + v], row, columns[v]) for v in range(WIDE)]
        return after
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


_tiles = {height: tile_of(height) for height in HEIGHTS}
tile1, tile2, tile4, tile8, tile = (_tiles.get(height, _tiles[ROWS]) for height in (1, 2, 4, 8, ROWS))


@njit(**JIT)
def multiply_panels(zero, height, left, right, sums, stride, steps, fresh):
    """Add the product of a left panel of this height and a right one to a tile; `zero` is only looked at for its type."""
    stay_whole()
    if height == ROWS:
        tile(zero, left, right, sums, stride, steps, fresh)
    elif height == 1:
        tile1(zero, left, right, sums, stride, steps, fresh)
    elif height == 2:
        tile2(zero, left, right, sums, stride, steps, fresh)
    elif height == 4:
        tile4(zero, left, right, sums, stride, steps, fresh)
    else:
        tile8(zero, left, right, sums, stride, steps, fresh)


@njit(**JIT)
def height_of(rows):
    """The least tile for this many rows."""
    for height in HEIGHTS:
        if rows <= height:
            return height
    return ROWS
