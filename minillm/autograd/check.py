"""Gradient checks for rules and for any function of tensors.

Differences are taken in float64 only. In float32 a step that keeps the truncation small drowns in rounding: a correct gradient
of 0.265 was measured as 0.383 with a step of 1e-6.
"""
import numpy as np

from minillm.autograd.context import Context
from minillm.autograd.rule import Rule
from minillm.autograd.tensor import Tensor, apply, backward, tensor
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32, Format
from minillm.testing import FLOAT64, gamma

STEP = 2.0**-17                    # about the cube root of float64's eps: a difference's truncation and rounding are equally large
SLACK = 256                        # third derivatives may be 1500 times the first; functions of values about 1 stay far below
SHAKES = 8                         # directions tried to find how far a gradient moves; one alone could miss by chance


def check_gradient(op, *inputs, seed: int = 0, **static) -> list[float]:
    """Check a gradient in float64 against a central difference, along one random direction v for each input.

    With random weights u on the result y: <v, vjp(u)> must be the slope of <u, y> along v, within 256 h^2 of their size, h = 2^-17.
    op: a Rule, or a function of tensors that returns a tensor of any shape. inputs: arrays of values about 1, away from kinks;
    floating ones are differentiated, all others, and those that a rule calls plain, are handed on. static: options of op.
    Returns the share of the allowed error that each differentiated input used. MiniLLMError names the input that is off.
    """
    inputs = [x.astype(np.float64) if moves else x for x, moves in zip(inputs, differentiated(op, inputs), strict=True)]
    gradients = gradients_of(op, inputs, static, FLOAT64, seed)
    shares, size = [], projection(op, inputs, static, FLOAT64, seed, size=True)
    for i, gradient in gradients.items():
        v = np.random.default_rng([seed, i]).standard_normal(inputs[i].shape)
        above, below = (projection(op, [*inputs[:i], np.asarray(inputs[i] + step * v), *inputs[i + 1:]], static, FLOAT64, seed)
                        for step in (STEP, -STEP))
        slope = (above - below) / (2 * STEP)
        allowed = SLACK * STEP**2 * (size + np.abs(gradient * v).sum()) + FLOAT64.tiny
        along = (gradient * v).sum()
        shares.append(share(f"along a random direction its vjp gives {along:.9g}, a central difference {slope:.9g}",
                            op, i, abs(along - slope), allowed))
    return shares


def check_float32(op, *inputs, seed: int = 0, **static) -> list[float]:
    """Check gradients computed in float32 against those of the same graph in float64.

    They must be those that float64 gives for inputs and weights off by a relative gamma(n) (Higham 2002, section 1.5: mixed
    stability); n is 16 roundings and the longest sum that the arrays allow. Arguments, result, error: as for check_gradient.
    """
    inputs = [x.astype(np.float32) if moves else x for x, moves in zip(inputs, differentiated(op, inputs), strict=True)]
    off = gamma(16 + max(np.size(x) for x in inputs), FLOAT32)
    found, exact = (gradients_of(op, inputs, static, format, seed) for format in (FLOAT32, FLOAT64))
    shaken = [gradients_of(op, inputs, static, FLOAT64, seed, off, shake) for shake in range(SHAKES)]
    shares = []
    for i, gradient in exact.items():
        allowed = np.max([abs(s[i] - gradient) for s in shaken], 0) + off * abs(gradient) + FLOAT32.tiny
        shares.append(share("its gradient in float32 is not that of float64", op, i, abs(found[i] - gradient), allowed))
    return shares


def differentiated(op, inputs) -> list[bool]:
    """Which inputs are floating arrays that a gradient is taken of."""
    names = op.names(len(inputs))[:len(inputs)] if isinstance(op, Rule) else [""] * len(inputs)
    plain = op.plain if isinstance(op, Rule) else ()
    return [isinstance(x, np.ndarray | np.floating) and x.dtype.kind == "f" and n not in plain
            for n, x in zip(names, inputs, strict=True)]


def weighted(op, inputs, static, format: Format, seed: int, off: float = 0.0, shake: int = 0) -> Tensor:
    """The product u y, with y the result of op on leaves named "0", "1", ...; all that is random comes from the seeds."""
    rng = np.random.default_rng([seed, shake])
    leaves = [tensor(shaken(x, off, rng), format, name=str(i)) if moves else x
              for i, (x, moves) in enumerate(zip(inputs, differentiated(op, inputs), strict=True))]
    y = apply(op, *leaves, context=Context(), **static) if isinstance(op, Rule) else op(*leaves, **static)
    u = np.random.default_rng(seed).standard_normal(y.shape, np.float32)
    return y * tensor(shaken(u, off, rng), y.format)


def shaken(x, off, rng):
    """x, each value moved by the relative distance `off` up or down."""
    return x * (1 + off * rng.choice([-1.0, 1.0], x.shape)) if off else x


def projection(op, inputs, static, format, seed, size=False) -> float:
    """<u, y>, or the sum of |u y|, which says how large its rounding errors are."""
    terms = weighted(op, inputs, static, format, seed).data
    return float(np.abs(terms).sum() if size else terms.sum())


def gradients_of(op, inputs, static, format, seed, off=0.0, shake=0) -> dict[int, np.ndarray]:
    """Gradients of <u, y> by the number of the input, 0 for those that it does not depend on."""
    found = backward(weighted(op, inputs, static, format, seed, off, shake).sum())
    return {i: found.get(str(i), np.zeros(inputs[i].shape)) for i, moves in enumerate(differentiated(op, inputs)) if moves}


def share(what, op, i, error, allowed) -> float:
    """The largest share of what is allowed; MiniLLMError beyond it, and for NaN."""
    shares = np.ravel(error / allowed)
    if not np.all(shares <= 1):
        worst = shares.argmax()                  # a NaN, if there is one
        name = f"{op.name}, input {i} ({op.names(i + 1)[i]})" if isinstance(op, Rule) else f"input {i}"
        raise MiniLLMError(f"{name}: {what}; off by {np.ravel(error)[worst]:.3g}, allowed {np.ravel(allowed)[worst]:.3g}")
    return float(shares.max(initial=0))
