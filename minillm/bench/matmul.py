"""Matrix products of square matrices in every type that has one, next to OpenBLAS, NumPy and PyTorch."""
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from minillm import kernels
from minillm.bench import peers
from minillm.bench.measure import rows
from minillm.bench.side_by_side import Process, started, times
from minillm.formats import BFLOAT16
from minillm.rounding import round_to, widen

NAMES = ("float32", "float16", "bfloat16", "int8")
SIZES = (64, 128, 256, 512, 1024, 2048)
NUMPY_FLOAT16 = 512                  # the largest size for NumPy's float16 product: a second there, a minute at 2048
UNIT = {"int8": "Gop/s"}             # else GFLOP/s: a multiplication and an addition are two


def operands(n: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Two matrices (n,n) in each type; bfloat16 as float32 arrays on its grid."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, n, n), np.float32)                          # (M,K), (K,N) f32
    small = [rng.integers(-128, 128, (n, n), np.int8) for _ in range(2)]       # (M,K), (K,N) int8
    return {"float32": (a, b), "float16": (a.astype(np.float16), b.astype(np.float16)),
            "bfloat16": (round_to(a, BFLOAT16), round_to(b, BFLOAT16)), "int8": tuple(small)}


def ours() -> dict[str, Callable]:
    """The product of each type: our kernels, or what stands in for them where kernels are off."""
    if kernels.enabled():
        room = kernels.load("matmul")
        return {"float32": room.matmul, "float16": room.matmul, "bfloat16": room.matmul_bfloat16, "int8": room.matmul_int8}
    return {"float32": np.matmul, "float16": lambda a, b: widen(a, np.float32) @ widen(b, np.float32), "bfloat16": np.matmul,
            "int8": lambda a, b: a.astype(np.int32) @ b.astype(np.int32)}


def calls(pool: str, n: int) -> dict[str, Callable]:
    """The products of matrices (n,n) that one pool has: ours by type, the peers' by peer."""
    given = operands(n)
    if pool == "ours":
        return {name: lambda f=f, pair=given[name]: f(*pair) for name, f in ours().items()}
    return numpy_calls(given) if pool == "numpy" else torch_calls(peers.torch(), given)


def numpy_calls(given: dict) -> dict[str, Callable]:
    (a, b), half = given["float32"], given["float16"]
    slow = {"numpy-float16": lambda: half[0] @ half[1]} if len(a) <= NUMPY_FLOAT16 else {}
    return {"openblas-float32": lambda: a @ b} | slow


def torch_calls(torch, given: dict) -> dict[str, Callable]:
    def product(multiply, pair):
        return lambda: multiply(*pair)

    found = {f"torch-{name}": product(torch.mm, [torch.from_numpy(x).to(getattr(torch, name)) for x in given[name]])
             for name in ("float16", "bfloat16")}
    return found | {"torch-int8": product(torch._int_mm, [torch.from_numpy(x) for x in given["int8"]])}


def compared(name: str) -> tuple[str, ...]:
    """With whom a type is compared: float32 by BLAS, which everybody knows, and whoever has the same type."""
    return ("openblas-float32", f"numpy-{name}", f"torch-{name}")


def matmul(threads: int, quiet: bool = False, sizes: tuple[int, ...] = SIZES, seconds: float = 8.0) -> list[dict]:
    """Rows for every type and size; about `seconds` are spent on each size. The rate counts additions and multiplications."""
    found = []
    with started("ours", "numpy", "torch") as processes:
        for n in tqdm(sizes, "matmul", disable=quiet, leave=False):
            found += one_size(processes, n, threads, seconds)
    return sorted(found, key=lambda row: NAMES.index(row["name"]))


def one_size(processes: Sequence[Process], n: int, threads: int, seconds: float) -> list[dict]:
    """All types and all peers on matrices (n,n), taken in turn."""
    taken, given, result = times(processes, "matmul", threads, seconds, n=n), operands(n), []
    for name in NAMES:
        against = {peer: taken[peer] for peer in compared(name) if peer in taken}
        touched = sum(x.nbytes for x in given[name]) + 4 * n * n              # the result is float32 or int32
        result += rows(name, (n, n, n), threads, taken[name], against, 2 * n**3, UNIT.get(name, "GFLOP/s"), touched)
    return result
