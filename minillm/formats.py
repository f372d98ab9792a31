"""What a number format is, and the first three: float32, float16, bfloat16.

float32 and float16 are stored natively. bfloat16, which NumPy lacks, is *simulated*: stored in float32 arrays, every value
on its grid. Whatever reports memory prints format bytes and stored bytes apart.
"""
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minillm.errors import unknown


@dataclass(frozen=True)
class Format:
    """A binary floating format: sign, exponent with IEEE bias, mantissa; subnormals, infinities and NaN.

    `storage` is the NumPy type that holds it, `compute` the type in which an op on it works before the one rounding.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    storage: type
    compute: type = np.float32

    @property
    def bits(self) -> int:
        """Bits of one value in the format itself: sign, exponent, mantissa."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @cached_property
    def bias(self) -> int:
        return 2 ** (self.exponent_bits - 1) - 1

    @cached_property
    def eps(self) -> float:
        """The distance from 1 to the next value: 2^-mantissa_bits."""
        return 2.0**-self.mantissa_bits

    @property
    def roundoff(self) -> float:
        """Unit roundoff: the largest relative error of one rounding to nearest, eps / 2."""
        return self.eps / 2

    @cached_property
    def max(self) -> float:
        """The largest finite value."""
        return (2 - self.eps) * 2.0**self.bias

    @cached_property
    def tiny(self) -> float:
        """The smallest normal value."""
        return 2.0 ** (1 - self.bias)

    @cached_property
    def smallest_subnormal(self) -> float:
        return self.tiny * self.eps

    @property
    def simulated(self) -> bool:
        """Whether it is stored in an array wider than itself."""
        return np.dtype(self.storage).itemsize * 8 != self.bits

    def nbytes(self, size: int) -> int:
        """Bytes that `size` values take in this format, whatever array holds them here."""
        return -(-size * self.bits // 8)

    def __deepcopy__(self, memo) -> "Format":
        return self                # formats are compared with `is`: a copied model must not get formats of its own

    def __repr__(self) -> str:
        return self.name.upper()


FLOAT32 = Format("float32", 8, 23, np.float32)
FLOAT16 = Format("float16", 5, 10, np.float16)
BFLOAT16 = Format("bfloat16", 8, 7, np.float32)

FORMATS = {f.name: f for f in (FLOAT32, FLOAT16, BFLOAT16)}


def format_named(name: str) -> Format:
    """The format of this name; MiniLLMError names the nearest one otherwise."""
    if name not in FORMATS:
        raise unknown("format", name, FORMATS)
    return FORMATS[name]
