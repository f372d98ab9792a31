"""Values to the bits of their format and back, and codes of 4 and 6 bits packed into bytes."""
import numpy as np

from minillm.errors import MiniLLMError
from minillm.formats import Format, check_codes
from minillm.rounding import round_to


def encode(x, format: Format, rounding: str = "nearest_even", key: int | None = None) -> np.ndarray:
    """Round x into the format and return the codes: unsigned integers of 8, 16 or 32 bits, as few as hold one. See round_to.

    NaN gives the format's quiet NaN of the same sign, where it has more than one. `format.decode` is the way back.
    """
    code_type(format)
    x = round_to(x, format, rounding, key)
    size, sign = np.abs(x), np.signbit(x).astype(np.int64)
    regular = np.isfinite(size)
    codes = format.code_below(np.where(regular, size, np.asarray(0, x.dtype)))
    if format.integer:
        codes = np.where(sign, -codes, codes) % 2**format.bits               # two's complement
    elif format.signed:
        codes = codes + (sign << (format.bits - 1))
    return np.where(regular, codes, special_codes(x, sign, format)).astype(code_type(format))


def special_codes(x, sign, format: Format):
    """The codes of infinities and NaN."""
    top, m = 2 ** (format.bits - format.signed), format.mantissa_bits
    if format.specials == "fnuz":
        return np.full(x.shape, top)
    if format.specials == "nan":
        return top - 1 + sign * top * format.signed
    infinity = top - 2**m
    return np.where(np.isnan(x), infinity + (2**m >> 1), infinity) + sign * top * format.signed


def check_packed(bits: int) -> None:
    """MiniLLMError for a number of bits that are not packed."""
    if not 1 <= bits <= 8:
        raise MiniLLMError(f"codes of 1 to 8 bits are packed, not of {bits}")


def code_type(format: Format) -> type:
    """The smallest unsigned type that holds a code; MiniLLMError beyond 32 bits."""
    if format.bits > 32:
        raise MiniLLMError(f"codes of {format.bits} bits are not made here: {format.name} has more than 32")
    return np.uint8 if format.bits <= 8 else np.uint16 if format.bits <= 16 else np.uint32


def pack(codes, bits: int) -> np.ndarray:
    """Codes of `bits` bits, 1 to 8, one after the other without gaps, lowest bit first: a flat uint8 array, ceil(n bits / 8) bytes.

    Two codes of 4 bits share a byte, the first in its lower half; four of 6 bits share three bytes.
    """
    check_packed(bits)
    codes = check_codes(codes, bits)
    each = np.unpackbits(codes.astype(np.uint8).reshape(-1, 1), axis=1, count=bits, bitorder="little")
    return np.packbits(each.ravel(), bitorder="little")


def unpack(packed: np.ndarray, bits: int, size: int) -> np.ndarray:
    """The `size` codes that `pack` wrote, (size,) uint8; MiniLLMError unless `packed` has as many bytes as they take."""
    check_packed(bits)
    if size < 0 or packed.dtype != np.uint8 or packed.size != -(-size * bits // 8):
        raise MiniLLMError(f"{size} codes of {bits} bits take {-(-size * bits // 8)} bytes, not {packed.size} of {packed.dtype}")
    each = np.unpackbits(packed, count=size * bits, bitorder="little").reshape(size, bits)
    return np.packbits(each, axis=1, bitorder="little").ravel()
