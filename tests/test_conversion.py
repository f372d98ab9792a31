"""Conversions of a matrix: each does what its paper says, on numbers where the difference shows; and a model of codes in a file."""
import numpy as np
import pytest
from tiny_gpt import batch, make

from minillm.autograd.tensor import Tensor
from minillm.conversion.awq import awq, output_error
from minillm.conversion.calibration import MOST_ROWS, calibrate
from minillm.conversion.convert import LEAST_SIZE, METHODS, Conversion, convert
from minillm.conversion.gptq import DAMPING, gptq, hessian
from minillm.conversion.int8_model import under
from minillm.conversion.outliers import decompose
from minillm.conversion.rounding import round_to_nearest
from minillm.conversion.smoothquant import smoothquant
from minillm.errors import MiniLLMError
from minillm.formats import FLOAT32
from minillm.nn import QuantizedMatrix, quantized_layers
from minillm.quantization.affine import INT8, PER_ROW, PER_TENSOR, Scheme, codes_of, grid, quantize
from minillm.quantization.error import sqnr_db
from minillm.quantization.fake_quant import shared_steps
from minillm.recipes import INT4_RANGES, PRESETS
from minillm.training.quantized_checkpoint import load_quantized, quantized_file

GROUPS = {bits: Scheme(grid(bits, narrow=False), symmetric=False, granularity="group", group=64) for bits in (2, 3, 4)}
WHOLE = [Conversion(scheme, method, granularity) for scheme, method, granularity in (
    ("int8", "rtn", "channel"), ("int8", "rtn", "tensor"), ("int8", "rtn", "group"), ("int8", "smoothquant", "channel"),
    ("int8", "outliers", "channel"), ("int8", "dynamic", "channel"), ("int4", "gptq", "group"), ("int4", "gptq-act", "channel"),
    ("int3", "awq", "group"), ("int2", "gptq", "tensor"))]


