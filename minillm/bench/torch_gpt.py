"""The same GPT on the same weights in PyTorch, as its users write it: the peer of `bench step` and `bench generate`."""
from collections.abc import Callable

import numpy as np

from minillm.models.gpt import GPT, GPTShape


def torch_gpt(torch, model: GPT):
    """An nn.Module with copies of the model's weights; queries, keys and values in one product, which is faster there."""
    nn, F = torch.nn, torch.nn.functional
    state = {name: torch.from_numpy(np.array(array)) for name, array in model.state_dict().items()}
    H, C = model.shape.heads, model.shape.channels

    def linear(*names):
        weight = torch.cat([state[f"{name}.weight"] for name in names])
        layer = nn.Linear(*weight.shape[::-1], bias=model.shape.bias)
        layer.weight = nn.Parameter(weight)
        if model.shape.bias:
            layer.bias = nn.Parameter(torch.cat([state[f"{name}.bias"] for name in names]))
        return layer

    def norm(name):
        layer = nn.LayerNorm(C, bias=model.shape.bias)
        layer.weight = nn.Parameter(state[f"{name}.gain"])
        if model.shape.bias:
            layer.bias = nn.Parameter(state[f"{name}.shift"])
        return layer

    class Block(nn.Module):
        def __init__(self, at):
            super().__init__()
            self.norm1, self.norm2 = norm(f"{at}.norm1"), norm(f"{at}.norm2")
            self.qkv = linear(*(f"{at}.attention.{part}" for part in ("query", "key", "value")))
            self.out, self.up, self.down = (linear(f"{at}.{part}") for part in ("attention.out", "mlp.up", "mlp.down"))

        def attention(self, x, cache, at):
            B, T, _ = x.shape
            q, k, v = self.qkv(x).view(B, T, 3, H, C // H).permute(2, 0, 3, 1, 4)                          # (B,H,T,D)
            if cache:                                                                                      # one token, T = 1
                cache[0][:, :, at:at + 1], cache[1][:, :, at:at + 1] = k, v
                k, v = (held[:, :, :at + 1] for held in cache)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
            return self.out(mixed.transpose(1, 2).reshape(B, T, C))

        def forward(self, x, cache, at):
            x = x + self.attention(self.norm1(x), cache, at)
            return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class TorchGPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding.from_pretrained(state["tokens.weight"], freeze=False)
            self.positions = nn.Parameter(state["positions.weight"])
            self.blocks = nn.ModuleList(Block(f"block{i}") for i in range(model.shape.layers))
            self.norm, self.head = norm("norm"), nn.Linear(C, model.shape.vocabulary, bias=False)
            self.head.weight = self.tokens.weight

        def forward(self, ids, caches=None, at=0):
            """Logits (B,T,V) of ids (B,T); with caches of one token that stands at position `at`."""
            x = self.tokens(ids) + self.positions[at:at + ids.shape[1]]                                    # (B,T,C)
            for i, block in enumerate(self.blocks):
                x = block(x, caches and caches[i], at)
            return self.head(self.norm(x))

    return TorchGPT()


def training_step(torch, model: GPT, ids: np.ndarray, targets: np.ndarray, autocast: str = "") -> Callable[[], float]:
    """A function that makes one step: forward, backward, clipping, fused AdamW; under CPU autocast where it is named.

    float16 goes without a loss scaler, which would cost PyTorch some more time.
    """
    peer = torch_gpt(torch, model)
    parameters = list(peer.parameters())
    optimizer = torch.optim.AdamW(parameters, 1e-4, fused=True)
    ids, targets = torch.from_numpy(ids).long(), torch.from_numpy(targets).long()

    def step() -> float:
        with torch.autocast("cpu", getattr(torch, autocast or "bfloat16"), enabled=bool(autocast)):
            logits = peer(ids)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()
    return step


def generate(torch, peer, shape: GPTShape, tokens: int) -> list[int]:
    """`tokens` most likely tokens after token 0, with a key/value cache."""
    room = 1, shape.heads, shape.context, shape.channels // shape.heads
    with torch.inference_mode():
        caches, ids = [(torch.zeros(room), torch.zeros(room)) for _ in range(shape.layers)], [0]
        for at in range(tokens):
            ids.append(int(peer(torch.tensor([[ids[-1]]]), caches, at)[0, -1].argmax()))
    return ids
