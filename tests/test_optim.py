"""Optimizers against a float64 re-run and PyTorch; the schedule against its formula; the norm as a finite check; float16 state."""
import contextlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minillm.autograd.tensor import Tensor
from minillm.autograd.watching import watch
from minillm.errors import MiniLLMError
from minillm.formats import BFLOAT16, FLOAT16, FLOAT32
from minillm.optim import SGD, AdamW, clip_factor, cosine_schedule, global_norm
from minillm.rounding import round_to, widen

U = FLOAT32.roundoff
FORMATS = [FLOAT32, FLOAT16, BFLOAT16]
SHAPES = {"matrix": (7, 9), "vector": (33,), "cube": (2, 3, 5), "one": (1,)}
every_format = pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)


def parameters(format=FLOAT32, seed=0) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    return [Tensor(round_to(rng.standard_normal(shape, np.float32), format), format, name=name) for name, shape in SHAPES.items()]


def some_gradients(step, format=FLOAT32) -> dict[str, np.ndarray]:
    """Gradients of both signs, whose sizes spread over a hundredfold."""
    rng = np.random.default_rng((1, step))
    return {name: round_to(rng.standard_normal(shape) * 10 ** rng.uniform(-2, 0, shape), format) for name, shape in SHAPES.items()}


def exact(array) -> np.ndarray:
    return array.astype(np.float64)


def off_by(kept, truth, format, wide_error) -> float:
    """The error as a share of its bound: one rounding into the format, its subnormals, and what float32 lost before that."""
    bound = format.roundoff * (abs(truth) + wide_error) + format.smallest_subnormal / 2 + wide_error
    return float((abs(exact(kept) - truth) / bound).max())


def snapshot(optimizer):
    return {(slot, name): array.copy() for slot, named in optimizer.state.items() for name, array in named.items()} | {
        ("weight", name): p.data.copy() for name, p in optimizer.parameters.items()}


# --- one step against float64

def adamw_rerun(before, after, name, g, t, lr, ndim, optimizer):
    """(found, truth, what float32 may lose) of m, v and the weight; m and v enter the weight as they were kept."""
    (b1, b2), eps, decay = optimizer.betas, optimizer.eps, optimizer.weight_decay * (ndim > 1)
    w, m, v = (exact(before[slot, name]) for slot in ("weight", "m", "v"))
    yield "m", b1 * m + (1 - b1) * g, 6 * U * (abs(m) + abs(g))                # six roundings of numbers no larger
    yield "v", b2 * v + (1 - b2) * g * g, 6 * U * (v + g * g)
    m, v = exact(after["m", name]), exact(after["v", name])
    update = lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    yield "weight", w * (1 - lr * decay) - update, U * (3 * abs(w) + 10 * abs(update))


def sgd_rerun(before, after, name, g, t, lr, ndim, optimizer):
    decay = optimizer.weight_decay * (ndim > 1)
    w, b = exact(before["weight", name]), exact(before["momentum", name])
    yield "momentum", optimizer.momentum * b + g, 4 * U * (abs(b) + abs(g))
    b = exact(after["momentum", name])
    yield "weight", w * (1 - lr * decay) - lr * b, U * (3 * abs(w) + 4 * lr * abs(b))


def worst_share(make, rerun, format, state_format, factor=0.25, lr=0.02):
    """The largest share of a bound in twelve steps."""
    optimizer, shares = make(parameters(format), state_format=state_format), []
    for step in range(12):
        before, gradients = snapshot(optimizer), some_gradients(step, format)
        optimizer.step(gradients, lr, factor)
        after = snapshot(optimizer)
        for name, g in gradients.items():
            for slot, truth, wide_error in rerun(before, after, name, exact(g) * factor, step + 1, lr, g.ndim, optimizer):
                shares.append(off_by(after[slot, name], truth, format if slot == "weight" else state_format, wide_error))
    return max(shares)


@every_format
@pytest.mark.parametrize("state_format", FORMATS, ids=lambda f: f"state {f.name}")
@pytest.mark.parametrize(("make", "rerun"), [(AdamW, adamw_rerun), (SGD, sgd_rerun)], ids=["AdamW", "SGD"])
@pytest.mark.usefixtures("kernels")
def test_every_step_is_the_float64_step_rounded_once(make, rerun, format, state_format):
    share = worst_share(make, rerun, format, state_format)
    print(f"{share:.2f} of the bound")
    assert 0.1 < share < 1


