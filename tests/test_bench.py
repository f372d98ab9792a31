"""`minillm bench`: the shape of its rows, the order in which calls are timed, and what it says. No test depends on a timing."""
import functools
import json
import sys
import types

import numpy as np
import pytest

from minillm import cli, kernels
from minillm.bench import cast as cast_bench
from minillm.bench import generate, machine, matmul, measure, peers, roofline, rowwise, scaling, side_by_side, step, torch_gpt
from minillm.bench import worker as bench_worker
from minillm.bench.measure import Call, interleaved
from minillm.errors import MiniLLMError
from minillm.experiments import bench, bench_tables
from minillm.formats import FLOAT8_E4M3, FLOAT16, FORMATS
from minillm.models.gpt import GPTShape
from minillm.plotting import speed

KEYS = {"name", "shape", "threads", "ms", "rate", "unit", "bytes", "peer", "peer_ms", "ratio"}
SMALL = {
    "cast": lambda threads, quiet: cast_bench.cast(threads, quiet, count=64, size=8, seconds=0),
    "matmul": lambda threads, quiet: matmul.matmul(threads, quiet, sizes=(4, 9), seconds=0),
    "rowwise": lambda threads, quiet: rowwise.rowwise(threads, quiet, TINY_ROWS, seconds=0),
    "generate": lambda threads, quiet: generate.generate(threads, quiet, GPTShape(11, 1, 2, 8, 9), 4, 0),
    "step": lambda threads, quiet: step.step(threads, quiet, TINY_MODELS, seconds=0, resident=False),
}
TINY_ROWS = {name: ((1, 5, 2, 3) if name == "attention" else (3, 7),) for name in rowwise.SHAPES}
TINY_MODELS = {"A": (GPTShape(11, 1, 2, 8, 5, bias=True), 2), "B": (GPTShape(11, 2, 2, 8, 5, bias=True), 3)}


class Here:
    """A process that is none: what stands at the other end of the pipe, in this one, through the same lines of JSON."""

    def __init__(self, pool):
        self.pool, self.worker = pool, bench_worker.Worker(pool)

    def ask(self, **request):
        answer = json.loads(json.dumps(self.worker.answer(json.loads(json.dumps(request)))))
        assert "error" not in answer, answer
        return answer

    def close(self):
        self.worker.calls = {}


@pytest.fixture
def small(monkeypatch):
    """All measurements with few numbers, without waiting, in this process."""
    for name, measured in SMALL.items():
        monkeypatch.setitem(bench.BENCHES, name, measured)
    for name in ("SHORTEST", "WAKING"):
        monkeypatch.setattr(measure, name, 0.0)
    monkeypatch.setattr(side_by_side, "Process", Here)
    monkeypatch.setattr(bench_worker, "rest", lambda: None)
    monkeypatch.setattr(roofline, "peaks", lambda threads: {"float32": 1e9})
    monkeypatch.setattr(bench, "scaling", functools.partial(scaling.scaling, channels=(4, 8), seconds=0))
    yield
    for pool in filter(peers.installed, ("numpy", "torch", "ours")):
        peers.set_threads(pool, peers.most_threads())


@pytest.fixture
def no_torch(monkeypatch):
    """As if PyTorch were not installed."""
    monkeypatch.setitem(sys.modules, "torch", None)


# --- timing

def test_calls_are_taken_in_turn_and_the_first_run_of_each_is_not_counted(monkeypatch):
    monkeypatch.setattr(measure, "SHORTEST", 0.0)
    monkeypatch.setattr(measure, "WAKING", 0.0)
    order = []
    calls = [Call(lambda name=name: order.append(name)) for name in "abc"]
    assert len(interleaved(calls, seconds=0, least=4)) == 3
    assert "".join(order) == "aabbcc" + "abc" * 4


def clock(monkeypatch, seconds, pool="ours"):
    """A call that takes as long as the list says, by a clock of its own."""
    now, left = [0.0], iter(seconds)
    monkeypatch.setattr(measure, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))

    def run():
        now[0] += next(left)
    return Call(run, pool)


def test_the_median_is_of_the_runs_after_the_warm_up(monkeypatch):
    assert interleaved([clock(monkeypatch, [90, 1, 7, 2, 3])], seconds=0, least=3) == [3]


