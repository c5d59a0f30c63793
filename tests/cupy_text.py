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
KERNEL, GROW = cupy_elementwise.kernel, cupy_elementwise.grow_kernel  # the originals: `launch` gets replacements
C_TYPES = {"u1": "unsigned char", "u2": "unsigned short", "u4": "unsigned int", "u8": "unsigned long long"}
C_TYPES |= {"i8": "long long", "f4": "float", "f8": "double"}


def argument_types(kernel, forms, narrow_index):
    """What CuPy knows of a kernel's arguments; forms: (contiguous, ndim) of each array, in order."""
    forms = iter(forms)

    def argument(parameter):
        if not parameter.raw:
            return _kernel._ArgInfo(SCALAR, _scalar.CScalar, np.dtype(parameter.dtype), 0, True, True)
        contiguous, ndim = next(forms)
        return _kernel._ArgInfo(ARRAY, cupy.ndarray, np.dtype(parameter.dtype), ndim, contiguous, narrow_index)

    indexer = _kernel._ArgInfo(INDEXER, object, None, 1, True, narrow_index)
    return (*map(argument, kernel.params[:-1]), indexer)


def kernel_text(kernel, forms, narrow_index=True):
    """What CuPy hands to its compiler, without the header that it puts before everything.

    narrow_index: whether CuPy finds the arrays small enough to index them with 32 bits.
    """
    return _kernel._get_elementwise_kernel_code(
        argument_types(kernel, forms, narrow_index),
        _kernel._TypeMap(()),
        kernel.params,
        kernel.operation,
        kernel.name,
        kernel.preamble,
    )


def forms_of(fusion, contiguous, ndim):
    """The forms of the arrays of a fusion's kernel: a, b, the stream, what is given and how many are kept, out."""
    one = fusion.stored + fusion.given + fusion.counted
    return [(contiguous, ndim)] * 2 + [(True, 1)] * one + [(contiguous, ndim)]


def text(fusion, contiguous=True, ndim=1, narrow_index=True):
    """The text of a fusion's kernel."""
    return kernel_text(KERNEL(fusion, contiguous), forms_of(fusion, contiguous, ndim), narrow_index)


def wrapped(kernel, forms, entry):
    """The kernel in a namespace of its own, behind a C function that takes addresses."""
    remaining, declared, passed = iter(enumerate(forms)), "", []
    for number, parameter in enumerate(kernel.params[:-1]):
        kind, name = C_TYPES[np.dtype(parameter.dtype).str[1:]], parameter.name
        if parameter.raw:
            i, (contiguous, ndim) = next(remaining)
            array = f"CArray<{kind}, {ndim}, {int(contiguous)}, 1>"
            declared += f"  {array} {name}(static_cast<{kind}*>(arguments[{number}]), shapes[{i}], strides[{i}]);\n"
        else:
            declared += f"  const {kind} {name} = *static_cast<{kind}*>(arguments[{number}]);\n"
        passed.append(name)
    return f"""
#define {kernel.name} {entry}_kernel
namespace {entry}_namespace {{
{kernel_text(kernel, forms)}
}}
extern "C" void {entry}(void** arguments, long long** shapes, long long** strides, long long iterations) {{
{declared}
  {entry}_namespace::{kernel.name}({", ".join(passed)}, CIndexer<1, 1>(&iterations));
}}
#undef {kernel.name}
"""


_built = {}


def build(keys):
    """Build kernels, {key: (ElementwiseKernel, forms)}, as one library."""
    keys = {key: value for key, value in keys.items() if key not in _built}
    entries = {key: f"entry_{i}" for i, key in enumerate(keys)}
    source = "#include <host.h>\n" + "".join(wrapped(*keys[key], entry) for key, entry in entries.items())
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

    def run(*arguments, size):
        ndim = arguments[-1].ndim
        key = (fusion, contiguous, ndim)
        _run(key, KERNEL(fusion, contiguous), forms_of(*key), arguments, size)

    return run


def grow_kernel():
    """In the place of `cupy_elementwise.grow_kernel`."""
    return lambda *arguments, size: _run("grow", GROW(), [(True, 1)] * 2, arguments, size)


def _run(key, kernel, forms, arguments, size):
    if key not in _built:
        build({key: (kernel, forms)})
    parameters = kernel.params[:-1]
    arrays = [a for a, parameter in zip(arguments, parameters, strict=True) if parameter.raw]
    for array, parameter, (contiguous, ndim) in zip(arrays, [p for p in parameters if p.raw], forms, strict=True):
        assert array.dtype == parameter.dtype and array.ndim == ndim
        assert array.flags.c_contiguous or not contiguous
    # Scalars as arrays of none, so that each has an address.
    held = [a if p.raw else np.array(a, p.dtype) for a, p in zip(arguments, parameters, strict=True)]

    def numbers(values):
        kind = c_longlong * max(1, len(values))
        return ctypes.cast(ctypes.pointer(kind(*values)), ctypes.POINTER(c_longlong))

    pointers = ctypes.POINTER(c_longlong) * len(arrays)
    _built[key](
        (ctypes.c_void_p * len(held))(*(array.ctypes.data for array in held)),
        pointers(*(numbers(array.shape) for array in arrays)),
        pointers(*(numbers(array.strides) for array in arrays)),
        c_longlong(int(size)),
    )
