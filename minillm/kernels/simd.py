"""Sixteen float32 lanes at once, written in LLVM's vector types, which every processor has in some width.

LLVM vectorises a plain loop only where it can prove that nothing overlaps, and leaves a scalar remainder; inside a kernel on short
rows that costs a factor of four. Two operations are enough for attention. Arrays are contiguous float32, lengths are padded
to multiples of 16 by the caller, sums run over t in order, one fused multiply-add each.
"""
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

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


def lanes_at(context, builder, signature, args, which, offset):
    """A pointer to 16 values of argument number `which`, from `offset` values on."""
    data = make_array(signature.args[which])(context, builder, args[which]).data
    return builder.bitcast(builder.gep(data, [offset]), VECTOR.as_pointer())


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


def weighted_rows(registers):
    """The operation out[start:start+n] = sum over t < count of weights[t] rows.flat[t stride + start : ... + n], n = 16 registers.

    Several registers hide the four cycles that each sum waits for its last addition. count >= 1.
    """
    @intrinsic
    def operation(typingctx, out, start, weights, rows, stride, count):
        signature = types.void(out, types.intp, weights, rows, types.intp, types.intp)

        def emit(context, builder, signature, args):
            _, start, _, _, stride, count = args
            starts = [builder.add(start, start.type(r * LANES)) for r in range(registers)]
            weight_data = make_array(signature.args[2])(context, builder, args[2]).data
            sums = [cgutils.alloca_once_value(builder, ZEROS) for _ in starts]
            for held in sums:
                builder.store(ZEROS, held)
            with cgutils.for_range(builder, count) as loop:
                weight = spread(builder, builder.load(builder.gep(weight_data, [loop.index])))
                for begin, held in zip(starts, sums, strict=True):
                    at = builder.add(builder.mul(loop.index, stride), begin)
                    row = builder.load(lanes_at(context, builder, signature, args, 3, at), align=4)
                    builder.store(multiply_add(builder, weight, row, builder.load(held)), held)
            for begin, held in zip(starts, sums, strict=True):
                builder.store(builder.load(held), lanes_at(context, builder, signature, args, 0, begin), align=4)
            return context.get_dummy_value()
        return signature, emit
    return operation


@intrinsic
def add_scaled(typingctx, out, at, factor, row, start):
    """out.flat[at:at+16] += factor row.flat[start:start+16]."""
    signature = types.void(out, types.intp, types.float32, row, types.intp)

    def emit(context, builder, signature, args):
        target = lanes_at(context, builder, signature, args, 0, args[1])
        row = builder.load(lanes_at(context, builder, signature, args, 3, args[4]), align=4)
        builder.store(multiply_add(builder, spread(builder, args[2]), row, builder.load(target, align=4)), target, align=4)
        return context.get_dummy_value()
    return signature, emit