def test_a_short_call_is_repeated_inside_one_timing(monkeypatch):
    call = clock(monkeypatch, [1.0] + [0.0024] * 100)
    assert measure.first_runs(call).count == 5                                 # until 10 ms are over


def test_a_brief_call_runs_until_its_threads_are_awake_whoever_it_is(monkeypatch):
    for pool in ("ours", "numpy"):
        call = clock(monkeypatch, [0.002] * 8 + [0.001] * 100, pool)           # 16 ms: at least 15
        measure.Series(call, 0.001, times := []).again()
        assert times == [pytest.approx(0.001)]
    call = clock(monkeypatch, [1.0] * 9)
    measure.Series(call, 1.0, times := []).again()                             # a long one does not need it
    assert measure.time.perf_counter() == 1.0


def test_a_peer_that_takes_very_long_runs_once_and_the_table_says_so(monkeypatch):
    assert interleaved([clock(monkeypatch, [6.0], "torch")], seconds=0) == [6.0]
    assert interleaved([clock(monkeypatch, [6.0] + [0.1] * 99)], seconds=0) == [pytest.approx(0.1)]           # ours has compiled
    rows = [{"bench": "step"} | row for row in measure.rows("A", (1,), 1, [0.5], {"a": [6.0], "b": [4.0]}, 1, "tokens/s")]
    assert bench_tables.lines_of(rows)[0][-1] == "12 a (one call), 8 b"


def test_a_slow_peer_runs_as_often_as_it_must(monkeypatch):
    call = clock(monkeypatch, [2.0] * 5, "torch")                              # two that warm it up, and three
    assert measure.timings([call], seconds=1000, least=3) == [[2.0] * 3]


def test_the_ratio_is_the_median_of_those_of_neighbours():
    assert measure.ratio([1, 2, 4], [3, 4, 4]) == 2                            # 3, 2, 1; the ratio of medians is 2, too
    assert measure.ratio([1, 10, 2], [5, 60, 2]) == 5                          # of medians 2.5
    assert measure.ratio([1, 2, 4], [8]) == 4                                  # a peer that was timed once


# --- a process for each pool

@pytest.mark.parametrize("pool", ["ours", "numpy", "torch"])
def test_a_process_times_the_calls_of_its_pool(pool):
    if not peers.installed(pool):
        pytest.skip("PyTorch is not installed")
    with side_by_side.started(pool) as processes:
        calls = side_by_side.calls(processes, "rowwise" if pool == "torch" else "cast", 1,
                                   **({"name": "gelu", "shape": [3, 4]} if pool == "torch" else
                                      {"data": "Gaussian", "count": 5, "format": "float16"}))
        assert list(calls) == {"ours": ["ours"], "numpy": ["numpy-float16"], "torch": ["torch-forward", "torch-backward"]}[pool]
        assert all(call.pool == pool and 0 < call.seconds(3, 0.001) < 60 for call in calls.values())
    assert all(process.process.returncode for process in processes)


def test_a_process_that_fails_is_one_clear_line():
    with side_by_side.started("numpy") as (process,):
        with pytest.raises(MiniLLMError, match=r"^the process that times numpy failed: KeyError: 'nonsense'$"):
            process.ask(case="nonsense", threads=1, given={})
        process.process.kill()
        process.process.wait()
        for _ in range(2):
            with pytest.raises(MiniLLMError, match=r"^the process that times numpy failed: it ended with -9$"):
                process.ask(case="cast", threads=1, given={})


def test_no_process_outlives_an_interrupt():
    begun = []

    def interrupted():
        with side_by_side.started("numpy", "numpy") as processes:
            begun.extend(processes)
            print(json.dumps({"case": "matmul", "threads": 1, "given": {"n": 4096}}), file=begun[0].process.stdin, flush=True)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [process.process.returncode for process in begun] == [-9, -9]


def test_a_process_ends_with_its_parent():
    with side_by_side.started("numpy") as (process,):
        process.process.stdin.close()                                          # as the system does for a parent that was killed
        assert process.process.wait(60) == 0


