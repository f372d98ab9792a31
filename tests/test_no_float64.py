"""Nothing in a training step is float64: every array is one that raises where float64 or complex would come in or out.

NumPy promotes in silence: x * np.float64(0.5), a mean's division by its count, a Python number beside an integer array. `Guarded`
sees operands, results and the type that NumPy's loop computes in, which may be wider than both.
"""
import dataclasses

import numpy as np
import pytest
from rule_cases import CASES, normal
from tiny_gpt import batch, make

from minillm.autograd.context import Context
from minillm.autograd.rule import RULES
from minillm.autograd.tensor import Tensor, apply, backward, received
from minillm.autograd.watching import watch
from minillm.formats import BFLOAT16, FLOAT16, FLOAT32
from minillm.optim import SGD, AdamW, clip_factor, global_norm
from minillm.recipes import PRESETS
from minillm.rounding import round_to

WIDE = (np.float64, np.longdouble, np.complex64, np.complex128, np.clongdouble)


class Float64Leak(Exception):
    """A value of a forbidden type."""


def refuse(dtype, where):
    if dtype is not None and np.dtype(dtype).type in WIDE:
        raise Float64Leak(f"{np.dtype(dtype)} in {where}")


def plain(x, where):
    """x without its guard, after a look at its type; lists and tuples item by item. Python numbers take the type beside them."""
    if isinstance(x, list | tuple):
        return type(x)(plain(item, where) for item in x)
    if isinstance(x, np.ndarray | np.generic):
        refuse(x.dtype, f"an operand of {where}")
    return x.view(np.ndarray) if isinstance(x, Guarded) else x


def guarded(x, where="a result"):
    """x under guard, values without axes too; lists and tuples item by item."""
    if isinstance(x, list | tuple):
        return type(x)(guarded(item, where) for item in x)
    if not isinstance(x, np.ndarray | np.generic):
        return x
    refuse(x.dtype, where)
    return np.asanyarray(x).view(Guarded)


class Guarded(np.ndarray):
    """An array that raises Float64Leak on float64 and complex operands, loops and results."""

    def __array_finalize__(self, made_from):
        refuse(self.dtype, "a copy or view")

    def __getitem__(self, index):
        return guarded(super().__getitem__(index))                            # NumPy makes a scalar of a single value

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **options):
        inputs, out = plain(inputs, ufunc.__name__), plain(out, ufunc.__name__)
        refuse(options.get("dtype"), ufunc.__name__)
        refuse(loop_type(ufunc, method, inputs, out, options), f"the loop of {ufunc.__name__}.{method}")
        result = getattr(ufunc, method)(*inputs, **options, **({"out": out} if out else {}))
        return guarded(result, f"the result of {ufunc.__name__}")

    def __array_function__(self, function, types, inputs, options):
        plain([*inputs, *options.values()], function.__name__)
        refuse(options.get("dtype"), function.__name__)
        result = super().__array_function__(function, types, inputs, options)  # what it is made of meets the guard, too
        return guarded(result, f"the result of {function.__name__}")


def loop_type(ufunc, method, inputs, out, options):
    """The widest type that NumPy computes in, as its own resolution of the operands says."""
    if method == "at" or options.get("dtype") is not None:
        return options.get("dtype")
    types = [type(x) if type(x) in (int, float) else np.asarray(x).dtype for x in inputs]
    if method != "__call__":
        types = [types[0], types[0], types[0]]
        return ufunc.resolve_dtypes((None, *types[1:2], None) if ufunc.nin == 2 else types, reduction=True)[0]
    outputs = [x.dtype for x in out] or [None] * ufunc.nout
    resolved = ufunc.resolve_dtypes((*types, *outputs), casting="unsafe")
    return next((dtype for dtype in resolved if dtype.type in WIDE), None)


@pytest.fixture(autouse=True)
def nothing_takes_the_guard_off(kernels_off, monkeypatch):
    """np.asarray would make a plain array of a guarded one; a cotangent may be made anew by a vjp. Kernels: test_kernels.py."""
    monkeypatch.setattr(np, "asarray", np.asanyarray)
    monkeypatch.setattr(np, "ascontiguousarray", lambda x: np.array(x, order="C", copy=None, subok=True, ndmin=1))
    monkeypatch.setattr("minillm.autograd.tensor.received", lambda *given: guarded(received(*given), "a cotangent"))


