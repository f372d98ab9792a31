"""The keys and values of the tokens so far: a further token needs no more than its own. As they are, or as int8 codes."""
import numpy as np

from minillm.autograd.tensor import Tensor
from minillm.backend import array_module
from minillm.errors import MiniLLMError
from minillm.formats import Format
from minillm.quantization.products import codes_of_rows
from minillm.rounding import round_to, widen


class Rows:
    """Rows (B,T,C) of a whole context, filled from the front, in the format of the first that come."""

    array: np.ndarray | None = None

    def __init__(self, context: int):
        self.context = context

    def write(self, first: int, x: Tensor) -> None:
        if self.array is None:
            B, _, C = x.shape
            self.array, self.format = array_module(x.data).zeros((B, self.context, C), x.data.dtype), x.format
        self.array[:, first:first + x.shape[1]] = x.data

    def read(self, count: int) -> Tensor:
        """The first `count`, not copied."""
        return Tensor(self.array[:, :count], self.format)

    def reorder(self, rows: np.ndarray) -> None:
        """Go on with these rows of the batch, in this order."""
        self.array = self.array[rows]

    @property
    def nbytes(self) -> int:
        return self.array.nbytes


class Int8Rows:
    """The same as int8 codes (B,T,C), half to even; each head of each token has a scale of its own, max|x| / 127: (B,T,H) float32.

    With heads of D channels it takes 1/4 + 1/D of float32's bytes.
    """

    codes: np.ndarray | None = None

    def __init__(self, context: int, heads: int):
        self.context, self.heads = context, heads

    def write(self, first: int, x: Tensor) -> None:
        (B, new, C), H = x.shape, self.heads
        if self.codes is None:
            self.codes, self.scale = np.zeros((B, self.context, C), np.int8), np.zeros((B, self.context, H), np.float32)
            self.format: Format = x.format
        codes, scale = codes_of_rows(widen(x.data, np.float32).reshape(B, new, H, C // H))
        self.codes[:, first:first + new], self.scale[:, first:first + new] = codes.reshape(B, new, C), scale[..., 0]

    def read(self, count: int) -> Tensor:
        """What the first `count` stand for, rounded into the format of what was written."""
        codes, scale = self.codes[:, :count], self.scale[:, :count, :, None]
        values = codes.reshape(*scale.shape[:-1], -1) * scale                  # (B,count,H,D) f32
        return Tensor(round_to(values.reshape(codes.shape), self.format), self.format)

    def reorder(self, rows: np.ndarray) -> None:
        self.codes, self.scale = self.codes[rows], self.scale[rows]

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scale.nbytes


class Cache:
    """Room for the tokens of a context, of which `count` are there."""

    def __init__(self, context: int):
        self.context, self.count = context, 0

    def claim(self, new: int) -> int:
        """Room for `new` more: where the first of them goes. MiniLLMError where there is none."""
        if self.count + new > self.context:
            raise MiniLLMError(f"{self.count + new} tokens do not fit into a cache of {self.context}: begin a new one")
        self.count += new
        return self.count - new


class KeyValueCache(Cache):
    """The keys and values of the tokens so far, for one attention layer. With `int8_heads`, their number, as int8 codes."""

    def __init__(self, context: int, int8_heads: int = 0):
        super().__init__(context)
        self.keys, self.values = (Int8Rows(context, int8_heads) if int8_heads else Rows(context) for _ in range(2))

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the keys and values (B,new,C) of new tokens behind those there are; returns all, (B, count, C)."""
        if k.needs_gradient or v.needs_gradient:
            raise MiniLLMError("a cache is written in place, where no gradient can follow: call the model inside no_record()")
        first = self.claim(k.shape[1])
        self.keys.write(first, k)
        self.values.write(first, v)
        return self.keys.read(self.count), self.values.read(self.count)

    def reorder(self, rows: np.ndarray) -> None:
        """Go on with these rows of the batch, in this order: those that a beam search keeps."""
        self.keys.reorder(rows)
        self.values.reorder(rows)

    @property
    def nbytes(self) -> int:
        """What it takes in memory, once it has been written to."""
        return self.keys.nbytes + self.values.nbytes
