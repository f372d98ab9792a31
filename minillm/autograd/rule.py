"""What a rule is: the forward function of an op and its vjp, next to each other in a table."""
import inspect
from collections.abc import Callable

from minillm.errors import MiniLLMError


class Rule:
    """One op.

    forward(xp, *inputs, *, static...) -> y, or (y, extras): a dict of what it already knows and the vjp can use.
    vjp(xp, g, ...) -> a cotangent for each input, or None. It names what it reads: inputs, the shape of an input as x_shape,
    all shapes as `shapes`, the output as y, extras, static arguments, the key that forward was given, and `needs`: for each
    input, whether anybody wants its cotangent. *Only what it names is kept*, in its own format.

    A rule knows arrays and no formats; `xp` is the array module, so that the same rule runs in NumPy, on CuPy and in float64.
    `wide` names the inputs that may be wider than the rest (bias, gain, shift: float32 beside float16), `plain` those that
    are plain arrays and no tensors (ids, targets, masks).
    """

    def __init__(self, forward: Callable, wide: tuple[str, ...] = (), plain: tuple[str, ...] = ()):
        spec = inspect.getfullargspec(forward)
        self.forward, self.name = forward, forward.__name__.rstrip("_")
        self.wide, self.plain = frozenset(wide), frozenset(plain)
        self.inputs, self.parts = tuple(spec.args[1:]), spec.varargs
        self.defaults = dict(spec.kwonlydefaults or {})
        self.static = frozenset(spec.kwonlyargs)
        self.takes_key = "key" in spec.kwonlyargs
        self.backward, self.reads = None, frozenset()
        self.reads_inputs = self.reads_shapes = self.reads_static = self.reads_more = ()
        if self.name in RULES:
            raise MiniLLMError(f"there is a rule {self.name!r} already: give this one another name")
        RULES[self.name] = self

    def vjp(self, backward: Callable) -> None:
        """Decorator for the backward half."""
        spec = inspect.getfullargspec(backward)
        self.backward, self.reads = backward, frozenset(spec.args[2:]) | frozenset(spec.kwonlyargs)
        self.reads_inputs = tuple((x, i) for i, x in enumerate(self.inputs) if x in self.reads)
        self.reads_shapes = tuple((f"{x}_shape", i) for i, x in enumerate(self.inputs) if f"{x}_shape" in self.reads)
        self.reads_static = tuple(self.reads & self.static)
        self.reads_more = tuple(self.reads - self.static - {name for name, _ in self.reads_inputs + self.reads_shapes})

    def names(self, count: int) -> tuple[str, ...]:
        """The names of `count` inputs; parts of a variadic op share one name. MiniLLMError for more than the op takes."""
        if count > len(self.inputs) and not self.parts:
            raise MiniLLMError(f"{self.name} takes {', '.join(self.inputs)}, not {count} inputs: give its options by name")
        return (self.parts,) * count if self.parts else self.inputs

    def __repr__(self) -> str:
        return f"rule {self.name}"


RULES: dict[str, Rule] = {}


def rule(forward: Callable | None = None, *, wide: tuple[str, ...] = (), plain: tuple[str, ...] = ()) -> Callable:
    """Decorator that puts a forward function into the table; see Rule for `wide` and `plain`."""
    return Rule(forward, wide, plain) if forward else lambda f: Rule(f, wide, plain)
