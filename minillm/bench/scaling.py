"""How the time of a training step grows with the model and the batch: the exponent of tokens x parameters.

A family of GPTs in which width and context grow together, at the same number of layers, channels a head and windows: tokens x
parameters grows as the third power of the width, and so does the arithmetic of attention, whose share stays what it is. The model
in the middle is A of `bench step`. From the smallest to the largest it is some 63 times as much.
"""
import math
import statistics
from collections.abc import Callable, Sequence

from minillm.bench.side_by_side import started, times
from minillm.bench.step import Stepper
from minillm.models.gpt import GPT, GPTShape
from minillm.recipes import recipe_named

BATCH = 12
CHANNELS = (64, 96, 128, 192, 256)
RECIPES = ("float32", "float16-mixed")


def shape_of(channels: int) -> GPTShape:
    """Four layers, 32 channels a head, a context of half the width."""
    return GPTShape(65, 4, max(1, channels // 32), channels, channels // 2, bias=True)


def calls(pool: str, channels: Sequence[int], recipe: str) -> dict[str, Callable]:
    """Our training step for each width."""
    return {str(C): Stepper(shape_of(C), BATCH, recipe) for C in channels}


def point(channels: int) -> dict[str, int]:
    """The size of one model and of its batch."""
    shape = shape_of(channels)
    parameters = sum(p.data.size for p in GPT(shape, recipe_named("float32")).parameters())
    return {"channels": channels, "context": shape.context, "tokens": BATCH * shape.context, "parameters": parameters}


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """The slope of the straight line through the logarithms, by least squares."""
    x, y = ([math.log(v) for v in values] for values in (sizes, times))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def scaling(threads: int, channels: Sequence[int] = CHANNELS, seconds: float = 10.0) -> list[dict]:
    """{"recipe", "exponent", "points"} for each recipe; about `seconds` for each."""
    found = []
    with started("ours") as processes:
        for recipe in RECIPES:
            taken = times(processes, "scaling", threads, seconds, channels=channels, recipe=recipe)
            points = [point(C) | {"ms": statistics.median(taken[str(C)]) * 1e3} for C in channels]
            slope = exponent([p["tokens"] * p["parameters"] for p in points], [p["ms"] for p in points])
            found.append({"recipe": recipe, "exponent": slope, "points": points})
    return found
