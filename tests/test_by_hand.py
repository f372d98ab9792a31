"""The step by hand, which autograd is timed against, computes what autograd computes, bit for bit."""
import numpy as np
import pytest
from tiny_gpt import batch, bits_of, make, objective_of

from minillm.autograd.tensor import backward
from minillm.bench.by_hand import ByHand
from minillm.precision.loss_scaling import LossScaler, static_scale
from minillm.training.trainer import training_step

pytestmark = pytest.mark.usefixtures("kernels_on")
LOW = {"float32": np.float32, "float16-mixed": np.float16}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("recipe", LOW)
def test_loss_and_gradients_are_those_of_autograd(recipe, bias):
    model = make(recipe, bias=bias)
    hand = ByHand(model, LOW[recipe])
    model.ops.context.begin(0)
    loss = model.loss(*batch())
    assert hand.forward(*batch()) == loss.data
    assert bits_of(hand.backward(2.0**8)) == bits_of(backward(loss * 2.0**8))


@pytest.mark.parametrize("recipe", LOW)
def test_ten_steps_are_those_of_the_trainer(recipe):
    model = make(recipe)
    hand, objective = ByHand(model, LOW[recipe]), objective_of(model, LossScaler(static_scale(2.0**8)))
    for step in range(10):
        found = training_step(objective, [batch(seed=step)], step, 1e-3)
        assert found.loss == hand(*batch(seed=step), lr=1e-3, scale=2.0**8)
    assert bits_of({p.name: p.data for p in model.parameters()}) == bits_of(hand.parameters)