def test_threads_that_wait_in_a_loop_are_left_to_fall_asleep(monkeypatch):
    times = iter([0.0, 0.004, 0.004, 0.008, 0.008, 0.008])                     # of this process's threads, all together
    slept = []
    fake = types.SimpleNamespace(perf_counter=lambda: 0.0, process_time=lambda: next(times), sleep=slept.append)
    monkeypatch.setattr(bench_worker, "time", fake)
    bench_worker.rest()
    assert len(slept) == 3
    bench_worker.rest(at_most=0.0)                                                   # some never sleep
    assert len(slept) == 3


def test_a_row_for_each_peer_with_the_ratio_of_times():
    one, two = measure.rows("gelu", (3, 4), 2, [0.002], {"a": [0.004], "b": [0.001]}, 5e6, "GFLOP/s", 48)
    assert one == {"name": "gelu", "shape": [3, 4], "threads": 2, "ms": 2.0, "rate": 2.5, "unit": "GFLOP/s", "bytes": 48,
                   "peer": "a", "peer_ms": 4.0, "ratio": 2.0}
    assert (two["peer"], two["ratio"]) == ("b", 0.5)
    [alone] = measure.rows("gelu", (3,), 1, [0.5], {}, 100, "tokens/s")
    assert (alone["peer"], alone["peer_ms"], alone["ratio"], alone["rate"]) == (None, None, None, 200)


# --- what each measures

@pytest.mark.parametrize("name", SMALL)
def test_rows_have_the_agreed_shape(name, small, say):
    code, out, err = say("bench", name, "--json", "--quiet", "--threads", "1")
    answer = json.loads(out)
    assert (code, err) == (0, "")
    assert {"machine", "rows"} <= answer.keys()
    for row in answer["rows"]:
        assert row.keys() >= KEYS
        assert row["bench"] == name
        assert row["threads"] == 1
        assert row["ms"] > 0
        assert row["rate"] > 0
        assert isinstance(row["bytes"], int)
        assert row["peer"] is None or row["ratio"] > 0
        assert (row["peer"] is None) == (row["peer_ms"] is None) == (row["ratio"] is None)


def peers_by_name(rows):
    found = {}
    for row in rows:
        found.setdefault(row["name"], []).append(row["peer"])
    return found


def test_matmul_compares_every_type_with_whoever_has_it(small):
    pytest.importorskip("torch")
    rows = matmul.matmul(1, True, sizes=(4,), seconds=0)
    assert peers_by_name(rows) == {
        "float32": ["openblas-float32"], "float16": ["openblas-float32", "numpy-float16", "torch-float16"],
        "bfloat16": ["openblas-float32", "torch-bfloat16"], "int8": ["openblas-float32", "torch-int8"]}
    assert {tuple(r["shape"]) for r in rows} == {(4, 4, 4)}
    assert {r["name"]: r["bytes"] for r in rows} == {"float32": 192, "float16": 128, "bfloat16": 192, "int8": 96}
    assert {r["unit"] for r in rows if r["name"] == "int8"} == {"Gop/s"}


def test_numpys_float16_product_is_timed_only_where_it_takes_a_second(small, monkeypatch):
    monkeypatch.setattr(matmul, "NUMPY_FLOAT16", 5)
    rows = matmul.matmul(1, True, sizes=(4, 9), seconds=0)
    assert [r["shape"][0] for r in rows if r["peer"] == "numpy-float16"] == [4]


@pytest.mark.parametrize("way", ["on", "off"])
def test_all_products_that_are_timed_are_the_same_product(way, monkeypatch):
    monkeypatch.setenv("MINILLM_KERNELS", way)
    given = matmul.operands(24)
    others = {name: run().astype(np.float64) for name, run in matmul.calls("numpy", 24).items()}
    for name, product in matmul.ours().items():
        a, b = (x.astype(np.float64) for x in given[name])
        assert abs(product(*given[name]) - a @ b).max() <= 1e-5 * (abs(a) @ abs(b)).max()
    assert abs(others["openblas-float32"] - given["float32"][0] @ given["float32"][1]).max() == 0


