"""A GPT in integers: each op beside float64 or Python's integers, the whole pass beside an oracle, and no float on the way."""
import ast
import dataclasses
import inspect
import math
import textwrap
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from integer_oracle import Oracle
from no_float import FloatFound, NoFloat, guard, guarded
from tiny_gpt import SHAPE, batch, make

from minillm import kernels as room
from minillm.conversion.calibration import calibrate
from minillm.conversion.convert import Conversion
from minillm.conversion.integer_model import observe, to_integers
from minillm.errors import MiniLLMError
from minillm.models import integer_gpt
from minillm.models.integer_gpt import IntegerGPT
from minillm.nn import integer
from minillm.quantization import fixed_point, integer_ops
from minillm.quantization.error import sqnr_db
from minillm.quantization.fixed_point import multiplier
from minillm.quantization.integer_ops import FRACTION, ONE, divide, exponential, normalized, softmax_codes, square_root
from minillm.training.checkpoint import part
from minillm.training.evaluation import validation_loss
from minillm.training.quantized_checkpoint import integer_file, load_integer

INTEGERS = Conversion("int8", "full-integer")


# --- ops

@given(arrays(np.int64, st.integers(1, 20), elements=st.integers(0, 2**62) | st.integers(0, 300)))
def test_a_root_is_the_largest_whole_number_whose_square_fits(n):
    assert square_root(n).tolist() == [math.isqrt(each) for each in n.tolist()]


@given(st.integers(-2**60, 2**60) | st.integers(-100, 100), st.integers(1, 2**60) | st.integers(1, 40))
def test_a_quotient_is_rounded_once(a, b):
    assert int(divide(np.array(a), b)) == math.floor(Fraction(a, b) + Fraction(1, 2))


def test_exp_is_within_two_thousandths():
    """I-BERT gives 1.9e-3 for its polynomial on -ln 2 ... 0; halving only makes it less, and ONE is 1.00024 of the factor."""
    x = -np.arange(30 << FRACTION, dtype=np.int64)[::7]
    exact = np.exp(x / 2.0**FRACTION)
    assert abs(exponential(x) / ONE - exact).max() < 1.9e-3 + 2.4e-4
    assert exponential(np.array([0, -2**31 + 1])).tolist() == [ONE, 0]


@given(arrays(np.int32, st.tuples(st.integers(1, 5), st.integers(1, 40)), elements=st.integers(-60000, 60000)),
       st.floats(1e-5, 1e-2))
def test_softmax_codes_are_exp_of_what_lies_below_the_largest(scores, scale):
    visible = np.tril(np.ones(scores.shape, bool))
    codes = softmax_codes(scores, visible, multiplier(scale * 2**FRACTION), "single")
    top = np.where(visible, scores, -10**6).max(-1, keepdims=True)
    exact = np.where(visible, np.exp((scores - top) * scale), 0) * 127
    assert codes.dtype == np.int8
    assert abs(codes - exact).max() <= 0.5 + 127 * (1.9e-3 + 2.4e-4 + 2.0**-FRACTION)      # of rounding, of exp, of its argument
    assert (codes.max(-1) == 127).all()
    assert not codes[~visible].any()


ROWS = arrays(np.int32, st.tuples(st.integers(1, 4), st.integers(2, 50)), elements=st.integers(-32767, 32767))


@given(ROWS, st.integers(1, 10**6))
def test_a_row_is_normalized(x, eps):
    found = normalized(x, np.array(eps)) / 2.0**30
    centred = x - x.mean(-1, keepdims=True)
    length = np.sqrt((centred**2).sum(-1, keepdims=True) + eps)
    # the mean is off by up to a half, which changes the length by up to half the root of C; the root has 4 bits behind the point
    error = (0.5 * (1 + math.sqrt(x.shape[-1])) + 2.0**-4) / length + 2.0**-30
    assert (abs(found - centred / length) <= error).all()


def test_a_row_of_one_value_becomes_zeros():
    assert not normalized(np.full((2, 7), 12345, np.int32), np.array(0)).any()


# --- a model

def random_model(**shape):
    """Gains of both signs, shifts and biases that are not 0, weights large enough that attention and GELU have something to do."""
    model, rng = make(bias=True, **shape), np.random.default_rng(1)
    for p in model.parameters():
        p.data = p.data * np.float32(5) + rng.standard_normal(p.shape, np.float32) * np.float32(0.02 if p.ndim == 2 else 0.4)
    return model


