"""The same seed gives the same bits: in another process, on one thread or two, watched or not."""
import functools
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_gpt import batch, make, objective_of, state_bits

import minillm
from minillm.autograd.watching import watch
from minillm.models.gpt import GPTShape
from minillm.recipes import PRESETS
from minillm.training.trainer import training_step

SHAPE = GPTShape(vocabulary=65, layers=2, heads=4, channels=256, context=64, bias=True, dropout=0.1)
RECIPES = ("float32", "float16-mixed")


def train(recipe, steps, rows, seed=1, micro_batches=1, **shape):
    """(every bit that training moves, the results of all steps); the norm is above the clip, so that its last bit counts."""
    model = make(recipe, seed, **shape)
    objective = objective_of(model)
    results = []
    for step in range(steps):
        batches = [batch(rows, 10 * step + micro, model.shape) for micro in range(micro_batches)]
        results.append(training_step(objective, batches, step, 1e-3, clip=0.1))
    return state_bits(objective), repr(results)                                # repr: a NaN is itself


def digest(recipe, seed=1):
    """One line for a run of five steps in which BLAS really splits: products of 1,024 rows with matrices of 256 x 1,024."""
    state, results = train(recipe, steps=5, rows=16, seed=seed, **vars(SHAPE))
    return hashlib.blake2b(repr((sorted(state.items()), results)).encode(), digest_size=16).hexdigest()


@functools.cache
def in_a_fresh_process(threads: int) -> dict[str, str]:
    """The digests of a process with so many threads. Its hash seed is another one too, so that the order of sets is."""
    program = "import json, test_determinism as t; print(json.dumps({r: t.digest(r) for r in t.RECIPES}))"
    variables = {name: str(threads) for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS",
                                                 "PYTHONHASHSEED")}
    variables["PYTHONPATH"] = str(Path(minillm.__file__).parents[1])           # the package that is tested here, wherever it lies
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parent,
                            env=os.environ | variables, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_same_seed_gives_the_same_bits_in_two_processes_on_one_thread_and_two(recipe):
    assert in_a_fresh_process(1)[recipe] == in_a_fresh_process(2)[recipe]


@pytest.mark.parametrize("recipe", PRESETS)
def test_twice_in_a_row_is_the_same_and_another_seed_is_not(recipe):
    one, again, other = (train(recipe, 3, 4, seed, micro_batches=2, dropout=0.1) for seed in (1, 1, 2))
    assert one == again
    assert one[0]["tokens.weight"] != other[0]["tokens.weight"]


@pytest.mark.parametrize("recipe", PRESETS)
@pytest.mark.usefixtures("kernels")
def test_watching_changes_no_bit(recipe):
    unwatched, seen = train(recipe, 3, 4, micro_batches=2, dropout=0.1), set()

    def look(event):
        np.isfinite(event.exact).all()
        seen.add(event.phase)

    with watch(look):
        watched = train(recipe, 3, 4, micro_batches=2, dropout=0.1)
    assert seen == {"forward", "backward", "accumulate", "update"}
    assert watched == unwatched


def test_micro_batches_and_steps_draw_their_own_dropout():
    model = make(dropout=0.5)
    ids, drawn = batch()[0], set()
    for step in range(3):
        for micro in range(3):
            model.ops.context.begin(step, micro)
            drawn.add(model(ids).data.tobytes())
    assert len(drawn) == 9
