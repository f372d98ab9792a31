"""Which array module an array belongs to; the only file that knows there is more than NumPy."""
import sys
from types import ModuleType

import numpy as np


def array_module(x) -> ModuleType:
    """numpy, or the module that x comes from (cupy), from the array itself: there is no global switch."""
    return np if isinstance(x, np.ndarray | np.generic) else sys.modules[type(x).__module__.partition(".")[0]]
