"""Ops that work on rows, forward and backward, next to PyTorch's; on one thread and on all."""
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from minillm import kernels
from minillm.autograd.kernels import KERNELS
from minillm.autograd.rule import RULES
from minillm.bench import peers
from minillm.bench.measure import rows
from minillm.bench.side_by_side import Process, started, times

# Rows as the two models of `bench step` have them: (rows, width); attention: (B,T,H,D).
SHAPES = {
    "gelu": ((768, 512), (2048, 1024)), "softmax": ((3072, 64), (8192, 256)), "layer_norm": ((768, 128), (2048, 256)),
    "cross_entropy": ((768, 65), (2048, 65)), "attention": ((12, 64, 4, 32), (8, 256, 4, 64), (2, 1024, 4, 64)),
}


def inputs(name: str, shape: tuple[int, ...]) -> tuple[list, dict, np.ndarray]:
    """What the rule takes, its static arguments, and a cotangent of its result; all float32 but the targets."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape, np.float32)

    if name == "attention":
        B, T, H, D = shape
        return [*(normal(B, T, H * D) for _ in range(3)), None], {"heads": H}, normal(B, T, H * D)
    x, C = normal(*shape), shape[-1]
    if name == "cross_entropy":
        return [x, rng.integers(0, C, shape[:-1], np.int32)], {}, np.ones((), np.float32)
    more = {"layer_norm": [normal(C), normal(C)], "softmax": [None]}
    return [x, *more.get(name, [])], {}, normal(*shape)


def ours(name: str, arrays: list, static: dict, g: np.ndarray) -> tuple[Callable, Callable]:
    """Forward, and vjp: the kernel beside the rule, or the rule itself where there is none or kernels are off."""
    rule, kernel = RULES[name], KERNELS.get(name) if kernels.enabled() else None
    static = rule.defaults | static | ({"key": 0} if rule.takes_key else {})

    def forward():
        out = kernel.forward(*arrays, **static, out=np.float32) if kernel else rule.forward(np, *arrays, **static)
        return out if isinstance(out, tuple) else (out, {})

    y, extras = forward()
    known = dict(zip(rule.inputs, arrays, strict=True)) | static | extras | {"y": y}
    kept = {key: known[key] for key in rule.reads}
    return forward, lambda: kernel.vjp(g, **kept) if kernel else rule.backward(np, g, **kept)


def torch_calls(torch, name: str, arrays: list, g: np.ndarray, heads: int = 0) -> tuple[Callable, Callable]:
    """Forward, and backward, of PyTorch on the same numbers: the functions under its autograd, without what that costs."""
    F, aten = torch.nn.functional, torch.ops.aten
    x, *rest = [torch.from_numpy(a) for a in arrays if a is not None]
    g = torch.from_numpy(g)
    if name == "gelu":
        return lambda: F.gelu(x, approximate="tanh"), lambda: aten.gelu_backward(g, x, approximate="tanh")
    if name == "softmax":
        y = torch.softmax(x, -1)
        return lambda: torch.softmax(x, -1), lambda: aten._softmax_backward_data(g, y, -1, torch.float32)
    if name == "layer_norm":
        _, mean, rstd = aten.native_layer_norm(x, x.shape[-1:], *rest, 1e-5)
        return (lambda: F.layer_norm(x, x.shape[-1:], *rest),
                lambda: aten.native_layer_norm_backward(g, x, x.shape[-1:], mean, rstd, *rest, [True] * 3))
    if name == "cross_entropy":
        return torch_cross_entropy(torch, x, rest[0].long(), g)
    return torch_attention(torch, [x, *rest], g, heads)


def torch_cross_entropy(torch, x, targets, g) -> tuple[Callable, Callable]:
    aten, MEAN, NOTHING_IGNORED = torch.ops.aten, 1, -100
    logp = torch.log_softmax(x, -1)
    _, count = aten.nll_loss_forward(logp, targets, None, MEAN, NOTHING_IGNORED)

    def backward():
        share = aten.nll_loss_backward(g, logp, targets, None, MEAN, NOTHING_IGNORED, count)
        return aten._log_softmax_backward_data(share, logp, -1, torch.float32)
    return lambda: torch.nn.functional.cross_entropy(x, targets), backward


def torch_attention(torch, arrays: list, g, heads: int) -> tuple[Callable, Callable]:
    """PyTorch's fused causal attention, and the same with its backward."""
    fused = torch.nn.functional.scaled_dot_product_attention
    q, k, v = (a.unflatten(-1, (heads, -1)).transpose(1, 2).requires_grad_() for a in arrays)      # (B,H,T,D)
    g = g.unflatten(-1, (heads, -1)).transpose(1, 2)

    @torch.no_grad()
    def forward():
        return fused(q, k, v, is_causal=True)
    return forward, lambda: torch.autograd.grad(fused(q, k, v, is_causal=True), (q, k, v), g)


def traffic(name: str, way: str, arrays: list) -> int:
    """Bytes that a pass reads and writes at least: its inputs, the cotangent, and results of the same size."""
    sizes = sum(a.nbytes for a in arrays if a is not None)
    if name == "attention":
        return sizes // 3 * (4 if way == "forward" else 8)                     # q k v o; and g dq dk dv
    loss = name == "cross_entropy"
    return sizes + arrays[0].nbytes * ((not loss) if way == "forward" else 1 + (not loss))


def calls(pool: str, name: str, shape: Sequence[int]) -> dict[str, Callable]:
    """Both passes of an op in one pool: "forward" and "backward" of ours, "torch-forward" and "torch-backward"."""
    arrays, static, g = inputs(name, shape)
    if pool == "torch":
        forward, backward = torch_calls(peers.torch(), name, arrays, g, **static)
        return {"torch-forward": forward, "torch-backward": backward}
    forward, vjp = ours(name, arrays, static, g)
    return {"forward": forward, "backward": (lambda: (forward(), vjp())) if name == "attention" else vjp}


def one_shape(processes: Sequence[Process], name: str, shape: tuple[int, ...], threads: int, seconds: float) -> list[dict]:
    """Rows of one op on one shape, forward and backward."""
    taken, (arrays, _, _), result = times(processes, "rowwise", threads, seconds, name=name, shape=shape), inputs(name, shape), []
    for way in ("forward", "backward"):
        against = {"torch-float32": taken[f"torch-{way}"]} if f"torch-{way}" in taken else {}
        bytes = traffic(name, way, arrays)
        result += rows(f"{name}-{way}", shape, threads, taken[way], against, bytes, "GB/s", bytes)
    return result


def rowwise(threads: int, quiet: bool = False, shapes: dict = SHAPES, seconds: float = 2.0) -> list[dict]:
    """Rows for every op, on one thread and on `threads`; about `seconds` a shape. The rate counts what must be read and written."""
    found = []
    jobs = [(name, shape, count) for name, all_shapes in shapes.items() for shape in all_shapes for count in sorted({1, threads})]
    with started("ours", "torch") as processes:
        for name, shape, count in tqdm(jobs, "rowwise", disable=quiet, leave=False):
            found += one_shape(processes, name, shape, count, seconds)
    return found
