"""Compiled loops that stand in for NumPy where a profile asks for them; `MINILLM_KERNELS=off` switches all of them off.

Nothing here imports numba until `load` is called. Machine code is cached in a folder outside the package whose name is a hash
of every source in this room, so that an edited kernel can never be answered with yesterday's code.
"""
import functools
import hashlib
import importlib
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np


def enabled() -> bool:
    """Whether kernels may be used: the environment variable MINILLM_KERNELS, "on" unless it says "off"."""
    return os.environ.get("MINILLM_KERNELS", "on").lower() not in ("off", "0", "no")


def cache_folder() -> Path:
    """Where compiled kernels are kept: MINILLM_CACHE, else the user's cache folder, else a temporary one."""
    home = os.environ.get("MINILLM_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    sources = b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py")))
    folder = Path(home) / "minillm" / f"kernels-{hashlib.blake2b(sources, digest_size=8).hexdigest()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="minillm-kernels-"))


def must_compile(room: str = "") -> bool:
    """Whether kernels, or those of one module, will be compiled when they are first called, which takes half a minute once."""
    return enabled() and not any(cache_folder().rglob(f"{room}*.nbi"))


@functools.cache
def load(room: str) -> ModuleType:
    """The module of this name in this room, imported on first use with its machine code cached."""
    name = f"{__name__}.{room}"
    if name in sys.modules:
        return sys.modules[name]
    from numba import config  # numba costs half a second: only where a kernel is really called
    before, config.CACHE_DIR = config.CACHE_DIR, str(cache_folder())
    try:
        return importlib.import_module(name)
    finally:
        config.CACHE_DIR = before                # the user's own numba functions keep their own cache


def product(a, b):
    """A @ b, (..., M,K) (..., K,N): compiled where both are NumPy's float32, otherwise as their array module has it.

    The rules call it, which know no array module; here is the lowest place from which a kernel can be reached. In one program
    there may be two pools of threads, BLAS's and numba's, that wait for work by spinning: a step that used both took 3 to 5 times
    as long. So what is not a rule of its own, products of other roles or recipes, goes the same way.
    """
    ours = enabled() and type(a) is np.ndarray and type(b) is np.ndarray and a.dtype == b.dtype == np.float32
    return load("matmul").matmul(a, b) if ours else a @ b
