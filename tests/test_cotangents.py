"""Where a vjp kernel may round a cotangent itself: gradients are the same bits whether it does or not."""
from unittest import mock

import numpy as np
import pytest
from tiny_gpt import batch, bits_of, make

from minillm.autograd import tensor
from minillm.autograd.context import Context
from minillm.autograd.rule import RULES
from minillm.autograd.tensor import Tensor, apply, backward
from minillm.autograd.watching import watch
from minillm.errors import MiniLLMError
from minillm.formats import BFLOAT16, FLOAT16, FLOAT32
from minillm.recipes import PRESETS
from minillm.rounding import round_to


class Twin:
    """A kernel made of a rule: it computes what the rule does, and rounds what it is told to."""

    def __init__(self, rule, told):
        self.rule, self.told = rule, told

    def forward(self, *arrays, out, **static):
        y = self.rule.forward(np, *(tensor.widened(a, np.float32) for a in arrays), **static)
        y, extras = y if isinstance(y, tuple) else (y, {})
        y = round_to(y, FLOAT16 if out is np.float16 else FLOAT32)
        return (y, extras) if extras else y

    def vjp(self, g, *, out, **kept):
        self.told.append((self.rule.name, out))
        g, kept = tensor.widened(g, np.float32), {n: tensor.widened(a, np.float32) for n, a in kept.items()}
        shares = self.rule.backward(np, g, **kept)
        assert len(out) == len(shares)
        return tuple(round_to(share, FLOAT16) if share is not None and kind is np.float16 else share
                     for share, kind in zip(shares, out, strict=True))


def gradients(make_loss, rounds, told):
    """backward(make_loss()) where each rule computed in float32 has such a kernel; told what to round, or to keep all wide."""
    def kernel_for(rule, compute, static, arrays):
        return Twin(rule, told) if compute is np.float32 and rule.backward else None
    share_type = tensor.share_type if rounds else lambda parent, compute, uses: compute
    with mock.patch.object(tensor, "kernel_for", kernel_for), mock.patch.object(tensor, "share_type", share_type):
        return backward(make_loss())


def leaf(values, format=FLOAT16, name="x"):
    return Tensor(np.asarray(values, format.storage), format, name=name)


@pytest.mark.parametrize("recipe", PRESETS)
def test_rounded_or_wide_shares_give_the_same_bits(recipe):
    def loss():
        model = make(recipe, dropout=0.1)
        model.ops.context.begin(3)
        return model.loss(*batch()) * 2.0**10
    told = []
    assert bits_of(gradients(loss, True, told)) == bits_of(gradients(loss, False, []))
    assert (np.float16 in {kind for _, out in told for kind in out}) == any(
        f is FLOAT16 for f in (*PRESETS[recipe].casts.values(), PRESETS[recipe].parameters))


def rounded_by_kernels(make_loss):
    """The (op, number of the input) whose share a kernel was asked to round; gradients are those of wide shares."""
    told = []
    assert bits_of(gradients(make_loss, True, told)) == bits_of(gradients(make_loss, False, []))
    return [(op, i) for op, out in told for i, kind in enumerate(out) if kind is np.float16]


VALUES = [1.0, 1 + 2**-10, 3.0, 2.0**-20]


def third(x):
    """The loss sum(x / 3), in float32."""
    return (x * (1 / 3)).to(FLOAT32).sum()


def test_a_share_is_rounded_where_nothing_else_arrives():
    assert rounded_by_kernels(lambda: third(-leaf(VALUES) * 3)) == [("cast", 0), ("mul", 0), ("mul", 0)]


def test_a_share_that_is_still_to_be_summed_stays_wide():
    """1/3 arrives twice: their float32 sum is not the sum of two halves."""
    def loss():
        x = -leaf(VALUES)
        return third(x * (1 / 3)) + third(x * (1 + 2**-10)) + (x * x).to(FLOAT32).sum()
    found = rounded_by_kernels(loss)
    assert found.count(("cast", 0)) == 3
    assert found.count(("mul", 0)) == 2                      # into the products by 1/3 and 1 + 2^-10, never into x
    assert ("mul", 1) not in found


def test_a_sum_is_rounded_after_its_last_share():
    """1 and two halves of an ulp arrive: 1 + 2^-10, but 1 if it is rounded in between."""
    def loss():
        x = -leaf(VALUES)
        return sum((x * factor).to(FLOAT32).sum() for factor in (2.0**-11, 1.0, 2.0**-11))
    assert np.all(gradients(loss, True, [])["x"] == -(1 + 2.0**-10))


def test_both_shares_of_a_square_stay_wide():
    def loss():
        x = -leaf(VALUES)
        return third(x * x)
    assert rounded_by_kernels(loss) == [("cast", 0), ("mul", 0)]


def test_leaves_and_wide_tensors_get_wide_shares():
    assert rounded_by_kernels(lambda: third(leaf(VALUES))) == [("cast", 0)]
    assert rounded_by_kernels(lambda: third(-leaf(VALUES, FLOAT32))) == []


@pytest.mark.parametrize(("changes", "expected"), [
    ({}, True), ({"cotangents": FLOAT16}, True), ({"cotangents": BFLOAT16}, False), ({"cotangents": FLOAT32}, False),
    ({"backward": "stochastic"}, False), ({"backward": "toward_zero"}, False), ({"forward": "toward_zero"}, True)])
def test_a_share_is_rounded_only_if_the_recipe_would_round_it_so(changes, expected):
    """float16 and then bfloat16, or nearest and then stochastic, would be two roundings."""
    def loss():
        context = Context(7, **changes)
        x = apply(RULES["neg"], leaf(np.linspace(1, 2, 40)), context=context)
        return apply(RULES["mul"], x, leaf(np.linspace(0.1, 0.2, 40), name="z"), context=context).to(FLOAT32).sum()
    assert (("mul", 0) in rounded_by_kernels(loss)) == expected


def test_while_somebody_watches_all_shares_are_wide():
    told, events = [], []
    with watch(events.append):
        watched = gradients(lambda: third(-leaf(VALUES)), True, told)
    assert {kind for _, out in told for kind in out} == {np.float32}
    assert all(e.exact.dtype == np.float32 for e in events if e.phase == "backward")
    assert bits_of(watched) == bits_of(gradients(lambda: third(-leaf(VALUES)), True, []))


def test_a_kernel_that_gives_another_type_than_it_was_asked_for_is_named():
    exact = Twin.vjp
    with mock.patch.object(Twin, "vjp", lambda self, g, *, out, **kept: exact(self, g, out=(np.float32,) * len(out), **kept)), \
            pytest.raises(MiniLLMError, match=r"the vjp of cast gives float32 \(4,\) for a value"):
        gradients(lambda: third(leaf(VALUES)), True, [])
