"""Matrix products of square matrices in every type that has one, next to OpenBLAS, NumPy and PyTorch."""
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from minillm import kernels
from minillm.bench import peers
from minillm.bench.measure import Call, interleaved, rows
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


def peers_of(given: dict) -> dict[str, Call]:
    """The products of others on the same numbers, by name."""
    a, b = given["float32"]
    found = {"openblas-float32": Call(lambda: a @ b, "blas")}
    if len(a) <= NUMPY_FLOAT16:
        half = given["float16"]
        found["numpy-float16"] = Call(lambda: half[0] @ half[1], "")
    if (torch := peers.torch()) is None:
        return found
    for name in ("float16", "bfloat16"):
        found[f"torch-{name}"] = torch_product(torch.mm, [torch.from_numpy(x).to(getattr(torch, name)) for x in given[name]])
    return found | {"torch-int8": torch_product(torch._int_mm, [torch.from_numpy(x) for x in given["int8"]])}


def torch_product(multiply: Callable, pair: list) -> Call:
    return Call(lambda: multiply(*pair), "torch")


def compared(name: str) -> tuple[str, ...]:
    """With whom a type is compared: float32 by BLAS, which everybody knows, and whoever has the same type."""
    return ("openblas-float32", f"numpy-{name}", f"torch-{name}")


def matmul(threads: int, quiet: bool = False, sizes: tuple[int, ...] = SIZES, seconds: float = 8.0) -> list[dict]:
    """Rows for every type and size; about `seconds` are spent on each size. The rate counts additions and multiplications."""
    found = []
    with peers.all_on(threads):
        for n in tqdm(sizes, "matmul", disable=quiet, leave=False):
            found += one_size(n, threads, seconds)
    return sorted(found, key=lambda row: NAMES.index(row["name"]))


def one_size(n: int, threads: int, seconds: float) -> list[dict]:
    """All types and all peers on matrices (n,n), in one interleaved run."""
    given = operands(n)
    others = peers_of(given)
    calls = {name: Call(lambda f=f, pair=given[name]: f(*pair)) for name, f in ours().items()}
    taken = dict(zip([*calls, *others], interleaved([*calls.values(), *others.values()], seconds), strict=True))
    result = []
    for name in calls:
        against = {peer: taken[peer] for peer in compared(name) if peer in taken}
        touched = sum(x.nbytes for x in given[name]) + 4 * n * n              # the result is float32 or int32
        result += rows(name, (n, n, n), threads, taken[name], against, 2 * n**3, UNIT.get(name, "GFLOP/s"), touched)
    return result