def test_rowwise_has_every_op_both_ways_on_one_thread_and_on_all(small):
    count = min(2, peers.most_threads())
    rows = rowwise.rowwise(count, True, TINY_ROWS, seconds=0)
    assert {r["name"] for r in rows} == {f"{op}-{way}" for op in ("gelu", "softmax", "layer_norm", "cross_entropy", "attention")
                                         for way in ("forward", "backward")}
    assert {r["threads"] for r in rows} == {1, count}
    torch = peers.torch()
    assert {r["peer"] for r in rows} == ({"torch-float32"} if torch else {None})


@pytest.mark.parametrize("name", rowwise.SHAPES)
def test_pytorch_is_asked_for_the_same_numbers(name):
    torch = pytest.importorskip("torch")
    arrays, static, g = rowwise.inputs(name, TINY_ROWS[name][0])
    forward, vjp = rowwise.ours(name, arrays, static, g)
    theirs, back = rowwise.torch_calls(torch, name, arrays, g, **static)
    y, out = forward()[0], theirs()
    out = out.transpose(1, 2).flatten(2) if name == "attention" else out
    assert np.abs(y - out.numpy()).max() < 1e-5
    mine, others = [d for d in vjp() if d is not None], back()
    others = [others] if isinstance(others, torch.Tensor) else list(others)
    assert len(mine) == len(others)
    for ours_d, theirs_d in zip(mine, others, strict=True):
        theirs_d = theirs_d.transpose(1, 2).flatten(2) if name == "attention" else theirs_d
        assert np.abs(ours_d - theirs_d.numpy()).max() < 1e-5


def test_traffic_counts_what_must_be_read_and_written():
    x = np.zeros((3, 4), np.float32)                                           # 48 bytes
    assert rowwise.traffic("gelu", "forward", [x]) == 96
    assert rowwise.traffic("gelu", "backward", [x]) == 144
    assert rowwise.traffic("attention", "forward", [x, x, x, None]) == 192
    assert rowwise.traffic("attention", "backward", [x, x, x, None]) == 384
    assert rowwise.traffic("cross_entropy", "forward", [x, np.zeros(3, np.int32)]) == 60


def test_step_has_every_model_and_recipe_and_our_float32_as_a_peer(small):
    pytest.importorskip("torch")
    found = peers_by_name(SMALL["step"](1, True))
    assert list(found) == [f"{model}-{recipe}" for model in "AB" for recipe in ("float32", "float16-mixed", "bfloat16-mixed")]
    assert found["A-float32"] == ["torch-float32", "by-hand-float32"][:1 + kernels.enabled()]
    assert found["B-float16-mixed"] == ["torch-float32", "torch-autocast-float16", "torch-autocast-bfloat16", "ours-float32",
                                        "by-hand-float16-mixed"][:4 + kernels.enabled()]
    assert found["B-bfloat16-mixed"][1:3] == ["torch-autocast-float16", "torch-autocast-bfloat16"]


def test_a_step_in_float16_holds_about_half_of_the_bytes():
    shape, batch = TINY_MODELS["A"]
    whole, half = (step.Stepper(shape, batch, recipe).held() for recipe in ("float32", "float16-mixed"))
    assert 0.4 < half / whole < 0.75                                           # float32: row statistics, and rows are short here


def test_the_growth_of_a_step_is_fitted_to_its_points(small, say):
    assert scaling.exponent([1, 10, 100], [2, 2 * 10**0.9, 2 * 100**0.9]) == pytest.approx(0.9)
    sizes = [scaling.point(C) for C in (64, 256)]
    work = [p["tokens"] * p["parameters"] for p in sizes]
    assert 60 < work[1] / work[0] < 66
    _, out, _ = say("bench", "step", "--json", "--quiet", "--threads", "1")
    found = json.loads(out)["scaling"]
    assert [f["recipe"] for f in found] == ["float32", "float16-mixed"]
    assert all(p["ms"] > 0 for f in found for p in f["points"])
    work, ms = ([p[a] * p.get(b, 1) for p in found[0]["points"]] for a, b in (("tokens", "parameters"), ("ms", "")))
    assert found[0]["exponent"] == pytest.approx(scaling.exponent(work, ms))