def half(*shape):
    return guarded(normal(*shape).astype(np.float16))


def single(*shape):
    return guarded(normal(*shape).astype(np.float32))


# the step

def guarded_model(recipe):
    """A model and its optimizer, every array of both under guard."""
    model = make(recipe, dropout=0.1)
    for p in model.parameters():
        p.data = guarded(p.data)
    optimizer = AdamW(model.parameters(), eps=recipe.eps, state_format=recipe.optimizer_state, update=recipe.update)
    optimizer.state = {slot: {name: guarded(a) for name, a in state.items()} for slot, state in optimizer.state.items()}
    return model, optimizer


RECIPES = [*PRESETS.values(), dataclasses.replace(PRESETS["float16-mixed"], name="composed", composed=("attention",))]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_training_step_has_no_float64(recipe):
    model, optimizer = guarded_model(recipe)
    before, unguarded = {name: np.array(a) for name, a in model.state_dict().items()}, []

    def look(event):
        if event.phase != "backward" and not type(event.exact) is type(event.rounded) is Guarded:      # cotangents: see above
            unguarded.append(str(event.address))
    with watch(look):
        for step in range(2):
            model.ops.context.begin(step)
            gradients = backward(model.loss(*batch()) * (1024.0 / 2))
            total = {name: g + g for name, g in gradients.items()}            # two micro-batches
            norm = global_norm(total.values(), 1 / 1024.0)
            optimizer.step(total, 1e-2, clip_factor(norm, 1.0) / 1024.0)
    assert not unguarded
    for p in model.parameters():
        assert p.data.dtype == recipe.parameters.storage
        # the bias of a key has a true gradient of 0, and what rounding makes of it in float16 may be below an eps of 1e-4
        assert p.name.endswith("key.bias") or not np.array_equal(p.data, before[p.name])


