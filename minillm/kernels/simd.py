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


def lanes_at(context, builder, signature, args, which, offset):
    """A pointer to 16 values of argument number `which`, from `offset` values on."""
    data = make_array(signature.args[which])(context, builder, args[which]).data
    return builder.bitcast(builder.gep(data, [offset]), VECTOR.as_pointer())


def spread(builder, scalar):
    """The scalar in every lane."""
    undefined = ir.Constant(VECTOR, ir.Undefined)
    one = builder.insert_element(undefined, scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def multiply_add(builder, x, y, z):
    """X y + z, with one rounding where the processor has the instruction."""
    kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32"), [x, y, z])


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
            sums = [cgutils.alloca_once_value(builder, ir.Constant(VECTOR, [0.0] * LANES)) for _ in starts]
            for held in sums:
                builder.store(ir.Constant(VECTOR, [0.0] * LANES), held)
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
