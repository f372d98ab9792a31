"""Sixteen float32 numbers as one value inside a kernel, with the arithmetic of one: what every kernel of rows is written in.

A plain loop over a short row is vectorised by LLVM in half the processor's width, with a scalar remainder that costs more than
the rest: 95 logits are 5 registers and 15 values one by one. Here a row is read sixteen values at a time, and the last read and
write touch only as many as there are. `read` and `write` take float32 or float16 bits, as scalars.load and store do.

An operation has one order whatever the place in a row, so results do not depend on how rows are shared out among threads.
"""
import operator

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.datamodel.models import PrimitiveModel
from numba.extending import intrinsic, lower_builtin, register_model, type_callable
from numba.np.arrayobj import make_array

from minillm.kernels.scalars import INSTRUCTION, float_to_half, half_to_float

LANES = 16
AHEAD = 512                        # values between what is read and what is fetched: 2 KB, 0.2 us of a row's loop
KEEP, DATA = 3, 1                  # llvm.prefetch: into every cache; not an instruction
FLOATS, INTS, HALVES, WORDS, BYTES, BITS = (ir.VectorType(t, LANES) for t in (
    ir.FloatType(), ir.IntType(32), ir.HalfType(), ir.IntType(16), ir.IntType(8), ir.IntType(1)))
NUMBERS = {types.float32: FLOATS, types.uint16: WORDS, types.uint8: BYTES}


class Lanes(types.Type):
    """numba's type of sixteen float32 values, side by side in a register."""

    def __init__(self):
        super().__init__("Lanes")


lanes, scalar = Lanes(), types.float32


@register_model(Lanes)
class LanesModel(PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, FLOATS)


# arithmetic: + - * / of two, or of one and a number, which then stands in every lane

def splat(builder, value, kind=FLOATS):
    """The value in every lane."""
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.IntType(32)(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(INTS, [0] * LANES))


def spread(builder, value):
    return value if value.type == FLOATS else splat(builder, value)


def arithmetic(symbol, instruction):
    @type_callable(symbol)
    def typed(context):
        return lambda x, z: lanes if lanes in (x, z) and {x, z} <= {lanes, scalar} else None

    for pair in ((lanes, lanes), (lanes, scalar), (scalar, lanes)):
        @lower_builtin(symbol, *pair)
        def lowered(context, builder, signature, args):
            return getattr(builder, instruction)(*(spread(builder, a) for a in args))


for symbol, instruction in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"), (operator.truediv, "fdiv")):
    arithmetic(symbol, instruction)


def operation(emit, result=lanes):
    """An operation on Lanes and numbers, which are spread: emit(builder, *values) gives the result's."""
    def typed(typingctx, *kinds):
        return result(*kinds), lambda context, builder, signature, args: emit(builder, *(spread(builder, a) for a in args))
    return typed


def call(builder, name, *values):
    kind = ir.FunctionType(FLOATS, [FLOATS] * len(values))
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}f32"), values)


def larger_of(builder, x, z):
    return builder.select(builder.fcmp_ordered(">", x, z), x, z)


def across(step):
    """All lanes into one number: step(builder, x, z) on halves, quarters, ... - a fixed order."""
    def emit(builder, value):
        for width in (8, 4, 2, 1):
            turned = ir.Constant(INTS, [*range(width, 2 * width), *[0] * (LANES - width)])
            value = step(builder, value, builder.shuffle_vector(value, value, turned))
        return builder.extract_element(value, ir.IntType(32)(0))
    return emit


def power_of_two(builder, value):
    """The last bits of sixteen floats become exponents: with 1.5 * 2^23 + 127 + n it gives 2^n, inf at 128 and 0 at -127."""
    return builder.bitcast(builder.shl(builder.bitcast(value, INTS), ir.Constant(INTS, [23] * LANES)), FLOATS)


@intrinsic
def fused(typingctx, x, z, plus):
    """X z + plus, rounded once where the processor can."""
    return operation(lambda builder, *values: call(builder, "fmuladd", *values))(typingctx, x, z, plus)


@intrinsic
def larger(typingctx, x, z):
    """X where x > z, else z: a NaN in x is passed over, one in z stays."""
    return operation(larger_of)(typingctx, x, z)


