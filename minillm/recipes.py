"""The presets by name, and a recipe to and from JSON."""
import dataclasses
from collections.abc import Callable

from minillm.autograd.rules.products import PRODUCTS, Products
from minillm.errors import MiniLLMError, unknown
from minillm.formats import BFLOAT16, FLOAT16, FLOAT32, FORMATS, Format, format_named
from minillm.optim import BLOCK_MAPS, DYNAMIC8, LINEAR8, BlockMap
from minillm.precision.accumulation import products_named
from minillm.precision.loss_scaling import SCALERS, LossScaling, scaler_named
from minillm.precision.published import PUBLISHED
from minillm.precision.recipe import CAST_WORDS, QUANTIZERS, Recipe
from minillm.quantization.affine import INT4, INT8, PER_ROW, Scheme, grid
from minillm.quantization.fake_quant import Fake, LearnedRange, Lsq, NormalizedFake, Ternary, by_token
from minillm.quantization.products import SWITCHBACK

DYNAMIC = LossScaling()
INT8_ROWS, INT8_TOKENS = Fake(PER_ROW), Fake(by_token(INT8))
INT4_RUNS = Scheme(grid(4, narrow=False), granularity="group")
INT4_RANGES = LearnedRange(INT4_RUNS)
BITNET_TOKENS = NormalizedFake(by_token(INT8))
QUANTIZERS |= {"none": None, "int8-rows": INT8_ROWS, "int8-tokens": INT8_TOKENS, "int8-steps": Lsq(Scheme(grid(8, narrow=False))),
               "int4-groups": Fake(Scheme(INT4, granularity="group")), "int4-steps": Lsq(INT4_RUNS),
               "int4-ranges": INT4_RANGES, "ternary": Ternary(),
               "normalized-int8-tokens": BITNET_TOKENS}


def mixed(low: Format, name: str, **more) -> Recipe:
    """Weights and activations in `low`; the loss, the parameters (the master weights) and the optimizer in float32.

    The embedding reads float32 rows and rounds its result, so that rare tokens have no cast of the whole table.
    """
    casts = {"*": low, "embedding": "as is", "cross_entropy": FLOAT32, "bce": FLOAT32, "bce_with_logits": FLOAT32}
    return Recipe(name, casts=casts, results={"embedding": low}, **more)


def pure(low: Format, name: str, **more) -> Recipe:
    """The same without master weights: parameters, gradients and moments in `low`, too; only the loss stays float32."""
    return mixed(low, name, parameters=low, optimizer_state=low, gradients=low, **more)


def each_layer(weight: Callable, x: Callable) -> dict[str, Callable]:
    """Quantizers for the weights and inputs of linears and recurrences; the state of a recurrence stays as it is."""
    return {"linear.weight": weight, "linear.x": x, "lstm.weight": weight, "lstm.recurrent": weight, "lstm.x": x}


