"""Writes gpt.safetensors and gpt.json: loss, gradients and ten training losses of the golden problem, by PyTorch in float64.

Run it from the folder above: `python -m golden.make_golden` (needs torch; the suite reads only what it wrote). Gradients are stored
as float32, whose roundoff of 6e-8 is far below what is asserted of them.
"""
import json
from pathlib import Path

import numpy as np
import torch
from golden import problem
from safetensors.numpy import save_file
from torch.nn import functional as F

HERE = Path(__file__).parent
torch.set_num_threads(1)               # on arrays as small as these threads only wait for each other: 2 s instead of 0.14


def leaves(bias: bool, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """The weights as tensors that want a gradient."""
    return {name: torch.tensor(value, dtype=dtype, requires_grad=True) for name, value in problem.weights(bias).items()}


def logits(p: dict[str, torch.Tensor], ids: np.ndarray) -> torch.Tensor:
    """GPT-2's arrangement from PyTorch's own functions: pre-norm, learned positions, tanh GELU, tied head; (B,T,V)."""
    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], p[f"{name}.gain"], p.get(f"{name}.shift"), 1e-5)

    def linear(name, x):
        return F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))

    def attention(name, x):
        q, k, v = (linear(f"{name}.{part}", x).unflatten(-1, (problem.SHAPE["heads"], -1)).transpose(1, 2)
                   for part in ("query", "key", "value"))                                # (B,H,T,D)
        return linear(f"{name}.out", F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))

    x = F.embedding(torch.tensor(ids, dtype=torch.long), p["tokens.weight"]) + p["positions.weight"][:ids.shape[1]]
    for i in range(problem.SHAPE["layers"]):
        x = x + attention(f"block{i}.attention", norm(f"block{i}.norm1", x))
        x = x + linear(f"block{i}.mlp.down", F.gelu(linear(f"block{i}.mlp.up", norm(f"block{i}.norm2", x)), approximate="tanh"))
    return F.linear(norm("norm", x), p["tokens.weight"])


def loss_of(p: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy of the one batch, in nats a token."""
    ids, targets = problem.batch()
    return F.cross_entropy(logits(p, ids).flatten(0, 1), torch.tensor(targets, dtype=torch.long).flatten())


def gradients(bias: bool) -> tuple[float, dict[str, np.ndarray]]:
    """The loss, and its gradient for every parameter in float64."""
    p = leaves(bias)
    loss = loss_of(p)
    loss.backward()
    return loss.item(), {name: value.grad.numpy() for name, value in p.items()}


def training_losses(bias: bool, dtype: torch.dtype = torch.float64) -> list[float]:
    """The loss before each of the AdamW steps, and after the last."""
    p = leaves(bias, dtype)
    groups = [{"params": [v for v in p.values() if v.ndim > 1], "weight_decay": problem.DECAY},
              {"params": [v for v in p.values() if v.ndim == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=problem.LR, betas=problem.BETAS, eps=problem.EPS)
    losses = []
    for _ in range(problem.STEPS):
        optimizer.zero_grad()
        loss = loss_of(p)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(p.values(), problem.CLIP)
        optimizer.step()
        losses.append(loss.item())
    return [*losses, loss_of(p).item()]


def main():
    found, stored = {}, {}
    for variant, bias in (("bias", True), ("no bias", False)):
        loss, grads = gradients(bias)
        found[variant] = {"loss": loss, "training_losses": training_losses(bias)}
        stored |= {f"{variant}/{name}": grad.astype(np.float32) for name, grad in grads.items()}
    (HERE / "gpt.json").write_text(json.dumps({"torch": torch.__version__, **found}, indent=1) + "\n")
    save_file(stored, HERE / "gpt.safetensors")


if __name__ == "__main__":
    main()