@intrinsic
def smaller(typingctx, x, z):
    """X where x < z, else z: a NaN in x is passed over, one in z stays."""
    return operation(lambda builder, x, z: builder.select(builder.fcmp_ordered("<", x, z), x, z))(typingctx, x, z)


@intrinsic
def in_every_lane(typingctx, x):
    return operation(lambda builder, x: x)(typingctx, x)


@intrinsic
def total(typingctx, x):
    """The sum of the sixteen."""
    return operation(across(lambda builder, x, z: builder.fadd(x, z)), scalar)(typingctx, x)


@intrinsic
def largest(typingctx, x):
    """The largest of the sixteen; NaN may be passed over."""
    return operation(across(larger_of), scalar)(typingctx, x)


@intrinsic
def _power_of_two(typingctx, x):
    return operation(power_of_two)(typingctx, x)


@njit(inline="always")
def times_power(r, shifted, c2, c3, c4, c5, c6):
    """2^n (1 + r + c2 r^2 + ... + c6 r^6), n in the last bits of `shifted`; in pairs, since each step waits for the one before."""
    square, scale = r * r, _power_of_two(shifted)
    p = fused(fused(c6, square, fused(c5, r, c4)), square, fused(c3, r, c2))
    return fused(fused(p, square, r), scale, scale)


@njit(inline="always")
def exp(x):
    """scalars.exp for sixteen values, its polynomial in another order."""
    x = smaller(np.float32(89), larger(np.float32(-88), x))                   # x last, so that NaN passes
    shifted = fused(x, np.float32(1.44269504), np.float32(-0.5)) + np.float32(1.5 * 2**23 + 127)
    n = shifted - np.float32(1.5 * 2**23 + 127)
    r = fused(n, np.float32(2.12194440e-4), fused(n, np.float32(-0.693359375), x))
    return times_power(r, shifted, np.float32(5.000022650e-1), np.float32(1.666319072e-1), np.float32(4.185498133e-2),
                       np.float32(7.868427783e-3), np.float32(1.912486274e-3))


@njit(inline="always")
def exp_to_one(x):
    """e^x for x up to 0, or NaN; relative error below 1e-7 down to -87.3. Three steps less: n is nearest, r half as large."""
    x = larger(np.float32(-88), x)
    shifted = fused(x, np.float32(1.44269504), np.float32(1.5 * 2**23 + 127))
    n = shifted - np.float32(1.5 * 2**23 + 127)
    r = fused(n, np.float32(2.12194440e-4), fused(n, np.float32(-0.693359375), x))
    return times_power(r, shifted, np.float32(4.9999993432e-1), np.float32(1.6666520398e-1), np.float32(4.1668390793e-2),
                       np.float32(8.3687452127e-3), np.float32(1.3814540078e-3))


# memory: `count` values are left from `at` on, in an array that lies in one piece

def pointer(context, builder, signature, args, kind):
    """Where array args[0] holds the sixteen values from args[1] on."""
    data = make_array(signature.args[0])(context, builder, args[0]).data
    return builder.bitcast(builder.gep(data, [args[1]]), kind.as_pointer())


def present(builder, count):
    """Which lanes lie below the count, of fewer than 2^31."""
    numbers = ir.Constant(INTS, list(range(LANES)))
    return builder.icmp_signed("<", numbers, splat(builder, builder.trunc(count, ir.IntType(32)), INTS))


def masked(builder, action, kind, *values):
    """LLVM's masked load or store of sixteen values, which touches no memory of lanes that are off."""
    short = f"v{LANES}{'f32' if kind is FLOATS else f'i{kind.element.width}'}"
    result = kind if action == "load" else ir.VoidType()
    function = ir.FunctionType(result, [v.type for v in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, f"llvm.masked.{action}.{short}.p0"), values)


