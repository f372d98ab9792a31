"""A model without some heads, channels or layers: the same function as with zeros in their place, in smaller arrays."""
import dataclasses
import math

import numpy as np
import pytest
from tiny_gpt import batch, bits_of, make, objective_of

from minillm.conversion.int8_model import to_int8, under
from minillm.errors import MiniLLMError
from minillm.hybrid.structure import Search, everything, narrowed, parts_of, prune_structure, without
from minillm.models.gpt import GPT, GPTShape, PrunedShape
from minillm.models.integer_gpt import IntegerGPT
from minillm.recipes import PRESETS
from minillm.training.checkpoint import load_model, read_state, save_state
from minillm.training.trainer import Schedule, Trainer

BATCHES = [batch(seed=i) for i in range(2)]
NO_LIMITS = {"head": math.inf, "channels": math.inf, "layer": math.inf}


def loud(recipe="float32", **shape):
    """A tiny model whose parts matter, each to another degree."""
    model = make(recipe, **shape)
    rng = np.random.default_rng(0)
    for p in model.parameters():
        p.data = (p.data + rng.standard_normal(p.shape, np.float32) * np.float32(0.15)).astype(p.data.dtype)
    return model


def by_name(model, *names):
    parts = {part.name: part for part in parts_of(model, 16)}
    return without(everything(model), [parts[name] for name in names])


CUTS = [("block0.head1",), ("block1.channels16", "block1.channels112"), ("block0.attention",), ("block1.mlp", "block0.head0"),
        ("block0.attention", "block0.mlp")]


@pytest.mark.parametrize("names", CUTS, ids=lambda names: " ".join(names))
@pytest.mark.parametrize("bias", [True, False])
def test_cut_arrays_give_the_loss_of_zeros(names, bias):
    model = loud(bias=bias)
    before = bits_of(model.state_dict())
    kept = by_name(model, *names)
    small = narrowed(model, kept)
    zeros, full = Search(model, BATCHES, NO_LIMITS).loss(kept), Search(model, BATCHES, NO_LIMITS).loss(everything(model))
    assert Search(small, BATCHES, NO_LIMITS).loss(everything(small)) == pytest.approx(zeros, rel=64 * 2.0**-24)
    assert abs(zeros - full) > 1e-4
    assert bits_of(model.state_dict()) == before
    assert sum(p.size for p in small.parameters()) < sum(p.size for p in model.parameters())


def test_a_pruned_model_can_be_pruned_further():
    model = loud(bias=False)
    once = narrowed(model, by_name(model, "block0.head1", "block1.channels0"))
    twice = narrowed(once, by_name(once, "block0.head1", "block1.channels0"))            # what was number 2, and 16 ... 31
    directly = narrowed(model, by_name(model, "block0.head1", "block0.head2", "block1.channels0", "block1.channels16"))
    assert bits_of(twice.state_dict()) == bits_of(directly.state_dict())
    assert twice.shape == directly.shape


def test_the_cheapest_goes_first_and_the_budget_is_kept():
    model = loud(bias=False)
    found = prune_structure(model, BATCHES, budget=0.005, group=16, limits={"layer": 0}, at_once=1)
    assert found.removed
    singly = {name: cost for name, cost in found.costs.items() if "head" in name}
    channels = {name: cost for name, cost in found.costs.items() if "channels" in name}
    assert len(singly) == 8
    assert len(channels) == 16
    assert found.removed[0][0] in (min(singly, key=singly.get), min(channels, key=channels.get))
    assert found.after == found.removed[-1][1] <= found.before + 0.005
    search = Search(found.model, BATCHES, NO_LIMITS)
    assert search.loss(everything(found.model)) == pytest.approx(found.after, rel=64 * 2.0**-24)


def test_limits_say_how_much_goes():
    model = loud(bias=False)
    found = prune_structure(model, BATCHES, math.inf, 16, {"head": 2, "channels": 80, "layer": 0}, at_once=8)
    assert sum(H for H, _ in found.model.shape.widths) == 8 - 2
    assert sum(hidden for _, hidden in found.model.shape.widths) == 256 - 80
    assert all(H and hidden for H, hidden in found.model.shape.widths)


def test_a_layer_without_effect_goes_whole():
    model = loud(bias=False)
    model.block1.mlp.down.weight.data[:] = 0
    found = prune_structure(model, BATCHES, 0.0, 64)
    assert found.model.shape.widths[1][1] == 0
    assert found.model.block1.mlp is None
    assert not [name for name in found.model.state_dict() if name.startswith(("block1.mlp", "block1.norm2"))]


@pytest.mark.parametrize("recipe", ["float32", "float16-mixed"])
def test_what_is_left_trains_saves_loads_generates_and_becomes_int8(recipe, tmp_path):
    model = loud(recipe, bias=False)
    small = narrowed(model, by_name(model, "block0.head1", "block1.attention", "block1.channels0"))
    trainer = Trainer(objective_of(small), lambda step, micro: batch(seed=step), Schedule(3, warmup=0, watch_every=0))
    losses = [record["loss"] for record in trainer.run()]
    assert all(map(math.isfinite, losses))
    save_state(tmp_path / "state", small, trainer)
    arrays, facts = read_state(tmp_path / "state")
    again = GPT(PrunedShape(**facts["shape"]), small.ops.recipe)
    load_model(tmp_path / "state", again, arrays, facts)
    assert bits_of(again.state_dict()) == bits_of(small.state_dict())
    plain = under(small, PRESETS["float32"])
    assert (plain.generate([1, 2], 6, 0.0) == naive(plain, [1, 2], 6)).all()
    codes = to_int8(under(small, PRESETS["float32"]))
    ids, _ = BATCHES[0]
    with codes.ops.context.no_record(), plain.ops.context.no_record():
        assert np.abs(codes(ids).data - plain(ids).data).max() < 0.05 * np.abs(plain(ids).data).max()
    assert codes.generate([1, 2], 6, int8_cache=True).shape == (8,)


def naive(model, ids, tokens):
    """The most likely tokens, each from a pass over all before it."""
    ids = list(ids)
    with model.ops.context.no_record():
        for _ in range(tokens):
            ids.append(int(model(np.array([ids], np.int32)).data[0, -1].argmax()))
    return np.array(ids)


def test_a_shape_that_keeps_everything_is_the_same_model():
    plain = make("float32", bias=True)
    shape = PrunedShape(**dataclasses.asdict(plain.shape), kept=plain.shape.widths)
    assert bits_of(GPT(shape, PRESETS["float32"], 3).state_dict()) == bits_of(plain.state_dict())
    assert shape.widths == GPTShape.widths.fget(plain.shape)


def test_what_cannot_be_is_said():
    model = make("float32")
    with pytest.raises(MiniLLMError, match="budget of -1"):
        prune_structure(model, BATCHES, -1)
    with pytest.raises(MiniLLMError, match="heads"):
        prune_structure(model, BATCHES, 1, limits={"heads": 1})
    with pytest.raises(MiniLLMError, match="kept of 2 blocks with 4 heads"):
        PrunedShape(**dataclasses.asdict(model.shape), kept=((5, 3), (1, 1)))
    with pytest.raises(MiniLLMError, match="int8 weights"):
        IntegerGPT(narrowed(model, by_name(model, "block0.head1")).shape)