def converted(model, rounding="single", bits=16, rows=4):
    batches = [batch(rows, seed, model.shape) for seed in range(2)]
    return to_integers(model, INTEGERS, calibrate(model, batches), observe(model, batches), rounding, bits)[0]


@pytest.mark.parametrize(("rounding", "bits"), [("single", 16), ("double", 10)])
def test_the_whole_pass_equals_the_oracle(rounding, bits, kernels):
    model = converted(random_model(), rounding, bits)
    oracle = Oracle({name: a.tolist() for name, a in model.buffers().items()}, SHAPE.heads, SHAPE.layers, rounding, bits)
    ids, _ = batch(2, 9)
    found = model.integer_logits(ids)
    assert found.dtype == np.int32
    assert found.tolist() == [oracle.logits(row) for row in ids.tolist()]
    assert len(np.unique(found)) > 500


def test_kernels_and_threads_change_no_bit(monkeypatch):
    model, pool = converted(random_model(channels=64)), room.load("pool")
    ids, _ = batch(16, 9)
    monkeypatch.setenv("MINILLM_KERNELS", "off")
    plain = model.integer_logits(ids)
    monkeypatch.setenv("MINILLM_KERNELS", "on")
    before = pool.threads()
    try:
        for threads in range(1, pool.largest() + 1):
            pool.set_threads(threads)
            assert np.array_equal(model.integer_logits(ids), plain)
    finally:
        pool.set_threads(before)


def test_logits_are_near_those_of_the_float32_model():
    exact = random_model()
    ids, _ = batch(4, 0)
    expected, found = exact(ids).data, converted(exact)(ids).data
    assert sqnr_db(expected, found) > 20         # weights so large that errors grow from layer to layer


def test_one_token_at_a_time_has_the_same_bits_as_all_at_once():
    model = converted(random_model())
    ids, _ = batch(2, 9)
    caches = model.new_caches()
    steps = [model.integer_logits(ids[:, t:t + 1], caches, t) for t in range(SHAPE.context)]
    assert np.array_equal(np.concatenate(steps, 1), model.integer_logits(ids))
    assert {held.dtype.name for cache in caches for held in cache.held} == {"int8"}
    with pytest.raises(MiniLLMError, match="do not fit"):
        model.integer_logits(ids[:, :1], caches, SHAPE.context - 1)


def test_generation_takes_the_most_likely_token_of_a_whole_pass():
    model, ids = converted(random_model()), [3, 1, 4]
    for _ in range(20):                                                        # beyond the context of 16
        ids.append(int(model.integer_logits(np.array([ids[-SHAPE.context:]]))[0, -1].argmax()))
    assert model.generate(np.array([3, 1, 4]), 20, temperature=0).tolist() == ids


def test_layers_say_how_far_off_they_are():
    model = random_model()
    batches = [batch(4, seed) for seed in range(2)]
    target, layers = to_integers(model, INTEGERS, calibrate(model, batches), observe(model, batches))
    assert [layer.name for layer in layers] == ["positions.weight", *(
        f"block{i}.{name}.weight" for i in range(2) for name in (
            "attention.query", "attention.key", "attention.value", "attention.out", "mlp.up", "mlp.down")), "tokens.weight"]
    assert all(30 < layer.sqnr_db < 60 for layer in layers), layers
    norms = sum(a.nbytes for name, a in target.buffers().items() if "norm" in name or "attention.e" in name or "mixed" in name)
    assert sum(layer.bytes for layer in layers) == sum(a.nbytes for a in target.buffers().values()) - norms - 2 * 256 - 4


def test_a_model_that_says_nothing_is_converted():
    """Every activation is the constant 0: a range of nothing has scale 1."""
    model = make()
    for p in model.parameters():
        p.data = np.zeros_like(p.data)
    found = converted(model)
    assert not found.integer_logits(batch()[0]).any()
    assert validation_loss(found, np.arange(SHAPE.context + 1, dtype=np.int32))[0] == pytest.approx(math.log(SHAPE.vocabulary))


def test_what_lies_far_beyond_the_calibration_text_saturates():
    model = converted(random_model())
    for table in (model.tokens, model.positions):
        table.rescale.shift = table.rescale.shift + np.int8(12)
    limit = model.tokens.rescale.limit
    assert abs(model.tokens(np.arange(19))).max() == limit
    assert np.isfinite(model(batch()[0]).data).all()


