"""`minillm bench`: one measurement by name, or all of them; a figure, and the tables of a README."""
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from minillm.bench import generate, machine, matmul, peers, roofline, rowwise, step
from minillm.bench.cast import cast
from minillm.bench.scaling import scaling
from minillm.errors import MiniLLMError, unknown
from minillm.experiments.bench_tables import into_readme, marks_of
from minillm.experiments.running import announce_compiling
from minillm.files import check_folder
from minillm.plotting.speed import rates

BENCHES: dict[str, Callable] = {"matmul": matmul.matmul, "rowwise": rowwise.rowwise, "cast": cast, "step": step.step,
                                "generate": generate.generate}
MISSING = {"torch": ("matmul", "rowwise", "step", "generate"), "ml_dtypes": ("cast",)}
REMEDY = {"torch": "pip install 'minillm[bench]'", "ml_dtypes": "pip install ml_dtypes"}


def bench(name: str, threads: int | None = None, quiet: bool = False, out: str | None = None, readme: str | None = None) -> dict:
    """Run one measurement, or "all", on so many threads, by default as many as there are cores.

    `out`: a folder for the figure of matmul. `readme`: a file with two marks, between which the tables of all measurements go;
    its figure goes into figures/ beside it. Returns {"bench", "machine", "rows", "scaling", "missing", "figures"};
    scaling comes with step.
    """
    check(name, out, readme)
    threads = peers.check_threads(peers.most_threads() if threads is None else threads)
    announce_compiling(quiet)
    names = list(BENCHES) if name == "all" else [name]
    rows = [{"bench": one} | row for one in names for row in BENCHES[one](threads, quiet=quiet)]
    found, figures = machine.machine(), [Path(out) / "bench-matmul.png"] if out else []
    figures += [Path(readme).parent / "figures" / "readme-rates.png"] if readme else []
    result = {"bench": name, "machine": found, "rows": rows, "scaling": scaling(threads) if "step" in names else [],
              "missing": missing(names, found),
              "figures": [str(draw(rows, threads, path)) for path in figures]}
    if readme:
        into_readme(result, Path(readme))
    return result


def check(name: str, out: str | None, readme: str | None) -> None:
    """What is wrong with the input is said before minutes are spent on measuring."""
    if name != "all" and name not in BENCHES:
        raise unknown("bench", name, (*BENCHES, "all"))
    if out and name not in ("matmul", "all"):
        raise MiniLLMError(f"bench {name} draws no figure: leave --out away, or measure matmul")
    if readme and name != "all":
        raise MiniLLMError(f"--readme is for all measurements together: minillm bench all --readme {readme}")
    if out:
        check_folder(out)
    if readme:
        marks_of(Path(readme))


def draw(rows: Sequence[Mapping], threads: int, path: Path) -> Path:
    """The figure of matmul's rows beside what the processor could do."""
    return rates([row for row in rows if row["bench"] == "matmul"], roofline.peaks(threads), path)


def missing(names: Sequence[str], found: Mapping) -> list[str]:
    """A line for each peer that is not installed and would have had a row."""
    return [f"{package} is not installed, so rows against it are missing: {REMEDY[package]}" for package, benches in MISSING.items()
            if set(names) & set(benches) and not found["versions"][package]]
