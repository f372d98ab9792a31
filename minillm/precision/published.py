"""Recipes of published systems, op by op, as tables that can be laid beside the lists in their sources.

Sources: NVIDIA/apex, apex/amp (frontend.py, lists/*.py, _initialize.py; deleted in May 2025, pull request 1896);
PyTorch 2.13, ATen/autocast_mode.h; Keras 3, keras/src/layers and keras/src/losses; TransformerEngine, common/recipe.

What their lists name and this program has no op for is left out. What this program has and a list does not name runs in the
format of its inputs ("as is"), as there.
"""
from minillm.autograd.rule import RULES
from minillm.autograd.rules.products import FLOAT32_PRODUCTS, Products
from minillm.formats import BFLOAT16, FLOAT16, FLOAT32, Format
from minillm.precision.block_scaling import MXFP8_UP
from minillm.precision.float8 import FLOAT8_CURRENT
from minillm.precision.loss_scaling import SCALERS
from minillm.precision.recipe import Recipe

LOSSES = ("cross_entropy", "bce", "bce_with_logits")


def listed(low: Format, narrow: tuple, wide: tuple, promoted: tuple, refused: tuple = ()) -> dict:
    """The casts of a system that works by lists of ops; what no list names runs as it comes."""
    return {"*": "as is", **dict.fromkeys(whole(narrow), low), **dict.fromkeys(whole(wide), FLOAT32),
            **dict.fromkeys(promoted, "widest"), **dict.fromkeys(refused, "refuse")}


def whole(ops: tuple) -> list[str]:
    """The keys of ops with all their inputs: bias, gain and shift stay wide in a recipe unless a key names them."""
    return [key for op in ops for key in (op, *(f"{op}.{name}" for name in sorted(RULES[op].wide)))]


# --- PyTorch's autocast: CUDA's lists. The CPU's have no layer_norm, softmax, log_softmax, exp, log, pow and sum among the float32
# ones, and do not refuse binary_cross_entropy; a pre-norm GPT has the same formats under both, since its layer norms read the
# residual stream, which is float32. cross_entropy is listed as what it is made of, log_softmax and nll_loss. Biases, gains and
# shifts are cast with their ops. That add and its like promote is on no list: PyTorch does so anyway.

TORCH_LOW = ("linear", "matmul", "lstm", "attention")                         # attention: scaled_dot_product_attention
TORCH_FLOAT32 = ("exp", "log", "pow", "sum", "softmax", "log_softmax", "layer_norm", "rms_norm", "cross_entropy", "bce_with_logits")
TORCH_PROMOTED = ("add", "sub", "mul", "div", "where", "concat")
TORCH_REFUSED = ("bce",)                                                      # "unsafe to autocast"


def torch_autocast(low: Format, **more) -> Recipe:
    """PyTorch's autocast with `low` as its dtype; parameters, gradients and optimizer are float32."""
    return Recipe(f"torch-autocast-{low.name}", casts=listed(low, TORCH_LOW, TORCH_FLOAT32, TORCH_PROMOTED, TORCH_REFUSED), **more)


TORCH = (
    torch_autocast(FLOAT16, loss_scaling=SCALERS["pytorch"], about="PyTorch's autocast lists (CUDA) and its GradScaler"),
    torch_autocast(BFLOAT16, about="PyTorch's autocast lists (CUDA) with bfloat16, no scaler"),
)

# --- Apex. Attention was no op of PyTorch then: it is composed of matmul, mul, softmax and matmul, each with its own list. Layer
# norm is PyTorch's own (keep_batchnorm_fp32 means batch norm only, so O2 halves it as it halves all else). Functions of float32
# inside, float16 outside, such as a half softmax, round once here as there. `binary_cross_entropy` is banned for half tensors only;
# here it is refused altogether. rms_norm did not exist; its pow and rsqrt are listed as float32.

