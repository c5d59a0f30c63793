"""Runs compute-sanitizer's memcheck and racecheck over a small run of the CUDA kernels.

`python -m bench.sanitize` runs both over `python -m bench.sanitize run`, if they are installed and support the GPU.
"""

import functools
import shutil
import subprocess
import sys

import numpy as np

import gpudrop
from gpudrop import arrays, backends
from gpudrop.testing.benchmark.cases import DTYPES

# cuda.bindings tests which functions a driver has. memcheck would report the resulting errors, which are harmless.
TOOLS = {"memcheck": ("--report-api-errors", "no"), "racecheck": ()}
SIZES = (1, 15, 4099)  # one element, an incomplete chunk, and many chunks with a remainder
STREAM = gpudrop.Stream(3, 4)


def run(put, get, backend):
    """Run forward and backward passes, and compare all masks with the CPU's.

    put and get copy arrays to the backend and back.
    """
    rng = np.random.default_rng(0)
    for dtype in DTYPES.values():
        for activation in ("relu", "gelu"):
            for size in SIZES:
                dropout = functools.partial(gpudrop.dropout_vjp, p=0.3, activation=activation, rng=STREAM)
                _compare(dropout, rng.standard_normal(size).astype(dtype), put, get, backend)
    dropblock = functools.partial(gpudrop.dropblock2d.vjp, p=0.3, block_size=3, rng=STREAM)  # uses shared memory
    _compare(dropblock, rng.standard_normal((4, 5, 6, 7)).astype(np.float32), put, get, backend)


def _compare(function, x, put, get, backend):
    (want, want_backprop), (y, backprop) = function(x), function(put(x), backend=backend)
    for got, exact in ((y, want), (backprop(put(x)), want_backprop(x))):
        np.testing.assert_array_equal(get(got) != 0, exact != 0)


def run_on_gpu():
    import cupy

    cupy.cuda.set_allocator(None)  # separate memory for each array: CuPy's pool would hide accesses out of bounds
    for backend in ("cupy_elementwise", "numba_cuda"):
        run(functools.partial(backends.of, backend), arrays.to_host, backend)


def main(command):
    """Run a command under each tool, and print one line for each. Returns how many tools found errors."""
    path = shutil.which("compute-sanitizer")
    if path is None:
        print("compute-sanitizer: not on this machine")
        return 0
    found = 0
    for tool, options in TOOLS.items():
        checked = [path, "--tool", tool, *options, "--error-exitcode", "9", *command]
        done = subprocess.run(checked, capture_output=True, text=True)
        output = done.stdout + done.stderr
        if "Device not supported" in output:
            print(f"compute-sanitizer {tool}: it does not support this GPU")
            continue
        found += done.returncode != 0
        print(f"compute-sanitizer {tool}: {'no errors' if done.returncode == 0 else output}")
    return found


if __name__ == "__main__":
    if sys.argv[1:] == ["run"]:
        run_on_gpu()
    else:
        sys.exit(main([sys.executable, "-m", "bench.sanitize", "run"]))
