"""What the program says when it is given something that it cannot work with."""
import difflib
from collections.abc import Iterable


class MiniLLMError(Exception):
    """One clear line: what was wrong, with which value, and what to do. The command line prints it and exits with 2."""


class MixedFormats(MiniLLMError, TypeError):
    """Tensors of different formats met in one op."""


class NotFinite(MiniLLMError, ArithmeticError):
    """A value became infinite or NaN where training cannot go on."""


def unknown(kind: str, value: str, known: Iterable[str]) -> MiniLLMError:
    """The error for a name that does not exist, with the nearest one that does."""
    known = sorted(known)
    lower = {name.lower(): name for name in known}
    near = [lower[name] for name in difflib.get_close_matches(value.lower(), lower, 1, 0.4)]
    if near and len(known) > 20:             # a list that nobody reads
        return MiniLLMError(f"unknown {kind} {value!r}: did you mean {near[0]!r}?")
    meant = f"did you mean {near[0]!r}? " if near else ""
    return MiniLLMError(f"unknown {kind} {value!r}: {meant}known are {', '.join(known) or 'none'}")
