"""What this machine could do at best: operations on registers alone, and bytes from memory."""
import numpy as np

from minillm import kernels
from minillm.bench import peers
from minillm.bench.measure import Call, interleaved


def peaks(threads: int, seconds: float = 0.5, turns: int = 20_000) -> dict[str, float]:
    """Operations a second by type, for the types that the processor has an instruction for; {} where kernels are off."""
    if not kernels.enabled():
        return {}
    room = kernels.load("roofline")
    with peers.ours_on(threads):
        taken = interleaved([Call(lambda name=name: room.work(name, turns)) for name in room.LOOPS], seconds)
    return {name: room.work(name, 1) * turns / s for name, s in zip(room.LOOPS, taken, strict=True)}


def bandwidth(threads: int, seconds: float = 0.5, values: int = 2**24) -> float | None:
    """Bytes a second that are read and written in out = y + 3 x, in three arrays of 64 MB; None where kernels are off."""
    if not kernels.enabled():
        return None
    x, y, out = (np.ones(values, np.float32) for _ in range(3))
    with peers.ours_on(threads):
        [taken] = interleaved([Call(lambda: kernels.load("roofline").triad(x, y, out))], seconds)
    return 3 * x.nbytes / taken
