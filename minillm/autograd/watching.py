"""Who wants to see roundings is told of every one; nothing is paid while nobody watches."""
import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from minillm.autograd.context import Address
from minillm.formats import Format


@dataclass(frozen=True)
class Event:
    """One rounding. phase: forward, backward, "accumulate" (trainer) or "update" (optimizer).

    `exact` holds the values before the rounding, `rounded` those after it; neither may be written to. In the forward phase
    `rule`, `inputs` and `static` are enough to run the op again, in float64 say.
    """

    phase: str
    address: Address
    exact: object
    rounded: object
    format: Format
    rule: object = None
    inputs: tuple = ()
    static: dict | None = None


_observers: ContextVar[tuple[Callable[[Event], None], ...]] = ContextVar("observers", default=())


def watched() -> bool:
    """Whether anybody watches."""
    return bool(_observers.get())


@contextlib.contextmanager
def watch(observer: Callable[[Event], None]) -> Iterator[None]:
    """Call observer(event) for every rounding inside the with block, in the order in which they happen."""
    token = _observers.set((*_observers.get(), observer))
    try:
        yield
    finally:
        _observers.reset(token)


def tell(phase, address, exact, rounded, format, rule=None, inputs=(), static=None) -> None:
    """Show one rounding to everybody who watches."""
    event = Event(phase, address, exact, rounded, format, rule, inputs, static)
    for observer in _observers.get():
        observer(event)