def test_weights_too_far_apart_are_refused():
    model = random_model()
    model.norm.gain.data[3] = 1e30
    with pytest.raises(MiniLLMError, match="two scales are too far apart"):
        to_integers(model, INTEGERS, calibrate(random_model(), [batch()]), observe(random_model(), [batch()]))
    with pytest.raises(MiniLLMError, match="8 to 20"):
        IntegerGPT(SHAPE, bits=21)
    with pytest.raises(MiniLLMError, match=r"ids must lie in 0 \.\.\. 18"):
        converted(random_model()).integer_logits(np.array([[19]]))


def test_a_file_holds_the_model_and_only_its_own_shape_reads_it():
    from safetensors.numpy import load
    model = converted(random_model(), "double", 12)
    content = load(integer_file(model, dataclasses.asdict(INTEGERS)))
    facts = {"integer": {"rounding": "double", "bits": 12}}
    ids, _ = batch()
    assert np.array_equal(load_integer(SHAPE, content, facts).integer_logits(ids), model.integer_logits(ids))
    assert {name for name, a in part(content, "model/").items() if a.dtype.kind == "f"} == {"logit_scale"}
    with pytest.raises(MiniLLMError, match="of another model"):
        load_integer(dataclasses.replace(SHAPE, vocabulary=20), content, facts)


# --- no float between ids and logits

def walk(model):
    """A whole pass, and one token more, of arrays that raise on any float."""
    guard(model)
    ids = guarded(batch(2, 9)[0])
    whole, caches = model.integer_logits(ids), model.new_caches()
    model.integer_logits(ids[:, :-1], caches)
    last = model.integer_logits(ids[:, -1:], caches, SHAPE.context - 1)
    assert type(whole) is type(last) is NoFloat                                # none was lost on the way
    assert np.array_equal(last[:, 0], whole[:, -1])
    return whole


@pytest.mark.usefixtures("kernels_off")
@pytest.mark.parametrize("rounding", ["single", "double"])
def test_no_float_comes_between_ids_and_logits(rounding):
    model = converted(random_model(), rounding)
    expected = model.integer_logits(batch(2, 9)[0])
    assert np.array_equal(walk(model), expected)


def test_compiled_products_get_and_give_integers(kernels_on, monkeypatch):
    model, compiled = converted(random_model()), room.load("matmul").matmul_int8
    expected = model.integer_logits(batch(2, 9)[0])

    def watched(a, b):
        assert type(a) is type(b) is NoFloat
        return guarded(compiled(a, b))
    monkeypatch.setattr(room.load("matmul"), "matmul_int8", watched)
    assert np.array_equal(walk(model), expected)


FLOATS = {
    "a mean": lambda x: x.mean(), "true division": lambda x: x / 2, "a float scalar": lambda x: x * 0.5, "a root": np.sqrt,
    "a cast": lambda x: x.astype(np.float32), "a float type": lambda x: np.sum(x, dtype=np.float64),
    "a float array": lambda x: np.ones(3) + x, "in a list": lambda x: np.concatenate([x, np.ones(2)]),
    "into integers": lambda x: np.multiply(x, 0.5, out=x.copy(), casting="unsafe"),
    "a linear algebra product": lambda x: np.linalg.norm(x), "a float view": lambda x: x.view(np.float32),
    "where": lambda x: np.where(x > 0, x, 0.5), "clip": lambda x: np.clip(x, 0.0, 1), "a scalar's root": lambda x: np.sqrt(x[0]),
}


@pytest.mark.parametrize("use", FLOATS.values(), ids=FLOATS)
def test_the_stand_in_finds_a_float(use):
    with pytest.raises(FloatFound):
        use(guarded(np.arange(3, dtype=np.int32)))


def functions_of_the_pass():
    for module in (integer_ops, integer):
        yield from (node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.FunctionDef))
    for each in (fixed_point.multiply, fixed_point.requantize, fixed_point.single, fixed_point.double, fixed_point.saturate,
                 IntegerGPT.integer_logits):
        yield ast.parse(textwrap.dedent(inspect.getsource(each)))


def test_no_float_is_written_in_the_source_of_the_pass():
    """Neither a constant, nor a true division, nor a function that makes floats: what does not meet the walk's arrays, either."""
    makers = {"mean", "sqrt", "exp", "log", "power", "float32", "float64", "float16", "true_divide", "linspace", "float_"}
    for function in functions_of_the_pass():
        for node in ast.walk(function):
            assert not isinstance(node, ast.Div), ast.unparse(function)
            assert not isinstance(getattr(node, "value", None), float), ast.unparse(function)
            assert getattr(node, "attr", "") not in makers, ast.unparse(function)
    assert integer_gpt.product is integer.product is integer_ops.product
