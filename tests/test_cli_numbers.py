"""`minillm formats` and `minillm bench` as a user types them."""
import json

import numpy as np
import pytest

from minillm import cli
from minillm.experiments import formats
from minillm.formats import FORMATS, format_named
from minillm.rounding import ROUNDINGS, round_to


def test_every_format_has_a_line(say):
    code, out, err = say("formats")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(FORMATS)
    assert len({len(line) for line in lines}) == 1                             # a table
    assert lines[2 + list(FORMATS).index("float8_e4m3")].split()[1:] == \
        ["8", "4", "3", "7", "448", "0.015625", "0.00195312", "0.125", "NaN", "nan"]


def test_the_table_as_json(say):
    code, out, _ = say("formats", "--json")
    rows = json.loads(out)["formats"]
    assert code == 0
    for row in rows:
        format = format_named(row["name"])
        assert (row["max"], row["bits"], row["specials"], row["subnormals"]) == \
            (format.max, format.bits, format.specials, format.subnormals)


def test_one_format_in_full(say):
    code, out, _ = say("formats", "float4_e2m1")
    assert code == 0
    assert "15 values: -6 -4 -3 -2 -1.5 -1 -0.5 0 0.5 1 1.5 2 3 4 6" in out
    assert json.loads(say("formats", "float4_e2m1", "--json")[1])["values"] == format_named("float4_e2m1").values().tolist()
    assert json.loads(say("formats", "e5m7", "--json")[1])["values"] is None


def test_the_bits_of_one_value(say):
    code, out, err = say("formats", "float8_e4m3", "0.3")
    assert (code, err) == (0, "")
    for line in ("kept              0.3125", "bits              0 0101 010", "relative error    0.0417",
                 "ulp               0.03125", "neighbours        0.28125 and 0.3125",
                 "stochastic    0.28125 (0.4) or 0.3125 (0.6)"):
        assert line in out, out


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("text", ["0.1", "-0.1", "0", "-0.0", "1e300", "-1e300", "inf", "-inf", "nan", "2^-24", "-2^3", "0x1.8p1"])
def test_any_value_in_any_format_as_json(name, text, say):
    code, out, err = say("formats", name, text, "--json")
    assert (code, err) == (0, "")
    answer, format, value = json.loads(out), format_named(name), formats.number(text)
    for mode in ROUNDINGS[:-1]:
        assert np.array_equal(float(answer["roundings"][mode]), round_to(value, format, mode).item(), equal_nan=True)
    assert np.array_equal(format.decode(np.array(answer["code"])).item(), float(answer["kept"]), equal_nan=True)
    assert "".join(answer["fields"].values()) == f"{answer['code']:0{format.bits}b}"
    assert abs(sum((answer["stochastic"] or {"": 1}).values()) - 1) < 1e-12
    assert say("formats", name, text)[0] == 0


def test_numbers_as_people_write_them():
    assert [formats.number(t) for t in ("2^-24", "-2^3", "0x1.8p1", "1e-3", "-inf")] == [2**-24, -8, 3, 1e-3, -np.inf]


@pytest.mark.parametrize(("argv", "says"), [
    (["formats", "flaot16"], "unknown format 'flaot16': did you mean 'float16'?"),
    (["formats", "float16", "abc"], "cannot read 'abc'"),
    (["formats", "float16", "2^99999"], "cannot read '2^99999'"), (["formats", "float16", "2^2000"], "cannot read"),
    (["formats", "e9m3"], "9 exponent and 3 mantissa bits"), (["formats", "float16", "1", "2"], "unknown option '2'"),
    (["formats", ""], "unknown format ''"), (["formats", "float16", ""], "cannot read ''"),
    (["formats", "--jsn"], "did you mean '--json'"),
    (["bench", "casts"], "unknown bench 'casts': did you mean 'cast'?"), (["bench"], "required: NAME"),
    (["bench", "cast", "--threads", "0"], "--threads is 0: this machine can be measured with 1 to "),
    (["bench", "step", "--threads", "1025"], "--threads is 1025: this machine can be measured with 1 to "),
    (["bench", "matmul", "--threads", "two"], "argument --threads: invalid int value: 'two'"),
    (["bench", "cast", "--out", "figures"], "bench cast draws no figure"),
    (["bench", "cast", "--readme", "README.md"], "minillm bench all --readme README.md"),
])
def test_what_is_wrong_is_said_in_one_line(argv, says, say):
    code, out, err = say(*argv)
    assert (code, out) == (2, "")
    assert err.startswith("minillm: ")
    assert err.count("\n") == 1
    assert says in err


def test_help_is_there(capsys):
    for name in ("formats", "bench"):
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        assert "NAME" in capsys.readouterr().out
