"""Codes of fewer than eight bits, one after the other in bytes: two of four bits in a byte, eight of three bits in three."""
import numpy as np

from minillm.errors import MiniLLMError
from minillm.quantization.affine import Grid


def pack(codes: np.ndarray, grid: Grid) -> np.ndarray:
    """int8 codes of any shape -> bytes (ceil(size x bits / 8),) uint8; code - lowest, the first one in the highest bits."""
    distance = (codes.astype(np.int16) - grid.lowest).astype(np.uint8).reshape(-1, 1)
    return np.packbits(np.unpackbits(distance, axis=1)[:, 8 - grid.bits:])


def unpack(packed: np.ndarray, grid: Grid, shape: tuple[int, ...]) -> np.ndarray:
    """What `pack` was given. MiniLLMError for the wrong number of bytes, and for a code that is not on the grid."""
    size = int(np.prod(shape, dtype=np.int64))
    if packed.dtype != np.uint8 or packed.shape != (-(-size * grid.bits // 8),):
        raise MiniLLMError(f"{size} codes of {grid.bits} bits are {-(-size * grid.bits // 8)} bytes, found {packed.dtype} "
                           f"{packed.shape}: the file is damaged, convert the model again")
    bits = np.unpackbits(packed, count=size * grid.bits).reshape(size, grid.bits)
    codes = np.packbits(np.pad(bits, ((0, 0), (8 - grid.bits, 0))), axis=1).reshape(shape).astype(np.int16) + grid.lowest
    if size and codes.max() > grid.highest:
        raise MiniLLMError(f"found the code {codes.max()} on a grid of {grid.lowest} ... {grid.highest}: the file is damaged, "
                           "convert the model again")
    return codes.astype(np.int8)
