"""Who is measured against: packages that may be missing, and the thread pools that they bring."""
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from types import ModuleType

from threadpoolctl import threadpool_info, threadpool_limits

from minillm import kernels
from minillm.backend import usable_cores
from minillm.errors import MiniLLMError


def torch() -> ModuleType | None:
    """PyTorch, where it is installed; it takes two seconds to load, so only where it is timed."""
    try:
        import torch
    except ImportError:
        return None
    return torch


def ml_dtypes() -> ModuleType | None:
    """ml_dtypes, where it is installed: NumPy types for bfloat16 and narrower floats."""
    try:
        import ml_dtypes
    except ImportError:
        return None
    return ml_dtypes


def version(package: str) -> str | None:
    """The version that is installed, without loading it."""
    return metadata.version(package) if find_spec(package) else None


def openblas() -> dict:
    """What threadpoolctl knows of the OpenBLAS under NumPy; empty where NumPy has another BLAS."""
    return next((found for found in threadpool_info() if found["internal_api"] == "openblas"), {})


def most_threads() -> int:
    """As many as there are cores, or fewer where numba was told so."""
    return min(usable_cores(), kernels.load("pool").largest()) if kernels.enabled() else usable_cores()


def check_threads(count: int) -> int:
    """The count itself; MiniLLMError for one that this machine does not have."""
    if not 1 <= count <= most_threads():
        raise MiniLLMError(f"--threads is {count}: this machine can be measured with 1 to {most_threads()}")
    return count


def installed(pool: str) -> bool:
    """Whether this pool can be timed here: "ours" and "numpy" always, "torch" where PyTorch is installed."""
    return pool != "torch" or version("torch") is not None


def set_threads(pool: str, count: int) -> None:
    """Let a pool have `count` threads from now on: "ours" numba's, or without kernels OpenBLAS's, as "numpy"; "torch" PyTorch's."""
    if pool == "torch":
        torch().set_num_threads(count)
    elif pool == "ours" and kernels.enabled():
        kernels.load("pool").set_threads(count)
    else:
        threadpool_limits(count, "blas")


@contextmanager
def ours_on(count: int):
    """Inside, our kernels have `count` threads; then as before."""
    pool = kernels.load("pool")
    before = pool.threads()
    pool.set_threads(count)
    try:
        yield
    finally:
        pool.set_threads(before)