def planted(channels, factor, correlated=False):
    """Inputs (n,K) with a few channels multiplied, and weights (N,K)."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1024, 512), np.float32), rng.standard_normal((128, 512), np.float32) * np.float32(0.02)
    if correlated:
        x = x + x @ rng.standard_normal((512, 512), np.float32) / np.float32(512**0.5)
    x[:, rng.choice(512, channels, False)] *= np.float32(factor)
    return w, x


def output_db(matrix, w, x):
    return sqnr_db(x @ w.T, matrix.apply(x))


# --- inputs with outliers, in int8

def test_outliers_cost_least_where_they_are_kept_apart():
    """Six of 512 channels 60 times as large: per tensor near 23 dB, by row and token near 31, decomposed far above 40."""
    w, x = planted(6, 60)
    both = quantize(x, PER_TENSOR).values() @ quantize(w, PER_TENSOR).values().T
    assert 20 < sqnr_db(x @ w.T, both) < 25
    assert 27 < output_db(QuantizedMatrix(quantize(w, PER_ROW), int8=True), w, x) < 33
    apart = decompose(w, x, PER_ROW)
    assert len(apart.outliers) == 6
    assert output_db(apart, w, x) > 50


def test_the_threshold_says_what_an_outlier_is():
    w, x = planted(6, 60)
    assert decompose(w, x, PER_ROW, threshold=1e9).outliers is None
    assert len(decompose(w, x, PER_ROW, threshold=0).outliers) == 512


def test_smoothing_is_best_half_way():
    w, x = planted(6, 60)
    db = {alpha: output_db(smoothquant(w, x, PER_ROW, alpha), w, x) for alpha in (0, 0.25, 0.5, 0.75, 1)}
    assert max(db, key=db.get) in (0.5, 0.75)
    assert db[0.5] > db[0] + 8
    assert db[0.5] > db[1] + 8


def test_smoothing_changes_no_output_but_for_rounding():
    w, x = planted(6, 60)
    matrix = smoothquant(w, x, PER_ROW)
    assert abs(matrix.values() - w).max() < 2 * (matrix.weight.scale[:, None] / matrix.divide).max()
    assert sqnr_db(w, matrix.values()) > 30


# --- few bits

@pytest.mark.parametrize("bits", [4, 3])
def test_gptq_beats_rounding_and_its_order_beats_gptq(bits):
    w, x = planted(12, 10, correlated=True)
    rounded, corrected, ordered = (output_db(m, w, x) for m in (
        round_to_nearest(w, x, GROUPS[bits]), gptq(w, x, GROUPS[bits]), gptq(w, x, GROUPS[bits], activation_order=True)))
    assert corrected > rounded + 1
    assert ordered > corrected + 1


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_awq_beats_rounding(bits):
    w, x = planted(12, 10, correlated=True)
    assert output_db(awq(w, x, GROUPS[bits]), w, x) > output_db(round_to_nearest(w, x, GROUPS[bits]), w, x) + 1


@pytest.mark.parametrize("scheme", [PER_TENSOR, PER_ROW, *GROUPS.values()], ids=lambda s: f"{s.grid.bits} by {s.granularity}")
def test_awq_is_never_worse_than_what_it_begins_with(scheme):
    w, x = planted(0, 1)
    assert output_error(awq(w, x, scheme), w, x) <= output_error(round_to_nearest(w, x, scheme), w, x)


def solved_anew(w, x, scheme, order):
    """GPTQ by its definition: each column is rounded, and those to come are set to what leaves the least squared error."""
    H = hessian(x)
    H += DAMPING * np.diag(H).mean() * np.eye(len(H))
    start, codes, now = quantize(w, scheme), np.zeros(w.shape, np.int8), w.astype(np.float64)
    for i, k in enumerate(order):
        codes[:, k] = codes_of(now[:, k].astype(np.float32), start.scale, None, scheme)
        off = codes[:, k] * start.scale.astype(np.float64) - now[:, k]
        rest = order[i + 1:]
        if len(rest):
            now[:, rest] -= np.outer(off, np.linalg.solve(H[np.ix_(rest, rest)], H[rest, k]))
    return codes


@pytest.mark.parametrize("activation_order", [False, True])
def test_gptq_corrects_as_solving_for_the_rest_would(activation_order):
    rng = np.random.default_rng(1)
    w, x = rng.standard_normal((8, 12), np.float32), rng.standard_normal((64, 12), np.float32) * np.float32(1.3) ** np.arange(12)
    x = x.astype(np.float32)
    scheme = Scheme(grid(3), granularity="channel")
    order = np.argsort(-np.diag(hessian(x)), kind="stable") if activation_order else np.arange(12)
    expected, found = solved_anew(w, x, scheme, order), gptq(w, x, scheme, activation_order).weight.codes
    assert np.array_equal(found, expected)               # seeds without a value at a tie, where float32 might part
    assert not np.array_equal(found, quantize(w, scheme).codes)


@pytest.mark.parametrize("scheme", [PER_TENSOR, PER_ROW, *GROUPS.values()], ids=lambda s: f"{s.grid.bits} by {s.granularity}")
def test_gptq_of_inputs_that_know_nothing_of_each_other_is_rounding(scheme):
    w, x = planted(0, 1)[0], 8 * np.eye(512, dtype=np.float32)
    assert np.array_equal(gptq(w, x, scheme).weight.codes, quantize(w, scheme).codes)
    assert np.array_equal(gptq(w, x, scheme).values(), quantize(w, scheme).values())


@pytest.mark.parametrize("method", METHODS.values())
def test_an_input_that_is_always_0_and_one_constant_harm_nobody(method):
    w, x = planted(0, 1)
    x[:, 3], x[:, 5] = 0, 7
    assert np.isfinite(method(w, x, PER_ROW).apply(x)).all()
    assert output_db(method(w, x, PER_ROW), w, x) > 35


@pytest.mark.parametrize("scheme", [PER_TENSOR, PER_ROW, *GROUPS.values()], ids=lambda s: f"{s.grid.bits} by {s.granularity}")
@pytest.mark.parametrize("method", METHODS.values())
def test_rows_by_number_are_rows_of_the_values(method, scheme):
    if scheme.grid.bits == 8 or method in (round_to_nearest, gptq, awq):
        w, x = planted(6, 60)
        matrix, ids = method(w, x, scheme), np.array([[3, 1], [3, 127]])
        assert np.array_equal(matrix.rows(ids), matrix.values()[ids])


# --- a model

def converted(how, **shape):
    model = make(**{"channels": 64} | shape)
    return model, *convert(model, how, calibrate(under(model, PRESETS["float32"]), [batch(8, shape=model.shape)]))


@pytest.mark.parametrize("how", WHOLE, ids=str)
def test_a_model_of_codes_comes_back_from_its_file_bit_for_bit(how, tmp_path):
    from minillm.training.checkpoint import read_state
    _, ours, _ = converted(how)
    (tmp_path / "state").write_bytes(quantized_file(ours, {}))
    arrays, facts = read_state(tmp_path / "state")
    back = load_quantized(make("float32", seed=9, channels=64), arrays, facts)
    with ours.ops.context.no_record(), back.ops.context.no_record():
        assert np.array_equal(ours(batch()[0]).data, back(batch()[0]).data)
    assert len(quantized_layers(back)) == len(quantized_layers(ours)) == 14


@pytest.mark.parametrize("how", WHOLE, ids=str)
def test_bytes_of_layers_are_those_of_their_arrays_in_the_file(how, tmp_path):
    from minillm.training.checkpoint import read_state
    _, ours, layers = converted(how)
    (tmp_path / "state").write_bytes(quantized_file(ours, {}))
    arrays, _ = read_state(tmp_path / "state")
    for layer in layers:
        place = f"model/{layer.name.removesuffix('.weight')}."
        own = [a for name, a in arrays.items() if name.startswith(place) and not name.endswith("bias")]
        assert sum(a.nbytes for a in own) == layer.bytes, layer.name


def test_more_bits_and_finer_scales_are_nearer():
    db = {(scheme, granularity): [layer.sqnr_db for layer in converted(Conversion(scheme, "rtn", granularity))[2]]
          for scheme in ("int8", "int4", "int2") for granularity in ("tensor", "group")}
    for granularity in ("tensor", "group"):
        assert np.all(np.array(db["int8", granularity]) > np.array(db["int4", granularity]) + 15)      # 6 dB a bit, less at few
        assert np.all(np.array(db["int4", granularity]) > np.array(db["int2", granularity]) + 8)
    assert np.mean(db["int4", "group"]) > np.mean(db["int4", "tensor"]) + 1


def test_small_matrices_stay_as_they_are_under_dynamic():
    model, ours, layers = converted(Conversion(method="dynamic"), context=15)
    sizes = {p.name: p.size for p in model.parameters() if p.ndim == 2}
    kept = {layer.name for layer in layers if layer.left}
    assert kept == {name for name, size in sizes.items() if size < LEAST_SIZE} == {"positions.weight"}
    assert len(quantized_layers(ours)) == len(sizes) - len(kept)


def test_int4_steps_that_were_learned_are_those_of_the_file():
    model = make("int4-qat", channels=64)
    model.loss(*batch())
    weights = {p.name: p.data for p in model.parameters()}
    for leaf in model.ops.learned.values():
        leaf.data = leaf.data - np.float32(0.01)
    ours, _ = convert(model, Conversion("int4", "rtn", "group"), calibrate(under(model, PRESETS["float32"]), [batch()]))
    for name, layer in quantized_layers(ours).items():
        weight, log_share = weights[f"{name}.weight"], model.ops.learned[f"{name}.weight.log_share"].data
        steps = shared_steps(np, weight, log_share, 7)
        assert layer.scheme.grid == grid(4, narrow=False)
        assert layer.scale.dtype == np.float16
        trained = INT4_RANGES(model.ops, Tensor(weight, FLOAT32, name=f"{name}.weight"), "").data
        apart = abs(layer.matrix.values() - trained).reshape(len(steps), -1) / steps
        place = abs(weight.reshape(len(steps), -1) / steps)
        beside_a_tie = abs(place - np.floor(place) - 0.5) < 2**-8              # steps are off by 2^-11, places are below 8
        assert np.all(apart <= 2**-8 + beside_a_tie)
        assert np.mean(apart > 0.5) < 0.02


def test_ternary_weights_are_those_of_training():
    """Inputs are normalized and become the same codes; only sums are exact here, and float32's there."""
    model = make("bitnet-b1.58")
    ours, layers = convert(model, Conversion("ternary"), {})
    ids = batch()[0]
    with model.ops.context.no_record(), ours.ops.context.no_record():
        there, here = model(ids).data, ours(ids).data
    assert np.abs(here - there).max() < 1e-5 * np.abs(there).max()             # 32 terms a sum, two layers: 100 roundings of 2^-24
    assert {layer.name for layer in layers if layer.left} == {"tokens.weight", "positions.weight"}
    assert all(set(np.unique(layer.codes)) == {-1, 0, 1} for layer in quantized_layers(ours).values())


