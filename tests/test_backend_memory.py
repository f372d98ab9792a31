"""Memory that arrays give back stays with the process inside `freed_memory_kept`, and an array that lives keeps its values."""
import subprocess
import sys

import numpy as np
import pytest

from minillm.backend import freed_memory_kept

FAULTS = """
import contextlib, resource, sys
import numpy as np
from minillm.backend import freed_memory_kept
with freed_memory_kept() if sys.argv[1] == "kept" else contextlib.nullcontext():
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        arrays = [np.ones(2**18, np.float32) for _ in range(40)]       # 40 MB, of which none has a piece of its own
        del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_pages_are_used_again():
    kept, handed_out = (int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
                        for how in ("kept", "not"))
    assert kept < 100 or kept >= handed_out      # 10,240 pages of 4 KB; where there is no glibc, both are the same
    assert kept <= handed_out


def test_arrays_that_live_keep_their_values():
    with freed_memory_kept():
        kept = [np.full(50_000, i, np.float32) for i in range(20)]
        for _ in range(20):
            np.full(50_000, -1, np.float32)
    assert all((a == i).all() for i, a in enumerate(kept))
    with pytest.raises(ZeroDivisionError), freed_memory_kept():
        raise ZeroDivisionError
