"""What `minillm bench` says: a table for people, and the tables of a README."""
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from minillm.bench.machine import describe as describe_machine
from minillm.bench.measure import LONG
from minillm.errors import MiniLLMError
from minillm.experiments.tables import table
from minillm.files import write_whole

NOTES = {
    "matmul": "Shape (M,N,K). The rate counts additions and multiplications. bfloat16: float32 arrays on its grid.",
    "rowwise": "Shape (rows, width); of attention (B,T,H,D). Backward is the vjp alone, of attention forward with backward. "
               "The rate counts what must be read and written.",
    "cast": "round_to, nearest even. matmul: rounded after every addition, where NumPy's float16 product accumulates in float32.",
    "step": "Shape (B,T); A has 0.81 M parameters, B 3.2 M. MB: held for backward, in the format's own bits, of the most memory "
            "that a process of its own ever took.",
    "generate": "200 tokens of one text with a key/value cache, shape (layers, channels, context, tokens). MB: weights.",
}
HEAD = ("name", "shape", "threads", "ms", "rate", "MB", "times as fast as")
BEGIN, END = "<!-- bench: begin -->\n", "<!-- bench: end -->"


def describe(result: dict) -> str:
    """The result as text, with the machine."""
    notes = [NOTES[name] for name in dict.fromkeys(row["bench"] for row in result["rows"])]
    figures = [f"figure: {path}" for path in result["figures"]]
    return "\n".join([table(HEAD, lines_of(result["rows"])), "", *notes, *map(growth, result["scaling"]), *result["missing"],
                      describe_machine(result["machine"]), *figures])


def growth(found: Mapping) -> str:
    """How the time of a step grows, in a sentence with the points of the fit."""
    points = ", ".join(f"{p['tokens']:,} tokens x {p['parameters']:,} parameters {digits(p['ms'])} ms" for p in found["points"])
    return f"A step in {found['recipe']} grows as (tokens x parameters)^{found['exponent']:.2f}: {points}."


def lines_of(rows: Sequence[Mapping]) -> list[list[str]]:
    """One line for all rows of a name, shape and thread count, which differ in the peer: how often as fast as each of them."""
    def key(row):
        return row["bench"], row["name"], row.get("data"), row["shape"], row["threads"]

    return [line_of(list(group)) for _, group in groupby(rows, key)]


def line_of(group: list[Mapping]) -> list[str]:
    first = group[0]
    name = first["name"] + (f" ({first['data']})" if first.get("data") else "")
    bytes = "" if first["bytes"] is None else digits(first["bytes"] / 1e6)
    if first.get("resident"):
        bytes += f" of {digits(first['resident'] / 1e6)}"
    return [name, " x ".join(map(str, first["shape"])), str(first["threads"]), digits(first["ms"]),
            f"{digits(first['rate'])} {first['unit']}", bytes,
            ", ".join(f"{digits(row['ratio'])} {row['peer']}{once(row)}" for row in group if row["peer"])]


def once(row: Mapping) -> str:
    """Says of a call that takes very long that it was made a single time."""
    return " (one call)" if row["peer_ms"] > LONG * 1e3 else ""


def digits(value: float) -> str:
    """Three significant digits, never an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 1e-4 else f"{value:.6f}"


SHOWN = {                            # which rows the README shows, and what it says above them
    "matmul": ("Matrix products", lambda row: min(row["shape"]) >= 256),
    "step": ("A whole training step: forward, backward, clipping, AdamW", lambda row: True),
    "generate": ("Generation", lambda row: True),
    "rowwise": ("Ops on rows", lambda row: True),
    "cast": ("Rounding float32 numbers", lambda row: row["data"] == "Gaussian"),
}
FOLDED = ("rowwise", "cast")         # long tables that a reader opens


def into_readme(result: dict, readme: Path) -> None:
    """Replace what stands between the marks by the tables of all measurements."""
    before, after = marks_of(readme)
    write_whole(readme, before + BEGIN + markdown(result) + END + after)


def marks_of(readme: Path) -> tuple[str, str]:
    """What stands before and after the marks; MiniLLMError where they are missing."""
    text = readme.read_text("utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise MiniLLMError(f"{readme} lacks the lines {BEGIN.strip()} and {END}: put them where the tables belong")
    return before, after


def markdown(result: dict) -> str:
    """The tables of all measurements, with the machine."""
    parts = [f"Measured {describe_machine(result['machine'])}."]
    if result["figures"]:
        parts.append("![Rate of matrix products against their size](figures/readme-rates.png)")
    for name, (title, shown) in SHOWN.items():
        lines = lines_of([row for row in result["rows"] if row["bench"] == name and shown(row)])
        if lines:
            more = map(growth, result["scaling"] if name == "step" else [])
            text = "\n\n".join([markdown_table(lines), NOTES[name], *more])
            folded = f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"
            parts.append(folded if name in FOLDED else f"**{title}**\n\n{text}")
    return "\n\n".join(parts) + "\n"


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Numbers to the right."""
    rows = [HEAD, ("---", "---", "---:", "---:", "---:", "---:", "---"), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