def fetch(context, builder, signature, args, convert, fill):
    """The values, converted, and `fill` where there are none."""
    kind, align = NUMBERS[signature.args[0].dtype], ir.IntType(32)(signature.args[0].dtype.bitwidth // 8)
    place, filled = pointer(context, builder, signature, args, kind), splat(builder, fill)
    with builder.if_else(builder.icmp_signed(">=", args[2], args[2].type(LANES))) as (whole, part):
        with whole:
            all_of_them, after_whole = convert(builder.load(place, align=align.constant)), builder.block
        with part:
            seen = present(builder, args[2])
            some = convert(masked(builder, "load", kind, place, align, seen, ir.Constant(kind, [0] * LANES)))
            some, after_part = builder.select(seen, some, filled), builder.block
    values = builder.phi(FLOATS)
    values.add_incoming(all_of_them, after_whole)
    values.add_incoming(some, after_part)
    return values


def put(context, builder, signature, args, values):
    kind, align = NUMBERS[signature.args[0].dtype], ir.IntType(32)(signature.args[0].dtype.bitwidth // 8)
    place = pointer(context, builder, signature, args, kind)
    with builder.if_else(builder.icmp_signed(">=", args[2], args[2].type(LANES))) as (whole, part):
        with whole:
            builder.store(values, place, align=align.constant)
        with part:
            masked(builder, "store", kind, values, place, align, present(builder, args[2]))
    return context.get_dummy_value()


def lane_by_lane(context, builder, values, function, source, target, kind):
    """A scalar function on each lane: for a processor without the instruction."""
    result = ir.Constant(kind, ir.Undefined)
    for i in range(LANES):
        value = builder.extract_element(values, ir.IntType(32)(i))
        value = context.compile_internal(builder, lambda x: function(x), target(source), [value])
        result = builder.insert_element(result, value, ir.IntType(32)(i))
    return result


def floats_of(context, builder, values):
    if values.type == FLOATS:
        return values
    if INSTRUCTION:
        return builder.fpext(builder.bitcast(values, HALVES), FLOATS)
    return lane_by_lane(context, builder, values, half_to_float, types.uint16, types.float32, FLOATS)


def halves_of(context, builder, values):
    if INSTRUCTION:
        return builder.bitcast(builder.fptrunc(values, HALVES), WORDS)
    return lane_by_lane(context, builder, values, float_to_half, types.float32, types.uint16, WORDS)


@intrinsic
def read(typingctx, array, at, count, fill):
    """Sixteen values from `at` on, of which `count` are there; `fill` stands for the rest."""
    def emit(context, builder, signature, args):
        return fetch(context, builder, signature, args, lambda values: floats_of(context, builder, values), args[3])
    return lanes(array, types.intp, types.intp, scalar), emit


@intrinsic
def write(typingctx, array, at, count, values):
    """Write the first `count` of sixteen values from `at` on, as what the array holds: float32, or float16 rounded here once."""
    def emit(context, builder, signature, args):
        kind = signature.args[0].dtype
        return put(context, builder, signature, args, args[3] if kind == scalar else halves_of(context, builder, args[3]))
    return types.void(array, types.intp, types.intp, lanes), emit


def fetching(to_write):
    @intrinsic
    def fetch_ahead(typingctx, array, at):
        """Has the cache line of this place brought near; beyond the array's end nothing happens."""
        def emit(context, builder, signature, args):
            place, number = pointer(context, builder, signature, args, BYTES.element), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [place.type] + [number] * 3)
            fetch_line = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
            builder.call(fetch_line, [place, number(to_write), number(KEEP), number(DATA)])
            return context.get_dummy_value()
        return types.void(array, types.intp), emit
    return fetch_ahead


fetch_ahead, fetch_ahead_to_write = fetching(0), fetching(1)


@njit(inline="always")
def whole_vectors(count):
    """The count, rounded up to whole vectors."""
    return (count + LANES - 1) // LANES * LANES


@intrinsic
def where(typingctx, mask, at, count, values, other):
    """`values` in lanes whose byte of the mask, from `at` on, is not 0; `other` elsewhere, and where there are no more bytes."""
    def emit(context, builder, signature, args):
        def choose(held):
            seen = builder.icmp_unsigned("!=", held, ir.Constant(BYTES, [0] * LANES))
            return builder.select(seen, args[3], splat(builder, args[4]))
        return fetch(context, builder, signature, args, choose, args[4])
    return lanes(mask, types.intp, types.intp, lanes, scalar), emit
