"""How long rounding takes, next to peers in the same run: round_to for every format, products that round after every addition."""
import statistics
import time
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from minillm import kernels
from minillm.formats import FLOAT16, FLOAT32, FORMATS, Format
from minillm.precision.accumulation import matmul
from minillm.rounding import round_to

ACCUMULATORS = ("float16", "float16/chunked_64", "float16/toward_zero", "bfloat16", "float8_e4m3", "bfloat16/kahan")

try:
    import ml_dtypes  # a peer, not needed to run
except ImportError:
    ml_dtypes = None

PEERS = {
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
        return "numpy", np.float16
    found = getattr(ml_dtypes, PEERS.get(format.name, ""), None)
    return ("ml_dtypes", found) if found else None


def medians(calls: list[Callable], repeats: int) -> list[float]:
    """The median seconds of each call, all of them taken in turn, so that a busy moment hits them alike."""
    times = [[] for _ in calls]
    for repeat in range(repeats + 1):
        for call, kept in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if repeat:                           # the first one compiles, and fills the caches
                kept.append(time.perf_counter() - start)
    return [statistics.median(kept) for kept in times]


def cast(count: int = 2**18, repeats: int = 15, quiet: bool = False, size: int = 256) -> dict:
    """Time round_to, nearest even, for every format on both kinds of numbers; nanoseconds a value, and the ratio to the peer.

    Then a product of two float16 matrices of size x size in some accumulators, next to NumPy's float16 product; milliseconds.
    """
    rows = []
    formats = [f for f in FORMATS.values() if f is not FLOAT32]
    with np.errstate(all="ignore"):
        for kind, x in inputs(count).items():
            for format in tqdm(formats, kind, disable=quiet, leave=False):
                rows.append({"data": kind, "format": format.name} | one_cast(x, format, repeats))
    return {"bench": "cast", "values": count, "repeats": repeats, "kernels": kernels.enabled(),
            "ml_dtypes": ml_dtypes and ml_dtypes.__version__, "rows": rows, "size": size,
            "products": [one_product(name, size, repeats) for name in tqdm(ACCUMULATORS, "products", disable=quiet, leave=False)]}


def one_product(accumulator: str, size: int, repeats: int) -> dict:
    """One accumulator. NumPy's float16 product has none to choose: it is float32."""
    a, b = np.random.default_rng(0).standard_normal((2, size, size), np.float32).astype(np.float16)          # (M,K), (K,N) f16
    ours, peer = medians([lambda: matmul(a, b, accumulator), lambda: a @ b], max(1, repeats // 3))
    return {"accumulator": accumulator, "ms": ours * 1e3, "peer": "numpy", "peer_ms": peer * 1e3, "ratio": peer / ours}


def one_cast(x: np.ndarray, format: Format, repeats: int) -> dict:
    """One format on one array."""
    peer = peer_of(format)
    calls = [lambda: round_to(x, format)] + ([lambda: x.astype(peer[1])] if peer else [])
    seconds = medians(calls, repeats)
    ns = [s / x.size * 1e9 for s in seconds] + [None] * (not peer)
    return {"ns": ns[0], "peer": peer and peer[0], "peer_ns": ns[1], "ratio": ns[1] / ns[0] if peer else None}
