"""The GPT: parameters, causality, saving, sampling with and without a cache, and that every recipe trains it."""
import itertools
import math

import numpy as np
import pytest
from tiny_gpt import SHAPE, batch, bits_of, make, objective_of, recipe_of

from minillm.errors import MiniLLMError
from minillm.formats import BFLOAT16, FLOAT16, FLOAT32
from minillm.models.gpt import GPT, GPTShape, choose
from minillm.nn import Module
from minillm.recipes import PRESETS
from minillm.rounding import round_to, widen
from minillm.training.trainer import training_step

every_recipe = pytest.mark.parametrize("recipe", PRESETS)


def logits_of(model, ids, *cache_and_start) -> np.ndarray:
    with model.ops.context.no_record():
        model.ops.context.begin(0)
        return widen(model(ids, *cache_and_start).data, np.float32)


# --- parameters

def count(shape: GPTShape) -> int:
    """Embeddings, 12 C^2 a block, norms; with bias 9 C a block and a shift for each gain."""
    V, T, C, L = shape.vocabulary, shape.context, shape.channels, shape.layers
    return (V + T) * C + L * (12 * C * C + 2 * C) + C + shape.bias * (L * (9 * C + 2 * C) + C)


@pytest.mark.parametrize("shape", [GPTShape(65), GPTShape(65, bias=True), SHAPE, GPTShape(7, 1, 1, 3, 5)], ids=str)
def test_the_parameters_are_as_many_as_the_formula_says(shape):
    model = GPT(shape, recipe_of("float32"))
    assert sum(p.size for p in model.parameters()) == count(shape)
    assert count(GPTShape(65)) == 804_096                                      # nanoGPT's 0.80 M


def test_names_are_places():
    names = [p.name for p in make(layers=1).parameters()]
    assert names == ["tokens.weight", "positions.weight", *(f"block0.{place}" for place in (
        "norm1.gain", "norm1.shift", "attention.query.weight", "attention.query.bias", "attention.key.weight", "attention.key.bias",
        "attention.value.weight", "attention.value.bias", "attention.out.weight", "attention.out.bias", "norm2.gain", "norm2.shift",
        "mlp.up.weight", "mlp.up.bias", "mlp.down.weight", "mlp.down.bias")), "norm.gain", "norm.shift"]
    without = [p.name for p in make(layers=1, bias=False).parameters()]
    assert without == [name for name in names if not name.endswith(("bias", "shift"))]


def test_initial_weights_have_gpt2s_deviations():
    model = GPT(GPTShape(65, bias=True), recipe_of("float32"))
    for p in model.parameters():
        if p.ndim == 1:
            assert (p.data == p.name.endswith("gain")).all(), p.name
            continue
        deviation = 0.02 / math.sqrt(2 * 4) if p.name.endswith(("out.weight", "down.weight")) else 0.02
        # five standard errors: missed once in 1.7 million
        assert p.data.std() == pytest.approx(deviation, rel=5 / math.sqrt(2 * p.size)), p.name
        assert abs(p.data.mean()) < 5 * deviation / math.sqrt(p.size), p.name


def test_a_seed_is_a_model_and_another_recipe_rounds_the_same_one():
    one, same, other = (bits_of(make(seed=seed).state_dict()) for seed in (5, 5, 6))
    assert one == same
    assert one["tokens.weight"] != other["tokens.weight"]
    rounded = {name: round_to(w, FLOAT16) for name, w in make(seed=5).state_dict().items()}
    assert bits_of(make("float16", seed=5).state_dict()) == bits_of(rounded)


@pytest.mark.parametrize(("wrong", "message"), [
    ({"heads": 5}, r"5 heads do not divide 32 channels: choose heads from \[1, 2, 4, 8, 16, 32\]"),
    ({"layers": 0}, "layers is 0"), ({"vocabulary": -1}, "vocabulary is -1"), ({"context": 0}, "context is 0"),
    ({"dropout": 1.0}, "dropout is 1.0"), ({"dropout": -0.1}, "dropout is -0.1"), ({"dropout": math.nan}, "dropout is nan"),
], ids=str)
def test_a_shape_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(MiniLLMError, match=message):
        make(**wrong)


def test_more_tokens_than_the_context_are_refused():
    model = make()
    ids = np.zeros((1, 17), np.int32)
    with pytest.raises(MiniLLMError, match="17 tokens do not fit into a context of 16: cut the ids"):
        model(ids)
    with pytest.raises(MiniLLMError, match="17 tokens do not fit"):
        model(ids[:, :1], model.new_caches(), 16)
    assert logits_of(model, ids[:, :16]).shape == (1, 16, 19)


