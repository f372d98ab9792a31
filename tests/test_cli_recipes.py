"""minillm recipes: all of them with a line each, one of them op by op, as JSON, and an unknown one."""
import json
import re

import pytest

from minillm.autograd.rule import RULES
from minillm.experiments.recipes import FLOAT32_RECIPE, one, op_rows
from minillm.formats import BFLOAT16, FLOAT16, FLOAT32
from minillm.precision import recipe as recipe_module
from minillm.precision.loss_scaling import static_scale
from minillm.precision.recipe import Recipe
from minillm.recipes import PRESETS, from_json, to_json


def cells(text, first):
    """The cells of the one line that begins with this word."""
    found = [re.split(r" {2,}", line) for line in text.splitlines() if re.split(r" {2,}", line)[0] == first]
    assert len(found) == 1, (first, found)
    return found[0]


def blocks(text):
    """The table of fields and that of ops: (head, rows) of each, a row as its cells."""
    for part in text.split("\n\n")[1:]:
        head, line, *rows = part.splitlines()
        assert set(line) == {"-"}
        yield head.split(), [re.split(r" {2,}", row) for row in rows]


# --- all of them

def test_every_preset_has_one_line(say):
    code, out, err = say("recipes")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(PRESETS)
    for line, recipe in zip(lines[2:], PRESETS.values(), strict=True):
        assert line.endswith(recipe.about)


@pytest.mark.parametrize(("name", "expected"), [
    ("float32", ["float32", "float32", "float32", "none"]),
    ("float16", ["float16", "float16", "float16", "none"]),
    ("float16-mixed", ["float32 -> float16", "float16", "float32", "dynamic from 2^16"]),
    ("apex-O1", ["float32 -> float16", "float16 and float32", "float32", "dynamic from 2^16"]),
    ("torch-autocast-bfloat16", ["float32 -> bfloat16", "bfloat16 and float32", "float32", "none"]),
    ("keras-mixed_float16", ["float32 -> float16", "float16", "float32", "dynamic from 2^15"]),
    ("float8-current", ["float32 -> bfloat16 -> float8-current", "bfloat16", "float32", "none"]),
])
def test_weights_activations_optimizer_and_scale_are_told(say, name, expected):
    assert cells(say("recipes")[1], name)[1:5] == expected


# --- one of them

@pytest.mark.parametrize("name", PRESETS)
def test_every_op_has_its_row_and_what_differs_comes_first(say, name):
    code, out, err = say("recipes", name)
    assert (code, err) == (0, "")
    assert out.startswith(f"{name}: {PRESETS[name].about}\n")
    (_, fields), (head, ops) = blocks(out)
    assert head == ["op", "inputs", "result", "products", "rounding"]
    assert {row[0] for row in ops if "/" not in row[0]} == set(RULES) - {"cast"}
    plain = {row[0]: [cell for cell in row if cell] for row in op_rows(FLOAT32_RECIPE)}
    differing = [[here != there for _, here, there in fields], [row != plain.get(row[0]) for row in ops]]
    for differs in differing:
        assert differs == sorted(differs, reverse=True)
    assert any(map(any, differing)) == (name != "float32")


@pytest.mark.parametrize(("name", "row"), [
    ("torch-autocast-float16", ["linear", "float16", "float16", "float32", "nearest_even"]),
    ("torch-autocast-float16", ["softmax", "float32", "float32", "nearest_even"]),
    ("torch-autocast-float16", ["add", "widest", "widest", "nearest_even"]),
    ("torch-autocast-float16", ["gelu", "as is", "as its inputs", "nearest_even"]),
    ("torch-autocast-float16", ["bce", "refuse", "none", "nearest_even"]),
    ("torch-autocast-float16", ["layer_norm", "float32", "float32", "nearest_even"]),
    ("float16-mixed", ["linear", "x, weight: float16; bias: as is", "float16", "float32", "nearest_even"]),
    ("float16-mixed", ["embedding", "as is", "float16", "nearest_even"]),
    ("apex-O2", ["attention", "composed of other ops", "as theirs", "nearest_even"]),
    ("float8-current", ["linear", "bfloat16", "bfloat16", "float8-current", "nearest_even"]),
    ("float8-current", ["head/linear", "bfloat16", "bfloat16", "float32", "nearest_even"]),
    ("apex-O3", ["eps", "0.0001", "1e-08"]),
    ("apex-O3", ["optimizer state", "float16", "float32"]),
    ("keras-mixed_float16", ["loss scaling", "dynamic from 2^15: x2 after 2000 clean steps, x0.5 after an overflow, "
                             "no floor", "none"]),
])
def test_rows_say_what_the_recipe_says(say, name, row):
    assert cells(say("recipes", name)[1], row[0]) == row


def test_a_recipe_of_ones_own_is_shown_with_all_that_it_has(monkeypatch):
    def halve(ops, x, name):
        return ops.mul(x, 0.5)

    monkeypatch.setitem(recipe_module.QUANTIZERS, "halve", halve)
    mine = Recipe("mine", casts={"*": FLOAT16, "block0.mlp/*": FLOAT32, "block1/gelu": BFLOAT16}, results={"head/linear": FLOAT32},
                  quantizers={"linear.weight": halve}, forward_rounding="stochastic", backward_rounding="down", cotangents=BFLOAT16,
                  loss_scaling=static_scale(2.0**10), about="all of it")
    text = one(mine)
    assert cells(text, "linear")[1:3] == ["x: float16; weight: halve then float16; bias: as is", "float16"]
    assert cells(text, "head/linear")[2] == "float32"
    assert cells(text, "block0.mlp/gelu")[1:] == ["float32", "float32", "stochastic / down"]
    assert cells(text, "block1/gelu")[1] == "bfloat16"
    assert "block1/add" not in text
    assert cells(text, "loss scaling")[1] == "2^10"
    assert cells(text, "cotangents")[1:] == ["bfloat16", "as their tensors"]


# --- JSON, and what does not exist

@pytest.mark.parametrize("name", PRESETS)
def test_json_is_the_recipe(say, name):
    code, out, err = say("recipes", name, "--json")
    assert (code, err) == (0, "")
    assert from_json(json.loads(out)) == PRESETS[name]


def test_json_of_all_recipes_has_each_by_name(say):
    assert json.loads(say("recipes", "--json")[1]) == json.loads(json.dumps({n: to_json(r) for n, r in PRESETS.items()}))


@pytest.mark.parametrize(("wrong", "near"), [("apex-o1", "apex-O1"), ("torch-autocast", "torch-autocast-float16"),
                                              ("keras_mixed_float16", "keras-mixed_float16"), ("float8-curent", "float8-current")])
@pytest.mark.parametrize("json_too", [False, True])
def test_an_unknown_recipe_is_one_line_with_the_nearest(say, wrong, near, json_too):
    code, out, err = say("recipes", wrong, *["--json"] * json_too)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"minillm: unknown recipe {wrong!r}: did you mean {near!r}?")


def test_it_takes_one_name_and_no_foreign_option(say):
    for argv in (("float32", "float16"), ("--recipe", "float32"), ("float32", "--steps", "3")):
        code, out, err = say("recipes", *argv)
        assert (code, out, err.count("\n")) == (2, "", 1)
