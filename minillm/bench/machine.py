"""The machine that a measurement ran on: no number of a bench means anything without it."""
import datetime
import platform
import re
from pathlib import Path

import numpy as np

from minillm import kernels
from minillm._version import __version__
from minillm.backend import usable_cores
from minillm.bench import peers

# What decides how fast a kernel can be, out of the hundred features that LLVM lists.
TELLING = ("avx2", "fma", "f16c", "avxvnni", "avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512bf16", "avx512fp16",
           "amx-tile", "amx-int8", "amx-bf16", "neon", "fullfp16", "dotprod", "i8mm", "bf16", "sve")


def machine() -> dict:
    """Processor, cores, what numba compiles for, and versions, as plain data; None for what is not installed or not used."""
    blas, pool = peers.openblas(), kernels.load("pool") if kernels.enabled() else None
    return {
        "processor": processor(), "cores": usable_cores(), "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "kernels": pool is not None, "features": [f for f in TELLING if f in pool.features()] if pool else None,
        "numba_threads": pool.threads() if pool else None,
        "versions": {"minillm": __version__, "python": platform.python_version(), "numpy": np.__version__,
                     "numba": pool.version() if pool else None, "openblas": blas.get("version"),
                     "torch": peers.version("torch"), "ml_dtypes": peers.version("ml_dtypes")},
    }


def processor() -> str:
    """Its name, as the system tells it."""
    listed = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", listed.read_text("utf-8"), re.MULTILINE) if listed.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def describe(machine: dict) -> str:
    """One line of it."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if number)
    kernels = f"numba compiles for {' '.join(machine['features'])}" if machine["kernels"] else "kernels off"
    return f"{machine['date']}, {machine['processor']}, {machine['cores']} cores; {kernels}; {versions}"
