"""Tensors from a file that PyTorch wrote before its version 1.6, read without PyTorch and without running anything.

Such a file is five pickles and then raw numbers, and Python's own reader of pickles calls whatever a file names. This one cannot:
`pickletools.genops` only cuts a pickle into opcodes and their arguments, and the few opcodes that weights need move plain values
on a stack, below. A name to call is compared with a short list, and what it stands for is done here: an ordered dictionary
becomes a dict, a tensor a view of its numbers, within bounds that are checked. Everything else ends the reading with one line.
"""
import io
import math
import pickletools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minillm.errors import MiniLLMError

MAGIC = 0x1950A86A20F9469CFC6C
DICTIONARY, TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
NUMBERS = {"torch FloatStorage": np.float32, "torch HalfStorage": np.float16, "torch LongStorage": np.int64}
MARK = object()


class Storage(NamedTuple):
    """Numbers that follow behind the pickles under a key."""

    key: str
    type: str
    count: int


class View(NamedTuple):
    """A tensor: where in a storage it begins, its shape, and the step along each axis, in numbers."""

    storage: Storage
    start: int
    shape: tuple
    steps: tuple


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file by name. MiniLLMError for a file of another kind, and for one that asks for more than tensors."""
    file = io.BytesIO(path.read_bytes())
    try:
        if read_value(file) != MAGIC:
            raise ValueError("its first number is another")
        read_value(file), read_value(file)                   # version of the protocol, sizes of types
        tensors, keys = read_value(file), read_value(file)
        storages = {view.storage.key: view.storage for view in tensors.values()}
        numbers = {key: read_numbers(file, storages[text(key)]) for key in keys}
        return {name: array_of(view, numbers[view.storage.key]) for name, view in tensors.items()}
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise MiniLLMError(f"{path} cannot be read as weights that PyTorch wrote before version 1.6 ({error}): "
                           "take them as a safetensors file") from error


def read_value(file: io.BytesIO):
    """What the next pickle of a file holds: numbers, texts, tuples, lists, dictionaries and views of tensors."""
    stack, memo = [], {}
    for opcode, argument, _ in pickletools.genops(file):
        match opcode.name:
            case "PROTO":
                pass
            case "STOP":
                return stack.pop()
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE":
                stack.append(argument)
            case "NONE" | "NEWFALSE" | "NEWTRUE":
                stack.append({"NONE": None, "NEWFALSE": False, "NEWTRUE": True}[opcode.name])
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                stack.append({"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}[opcode.name])
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "MARK":
                stack.append(MARK)
            case "GLOBAL":
                stack.append(known(argument))
            case name:
                combine(name, stack)


def combine(opcode: str, stack: list) -> None:
    """An opcode that makes one value of those on top of the stack. ValueError for one that weights do not need."""
    match opcode:
        case "TUPLE1" | "TUPLE2" | "TUPLE3":
            stack.append(tuple(stack.pop() for _ in range(int(opcode[-1])))[::-1])
        case "TUPLE":
            stack.append(tuple(since_mark(stack)))
        case "APPENDS":
            items = since_mark(stack)
            stack[-1].extend(items)
        case "SETITEM" | "SETITEMS":
            items = since_mark(stack) if opcode == "SETITEMS" else [stack.pop(), stack.pop()][::-1]
            stack[-1].update((text(key), value) for key, value in zip(items[::2], items[1::2], strict=True))
        case "BINPERSID":
            _, kind, key, _, count, _ = stack.pop()
            stack.append(Storage(text(key), text(kind), whole(count)))
        case "REDUCE":
            arguments, name = stack.pop(), stack.pop()
            stack.append(called(text(name), arguments))
        case "BUILD":                                        # attributes of the dictionary: its modules' versions
            stack.pop()
        case _:
            raise ValueError(f"it has the opcode {opcode}")


def since_mark(stack: list) -> list:
    """Take everything above the last mark off the stack, and the mark."""
    at = len(stack) - 1 - stack[::-1].index(MARK)
    items = stack[at + 1:]
    del stack[at:]
    return items


def known(name: str) -> str:
    """A name that weights may ask for, module and function; it stays a text."""
    if name not in (DICTIONARY, TENSOR, *NUMBERS):
        raise ValueError(f"it asks for {name[:80]!r}, which is no part of weights")
    return name


def called(name: str, arguments: tuple):
    """What the two functions would make that weights may ask for."""
    if name not in (DICTIONARY, TENSOR):
        raise ValueError(f"it calls {name[:80]!r}")
    return view_of(*arguments) if name == TENSOR else {}


def text(x) -> str:
    if not isinstance(x, str):
        raise ValueError(f"a key is of type {type(x).__name__}")
    return x


def whole(*numbers) -> int | tuple[int, ...]:
    """Sizes and places: whole numbers, none negative."""
    if not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError("a size is no whole number or negative")
    return numbers if len(numbers) != 1 else numbers[0]


def view_of(storage, start, shape, steps, *hooks) -> View:
    """A tensor inside its storage."""
    if not isinstance(storage, Storage):
        raise ValueError("a tensor has no storage")
    whole(start, *shape, *steps)
    last = start + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
    if (math.prod(shape) and last >= storage.count) or math.prod(shape) > storage.count:
        raise ValueError(f"a tensor of shape {shape} does not lie in its {storage.count} numbers")
    return View(storage, start, tuple(shape), tuple(steps))


def read_numbers(file: io.BytesIO, storage: Storage) -> np.ndarray:
    """The numbers of a storage, (count,): first how many there are, then they, lowest byte first."""
    type, count = np.dtype(NUMBERS[storage.type]), int.from_bytes(file.read(8), "little")
    data = file.read(storage.count * type.itemsize)
    if count != storage.count or len(data) != count * type.itemsize:
        raise ValueError(f"it ends inside its numbers, or has {count} where {storage.count} are meant")
    return np.frombuffer(data, type.newbyteorder("<")).astype(type)


def array_of(view: View, numbers: np.ndarray) -> np.ndarray:
    """A tensor as an array of its own."""
    steps = [step * numbers.itemsize for step in view.steps]
    return np.lib.stride_tricks.as_strided(numbers[view.start:], view.shape, steps).copy()
