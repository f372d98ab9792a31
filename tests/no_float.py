"""An array in whose sight no float may be: every function of NumPy that it goes through is told to raise on one."""
import numpy as np

from minillm.nn.module import Module


class FloatFound(AssertionError):
    """A float went into an operation, or came out of one."""


def is_float(x) -> bool:
    if isinstance(x, tuple | list):
        return any(is_float(part) for part in x)
    if isinstance(x, type | np.dtype):
        return np.issubdtype(x, np.inexact)
    return isinstance(x, float | complex | np.inexact) or (isinstance(x, np.ndarray) and x.dtype.kind in "fc")


def refuse(what: str, *values) -> None:
    if is_float(values):
        raise FloatFound(f"{what}: a float")


class NoFloat(np.ndarray):
    """Integers. What is computed from one is one again, and FloatFound is raised where it would hold floats."""

    def __array_finalize__(self, origin):
        refuse("a new array", self)

    def view(self, *types, **options):
        refuse("a view", *types, *options.values())
        return super().view(*types, **options)

    def __getitem__(self, at):
        return guarded(super().__getitem__(at))

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        refuse(f"into {ufunc.__name__}", *inputs, *options.values())
        result = getattr(ufunc, method)(*(plain(x) for x in inputs), **{name: plain(x) for name, x in options.items()})
        refuse(f"from {ufunc.__name__}", result)
        return guarded(result)

    def __array_function__(self, function, types, inputs, options):
        refuse(f"into {function.__name__}", *inputs, *options.values())
        return guarded(super().__array_function__(function, types, inputs, options))


def plain(x):
    if isinstance(x, tuple):
        return tuple(plain(part) for part in x)
    return np.asarray(x) if isinstance(x, NoFloat) else x


def guarded(x):
    """Integers as a NoFloat."""
    if isinstance(x, tuple):
        return tuple(guarded(part) for part in x)
    return np.asarray(x).view(NoFloat) if isinstance(x, np.ndarray | np.generic) else x


def guard(module: Module) -> Module:
    """Put a NoFloat in place of every array below a module that holds integers."""
    for _, owner, key, value in list(module.walk()):
        if value.dtype.kind in "iu":
            setattr(owner, key, guarded(value))
    return module
