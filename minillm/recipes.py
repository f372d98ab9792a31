"""The presets by name, and a recipe to and from JSON."""
import dataclasses

from minillm.autograd.rules.products import PRODUCTS
from minillm.errors import MiniLLMError, unknown
from minillm.formats import BFLOAT16, FLOAT16, FLOAT32, Format, format_named
from minillm.precision.loss_scaling import LossScaling
from minillm.precision.recipe import CAST_WORDS, Recipe

DYNAMIC = LossScaling()


def mixed(low: Format, name: str, **more) -> Recipe:
    """Weights and activations in `low`; the loss, the parameters (the master weights) and the optimizer in float32.

    The embedding reads float32 rows and rounds its result, so that rare tokens have no cast of the whole table.
    """
    casts = {"*": low, "embedding": "as is", "cross_entropy": FLOAT32, "bce": FLOAT32, "bce_with_logits": FLOAT32}
    return Recipe(name, casts=casts, results={"embedding": low}, **more)


PRESETS = {recipe.name: recipe for recipe in (
    Recipe("float32", about="everything in float32"),
    Recipe("float16", parameters=FLOAT16, optimizer_state=FLOAT16, gradients=FLOAT16,
           about="everything in float16: parameters, activations, gradients, optimizer moments; no loss scale"),
    mixed(FLOAT16, "float16-mixed", loss_scaling=DYNAMIC,
          about="float16 weights and activations, float32 master weights, dynamic loss scale"),
    mixed(FLOAT16, "float16-unscaled", about="float16-mixed without a loss scale"),
    mixed(FLOAT16, "float16-no-master", parameters=FLOAT16, loss_scaling=DYNAMIC,
          about="float16-mixed without master weights: the optimizer updates float16 weights"),
    mixed(BFLOAT16, "bfloat16-mixed", about="bfloat16 weights and activations (simulated), float32 master weights; needs no loss scale"),
)}


def recipe_named(name: str) -> Recipe:
    """The preset of this name; MiniLLMError names the nearest one otherwise."""
    if name not in PRESETS:
        raise unknown("recipe", name, PRESETS)
    return PRESETS[name]


def to_json(recipe: Recipe) -> dict:
    """A recipe as data for JSON: formats, products and quantizers by name."""
    def plain(value):
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        if dataclasses.is_dataclass(value) and not hasattr(value, "name"):
            return dataclasses.asdict(value)
        return list(value) if isinstance(value, tuple) else getattr(value, "name", value)
    return {f.name: plain(getattr(recipe, f.name)) for f in dataclasses.fields(recipe)}


def from_json(data: dict) -> Recipe:
    """The recipe that `to_json` wrote. MiniLLMError for unknown fields and names."""
    fields = {f.name for f in dataclasses.fields(Recipe)}
    for key in data:
        if key not in fields:
            raise unknown("field of a recipe", key, fields)
    if data.get("quantizers"):
        raise MiniLLMError(f"recipe {data.get('name')}: unknown quantizers {sorted(data['quantizers'].values())}")
    read = dict(data)
    for key in {"parameters", "optimizer_state", "gradients"} & read.keys():
        read[key] = format_named(read[key])
    if read.get("cotangents"):
        read["cotangents"] = format_named(read["cotangents"])
    if "casts" in read:
        read["casts"] = {k: v if v in CAST_WORDS else format_named(v) for k, v in read["casts"].items()}
    if "results" in read:
        read["results"] = {k: format_named(v) for k, v in read["results"].items()}
    if "products" in read:
        read["products"] = {k: product_named(v) for k, v in read["products"].items()}
    if "loss_scaling" in read:
        read["loss_scaling"] = LossScaling(**read["loss_scaling"])
    return Recipe(**read | {"composed": tuple(read.get("composed", ()))})


def product_named(name: str):
    """The Products of this name."""
    if name not in PRODUCTS:
        raise unknown("products", name, PRODUCTS)
    return PRODUCTS[name]
