"""`minillm bench`: one measurement by name, and its table."""
from minillm.bench.cast import cast
from minillm.errors import unknown
from minillm.experiments.tables import table

BENCHES = {"cast": cast}


def bench(name: str, quiet: bool = False, **how) -> dict:
    """Run one measurement; MiniLLMError for an unknown name."""
    if name not in BENCHES:
        raise unknown("bench", name, BENCHES)
    return BENCHES[name](quiet=quiet, **how)


def describe(result: dict) -> str:
    """The result as text, with what it was measured against."""
    def number(value, digits):
        return "" if value is None else f"{value:.{digits}f}"

    rows = [[r["data"], r["format"], number(r["ns"], 2), r["peer"] or "", number(r["peer_ns"], 2), number(r["ratio"], 1)]
            for r in result["rows"]]
    against = f"ml_dtypes {result['ml_dtypes']}" if result["ml_dtypes"] else \
        "ml_dtypes is not installed, so most formats have no peer here: pip install ml_dtypes"
    how = f"{result['values']:,} float32 values, nearest even, median of {result['repeats']}; kernels " + \
        ("on" if result["kernels"] else "off")
    products = [[r["accumulator"], number(r["ms"], 2), r["peer"], number(r["peer_ms"], 2), number(r["ratio"], 1)]
                for r in result["products"]]
    return "\n".join([table(["data", "format", "ns/value", "peer", "ns/value", "times"], rows), "", f"{how}; {against}", "",
                      table(["accumulator", "ms", "peer", "ms", "times"], products), "",
                      f"float16 matrices of {result['size']} x {result['size']}; NumPy's float16 product accumulates in float32"])
