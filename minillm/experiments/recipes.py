"""Recipes as tables for people: all of them with a line each, or one of them op by op."""
import dataclasses
import math

from minillm.autograd.rule import RULES, Rule
from minillm.experiments.tables import table
from minillm.formats import Format
from minillm.precision.loss_scaling import LossScaling
from minillm.precision.recipe import Ops, Recipe
from minillm.recipes import PRESETS, quantizer_name, recipe_named, to_json

FLOAT32_RECIPE = Recipe("float32")
BY_OP = ("casts", "results", "quantizers", "products")       # fields that the table of ops shows
OPS = [rule for name, rule in RULES.items() if name != "cast"]


def recipes(name: str = "") -> dict:
    """What `minillm recipes [NAME] --json` prints: one recipe, or all by name. MiniLLMError for an unknown name."""
    return to_json(recipe_named(name)) if name else {name: to_json(recipe) for name, recipe in PRESETS.items()}


def describe(name: str = "") -> str:
    """The same for people."""
    return one(recipe_named(name)) if name else summary()


# --- all recipes

def summary() -> str:
    """A line for each preset: what weights become on their way into a linear, activations, optimizer state, loss scale."""
    head = ["recipe", "weights", "activations", "optimizer", "loss scale", "about"]
    return table(head, [line(recipe) for recipe in PRESETS.values()], left=len(head))


def line(recipe: Recipe) -> list[str]:
    plan = recipe.bind().plan(RULES["linear"], "", 3)
    weights = [recipe.parameters, plan.casts[1], plan.products]
    steps = [f.name for f in weights if not isinstance(f, str | None) and f.name != "float32"] or ["float32"]
    return [recipe.name, " -> ".join(dict.fromkeys((recipe.parameters.name, *steps))), " and ".join(activations(recipe)),
            recipe.optimizer_state.name, scale_text(recipe.loss_scaling).partition(":")[0], recipe.about]


def activations(recipe: Recipe) -> dict[str, None]:
    """The names of the formats of what a linear gives, and of the residual stream, which begins as rows of the embedding."""
    ops, stream = recipe.bind(), recipe.parameters
    for op in ("embedding", "add"):
        stream = result_of(ops, RULES[op], "", stream)
    return dict.fromkeys((result_of(ops, RULES["linear"], "", stream).name, stream.name))


def result_of(ops: Ops, rule: Rule, place: str, given):
    """The format of an op's result where that of its inputs is `given`."""
    plan = ops.plan(rule, place, len(input_names(rule)))
    leading = next(cast for cast, name in zip(plan.casts, input_names(rule), strict=True) if name not in rule.plain)
    return plan.result or (leading if isinstance(leading, Format) else given)


def input_names(rule: Rule) -> tuple[str, ...]:
    return rule.inputs or (rule.parts,)


# --- one recipe

def one(recipe: Recipe) -> str:
    """A recipe's fields beside float32's, then every op: what differs from float32 comes first."""
    fields = sorted(field_rows(recipe), key=lambda row: row[1] == row[2])
    as_float32 = op_rows(FLOAT32_RECIPE)
    ops = sorted(op_rows(recipe), key=lambda row: (row in as_float32, row[1:], row[0]))
    return "\n".join([f"{recipe.name}: {recipe.about}", "",
                      table(["field", "here", "in float32"], fields, left=3), "",
                      table(["op", "inputs", "result", "products", "rounding"], ops, left=5)])


def field_rows(recipe: Recipe) -> list[list[str]]:
    """(field, here, in float32) of what belongs to no single op."""
    names = [f.name for f in dataclasses.fields(Recipe) if f.name not in ("name", "about", *BY_OP)]
    return [[name.replace("_", " "), *(field_text(getattr(r, name)) for r in (recipe, FLOAT32_RECIPE))] for name in names]


def field_text(value) -> str:
    if isinstance(value, LossScaling):
        return scale_text(value)
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return "as their tensors" if value is None else getattr(value, "name", str(value))


def scale_text(how: LossScaling) -> str:
    """A loss scale with its constants; what stands before the colon says it in short."""
    if not how.dynamic:
        return power(how.initial) if how.initial != 1 else "none"
    return (f"dynamic from {power(how.initial)}: x{how.growth:g} after {how.growth_interval} clean steps, "
            f"x{how.backoff:g} after an overflow, {ends(how)}")


def ends(how: LossScaling) -> str:
    """Between which scales a dynamic one moves."""
    below = "no floor" if how.floor is None else f"not below {power(how.floor)}"
    return below if how.ceiling is None else f"{below}, not above {power(how.ceiling)}"


def power(value: float) -> str:
    """2^16 rather than 65536, where it is a power of two."""
    exponent = math.log2(value)
    return f"2^{exponent:g}" if exponent.is_integer() and value != 1 else f"{value:g}"


def op_rows(recipe: Recipe) -> list[tuple[str, ...]]:
    """A row for every op, and one for each place where a key of the recipe's tables treats it in another way."""
    ops = recipe.bind()
    return [op_row(ops, rule, place) for rule in OPS for place in ("", *places(recipe, rule.name))]


def places(recipe: Recipe, op: str) -> list[str]:
    """The places that the recipe's tables name for an op."""
    keys = [key.rpartition("/") for field in BY_OP for key in getattr(recipe, field)]
    return sorted({place for place, _, target in keys if place and target.partition(".")[0] in (op, "*")})


def op_row(ops: Ops, rule: Rule, place: str) -> tuple[str, ...]:
    """(op, inputs, result, products, rounding), of which the first has the place in it."""
    recipe, label = ops.recipe, f"{place}/{rule.name}" if place else rule.name
    rounding = " / ".join(dict.fromkeys((recipe.forward_rounding, recipe.backward_rounding)))
    if rule.name in recipe.composed:
        return label, "composed of other ops", "as theirs", "", rounding
    products = ops.plan(rule, place, len(input_names(rule))).products or rule.defaults.get("products")
    inputs = inputs_text(ops, rule, place)
    result = {"refuse": "none", "widest": "widest"}.get(inputs, result_of(ops, rule, place, "as its inputs"))
    return label, inputs, getattr(result, "name", result), products.name if products else "", rounding


def inputs_text(ops: Ops, rule: Rule, place: str) -> str:
    """What stands in front of an op's inputs: "float16", or "x, weight: float16; bias: as is" where they are not treated alike."""
    names, groups = input_names(rule), {}
    plan = ops.plan(rule, place, len(names))
    for name, cast, quantizer in zip(names, plan.casts, plan.quantizers, strict=True):
        if name not in rule.plain:
            first = f"{quantizer_name(ops.recipe.name, name, quantizer)} then " if quantizer else ""
            groups.setdefault(first + getattr(cast, "name", cast), []).append(name)
    return next(iter(groups)) if len(groups) == 1 else "; ".join(f"{', '.join(group)}: {how}" for how, group in groups.items())
