"""Vectors of float32 in LLVM's own types: for short loops of a fixed shape, where LLVM's vectoriser falls short.

A vector has as many lanes as the widest register that numba compiles for. `b` is LLVM's builder; offsets and steps count values.
"""
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.np.arrayobj import make_array

from minillm.kernels.pool import features

LANES = 16 if "avx512f" in features() else 8
FLOAT, HALF, INT, LONG = ir.FloatType(), ir.HalfType(), ir.IntType(32), ir.IntType(64)
VECTOR, HALVES, INTS = (ir.VectorType(kind, LANES) for kind in (FLOAT, HALF, INT))
LOG2E, ROUND = 1.44269504, 1.5 * 2**23 + 127     # adding ROUND leaves n + 127, the bits of 2^n, in the lowest digits


def constant(value):
    """The number in every lane."""
    return ir.Constant(VECTOR, [float(np.float32(value))] * LANES)


def integers(values):
    return ir.Constant(INTS, list(values))


def spread(b, scalar):
    """The scalar in every lane."""
    undefined = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    return b.shuffle_vector(b.insert_element(undefined, scalar, INT(0)), undefined, integers([0] * LANES))


def multiply_add(b, x, y, z):
    """X y + z, with one rounding where the processor has the instruction."""
    kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
    return b.call(cgutils.get_or_insert_function(b.module, kind, f"llvm.fmuladd.v{LANES}f32"), [x, y, z])


def larger(b, x, y):
    """The larger of each pair; y where one of them is NaN."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


def exponential(b, x):
    """lanes.exp_to_one: e^x in every lane for x up to 0, or NaN."""
    x = b.select(b.fcmp_ordered("<", x, constant(-88)), constant(-88), x)      # NaN stays NaN
    shifted = multiply_add(b, x, constant(LOG2E), constant(ROUND))
    n = b.fsub(shifted, constant(ROUND))
    r = multiply_add(b, n, constant(2.12194440e-4), multiply_add(b, n, constant(-0.693359375), x))
    square, scale = b.fmul(r, r), b.bitcast(b.shl(b.bitcast(shifted, INTS), integers([23] * LANES)), VECTOR)
    low = multiply_add(b, r, constant(1.6666520398e-1), constant(4.9999993432e-1))
    high = multiply_add(b, r, constant(8.3687452127e-3), constant(4.1668390793e-2))
    high = multiply_add(b, square, constant(1.3814540078e-3), high)
    return multiply_add(b, multiply_add(b, multiply_add(b, high, square, low), square, r), scale, scale)


def at(b, pointer, offset):
    """The pointer moved on by so many values."""
    return b.gep(pointer, [offset if isinstance(offset, ir.Value) else LONG(offset)])


def load(b, pointer, offset=0, kind=VECTOR):
    return b.load(b.bitcast(at(b, pointer, offset), kind.as_pointer()), align=2 if kind is HALVES else 4)


def store(b, vector, pointer, offset=0):
    b.store(vector, b.bitcast(at(b, pointer, offset), vector.type.as_pointer()), align=2 if vector.type == HALVES else 4)


def repeat(b, count, carried, body):
    """Carried = body(turn, carried) for turn = 0 ... count - 1, count at least 1; what is carried stays in registers."""
    before, block, after = b.block, b.append_basic_block(), b.append_basic_block()
    b.branch(block)
    b.position_at_end(block)
    turn, old = b.phi(LONG), [b.phi(value.type) for value in carried]
    new = body(turn, old)
    following = b.add(turn, LONG(1))
    for phi, first, value in zip([turn, *old], [LONG(0), *carried], [following, *new], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(value, block)
    b.cbranch(b.icmp_signed("<", following, count), block, after)
    b.position_at_end(after)
    return new


def emitter(emit, result=types.void):
    """What an @intrinsic returns beside its signature: emit(builder, *arguments), an array as the address of its first value."""
    def generate(context, b, signature, arguments):
        value = emit(b, *(make_array(kind)(context, b, a).data if isinstance(kind, types.Array) else a
                          for kind, a in zip(signature.args, arguments, strict=True)))
        return context.get_dummy_value() if result is types.void else value
    return generate