# --- causality

@pytest.mark.parametrize("recipe", [name for name in PRESETS if name != "float8-current"])      # see test_float8
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_later_token_changes_no_earlier_logit(recipe, bias):
    model, (ids, _) = make(recipe, bias=bias), batch()
    before = logits_of(model, ids)
    for t in (1, 7, 15):
        changed = ids.copy()
        changed[:, t] = (changed[:, t] + 1) % SHAPE.vocabulary
        after = logits_of(model, changed)
        assert after[:, :t].tobytes() == before[:, :t].tobytes()               # bit for bit
        assert (after[:, t:] != before[:, t:]).any(axis=(0, 2)).all()          # and every later position saw it


def test_rows_of_a_batch_do_not_see_each_other():
    model, (ids, _) = make(), batch()
    changed = ids.copy()
    changed[2] = 0
    same = [0, 1, 3]
    assert logits_of(model, changed)[same].tobytes() == logits_of(model, ids)[same].tobytes()


# --- saving and loading

def test_a_state_makes_another_model_the_same():
    source, target = make(seed=1), make(seed=2)
    state = source.state_dict()
    target.load_state_dict(state)
    assert logits_of(target, batch()[0]).tobytes() == logits_of(source, batch()[0]).tobytes()
    for array in state.values():
        array += 1                                                             # target has copies
    assert bits_of(target.state_dict()) == bits_of(make(seed=1).state_dict())


def tampered(**changes):
    state = make(seed=9).state_dict()
    for name, change in changes.items():
        state[name.replace("_", ".")] = change(state[name.replace("_", ".")])
    return state


@pytest.mark.parametrize(("state", "message"), [
    (lambda: make(channels=16).state_dict(), r"tokens.weight is float32 \(19, 16\) .*, float32 \(19, 32\) here"),
    (lambda: make(layers=3).state_dict(), r"missing \[\], unexpected \['block2"),
    (lambda: make(layers=1).state_dict(), r"missing \['block1"),
    (lambda: make(bias=False).state_dict(), r"missing \['block0.attention.key.bias'"),
    (lambda: make("float16").state_dict(), r"tokens.weight is float16 \(19, 32\) .*, float32 \(19, 32\) here"),
    (lambda: tampered(norm_shift=lambda a: a[:-1]), r"norm.shift is float32 \(31,\)"),
    (lambda: tampered(norm_shift=lambda a: a.astype(np.float64)), r"norm.shift is float64"),
    (dict, r"missing \['block0"),
], ids=["channels", "more layers", "fewer layers", "no bias", "format", "the last one's shape", "the last one's type", "empty"])
def test_loading_is_all_or_nothing(state, message):
    model = make()
    before = bits_of(model.state_dict())
    with pytest.raises(MiniLLMError, match=message):
        model.load_state_dict(state())
    assert bits_of(model.state_dict()) == before


def test_tied_parameters_are_one_and_buffers_are_saved():
    class Pair(Module):
        def __init__(self, seed):
            self.first = make(seed=seed, layers=1).norm
            self.second, self.table = self.first, np.full(3, seed, np.float32)

    one, other = Pair(1), Pair(2)
    assert len(one.parameters()) == 2
    one.first.gain.data = one.first.gain.data * np.float32(3)
    other.load_state_dict(one.state_dict())
    assert (other.first.gain.data == 3).all()
    assert (other.table == 1).all()


# --- dropout

def test_dropout_is_off_where_nothing_is_recorded():
    model, plain, (ids, _) = make(dropout=0.5), make(), batch()
    assert logits_of(model, ids).tobytes() == logits_of(plain, ids).tobytes()
    assert model.ops.context.record
    drawn = []
    for step, micro in ((0, 0), (0, 0), (1, 0), (0, 1)):
        model.ops.context.begin(step, micro)
        drawn.append(model(ids).data.tobytes())
    assert drawn[0] == drawn[1]                                                # pure in (seed, step, micro-batch)
    assert len(set(drawn)) == 3
    assert logits_of(plain, ids).tobytes() not in drawn


# --- sampling

def livelier(model: GPT) -> GPT:
    """Weights ten times as large: an untrained GPT says nearly the same for every text."""
    for p in model.parameters():
        if p.ndim > 1:
            p.data = round_to(widen(p.data, np.float32) * np.float32(10), p.format)
    return model


