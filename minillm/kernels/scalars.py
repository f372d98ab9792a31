"""What one value goes through inside a kernel: float16 bits to float32 and back, and exp.

numba has no float16 on the CPU, so a float16 array enters as `array.view(np.uint16)` and its values are float32 in registers
only. `load` and `store` choose by the array's type: one kernel source serves float16 and float32, in and out, and its float16
result is its float32 result rounded once, by construction.

float32 -> float16 rounds to nearest, ties to even, keeps subnormals and signed zeros, overflows to infinity, and quiets NaN as the
processor does. With F16C both directions are one instruction (0.03 ns a value where NumPy's astype takes 1.3 to 1.6, and five
times that on subnormals); without it integer arithmetic gives the same bits in 0.4 ns.
"""
import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic, overload

from minillm.errors import MiniLLMError

# error_model="numpy": a division by zero is inf, and loops with divisions vectorise. Never fastmath: it deletes NaN checks.
JIT = {"error_model": "numpy", "cache": True, "nogil": True}
HALF, SINGLE = np.dtype(np.float16), np.dtype(np.float32)


def _intrinsic(source, target, emit):
    @intrinsic
    def operation(typingctx, value):
        return target(source), lambda context, builder, signature, args: emit(builder, args[0])
    return operation


float_bits = _intrinsic(types.float32, types.int32, lambda b, x: b.bitcast(x, ir.IntType(32)))
bits_float = _intrinsic(types.int32, types.float32, lambda b, x: b.bitcast(x, ir.FloatType()))
_half_to_float_instruction = _intrinsic(
    types.uint16, types.float32, lambda b, x: b.fpext(b.bitcast(x, ir.HalfType()), ir.FloatType()))
_float_to_half_instruction = _intrinsic(
    types.float32, types.uint16, lambda b, x: b.bitcast(b.fptrunc(x, ir.HalfType()), ir.IntType(16)))


@njit(inline="always")
def half_to_float_integer(bits):
    """float16 bits to float32 with integer arithmetic alone; written without branches so that it vectorises."""
    size = np.int32(bits & 0x7FFF)
    shift = np.int32(0)                          # a subnormal is moved left until bit 10 is set
    for power in range(10):
        shift = np.int32(shift + np.int32(size < (2 << power)))
    exponent = np.int32(224 << 23) if size >= 0x7C00 else np.int32(np.int32(112 - shift) << 23)
    result = np.int32(np.int32(np.int32(size << shift) << 13) + exponent) if size > 0 else np.int32(0)
    result = np.int32(result | 0x400000) if size > 0x7C00 else result        # NaN is quieted
    return bits_float(result | (np.int32(bits & 0x8000) << 16))


@njit(inline="always")
def float_to_half_integer(value):
    """float32 to float16 bits with integer arithmetic alone, ties to even."""
    bits = float_bits(value)
    size = np.int32(bits & 0x7FFFFFFF)
    normal = np.int32(np.int32(size - (112 << 23) + 0xFFF + ((size >> 13) & 1)) >> 13)
    shift = np.int32(min(max(126 - (size >> 23), 1), 25))                     # below 2^-14 more digits fall away
    digits = np.int32((size & 0x7FFFFF) | 0x800000)
    half = np.int32((np.int32(1) << np.int32(shift - 1)) - 1 + ((digits >> shift) & 1))
    result = normal if size >= 113 << 23 else np.int32(np.int32(digits + half) >> shift)
    result = min(result, np.int32(0x7C00))                                   # 65520 and above: infinity
    result = np.int32(0x7E00 | ((size >> 13) & 0x1FF)) if size > 0x7F800000 else result
    return np.uint16(result | ((bits >> 16) & 0x8000))


def target_converts() -> bool:
    """Whether numba's target has the conversions as instructions; as calls numba could not resolve them and would crash."""
    _, name, features = cpu_target.target_context.codegen().magic_tuple()
    machine = llvm.Target.from_default_triple().create_target_machine(cpu=name, features=features)
    assembly = machine.emit_assembly(llvm.parse_assembly("".join(
        f"define {to} @{to}_{source}({source} %x) {{\n %y = {cast} {source} %x to {to}\n ret {to} %y\n}}\n"
        for cast, source, to in (("fpext", "half", "float"), ("fptrunc", "float", "half")))))
    return not any(call in assembly for call in ("extendhf", "truncsf", "h2f", "f2h"))


INSTRUCTION = target_converts()
half_to_float = _half_to_float_instruction if INSTRUCTION else half_to_float_integer
float_to_half = _float_to_half_instruction if INSTRUCTION else float_to_half_integer


def load(array, i):
    """The value at i as float32, whether the array holds float32 or float16 bits."""
    raise NotImplementedError("for use inside a kernel")


def store(array, i, value):
    """Write a float32 value as what the array holds: itself, or float16 bits, rounded here once."""
    raise NotImplementedError("for use inside a kernel")


@overload(load, inline="always")
def _load(array, i):
    if array.dtype == types.uint16:
        return lambda array, i: half_to_float(array[i])
    return lambda array, i: array[i]


@overload(store, inline="always")
def _store(array, i, value):
    if array.dtype == types.uint16:
        def half(array, i, value):
            array[i] = float_to_half(value)
        return half

    def float(array, i, value):
        array[i] = value
    return float


@njit(inline="always")
def exp(x):
    """e^x, relative error below 1e-7 on [-87.3, 88.7]; inf above 88.72283, 0 below -87.33654, NaN for NaN, 1 at 0.

    x = n ln2 + r with 0 <= r < ln2; a polynomial in r (Cephes) times 2^n made from its bits. Vectorises, 0.12 ns a value where
    libm takes 3.1. 2^n is inf at n = 128 and 0 at n = -127, so that the ends need no cases.
    """
    x = min(max(x, np.float32(-88)), np.float32(89))                         # x first, so that NaN passes
    shifted = (x * np.float32(1.44269504) - np.float32(0.5)) + np.float32(1.5 * 2**23 + 127)
    n = shifted - np.float32(1.5 * 2**23 + 127)
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = (np.float32(1.912486274e-3) * r + np.float32(7.868427783e-3)) * r + np.float32(4.185498133e-2)
    p = (p * r + np.float32(1.666319072e-1)) * r + np.float32(5.000022650e-1)
    scale = bits_float(float_bits(shifted) << 23)
    return (p * r * r + r) * scale + scale


def bits(array: np.ndarray) -> np.ndarray:
    """A float16 array as the uint16 array that numba can take, a float32 array as it is; MiniLLMError for any other.

    One that does not lie in one piece is copied: for another layout numba would compile each kernel again, for seconds.
    """
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    if array.dtype == HALF:                      # a dtype is compared in 0.05 us, a type in 0.3
        return array.view(np.uint16)
    if array.dtype != SINGLE:                    # numba would compile a loop that computes in double
        raise MiniLLMError(f"kernels take float16 and float32, not {array.dtype}: round it first")
    return array
