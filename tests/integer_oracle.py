"""The whole pass of a model in integers in Python's own: lists, loops, no NumPy. Written from the formulas, not from the code."""
import math


def nearest(a, b):
    """The whole number nearest to a / b, halves up."""
    return (2 * a + b) // (2 * b)


def clip(x, limit):
    return max(-limit, min(limit, x))


def once(x, m, s):
    return nearest(x * m, 2 ** (31 - s))


def twice(x, m, s):
    high = clip(nearest(x * 2 ** max(s, 0) * m, 2**31), 2**31 - 1)
    size = nearest(abs(high), 2 ** max(-s, 0))
    return size if high >= 0 else -size


class Oracle:
    """A pass for one text; `arrays`: a model's state as (nested) lists by name."""

    def __init__(self, arrays, heads, layers, rounding, bits):
        self.arrays, self.heads, self.layers, self.limit = arrays, heads, layers, 2 ** (bits - 1) - 1
        self.multiply = {"single": once, "double": twice}[rounding]

    def scaled(self, x, place, limit, channel=None):
        m, s = (self.arrays[f"{place}.{part}"] for part in ("mantissa", "shift"))
        return clip(self.multiply(x, *((m, s) if channel is None else (m[channel], s[channel]))), limit)

    def linear(self, x, place, limit=127):
        weight, bias = self.arrays[f"{place}.codes"], self.arrays[f"{place}.bias"]
        return [[self.scaled(sum(a * b for a, b in zip(row, w, strict=True)) + bias[n], f"{place}.rescale", limit, n)
                 for n, w in enumerate(weight)] for row in x]

    def norm(self, x, place):
        return [self.norm_row(row, place) for row in x]

    def norm_row(self, row, place):
        C, shift = len(row), self.arrays[f"{place}.shift"]
        mean = nearest(sum(row), C)
        squares = sum((v - mean) ** 2 for v in row) + self.arrays[f"{place}.eps"]
        root = max(math.isqrt(squares * 256), 1)                               # 16 times the root
        unit = [nearest((v - mean) * 2**30 * 16, root) for v in row]
        return [clip(self.scaled(v, f"{place}.gain", 2**30 - 1, c) + shift[c], 127) for c, v in enumerate(unit)]

    def attention(self, x, place):
        q, k, v = (self.linear(x, f"{place}.{name}") for name in ("query", "key", "value"))
        D = len(x[0]) // self.heads
        mixed = [[self.mix(q, k, v, t, c // D * D, D, c, place) for c in range(len(x[0]))] for t in range(len(x))]
        return self.linear(mixed, f"{place}.out", self.limit)

    def mix(self, q, k, v, t, first, D, c, place):
        """Channel c of what token t hears of itself and those before it."""
        scores = [sum(q[t][i] * k[u][i] for i in range(first, first + D)) for u in range(t + 1)]
        shares = [self.share(score - max(scores), place) for score in scores]
        mean = nearest(2**16 * sum(share * v[u][c] for u, share in enumerate(shares)), sum(shares))
        return self.scaled(mean, f"{place}.mixed", 127)

    def share(self, below, place):
        """I-BERT's exp: x = -n ln 2 + p, a (p + b)^2 + c, halved n times, as a code of 0 ... 127."""
        ln2, b, c = 45426, 88670, 4121251743                                  # times 2^16, 2^16, 2^32
        x = self.multiply(below, self.arrays[f"{place}.exponent.mantissa"], self.arrays[f"{place}.exponent.shift"])
        n = min(-x // ln2, 62)
        return nearest(((x + n * ln2 + b) ** 2 + c) // 2**n * 127, b * b + c)

    def block(self, x, place):
        x = self.plus(x, self.attention(self.norm(x, f"{place}.norm1"), f"{place}.attention"))
        wide = self.linear(self.norm(x, f"{place}.norm2"), f"{place}.mlp.up")
        bent = [[self.arrays[f"{place}.mlp.gelu"][code + 128] for code in row] for row in wide]
        return self.plus(x, self.linear(bent, f"{place}.mlp.down", self.limit))

    def plus(self, x, y):
        return [[clip(a + b, self.limit) for a, b in zip(*rows, strict=True)] for rows in zip(x, y, strict=True)]

    def embedding(self, ids, table):
        return [[self.scaled(code, f"{table}.rescale", self.limit, i) for code in self.arrays[f"{table}.codes"][i]] for i in ids]

    def logits(self, ids):
        x = self.plus(self.embedding(ids, "tokens"), self.embedding(range(len(ids)), "positions"))
        for i in range(self.layers):
            x = self.block(x, f"block{i}")
        x = self.norm(x, "norm")
        return [[self.scaled(sum(a * b for a, b in zip(row, w, strict=True)), "head", 2**31 - 1, n)
                 for n, w in enumerate(self.arrays["tokens.codes"])] for row in x]
