"""python -m bench.gpu_here: exits with a one-line reason if nothing can be measured on a GPU."""

import ctypes
import importlib
import sys


def missing():
    """The reason why nothing can be measured here, or None.

    The driver is checked first, because this needs no package.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"no CUDA GPU here (no NVIDIA driver: {error})"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "no CUDA GPU here (the NVIDIA driver finds none)"
    for package in ("gpudrop.kernels", "cupy", "numba.cuda", "pytest", "xdist", "scipy", "typer", "rich", "matplotlib"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            return f"a package is missing for {sys.executable} ({error})"
    from gpudrop import backends

    module = backends.load("cupy_elementwise")
    return module if isinstance(module, str) else None


if __name__ == "__main__":
    reason = missing()
    if reason:
        sys.exit(f"make gpu: {reason}")