PROMPT = np.array([3, 1, 4, 1, 5], np.int32)


@pytest.mark.parametrize(("recipe", "format"), [("float32", FLOAT32), ("float16-mixed", FLOAT16), ("float16", FLOAT16)])
def test_cached_logits_are_the_uncached_ones_within_a_bound(recipe, format):
    model, ids = livelier(make(recipe)), batch(rows=2)[0]
    whole, caches, read = logits_of(model, ids), model.new_caches(), 0
    # Rows are the same, but products of another shape may sum in another order: each of the 20 ops on the way is off by about one
    # roundoff of the largest value. Five are seen in float32; in float16 none, unless a rounding tips over.
    bound = 20 * format.roundoff * abs(whole).max()
    for size in (5, 1, 1, 4, 1, 4):
        part = logits_of(model, ids[:, read:read + size], caches, read)
        share = abs(part - whole[:, read:read + size]).max() / bound
        print(f"{recipe}: {share:.2f} of the bound")
        assert share < 1
        read += size


def continued_without_cache(model, ids, tokens):
    ids = ids.tolist()
    for _ in range(tokens):
        ids.append(int(logits_of(model, np.array([ids[-SHAPE.context:]], np.int32))[0, -1].argmax()))
    return ids


@pytest.mark.parametrize("recipe", ["float32", "float16-mixed"])
def test_generation_is_the_uncached_one_also_beyond_the_context(recipe):
    model = livelier(make(recipe))
    ours = model.generate(PROMPT, 40, temperature=0)
    assert ours.dtype == np.int32
    assert ours.tolist() == continued_without_cache(model, PROMPT, 40)
    assert len(set(ours[5:].tolist())) > 3                                     # no text of one word
    long = np.tile(PROMPT, 6)                                                  # a prompt longer than the context
    assert model.generate(long, 5, temperature=0).tolist() == continued_without_cache(model, long, 5)


def test_temperature_0_and_top_k_1_take_the_most_likely():
    model = livelier(make())
    greedy = model.generate(PROMPT, 20, temperature=0).tolist()
    assert greedy == model.generate(PROMPT, 20, temperature=0, seed=8).tolist()
    assert greedy == model.generate(PROMPT, 20, top_k=1, seed=8).tolist()
    assert greedy == model.generate(PROMPT, 20, temperature=1e-6).tolist()
    assert greedy != model.generate(PROMPT, 20, temperature=10.0).tolist()


def test_a_seed_is_a_text():
    model = livelier(make(dropout=0.3))
    one, same, other = (model.generate(PROMPT, 30, seed=seed).tolist() for seed in (1, 1, 2))
    assert one == same != other
    assert one[:5] == other[:5] == PROMPT.tolist()
    assert len(one) == 35
    assert model.ops.context.record                                            # training goes on as before


@pytest.mark.parametrize(("arguments", "message"), [
    ({"ids": []}, "the prompt is empty"), ({"temperature": -1.0}, "temperature -1.0 and top_k 0 must not be negative"),
    ({"temperature": math.nan}, "temperature nan"), ({"top_k": -1}, "top_k -1"), ({"ids": [19]}, "ids must lie in 0 ... 18"),
], ids=str)
def test_what_cannot_be_continued_is_refused(arguments, message):
    model = make()
    with pytest.raises(MiniLLMError, match=message):
        model.generate(**{"ids": PROMPT, "tokens": 2} | arguments)
    assert model.ops.context.record


@pytest.mark.parametrize("logits", [[0.0, math.nan, 1.0], [math.nan] * 3, [math.inf, 0.0, 0.0], [-math.inf] * 3], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_is_sampled_from_a_model_that_diverged(logits, temperature):
    with pytest.raises(MiniLLMError, match="this model has diverged"):
        choose(np.array(logits, np.float32), temperature, 0, np.random.default_rng(0))


def critical(freedom, z=4.753):
    """Chi-square's quantile by Wilson and Hilferty, off by less than 1 % here; z = 4.753 leaves 1e-6 above it."""
    return freedom * (1 - 2 / (9 * freedom) + z * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.5, 0), (2.0, 0), (1.0, 5), (0.7, 2), (1.0, 100)])
