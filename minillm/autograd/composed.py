"""Composed twins: ops that are one fused rule, built from smaller rules instead, so that what lies between them is rounded too."""
from minillm.autograd.rules.products import visible
from minillm.backend import array_module


def attention(ops, q, k, v, mask=None, *, heads, causal=True):
    """Attention from matmul and softmax: the scores and the probabilities (B,H,Tq,Tk) are tensors, each rounded and kept."""
    B, Tq, C = q.shape
    Tk, D = k.shape[1], C // heads

    def split(x, T):
        return ops.transpose(ops.reshape(x, shape=(B, T, heads, D)), axes=(0, 2, 1, 3))           # (B,H,T,D)

    keys = ops.transpose(split(k, Tk), axes=(0, 1, 3, 2))                                          # (B,H,D,Tk)
    scores = ops.mul(ops.matmul(split(q, Tq), keys), D**-0.5)                                      # (B,H,Tq,Tk)
    p = ops.softmax(scores, visible(array_module(q.data), Tq, Tk, mask, causal))
    mixed = ops.transpose(ops.matmul(p, split(v, Tk)), axes=(0, 2, 1, 3))                          # (B,Tq,H,D)
    return ops.reshape(mixed, shape=(B, Tq, C))


COMPOSED = {"attention": attention}
