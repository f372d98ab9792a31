"""The Recipe: which format, product, quantizer and scale stands where. Data only; `bind` makes it the ops that a model calls."""
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from minillm.autograd.composed import COMPOSED
from minillm.autograd.context import Context, current_scope
from minillm.autograd.rule import RULES, Rule
from minillm.autograd.rules.products import Products
from minillm.autograd.tensor import Tensor, apply
from minillm.errors import MiniLLMError, MixedFormats, unknown
from minillm.formats import FLOAT32, Format
from minillm.optim import UPDATES, BlockMap
from minillm.precision.loss_scaling import NO_SCALING, LossScaling
from minillm.precision.master_weights import working_copy
from minillm.rounding import ROUNDINGS

CAST_WORDS = ("as is", "widest", "refuse")
QUANTIZERS: dict[str, Callable] = {}       # what may stand in a recipe's `quantizers`, by its name in JSON


@dataclass(frozen=True)
class Recipe:
    """How a model is computed and trained. Recipes that are compared differ in these fields only.

    Keys of the tables are looked up from the most exact: `place/op.input`, `place/op`, `op.input`, `op`, `*`. A place is a scope
    or names that follow one another in it ("head", "block0", "block0.mlp"); the longer one wins. Inputs that a rule allows to be
    wide (bias, gain, shift) are cast only where a key names them.
    """

    name: str
    parameters: Format = FLOAT32                          # what the optimizer updates: the master weights
    optimizer_state: Format | BlockMap = FLOAT32          # Adam's moments
    gradients: Format = FLOAT32                           # in which micro-batches are added up
    casts: dict[str, Format | str] = field(default_factory=lambda: {"*": "as is"})      # Format, "as is", "widest", "refuse"
    results: dict[str, Format] = field(default_factory=dict)     # op -> format of its result, where it is not that of its inputs
    quantizers: dict[str, Callable] = field(default_factory=dict)      # op.input -> what stands in front of it: (ops, x, name) -> x
    products: dict[str, Products] = field(default_factory=dict)
    composed: tuple[str, ...] = ()                        # ops whose composed twin is used in place of the fused rule
    forward_rounding: str = "nearest_even"
    backward_rounding: str = "nearest_even"
    cotangents: Format | None = None                      # None: a cotangent has the format of its tensor
    loss_scaling: LossScaling = NO_SCALING
    update: str = "nearest_even"                          # how a weight is written: or "stochastic", "kahan"
    eps: float = 1e-8                                     # the optimizer's; 1e-8 is 0 in float16
    about: str = ""

    def __post_init__(self):
        for table in (self.casts, self.results, self.quantizers, self.products):
            for key in table:
                check_key(self.name, key)
        for word in self.casts.values():
            if isinstance(word, str) and word not in CAST_WORDS:
                raise unknown("cast", word, CAST_WORDS)
        for mode in (self.forward_rounding, self.backward_rounding):
            if mode not in ROUNDINGS:
                raise unknown("rounding", mode, ROUNDINGS)
        if self.update not in UPDATES:
            raise unknown("update", self.update, UPDATES)
        for op in self.composed:
            if op not in COMPOSED:
                raise unknown("composed op", op, COMPOSED)

    @property
    def narrowest(self) -> int:
        """Bits of the narrowest format that stands anywhere in the recipe."""
        roles = (self.parameters, self.optimizer_state, self.gradients, self.cotangents)
        return min(f.bits for f in (*roles, *self.casts.values(), *self.results.values()) if isinstance(f, Format | BlockMap))

    def bind(self, seed: int = 0) -> "Ops":
        """The ops of this recipe with a context of their own; `seed` is that of dropout and other random bits."""
        return Ops(self, seed)


def check_key(recipe: str, key: str) -> None:
    """A key that could never match is an error, not a silent nothing."""
    op, _, name = key.rpartition("/")[2].partition(".")
    if op == "*" and not name:
        return
    if op not in RULES:
        raise MiniLLMError(f"recipe {recipe}: {unknown('op', op, RULES)} (in the key {key!r})")
    rule = RULES[op]
    if name and name not in rule.names(1):
        raise MiniLLMError(f"recipe {recipe}: {unknown(f'input of {op}', name, rule.names(1))} (in the key {key!r})")


