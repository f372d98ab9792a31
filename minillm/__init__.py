"""minillm: a language model trained from scratch in NumPy, in which every rounding can be seen, chosen and measured."""
from minillm._version import __version__
from minillm.autograd.context import scope
from minillm.autograd.tensor import Tensor, backward, tensor
from minillm.autograd.watching import watch
from minillm.errors import MiniLLMError
from minillm.formats import BFLOAT16, FLOAT16, FLOAT32, Format, format_named
from minillm.precision.recipe import Recipe
from minillm.recipes import recipe_named
from minillm.rounding import round_to

__all__ = ["BFLOAT16", "FLOAT16", "FLOAT32", "Format", "MiniLLMError", "Recipe", "Tensor", "__version__", "backward",
           "format_named", "recipe_named", "round_to", "scope", "tensor", "watch"]