@pytest.mark.parametrize("make", [AdamW, SGD])
def test_a_factor_is_the_same_as_scaled_gradients(make):
    one, other = make(parameters()), make(parameters())
    for step in range(3):
        factor, gradients = np.float32(0.37 + step), some_gradients(step)
        one.step(gradients, 1e-2, float(factor))
        other.step({name: g * factor for name, g in gradients.items()}, 1e-2)
    assert all(np.array_equal(a, snapshot(other)[key]) for key, a in snapshot(one).items())


@every_format
def test_the_kernel_has_the_bits_of_its_twin_watched_or_not(monkeypatch, format):
    found = []
    for switch, observe in (("on", False), ("off", False), ("on", True), ("off", True)):
        monkeypatch.setenv("MINILLM_KERNELS", switch)
        optimizer = AdamW(parameters(format), state_format=format)
        for step in range(5):
            with watch(lambda event: None) if observe else contextlib.nullcontext():
                optimizer.step(some_gradients(step, format), 1e-2, 0.3)
        found.append({key: array.tobytes() for key, array in snapshot(optimizer).items()})
    assert found[0] == found[1] == found[2] == found[3]


# --- against PyTorch

def train_in_torch(torch, make, groups_of, dtype, steps, lr):
    leaves = {p.name: torch.tensor(p.data, dtype=dtype, requires_grad=True) for p in parameters()}
    optimizer = make(groups_of(leaves))
    for step in range(steps):
        for name, g in some_gradients(step).items():
            leaves[name].grad = torch.tensor(g, dtype=dtype)
        optimizer.step()
    return {name: leaf.detach().numpy() for name, leaf in leaves.items()}


def agrees_with_torch(optimizer, make, groups_of, steps=20, lr=0.01):
    """Twenty float32 steps beside PyTorch's in float64 and float32."""
    torch = pytest.importorskip("torch")
    for step in range(steps):
        optimizer.step(some_gradients(step), lr)
    for dtype, runs in ((torch.float64, 1), (torch.float32, 2)):               # both are off by a bound
        truth = train_in_torch(torch, make, groups_of, dtype, steps, lr)
        for name, p in optimizer.parameters.items():
            # a step rounds the weight three times and an update of at most 3 lr ten times; errors of m and v live about 10 and 100
            # steps, so that each of them counts no more than twenty times
            bound = runs * steps * U * (3 * abs(truth[name]) + 20 * 10 * lr)
            assert (abs(exact(p.data) - exact(truth[name])) < bound).all(), name


def test_adamw_beside_pytorch():
    def groups(leaves):
        return [{"params": [p for p in leaves.values() if (p.ndim > 1) == matrix], "weight_decay": 0.1 * matrix}
                for matrix in (True, False)]
    agrees_with_torch(AdamW(parameters(), (0.9, 0.99), 1e-8, 0.1),
                      lambda g: pytest.importorskip("torch").optim.AdamW(g, lr=0.01, betas=(0.9, 0.99), eps=1e-8), groups)


def test_sgd_beside_pytorch():
    agrees_with_torch(SGD(parameters(), 0.9), lambda g: pytest.importorskip("torch").optim.SGD(g, lr=0.01, momentum=0.9),
                      lambda leaves: list(leaves.values()))


# --- decay, state, events

@pytest.mark.parametrize("make", [AdamW, SGD])
@pytest.mark.usefixtures("kernels")
def test_decay_is_on_matrices_only(make):
    before = {p.name: p.data for p in parameters()}
    optimizer = make(parameters(), weight_decay=0.5)
    optimizer.step({name: np.zeros_like(w) for name, w in before.items()}, lr=0.25)
    for name, p in optimizer.parameters.items():
        decay = np.float32(1 - 0.125) if p.ndim > 1 else np.float32(1)
        assert np.array_equal(p.data, before[name] * decay), name


