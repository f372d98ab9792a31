"""How many values of a format lie between two numbers."""
import numpy as np

from minillm.errors import MiniLLMError
from minillm.formats import Format
from minillm.rounding import round_to


def ulp_distance(a, b, format: Format | None = None) -> np.ndarray:
    """How many steps from one value to the next lie between a and b, arrays of one shape; int64.

    Without a format, both are float16 or both float32 and the steps are those of that type; with one, both hold its values, in any
    floating type. -0 and 0 are 0 apart, NaN and NaN too; NaN and a number are 2^63 - 1 apart. MiniLLMError for a value that the
    format does not have.
    """
    a, b = np.asarray(a), np.asarray(b)
    if format is None and (a.dtype != b.dtype or a.dtype.kind != "f" or a.dtype.itemsize > 4):
        raise MiniLLMError(f"ulp_distance takes two float16 or two float32 arrays, not {a.dtype} and {b.dtype}; or name a format")
    places = (line_up(a), line_up(b)) if format is None else (place(a, format), place(b, format))
    nans = np.isnan(a), np.isnan(b)
    return np.where(nans[0] | nans[1], np.where(nans[0] & nans[1], 0, 2**63 - 1), np.abs(places[0] - places[1]))


def line_up(x) -> np.ndarray:
    """Integers in the order of the values, one apart from each to the next."""
    bits = np.ascontiguousarray(x).view(f"i{x.itemsize}").reshape(x.shape).astype(np.int64)
    return np.where(bits < 0, -(2 ** (8 * x.itemsize - 1)) - bits, bits)


def place(x, format: Format) -> np.ndarray:
    """The same for values of a format, in an array of any floating type."""
    kept = np.asarray(round_to(x, format), x.dtype)
    wrong = ~((kept == x) | np.isnan(x))
    if wrong.any():
        raise MiniLLMError(f"{float(x[wrong][0]):.9g} is not a value of {format.name}: round it with round_to first")
    size = np.where(np.isfinite(x), np.abs(x), format.max)
    step = steps_up(size, format) + (np.isinf(x) & format.has_nan)             # infinity is one beyond the largest
    return np.where(x < 0, -step - (not format.zero), step)                    # without a zero, -smallest and smallest meet


def steps_up(size, format: Format) -> np.ndarray:
    """How many values lie from the smallest one, or from 0, to a size."""
    code = format.code_below(size)
    first = 2**format.mantissa_bits
    return code if format.subnormals or not format.zero else np.maximum(code - first + 1, 0)
