"""The complete text of CuPy's kernels, built by g++ and run on the host: CuPy kernels without a GPU."""

import ctypes
import functools
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import cupy
import numpy as np

from bench.cupy_text import elementwise_source, program
from bench.store import stored
from gpudrop.kernels import WARP, accesses, cupy_elementwise

HERE = Path(__file__).parent / "cuda_on_host"
CUPY = Path(cupy.__file__).parent / "_core/include"
OPTIONS = ("-std=c++20", "-O1", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function", "-fPIC", "-pthread")
# The originals, in the place of which tests put what is below.
GROW, ADVANCE = cupy_elementwise.grow_kernel, cupy_elementwise.advance_kernel

_built = {}


def build(sources):
    """Build kernels, {key: (source, name)}, as one library of functions that take the addresses of the arguments."""
    sources = {key: source for key, source in sources.items() if key not in _built}
    text = program(sources.values())
    for i in range(len(sources)):
        text += f'extern "C" void entry_{i}(void** of, int threads) {{ launch(n{i}::kernel_{i}, of, threads); }}\n'
    _host()
    library = ctypes.CDLL(str(_compiled(text, ".so", "-shared", "-x", "c++", "-include", _headers())))
    _built.update({key: getattr(library, f"entry_{i}") for i, key in enumerate(sources)})


def with_backward(fusion):
    """A fusion and that of its backward pass, which a test mostly wants too: one g++ for both takes half the time."""
    if fusion.direction == "forward" and (fusion.bits or fusion.given):
        backward = replace(fusion, direction="backward")
        if backward.acting.drawn is not None and not backward.saves_output:
            return fusion, backward
    return (fusion,)


@functools.cache
def _host():
    """What all kernels call, in a library that they find because it is global."""
    library = _compiled((HERE / "host.cpp").read_text(), ".so", "-shared", "-x", "c++")
    return ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


@functools.cache
def _headers():
    """All headers as g++ keeps them parsed, which is most of its work for a kernel; by the name it looks for."""
    return _compiled('#include "host.h"\n', ".h.gch", "-x", "c++-header").with_suffix("")


@functools.cache
def _surroundings():
    """What a library depends on beside its text: the compiler and the headers."""
    version = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout
    return version, cupy.__version__, *(path.read_text() for path in sorted(HERE.iterdir()))


def _compiled(text, suffix, *how):
    """What g++ makes of a text. Warnings are errors."""

    def make(path):
        source = path.with_suffix(".txt")  # g++ reads no header from its standard input
        source.write_text(text)
        done = subprocess.run(
            ["g++", *OPTIONS, f"-I{HERE}", f"-I{CUPY}", *how, source, "-o", path], capture_output=True, text=True
        )
        assert done.returncode == 0 and "warning" not in done.stderr, done.stderr

    return stored(suffix, (text, OPTIONS, how, _surroundings()), make)


def run(fusion, form, arrays, of):
    """In the place of `cupy_elementwise.run`, on NumPy arrays: a warp where threads exchange words, else a thread."""
    key = fusion, form
    if key not in _built:
        build({(of, form): (cupy_elementwise.source(of, form), of.name) for of in with_backward(fusion)})
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
