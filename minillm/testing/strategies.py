"""Hypothesis strategies that draw what breaks numerics: ties, range edges, subnormals, swamping, outlier channels.

Values are Python floats, arrays have the type of the format's `storage`. They need Hypothesis: `pip install minillm[test]`.
"""
import math
from types import ModuleType

import numpy as np

from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32, Format
from minillm.rounding import round_to


def hypothesis() -> ModuleType:
    """Hypothesis's strategies, imported on first use; MiniLLMError where it is not installed."""
    try:
        import hypothesis.extra.numpy
        import hypothesis.strategies
    except ImportError as error:
        raise MiniLLMError("minillm.testing.strategies need Hypothesis, which is missing: pip install minillm[test]") from error
    return hypothesis.strategies


def values(format: Format, finite: bool = True):
    """Any value of the format, every code as likely as any other; with `finite` false its infinities and NaN too."""
    drawn = hypothesis().integers(0, 2**format.bits - 1).map(lambda code: float(format.decode(np.array(code))))
    return drawn.filter(math.isfinite) if finite else drawn


def arrays(format: Format, shape, elements=None, finite: bool = True):
    """Arrays of values of the format in its storage type; shape: a tuple, an int, or a strategy of them."""
    hypothesis()
    from hypothesis.extra import numpy as extra
    return extra.arrays(format.storage, shape, elements=elements if elements is not None else values(format, finite))


def ties(format: Format, nudges: tuple[int, ...] = (-1, 0, 1)):
    """The middle between a value and the next larger one, and its neighbours in float64, of either sign.

    nudges: how many float64 steps from the middle are drawn. Beyond the largest value the next is where it would be without an end.
    """
    def tie(below: float, steps: int) -> float:
        middle = abs(below) + format.ulp(below) / 2                            # exact: one more digit than the format has
        return math.copysign(moved(middle, steps), below)
    return hypothesis().builds(tie, values(format), hypothesis().sampled_from(nudges))


def moved(x: float, steps: int) -> float:
    """The float64 value so many steps above x, or below it."""
    for _ in range(abs(steps)):
        x = math.nextafter(x, math.copysign(math.inf, steps))
    return x


def edges(format: Format):
    """Zeros, the smallest and largest values, tiny, 1, the overflow threshold, infinities; each and its float64 neighbours."""
    top = format.max + format.ulp(format.max) / 2
    ends = [0.0, format.smallest, format.smallest / 2, format.tiny, 1.0, format.max, top, -format.lowest, 2 * top, math.inf]
    near = sorted({s * moved(e, n) for e in ends for n in (-1, 0, 1) for s in (-1, 1)} | {-0.0}, key=abs)
    return hypothesis().sampled_from(near)


def subnormals(format: Format):
    """Numbers below the format's smallest normal value, most of them between two values; MiniLLMError for E8M0 and its like."""
    if not format.zero:
        raise MiniLLMError(f"{format.name} has no zero and nothing below its smallest value: draw from edges instead")
    return hypothesis().floats(-format.tiny, format.tiny, exclude_min=True, exclude_max=True)


def swamping_pairs(format: Format):
    """Pairs (large, small) of values whose sum, rounded to nearest, is the large one again: small is lost, though it is not 0."""
    st = hypothesis()

    def pair(large: float, code: int, sign: int) -> tuple[float, float]:
        lost = lost_codes(format, large)
        return large, sign * float(format.decode(np.array(lost[0] + code % (lost[1] - lost[0] + 1))))
    if lost_codes(format, format.max)[1] < lost_codes(format, format.max)[0]:
        raise MiniLLMError(f"no value of {format.name} swamps another: they lie too close together")
    big = values(format).filter(lambda v: lost_codes(format, v)[1] >= lost_codes(format, v)[0])
    return st.builds(pair, big, st.integers(0, 2**format.bits), st.sampled_from([-1, 1] if format.signed else [1]))


def lost_codes(format: Format, large: float) -> tuple[int, int]:
    """The codes of the values above 0 that are less than a quarter of an ulp of `large`: half of one below a power of two."""
    first = int(format.code_below(format.smallest))
    quarter = format.ulp(large) / 4
    below = int(format.code_below(quarter)) if quarter >= format.smallest else first - 1
    return first, below - (below >= first and float(format.magnitude(below)) == quarter)


def outlier_channels(format: Format, rows: int, channels: int, outliers: int = 1, factor: float = 64.0):
    """Activations (rows, channels) of which a few channels are `factor` times larger, as in Dettmers et al. 2022, arXiv 2208.07339.

    Values of the format; the ordinary ones are at most 1 in size, or so small that the outliers stay below `format.max`.
    """
    if not 0 <= outliers <= channels:
        raise MiniLLMError(f"{outliers} outlier channels among {channels}: give at most as many as there are")
    st, ordinary = hypothesis(), float(np.float32(min(1.0, format.max / (2 * factor))))

    def build(x, places):
        x[:, places] *= np.float32(factor)
        return round_to(x, format)
    ordinary_values = arrays(FLOAT32, (rows, channels), st.floats(-ordinary, ordinary, width=32))
    places = st.lists(st.integers(0, channels - 1), min_size=outliers, max_size=outliers, unique=True)
    return st.builds(build, ordinary_values, places)