@every_format
@pytest.mark.parametrize("make", [AdamW, SGD])
@pytest.mark.usefixtures("kernels")
def test_state_is_kept_in_its_format(make, format):
    optimizer = make(parameters(), state_format=format)
    for step in range(3):
        optimizer.step(some_gradients(step), 1e-2)
    for (slot, name), array in snapshot(optimizer).items():
        kept = FLOAT32 if slot == "weight" else format
        assert array.dtype == kept.storage, (slot, name)
        assert np.array_equal(round_to(widen(array, np.float32), kept), array), (slot, name)
        assert array.any(), (slot, name)


@every_format
def test_watchers_see_every_rounding_of_an_update(format):
    optimizer, events = AdamW(parameters(format), state_format=BFLOAT16), []
    with watch(events.append):
        optimizer.step(some_gradients(0, format), 1e-2)
    assert [(e.phase, e.address.scope, e.address.op) for e in events] == [
        ("update", name, slot) for name in SHAPES for slot in ("m", "v", "weight")]
    for e in events:
        assert e.format is (format if e.address.op == "weight" else BFLOAT16)
        assert e.exact.dtype == np.float32
        assert np.array_equal(round_to(e.exact, e.format), e.rounded)
        name, slot, _ = e.address
        assert e.rounded is (optimizer.parameters[name].data if slot == "weight" else optimizer.state[slot][name])


def test_a_parameter_without_a_gradient_is_left_alone_and_so_is_its_state():
    optimizer = AdamW(parameters())
    before, gradients = snapshot(optimizer), some_gradients(0)
    del gradients["vector"]
    optimizer.step(gradients, 1e-2)
    same = {key[1] for key, array in snapshot(optimizer).items() if np.array_equal(array, before[key])}
    assert same == {"vector"}


@pytest.mark.usefixtures("kernels")
def test_arrays_that_others_hold_are_not_written_to():
    optimizer = AdamW(parameters())
    held, gradients = {name: p.data for name, p in optimizer.parameters.items()}, some_gradients(0)
    copies = {name: (held[name].copy(), gradients[name].copy()) for name in held}
    optimizer.step(gradients, 1e-2)
    assert all(np.array_equal(held[n], w) and np.array_equal(gradients[n], g) for n, (w, g) in copies.items())


def test_parameters_need_names_of_their_own_and_gradients_their_shape():
    nameless, twins = Tensor(np.zeros(3, np.float32)), [Tensor(np.zeros(3, np.float32), name="same") for _ in range(2)]
    for wrong in ([nameless], twins):
        with pytest.raises(MiniLLMError, match="a name of their own"):
            AdamW(wrong)
    with pytest.raises(MiniLLMError, match=r"the gradient of vector has shape \(1, 33\)"):
        AdamW(parameters()).step({"vector": np.zeros((1, 33), np.float32)}, 1e-2)


# --- the trap: float16 moments and eps 1e-8

def first_move(gradient, state_format, eps, lr=1e-3):
    """How far the first step moves a weight whose gradient is this."""
    p = Tensor(np.zeros(1, np.float32), name="w")
    AdamW([p], (0.9, 0.99), eps, 0.0, state_format).step({"w": np.full(1, gradient, np.float32)}, lr)
    return abs(float(p.data[0]))


@pytest.mark.usefixtures("kernels")
def test_float16_moments_blow_up_where_v_rounds_to_zero():
    edge = math.sqrt(FLOAT16.smallest_subnormal / 2 / 0.01)                    # v = 0.01 g^2 <= 2^-25 is 0 in float16: g <= 1.7e-3
    assert 1.7e-3 < edge < 1.8e-3
    for gradient in (0.99 * edge, 1e-3, 1e-4):
        assert first_move(gradient, FLOAT16, 1e-8) > 1e3 * 1e-3                # g / eps in place of g / |g|: a thousand times lr
        assert first_move(gradient, FLOAT16, 1e-4) < 20 * 1e-3                 # g / 1e-4 at the edge: still 17 times
        assert first_move(gradient, FLOAT32, 1e-8) == pytest.approx(1e-3, rel=1e-3)
    assert first_move(1.01 * edge, FLOAT16, 1e-8) < 1e-3                       # v rounds up to 2^-24: too small a step, but a step


