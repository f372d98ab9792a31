"""How fast text comes: tokens a second of one text, with a key/value cache, next to PyTorch in the same run."""
import warnings

import numpy as np

from minillm.bench import peers
from minillm.bench.machine import machine
from minillm.bench.measure import Call, interleaved, rows
from minillm.conversion.int8_model import WEIGHTS, in_weights, weight_bytes
from minillm.models.gpt import GPT, GPTShape
from minillm.recipes import PRESETS

SHAPE = GPTShape(vocabulary=65, layers=4, heads=4, channels=256, context=256)             # 3.2 M parameters


def generate(shape: GPTShape = SHAPE, tokens: int = 200, seconds: float = 20.0, threads: int | None = None,
             quiet: bool = False) -> dict:
    """Time `tokens` most likely tokens after one, batch 1: `float32`, `float16` and `int8` weights; the rate is tokens a second.

    Peers: the same GPT in PyTorch, its dynamic int8 quantization, and for the narrower weights our own float32.
    """
    threads = peers.check_threads(threads or peers.most_threads())
    trained = GPT(shape, PRESETS["float32"], seed=0)
    models = {name: in_weights(trained, name) for name in WEIGHTS}
    with peers.all_on(threads):
        calls = {name: Call(lambda m=model: m.generate([0], tokens, temperature=0)) for name, model in models.items()}
        calls |= {name: Call(run, "torch") for name, run in torch_peers(trained, tokens).items()}
        taken = dict(zip(calls, interleaved(list(calls.values()), seconds), strict=True))
    table = []
    for name, model in models.items():
        against = {"ours-float32": taken["float32"]} if name != "float32" else {}
        against |= {peer: taken[peer] for peer in ("torch-float32", "torch-int8") if peer in taken}
        sizes = shape.layers, shape.channels, shape.context, tokens
        table += rows(name, sizes, threads, taken[name], against, tokens, "tokens/s", weight_bytes(model))
    return {"bench": "generate", "machine": machine(), "rows": table}


def torch_peers(model: GPT, tokens: int) -> dict:
    """Functions that generate the same text in PyTorch, by peer; none where it is not installed."""
    if (torch := peers.torch()) is None:
        return {}
    plain = torch_gpt(torch, model)
    found = {"torch-float32": lambda: torch_generate(torch, plain, model.shape, tokens)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")          # it announces its own end
        if quantize := getattr(torch.ao.quantization, "quantize_dynamic", None):
            codes = quantize(plain, {torch.nn.Linear}, dtype=torch.qint8)
            found["torch-int8"] = lambda: torch_generate(torch, codes, model.shape, tokens)
    return found


def torch_gpt(torch, model: GPT):
    """The same weights in PyTorch's modules, queries, keys and values in one product, as they are fastest there."""
    nn, F = torch.nn, torch.nn.functional
    state = {name: torch.from_numpy(np.array(array)) for name, array in model.state_dict().items()}
    shape, H, C = model.shape, model.shape.heads, model.shape.channels

    def linear(*names):
        weight = torch.cat([state[f"{name}.weight"] for name in names])
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight = nn.Parameter(weight)
        return layer

    def norm(name):
        layer = nn.LayerNorm(C, bias=False)
        layer.weight = nn.Parameter(state[f"{name}.gain"])
        return layer

    class Block(nn.Module):
        def __init__(self, at):
            super().__init__()
            self.norm1, self.norm2 = norm(f"{at}.norm1"), norm(f"{at}.norm2")
            self.qkv = linear(*(f"{at}.attention.{part}" for part in ("query", "key", "value")))
            self.out, self.up, self.down = (linear(f"{at}.{part}") for part in ("attention.out", "mlp.up", "mlp.down"))

        def forward(self, x, keys, values, at):
            q, k, v = self.qkv(self.norm1(x)).view(1, 1, 3, H, C // H).permute(2, 0, 3, 1, 4)
            keys[:, :, at:at + 1], values[:, :, at:at + 1] = k, v
            mixed = F.scaled_dot_product_attention(q, keys[:, :, :at + 1], values[:, :, :at + 1])
            x = x + self.out(mixed.transpose(1, 2).reshape(1, 1, C))
            return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class TorchGPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding.from_pretrained(state["tokens.weight"])
            self.positions = nn.Embedding.from_pretrained(state["positions.weight"])
            self.blocks = nn.ModuleList(Block(f"block{i}") for i in range(shape.layers))
            self.norm, self.head = norm("norm"), linear("tokens")

        def forward(self, ids, caches, at):
            x = self.tokens(ids) + self.positions(torch.tensor([[at]]))
            for block, (keys, values) in zip(self.blocks, caches, strict=True):
                x = block(x, keys, values, at)
            return self.head(self.norm(x))

    return TorchGPT().train(False)


def torch_generate(torch, model, shape: GPTShape, tokens: int) -> list[int]:
    """`tokens` most likely tokens after token 0."""
    room = 1, shape.heads, shape.context, shape.channels // shape.heads
    with torch.inference_mode():
        caches, ids = [(torch.zeros(room), torch.zeros(room)) for _ in range(shape.layers)], [0]
        for at in range(tokens):
            ids.append(int(model(torch.tensor([[ids[-1]]]), caches, at)[0, -1].argmax()))
    return ids
