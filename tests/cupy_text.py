"""The complete text of CuPy's kernels, built by g++ and run on the host: CuPy kernels without a GPU."""

import ctypes
import functools
import hashlib
import struct
import subprocess
import tempfile
from pathlib import Path

import cupy
import numpy as np
from cupy._core import _kernel, _scalar

from gpudrop.kernels import WARP, accesses, cupy_elementwise

HERE = Path(__file__).parent
# The originals, in the place of which tests put what is below.
GROW, ADVANCE = cupy_elementwise.grow_kernel, cupy_elementwise.advance_kernel


def elementwise_source(kernel):
    """What CuPy makes of an ElementwiseKernel, all of whose arrays are contiguous."""
    array, indexer, scalar = 1, 2, 3  # CuPy's kinds of kernel arguments

    def argument(parameter):
        kind, of = (array, cupy.ndarray) if parameter.raw else (scalar, _scalar.CScalar)
        return _kernel._ArgInfo(kind, of, np.dtype(parameter.dtype), int(parameter.raw), True, True)

    of_loop = _kernel._ArgInfo(indexer, object, None, 1, True, True)
    arguments = (*map(argument, kernel.params[:-1]), of_loop)
    text = _kernel._get_elementwise_kernel_code(
        arguments, _kernel._TypeMap(()), kernel.params, kernel.operation, kernel.name, kernel.preamble
    )
    return "#include <cupy/carray.cuh>\n" + text


def program(sources):
    """One program out of several, [(source, kernel's name), ...]: each in a namespace, under another name."""
    whole = "#include <cupy/carray.cuh>\n#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n"
    for i, (source, name) in enumerate(sources):
        whole += f"#define {name} kernel_{i}\nnamespace n{i} {{\n{source}\n}}\n#undef {name}\n"
    return whole


_built = {}


def build(sources):
    """Build kernels, {key: (source, name)}, as one library of functions that take the addresses of the arguments."""
    sources = {key: source for key, source in sources.items() if key not in _built}
    text = "#include <host.h>\n" + program(sources.values())
    for i in range(len(sources)):
        text += f'extern "C" void entry_{i}(void** of, int threads) {{ launch(n{i}::kernel_{i}, of, threads); }}\n'
    stem = hashlib.sha256(text.encode()).hexdigest()[:16]
    _compile(stem, text, _host())
    library = ctypes.CDLL(f"{Path(_folder().name) / stem}.so")
    _built.update({key: getattr(library, f"entry_{i}") for i, key in enumerate(sources)})


@functools.cache
def _host():
    """The library of what all kernels need: compiled once, since it takes as long as a kernel."""
    return _compile("host", (HERE / "cuda_on_host/host.cpp").read_text())


def _compile(stem, text, *libraries):
    """Compile a library; returns its path. Warnings are errors."""
    folder = Path(_folder().name)
    (folder / f"{stem}.cpp").write_text(text)
    include = [f"-I{HERE / 'cuda_on_host'}", f"-I{Path(cupy.__file__).parent / '_core/include'}"]
    options = ["-std=c++20", "-O1", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function", "-fPIC", "-shared"]
    command = ["g++", *options, "-pthread", *include, f"{folder / stem}.cpp", *libraries, "-o", f"{folder / stem}.so"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    return f"{folder / stem}.so"


@functools.cache
def _folder():
    return tempfile.TemporaryDirectory()


def run(fusion, form, arrays, of):
    """In the place of `cupy_elementwise.run`, on NumPy arrays: a warp where threads exchange words, else a thread."""
    key = fusion, form
    if key not in _built:
        build({key: (cupy_elementwise.source(*key), fusion.name)})
    for array in arrays[: 3 if form is None else 0]:
        assert array.flags.c_contiguous
    threads = WARP if form is None and accesses(fusion)[2] else 1
    _call(key, [*map(_carray, arrays), cupy_elementwise.PACK[fusion.real](*of)], threads)


def grow_kernel():
    """In the place of `cupy_elementwise.grow_kernel`."""
    return _elementwise(GROW())


def advance_kernel():
    """In the place of `cupy_elementwise.advance_kernel`."""
    return _elementwise(ADVANCE())


def _elementwise(kernel):
    if kernel.name not in _built:
        build({kernel.name: (elementwise_source(kernel), kernel.name)})

    def launch(*arguments, size):
        packed = [_carray(a) if isinstance(a, np.ndarray) else a.tobytes() for a in arguments]
        _call(kernel.name, [*packed, struct.pack("3q", size, size, 0)], 1)

    return launch


def _carray(array):
    """An array as CuPy passes it: its address, size, shape and strides."""
    return struct.pack(f"Pq{2 * array.ndim}q", array.ctypes.data, array.size, *array.shape, *array.strides)


def _call(key, arguments, threads):
    held = [ctypes.create_string_buffer(argument, len(argument)) for argument in arguments]
    _built[key]((ctypes.c_void_p * len(held))(*map(ctypes.addressof, held)), threads)