def test_calibration_sees_what_goes_into_every_linear_layer_and_the_head():
    model = make()
    inputs = calibrate(model, [batch(4), batch(2, seed=1)])
    assert {name: x.shape for name, x in inputs.items()} == {
        p.name: (6 * 16, p.shape[1]) for p in model.parameters() if p.ndim == 2 and p is not model.positions.weight}
    many = calibrate(model, [batch(2 + MOST_ROWS // 16)])
    assert {len(x) for x in many.values()} == {MOST_ROWS}
    with model.ops.context.no_record():
        x = model.block0.norm1(model.ops.add(model.tokens(batch(4)[0]), model.positions(np.arange(16)))).data
    assert np.array_equal(inputs["block0.attention.key.weight"][:64], x.reshape(64, -1))
    assert model.ops.linear.func.__name__ == "call"      # the op is as it was


def test_what_cannot_be_calibrated_is_said():
    with pytest.raises(MiniLLMError, match="no text to calibrate with"):
        calibrate(make(), [])
    model = make()
    model.block0.norm1.gain.data = np.full(32, np.inf, np.float32)
    with pytest.raises(MiniLLMError, match=r"inputs of .* are not finite on the calibration text"):
        calibrate(model, [batch()])


def test_weights_that_are_not_finite_are_refused():
    model = make()
    model.block0.mlp.up.weight.data = np.full_like(model.block0.mlp.up.weight.data, np.nan)
    with pytest.raises(MiniLLMError, match="a weight is nan, which int8 cannot hold"):
        convert(model, Conversion(), {})


@pytest.mark.parametrize(("fields", "says"), [
    (("int9",), "unknown scheme 'int9'"), (("int8", "awk"), "did you mean 'awq'"), (("int8", "rtn", "row"), "unknown granularity"),
    (("int4", "smoothquant"), "smoothquant multiplies int8 codes"), (("int8", "outliers", "group"), "int8 by group does not"),
    (("int8", "rtn", "group", 0), "a group of 0")])
def test_conversions_that_do_not_exist_are_named(fields, says):
    with pytest.raises(MiniLLMError, match=says):
        Conversion(*fields)


def test_int8_is_symmetric_so_that_products_need_no_zero_point():
    assert Conversion().make_scheme() == Scheme(INT8, granularity="channel")