def test_the_peer_trains_the_same_model():
    torch = pytest.importorskip("torch")
    ours = step.Stepper(*TINY_MODELS["B"], "float32")
    theirs = torch_gpt.training_step(torch, ours.model, *ours.batch)
    losses = [(ours(), theirs()) for _ in range(3)]
    assert np.ptp(losses, axis=1).max() < 1e-4                                 # float32, sums in another order
    assert losses[2][0] < losses[0][0]


def test_peak_memory_is_that_of_a_process_of_its_own():
    if step.peak_resident() is None:
        pytest.skip("this system does not say")
    held = np.ones(2**25, np.float32)                                          # 128 MB that the other process does not have
    before = step.peak_resident()
    peak = step.peak_of(*TINY_MODELS["A"], "float32", 1)
    assert held.nbytes < before
    assert 2**24 < peak < 2**30


def test_a_process_that_fails_is_an_error_in_one_line():
    with pytest.raises(MiniLLMError, match=r"that trains under nonsense to measure its memory ended with 1: .*unknown recipe"):
        step.peak_of(*TINY_MODELS["A"], "nonsense", 1)


def test_cast_has_a_row_for_every_format_on_both_kinds_of_numbers(small):
    pytest.importorskip("ml_dtypes")
    rows = SMALL["cast"](1, True)
    casts = [r for r in rows if not r["name"].startswith("matmul ")]
    assert [(r["data"], r["name"]) for r in casts] == \
        [(kind, name) for kind in ("Gaussian", "float16 subnormals") for name in FORMATS if name != "float32"]
    assert {r["name"] for r in casts if r["peer"] == "ml_dtypes"} == set(cast_bench.ML_DTYPES)
    assert {r["peer"] for r in casts if r["name"] == "float16"} == {"numpy-float16"}
    products = [r for r in rows if r["name"].startswith("matmul ")]
    assert [r["name"] for r in products] == [f"matmul {name}" for name in cast_bench.ACCUMULATORS]
    assert {r["peer"] for r in products} == {"numpy-float16"}


def test_peers_round_the_same_numbers():
    kinds = cast_bench.inputs(1000)
    assert all(x.dtype == np.float32 for x in kinds.values())
    small = np.abs(kinds["float16 subnormals"])
    assert small.max() < FLOAT16.tiny
    assert (small > FLOAT16.tiny / 4).mean() > 0.5


# --- what is missing

def test_without_pytorch_there_are_rows_without_it_and_a_line_that_says_what_to_install(small, no_torch, say):
    for name in ("matmul", "rowwise", "step"):
        code, out, err = say("bench", name, "--json", "--quiet")
        answer = json.loads(out)
        assert (code, err) == (0, "")
        assert not any((row["peer"] or "").startswith("torch") for row in answer["rows"])
        assert answer["machine"]["versions"]["torch"] is None
        assert answer["missing"] == ["torch is not installed, so rows against it are missing: pip install 'minillm[bench]'"]
    assert {row["peer"] for row in answer["rows"]} <= {None, "ours-float32", "by-hand-float32", "by-hand-float16-mixed"}
    _, out, _ = say("bench", "rowwise", "--quiet")
    assert out.count("pip install 'minillm[bench]'") == 1


