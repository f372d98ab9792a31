"""How long rounding takes: round_to for every format, and products that round after every addition, next to NumPy and ml_dtypes."""
import numpy as np
from tqdm import tqdm

from minillm.bench import peers
from minillm.bench.measure import Call, interleaved, rows
from minillm.formats import FLOAT16, FLOAT32, FORMATS, Format
from minillm.precision.accumulation import matmul
from minillm.rounding import round_to

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
    return {"Gaussian": rng.standard_normal(count, np.float32),
            "float16 subnormals": (rng.random(count, np.float32) - np.float32(0.5)) * np.float32(2 * FLOAT16.tiny)}


def peer_of(format: Format) -> tuple[str, type] | None:
    """Who else has this format, and its type: NumPy float16, ml_dtypes most of the others. None for nobody that is installed."""
    if format is FLOAT16:
        return "numpy-float16", np.float16
    found = getattr(peers.ml_dtypes(), ML_DTYPES.get(format.name, ""), None)
    return ("ml_dtypes", found) if found else None


def one_cast(data: str, x: np.ndarray, format: Format, threads: int, seconds: float) -> list[dict]:
    """The row of one format on one array; the rate counts values."""
    peer = peer_of(format)
    calls = [Call(lambda: round_to(x, format))] + ([Call(lambda: x.astype(peer[1]), "")] if peer else [])
    ours, *theirs = interleaved(calls, seconds)
    against = {peer[0]: theirs[0]} if peer else {}
    return rows(format.name, x.shape, threads, ours, against, x.size, "Gvalues/s", x.nbytes + format.nbytes(x.size), data=data)


def one_product(accumulator: str, size: int, threads: int, seconds: float) -> list[dict]:
    """The row of one accumulator. NumPy's float16 product has none to choose: it is float32."""
    a, b = np.random.default_rng(0).standard_normal((2, size, size), np.float32).astype(np.float16)          # (M,K), (K,N) f16
    ours, peer = interleaved([Call(lambda: matmul(a, b, accumulator)), Call(lambda: a @ b, "")], seconds, least=3)
    return rows(f"matmul {accumulator}", (size,) * 3, threads, ours, {"numpy-float16": peer}, 2 * size**3, "GFLOP/s",
                2 * a.nbytes + 4 * a.size, data="Gaussian")


def cast(threads: int, quiet: bool = False, count: int = 2**18, size: int = 256, seconds: float = 0.5) -> list[dict]:
    """Rows of round_to, nearest even, for every format on both kinds of `count` numbers.

    Then of a product of two float16 matrices of size x size in some accumulators. About `seconds` a row.
    """
    found, formats = [], [f for f in FORMATS.values() if f is not FLOAT32]
    with np.errstate(all="ignore"), peers.all_on(threads):
        for data, x in inputs(count).items():
            for format in tqdm(formats, data, disable=quiet, leave=False):
                found += one_cast(data, x, format, threads, seconds)
        for name in tqdm(ACCUMULATORS, "products", disable=quiet, leave=False):
            found += one_product(name, size, threads, seconds)
    return found
