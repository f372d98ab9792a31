"""How fast text comes: tokens a second of one text, with a key/value cache, next to PyTorch in the same run."""
import dataclasses
import warnings
from collections.abc import Callable

from minillm.bench import peers, torch_gpt
from minillm.bench.measure import rows
from minillm.bench.side_by_side import started, times
from minillm.conversion.int8_model import WEIGHTS, in_weights, weight_bytes
from minillm.models.gpt import GPT, GPTShape
from minillm.recipes import PRESETS

SHAPE = GPTShape(vocabulary=65, layers=4, heads=4, channels=256, context=256)             # 3.2 M parameters


def calls(pool: str, shape: dict, tokens: int) -> dict[str, Callable]:
    """Functions that generate the same text: ours by the weights, PyTorch's by peer."""
    trained = GPT(GPTShape(**shape), PRESETS["float32"], seed=0)
    if pool == "torch":
        return torch_calls(peers.torch(), trained, tokens)
    models = {name: in_weights(trained, name) for name in WEIGHTS}
    return {name: lambda m=model: m.generate([0], tokens, temperature=0) for name, model in models.items()}


def torch_calls(torch, trained: GPT, tokens: int) -> dict[str, Callable]:
    """float32, and the dynamic int8 quantization where this PyTorch still has it."""
    plain = torch_gpt.torch_gpt(torch, trained).train(False)
    found = {"torch-float32": lambda: torch_gpt.generate(torch, plain, trained.shape, tokens)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")          # it announces its own end
        if quantize := getattr(torch.ao.quantization, "quantize_dynamic", None):
            codes = quantize(plain, {torch.nn.Linear}, dtype=torch.qint8)
            found["torch-int8"] = lambda: torch_gpt.generate(torch, codes, trained.shape, tokens)
    return found


def generate(threads: int, quiet: bool = False, shape: GPTShape = SHAPE, tokens: int = 200, seconds: float = 20.0) -> list[dict]:
    """Time `tokens` most likely tokens after one, batch 1: `float32`, `float16` and `int8` weights; the rate is tokens a second.

    Peers: the same GPT in PyTorch, its dynamic int8 quantization, and for the narrower weights our own float32.
    """
    found, trained = [], GPT(shape, PRESETS["float32"], seed=0)
    with started("ours", "torch") as processes:
        taken = times(processes, "generate", threads, seconds, shape=dataclasses.asdict(shape), tokens=tokens)
    for name in WEIGHTS:
        against = {"ours-float32": taken["float32"]} if name != "float32" else {}
        against |= {peer: taken[peer] for peer in ("torch-float32", "torch-int8") if peer in taken}
        sizes = shape.layers, shape.channels, shape.context, tokens
        found += rows(name, sizes, threads, taken[name], against, tokens, "tokens/s", weight_bytes(in_weights(trained, name)))
    return found
