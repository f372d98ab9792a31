"""The house rules that a program can check: who imports whom, and what must not stand in the source."""
import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import minillm

HOUSE = Path(minillm.__file__).parent

# From the ground up. The package itself (its __init__) is the door: it shows what is inside, and nothing inside imports it.
FLOORS = [
    "errors _version", "files", "formats", "backend", "data", "plotting", "kernels", "rounding", "encoding",
    "testing",                         # bounds and oracles need formats and rounding; the autograd check needs them
    "autograd", "quantization", "optim", "precision", "recipes", "nn", "models", "conversion", "training", "hybrid", "bench",
    "experiments", "cli", "__main__", "minillm",
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}


def module_name(path: Path, root: Path = HOUSE) -> str:
    """minillm/nn/layers.py -> minillm.nn.layers; a package's __init__ has the package's name."""
    return ".".join((root.name, *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")


def sources(root: Path = HOUSE) -> dict[str, ast.Module]:
    """Every module of the package, parsed."""
    return {module_name(path, root): ast.parse(path.read_text("utf-8"), str(path)) for path in sorted(root.rglob("*.py"))}


SOURCES = sources()
PACKAGES = {module_name(path) for path in HOUSE.rglob("__init__.py")}


def imported(name: str, tree: ast.Module, packages=PACKAGES) -> Iterator[str]:
    """The full names that a module imports anywhere, in functions too: absolute, relative or plain."""
    home = name.split(".") if name in packages else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) - node.level + 1] if node.level else []
            yield from (".".join((*base, *((node.module,) if node.module else ()), alias.name)) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__"):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant))


def behind(target: str, modules) -> str | None:
    """The module of ours that a full name lies in: minillm.nn.layers.Linear -> minillm.nn.layers."""
    parts = target.split(".")
    return next((name for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in modules), None)


def edges(modules: dict[str, ast.Module], packages=PACKAGES) -> dict[str, set[str]]:
    """Which modules of ours each module imports."""
    found = {name: {behind(target, modules) for target in imported(name, tree, packages)} for name, tree in modules.items()}
    return {name: targets - {None, name} for name, targets in found.items()}


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else name


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Imports that do not go down: to a higher floor, or to another room of the same one."""
    return [f"{name} imports {target}" for name, targets in graph.items() for target in targets
            if room(name) != room(target) and FLOOR[room(target)] >= FLOOR[room(name)]]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that need each other, whatever is between them: take away who imports nothing that is left, until nobody can go."""
    left = dict(graph)
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


def test_every_room_has_a_floor():
    assert {room(name) for name in SOURCES} <= FLOOR.keys()


def test_no_import_runs_upward():
    assert upward(edges(SOURCES)) == []


def test_no_files_import_each_other_in_a_circle():
    assert circle(edges(SOURCES)) == []


PLANTED = {
    "absolute": ("minillm.formats", "from minillm.autograd.tensor import Tensor"),
    "plain": ("minillm.formats", "import minillm.optim"),
    "plain, renamed": ("minillm.kernels.scalars", "import minillm.rounding as r"),
    "relative": ("minillm.recipes", "from .nn.layers import Linear"),
    "relative, two up": ("minillm.nn.layers", "from ..models import gpt"),
    "a room from the package": ("minillm.rounding", "from minillm import nn"),
    "the door": ("minillm.rounding", "from minillm import Tensor"),
    "the door, plain": ("minillm.nn.module", "import minillm"),
    "inside a function": ("minillm.errors", "def f():\n    if True:\n        from .formats import FLOAT16"),
    "by name": ("minillm.formats", "import importlib\nimportlib.import_module('minillm.rounding')"),
    "a neighbour": ("minillm.data", "from minillm.rounding import widen"),
}


@pytest.mark.parametrize(("module", "line"), PLANTED.values(), ids=PLANTED)
def test_an_import_upward_would_be_found_however_it_is_written(module, line):
    planted = SOURCES | {module: ast.parse(line)}
    assert upward(edges(planted)), line


def test_a_circle_inside_a_room_would_be_found():
    planted = SOURCES | {"minillm.nn.module": ast.parse("from .attention import Block")}
    assert {"minillm.nn.attention", "minillm.nn.layers", "minillm.nn.module"} <= set(circle(edges(planted)))


# --- who may import what from outside

OUTSIDE = {(name, target.split(".")[0]) for name, tree in SOURCES.items() for target in imported(name, tree)}


def importers(package: str) -> set[str]:
    return {name for name, target in OUTSIDE if target == package}


def test_matplotlib_is_only_in_plotting_and_numba_only_in_kernels():
    assert {room(name) for name in importers("matplotlib")} == {"plotting"}
    assert {room(name) for name in importers("numba") | importers("llvmlite")} == {"kernels"}


def test_figures_are_drawn_from_plain_records():
    drawing = {name: targets for name, targets in edges(SOURCES).items() if room(name) == "plotting"}
    assert {room(target) for targets in drawing.values() for target in targets} <= {"plotting", "formats", "files", "errors"}


def test_peers_and_the_tests_own_tools_are_not_needed():
    for package in ("scipy", "pytest"):
        assert importers(package) == set(), package
    for package in ("torch", "ml_dtypes"):
        assert importers(package) <= {"minillm.bench.peers"}                   # timed where it is installed
    assert importers("hypothesis") <= {"minillm.testing.strategies"}                      # strategies for users' tests


def test_rules_know_no_array_module():
    rules = {name for name in SOURCES if name.startswith("minillm.autograd.rules")}
    assert len(rules) > 5
    for package in ("numpy", "cupy"):
        assert importers(package) & rules == set()
    assert {room(name) for name in importers("cupy")} <= {"backend"}


def test_importing_minillm_loads_neither_numba_nor_matplotlib():
    program = "import sys, minillm; print(sorted({'numba', 'matplotlib', 'tqdm', 'hypothesis'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=HOUSE.parent)
    assert result.stdout.strip() == "[]"


# --- what must not stand in the source

def names_in(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Every name, attribute and keyword of a module with its node."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name"):
            if isinstance(getattr(node, field, None), str):
                yield getattr(node, field), node


def test_nothing_is_pickled():
    for package in ("pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"):
        assert importers(package) == set()
    assert not any(word in ("allow_pickle", "eval", "exec") for tree in SOURCES.values() for word, _ in names_in(tree))


def settings_of(tree: ast.Module, names: tuple[str, ...]) -> Iterator[str]:
    """The values given to options of these names, as source: in calls and in tables of options."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in names:
            yield ast.unparse(node.value)
        elif isinstance(node, ast.Dict):
            yield from (ast.unparse(v) for k, v in zip(node.keys, node.values, strict=True) if getattr(k, "value", None) in names)


def test_fastmath_is_never_on():
    for name, tree in SOURCES.items():                                         # {"contract"} alone means a fused multiply-add
        assert set(settings_of(tree, ("fastmath",))) <= {"False", "{'contract'}"}, name
    for line in ("njit(fastmath=True)(f)", "JIT = {'cache': True, 'fastmath': True}"):
        assert set(settings_of(ast.parse(line), ("fastmath",))) == {"True"}


def test_no_order_is_left_to_threads():
    """numba's own parallel loops may add up in any order; tasks of kernels.launch cannot, and nothing else hands out work."""
    for name, tree in SOURCES.items():
        assert not list(settings_of(tree, ("parallel",))), name
        assert "prange" not in {word for word, _ in names_in(tree)}, name
    for line in ("njit(parallel=True)(f)", "JIT = {'cache': True, 'parallel': True}"):
        assert list(settings_of(ast.parse(line), ("parallel",))) == ["True"]
    assert "prange" in {word for word, _ in names_in(ast.parse("from numba import prange"))}


def test_no_exception_is_caught_unseen():
    for name, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, name
                assert "BaseException" not in ast.unparse(node.type), name


# Where float64 may be named, and why.
FLOAT64 = {
    "minillm.testing": "FLOAT64, the format of oracles, lives there",
    "minillm.testing.bounds": "a bound is computed in float64, whatever it bounds",
    "minillm.rounding": "a float64 input is rounded from its own bits",
    "minillm.autograd.tensor": "Python's numbers are float64 until tensor() has rounded them, once",
    "minillm.autograd.check": "compares rules with themselves in float64",
    "minillm.precision.tally": "sums of squared errors, which float32 itself could not hold: counts, not part of a step",
    "minillm.kernels.watching": "the same sums",
    "minillm.precision.accumulation": "an emulated accumulator adds in float64 and rounds once",
    "minillm.kernels.accumulation": "the same, compiled",
    "minillm.quantization.affine": "a value divided by its scale is rounded to a whole number from its exact side of a half",
    "minillm.conversion.gptq": "the inverse of a Hessian, whose condition is the square of the inputs': a conversion, not a step",
    "minillm.quantization.fixed_point": "a multiplier has 31 bits, seven more than float32, when it is made; not when it is used",
    "minillm.conversion.integer_model": "the scales that such multipliers are made of",
    "minillm.quantization.error": "a judge sums squared errors, as precision.tally does",
}


DOUBLES = re.compile(r"float64|double|longdouble|complex128")


def names_float64(tree: ast.Module) -> bool:
    """Whether a module names it: as an attribute, a name, a text, or as Python's float where a type of arrays is meant."""
    words = {word for word, _ in names_in(tree)} | {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    types = set(settings_of(tree, ("dtype",))) | {ast.unparse(a) for n in ast.walk(tree) if isinstance(n, ast.Call)
                                                  and getattr(n.func, "attr", "") in ("astype", "asarray", "zeros", "ones", "full")
                                                  for a in n.args}
    return "float" in types or any(isinstance(word, str) and DOUBLES.fullmatch(word) for word in words)


def test_float64_is_named_only_where_there_is_a_reason():
    assert {name for name, tree in SOURCES.items() if names_float64(tree)} <= FLOAT64.keys()
    for line in ("np.float64(2)", "x.astype('float64')", "x.astype(float)", "np.zeros(3, dtype=float)",
                 "from numpy import float64 as f; f(1)"):
        assert names_float64(ast.parse(line)), line
    assert not names_float64(ast.parse("np.zeros(3, np.float32); float(x); x.sum(dtype=x.dtype)"))
