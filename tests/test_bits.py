"""The curve of bits against loss, as a user types it, and what rests on it: a table with two uses, outputs that keep their size."""
import json

import numpy as np
import pytest
from tiny_gpt import batch, make
from tiny_run import SMALL, contents, write_text

from minillm import cli
from minillm.conversion.awq import awq, cut, inner
from minillm.conversion.calibration import calibrate
from minillm.conversion.convert import BITS, METHODS, Conversion, both_uses, convert
from minillm.conversion.gptq import gptq, hessian
from minillm.conversion.rounding import round_to_nearest
from minillm.experiments import bits as curve
from minillm.experiments.bits import conversions
from minillm.quantization.affine import Scheme, grid
from minillm.quantization.error import sqnr_db

GROUPS = {bits: Conversion(f"int{bits}", "awq", "group").make_scheme() for bits in (2, 3, 4)}


def matrices():
    """A weight (N,K) and inputs (n,K) that know of each other."""
    rng = np.random.default_rng(2)
    w, mix = rng.standard_normal((48, 96), np.float32), rng.standard_normal((96, 96), np.float32) / np.float32(96**0.5)
    return w, rng.standard_normal((512, 96), np.float32) @ (np.eye(96, dtype=np.float32) + mix)


# --- a range that was cut

@pytest.mark.parametrize("scheme", [*GROUPS.values(), Scheme(grid(3), granularity="channel"), Scheme(grid(3))],
                         ids=lambda s: f"{s.grid.bits} by {s.granularity}")
def test_a_cut_range_keeps_the_size_of_what_its_weights_put_out(scheme):
    """Up to the rounding of a float16 scale, 2^-11, and float32 sums."""
    w, x = matrices()
    matrix = cut(w, x, scheme, np.ones(96, np.float32))
    columns = scheme.group if scheme.granularity == "group" else 96
    H = np.stack([x[:, k:k + columns].T @ x[:, k:k + columns] for k in range(0, 96, columns)])
    had, has = inner(w, w, H, scheme), inner(matrix.values(), w, H, scheme)
    assert abs(has / had - 1).max() < 2**-11 + 1e-4
    assert matrix.weight.scale.shape == scheme.scale_shape(w.shape)


@pytest.mark.parametrize("bits", [3, 2])
def test_cutting_off_the_largest_weights_pays_where_bits_are_few(bits):
    w, x = matrices()
    y = x @ w.T
    assert sqnr_db(y, awq(w, x, GROUPS[bits]).apply(x)) > sqnr_db(y, round_to_nearest(w, x, GROUPS[bits]).apply(x)) + 0.5


# --- a table that is embedding and head

def test_both_uses_of_a_table_have_the_same_say():
    x = matrices()[1]
    both = both_uses(x)
    assert np.array_equal(both[:512], x)
    head, embedding = hessian(x) * 512, hessian(both[512:]) * 96
    assert np.array_equal(embedding, np.diag(np.diag(embedding)))
    assert np.trace(embedding) == pytest.approx(np.trace(head), rel=1e-4)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_the_table_is_made_for_both_its_uses_and_no_other_matrix_is(method):
    model, how = make(channels=64), Conversion("int3", method, "group")
    inputs = calibrate(model, [batch(8, shape=model.shape)])
    ours, _ = convert(model, how, inputs)
    table, other, scheme = model.tokens.weight, model.block0.mlp.up.weight, how.make_scheme()
    expected = METHODS[method](table.data, both_uses(inputs[table.name]), scheme)
    assert np.array_equal(ours.tokens.codes, expected.weight.codes)
    assert np.array_equal(ours.block0.mlp.up.codes, METHODS[method](other.data, inputs[other.name], scheme).weight.codes)
    apart = METHODS[method](table.data, inputs[table.name], scheme)
    assert sqnr_db(table.data, expected.values()) > sqnr_db(table.data, apart.values())


# --- dB of layers: planted outliers

def test_with_planted_outliers_gptq_beats_rounding_until_two_bits():
    """K = 512, six channels 60 times as large: what each input is worth differs, and an order by it pays."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1024, 512), np.float32), rng.standard_normal((64, 512), np.float32) * np.float32(0.02)
    x[:, rng.choice(512, 6, False)] *= np.float32(60)
    y, db = x @ w.T, {}
    for bits in (4, 3, 2):
        s = Scheme(grid(bits, narrow=False), symmetric=False, granularity="group", group=64)
        ways = round_to_nearest(w, x, s), gptq(w, x, s), gptq(w, x, s, activation_order=True)
        db[bits] = [sqnr_db(y, matrix.apply(x)) for matrix in ways]
    assert db[4][0] < db[4][1] < db[4][2]
    assert db[3][0] < db[3][1] < db[3][2]
    assert db[2][1] < db[2][0] < db[2][2]


# --- the curve

def test_every_method_has_every_number_of_bits_it_can():
    by_row, by_group = conversions("channel", 32), conversions("group", 32)
    assert len(by_row) == 4 * 7 + 3
    assert {how.method for how in by_row} == set(METHODS)
    assert len(by_group) == 4 * 7
    assert {BITS[how.scheme] for how in by_row} == set(range(2, 9))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    size = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    size += ["--text", str(write_text(home)), "--quiet"]
    for seed in ("1", "2"):
        assert cli.main(["train", *size, "--seed", seed, "--out", str(home / seed)]) == 0
    return home


def test_the_curve_is_a_table_a_figure_and_json(runs, capfd, monkeypatch):
    monkeypatch.setattr(curve, "BITS", {"int8": 8, "int5": 5, "int2": 2})                  # of seven, for time's sake
    capfd.readouterr()
    argv = ["bits", str(runs / "1"), str(runs / "2"), "--out", str(runs / "figures"), "--calibrate", "8", "--quiet"]
    assert cli.main([*argv, "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert (runs / "figures" / "bits.png").stat().st_size > 10_000
    assert len(result["rows"]) == 12
    rows = {(row["method"], row["bits"]): row for row in result["rows"]}
    for row in rows.values():
        assert row["loss_above"] == pytest.approx(np.mean(row["losses_above"]))
        assert len(set(row["losses_above"])) == 2
        assert row["bytes"] < row["bytes_float32"]
    assert rows["rtn", 8]["bytes"] > rows["rtn", 5]["bytes"] > rows["rtn", 2]["bytes"]
    assert rows["rtn", 8]["sqnr_db"] > rows["rtn", 5]["sqnr_db"] + 15 > rows["rtn", 2]["sqnr_db"] + 25
    assert abs(rows["rtn", 8]["loss_above"]) < 0.001 < rows["rtn", 2]["loss_above"]


@pytest.mark.parametrize(("argv", "says"), [
    ((), "RUN"), (("1", "1"), "stands twice"), (("none",), "there is no run"), (("1", "--group", "0"), "group of 0"),
    (("1", "--granularity", "row"), "unknown granularity"), (("1", "--calibrate", "0"), "--calibrate is 0"),
    (("1", "--calibrate", "5000"), "the training text has")])
def test_a_curve_that_cannot_be_drawn_is_one_line(argv, says, runs, tmp_path, capfd):
    capfd.readouterr()
    words = [str(runs / word) if word in ("1", "none") else word for word in argv]
    before = contents(tmp_path)
    assert cli.main(["bits", *words, "--out", str(tmp_path / "figures")]) == 2
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert says in err
    assert contents(tmp_path) == before