def test_without_ml_dtypes_the_bench_says_so(small, say, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    code, out, err = say("bench", "cast", "--quiet")
    assert (code, err) == (0, "")
    assert "ml_dtypes is not installed, so rows against it are missing: pip install ml_dtypes" in out
    assert "numpy-float16" in out
    assert cast_bench.peer_of(FLOAT8_E4M3) is None


# --- threads, machine, figure, README

def test_a_pool_has_the_threads_that_were_asked_for(small):
    count = peers.most_threads()
    for wanted in {1, count}:
        for pool in filter(peers.installed, ("ours", "numpy", "torch")):
            peers.set_threads(pool, wanted)
        assert peers.openblas().get("num_threads", wanted) == wanted
        assert not kernels.enabled() or kernels.load("pool").threads() == wanted
        assert peers.torch() is None or peers.torch().get_num_threads() == wanted
    if kernels.enabled():
        with peers.ours_on(1):
            assert kernels.load("pool").threads() == 1
        assert kernels.load("pool").threads() == wanted
    with pytest.raises(MiniLLMError, match=f"--threads is {count + 1}: this machine can be measured with 1 to {count}"):
        peers.check_threads(count + 1)


def test_the_machine_is_described(monkeypatch):
    found = machine.machine()
    assert found["processor"]
    assert found["versions"]["numpy"] == np.__version__
    assert len(found["date"]) == 10
    line = machine.describe(found)
    assert "\n" not in line
    assert f"{found['cores']} cores" in line
    monkeypatch.setenv("MINILLM_KERNELS", "off")
    assert "kernels off" in machine.describe(machine.machine())


def test_what_the_machine_could_do_is_positive_and_unknown_without_kernels(monkeypatch):
    if kernels.enabled():
        assert min(roofline.peaks(1, seconds=0, turns=10).values()) > 0 < roofline.bandwidth(1, seconds=0, values=64)
        x, y, out = (np.arange(n, n + 70, dtype=np.float32) for n in (0, 5, 0))
        kernels.load("roofline").triad(x, y, out)
        assert (out == y + 3 * x).all()
    monkeypatch.setenv("MINILLM_KERNELS", "off")
    assert (roofline.peaks(1), roofline.bandwidth(1)) == ({}, None)


def test_one_command_puts_all_tables_into_a_readme(small, say, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{bench_tables.BEGIN}old{bench_tables.END}\nafter\n", "utf-8")
    code, out, err = say("bench", "all", "--readme", str(readme), "--quiet")
    assert (code, err) == (0, "")
    text = readme.read_text("utf-8")
    assert text.startswith(f"before\n{bench_tables.BEGIN}Measured ")
    assert text.endswith(f"{bench_tables.END}\nafter\n")
    assert "old" not in text
    assert "| A-float16-mixed |" in text
    assert text.count("<details>") == text.count("</details>") == 2
    assert "float16 subnormals" not in text
    assert (tmp_path / "figures" / "readme-rates.png").exists()
    assert "figure: " in out


def test_a_readme_without_marks_is_left_alone(small, say, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("nothing", "utf-8")
    code, _, err = say("bench", "all", "--readme", str(readme), "--quiet")
    assert code == 2
    assert "lacks the lines" in err
    assert readme.read_text("utf-8") == "nothing"


def test_the_figure_of_matmul(small, say, tmp_path):
    code, out, _ = say("bench", "matmul", "--quiet", "--out", str(tmp_path))
    assert code == 0
    assert f"figure: {tmp_path / 'bench-matmul.png'}" in out
    assert (tmp_path / "bench-matmul.png").read_bytes().startswith(b"\x89PNG")


POINTS = [{"name": "GELU", "type": "float32", "intensity": 2.5, "rate": 1e10},
          {"name": "n", "type": "int8", "intensity": 40, "rate": 1e11}]


@pytest.mark.parametrize("points", [[], POINTS])
def test_the_figures_of_speed_are_drawn_from_any_number_of_records(points, tmp_path):
    peaks = {p["type"]: 1e12 for p in points}
    rows = [r for n in (64, 128) for r in measure.rows("float32", (n,) * 3, 1, [0.1], {"openblas-float32": [0.2]}, n**3, "GFLOP/s")]
    found = speed.rates_by_size(rows)
    assert set(found) == {"float32", speed.OPENBLAS}
    assert found[speed.OPENBLAS][64] == pytest.approx(found["float32"][64] / 2)
    assert speed.roofline(points, peaks, 1e10, tmp_path / "roof.png").stat().st_size > 1000
    assert speed.rates(rows if points else [], peaks, tmp_path / "rates.png").stat().st_size > 1000


def test_the_table_has_one_line_for_all_peers_of_a_measurement():
    rows = measure.rows("int8", (2, 3, 4), 2, [0.0125], {"a": [0.025], "b": [4]}, 3e9, "Gop/s", 3_000_000)
    rows = [{"bench": "matmul"} | row for row in rows]
    assert bench_tables.lines_of(rows) == [["int8", "2 x 3 x 4", "2", "12.5", "240 Gop/s", "3", "2 a, 320 b"]]
    assert [bench_tables.digits(v) for v in (1234.5, 99.95, 1.234, 0.01234, 1e-5)] == ["1,234", "100", "1.23", "0.0123", "0.000010"]


def test_help_is_there(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    assert "--readme" in capsys.readouterr().out
