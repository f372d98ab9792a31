"""The rules of all ops: each a forward function with its vjp beside it. They know arrays but no formats, and import no NumPy."""
from minillm.autograd.rules import elementwise, losses, normalization, products, recurrence, reductions, sampling, shapes

__all__ = ["elementwise", "losses", "normalization", "products", "recurrence", "reductions", "sampling", "shapes"]
