"""What the machine offers: the array module that an array belongs to, and cores. The only file that knows of more than NumPy."""
import contextlib
import ctypes
import math
import os
import sys
from collections.abc import Iterator
from types import ModuleType

import numpy as np


def array_module(x) -> ModuleType:
    """numpy, or the module that x comes from (cupy), from the array itself: there is no global switch."""
    return np if isinstance(x, np.ndarray | np.generic) else sys.modules[type(x).__module__.partition(".")[0]]


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> float:
    """Bytes of main memory; infinity where the system does not say."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3          # glibc's malloc.h
OWN_PIECE = 2**25                        # bytes from which an array has its own piece of memory; glibc allows no more


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Inside, memory that arrays give back stays with the process for the next ones, in glibc; elsewhere nothing changes.

    Otherwise every training step has its memory handed out anew, page by page, each of them a fault and 4 KB of zeros. No array
    that lives is written to: what is free is for the allocator to give. In the end it goes back to the system, and glibc's
    thresholds are set to the ends of the range in which it would adjust them.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(M_MMAP_THRESHOLD, OWN_PIECE)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(M_TRIM_THRESHOLD, 2 * OWN_PIECE)
        libc.malloc_trim(0)
