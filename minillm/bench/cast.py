"""How long rounding takes: round_to for every format, and products that round after every addition, next to NumPy and ml_dtypes."""
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from minillm.bench import peers
from minillm.bench.measure import rows
from minillm.bench.side_by_side import Process, started, times
from minillm.formats import FLOAT16, FLOAT32, FORMATS, Format
from minillm.precision.accumulation import matmul
from minillm.rounding import round_to

DATA = ("Gaussian", "float16 subnormals")
ACCUMULATORS = ("float16", "float16/chunked_64", "float16/toward_zero", "bfloat16", "float8_e4m3", "bfloat16/kahan")
ML_DTYPES = {                        # their names of formats
    "bfloat16": "bfloat16", "float8_e4m3": "float8_e4m3fn", "float8_e5m2": "float8_e5m2", "float6_e3m2": "float6_e3m2fn",
    "float6_e2m3": "float6_e2m3fn", "float4_e2m1": "float4_e2m1fn", "e8m0": "float8_e8m0fnu", "float8_e3m4": "float8_e3m4",
    "float8_e4m3_max240": "float8_e4m3", "float8_e4m3_fnuz": "float8_e4m3fnuz", "float8_e4m3_b11fnuz": "float8_e4m3b11fnuz",
    "float8_e5m2_fnuz": "float8_e5m2fnuz",
}


def inputs(count: int) -> dict[str, np.ndarray]:
    """The numbers that are rounded, (count,) float32: standard normal, and all below float16's smallest normal value."""
    rng = np.random.default_rng(0)
    return dict(zip(DATA, (rng.standard_normal(count, np.float32),
                           (rng.random(count, np.float32) - np.float32(0.5)) * np.float32(2 * FLOAT16.tiny)), strict=True))


def peer_of(format: Format) -> tuple[str, type] | None:
    """Who else has this format, and its type: NumPy float16, ml_dtypes most of the others. None for nobody that is installed."""
    if format is FLOAT16:
        return "numpy-float16", np.float16
    found = getattr(peers.ml_dtypes(), ML_DTYPES.get(format.name, ""), None)
    return ("ml_dtypes", found) if found else None


def calls(pool: str, data: str, count: int, format: str) -> dict[str, Callable]:
    """Rounding `count` numbers of one kind into one format: "ours", or the peer's."""
    x, format = inputs(count)[data], FORMATS[format]
    if pool == "ours":
        return {"ours": lambda: round_to(x, format)}
    peer = peer_of(format)
    return {peer[0]: lambda: x.astype(peer[1])} if peer else {}


def product_calls(pool: str, accumulator: str, size: int) -> dict[str, Callable]:
    """A product of float16 matrices in one accumulator; NumPy's has none to choose: it is float32."""
    a, b = np.random.default_rng(0).standard_normal((2, size, size), np.float32).astype(np.float16)          # (M,K), (K,N) f16
    return {"ours": lambda: matmul(a, b, accumulator)} if pool == "ours" else {"numpy-float16": lambda: a @ b}


def one_cast(processes: Sequence[Process], data: str, count: int, format: Format, threads: int, seconds: float) -> list[dict]:
    """The row of one format on one kind of numbers; the rate counts values."""
    against = times(processes, "cast", threads, seconds, data=data, count=count, format=format.name)
    bytes = 4 * count + format.nbytes(count)
    return rows(format.name, (count,), threads, against.pop("ours"), against, count, "Gvalues/s", bytes, data=data)


def one_product(processes: Sequence[Process], accumulator: str, size: int, threads: int, seconds: float) -> list[dict]:
    """The row of one accumulator."""
    against = times(processes, "accumulator", threads, seconds, least=3, accumulator=accumulator, size=size)
    return rows(f"matmul {accumulator}", (size,) * 3, threads, against.pop("ours"), against, 2 * size**3, "GFLOP/s", 8 * size**2,
                data="Gaussian")


def cast(threads: int, quiet: bool = False, count: int = 2**18, size: int = 256, seconds: float = 0.5) -> list[dict]:
    """Rows of round_to, nearest even, for every format on both kinds of `count` numbers.

    Then of a product of two float16 matrices of size x size in some accumulators. About `seconds` a row.
    """
    jobs = [(data, format) for data in DATA for format in FORMATS.values() if format is not FLOAT32]
    with started("ours", "numpy") as processes:
        found = [row for data, format in tqdm(jobs, "cast", disable=quiet, leave=False)
                 for row in one_cast(processes, data, count, format, threads, seconds)]
        return found + [row for name in tqdm(ACCUMULATORS, "products", disable=quiet, leave=False)
                        for row in one_product(processes, name, size, threads, seconds)]
