"""The curve of bits against loss: runs converted to codes of 8 to 2 bits by every method, in a table and a figure."""
import statistics
from pathlib import Path

from tqdm import tqdm

from minillm.conversion.convert import BITS, INT8_ONLY, METHODS, Conversion, convert
from minillm.conversion.trained import trained_ternary
from minillm.errors import MiniLLMError
from minillm.experiments.quantize import Trained, prepared
from minillm.experiments.tables import table
from minillm.files import check_folder
from minillm.plotting.quantization import loss_over_bits
from minillm.training.quantized_checkpoint import float32_bytes, quantized_file
from minillm.training.trainer import finite_or_none


def bits(paths: list[str], granularity: str = "group", group: int = 32, calibrate_with: int = 64, out: str | Path = "figures",
         quiet: bool = True) -> dict:
    """{"rows": [...], "figures": [...], "val_loss_float32": [...]}: means over the runs, which differ best in their seed alone.

    A row: "method", "bits", "loss_above" float32's in nats, "losses_above" of each run (None: not finite), "bytes" and
    "bytes_float32" of the file, "sqnr_db" of the median layer.
    """
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise MiniLLMError(f"a run stands twice in {' '.join(map(str, paths))}: its seed would count double")
    ways = conversions(granularity, group)
    runs = [prepared(path, calibrate_with) for path in paths]
    for run in runs:
        if trained_ternary(run.model):
            raise MiniLLMError(f"recipe {run.model.ops.recipe.name} was trained with ternary weights, which have no other "
                               "number of bits: give runs of other recipes")
    check_folder(out)
    exact = [run.data.loss(run.exact)[0] for run in runs]
    rows = [row(how, runs, exact) for how in tqdm(ways, "bits", disable=quiet, leave=False)]
    title = f"{len(runs)} trained run{'s' * (len(runs) > 1)}, {by(granularity, group)}"
    figure = loss_over_bits(rows, Path(out) / "bits.png", title)
    return {"rows": rows, "granularity": granularity, "group": group, "val_loss_float32": exact, "figures": [str(figure)]}


def by(granularity: str, group: int) -> str:
    return f"a scale for each {granularity}" + (f" of {group}" if granularity == "group" else "")


def conversions(granularity: str, group: int) -> list[Conversion]:
    """Every method with all numbers of bits that it has."""
    return [Conversion(scheme, method, granularity, group) for method in METHODS for scheme in BITS
            if (scheme != "ternary" and method not in INT8_ONLY) or (scheme == "int8" and granularity != "group")]


def row(how: Conversion, runs: list[Trained], exact: list[float]) -> dict:
    """What one conversion does to every run."""
    above, sizes, db = [], [], []
    for run, loss in zip(runs, exact, strict=True):
        converted, layers = convert(run.model, how, run.inputs)
        above.append(finite_or_none(run.data.loss(converted)[0] - loss))
        sizes.append(len(quantized_file(converted, {})))
        db.append(statistics.median(layer.sqnr_db for layer in layers))
    return {"method": how.method, "bits": BITS[how.scheme], "losses_above": above,
            "loss_above": None if None in above else statistics.fmean(above), "bytes": round(statistics.fmean(sizes)),
            "bytes_float32": round(statistics.fmean(float32_bytes(run.model) for run in runs)),
            "sqnr_db": finite_or_none(statistics.fmean(db))}


def describe(result: dict) -> str:
    """The table for people."""
    rows = [[r["method"], r["bits"], "-" if r["loss_above"] is None else f"{r['loss_above']:+.4f}",
             " ".join("-" if a is None else f"{a:+.4f}" for a in r["losses_above"]), f"{r['bytes'] / r['bytes_float32']:.3f}",
             f"{r['sqnr_db']:.1f}"] for r in result["rows"]]
    head = ["method", "bits", "nats above float32", "each run", "share of bytes", "median layer dB"]
    return "\n".join([table(head, rows), "", *(f"figure: {path}" for path in result["figures"])])
