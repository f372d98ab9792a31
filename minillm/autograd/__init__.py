"""The engine: a context that names every op, a dispatcher that rounds once, rules, and a backward pass."""
from minillm.autograd import rules

__all__ = ["rules"]
