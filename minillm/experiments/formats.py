"""`minillm formats`: every number format on one line, one of them in full, and what becomes of one value in it."""
import math
import re

import numpy as np

from minillm.encoding import encode
from minillm.errors import MiniLLMError
from minillm.experiments.tables import table
from minillm.formats import FORMATS, Format, format_named
from minillm.rounding import ROUNDINGS, round_to

SPECIALS = {"ieee": "inf, NaN", "nan": "NaN", "fnuz": "NaN for -0", "none": "none"}
FACTS = ("bits", "exponent_bits", "mantissa_bits", "bias", "max", "lowest", "tiny", "smallest", "smallest_subnormal", "eps",
         "specials", "overflow", "nan", "subnormals", "signed", "zero")


def facts(format: Format) -> dict:
    """What a format is, by the names of its fields; `storage` is the NumPy type that holds it here."""
    return {"name": format.name} | {fact: getattr(format, fact) for fact in FACTS} | {"storage": np.dtype(format.storage).name}


def all_formats() -> dict:
    """The facts of every format that has a name."""
    return {"formats": [facts(format) for format in FORMATS.values()]}


def one_format(name: str) -> dict:
    """The facts of one format and, where it has at most 256 codes, every value."""
    format = format_named(name)
    return facts(format) | {"values": format.values().tolist() if format.bits <= 8 else None}


def number(text: str) -> float:
    """A number as users write it: 0.1, 2^-24, -2^3, 0x1.8p3, inf, nan. MiniLLMError for anything else."""
    power = re.fullmatch(r"([+-]?)2\^([+-]?\d{1,4})", text)
    try:
        if power:
            return math.ldexp(-1.0 if power[1] == "-" else 1.0, int(power[2]))
        return float.fromhex(text) if "0x" in text.lower() else float(text)
    except (ValueError, OverflowError) as error:
        raise MiniLLMError(f"cannot read {text!r} as a number: give one such as 0.1, 2^-24, 0x1.8p3, inf or nan") from error


def one_value(name: str, text: str) -> dict:
    """One value in one format: its code and fields, what is kept, the error, its neighbours, and what each rounding makes of it."""
    format, value = format_named(name), number(text)
    kept, code = round_to(value, format).item(), encode(value, format).item()
    finite = math.isfinite(value)
    return {
        "format": format.name, "value": plain(value), "kept": plain(kept), "code": code, "fields": fields(code, format),
        "relative_error": abs(kept - value) / abs(value) if finite and value and math.isfinite(kept) else None,
        "ulp": format.ulp(value) if finite else None,
        "neighbours": [plain(n) for n in format.neighbours(value)] if finite else None,
        "roundings": {mode: plain(round_to(value, format, mode).item()) for mode in ROUNDINGS if mode != "stochastic"},
        "stochastic": chances(value, format) if finite else None,
    }


def plain(value: float) -> float | str:
    """A number as JSON has it; infinities and NaN as words."""
    return value if math.isfinite(value) else str(value)


def fields(code: int, format: Format) -> dict:
    """The bits of a code as text: sign, exponent, mantissa; a field of no bits is empty."""
    bits, e = f"{code:0{format.bits}b}", format.signed + format.exponent_bits
    return {"sign": bits[:format.signed], "exponent": bits[format.signed:e], "mantissa": bits[e:]}


def chances(value: float, format: Format) -> dict[str, float]:
    """What stochastic rounding gives, as {value: probability}."""
    down, up = (round_to(value, format, mode).item() for mode in ("down", "up"))
    if not (math.isfinite(down) and math.isfinite(up)) or down == up:
        return {str(round_to(value, format).item()): 1.0}
    share = (value - down) / (up - down)
    return {str(down): 1 - share, str(up): share}


def short(value: float | str) -> str:
    """A number with as few digits as tell it apart to six places."""
    return f"{float(value):.6g}"


def describe_all(result: dict) -> str:
    rows = [[f["name"], f["bits"], f["exponent_bits"], f["mantissa_bits"], f["bias"], short(f["max"]), short(f["tiny"]),
             short(f["smallest"]), short(f["eps"]), SPECIALS[f["specials"]], f["overflow"]] for f in result["formats"]]
    return table(["format", "bits", "exp", "man", "bias", "max", "tiny", "smallest", "eps", "specials", "overflow"], rows)


def describe_format(result: dict) -> str:
    lines = [f"{fact.replace('_', ' '):20}{value}" for fact, value in result.items() if fact != "values"]
    if result["values"]:
        lines += ["", f"{len(result['values'])} values: " + " ".join(f"{v:.9g}" for v in result["values"])]
    return "\n".join(lines)


def describe_value(result: dict) -> str:
    f = result["fields"]
    head = [["value", repr(float(result["value"]))], ["kept", repr(float(result["kept"]))],
            ["bits", " ".join(part for part in f.values() if part) + f"   (sign {f['sign'] or 'none'}, exponent "
             f"{f['exponent'] or 'none'}, mantissa {f['mantissa'] or 'none'}; 0x{result['code']:x})"]]
    if result["relative_error"] is not None:
        head.append(["relative error", f"{result['relative_error']:.3g}"])
    if result["ulp"] is not None:
        below, above = (f"{float(n):.9g}" for n in result["neighbours"])
        head += [["ulp", f"{result['ulp']:.9g}"], ["neighbours", f"{below} and {above}"]]
    modes = [[mode.replace("_", " "), f"{float(kept):.9g}"] for mode, kept in result["roundings"].items()]
    if result["stochastic"]:
        modes.append(["stochastic", " or ".join(f"{float(v):.9g} ({p:.3g})" for v, p in result["stochastic"].items())])
    return "\n".join([f"{name:18}{text}" for name, text in head] + ["", table(["rounding", "gives"], modes)])
