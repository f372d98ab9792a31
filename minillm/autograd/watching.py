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
    `rule`, `inputs` and `static` are enough to run the op again, in float64 say. `before` is the weight that an update changes.
    """

    phase: str
    address: Address
    exact: object
    rounded: object
    format: Format
    rule: object = None
    inputs: tuple = ()
    static: dict | None = None
    before: object = None


_observers: ContextVar[tuple[Callable[[Event], None], ...]] = ContextVar("observers", default=())


def watched() -> bool:
    """Whether anybody watches."""
    return bool(_observers.get())


@contextlib.contextmanager
def watch(observer: Callable[[Event], None], part: object = "") -> Iterator[None]:
    """Call observer(event) for every rounding inside the with block, in the order in which they happen.

    part: only those in a part of the model: a module (model.blocks[2].mlp) or its place ("block2.mlp"), gradients and updates of
    its parameters included. Addresses are compared, so that a second model with the same names inside is seen too.
    """
    token = _observers.set((*_observers.get(), only(observer, part if isinstance(part, str) else part.place)))
    try:
        yield
    finally:
        _observers.reset(token)


def only(observer: Callable[[Event], None], place: str) -> Callable[[Event], None]:
    """The observer, told only of addresses in a place and in what lies below it; "" is everywhere."""
    def there(event):
        if f"{event.address.scope}.".startswith(f"{place}."):
            observer(event)
    return there if place else observer


def tell(phase, address, exact, rounded, format, rule=None, inputs=(), static=None, before=None) -> None:
    """Show one rounding to everybody who watches."""
    event = Event(phase, address, exact, rounded, format, rule, inputs, static, before)
    for observer in _observers.get():
        observer(event)
