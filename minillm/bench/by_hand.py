"""A GPT's training step as plain calls of kernels on arrays: what the bookkeeping of autograd is measured against.

The same arithmetic in the same order as the model under the recipes float32 and float16-mixed: loss and gradients have the same
bits. Nothing here checks a format, records an op or looks anything up.
"""
import numpy as np

from minillm import kernels
from minillm.models.gpt import GPT

WIDE, EPS = np.float32, 1e-5


class ByHand:
    """The step of one model without dropout, on arrays of its own. low: np.float32, or np.float16 for mixed precision."""

    def __init__(self, model: GPT, low: type):
        self.shape, self.low = model.shape, low
        self.parameters = {p.name: p.data for p in model.parameters()}                       # float32, the master weights
        self.m, self.v = ({name: np.zeros_like(p) for name, p in self.parameters.items()} for _ in range(2))
        for room in ("products", "rowwise", "elementwise", "columns", "attention", "losses", "embedding", "optimizers"):
            setattr(self, room, kernels.load(room))
        convert = kernels.load("rounding")
        self.narrow, self.widen = (convert.to_float16, convert.to_float32) if low is np.float16 else (lambda x: x,) * 2
        self.steps = 0

    def __call__(self, ids: np.ndarray, targets: np.ndarray, lr: float = 1e-3, scale: float = 1.0, clip: float = 1.0) -> float:
        """Forward, backward, norm, clipped AdamW; the loss of ids and targets (B,T)."""
        loss = self.forward(ids, targets)
        gradients = self.backward(scale)
        norm = float(np.sqrt(self.optimizers.sum_of_squares(list(gradients.values()), WIDE(1 / scale))))
        self.update(gradients, lr, min(1.0, clip / (norm + 1e-6)) / scale)
        return float(loss)

    def forward(self, ids: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The loss, () f32. What the backward pass reads is kept."""
        p, rows = self.parameters, np.arange(ids.shape[1], dtype=np.int32)
        self.ids, self.targets, self.rows = ids, targets, rows
        self.weights = {name: self.narrow(w) for name, w in p.items() if w.ndim == 2 and name != "positions.weight"}
        tokens = self.embedding.embedding(p["tokens.weight"], ids, out=self.low)             # (B,T,C)
        positions = self.embedding.embedding(p["positions.weight"], rows, out=self.low)      # (T,C)
        x, self.blocks = self.columns.add(tokens, positions, out=self.low), []
        for i in range(self.shape.layers):
            x = self.block(x, f"block{i}")
        self.last = x, *self.normed(x, "norm")
        self.logits = self.widen(self.products.linear(self.last[1], self.weights["tokens.weight"], None, out=self.low))
        loss, extras = self.losses.cross_entropy(self.logits, targets, out=WIDE)
        self.lse = extras["lse"]
        return loss

    def normed(self, x, place):
        gain, shift = self.parameters[f"{place}.gain"], self.parameters.get(f"{place}.shift")
        y, extras = self.rowwise.layer_norm(x, gain, shift, eps=EPS, out=self.low)
        return y, extras["mean"], extras["rstd"]

    def linear(self, x, place):
        return self.products.linear(x, self.weights[f"{place}.weight"], self.parameters.get(f"{place}.bias"), out=self.low)

    def block(self, x, place):
        """One block (B,T,C) -> (B,T,C); its arrays are kept."""
        first = self.normed(x, f"{place}.norm1")
        q, k, v = (self.linear(first[0], f"{place}.attention.{part}") for part in ("query", "key", "value"))
        mixed, sums = self.attention.attention(q, k, v, None, heads=self.shape.heads, out=self.low)
        middle = self.elementwise.add(x, self.linear(mixed, f"{place}.attention.out"), out=self.low)
        second = self.normed(middle, f"{place}.norm2")
        up = self.linear(second[0], f"{place}.mlp.up")
        active = self.elementwise.gelu(up, out=self.low)
        self.blocks.append((x, first, q, k, v, mixed, sums, middle, second, up, active))
        return self.elementwise.add(middle, self.linear(active, f"{place}.mlp.down"), out=self.low)

    def backward(self, scale: float = 1.0) -> dict[str, np.ndarray]:
        """Gradients of loss * scale by name, float32."""
        self.gradients = {}
        dlogits, _ = self.losses.cross_entropy_vjp(WIDE(scale), self.logits, self.targets, self.lse, ignore=None, out=(WIDE, WIDE))
        x, y, mean, rstd = self.last
        weight = self.weights["tokens.weight"]
        dy, dhead, _ = self.products.linear_vjp(self.narrow(dlogits), y, weight, None, out=(self.low, self.low, WIDE))
        g = self.normed_vjp(dy, x, mean, rstd, "norm", self.low)
        for i in reversed(range(self.shape.layers)):
            g = self.block_vjp(g, f"block{i}", *self.blocks.pop())
        of_tokens, of_positions = self.columns.add_vjp(g, g.shape, g.shape[1:], out=(self.low, self.low))
        table, _ = self.embedding.embedding_vjp(of_tokens, weight.shape, self.ids)
        self.gradients["tokens.weight"] = self.widen(dhead) + table
        self.gradients["positions.weight"], _ = self.embedding.embedding_vjp(
            of_positions, self.parameters["positions.weight"].shape, self.rows)
        return {name: self.gradients[name] for name in self.parameters}

    def normed_vjp(self, g, x, mean, rstd, place, out):
        dx, dgain, dshift = self.rowwise.layer_norm_vjp(g, x, self.parameters[f"{place}.gain"], mean, rstd, out=(out, WIDE, WIDE))
        self.gradients[f"{place}.gain"] = dgain
        if f"{place}.shift" in self.parameters:
            self.gradients[f"{place}.shift"] = dshift
        return dx

    def linear_vjp(self, g, x, place, out):
        bias = self.parameters.get(f"{place}.bias")
        dx, dweight, dbias = self.products.linear_vjp(g, x, self.weights[f"{place}.weight"], bias if bias is None else bias.shape,
                                                      out=(out, self.low, WIDE))
        self.gradients[f"{place}.weight"] = self.widen(dweight)
        if bias is not None:
            self.gradients[f"{place}.bias"] = dbias
        return dx

    def block_vjp(self, g, place, x, first, q, k, v, mixed, sums, middle, second, up, active):
        """The cotangent of a block's input; where the residual stream splits, two meet in float32 and are rounded once."""
        low, add = self.low, self.elementwise.add
        dactive = self.linear_vjp(g, active, f"{place}.mlp.down", low)
        dup, = self.elementwise.gelu_vjp(dactive, up, out=(low,))
        dsecond = self.linear_vjp(dup, second[0], f"{place}.mlp.up", low)
        g = add(g, self.normed_vjp(dsecond, middle, *second[1:], f"{place}.norm2", WIDE), out=low)
        dmixed = self.linear_vjp(g, mixed, f"{place}.attention.out", low)
        dq, dk, dv, _ = self.attention.attention_vjp(dmixed, q, k, v, **sums, heads=self.shape.heads, out=(low, low, low, WIDE))
        shares = (self.linear_vjp(d, first[0], f"{place}.attention.{part}", WIDE)
                  for d, part in ((dq, "query"), (dk, "key"), (dv, "value")))
        dfirst = add(add(next(shares), next(shares), out=WIDE), next(shares), out=low)
        return add(g, self.normed_vjp(dfirst, x, *first[1:], f"{place}.norm1", WIDE), out=low)

    def update(self, gradients, lr: float, factor: float, betas=(0.9, 0.99), eps: float = 1e-8, decay: float = 0.1) -> None:
        """AdamW on the float32 weights; decay on matrices only."""
        self.steps += 1
        numbers = [factor, *(1 - b for b in betas), *(1 / (1 - b**self.steps) for b in betas), eps, lr]
        both = np.array([[*numbers, d] for d in (1.0, 1 - lr * decay)], np.float32)
        arrays = [[held[name] for name in gradients] for held in (self.parameters, gradients, self.m, self.v)]
        weights = self.optimizers.adamw(*arrays, both[[int(w.ndim > 1) for w in arrays[0]]])
        self.parameters.update(zip(gradients, weights, strict=True))