APEX_HALF = ("linear", "matmul", "lstm")
APEX_FLOAT32 = ("exp", "log", "pow", "sum", "softmax", "log_softmax", "layer_norm", "rms_norm", "cross_entropy", "bce_with_logits")
APEX_PROMOTED = ("add", "sub", "mul", "div", "concat")
APEX_BANNED = ("bce",)

# O2 and O3 call .half() on the model: every weight, gain and bias in it is float16, also the whole table of an embedding.
# What leaves the model is cast to float32, and the loss is taken of that.
HALF_MODEL = {"*": FLOAT16, **dict.fromkeys(whole(("linear", "lstm", "layer_norm", "rms_norm")), FLOAT16),
              **dict.fromkeys(LOSSES, FLOAT32)}

APEX = (
    Recipe("apex-O0", composed=("attention",), about="float32 throughout, loss scale 1"),
    Recipe("apex-O1", casts=listed(FLOAT16, APEX_HALF, APEX_FLOAT32, APEX_PROMOTED, APEX_BANNED), composed=("attention",),
           loss_scaling=SCALERS["apex-amp"], about="functions patched by lists, float32 weights, dynamic loss scale"),
    Recipe("apex-O2", casts=HALF_MODEL, composed=("attention",), loss_scaling=SCALERS["apex-amp"],
           about="the model in float16, float32 master weights, dynamic loss scale"),
    # No optimizer goes with O3. Its moments have the type of the weights, where Adam's usual eps of 1e-8 is 0.
    Recipe("apex-O3", FLOAT16, FLOAT16, FLOAT16, casts=HALF_MODEL, composed=("attention",), eps=1e-4,
           about="model, gradients and optimizer state in float16, loss scale 1"),
)

# --- Keras. The policy is one of layers, not of ops: variables float32, computation float16, inputs and variables cast on entry.
# Embedding and LayerNormalization opt out of that casting: rows are read in float32 and cast, a norm computes in float32 from
# float32 gains and casts its result back. A softmax layer is float16 like any other; that of the model's output, and so the
# loss, is what the guide tells users to keep in float32 (`Loss` of Keras 3 casts by itself).

KERAS = (
    Recipe("keras-mixed_float16", results={"embedding": FLOAT16}, loss_scaling=SCALERS["keras"],
           casts={"*": FLOAT16, "linear.bias": FLOAT16, "lstm.bias": FLOAT16, "embedding": "as is",
                  **dict.fromkeys(LOSSES, FLOAT32)},
           about="float32 variables, every layer in float16, LossScaleOptimizer"),
)

# --- Transformer Engine. Eight bits only inside the products of linears; what goes in and comes out is bfloat16, attention too
# (fp8_dpa is off by default). The head is no module of theirs: Megatron-LM's output layer is a bfloat16 product. All three products
# accumulate in float32 here; the forward one there takes the tensor core's shorter "fast" accumulator.


def transformer_engine(name: str, products: Products, about: str) -> Recipe:
    """Linears outside the head with these products, and bfloat16 around them."""
    return Recipe(name, results={"embedding": BFLOAT16},
                  casts={"*": BFLOAT16, "linear.bias": BFLOAT16, "lstm.bias": BFLOAT16, "embedding": "as is",
                         **dict.fromkeys(LOSSES, FLOAT32)},
                  products={"linear": products, "head/linear": FLOAT32_PRODUCTS}, about=about)


TRANSFORMER_ENGINE = (
    transformer_engine("float8-current", FLOAT8_CURRENT,
                       "Transformer Engine's Float8CurrentScaling: E4M3 and E5M2 in linears, bfloat16 around them"),
    transformer_engine("mxfp8", MXFP8_UP,
                       "Transformer Engine's MXFP8BlockScaling: E4M3 in blocks of 32 in linears, bfloat16 around them"),
)

PUBLISHED = (*APEX, *TORCH, *KERAS, *TRANSFORMER_ENGINE)
