"""Which tests run, and on which backends.

The test matrix is the list of backends: a test that takes the fixture `backend` is written once and runs on each. A
plain run covers the CPU kernels, and CuPy's kernels built by g++. On a machine with a GPU it also covers CuPy and Numba
on the GPU. NUMBA_ENABLE_CUDASIM=1 needs a process of its own. It selects Numba's kernels in the simulator, and the
tests marked `simulator`.

By default, products of parameters are sampled, hypothesis draws few examples, and tests marked `slow` are left out. The
option --full runs everything.
"""

import os
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import Any

import hypothesis
import numpy as np
import pytest

import gpudrop
from gpudrop import arrays, backends
from tests.sampling import covering

if "PYTEST_XDIST_WORKER" in os.environ:
    # With several workers, PyTorch's threads would wait for one another at each operation, a hundred times as long.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
if SIMULATED:
    from numba.cuda.simulator.kernel import BlockThread

    def is_alive(thread):
        """Whether a thread is alive.

        The simulator polls this for each thread of a block, which would starve the threads.
        """
        if not thread.syncthreads_blocked:
            thread.join(0.001)
        return Thread.is_alive(thread)

    BlockThread.is_alive = is_alive
CUDA = [pytest.param(name, marks=pytest.mark.gpu) for name in ("cupy_elementwise", "numba_cuda")]


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run all tests, with whole products of parameters")


def pytest_configure(config):
    repeatable = {"derandomize": True, "database": None, "deadline": None}
    hypothesis.settings.register_profile("sample", max_examples=40, **repeatable)
    hypothesis.settings.register_profile("full", max_examples=1000, **repeatable)
    hypothesis.settings.load_profile("full" if config.getoption("--full") else "sample")


def pytest_collection_modifyitems(config, items):
    chosen = [item for item in items if not SIMULATED or runs_simulated(item)]
    if not config.getoption("--full"):
        chosen = sampled([item for item in chosen if item.get_closest_marker("slow") is None])
    if kept := set(chosen):  # otherwise every requested test is slow, and all of them run
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = chosen


def runs_simulated(item):
    return "backend" in getattr(item, "fixturenames", ()) or item.get_closest_marker("simulator") is not None


def sampled(items):
    """The items that the covering sample of their test needs.

    Tests that run only on a GPU are sampled separately: elsewhere they are skipped, and cover nothing.
    """
    groups = defaultdict(list)
    for item in items:
        on_gpu = item.get_closest_marker("gpu") is not None
        groups[item.parent, getattr(item, "originalname", item.name), on_gpu].append(item)
    chosen = {group[k] for group in groups.values() for k in covering(list(map(values, group)))}
    return [item for item in items if item in chosen]


def values(item):
    """The values that a test gets, by identity: one per parametrize mark, and one per fixture with parameters."""
    given = dict(item.callspec.params) if hasattr(item, "callspec") else {}
    row = []
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0].split(",") if isinstance(mark.args[0], str) else mark.args[0]
        row.append(tuple(id(given.pop(name.strip())) for name in names))
    return *row, *map(id, given.values())


@dataclass
class Backend:
    """A backend under test. `put` copies a NumPy array to the backend's device, and `get` copies a result back."""

    name: str
    put: Any = lambda x: x
    get: Any = lambda x: x

    def forward(self, x, *args, **options):
        return self.get(gpudrop.dropout(self.put(x), *args, **options))

    def both(self, x, dy, *args, **options):
        y, backprop = gpudrop.dropout_vjp(self.put(x), *args, **options)
        dx = backprop(self.put(dy))
        return self.get(y), self.get(dx)

    def mask(self, *args, **options):
        like = None if self.name in ("cpu", "cupy_text") else self.put(np.zeros(1, np.float32))
        return self.get(gpudrop.keep_mask(*args, like=like, **options))


@pytest.fixture(params=["numba_cuda"] if SIMULATED else ["cpu", "cupy_text", *CUDA])
def backend(request, monkeypatch):
    if request.param == "cpu":
        return Backend("cpu")
    if request.param == "cupy_text":
        host = pytest.importorskip("tests.backends.cupy_on_host", reason="CuPy is not installed", exc_type=ImportError)
        from gpudrop.kernels import cupy_elementwise

        host.replace_launches(monkeypatch.setattr)
        monkeypatch.setattr(backends, "to_device", np.copy)
        monkeypatch.setattr(arrays, "to_host", np.asarray)
        monkeypatch.setattr(arrays, "overwrite", np.copyto)
        monkeypatch.setattr(backends, "BACKENDS", {"cupy_elementwise": "numpy"})
        monkeypatch.setattr(backends, "load", lambda name: cupy_elementwise)
        return Backend("cupy_text")
    module = backends.load(request.param)
    if isinstance(module, str):
        pytest.skip(module)
    return Backend(request.param, partial(backends.of, request.param), arrays.to_host)


@pytest.fixture
def poisoned(monkeypatch):
    """Fill outputs with nan (or ones) before a kernel runs, so that an element which it skips is detected."""

    def filled(allocate):
        def wrapper(*args):
            array = allocate(*args)
            value = 255 if array.dtype in (np.bool_, np.uint8) else np.nan
            poison = np.full(array.shape, value).astype(array.dtype)
            if isinstance(array, np.ndarray) or SIMULATED:
                getattr(array, "_ary", array)[...] = poison
            else:
                import cupy

                bits = f"u{poison.itemsize}"
                cupy.asarray(array.view(bits))[...] = cupy.asarray(poison.view(bits))
            return array

        return wrapper

    monkeypatch.setattr(arrays, "empty_like", filled(arrays.empty_like))
    monkeypatch.setattr(arrays, "empty", filled(arrays.empty))
