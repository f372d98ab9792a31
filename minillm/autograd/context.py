"""What travels with every op besides its arrays: where it stands, how it rounds, which random bits it draws, whether it records.

Every op has an address (scope, op, number), and every random bit a key that is a pure function of (seed, step, micro-batch,
address, phase). So bits do not depend on threads, order, watchers or resuming, and any step can be run again.
"""
import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from minillm.formats import Format
from minillm.rounding import round_to


class _Here(threading.local):
    place = ""                               # each thread begins outside of all scopes


_here = _Here()


class scope:
    """Name a place: `with scope("mlp"):` puts it into the address of ops inside, within the scopes around it.

    An empty name adds nothing. A model enters 60 a step: a class with a thread's attribute takes 1 us, a context variable 7.
    """

    __slots__ = ("around", "name")

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        self.around = around = _here.place
        _here.place = f"{around}.{self.name}" if around and self.name else around or self.name

    def __exit__(self, *error) -> None:
        _here.place = self.around


def current_scope() -> str:
    """The names of the scopes around, outermost first, with dots between: "block2.mlp.up"."""
    return _here.place


class Address(NamedTuple):
    """Where an op stands: the scope, the op's name, and the how-manieth op of that name in that scope since `begin`."""

    scope: str
    op: str
    number: int

    def __str__(self) -> str:
        number = f"#{self.number}" if self.number else ""
        return f"{self.scope}/{self.op}{number}" if self.scope else f"{self.op}{number}"


@dataclass
class Context:
    """Rounding of each direction, seed, step, micro-batch, whether to record, and what is counted anew in each forward pass."""

    seed: int = 0
    forward: str = "nearest_even"
    backward: str = "nearest_even"
    cotangents: Format | None = None         # None: a cotangent has the format of its tensor
    record: bool = True
    step: int = 0                            # counts attempts, so that a step after a skipped one draws new bits
    micro: int = 0
    numbers: dict = field(default_factory=dict)
    leaf_casts: dict = field(default_factory=dict)       # a parameter is cast or quantized once a forward pass, however often used
    keeps_casts: bool = False                # inside `unchanged`: once for all passes

    def begin(self, step: int, micro: int = 0) -> None:
        """Open a forward pass: ops are numbered from 0 again and parameters are cast again."""
        self.step, self.micro = step, micro
        self.numbers.clear()
        if not self.keeps_casts:
            self.leaf_casts.clear()

    @contextlib.contextmanager
    def no_record(self) -> Iterator[None]:
        """For evaluation, sampling and teachers: ops inside keep nothing for a backward pass, and dropout is off."""
        before, self.record = self.record, False
        try:
            yield
        finally:
            self.record = before
            self.leaf_casts.clear()          # a cast made without recording must not stand in for one that has to be recorded

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """no_record, and the caller's word that no weight changes inside: each is cast once for all forward passes there."""
        before, self.keeps_casts = self.keeps_casts, True
        self.leaf_casts.clear()
        try:
            with self.no_record():
                yield
        finally:
            self.keeps_casts = before

    def once(self, x, how, make: Callable):
        """What `make()` makes of a parameter x in this forward pass, made once for each `how`; anew for what is no parameter.

        An update gives the parameter another array, and so another copy.
        """
        if not x.name:
            return make()
        at = (id(x), id(x.data), how)
        held = self.leaf_casts.get(at)
        if held is None:
            held = self.leaf_casts[at] = (x, x.data), make()                 # both are held, so that no other can take their ids
        return held[1]

    def address(self, op: str) -> Address:
        """The address of the next op of this name here; calling it counts."""
        at = _here.place, op
        number = self.numbers[at] = self.numbers.get(at, -1) + 1
        return Address(*at, number)

    def key(self, address: Address, phase: str) -> int:
        """64 bits for the random numbers of one op in one phase."""
        words = repr((int(self.seed), int(self.step), int(self.micro), tuple(address), phase)).encode()
        return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")

    def cotangent_of(self, format: Format) -> Format:
        """The format of the cotangent of a tensor in this format."""
        return format if self.cotangents is None or format.bits >= 32 else self.cotangents

    def round(self, exact, format: Format, phase: str, address: Address):
        """Round a result (phase "forward") or a cotangent ("backward") the way this context says; itself if nothing is to round."""
        if exact.dtype == format.storage and not format.simulated:
            return exact
        mode = self.forward if phase == "forward" else self.backward
        return round_to(exact, format, mode, self.key(address, phase) if mode == "stochastic" else None)


PLAIN = Context()       # for ops outside a model: x + y, x @ w, x.to(FLOAT16); nearest even, nothing else to choose

