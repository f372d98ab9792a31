"""What the machine offers: the array module that an array belongs to, and cores. The only file that knows of more than NumPy."""
import math
import os
import sys
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