PRESETS = {recipe.name: recipe for recipe in (
    Recipe("float32", about="everything in float32"),
    Recipe("float32-scaled", loss_scaling=SCALERS["keras"],
           about="everything in float32, and a dynamic loss scale around the optimizer, which changes nothing"),
    Recipe("float16", parameters=FLOAT16, optimizer_state=FLOAT16, gradients=FLOAT16,
           about="everything in float16: parameters, activations, gradients, optimizer moments; no loss scale"),
    mixed(FLOAT16, "float16-mixed", loss_scaling=DYNAMIC,
          about="float16 weights and activations, float32 master weights, dynamic loss scale"),
    mixed(FLOAT16, "float16-unscaled", about="float16-mixed without a loss scale"),
    mixed(FLOAT16, "float16-no-master", parameters=FLOAT16, loss_scaling=DYNAMIC,
          about="float16-mixed without master weights: the optimizer updates float16 weights"),
    mixed(BFLOAT16, "bfloat16-mixed",
          about="bfloat16 weights and activations (simulated), float32 master weights; needs no loss scale"),
    *PUBLISHED,
    pure(BFLOAT16, "bfloat16-pure",
         about="bfloat16 weights, activations, gradients, moments (simulated), no master copy: updates are rounded to nearest"),
    pure(BFLOAT16, "bfloat16-stochastic", update="stochastic", about="bfloat16-pure, but updates are rounded stochastically"),
    pure(BFLOAT16, "bfloat16-kahan", update="kahan",
         about="bfloat16-pure, but what rounding takes from a weight is kept beside it in bfloat16, and added back"),
    mixed(FLOAT16, "float16-stochastic", parameters=FLOAT16, loss_scaling=DYNAMIC, update="stochastic",
          about="float16-no-master, but updates are rounded stochastically"),
    mixed(FLOAT16, "float16-kahan", parameters=FLOAT16, loss_scaling=DYNAMIC, update="kahan",
          about="float16-no-master, but what rounding takes from a weight is kept beside it in float16, and added back"),
    Recipe("int8-qat", quantizers=each_layer(INT8_ROWS, INT8_TOKENS) | {"embedding.weight": INT8_ROWS},
           about="float32, with weights replaced by the values of int8 codes by row, activations by token: training knows of int8"),
    Recipe("int4-qat", quantizers=each_layer(INT4_RANGES, INT8_TOKENS) | {"embedding.weight": INT4_RANGES},
           about="int4 weights in groups of 32, whose steps are learned, int8 activations by token"),
    Recipe("int8-switchback", products={"linear": SWITCHBACK, "lstm": SWITCHBACK},
           about="float32, but forward and input-gradient products of linears are of int8 codes; weight gradients are not"),
    Recipe("bitnet-b1.58", quantizers=each_layer(Ternary(), BITNET_TOKENS) | {"head/linear.weight": None, "head/linear.x": None},
           about="weights of linears -s, 0 or s, inputs normalized and int8 by token; embeddings and head in float32"),
    Recipe("float32-adam8-dynamic", optimizer_state=DYNAMIC8, about="float32, but Adam's moments in eight bits, dynamic map"),
    Recipe("float32-adam8-linear", optimizer_state=LINEAR8, about="float32, but Adam's moments in eight bits, linear map"),
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
    data = {f.name: plain(getattr(recipe, f.name)) for f in dataclasses.fields(recipe)}
    return data | {"quantizers": {key: quantizer_name(recipe.name, key, q) for key, q in recipe.quantizers.items()}}


def quantizer_name(recipe: str, key: str, quantizer: Callable) -> str:
    """The name under which QUANTIZERS has it; MiniLLMError for one without."""
    for name, known in QUANTIZERS.items():
        if known == quantizer:
            return name
    raise MiniLLMError(f"recipe {recipe}: the quantizer of {key} has no name, so JSON cannot hold it: put it into QUANTIZERS")


def from_json(data: dict) -> Recipe:
    """The recipe that `to_json` wrote; fields may be left out. MiniLLMError for unknown fields and names."""
    check_fields("a recipe", data, Recipe)
    if "name" not in data:
        raise MiniLLMError('a recipe needs a name: add "name" to its JSON')
    for key in ("casts", "results", "quantizers", "products"):
        if not isinstance(data.get(key, {}), dict):
            raise MiniLLMError(f"recipe {data['name']}: {key} must be a table of names by op, not {data[key]!r}")
    return Recipe(**{key: READ[key](value) if key in READ else value for key, value in data.items()})


def check_fields(what: str, data: dict, type_: type) -> None:
    """Every key must be a field of the dataclass."""
    fields = [f.name for f in dataclasses.fields(type_)]
    for key in data:
        if key not in fields:
            raise unknown(f"field of {what}", key, fields)


def table_of(read: Callable) -> Callable:
    """What reads a table whose values `read` reads."""
    return lambda table: {key: read(value) for key, value in table.items()}


def cast_named(name: str) -> Format | str:
    """A word such as "widest", or the format of this name."""
    if name not in CAST_WORDS and name not in FORMATS:
        raise unknown("cast", name, (*CAST_WORDS, *FORMATS))
    return name if name in CAST_WORDS else format_named(name)


def state_named(name: str) -> Format | BlockMap:
    """The map of eight-bit moments, or the format, of this name."""
    return BLOCK_MAPS[name] if name in BLOCK_MAPS else format_named(name)


def product_named(name: str) -> Products:
    """The Products of this name, or with the accumulators that it names, as in "float16/chunked_64"."""
    try:
        return products_named(name)
    except MiniLLMError:
        if "/" in name or "=" in name:
            raise
    raise unknown("products", name, (*PRODUCTS, *FORMATS))


def quantizer_named(name: str) -> Callable:
    """The quantizer of this name."""
    if name not in QUANTIZERS:
        raise unknown("quantizer", name, QUANTIZERS)
    return QUANTIZERS[name]


def loss_scaling_of(fields: dict | str) -> LossScaling:
    """Loss scaling from its fields, or the published scaler of this name."""
    if isinstance(fields, str):
        return scaler_named(fields)
    if not isinstance(fields, dict):
        raise MiniLLMError(f"loss_scaling must be a table of its fields or the name of a scaler, not {fields!r}")
    check_fields("a loss scaling", fields, LossScaling)
    return LossScaling(**fields)


READ = {
    "parameters": format_named, "optimizer_state": state_named, "gradients": format_named,
    "cotangents": lambda name: name and format_named(name), "casts": table_of(cast_named), "results": table_of(format_named),
    "quantizers": table_of(quantizer_named), "products": table_of(product_named), "composed": tuple,
    "loss_scaling": loss_scaling_of,
}
