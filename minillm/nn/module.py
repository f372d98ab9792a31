"""Module: parameters with names, buffers, submodules, and a scope that its ops are addressed by."""
from collections.abc import Iterator

import numpy as np

from minillm.autograd.context import scope
from minillm.autograd.tensor import Tensor
from minillm.errors import MiniLLMError
from minillm.formats import Format
from minillm.rounding import round_to


class Module:
    """Something with a forward function. A Tensor attribute is a parameter, an array a buffer, a Module a part of that name."""

    name = ""

    def __setattr__(self, key, value):
        if isinstance(value, Module):
            value.name = key
        super().__setattr__(key, value)

    def __call__(self, *inputs, **options):
        with scope(self.name):
            return self.forward(*inputs, **options)

    def forward(self, *inputs, **options):
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def parts(self) -> Iterator[tuple[str, object]]:
        """What this module owns directly, by attribute name, in the order of assignment."""
        return ((key, value) for key, value in vars(self).items() if isinstance(value, Tensor | np.ndarray | Module))

    def walk(self, prefix: str = "") -> Iterator[tuple[str, "Module", str, object]]:
        """(full name, owner, attribute, tensor or array) of everything below."""
        for key, value in self.parts():
            if isinstance(value, Module):
                yield from value.walk(f"{prefix}{key}.")
            else:
                yield prefix + key, self, key, value

    @property
    def place(self) -> str:
        """Its scope in the whole model, "block0.mlp", read off a leaf's name; "" for the model itself."""
        leaves = ((name, value.name) for name, _, _, value in self.walk() if isinstance(value, Tensor))
        return next((full.removesuffix(name).rstrip(".") for name, full in leaves if f".{full}".endswith(f".{name}")), self.name)

    def parameters(self) -> list[Tensor]:
        """The leaves, named by their place: "block0.mlp.up.weight"."""
        found = [(name, value) for name, _, _, value in self.walk() if isinstance(value, Tensor)]
        for name, value in found:
            value.name = name
        return list({id(value): value for _, value in found}.values())           # a tied parameter once

    def buffers(self) -> dict[str, np.ndarray]:
        """Arrays that belong to the model and are not trained, by name."""
        return {name: value for name, _, _, value in self.walk() if isinstance(value, np.ndarray)}

    def state_dict(self) -> dict[str, np.ndarray]:
        """Every parameter's and buffer's array, by name."""
        return {p.name: p.data for p in self.parameters()} | self.buffers()

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Take over arrays by name. All or nothing: names, shapes and types are checked before anything is changed."""
        own = self.state_dict()
        missing, foreign = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or foreign:
            raise MiniLLMError(f"these weights are of another model: missing {missing[:3]}, unexpected {foreign[:3]}")
        for name, array in own.items():
            if array.shape != state[name].shape or array.dtype != state[name].dtype:
                raise MiniLLMError(f"these weights are of another model: {name} is {state[name].dtype} {state[name].shape} there, "
                                   f"{array.dtype} {array.shape} here")
        for name, owner, key, value in self.walk():
            if isinstance(value, Tensor):
                value.data = np.array(state[value.name])
            else:
                setattr(owner, key, np.array(state[name]))


class Maker:
    """Makes parameters: random numbers from one seed, rounded into the recipe's parameter format."""

    def __init__(self, seed: int, format: Format):
        self.rng, self.format = np.random.default_rng(seed), format

    def normal(self, *shape: int, deviation: float = 0.02) -> Tensor:
        """Values from N(0, deviation), drawn as float32."""
        return self.leaf(self.rng.standard_normal(shape, np.float32) * np.float32(deviation))

    def uniform(self, *shape: int, limit: float) -> Tensor:
        """Values from -limit to limit, drawn as float32."""
        return self.leaf((2 * self.rng.random(shape, np.float32) - 1) * np.float32(limit))

    def glorot(self, N: int, K: int) -> Tensor:
        """(N,K), uniform to sqrt(6 / (N + K)). Glorot and Bengio 2010, equation 16."""
        return self.uniform(N, K, limit=(6 / (N + K)) ** 0.5)

    def orthogonal(self, N: int, K: int) -> Tensor:
        """(N,K), N >= K, with columns of length 1 at right angles. Saxe et al. 2014, arXiv 1312.6120."""
        q, r = np.linalg.qr(self.rng.standard_normal((N, K), np.float32))
        return self.leaf(q * np.sign(np.diagonal(r)))                         # without the signs some q would be likelier

    def constant(self, *shape: int, value: float) -> Tensor:
        return self.leaf(np.full(shape, value, np.float32))

    def leaf(self, values: np.ndarray) -> Tensor:
        """A parameter of these values; it gets its final name from the module that it becomes part of."""
        return Tensor(round_to(values, self.format), self.format, name="unnamed")
