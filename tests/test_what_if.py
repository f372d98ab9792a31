"""What-if tables are what rounding the values themselves into each format gives."""
import math

import numpy as np
import pytest
from tiny_gpt import batch, make, objective_of

from minillm.autograd.context import Address
from minillm.autograd.watching import Event, watch
from minillm.errors import MiniLLMError
from minillm.formats import BFLOAT16, E8M0, FLOAT8_E5M2, FLOAT16, FLOAT32, FORMATS, INT8, format_named
from minillm.precision.master_weights import lost_updates
from minillm.precision.what_if import FORMATS_ASKED, SCALES, WhatIf, kind_of, limits
from minillm.rounding import round_to, widen
from minillm.training.trainer import training_step

FLOATS = [f for f in FORMATS.values() if not f.integer and f.signed] + [format_named("e5m0"), format_named("e3m1")]


def event(exact, phase="backward", op="mul"):
    exact = np.asarray(exact, np.float32)
    return Event(phase, Address("", op, 0), exact, exact, FLOAT32)


def fates(values, format, power=0):
    """(zeroed, subnormal, overflowed) of values times 2^power, by rounding them."""
    scaled = np.ldexp(np.asarray(values, np.float64), power)                   # exact: a scale is a power of two
    rounded = round_to(scaled, format).astype(np.float64)
    fraction, exponent = np.frexp(np.abs(scaled))
    digits = format.mantissa_bits + 1
    free = np.ldexp(np.rint(np.ldexp(fraction, digits)), exponent - digits) > format.max     # were there no end; rint: ties to even
    return (int(np.sum((rounded == 0) & (scaled != 0))), int(np.sum((rounded != 0) & (np.abs(rounded) < format.tiny))),
            int(np.sum(free & np.isfinite(scaled))))


def counted(seen, format, power, phase="backward"):
    row = next(r for r in seen.rows() if (r["kind"], r["format"], r["log2_scale"]) == (phase, format.name, power))
    return tuple(round(row[name] * row["values"]) for name in ("zeroed", "subnormal", "overflowed"))


def edges(format):
    """Sizes around every limit, from the definition of the format and not from `limits`."""
    at = [format.smallest / 2, format.smallest, format.tiny, format.tiny - format.smallest_subnormal / 2, format.max,
          format.max + format.ulp(format.max) / 2, format.max + format.ulp(format.max)]
    with np.errstate(over="ignore"):
        beside = [np.nextafter(np.float32(min(x, FLOAT32.max)), np.float32(end)) for x in at for end in (0, math.inf)]
    return np.array([*[x for x in at if x <= FLOAT32.max], *beside, 0, 1], np.float32)


@pytest.mark.parametrize("format", FLOATS, ids=repr)
def test_counts_are_those_of_rounding(format):
    rng = np.random.default_rng(format.bits)
    values = np.concatenate([edges(format), -edges(format), rng.standard_normal(400) * 2.0 ** rng.integers(-40, 30, 400)])
    values = values.astype(np.float32)
    values = values[np.isfinite(values)]
    seen = WhatIf([format], scales=(-16, -3, 0, 5, 24))
    seen(event(values))
    for power in seen.scales:
        assert counted(seen, format, power) == fates(values, format, power), power


def test_the_loss_scale_of_the_watched_step_is_taken_out():
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32) * np.float32(2.0**-20)
    plain, scaled = WhatIf([FLOAT16]), WhatIf([FLOAT16], loss_scale=2.0**16)
    plain(event(values))
    scaled(event(values * np.float32(2.0**16)))
    assert plain.rows() == scaled.rows()
    assert counted(plain, FLOAT16, 0)[0] > counted(plain, FLOAT16, 8)[0] == 0


def test_a_scale_changes_cotangents_only():
    seen = WhatIf([FLOAT16])
    for phase in ("forward", "backward", "accumulate"):                        # kept apart by where the scale acts
        seen(event([1e-9, 1.0, 1e9], phase))
    seen(event([1e-9], "update", "v"))
    found = {kind: [r["log2_scale"] for r in seen.rows() if r["kind"] == kind]
             for kind in ("forward", "backward", "accumulate", "update/v")}
    assert found == {"forward": [None], "backward": [*SCALES], "accumulate": [*SCALES], "update/v": [None]}


def test_what_is_zero_or_not_finite_is_nobodys_fault():
    seen = WhatIf([FLOAT16])
    seen(event([0, -0.0, math.inf, -math.inf, math.nan, 1.0]))
    # 2^-16, -15 are subnormal, 2^16 and above are beyond 65504
    assert [counted(seen, FLOAT16, k) for k in SCALES] == [(0, int(k < -14), int(k >= 16)) for k in SCALES]
    empty = WhatIf([FLOAT16])
    empty(event([]))
    assert {row["zeroed"] for row in empty.rows()} == {0}


@pytest.mark.parametrize("format", [INT8, E8M0], ids=repr)
def test_formats_without_a_sign_or_an_exponent_are_refused(format):
    with pytest.raises(MiniLLMError, match="no format for gradients"):
        WhatIf([format])


def test_limits_of_float16_are_the_known_ones():
    survives, normal, beyond = limits(FLOAT16)
    assert (math.nextafter(survives, 0), normal, beyond) == (2.0**-25, 2.0**-14 - 2.0**-25, 65520)
    assert {FLOAT16, BFLOAT16, FLOAT8_E5M2} < set(FORMATS_ASKED)


def test_of_a_float32_step_it_says_what_the_formats_would_have_done():
    objective, events, seen = objective_of(make("float32")), [], WhatIf([FLOAT16, BFLOAT16, FLOAT8_E5M2])
    with watch(events.append), watch(seen):
        training_step(objective, [batch()], 0, 1e-3)
    for format in seen.formats:
        for phase, power in (("backward", -16), ("backward", 12), ("forward", 0)):
            expected = np.sum([fates(e.exact, format, power) for e in events if e.phase == phase and e.exact.size > 1], axis=0)
            assert counted(seen, format, power if phase == "backward" else None, phase) == tuple(expected)
    assert {kind_of(e.phase, e.address) for e in events} == {row["kind"] for row in seen.rows()}


def test_lost_updates_of_a_float32_step_are_those_of_weights_kept_in_the_format():
    objective, events, seen = objective_of(make("float32")), [], WhatIf([FLOAT32, FLOAT16, BFLOAT16])
    training_step(objective, [batch()], 0, 1e-3)
    with watch(events.append), watch(seen):
        training_step(objective, [batch()], 1, 2e-5)
    for format in (FLOAT16, BFLOAT16):
        lost = total = 0
        for e in events:
            if e.address.op == "weight":
                before = widen(round_to(e.before, format), np.float32)
                lost += before.size * lost_updates(before, before + (e.exact - e.before), format)
                total += before.size
        assert seen.lost_updates()[format.name] == pytest.approx(lost / total, abs=1e-12)
    found = seen.lost_updates()
    assert found["bfloat16"] > found["float16"] > found["float32"] == 0