def test_samples_follow_the_softmax(temperature, top_k):
    # a right program fails with probability 1e-6 for a seed drawn at random; this seed is fixed, so it fails never or always
    logits, n = np.linspace(-1, 1, 19, dtype=np.float32)[np.argsort(np.sin(np.arange(19)))], 20_000
    allowed = logits >= np.sort(logits)[-min(top_k or 19, 19)]
    p = np.where(allowed, np.exp(logits / temperature), 0)
    p /= p.sum()
    rng = np.random.default_rng(2)
    drawn = np.bincount([choose(logits, temperature, top_k, rng) for _ in range(n)], minlength=19)
    assert drawn[~allowed].sum() == 0
    chi2 = float(np.sum((drawn - n * p)[allowed] ** 2 / (n * p)[allowed]))
    assert chi2 < critical(allowed.sum() - 1)
    flat = np.where(allowed, 1 / allowed.sum(), 0)                             # and the test can tell: uniform draws would fail
    assert float(np.sum((drawn - n * flat)[allowed] ** 2 / (n * flat)[allowed])) > critical(allowed.sum() - 1)


# --- every recipe trains

PATTERN = np.tile(np.array([3, 1, 4, 1, 5, 9, 2, 6], np.int32), 4)
WINDOWS = np.stack([PATTERN[i:i + 17] for i in range(8)])


def trained(recipe, steps=30):
    """(losses, the share of entries that moved by parameter, results) of a run on eight repeating tokens."""
    model = make(recipe)
    before, objective = model.state_dict(), objective_of(model)
    results = [training_step(objective, [(WINDOWS[:, :-1], WINDOWS[:, 1:])], step, 3e-3) for step in range(steps)]
    moved = {name: float(np.mean(w != before[name])) for name, w in model.state_dict().items()}
    assert all(np.isfinite(w).all() for w in model.state_dict().values())
    return [r.loss for r in results], moved, results


@pytest.mark.parametrize("recipe", [*(r for r in PRESETS.values() if r.name not in ("float16", "float32-adam8-linear")),
                                    recipe_of("float16", eps=1e-4)], ids=lambda r: r.name)
def test_every_recipe_learns_a_repeating_text_and_moves_every_weight(recipe):
    losses, moved, results = trained(recipe)
    assert all(r.finite for r in results)
    assert losses[0] == pytest.approx(math.log(19), abs=0.1)
    assert losses[-1] < losses[0] / 3
    # The bias of a key has a true gradient of 0: softmax does not see a shift of its row. A gain starts at 1, whose neighbours in
    # bfloat16 are 2^-8 and 2^-7 away: it may have come back, or, with updates of 3e-3 to nearest, never have left.
    free = ("key.bias", "gain") if recipe.parameters is BFLOAT16 else "key.bias"
    assert min(share for name, share in moved.items() if not name.endswith(free)) > 0.95


def test_moments_in_eight_bits_need_the_dynamic_map():
    wide, dynamic, linear = (trained(recipe_of(f"float32{name}"))[0][-1] for name in ("", "-adam8-dynamic", "-adam8-linear"))
    assert abs(dynamic - wide) < 0.01                          # 0.0003 seen
    assert linear > 2 * wide                             # 2.6 and 0.6: a v that was stored as 0 starts from 0 at each step


def test_without_a_master_copy_bfloat16_needs_more_than_nearest():
    loss = {name: trained(recipe_of(name))[0][-1] for name in ("float32", "bfloat16-pure", "bfloat16-stochastic", "bfloat16-kahan")}
    gap = {name: value - loss["float32"] for name, value in loss.items()}
    print(gap)
    assert gap["bfloat16-pure"] > 0.04                         # 0.083 seen: lost updates of gains, and of large weights
    assert abs(gap["bfloat16-stochastic"]) < 0.02              # 0.002 seen
    assert abs(gap["bfloat16-kahan"]) < 0.02                   # 0.002 seen


def test_pure_float16_at_eps_1e_8_diverges():
    losses, _, results = trained(recipe_of("float16", eps=1e-8))
    first = [r.finite for r in results].index(False)
    assert first < 5
    assert not math.isfinite(losses[-1])
    assert not any(r.finite for r in results[first:])                          # and it stays so: the weights are ruined


def test_recipes_that_are_compared_start_from_the_same_loss():
    first = {name: trained(recipe_of(name), steps=1)[0][0] for name, recipe in PRESETS.items() if not recipe.quantizers}
    for one, other in itertools.combinations(first.values(), 2):
        # rounded weights and activations: each of about 20 roundings to bfloat16 (2^-8) moves logits of at most 0.3 by 2^-8 of that
        assert abs(one - other) < 20 * 2.0**-8 * 0.3
