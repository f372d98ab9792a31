"""Sixteen float32 lanes at once, written in LLVM's vector types, which every processor has in some width.

LLVM vectorises a plain loop only where it can prove that nothing overlaps, and leaves a scalar remainder; inside a kernel on short
rows that costs a factor of four. Here are the words of which kernels are written: an address is an integer, offsets count bytes.
"""
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
VECTOR = ir.VectorType(ir.FloatType(), LANES)
ZEROS = ir.Constant(VECTOR, [0.0] * LANES)


def at(builder, address, kind):
    """The number of a byte in memory as a pointer to a value of this kind."""
    return builder.inttoptr(address, kind.as_pointer())


def read(builder, address, kind, count=LANES):
    """`count` values that lie side by side from this address on, wherever it is."""
    vector = ir.VectorType(kind, count)
    return builder.load(at(builder, address, vector), align=1)


def write(builder, vector, address):
    """The lanes of a vector side by side from this address on."""
    builder.store(vector, at(builder, address, vector.type), align=1)


def moved(builder, address, amount, size=1):
    """The address `amount` values of `size` bytes further on; the amount is a number, or a value that the program computes."""
    if isinstance(amount, int):
        return builder.add(address, address.type(amount * size))
    return builder.add(address, builder.mul(amount, amount.type(size)))


def spread(builder, scalar, count=LANES):
    """The scalar in every lane."""
    undefined = ir.Constant(ir.VectorType(scalar.type, count), ir.Undefined)
    one = builder.insert_element(undefined, scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count))


def call(builder, name, result, *args):
    """One of LLVM's own operations by its name."""
    kind = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def multiply_add(builder, x, y, z):
    """X y + z, with one rounding where the processor has the instruction."""
    return call(builder, f"llvm.fmuladd.v{x.type.count}f32", x.type, x, y, z)


def transposed(builder, rows):
    """The columns of 16 vectors of 16 lanes.

    Rows i and i + 8 are interleaved lane by lane, which moves each value from place p of the 256 to 2 p (mod 255): in binary, the
    eight digits of its row and lane turn by one. After four such rounds row and lane have changed places.
    """
    low, high = ([lane + half + side * LANES for lane in range(LANES // 2) for side in (0, 1)] for half in (0, LANES // 2))
    masks = [ir.Constant(ir.VectorType(ir.IntType(32), LANES), order) for order in (low, high)]
    for _ in range(4):
        rows = [builder.shuffle_vector(x, y, mask) for x, y in zip(rows[:8], rows[8:], strict=True) for mask in masks]
    return rows


@intrinsic
def stay_whole(typingctx):
    """Keeps LLVM from copying the function that calls it into its callers, one copy a place: that took twice as long to compile."""
    def emit(context, builder, signature, args):
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()
    return types.void(), emit