@pytest.mark.parametrize("format", [FLOAT16, FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_no_rule_has_float64(name, format):
    for inputs, static in CASES[name]:
        made = []
        for i, (x, what) in enumerate(zip(inputs, RULES[name].names(len(inputs)), strict=False)):
            floating = isinstance(x, np.ndarray) and x.dtype.kind == "f"
            if floating and what not in RULES[name].plain:
                x = Tensor(guarded(round_to(x, format)), format, name=str(i))
            made.append(guarded(x.astype(np.float32) if floating and what in RULES[name].plain else x))
        y = apply(RULES[name], *made, context=Context(), **static)
        assert isinstance(y.data, Guarded)
        assert all(gradient.dtype == format.storage for gradient in backward(y.sum()).values())


def test_sgd_has_no_float64():
    for format in (FLOAT32, FLOAT16):
        w = Tensor(guarded(np.ones((3, 4), format.storage)), format, name="w")
        optimizer = SGD([w], weight_decay=0.1, state_format=format)
        optimizer.state["momentum"]["w"] = guarded(optimizer.state["momentum"]["w"])
        optimizer.step({"w": guarded(np.ones((3, 4), format.storage))}, 1e-2, 0.5)
        assert (type(w.data), type(optimizer.state["momentum"]["w"])) == (Guarded, Guarded)


# the detector

LEAKS = {
    "a float64 scalar": lambda x: x * np.float64(0.5),
    "an array of float64": lambda x: x + np.ones(4),
    "a float64 scalar on the left": lambda x: np.float64(2) - x,
    "a mean": lambda x: x.mean(-1),              # divides by its count in float64 and rounds back: seen nowhere else
    "a variance": lambda x: x.var(),
    "a standard deviation": lambda x: np.std(x, axis=0),
    "a sum in float64": lambda x: x.sum(dtype=np.float64),
    "a division by an integer array": lambda x: x / np.arange(1, 5),
    "a division of integers": lambda x: np.argmax(x, 1) / 2,
    "a root of integers": lambda x: np.sqrt(guarded(np.arange(4))),
    "a conversion": lambda x: x.astype(np.float64),
    "a conversion with rounding back": lambda x: x.astype(float).astype(np.float32),
    "a product with a float64 matrix": lambda x: x @ np.eye(4),
    "where with a float64 array": lambda x: np.where(x > 0, x, np.zeros(4)),
    "concatenation with a float64 array": lambda x: np.concatenate([x, np.zeros((1, 4))]),
    "a complex number": lambda x: x * np.complex64(1),
    "an update in place": lambda x: x.__imul__(np.float64(2)),
    "a sum of integers as a mean": lambda x: (x > 0).mean(),
    "an array made like it": lambda x: np.zeros_like(x, dtype=float),
    "a mean over all": lambda x: np.mean(x),
    "a cumulative sum": lambda x: np.cumsum(x, dtype=np.float64),
    "a selection of float64": lambda x: np.clip(x, np.float64(0), np.float64(1)),
    "an outer product": lambda x: np.multiply.outer(x, np.ones(2)),
    "einsum": lambda x: np.einsum("ij,j->i", x, np.ones(4)),
}
HARMLESS = {
    "a Python number": lambda x: x * 0.5 + 2 - 1.5 / (x * x + 1),
    "a power": lambda x: x**2,
    "a float32 scalar": lambda x: x * np.float32(0.5),
    "a sum": lambda x: x.sum(-1, keepdims=True, dtype=x.dtype) / x.shape[-1],
    "a maximum": lambda x: np.maximum(x.max(axis=1), -3e38 if x.dtype == np.float32 else -6e4),
    "where with a number": lambda x: np.where(x > 0, x, 0) + np.where(x > 0, x, -np.inf),
    "functions": lambda x: np.exp(np.tanh(x)) + np.sqrt(abs(x)) + np.log1p(abs(x)),
    "moving": lambda x: np.concatenate([x.T.reshape(4, -1)[::-1], x.T])[None, 1:],
    "a product": lambda x: x @ x.T,
    "bits": lambda x: (x.view(f"u{x.itemsize}") >> 3) & 1,
    "integers": lambda x: np.take_along_axis(x, np.argmax(x, 1)[:, None], 1),
    "counting": lambda x: (x > 0).sum(dtype=x.dtype),
    "in place": lambda x: x.__iadd__(1),
    "at": lambda x: np.add.at(np.zeros((3, 4), x.dtype), np.array([0, 1, 2]), x),
}


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("make_array", [half, single])
def test_every_way_to_float64_is_seen(leak, make_array):
    with pytest.raises(Float64Leak):
        LEAKS[leak](make_array(3, 4))


@pytest.mark.parametrize("step", HARMLESS)
@pytest.mark.parametrize("make_array", [half, single])
def test_what_stays_narrow_passes(step, make_array):
    x = make_array(3, 4)
    y = HARMLESS[step](x)
    if y is not None:
        assert type(y) is Guarded
        unguarded = HARMLESS[step](np.array(x, subok=False) if step != "in place" else np.array(x, subok=False) - np.float16(1))
        assert np.array_equal(np.asarray(y), unguarded)


def test_a_leak_planted_in_a_rule_is_caught(monkeypatch):
    forward, backward_ = RULES["gelu"].forward, RULES["layer_norm"].backward

    def step():
        model, _ = guarded_model(PRESETS["float16-mixed"])
        backward(model.loss(*batch()))
    step()
    with monkeypatch.context() as patch:
        patch.setattr(RULES["gelu"], "forward", lambda xp, x: (forward(xp, x) * np.float64(1)).astype(x.dtype))
        with pytest.raises(Float64Leak, match="float64 in an operand of multiply"):
            step()
    with monkeypatch.context() as patch:
        patch.setattr(RULES["layer_norm"], "backward", lambda xp, g, **kept: backward_(xp, g + 0 * g.mean(), **kept))
        with pytest.raises(Float64Leak, match=r"float64 in the loop of (true_)?divide"):
            step()


def test_a_leak_planted_in_the_optimizer_is_caught(monkeypatch):
    model, optimizer = guarded_model(PRESETS["float32"])
    constants = optimizer.constants
    monkeypatch.setattr(optimizer, "constants", lambda p, lr: tuple(map(np.float64, constants(p, lr))))
    with pytest.raises(Float64Leak, match="float64 in an operand of"):
        optimizer.step({p.name: p.data for p in model.parameters()}, 1e-3)
