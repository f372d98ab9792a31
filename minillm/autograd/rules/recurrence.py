"""The LSTM as one op: a whole sequence in, all hidden states out, so that 40 steps are one node of the graph and not 600.

Hochreiter and Schmidhuber 1997, with the forget gates of Gers et al. 2000. Rows of the weights come in the order i, f, g, o
(input, forget, candidate, output), as in PyTorch and Keras, with one bias:

    i, f, o = sigmoid(x W^T + h R^T + b)        g = tanh(x W^T + h R^T + b)        c' = f c + i g        h' = o tanh(c')

The state, h and c, is in the compute type from the first step to the last. Under a float16 recipe x and the weights are halves and
each hidden state is rounded once, where it leaves the op; the next step reads it as it was before. A cell that was rounded at each
step would lose what comes in below 1/2048 of it, as any sum does that is kept in float16.

Kept for the vjp: gates, cells and hidden states, 24 H bytes a token in float32. Gates could be made again from the rest, for 16 H
bytes less, but that takes another product as large as the forward pass's and another 4 H tanh a token.
"""
from minillm.autograd.rule import rule
from minillm.autograd.rules.products import FLOAT32_PRODUCTS


def slopes(xp, H, dtype):
    """sigmoid(s) is (1 + tanh(s / 2)) / 2, which never overflows: 1/2 for the gates i, f and o, and 1 for g, a plain tanh. (4H,)"""
    half, one = xp.full(H, 0.5, dtype), xp.ones(H, dtype)
    return xp.concatenate([half, half, one, half])


def where_seen(xp, mask, t, new, old):
    """What is new for sequences that have a token at t, what was there for the others."""
    return new if mask is None else xp.where(mask[:, t, None], new, old)


@rule(wide=("bias",), plain=("mask",))
def lstm(xp, x, weight, recurrent, bias=None, mask=None, *, products=FLOAT32_PRODUCTS, key=0):
    # (B,T,C), (4H,C), (4H,H), (4H,), mask (B,T) -> (B,T,H); where the mask is False the state passes unchanged
    (B, T, C), H = x.shape, recurrent.shape[1]
    sums = products.forward(xp, x.reshape(-1, C), weight.T, key).reshape(B, T, 4 * H)
    sums = sums if bias is None else sums + bias
    gates, cells, hidden = (xp.zeros_like(sums[:, :, :n]) for n in (4 * H, H, H))
    h = c = xp.zeros((B, H), x.dtype)
    slope = slopes(xp, H, x.dtype)
    for t in range(T):
        a = sums[:, t] + products.forward(xp, h, recurrent.T, key ^ (t + 1))  # (B,4H)
        gates[:, t] = a = xp.tanh(a * slope) * slope + (1 - slope)
        i, f, g, o = (a[:, n * H:(n + 1) * H] for n in range(4))
        c_new = f * c + i * g
        h = where_seen(xp, mask, t, o * xp.tanh(c_new), h)
        c = where_seen(xp, mask, t, c_new, c)
        cells[:, t], hidden[:, t] = c, h
    return hidden, {"gates": gates, "cells": cells, "hidden": hidden}


def before(xp, states):
    """What each step began with: zeros, then the states less the last."""
    return xp.concatenate([xp.zeros_like(states[:, :1]), states[:, :-1]], 1)[:, :states.shape[1]]


@lstm.vjp
def _(xp, grad, x, weight, recurrent, bias_shape, gates, cells, hidden, mask, *, products, key):
    (B, T, C), H = x.shape, recurrent.shape[1]
    i, f, g, o = (gates[:, :, n * H:(n + 1) * H] for n in range(4))
    tanh_c, c_before = xp.tanh(cells), before(xp, cells)
    # the sums' cotangents are dc times the first three and dh times the last; dc gets dh times `through`
    by_dc = xp.concatenate([g * i * (1 - i), c_before * f * (1 - f), i * (1 - g * g)], 2).reshape(B, T, 3, H)
    by_dh, through = tanh_c * o * (1 - o), o * (1 - tanh_c * tanh_c)
    sums = xp.zeros_like(gates).reshape(B, T, 4, H)
    dh = dc = xp.zeros((B, H), x.dtype)
    for t in reversed(range(T)):
        dh = dh + grad[:, t]
        dc_new = dc + dh * through[:, t]
        d = xp.concatenate([dc_new[:, None] * by_dc[:, t], (dh * by_dh[:, t])[:, None]], 1).reshape(B, 4 * H)
        d = where_seen(xp, mask, t, d, 0)
        sums[:, t] = d.reshape(B, 4, H)
        dh = where_seen(xp, mask, t, products.input_gradient(xp, d, recurrent, key ^ (t + 1)), dh)
        dc = where_seen(xp, mask, t, dc_new * f[:, t], dc)
    rows = sums.reshape(B * T, 4 * H)
    dx = products.input_gradient(xp, rows, weight, key).reshape(x.shape)
    dw = products.weight_gradient(xp, rows.T, x.reshape(-1, C), key)
    dr = products.weight_gradient(xp, rows.T, before(xp, hidden).reshape(-1, H), key ^ 1)
    return dx, dw, dr, rows.sum(0, dtype=rows.dtype) if bias_shape else None, None
