"""The test matrix is the list of backends: a test that takes `backend` is written once and runs on each.

In a plain run: the host kernels, and CuPy's kernels built by g++; on a machine with a GPU also CuPy and
Numba on it. With NUMBA_ENABLE_CUDASIM=1, in a process of its own: Numba's kernels in the simulator.
"""

import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest

import gpudrop
from gpudrop import backends

if "PYTEST_XDIST_WORKER" in os.environ:
    # PyTorch's threads in several workers would wait for one another at each operation, a hundred times as long.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
CUDA = [pytest.param(name, marks=pytest.mark.gpu) for name in ("cupy_elementwise", "numba_cuda")]


@dataclass
class Backend:
    """A way to compute: put takes a NumPy array to where it computes, get brings one back."""

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
        cupy_text = pytest.importorskip("tests.cupy_text", reason="CuPy is not installed", exc_type=ImportError)
        from gpudrop.kernels import cupy_elementwise

        monkeypatch.setattr(cupy_elementwise, "run", cupy_text.run)
        monkeypatch.setattr(cupy_elementwise, "grow_kernel", cupy_text.grow_kernel)
        monkeypatch.setattr(cupy_elementwise, "advance_kernel", cupy_text.advance_kernel)
        monkeypatch.setattr(backends, "to_device", np.copy)
        monkeypatch.setattr(backends, "to_host", np.asarray)
        monkeypatch.setattr(backends, "overwrite", np.copyto)
        monkeypatch.setattr(backends, "BACKENDS", {"cupy_elementwise": "numpy"})
        monkeypatch.setattr(backends, "load", lambda name: cupy_elementwise)
        return Backend("cupy_text")
    module = backends.load(request.param)
    if isinstance(module, str):
        pytest.skip(module)
    return Backend(request.param, partial(backends.of, request.param), backends.to_host)


@pytest.fixture
def poisoned(monkeypatch):
    """Outputs hold nan (or True) before a kernel runs, so that an element it forgets is seen."""

    def filled(allocate):
        def wrapper(*args):
            array = allocate(*args)
            poison = np.full(array.shape, np.nan if array.dtype != bool else True).astype(array.dtype)
            if isinstance(array, np.ndarray) or SIMULATED:
                getattr(array, "_ary", array)[...] = poison
            else:
                import cupy

                bits = f"u{poison.itemsize}"
                cupy.asarray(array.view(bits))[...] = cupy.asarray(poison.view(bits))
            return array

        return wrapper

    monkeypatch.setattr(backends, "empty_like", filled(backends.empty_like))
    monkeypatch.setattr(backends, "empty", filled(backends.empty))
