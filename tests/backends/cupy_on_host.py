"""Builds the complete source of CuPy's kernels with g++ and runs it on the CPU, to test them without a GPU."""

import ctypes
import functools
import struct
import subprocess
from pathlib import Path

import cupy
import numpy as np

from bench.cupy_text import elementwise_source, program
from bench.store import stored
from gpudrop.kernels.chunks import WARP, chunks
from gpudrop.kernels.cupy_elementwise import launching, source

HERE = Path(__file__).parent / "cuda_on_host"
CUPY = Path(cupy.__file__).parent / "_core/include"
OPTIONS = ("-std=c++20", "-O1", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function", "-fPIC", "-pthread")
OPTIONS += ("-Wno-maybe-uninitialized",)  # g++ does not see that a chunk is loaded wherever it is computed
# The originals of functions that `replace_launches` replaces.
GROW, ADVANCE, ELEMENTWISE = launching.grow_kernel, launching.advance_kernel, launching.elementwise

_built = {}


def build(sources):
    """Build kernels, {key: (source, name)}, as one library. Its functions take the addresses of the arguments."""
    sources = {key: source for key, source in sources.items() if key not in _built}
    text = program(sources.values())
    for i in range(len(sources)):
        text += f'extern "C" void entry_{i}(void** of, int threads) {{ launch(n{i}::kernel_{i}, of, threads); }}\n'
    _host()
    library = ctypes.CDLL(str(_compiled(text, ".so", "-shared", "-x", "c++", "-include", _headers())))
    _built.update({key: getattr(library, f"entry_{i}") for i, key in enumerate(sources)})


@functools.cache
def _host():
    """The library of the functions that all kernels call. It is loaded globally, so that kernels find them."""
    library = _compiled((HERE / "host.cpp").read_text(), ".so", "-shared", "-x", "c++")
    return ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


@functools.cache
def _headers():
    """The precompiled headers, as the path that g++ expects. Parsing headers is most of g++'s work for a kernel."""
    return _compiled('#include "host.h"\n', ".h.gch", "-x", "c++-header").with_suffix("")


@functools.cache
def _surroundings():
    """The other inputs of a build: the compiler and the headers."""
    version = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout
    return version, cupy.__version__, *(path.read_text() for path in sorted(HERE.iterdir()))


def _compiled(text, suffix, *how):
    """The file that g++ builds from a source text. Warnings are errors."""

    def make(path):
        source = path.with_suffix(".txt")  # g++ can't read a header from its standard input
        source.write_text(text)
        done = subprocess.run(
            ["g++", *OPTIONS, f"-I{HERE}", f"-I{CUPY}", *how, source, "-o", path], capture_output=True, text=True
        )
        assert done.returncode == 0 and "warning" not in done.stderr, done.stderr

    return stored(suffix, (text, OPTIONS, how, _surroundings()), make)


def replace_launches(replace):
    """Run CuPy's kernels on the CPU, on NumPy arrays. `replace(module, name, value)` sets the attribute of a module."""
    for name in ("run", "address", "elementwise", "grow_kernel", "advance_kernel"):
        replace(launching, name, globals()[name])


def run(kernel, addresses, of, threads=1):
    """Run a kernel with one warp if its threads work together, otherwise with as many threads as requested."""
    if kernel not in _built:
        build({kernel: (source.raw(kernel), kernel.name)})
    threads = WARP if chunks(kernel).together else threads
    _call(kernel, [launching.packer(kernel)(*addresses, *of)], threads)


def address(array):
    return array.ctypes.data if array.flags.c_contiguous else None


def elementwise(kernel):
    return _elementwise(ELEMENTWISE(kernel))


def grow_kernel():
    return _elementwise(GROW())


def advance_kernel():
    return _elementwise(ADVANCE())


def _elementwise(kernel):
    def run_elements(*arguments, size):
        arrays = [a for a in arguments if isinstance(a, np.ndarray)]
        ndim, contiguous = max(a.ndim for a in arrays), all(a.flags.c_contiguous for a in arrays)
        text = elementwise_source(kernel, (ndim, contiguous, False))
        if text not in _built:
            build({text: (text, kernel.name)})
        packed = [_carray(a) if isinstance(a, np.ndarray) else a.tobytes() for a in arguments]
        _call(text, [*packed, struct.pack("3q", size, size, 0)], 1)

    return run_elements


def _carray(array):
    """An array as CuPy passes it: its address, size, shape and strides."""
    return struct.pack(f"Pq{2 * array.ndim}q", array.ctypes.data, array.size, *array.shape, *array.strides)


def _call(key, arguments, threads):
    held = [ctypes.create_string_buffer(argument, len(argument)) for argument in arguments]
    _built[key]((ctypes.c_void_p * len(held))(*map(ctypes.addressof, held)), threads)
