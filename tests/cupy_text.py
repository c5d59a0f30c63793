"""The complete text of CuPy's kernels, built by g++ and run on the host: CuPy kernels without a GPU."""

import ctypes
import functools
import hashlib
import subprocess
import tempfile
from ctypes import c_longlong
from pathlib import Path

import cupy
import numpy as np
from cupy._core import _kernel, _scalar

from gpudrop.kernels import cupy_elementwise

HERE = Path(__file__).parent
ARRAY, INDEXER, SCALAR = 1, 2, 3  # CuPy's kinds of kernel arguments
KERNEL = cupy_elementwise.kernel  # the original: `launch` is tested with a replacement


def argument_types(fusion, contiguous, ndim, narrow_index):
    storage, real = np.dtype(fusion.storage), np.dtype(fusion.real)
    array = _kernel._ArgInfo(ARRAY, cupy.ndarray, storage, ndim, contiguous, narrow_index)
    scalars = [np.dtype(t) for t in ("int64", "uint64", "uint64", "uint64", "uint32")] + [real]
    scalars = [_kernel._ArgInfo(SCALAR, _scalar.CScalar, dtype, 0, True, True) for dtype in scalars]
    indexer = _kernel._ArgInfo(INDEXER, object, None, 1, True, narrow_index)
    return (array, array, *scalars, array, indexer)


def text(fusion, contiguous=True, ndim=1, narrow_index=True):
    """What CuPy hands to its compiler, without the header that it puts before everything.

    narrow_index: whether CuPy finds the arrays small enough to index them with 32 bits.
    """
    kernel = KERNEL(fusion, contiguous)
    return _kernel._get_elementwise_kernel_code(
        argument_types(fusion, contiguous, ndim, narrow_index),
        _kernel._TypeMap(()),
        kernel.params,
        kernel.operation,
        kernel.name,
        kernel.preamble,
    )


def wrapped(fusion, contiguous, ndim, entry):
    """The kernel in a namespace of its own, behind a C function that takes addresses."""
    array = f"CArray<{cupy_elementwise.C_TYPES[fusion.storage]}, {ndim}, {int(contiguous)}, 1>"
    real = cupy_elementwise.C_TYPES[fusion.real]
    return f"""
#define {fusion.name} {entry}_kernel
namespace {entry}_namespace {{
{text(fusion, contiguous, ndim)}
}}
extern "C" void {entry}(void** data, long long* shape, long long** strides, long long size,
    unsigned long long start, unsigned long long seed, unsigned long long call, unsigned int limit,
    {real} scale, long long iterations) {{
  typedef {cupy_elementwise.C_TYPES[fusion.storage]} storage;
  {array} a(static_cast<storage*>(data[0]), shape, strides[0]);
  {array} b(static_cast<storage*>(data[1]), shape, strides[1]);
  {array} out(static_cast<storage*>(data[2]), shape, strides[2]);
  {entry}_namespace::{fusion.name}(a, b, size, start, seed, call, limit, scale, out, CIndexer<1, 1>(&iterations));
}}
#undef {fusion.name}
"""


_built = {}


def build(keys):
    """Build kernels, (fusion, contiguous, ndim) each, as one library."""
    keys = [key for key in keys if key not in _built]
    entries = {key: f"entry_{i}" for i, key in enumerate(keys)}
    source = "#include <host.h>\n" + "".join(wrapped(*key, entry) for key, entry in entries.items())
    folder = Path(_folder())
    stem = hashlib.sha256(source.encode()).hexdigest()[:16]
    (folder / f"{stem}.cpp").write_text(source)
    include = [f"-I{HERE / 'cuda_on_host'}", f"-I{Path(cupy.__file__).parent / '_core/include'}"]
    options = ["-std=c++17", "-O1", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function", "-fPIC", "-shared"]
    command = ["g++", *options, *include, "-o", f"{folder / stem}.so", f"{folder / stem}.cpp"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    library = ctypes.CDLL(f"{folder / stem}.so")
    _built.update({key: getattr(library, entry) for key, entry in entries.items()})


@functools.cache
def _temporary():
    return tempfile.TemporaryDirectory()


def _folder():
    return _temporary().name


def kernel(fusion, contiguous):
    """In the place of `cupy_elementwise.kernel`: takes the same arguments, runs on NumPy arrays."""

    def run(a, b, n, start, seed, call, limit, scale, out, size):
        key = (fusion, contiguous, out.ndim)
        if key not in _built:
            build([key])
        arrays = (a, b, out)
        assert all(array.dtype == fusion.storage and array.shape == out.shape for array in arrays)
        numbers = c_longlong * max(1, out.ndim)
        strides = [ctypes.pointer(numbers(*array.strides)) for array in arrays]
        _built[key](
            (ctypes.c_void_p * 3)(*(array.ctypes.data for array in arrays)),
            numbers(*out.shape),
            (ctypes.POINTER(numbers) * 3)(*strides),
            c_longlong(n),
            *(ctypes.c_ulonglong(int(value)) for value in (start, seed, call)),
            ctypes.c_uint(int(limit)),
            (ctypes.c_double if fusion.real == "float64" else ctypes.c_float)(scale),
            c_longlong(int(size)),
        )

    return run
