"""What a number format is, and those that go by a name: from float32 down to four bits, integers and block scales.

float32 and float16 are stored natively. Formats that NumPy lacks are *simulated*: stored in float32 arrays, every value on
their grid. Whatever reports memory prints format bytes and stored bytes apart.

"E4M3" means at least five things in the field. What differs is a field here, and each dialect has a name of its own.
"""
import dataclasses
import functools
import math
import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minillm.errors import MiniLLMError, unknown

SPECIALS = ("ieee", "nan", "fnuz", "none")
OVERFLOWS = ("infinity", "nan", "saturate")


@dataclass(frozen=True)
class Format:
    """A binary format: sign, exponent code with a bias, mantissa; and what its uncommon codes mean.

    `specials`: "ieee": the highest exponent code holds infinities and NaN; "nan": only the highest code is NaN (E4M3 as OCP has
    it, maximum 448); "fnuz": the code of -0 is NaN; "none": every code is a number. `overflow`: what lies beyond the largest value
    becomes infinity, NaN, or the largest value. `nan`: what NaN becomes where there is none, "largest" or "zero". `subnormals`:
    whether exponent code 0 holds evenly spaced values below `tiny`, or 0 alone. `exponent_bits` = 0 leaves these evenly spaced
    values only: integers, in two's complement.

    `storage` is the NumPy type that holds it, `compute` the type in which an op on it works before the one rounding.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    storage: type = np.float32
    compute: type = np.float32
    bias: int | None = None
    specials: str = "ieee"
    overflow: str | None = None
    nan: str = "largest"
    subnormals: bool = True
    signed: bool = True
    zero: bool = True

    def __post_init__(self):
        put = functools.partial(object.__setattr__, self)
        if self.bias is None:
            put("bias", 2 ** (self.exponent_bits - 1) - 1 if self.exponent_bits else 1 - self.mantissa_bits)
        if self.overflow is None:
            put("overflow", {"ieee": "infinity", "none": "saturate"}.get(self.specials, "nan"))
        self.check()

    def __hash__(self) -> int:
        return hash(self.name)                   # of all fields it would take 1.3 us, and formats are keys of what is looked up

    def check(self) -> None:
        """MiniLLMError for a format that cannot be, or that the array it is stored in cannot hold."""
        if self.specials not in SPECIALS:
            raise unknown("specials", self.specials, SPECIALS)
        if self.overflow not in OVERFLOWS:
            raise unknown("overflow", self.overflow, OVERFLOWS)
        if self.overflow not in {"ieee": OVERFLOWS, "none": ("saturate",)}.get(self.specials, ("nan", "saturate")):
            raise MiniLLMError(f"format {self.name} has no {self.overflow} for an overflow to become: let it saturate")
        if not (isinstance(self.storage, type) and issubclass(self.storage, np.floating) and np.dtype(self.storage).itemsize <= 8):
            raise MiniLLMError(f"format {self.name} is stored in {self.storage}: take np.float32, or another floating type")
        holds = np.finfo(self.storage)
        whole = all(isinstance(n, int) for n in (self.exponent_bits, self.mantissa_bits, self.bias))
        if not (whole and 0 <= self.exponent_bits <= holds.nexp and 0 <= self.mantissa_bits <= holds.nmant and self.bits >= 2):
            raise MiniLLMError(f"format {self.name} has {self.exponent_bits} exponent and {self.mantissa_bits} mantissa bits: "
                               f"{holds.dtype} holds 0 to {holds.nexp} and 0 to {holds.nmant}")
        self.check_codes_mean_something()
        bounded = abs(self.bias) <= 2 * holds.maxexp
        if not (bounded and 0 < self.max <= float(holds.max) and self.smallest >= holds.smallest_subnormal):
            raise MiniLLMError(f"format {self.name} with bias {self.bias} has values that {holds.dtype} does not hold: "
                               f"take a bias nearer to {2 ** max(self.exponent_bits - 1, 0) - 1}")

    def check_codes_mean_something(self) -> None:
        """MiniLLMError where a field speaks of codes that the others do not leave."""
        if self.integer and (self.specials, self.subnormals, self.zero) != ("none", True, True):
            raise MiniLLMError(f"format {self.name} has no exponent, so it is an integer format: give "
                               'specials="none", with zero and subnormals')
        if self.specials == "ieee" and self.mantissa_bits == 0:
            raise MiniLLMError(f'format {self.name} has no mantissa bit to tell NaN from infinity: give specials="nan" or "none"')
        if self.specials == "fnuz" and not (self.signed and self.zero):
            raise MiniLLMError(f"format {self.name} has no code of -0 for NaN: give it a sign and a zero, or other specials")
        if self.nan not in ("largest", "zero") or (self.nan == "zero" and not self.zero):
            raise MiniLLMError(f"format {self.name} cannot make {self.nan!r} of NaN: give \"largest\"" + ' or "zero"' * self.zero)
        top = 2**self.exponent_bits - 1 - (self.specials == "ieee") - (self.specials == "nan" and self.mantissa_bits == 0)
        if top + (self.subnormals and self.mantissa_bits > 0) + (not self.zero) < 1:
            raise MiniLLMError(f"format {self.name} has no value above 0: give it more exponent bits, or subnormals")

    @cached_property
    def bits(self) -> int:
        """Bits of one value in the format itself: sign, exponent, mantissa."""
        return self.signed + self.exponent_bits + self.mantissa_bits

    @property
    def integer(self) -> bool:
        """Whether its values are evenly spaced, in two's complement."""
        return self.exponent_bits == 0

    @cached_property
    def eps(self) -> float:
        """The distance from 1 to the next value: 2^-mantissa_bits; of an integer format, between values."""
        return self.smallest_subnormal if self.integer else 2.0**-self.mantissa_bits

    @property
    def roundoff(self) -> float:
        """Unit roundoff: the largest relative error of one rounding to nearest, eps / 2."""
        return self.eps / 2

    @cached_property
    def max(self) -> float:
        """The largest finite value."""
        top = 2**self.exponent_bits - 1 - (self.specials == "ieee")          # the highest exponent code that holds numbers
        if top <= 0 and self.zero:
            return self.tiny - self.smallest_subnormal
        if self.specials == "nan" and self.mantissa_bits == 0:
            return 2.0 ** (top - 1 - self.bias)
        return (2 - 2.0**-self.mantissa_bits * (1 + (self.specials == "nan"))) * 2.0 ** (top - self.bias)

    @cached_property
    def lowest(self) -> float:
        """The least finite value: -max, one less in two's complement, 0 or the smallest value without a sign."""
        if not self.signed:
            return 0.0 if self.zero else self.smallest
        return -self.tiny if self.integer and self.specials == "none" else -self.max

    def ends(self, negative: bool = False) -> tuple[float, float, float]:
        """Sizes on one side of 0: the largest, what lies beyond it becomes, what an infinity becomes."""
        largest = -self.lowest if negative else self.max
        beyond = {"infinity": math.inf, "nan": math.nan, "saturate": largest}[self.overflow]
        return largest, beyond, math.inf if self.specials == "ieee" else beyond

    @cached_property
    def tiny(self) -> float:
        """The smallest normal value; of an integer format, the power of two above its largest value."""
        return 2.0 ** (self.zero - self.bias)            # without a zero, exponent code 0 is a normal one too

    @cached_property
    def smallest_subnormal(self) -> float:
        """The distance between values below `tiny`."""
        return self.tiny * 2.0**-self.mantissa_bits

    @property
    def smallest(self) -> float:
        """The smallest value above 0."""
        return self.smallest_subnormal if self.subnormals and self.zero else self.tiny

    @cached_property
    def simulated(self) -> bool:
        """Whether NumPy has no such type, so that an array holds its values as those of a wider one."""
        holds = np.finfo(self.storage)
        native = (holds.bits, holds.nexp, "ieee", "infinity", True, True)
        return (self.bits, self.exponent_bits, self.specials, self.overflow, self.subnormals, self.zero) != native

    @property
    def has_nan(self) -> bool:
        return self.specials != "none"

    @property
    def has_negative_zero(self) -> bool:
        return self.signed and self.zero and self.specials != "fnuz" and not self.integer

    def nbytes(self, size: int) -> int:
        """Bytes that `size` values take in this format, whatever array holds them here."""
        return -(-size * self.bits // 8)

    def dialect(self, name: str, **changes) -> "Format":
        """The same format with other fields: FLOAT8_E4M3.dialect("mine", overflow="saturate")."""
        return dataclasses.replace(self, name=name, **{"overflow": None} | changes if "specials" in changes else changes)

    def ulp(self, x: float) -> float:
        """The distance between the values on either side of x, above |x| where x is one; were there no end to the exponents."""
        if not math.isfinite(x):
            raise MiniLLMError(f"{x} has no ulp: give a finite number")
        if abs(x) < self.tiny:
            return self.smallest if self.zero else self.smallest_subnormal
        return math.ldexp(1.0, math.frexp(x)[1] - 1 - self.mantissa_bits)

    def neighbours(self, x: float) -> tuple[float, float]:
        """The values next to x, below and above, never x itself; infinite where the format ends."""
        if not math.isfinite(x):
            raise MiniLLMError(f"{x} has no neighbours: give a finite number")
        return 0.0 - self._above(-x, -self.lowest, self.max), self._above(x, self.max, -self.lowest)

    def _above(self, x, largest, least):
        """The value next above x, of those from -least to largest."""
        if not -least <= x < largest:
            return math.inf if x >= largest else -least
        if not self.zero and -self.smallest <= x < self.smallest:
            return self.smallest
        code = self.code_below(abs(x))
        if x >= 0:
            return float(self.magnitude(self._after(code)))
        return -float(self.magnitude(code - (self.magnitude(code) == -x))) + 0.0           # + 0.0: there is one zero here

    def _after(self, code):
        """The code after one without a sign."""
        return code + 1 if self.smallest < self.tiny or code > 0 or not self.zero else 1 << self.mantissa_bits

    def code_below(self, size):
        """The code of the largest value that is not above `size`, a number or an array from 0 to the end of the exponents."""
        fraction, exponent = np.frexp(size)                                  # 0.5 <= fraction < 1, or 0
        lowest = self.zero - self.bias                                       # below tiny, all values have its exponent
        shift = np.where(fraction == 0, lowest, np.maximum(exponent - 1, lowest))
        significand = np.ldexp(fraction, exponent - shift + self.mantissa_bits).astype(np.int64)
        code = ((shift.astype(np.int64) + self.bias - self.zero) << self.mantissa_bits) + significand
        if not self.zero:
            return code - (1 << self.mantissa_bits)
        return code if self.subnormals else np.where(code < 1 << self.mantissa_bits, 0, code)

    def magnitude(self, code):
        """The value of a code without a sign, whether or not it stands for something special; a number or an array."""
        code = np.asarray(code, np.int64)        # of a Python number ldexp would make a float16
        exponent, fraction = code >> self.mantissa_bits, code & 2**self.mantissa_bits - 1
        normal = (exponent > 0) | (not self.zero)
        significand = (fraction + (normal << self.mantissa_bits)) * (normal | self.subnormals)
        return np.ldexp(significand, np.maximum(exponent, int(self.zero)) - self.bias - self.mantissa_bits)

    def values(self) -> np.ndarray:
        """Every finite value of a format of at most 16 bits, in order, as float32 (float64 where `storage` is)."""
        if self.bits > 16:
            raise MiniLLMError(f"{self.name} has 2^{self.bits} codes: values() lists formats of at most 16 bits")
        values = self.decode(np.arange(2**self.bits))
        return np.unique(values[np.isfinite(values)].astype(np.result_type(self.storage, np.float32)) + np.float32(0))    # one zero

    def decode(self, codes) -> np.ndarray:
        """The values, in the type of `storage`, of codes: integers of `bits` bits, sign first."""
        shape, codes = np.shape(codes), np.atleast_1d(check_codes(codes, self.bits)).astype(np.int64)
        top, m = 2 ** (self.bits - self.signed), self.mantissa_bits
        below, negative = codes % top, codes // top * self.signed
        size = self.magnitude(below)
        if self.integer:
            return (size - negative * self.tiny).astype(self.storage).reshape(shape)           # two's complement
        special = {"ieee": below >> m == 2**self.exponent_bits - 1, "nan": below == top - 1, "fnuz": codes == top,
                   "none": np.zeros(codes.shape, bool)}[self.specials]
        size[special] = np.where((self.specials == "ieee") & (below[special] % 2**m == 0), np.inf, np.nan)
        return np.copysign(size, -negative).astype(self.storage).reshape(shape)

    def __deepcopy__(self, memo) -> "Format":
        return self                # formats are compared with `is`: a copied model must not get formats of its own

    def __repr__(self) -> str:
        return self.name.upper()


def check_codes(codes, bits: int) -> np.ndarray:
    """Codes as an array; MiniLLMError unless they are integers of so many bits."""
    codes = np.asarray(codes)
    if bits > 32:
        raise MiniLLMError(f"codes of {bits} bits are not made here: 32 bits are the most")
    if codes.dtype.kind not in "ui" or (codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < 2**bits):
        raise MiniLLMError(f"codes of {bits} bits are integers from 0 to {2**bits - 1}: this array has others, or is {codes.dtype}")
    return codes


FLOAT32 = Format("float32", 8, 23, np.float32)
FLOAT16 = Format("float16", 5, 10, np.float16)
BFLOAT16 = Format("bfloat16", 8, 7)
TF32 = Format("tf32", 8, 10)

FLOAT8_E4M3 = Format("float8_e4m3", 4, 3, bias=7, specials="nan")                 # OCP: maximum 448, NaN beyond 464
FLOAT8_E5M2 = Format("float8_e5m2", 5, 2)
FLOAT6_E3M2 = Format("float6_e3m2", 3, 2, specials="none")
FLOAT6_E2M3 = Format("float6_e2m3", 2, 3, specials="none")
FLOAT4_E2M1 = Format("float4_e2m1", 2, 1, specials="none")
E8M0 = Format("e8m0", 8, 0, bias=127, specials="nan", subnormals=False, signed=False, zero=False)        # scales of blocks

FLOAT16_E6M9 = Format("float16_e6m9", 6, 9)                # the accumulator of Wang et al. 2018, arXiv 1812.08011
FLOAT22_E8M13 = Format("float22_e8m13", 8, 13)             # 14 significant bits: FP8 products of one GPU, arXiv 2412.19437

INT8 = Format("int8", 0, 7, specials="none", nan="zero")
INT4 = Format("int4", 0, 3, specials="none", nan="zero")

DIALECTS = (
    FLOAT8_E4M3.dialect("float8_e4m3_saturate", overflow="saturate"),              # 500 becomes 448
    FLOAT8_E4M3.dialect("float8_e4m3_max240", specials="ieee"),                    # with infinities
    FLOAT8_E4M3.dialect("float8_e4m3_max480", specials="none"),                    # no NaN, no infinity
    FLOAT8_E4M3.dialect("float8_e4m3_fnuz", specials="fnuz", bias=8),              # maximum 240, NaN in place of -0
    FLOAT8_E4M3.dialect("float8_e4m3_b11fnuz", specials="fnuz", bias=11),
    FLOAT8_E5M2.dialect("float8_e5m2_saturate", overflow="saturate"),
    FLOAT8_E5M2.dialect("float8_e5m2_fnuz", specials="fnuz", bias=16),
    Format("float8_e3m4", 3, 4),
    FLOAT16.dialect("float16_flush", storage=np.float32, subnormals=False),        # float16 without subnormals
    BFLOAT16.dialect("bfloat16_flush", subnormals=False),
)

FORMATS = {f.name: f for f in (
    FLOAT32, TF32, FLOAT22_E8M13, FLOAT16, BFLOAT16, FLOAT16_E6M9, FLOAT8_E4M3, FLOAT8_E5M2, FLOAT6_E3M2, FLOAT6_E2M3, FLOAT4_E2M1,
    E8M0, INT8, INT4, *DIALECTS)}


@functools.cache
def plain_format(exponent_bits: int, mantissa_bits: int) -> Format:
    """The format "eXmY": IEEE's bias, infinities, NaN and subnormals with any number of bits."""
    return Format(f"e{exponent_bits}m{mantissa_bits}", exponent_bits, mantissa_bits)


def format_named(name: str) -> Format:
    """The format of this name, or "e5m7" for any other number of bits; MiniLLMError names the nearest one otherwise."""
    found = re.fullmatch(r"e(\d)m(\d\d?)", name)
    if name in FORMATS:
        return FORMATS[name]
    if found and found.groups()[0] != "0":
        return plain_format(*map(int, found.groups()))
    raise unknown("format", name, FORMATS)
