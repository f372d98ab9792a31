"""What all tests share: Hypothesis draws the same examples on every run, and exhaustive tests run on request only."""
import os
import signal
from pathlib import Path

# Before anything loads a pool of threads: with `-n 2` two processes share the cores, and a pool that waits by spinning takes them
# from the other. Twenty steps of a GPT of 128 channels took 21 s in each of two processes, and 1.8 s so. The numbers are the same.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")                  # numba's pool, and PyTorch's
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")                # 2^4 cycles

import pytest
from hypothesis import settings

settings.register_profile("minillm", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("minillm")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:          # as a shell leaves it for what it starts in the background:
    signal.signal(signal.SIGINT, signal.default_int_handler)   # the programs that the tests interrupt would inherit it


for variable in ("CI", "BUILD_NUMBER"):                        # where one is set, pytest explains a comparison that fails in full:
    os.environ.pop(variable, None)                             # minutes for two models' bits, and planted bugs make hundreds fail


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "exhaustive" not in config.option.markexpr and item.get_closest_marker("exhaustive"):
            item.add_marker(pytest.mark.skip(reason="minutes: pytest -m exhaustive"))
        if {"kernels", "kernels_on", "kernels_off"} & set(item.fixturenames):
            item.add_marker(pytest.mark.chooses_kernels)


@pytest.fixture(params=["on", "off"])
def kernels(request, monkeypatch):
    """Runs a test with compiled kernels and without."""
    monkeypatch.setenv("MINILLM_KERNELS", request.param)
    return request.param


@pytest.fixture
def kernels_on(monkeypatch):
    monkeypatch.setenv("MINILLM_KERNELS", "on")


@pytest.fixture
def kernels_off(monkeypatch):
    monkeypatch.setenv("MINILLM_KERNELS", "off")


@pytest.fixture
def figures(monkeypatch):
    """The figures that would have been saved, for a look at what is in them; rendering is most of the time."""
    from minillm.plotting import style
    finished = []
    monkeypatch.setattr(style, "save", lambda figure, path: finished.append(figure) or Path(path))
    return finished


@pytest.fixture
def say(capfd):
    """Runs a command in this process: (exit code, standard output, standard error)."""
    from minillm import cli

    def run(*argv):
        capfd.readouterr()
        try:
            code = cli.main([str(word) for word in argv])
        except SystemExit as stop:                             # argparse, after --help
            code = stop.code
        return code, *capfd.readouterr()
    return run
