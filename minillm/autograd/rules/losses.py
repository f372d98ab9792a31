"""Losses, each the mean over what it is given, accumulated in the compute type."""
from minillm.autograd.rule import rule
from minillm.errors import MiniLLMError


def check_shape(xp, loss, targets, shape):
    """NumPy would spread targets of another shape over the rows, and the loss would be of something else."""
    if xp.shape(targets) != shape:
        raise MiniLLMError(f"{loss}: the targets have shape {xp.shape(targets)}, they must have {shape}")


def check_targets(targets, counted, V):
    """Targets that count must be classes; a negative one would silently mean the last class."""
    used = targets[counted]
    if not used.size:
        raise MiniLLMError("cross_entropy: every target is the ignored one, so there is no loss to take a mean of")
    if used.min() < 0 or used.max() >= V:
        raise MiniLLMError(f"cross_entropy: targets must lie in 0 ... {V - 1}, found {used.min()} ... {used.max()}")


@rule(plain=("targets",))
def cross_entropy(xp, logits, targets, *, ignore=None):                       # (..., V), ids (...) -> the mean over rows that count
    check_shape(xp, "cross_entropy", targets, logits.shape[:-1])
    flat, targets = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    counted = xp.ones(targets.shape, bool) if ignore is None else targets != ignore
    check_targets(targets, counted, flat.shape[-1])
    top = flat.max(-1, keepdims=True)
    lse = top + xp.log(xp.exp(flat - top).sum(-1, keepdims=True, dtype=flat.dtype))
    picked = xp.take_along_axis(flat, xp.where(counted, targets, 0)[:, None], -1)
    losses = xp.where(counted[:, None], lse - picked, 0)
    return losses.sum(dtype=flat.dtype) / counted.sum(dtype=flat.dtype), {"lse": lse}


@cross_entropy.vjp
def _(xp, g, logits, targets, lse, *, ignore):
    p = xp.exp(logits.reshape(-1, logits.shape[-1]) - lse)
    targets = targets.reshape(-1)
    counted = xp.ones(targets.shape, bool) if ignore is None else targets != ignore
    p[xp.arange(len(p)), xp.where(counted, targets, 0)] -= 1
    weight = g / counted.sum(dtype=g.dtype)
    return (p * xp.where(counted, weight, 0)[:, None]).reshape(logits.shape), None


@rule(plain=("targets",))
def bce_with_logits(xp, logits, targets):                                     # targets in [0, 1], of the shape of the logits
    check_shape(xp, "bce_with_logits", targets, logits.shape)
    t = xp.asarray(targets, logits.dtype)
    return (xp.maximum(logits, 0) - logits * t + xp.log1p(xp.exp(-abs(logits)))).sum(dtype=logits.dtype) / logits.size


@bce_with_logits.vjp
def _(xp, g, logits, targets):
    z = xp.exp(-abs(logits))
    p = xp.where(logits >= 0, 1 / (1 + z), z / (1 + z))
    return g / p.size * (p - xp.asarray(targets, p.dtype)), None


@rule(plain=("targets",))
def bce(xp, p, targets):           # on probabilities: log(0) where p has rounded to 0 or 1, on purpose not clipped
    check_shape(xp, "bce", targets, p.shape)
    t = xp.asarray(targets, p.dtype)
    return -(t * xp.log(p) + (1 - t) * xp.log(1 - p)).sum(dtype=p.dtype) / p.size


@bce.vjp
def _(xp, g, p, targets):
    t = xp.asarray(targets, p.dtype)
    return g / p.size * ((1 - t) / (1 - p) - t / p), None
