"""The two limits that no kernel passes: how fast the registers of the cores can multiply and add, and how fast memory is read.

A loop on registers alone, twelve sums side by side so that none waits for its own last addition, in each of the instructions that
matrix products use. And the sum y + a x over arrays that no cache holds. Williams, Waterman and Patterson 2009 draw the rest of it.
"""
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from minillm.kernels.launch import TASK, in_pool
from minillm.kernels.pool import features
from minillm.kernels.scalars import JIT
from minillm.kernels.simd import LANES, VECTOR, multiply_add, spread

INTEGERS = ir.VectorType(ir.IntType(32), LANES)
SUMS = 12 if "avx512f" in features() else 6      # of 16 lanes: within 32 registers of 16 lanes, or 16 of 8
TASKS = 64


def dot(name, sums):
    """A processor's dot product of small groups: adds four products of bytes, or two of bfloat16, to each lane."""
    def step(builder, x, total):
        x = builder.bitcast(x, INTEGERS)
        kind = ir.FunctionType(sums, [sums, INTEGERS, INTEGERS])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [total, x, x])
    return step


def busy(step, kind):
    """The operation that updates SUMS registers of this kind `turns` times; returns something, so that nothing can be left out."""
    @intrinsic
    def operation(typingctx, turns, value):
        def emit(context, builder, signature, args):
            turns, value = args
            x, entry = spread(builder, value), builder.block
            loop, done = builder.append_basic_block("loop"), builder.append_basic_block("done")
            builder.branch(loop)
            builder.position_at_end(loop)
            turn, totals = builder.phi(turns.type), [builder.phi(kind) for _ in range(SUMS)]
            following, after = builder.add(turn, turn.type(1)), [step(builder, x, total) for total in totals]
            for number, (phi, now) in enumerate(zip([turn, *totals], [following, *after], strict=True)):
                first = turn.type(0) if phi is turn else ir.Constant(kind, [number] * LANES)
                phi.add_incoming(first, entry)
                phi.add_incoming(now, loop)
            builder.cbranch(builder.icmp_signed("<", following, turns), loop, done)
            builder.position_at_end(done)
            found = after[0]
            for other in after[1:]:
                found = builder.fadd(found, other) if kind is VECTOR else builder.add(found, other)
            lane = builder.extract_element(found, ir.IntType(32)(0))
            return lane if kind is VECTOR else builder.sitofp(lane, ir.FloatType())
        return types.float32(types.intp, types.float32), emit
    return operation


def kernel_of(operation):
    """The loop in every thread of the pool: TASKS shares of so many turns."""
    @njit(**TASK)
    def one(task, turns, value, out):
        out[task] = operation(turns, value)

    @njit(**JIT)
    def every(turns, value, out):
        in_pool(one, TASKS, (turns, value, out))
    return every


# Per turn and sum: operations of one instruction, a multiplication and an addition being two.
_float32 = kernel_of(busy(lambda builder, x, total: multiply_add(builder, x, x, total), VECTOR))
LOOPS = {"float32": (_float32, 2 * LANES)}
if "avx512vnni" in features():
    LOOPS["int8"] = kernel_of(busy(dot("llvm.x86.avx512.vpdpbusd.512", INTEGERS), INTEGERS)), 8 * LANES
if "avx512bf16" in features():
    LOOPS["bfloat16"] = kernel_of(busy(dot("llvm.x86.avx512bf16.dpbf16ps.512", VECTOR), VECTOR)), 4 * LANES


def work(name: str, turns: int = 20_000) -> int:
    """Keep all threads busy on registers in the type's instruction; returns the number of operations that it took."""
    loop, operations = LOOPS[name]
    loop(turns, np.float32(1e-3), np.empty(TASKS, np.float32))
    return TASKS * turns * SUMS * operations


@njit(**TASK)
def _triad_part(task, x, y, out, a):
    share = -(-x.size // TASKS)
    here = slice(task * share, (task + 1) * share)               # a range from `start` on would not vectorise: it may be negative
    x, y, out = x[here], y[here], out[here]
    for i in range(out.size):
        out[i] = y[i] + a * x[i]


@njit(**JIT)
def _triad(x, y, out, a):
    in_pool(_triad_part, TASKS, (x, y, out, a))


def triad(x: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
    """Out = y + 3 x of float32 arrays of one length: three streams through memory. McCalpin's STREAM."""
    _triad(x, y, out, np.float32(3))
