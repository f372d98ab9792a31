"""Sums of products of one row with many, in vector registers: float32 with float32, float16 or int8, int16 with int8.

LLVM does not vectorise a sum of floats, whose order it may not change. So the order is said here: each lane sums every 32nd
product, lanes are added two by two, and what is left over comes last; it depends on the length alone. A sum of whole numbers is
exact in any order, and two neighbours of int16 times int8, added, are one instruction (vpmaddwd, or vpdpwssd with the sum).
"""
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numba.np.arrayobj import make_array

from minillm.kernels.scalars import INSTRUCTION, JIT, load

WIDTH = 32                         # values in one turn: two registers of floats, one of pairs
INT32 = ir.IntType(32)
FLOATS, PAIRS = ir.VectorType(ir.FloatType(), WIDTH), ir.VectorType(INT32, WIDTH // 2)
SCALARS = {types.float32: ir.FloatType(), types.uint16: ir.HalfType(), types.int8: ir.IntType(8), types.int16: ir.IntType(16)}


def read(context, builder, array, value, offset):
    """32 values of an array from `offset` on; uint16 holds the bits of float16."""
    vector = ir.VectorType(SCALARS[array.dtype], WIDTH)
    data = builder.gep(make_array(array)(context, builder, value).data, [offset])
    return builder.load(builder.bitcast(data, vector.as_pointer()), align=array.dtype.bitwidth // 8)


def picked(builder, vector, indices):
    """These lanes of a vector."""
    nothing = ir.Constant(vector.type, ir.Undefined)
    return builder.shuffle_vector(vector, nothing, ir.Constant(ir.VectorType(INT32, len(indices)), list(indices)))


def across(builder, vector, add):
    """The sum of all lanes: the upper half is added to the lower one until one is left."""
    half = vector.type.count // 2
    while half:
        vector = add(picked(builder, vector, range(half)), picked(builder, vector, range(half, 2 * half)))
        half //= 2
    return builder.extract_element(vector, INT32(0))


def add_products(builder, total, left, right):
    """Add left times right, lane by lane, with one rounding; float16 and codes are widened, which is exact."""
    if right.type != FLOATS:
        right = (builder.sitofp if isinstance(right.type.element, ir.IntType) else builder.fpext)(right, FLOATS)
    operation = cgutils.get_or_insert_function(builder.module, ir.FunctionType(FLOATS, [FLOATS] * 3), f"llvm.fmuladd.v{WIDTH}f32")
    return builder.call(operation, [left, right, total])


def add_pairs(builder, total, left, right):
    """Add left times right in int32, the products of neighbours in one lane: a pattern that LLVM knows as one instruction."""
    wide = ir.VectorType(INT32, WIDTH)
    products = builder.mul(builder.sext(left, wide), builder.sext(right, wide))
    even, odd = (picked(builder, products, range(first, WIDTH, 2)) for first in (0, 1))
    return builder.add(total, builder.add(even, odd))


def products_with(rows):
    """The operation out[at + r] = sum over i < count of x.flat[a + i] y.flat[b + r stride + i] for each r < rows.

    count is a multiple of 32. Each row has sums of its own, so that four rows wait for none of them, and x is read once for all.
    """
    @intrinsic
    def operation(typingctx, x, a, y, b, stride, count, out, at):
        whole = x.dtype == types.int16
        signature = types.void(x, types.intp, y, types.intp, types.intp, types.intp, out, types.intp)

        def emit(context, builder, signature, args):
            x, a, y, b, stride, count, out, at = args
            vector, more, add = (PAIRS, add_pairs, builder.add) if whole else (FLOATS, add_products, builder.fadd)
            sums = [cgutils.alloca_once_value(builder, ir.Constant(vector, [0] * vector.count)) for _ in range(rows)]
            for held in sums:
                builder.store(ir.Constant(vector, [0] * vector.count), held)
            with cgutils.for_range_slice(builder, a.type(0), count, a.type(WIDTH)) as (i, _):
                left = read(context, builder, signature.args[0], x, builder.add(a, i))
                for row, held in enumerate(sums):
                    begin = builder.add(b, builder.mul(stride, a.type(row)))
                    right = read(context, builder, signature.args[2], y, builder.add(begin, i))
                    builder.store(more(builder, builder.load(held), left, right), held)
            data = make_array(signature.args[6])(context, builder, out).data
            for row, held in enumerate(sums):
                place = builder.gep(data, [builder.add(at, a.type(row))])
                builder.store(across(builder, builder.load(held), add), place)
            return context.get_dummy_value()
        return signature, emit
    return operation


four_rows, one_row = products_with(4), products_with(1)


@njit(**JIT)
def dots(x, a, y, b, stride, n, out, count):
    """out[r] = the sum over i < n of x.flat[a + i] y.flat[b + r stride + i] for r < count, y as it can be read in vectors."""
    whole, most = n // WIDTH * WIDTH, count // 4 * 4
    for r in range(0, most, 4):
        four_rows(x, a, y, b + r * stride, stride, whole, out, r)
    for r in range(most, count):
        one_row(x, a, y, b + r * stride, stride, whole, out, r)
    if whole < n:
        for r in range(count):
            rest = out[r]
            for i in range(whole, n):
                rest += x[a + i] * load(y, b + r * stride + i)
            out[r] = rest


def rows_dot(x, a, y, b, stride, n, out, count):
    """The same for any y: x float32 and y float32, float16 bits or int8, out float32; x int16 and y int8, out int32."""
    raise NotImplementedError("for use inside a kernel")


@overload(rows_dot)
def _rows_dot(x, a, y, b, stride, n, out, count):
    if y.dtype != types.uint16 or INSTRUCTION:
        return lambda x, a, y, b, stride, n, out, count: dots(x, a, y, b, stride, n, out, count)

    def widened(x, a, y, b, stride, n, out, count):                           # without F16C no vector of float16 can be read
        wide = np.empty(n, np.float32)
        for r in range(count):
            for i in range(n):
                wide[i] = load(y, b + r * stride + i)
            dots(x, a, wide, 0, n, n, out[r:], 1)
    return widened
