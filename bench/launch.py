"""The cost of a call on the CPU: the Python time from the call to the launch. No GPU is needed to measure it.

The arrays are small, and the launch itself is replaced by the stub driver `stand_in.c`. Numba calls the stub as its
driver, so all work of Numba and cuda.core is measured. CuPy contains CUDA's runtime, which works only with NVIDIA's
driver. For CuPy, the stub replaces functions one level higher, which CuPy's modules call to reach CUDA. They are in
cupy_backends.cuda.api.runtime and driver. Only their own work is left out: releasing and taking Python's lock, calling
CUDA and checking the error.
"""

import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from pathlib import Path

import numpy as np

LIBRARIES = ("cupy", "numba")
ELEMENTS, CALLS = 1000, 500
SIGNATURES = []  # keeps the signatures of replaced functions alive, because a capsule doesn't copy them
KINDS = {b"PyObject *": "cupy_none", b"int": "cupy_zero", b"intptr_t": "cupy_handle", b"unsigned int": "cupy_zero"}


def measure(rounds=15):
    """Medians of rounds, in microseconds per call: {what: microseconds}. Each library runs in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        # Numba finds a driver by this name, in this folder.
        library = Path(folder) / "libcuda.so.1"
        source = Path(__file__).with_name("stand_in.c")
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        found = {}
        for name in LIBRARIES:
            changes = {"CUPY_CACHE_DIR": folder, "NUMBA_ENABLE_CUDASIM": "0"}
            if name == "numba":  # not for CuPy, whose CUDA runtime would load the stub as its driver
                changes["LD_LIBRARY_PATH"] = folder
            command = [sys.executable, "-W", "ignore", "-m", "bench.launch", name, library, str(rounds)]
            where = Path(__file__).parents[1]
            done = subprocess.run(command, env=os.environ | changes, cwd=where, stdout=subprocess.PIPE, check=True)
            found |= {f"{name}: {what}": samples for what, samples in json.loads(done.stdout).items()}
    return {what: statistics.median(samples) for what, samples in found.items()}


def cases(name):
    """The cases of a library: {what: (a function without arguments, the number of its launches)}."""
    import gpudrop

    if name == "cupy":
        import cupy

        x, y, dy = (cupy.empty(ELEMENTS, np.float32) for _ in range(3))

        def own():
            cupy.add(x, dy, y)
    else:
        from numba import cuda

        x, y, dy = (cuda.device_array(ELEMENTS, np.float32) for _ in range(3))

        @cuda.jit
        def add(a, b, out):
            i = cuda.grid(1)
            if i < out.size:
                out[i] = a[i] + b[i]

        def own():
            add[4, 256](x, dy, y)

    rng = gpudrop.Generator(0)

    def there_and_back(activation):
        _, backprop = gpudrop.dropout_vjp(x, 0.1, activation=activation, rng=rng)
        backprop(dy)

    strided = {}
    if name == "cupy":  # uses an ElementwiseKernel
        transposed = cupy.empty((20, 50), np.float32).T
        strided["dropout of a transposed array"] = lambda: gpudrop.dropout(transposed, 0.1, rng=rng), 1
    return strided | {
        "dropout, out given": (lambda: gpudrop.dropout(x, 0.1, activation="relu", rng=rng, out=y), 1),
        "dropout": (lambda: gpudrop.dropout(x, 0.1, activation="relu", rng=rng), 1),
        "dropout_vjp and backprop, relu": (lambda: there_and_back("relu"), 2),
        "dropout_vjp and backprop, gelu": (lambda: there_and_back("gelu"), 2),
        "an addition of its own, out given": (own, 1),
    }


def replace_cuda(stand_in):
    """Make CuPy's modules call the stub. Must be called before CuPy is imported.

    When a compiled module of CuPy is imported, it gets functions of other modules from a table of capsules.
    """
    from cupy_backends.cuda.api import driver, runtime

    name_of, capsule_of = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_New
    name_of.argtypes, name_of.restype = [ctypes.py_object], ctypes.c_char_p
    capsule_of.argtypes, capsule_of.restype = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p], ctypes.py_object
    for table in (runtime.__pyx_capi__, driver.__pyx_capi__):
        for name, capsule in table.items():
            signature = name_of(capsule)  # for example "int (int, int)"
            kind, call, _ = signature.partition(b"(")
            function = getattr(stand_in, f"cupy_{name}", None) or getattr(stand_in, KINDS.get(kind.strip(), ""), None)
            if call and function:
                SIGNATURES.append(signature)
                table[name] = capsule_of(ctypes.cast(function, ctypes.c_void_p).value, signature, None)
    # Python code calls these.
    runtime.getDeviceCount, runtime.getDevice = lambda: 1, lambda: 0
    runtime.deviceGetAttribute = lambda which, device: 132
    driver.occupancyMaxActiveBlocksPerMultiprocessor = lambda kernel, threads, shared: 8


def main(name, library, rounds):
    stand_in = ctypes.PyDLL(library)
    if name == "cupy":
        replace_cuda(stand_in)
    found = {}
    for what, (call, launches) in cases(name).items():
        for _ in range(100):
            call()
        before = stand_in.stand_in_launches()
        # The time of this thread, because other threads are not part of the call.
        samples = timeit.repeat(call, timer=time.thread_time, repeat=int(rounds), number=CALLS)
        assert stand_in.stand_in_launches() - before == int(rounds) * CALLS * launches, f"{what} was not launched"
        found[what] = [seconds / CALLS * 1e6 for seconds in samples]
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
