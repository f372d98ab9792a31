"""The learning rate of each attempt."""
import math


def cosine_schedule(step: int, steps: int, lr: float, min_lr: float, warmup: int) -> float:
    """The learning rate of optimizer attempt `step` (from 0): linear warm-up, then half a cosine from lr to min_lr at `steps`."""
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    along = min(1.0, (step - warmup) / max(1, steps - warmup))
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * along)) / 2
