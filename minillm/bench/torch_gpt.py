"""The peer of `bench step`: the same GPT on the same weights in PyTorch, as its users write it."""
from collections.abc import Callable

import numpy as np

from minillm.models.gpt import GPT


def weights(torch, model: GPT) -> dict:
    """The model's weights as PyTorch's leaves; queries, keys and values in one matrix, which is faster there."""
    p = {q.name: torch.from_numpy(q.data.copy()) for q in model.parameters()}
    for i in range(model.shape.layers):
        for kind in ("weight", "bias"):
            parts = [p.pop(f"block{i}.attention.{part}.{kind}") for part in ("query", "key", "value")]
            p[f"block{i}.attention.in.{kind}"] = torch.cat(parts)
    return {name: value.requires_grad_() for name, value in p.items()}


def loss_of(torch, p: dict, layers: int, heads: int, ids, targets):
    """Mean cross-entropy in nats a token of ids (B,T)."""
    F = torch.nn.functional

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], p[f"{name}.gain"], p[f"{name}.shift"])

    def linear(name, x):
        return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

    def attention(name, x):
        B, T, C = x.shape
        q, k, v = linear(f"{name}.in", x).view(B, T, 3, heads, C // heads).permute(2, 0, 3, 1, 4)          # (B,H,T,D)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return linear(f"{name}.out", y.transpose(1, 2).reshape(B, T, C))

    x = F.embedding(ids, p["tokens.weight"]) + p["positions.weight"][:ids.shape[1]]                        # (B,T,C)
    for i in range(layers):
        x = x + attention(f"block{i}.attention", norm(f"block{i}.norm1", x))
        hidden = F.gelu(linear(f"block{i}.mlp.up", norm(f"block{i}.norm2", x)), approximate="tanh")
        x = x + linear(f"block{i}.mlp.down", hidden)
    logits = F.linear(norm("norm", x), p["tokens.weight"])                                                 # (B,T,V)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def training_step(torch, model: GPT, ids: np.ndarray, targets: np.ndarray, autocast: str = "") -> Callable[[], float]:
    """A function that makes one step: forward, backward, clipping, fused AdamW; under CPU autocast where it is named.

    float16 goes without a loss scaler, which would cost PyTorch some more time.
    """
    p = weights(torch, model)
    optimizer = torch.optim.AdamW(p.values(), 1e-4, fused=True)
    ids, targets = torch.from_numpy(ids).long(), torch.from_numpy(targets).long()

    def step() -> float:
        with torch.autocast("cpu", getattr(torch, autocast or "bfloat16"), enabled=bool(autocast)):
            loss = loss_of(torch, p, model.shape.layers, model.shape.heads, ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(p.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()
    return step