def find(table: dict, place: str, op: str, name: str = ""):
    """The entry for an op's input at a place, from the most exact key to "*"; None if there is none."""
    names = place.split(".") if place else []
    runs = [".".join(names[i:i + n]) for n in range(len(names), 0, -1) for i in range(len(names) - n, -1, -1)]
    keys = [f"{run}/{target}" for run in runs for target in (f"{op}.{name}", op, "*")]
    return next((table[key] for key in (*keys, f"{op}.{name}", op, "*") if key in table), None)


def named(table: dict, place: str, op: str, name: str):
    """The entry whose key names this very input, for inputs that stay wide otherwise."""
    return find({key: value for key, value in table.items() if key.rpartition("/")[2] == f"{op}.{name}"}, place, op, name)


class Plan(NamedTuple):
    """What a recipe's tables say of an op at a place; `touched`: (number, name, cast, quantizer) of given inputs not left alone."""

    casts: list
    quantizers: list
    result: Format | None
    products: Products | None
    touched: list


class Ops:
    """The functions that a model calls, one for each rule, with the recipe's casts in front; and the context that goes with them.

    `learned` holds what quantizers learn: leaves by name, made in the first forward pass, trained and kept with the parameters.
    """

    def __init__(self, recipe: Recipe, seed: int):
        self.recipe, self.learned, self._plans = recipe, {}, {}
        self.context = Context(seed, recipe.forward_rounding, recipe.backward_rounding, recipe.cotangents)
        for name, rule in RULES.items():
            if name != "cast":
                setattr(self, name, functools.partial(self.call, rule))
        for name in recipe.composed:
            setattr(self, name, functools.partial(COMPOSED[name], self))

    def cast(self, x: Tensor, format: Format) -> Tensor:
        """Give x another format; a leaf is cast once a forward pass."""
        if x.format is format:
            return x
        return working_copy(self.context, x, format) if x.name else apply(RULES["cast"], x, context=self.context, result=format)

    def call(self, rule: Rule, *inputs, **static) -> Tensor:
        """Put in front of each input what the recipe says, then apply the rule."""
        plan = self.plan(rule, current_scope(), len(inputs))
        if plan.touched:
            given, inputs = inputs, list(inputs)
            for i, name, cast, quantizer in plan.touched:
                if isinstance(given[i], Tensor) and (quantizer or given[i].format is not cast):
                    inputs[i] = self.prepare(rule, given[i], name, cast, quantizer, given)
        if plan.products:
            static = {"products": plan.products} | static
        return apply(rule, *inputs, context=self.context, result=plan.result, **static)

    def plan(self, rule: Rule, place: str, count: int) -> Plan:
        """What the tables say of an op at a place, looked up once."""
        at = rule.name, place, count
        plan = self._plans.get(at)
        if plan is None:
            recipe, op, names = self.recipe, rule.name, rule.names(count)
            casts = [(named if n in rule.wide else find)(recipe.casts, place, op, n) or "as is" for n in names]
            quantizers = [named(recipe.quantizers, place, op, n) for n in names]
            products = find(recipe.products, place, op) if "products" in rule.defaults else None
            each = zip(range(len(names)), names, casts, quantizers, strict=True)
            touched = [(i, name, cast, quantizer) for i, name, cast, quantizer in each
                       if i < count and (cast != "as is" or quantizer)]
            plan = self._plans[at] = Plan(casts, quantizers, find(recipe.results, place, op), products, touched)
        return plan

    def prepare(self, rule, x, name, cast, quantizer, inputs):
        """One input: quantized, then cast."""
        if quantizer:
            x = quantizer(self, x, ".".join(p for p in (current_scope(), rule.name, name) if p))
        if cast == "as is":
            return x
        if cast == "refuse":
            raise MixedFormats(f"recipe {self.recipe.name} refuses {rule.name} on {x.format.name}: take another op or recipe")
        if cast == "widest":
            cast = max((t.format for t in inputs if isinstance(t, Tensor)), key=lambda f: f.bits)
        return self.cast(x, cast)