def test_eps_is_added_in_float32_whatever_the_state():
    assert np.float16(1e-8) == 0
    assert math.isfinite(first_move(2.0**-24, FLOAT16, 1e-8))                  # 0 / (0 + 1e-8), not 0 / 0


# --- schedule, norm, clipping

def nanogpt_lr(it, warmup_iters, lr_decay_iters, learning_rate, min_lr):
    """The published formula (nanoGPT, train.py, get_lr)."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    decay_ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * decay_ratio)) * (learning_rate - min_lr)


@given(st.integers(0, 3000), st.integers(0, 300), st.integers(301, 2500))
def test_the_schedule_is_the_published_formula(step, warmup, steps):
    ours, theirs = cosine_schedule(step, steps, 1e-3, 1e-4, warmup), nanogpt_lr(step, warmup, steps, 1e-3, 1e-4)
    assert ours == pytest.approx(theirs, rel=1e-12)                            # Python floats: a few roundings of 1e-16


def test_the_schedule_rises_to_lr_and_falls_to_min_lr():
    rates = [cosine_schedule(step, 200, 1e-3, 1e-4, 10) for step in range(250)]
    assert rates[0] == pytest.approx(1e-3 / 11)
    assert rates[10] == max(rates) == 1e-3
    assert all(a < b for a, b in itertools.pairwise(rates[:11]))
    assert all(a > b for a, b in itertools.pairwise(rates[10:201]))
    assert rates[200] == pytest.approx(1e-4)
    assert set(rates[200:]) == {rates[200]}
    assert [cosine_schedule(step, 5, 1e-3, 1e-4, 5) for step in (4, 5, 6)] == pytest.approx([5e-3 / 6, 1e-3, 1e-4])


@pytest.mark.parametrize("factor", [1.0, 2.0**-16, 0.3])
@every_format
@pytest.mark.usefixtures("kernels")
def test_the_global_norm_is_that_of_all_values_times_the_factor(format, factor):
    gradients = [*some_gradients(0, format).values(), round_to(np.random.default_rng(0).standard_normal((300, 100)), format)]
    truth = math.sqrt(sum(float(np.sum((exact(g) * factor) ** 2)) for g in gradients))
    # positive terms: a square is rounded three times, a sum of n terms n times at the very worst, the root halves it
    worst = (3 + sum(g.size for g in gradients)) / 2 * U
    assert global_norm(gradients, factor) == pytest.approx(truth, rel=worst)
    assert global_norm(gradients, factor) == pytest.approx(truth, rel=1e-6)    # and blocks keep it near 16 roundoffs


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("poison", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("place", [(0, 0), (3, 1), (17, 63), (99, 99)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_one_value_that_is_not_finite_makes_the_norm_so(poison, place, dtype):
    gradients = [np.ones((100, 100), dtype) for _ in range(3)]
    assert math.isfinite(global_norm(gradients))
    gradients[1][place] = poison
    assert not math.isfinite(global_norm(gradients))
    assert not math.isfinite(global_norm(gradients, 2.0**-16))


@pytest.mark.usefixtures("kernels")
def test_the_norm_of_nothing_and_of_the_very_large():
    assert global_norm([]) == global_norm([np.zeros((0, 3), np.float32)]) == global_norm([np.zeros(3, np.float32)]) == 0
    large = [np.full(4, 2.0**100, np.float32)]
    assert global_norm(large) == math.inf                                      # the square overflows float32, ...
    assert global_norm(large, 2.0**-100) == 2                                  # ... so the factor comes before it
    assert global_norm([np.full((4, 4), 2.0**10, np.float16)]) == 2.0**12      # float16 squares would be infinite
    assert global_norm([np.full((4, 6), 3, np.float32)[:, ::2], np.full((2, 2), 4, np.float32).T]) == pytest.approx(math.sqrt(172))


@given(st.floats(0, 1e30), st.floats(1e-6, 1e6))
@example(0.0, 1.0)
def test_clipping_bounds_the_norm_and_never_scales_up(norm, clip):
    factor = clip_factor(norm, clip)
    assert 0 < factor <= 1
    assert norm * factor <= clip * (1 + 3 * 2.0**-53)                          # three roundings of Python's floats
    assert factor == 1 or norm + 1e-6 > clip
    assert clip_factor(norm, 0) == 1
