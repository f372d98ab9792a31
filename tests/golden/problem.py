"""The problem of the golden file: a tiny GPT, its weights by a rule that needs no file, one batch, and how it is trained.

NumPy only, because the suite reads it where there is no PyTorch.
"""
import numpy as np

SHAPE = {"vocabulary": 19, "layers": 2, "heads": 3, "channels": 24, "context": 16}       # 24 = 16 + 8: not a whole register
BATCH, STEPS = 3, 10
LR, BETAS, EPS, DECAY, CLIP = 1e-3, (0.9, 0.99), 1e-8, 0.1, 1.0


def shapes(bias: bool) -> dict[str, tuple]:
    """The shape of every parameter by the name that minillm gives it."""
    V, T, C = SHAPE["vocabulary"], SHAPE["context"], SHAPE["channels"]
    found = {"tokens.weight": (V, C), "positions.weight": (T, C)}
    linears = {"attention.query": (C, C), "attention.key": (C, C), "attention.value": (C, C), "attention.out": (C, C),
               "mlp.up": (4 * C, C), "mlp.down": (C, 4 * C)}
    for i in range(SHAPE["layers"]):
        for norm in ("norm1", "norm2"):
            found[f"block{i}.{norm}.gain"] = found[f"block{i}.{norm}.shift"] = (C,)
        for name, shape in linears.items():
            found[f"block{i}.{name}.weight"], found[f"block{i}.{name}.bias"] = shape, shape[:1]
    found["norm.gain"] = found["norm.shift"] = (C,)
    return {name: shape for name, shape in found.items() if bias or not name.endswith(("bias", "shift"))}


def weights(bias: bool) -> dict[str, np.ndarray]:
    """float32 values that are no initial values of a real model, so that no part of a gradient is small enough to hide.

    A sine of the index, on a grid of 2^-12: the last digit of one machine's sine does not show. Gains lie in 0.5 ... 1.5.
    """
    found = {}
    for number, (name, shape) in enumerate(sorted(shapes(True).items())):                # the same with and without biases
        index = np.arange(np.prod(shape))
        wave = np.sin(1.7 * index + 0.37 * index**2 + number)            # the square: without it matrices have a rank of 2
        size = 0.5 if len(shape) == 1 else 2 / shape[1] ** 0.5
        found[name] = (np.round(4096 * size * wave) / 4096 + name.endswith("gain")).reshape(shape).astype(np.float32)
    return {name: found[name] for name in shapes(bias)}


def batch() -> tuple[np.ndarray, np.ndarray]:
    """ids and targets (B,T) int32, one on from each other; id 7 is often there, id 18 never, rows differ."""
    T, V = SHAPE["context"], SHAPE["vocabulary"]
    text = np.arange(BATCH * (T + 1))
    text = np.where(text % 4 == 1, 7, (text * text + 3 * text + text // 5) % (V - 1)).astype(np.int32).reshape(BATCH, T + 1)
    return text[:, :-1], text[:, 1:]
