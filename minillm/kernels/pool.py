"""numba's thread pool, and the processor that it compiles for."""
import numba
from numba.core.registry import cpu_target


def largest() -> int:
    """The most threads that the pool can have in this process: NUMBA_NUM_THREADS, else one for each usable core."""
    return numba.config.NUMBA_NUM_THREADS


def threads() -> int:
    return numba.get_num_threads()


def set_threads(count: int) -> None:
    numba.set_num_threads(count)


def version() -> str:
    return numba.__version__


def features() -> frozenset[str]:
    """The instruction sets that numba compiles for, by LLVM's names: "avx2", "avx512vnni", ..."""
    _, _, listed = cpu_target.target_context.codegen().magic_tuple()
    return frozenset(feature[1:] for feature in listed.split(",") if feature.startswith("+"))
