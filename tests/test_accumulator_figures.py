"""Loss against accumulator, from options to figure: what is trained, what is said, what is drawn."""
import numpy as np
import pytest
from tiny_run import small, write_text

from minillm.experiments import accumulators
from minillm.experiments.experiment import experiment
from minillm.plotting.accumulation import error_curves, loss_against_accumulator


@pytest.fixture
def result(tmp_path, monkeypatch):
    def in_this_process(jobs, quiet, title):
        return [experiment(options) for options, _ in jobs]
    monkeypatch.setattr(accumulators, "experiments", in_this_process)
    options = small(write_text(tmp_path), layers=1, channels=16, steps=3, watch_every=0, eval_every=0)
    return accumulators.accumulators(tmp_path, options, ("float16", "e8m4"), quiet=True)


def test_each_accumulator_is_trained_with_and_the_narrow_one_in_one_product_at_a_time(result, tmp_path):
    assert [r["products"] for r in result["rows"]] == ["float32", "float16", "e8m4", "forward=e8m4", "input_gradient=e8m4",
                                                       "weight_gradient=e8m4"]
    assert len({r["val_loss"] for r in result["rows"]}) == 6                  # no two of them are the same run
    assert [r["group"] for r in result["rows"]] == ["all three products"] * 3 + ["one product"] * 3
    assert result["figure"] == str(tmp_path / "loss_against_accumulator.png")
    text = accumulators.describe(result)
    assert all(r["products"] in text for r in result["rows"])
    assert "+0.0000" in text


def test_runs_that_were_not_finite_and_no_runs_are_drawn(tmp_path):
    row = {"products": "float16", "group": "all three products", "val_loss": 2.5, "diverged_at": None}
    broken = row | {"val_loss": None, "diverged_at": 7}
    for rows in ([], [row], [row, broken], [broken, broken]):
        assert loss_against_accumulator(rows, tmp_path / "a.png").stat().st_size > 5000


def test_curves_with_gaps_are_drawn(tmp_path):
    x = 2.0 ** np.arange(5)
    path = error_curves({"a": (x, [0, 1e-3, np.nan, 1, 2]), "b": (x, x)}, tmp_path / "b.png", "title", "x (1)", "y (1)")
    assert path.stat().st_size > 5000
