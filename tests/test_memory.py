"""Bytes by role: what the graph holds before the backward pass, counted once each, and casts of weights as weights."""
import math

import numpy as np
import pytest
from hand_made import by_hand, constant
from tiny_gpt import SHAPE, batch, make, objective_of

from minillm.optim import BlockMap
from minillm.recipes import PRESETS
from minillm.training.memory import measure

PARAMETERS = sum(p.size for p in make().parameters())


def sizes(recipe, rows=4, **shape):
    return measure(objective_of(make(recipe, **shape)), batch(rows))


def wide_bytes(rows=4, shape=SHAPE):
    """What every mixed recipe holds in float32: the logits of the loss, and the statistics of rows."""
    tokens = rows * shape.context
    norms = 2 * tokens * (2 * shape.layers + 1)                # mean and 1 / deviation
    attention = 2 * tokens * shape.heads * shape.layers        # the largest score and the sum of exponentials
    return 4 * (tokens * shape.vocabulary + tokens + norms + attention)              # and a log-sum-exp a token in the loss


@pytest.mark.usefixtures("kernels")
def test_float16_holds_half_of_what_float32_holds_but_for_logits_and_statistics():
    wide, narrow = sizes("float32")["bytes"]["activations"], sizes("float16-mixed")["bytes"]["activations"]
    assert narrow == (wide + wide_bytes()) // 2


@pytest.mark.parametrize("recipe", PRESETS)
def test_roles_have_the_bytes_of_their_formats(recipe):
    found, r = sizes(recipe), PRESETS[recipe]
    roles = {"gradients": [r.gradients], "optimizer": [r.optimizer_state] * 2 + [r.parameters] * (r.update == "kahan")}
    if isinstance(r.optimizer_state, BlockMap):
        del roles["optimizer"]
    for role, formats in roles.items():
        assert found["bytes"][role] == sum(PARAMETERS * f.bits // 8 for f in formats)
        assert found["stored_bytes"][role] == sum(PARAMETERS * np.dtype(f.storage).itemsize for f in formats)


@pytest.mark.parametrize("recipe", ["float32-adam8-dynamic", "float32-adam8-linear"])
def test_eight_bit_moments_take_a_byte_an_entry_and_four_a_block(recipe):
    expected = 0
    for p in make(channels=64).parameters():
        expected += 2 * (p.size + 4 * math.ceil(p.size / 256) if p.size >= 4096 else 4 * p.size)
    found = sizes(recipe, channels=64)
    assert found["bytes"]["optimizer"] == found["stored_bytes"]["optimizer"] == expected
    assert expected < sizes("float32", channels=64)["bytes"]["optimizer"] / 3       # 4 / (1 + 4 / 256), but for small arrays


def test_casts_of_weights_are_weights():
    # the master copy and a float16 copy of every matrix but the positions, whose rows are read; norms and biases stay wide
    model = make("float16-mixed")
    matrices = sum(p.size for p in model.parameters() if p.ndim == 2 and p.name != "positions.weight")
    assert sizes("float16-mixed")["bytes"]["weights"] == 4 * PARAMETERS + 2 * matrices
    assert sizes("float32")["bytes"]["weights"] == 4 * PARAMETERS
    assert sizes("float16")["bytes"]["weights"] == sizes("float16-no-master")["bytes"]["weights"] == 2 * PARAMETERS


def test_a_simulated_format_is_reported_in_its_own_bits_and_as_stored():
    found, float16, float32 = sizes("bfloat16-mixed"), sizes("float16-mixed"), sizes("float32")
    assert found["bytes"] == float16["bytes"]
    assert found["stored_bytes"]["activations"] == float32["bytes"]["activations"]
    assert found["stored_bytes"]["weights"] - 4 * PARAMETERS == 2 * (found["bytes"]["weights"] - 4 * PARAMETERS)
    assert float16["stored_bytes"] == float16["bytes"]


def test_activations_grow_with_the_batch_and_nothing_else_does():
    small, large = sizes("float16-mixed", rows=2)["bytes"], sizes("float16-mixed", rows=6)["bytes"]
    assert large["activations"] == 3 * small["activations"]
    assert all(large[role] == small[role] for role in ("weights", "gradients", "optimizer"))


def test_dropout_holds_nothing():
    assert sizes("float32", dropout=0.5) == sizes("float32")


def test_a_buffer_is_counted_once_however_many_nodes_and_views_hold_it():
    def loss(ops, p):
        x = ops.exp(p["w"])                                    # 12 floats, kept by exp, and by mul twice
        y = ops.mul(x, x)                                      # 12 floats, kept by mul through a view
        return ops.sum(ops.mul(ops.reshape(y, shape=(12,)), constant(np.ones(12))))     # and 12 ones

    found = measure(by_hand(loss, {"w": np.ones((3, 4))}), ())["bytes"]
    assert found == {"weights": 48, "gradients": 48, "optimizer": 48, "activations": 3 * 48}


def test_measuring_moves_nothing():
    objective = objective_of(make("float16-mixed"))
    before = {name: p.data for name, p in objective.optimizer.parameters.items()}
    first = measure(objective, batch())
    assert measure(objective, batch()) == first
    assert all(p.data is before[name] for name, p in objective.optimizer.parameters.items())
    assert objective.optimizer.steps == 0
