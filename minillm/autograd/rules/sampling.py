"""Ops that draw: a class at random from logits, as a row with one 1, through which a gradient still goes."""
from minillm.autograd.rule import rule
from minillm.rounding import random_bits


def softmax_of_drawn(xp, logits, temperature, key):
    """softmax((logits + noise) / temperature) over the last axis, with the noise -log(-log(u)) of Gumbel, u uniform.

    u takes the 2^23 middles of equal parts of 0 to 1, so that it is neither: the noise lies between -2.9 and 16.7.
    """
    u = ((random_bits(xp, key, logits.shape) >> xp.uint32(9)).astype(logits.dtype) + 0.5) * 2.0**-23
    drawn = (logits - xp.log(-xp.log(u))) / temperature
    p = xp.exp(drawn - drawn.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True, dtype=p.dtype)


@rule
def gumbel_sample(xp, logits, *, temperature=1.0, key=0):                     # (...,V) -> rows of a 1 and zeros, the 1 by softmax
    p = softmax_of_drawn(xp, logits, temperature, key)
    return (xp.arange(p.shape[-1]) == p.argmax(-1)[..., None]).astype(p.dtype) + 0 * p            # NaN stays NaN


@gumbel_sample.vjp
def _(xp, g, logits, *, temperature, key):       # straight through to p, which is drawn again. Jang et al., arXiv 1611.01144, 2.2
    p = softmax_of_drawn(xp, logits, temperature, key)
    return (p * (g - (g * p).sum(-1, keepdims=True, dtype=g.dtype)) / temperature,)
