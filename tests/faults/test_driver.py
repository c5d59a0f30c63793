"""CUDA drivers that don't work: the reason is reported, and the CPU kernels still work."""

import ctypes
import os
import re
import shutil
import subprocess
import sys

import pytest

from gpudrop import backends
from tests.processes import run
from tests.sampling import few

DRIVER = """
#include <dlfcn.h>
#include <string.h>
#ifndef NOTHING
int cuInit(unsigned flags) { return STATUS; }
int cuDriverGetVersion(int *version) { return *version = VERSION, 0; }
int cuDeviceGetCount(int *count) { return *count = 0, 0; }
#endif
#if VERSION >= 12000
int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *status) {
  int known = !strcmp(name, "cuInit") || !strcmp(name, "cuDriverGetVersion") || !strcmp(name, "cuDeviceGetCount");
  Dl_info here;
  dladdr(cuInit, &here);
  *function = known ? dlsym(dlopen(here.dli_fname, RTLD_NOW), name) : 0;
  if (status) *status = !known;
  return known ? 0 : 500;
}
#endif
"""
# How each driver is built, or its file's content; then the reasons that CuPy and Numba report.
DRIVERS = {
    "no device": (["STATUS=100", "VERSION=13000"], "no CUDA-capable device", "CUDA_ERROR_NO_DEVICE"),
    "another kernel module": (["STATUS=803", "VERSION=13000"], "unsupported display driver", "DRIVER_MISMATCH"),
    "an unknown error": (["STATUS=999", "VERSION=13000"], "unknown error", "CUDA_ERROR_UNKNOWN"),
    "of CUDA 11": (["STATUS=0", "VERSION=11000"], "driver version is insufficient", "older than CUDA 12"),
    "of CUDA 12": (["STATUS=0", "VERSION=12000"], "", "too old for CUDA|no CUDA GPU"),
    "of today, without devices": (["STATUS=0", "VERSION=13000"], "", "no CUDA GPU"),
    "without functions": (["NOTHING", "VERSION=0"], "driver version is insufficient", "broken"),
    "a text": ("not a library", "driver version is insufficient", "no CUDA GPU and driver"),
    "an empty file": ("", "driver version is insufficient", "no CUDA GPU and driver"),
    "no file": (None, "driver version is insufficient", "no CUDA GPU and driver"),
}

WITH_DRIVER = """
import numpy as np
import pytest
import gpudrop
from gpudrop import backends
x = np.ones(64, np.float32)
class Device:
    __cuda_array_interface__ = dict(shape=(64,), typestr="<f4", data=(1 << 20, False), version=3, strides=None)
class Exporter:
    __dlpack_device__ = staticmethod(lambda: (2, 0))
    def __dlpack__(self, **options):
        raise BufferError("no data")
for of, protocol in ((Device, "__cuda_array_interface__"), (Exporter, "DLPack")):
    for name, call in {
        "x": lambda: gpudrop.dropout(of()),
        "out": lambda: gpudrop.dropout(x, out=of()),
        "like": lambda: gpudrop.keep_mask(3, 0.5, like=of()),
        "dy": lambda: gpudrop.dropout_vjp(x)[1](of()),
    }.items():
        with pytest.raises(TypeError, match=f"^{name} can't be read through {protocol}: "):
            call()
reasons = [backends.load(name) for name in ("cupy_elementwise", "numba_cuda")]
for name, reason in zip(("cupy_elementwise", "numba_cuda"), reasons):
    with pytest.raises(RuntimeError) as error:
        gpudrop.warmup(["relu"], backend=name)
    assert str(error.value) == f"backend '{name}' is not available: {reason}"
    print(reason)
with pytest.raises(RuntimeError) as error:
    gpudrop.Generator(0, device=True)
assert str(error.value).startswith("no CUDA device can be used: ") and all(r in str(error.value) for r in reasons)
y, backprop = gpudrop.dropout_vjp(x, 0.5, rng=gpudrop.Stream(0, 0))
assert np.array_equal(y != 0, gpudrop.keep_mask(64, 0.5, gpudrop.Stream(0, 0))) and np.array_equal(backprop(x), y)
"""


def has_driver():
    try:
        return bool(ctypes.CDLL("libcuda.so.1"))
    except OSError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the driver library has this name only on Linux")
@pytest.mark.parametrize("name", few(DRIVERS, "no device"))
def test_the_reason_why_a_driver_does_not_work_is_reported(tmp_path, name):
    pytest.importorskip("cupy", reason="CuPy is not installed", exc_type=ImportError)
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
    made, *said = DRIVERS[name]
    library = tmp_path / "libcuda.so.1"
    if isinstance(made, list):
        if shutil.which("cc") is None:
            pytest.skip("there is no C compiler")
        defined = [f"-D{value}" for value in made]
        command = ["cc", "-shared", "-fPIC", *defined, "-D_GNU_SOURCE", "-x", "c", "-", "-o", library, "-ldl"]
        subprocess.run(command, input=DRIVER, text=True, check=True)
    elif has_driver():
        pytest.skip("this machine's own driver would be found")
    elif made is not None:
        library.write_text(made)
    libraries = os.pathsep.join([str(tmp_path), os.environ.get("LD_LIBRARY_PATH", "")])
    environment = {"LD_LIBRARY_PATH": libraries, "NUMBA_ENABLE_CUDASIM": 0, "COLUMNS": 400}
    for reason, words in zip(run(WITH_DRIVER, **environment).stdout.splitlines(), said, strict=True):
        assert re.search(words, reason), reason
    info = run("from gpudrop.cli import main; main()", "info", **environment, clean=False)
    rows = {row.split()[1]: row for row in info.stdout.splitlines() if " no: " in row or " yes, on " in row}
    assert [" yes, on " in rows[name] for name in ("cpu", "cupy_elementwise", "numba_cuda")] == [True, False, False]
    for name, words in zip(("cupy_elementwise", "numba_cuda"), said, strict=True):
        assert re.search(words, rows[name])
    assert "Traceback" not in info.stdout + info.stderr


@pytest.mark.parametrize("error", [ImportError("no such symbol"), OSError("cannot open"), AttributeError("cuInit")])
def test_an_error_on_importing_a_backend_is_its_reason(monkeypatch, error):
    def fail(name):
        raise error

    monkeypatch.setattr(backends.importlib, "import_module", fail)
    assert backends.load.__wrapped__("numba_cuda") == f"it can't be imported ({error})"
