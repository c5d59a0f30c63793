"""Numba's device arrays with the stub driver of bench/launch.py, for cases that the simulator can't show."""

import os
import shutil
import subprocess
import sys

import pytest

from tests import ROOT

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a function that runs a program with the stub driver: memory is the CPU's, and a launch does nothing."""
    if not sys.platform.startswith("linux") or shutil.which("cc") is None:
        pytest.skip("needs a C compiler, and Linux's name for the driver library")
    library = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, ROOT / "bench" / "stand_in.c", "-ldl"], check=True)
    libraries = os.pathsep.join([str(library.parent), os.environ.get("LD_LIBRARY_PATH", "")])
    environment = os.environ | {"LD_LIBRARY_PATH": libraries, "NUMBA_ENABLE_CUDASIM": "0"}

    def run(program):
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return run


def test_arrays_of_every_dtype_are_copied_to_the_device_and_back(run):
    run("""
import ml_dtypes
import numpy as np
from gpudrop import arrays, backends

for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.uint64, bool):
    whole = np.arange(15).reshape(3, 5).astype(dtype)
    for x in (whole, whole.T, whole[:, :0], whole[1, 1:2].reshape(())):
        placed = backends.of("numba_cuda", x)
        assert (placed.dtype, placed.shape, tuple(placed.strides)) == (x.dtype, x.shape, x.strides)
        back = arrays.to_host(placed)
        assert back.dtype == x.dtype and np.array_equal(back, x)
""")


@pytest.mark.slow
def test_small_arrays_cause_no_performance_warning(run):
    run("""
import sys
import warnings
sys.modules["cupy"] = None  # CuPy's CUDA runtime works only with NVIDIA's driver
import numpy as np
from numba import config, cuda
from numba.cuda.core.errors import NumbaPerformanceWarning
import gpudrop

warnings.simplefilter("error", NumbaPerformanceWarning)
x = cuda.to_device(np.ones((6, 8, 10), np.float32))
gpudrop.dropout(x[:, ::2], 0.5)
gpudrop.dropblock2d(cuda.to_device(np.ones((2, 3, 5, 6), np.float32)), 0.5, block_size=2)
gpudrop.dropout(x, 0.5, rng=gpudrop.Generator(0, device=True))
assert not config.DISABLE_PERFORMANCE_WARNINGS
kernel = cuda.jit("void(float32[:])")(lambda a: None)
try:
    kernel[1, 1]
except NumbaPerformanceWarning:
    pass
else:
    raise AssertionError("Numba no longer warns about small grids")
""")


def test_a_numba_that_is_incompatible_with_numpy_is_reported(run):
    run("""
import sys
import numpy as np
from gpudrop import backends

sys.modules["numba.cuda.np.npyimpl"] = None  # fails as it does with NumPy 2.5
reason = backends.load("numba_cuda")
assert reason.startswith("numba-cuda ") and f" can't compile with NumPy {np.__version__} (" in reason, reason
""")
