"""The C++ header for users' own CUDA kernels, printed from the formulas."""

import functools
import hashlib
import os
import tempfile
from pathlib import Path

from gpudrop.formulas import MATH, philox
from gpudrop.formulas.activations import ACTIVATIONS, BUILT_IN
from gpudrop.formulas.cuda_cpp import WORDS, CudaSource
from gpudrop.version import VERSION

HEADER = "gpudrop_device.h"

BEGIN = """\
// Random bits, masks, numbers and activations of gpudrop, for kernels of your own. It includes nothing.
#ifndef GPUDROP_DEVICE_VERSION
#define GPUDROP_DEVICE_VERSION 1
#if defined(__CUDACC__)
#define GPUDROP_DEVICE __host__ __device__
#elif defined(__device__)
#define GPUDROP_DEVICE __device__
#else
#define GPUDROP_DEVICE
#endif
#ifdef __GNUC__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#endif

namespace gpudrop {
"""

DIVIDE = """
template <typename real>
__device__ inline real divide(real a, real b) { return a / b; }
"""

END = """
template <int bits>
__device__ inline void check_bits() {
  static_assert(bits == 8 || bits == 16 || bits == 32, "bits must be 8, 16 or 32");
}

// Draw the bits of a chunk: 128 / bits neighbouring elements.
__device__ inline Words draw(uint64 seed, uint64 call, uint64 chunk) { return draw_(seed, call, chunk); }

// Whether an element of a chunk is kept; lane is its number in the chunk.
template <int bits>
__device__ inline bool keep(Words words, uint32 lane, uint64 threshold) {
  check_bits<bits>();
  return reaches_(words, lane, bits, threshold);
}

// The same for the index of an element. It draws.
template <int bits>
__device__ inline bool keep_at(uint64 seed, uint64 call, uint64 element, uint64 threshold) {
  check_bits<bits>();
  return reaches_at_(seed, call, element, bits, threshold);
}

// (field + 1/2) / 2**bits
template <int bits, typename T = float>
__device__ inline T uniform(Words words, uint32 lane) {
  check_bits<bits>();
  return uniform_<T>(words, lane, bits);
}

// A normal deviate; lane is 0, 1, 2 or 3.
template <typename T = float>
__device__ inline T normal(Words words, uint32 lane) { return normal_<T>(words, lane); }
"""

LAST = """\
}  // namespace gpudrop
#ifdef __GNUC__
#pragma GCC diagnostic pop
#endif
#endif
"""


@functools.cache
def cuda_source() -> str:
    """Return a C++ header with the functions of `gpudrop.device` and the activations, for CUDA kernels of your own.

    The functions of the namespace ``gpudrop`` are ``draw(seed, call, chunk)``, ``keep<bits>(words, lane, threshold)``,
    ``keep_at<bits>(seed, call, element, threshold)``, ``uniform<bits, T>(words, lane)`` and ``normal<T>(words, lane)``.
    ``gpudrop::activations`` and ``gpudrop::slopes`` have a function for each activation, of a float or a double. A
    slope is a function of x, and relu's is a function of the result.

    It includes no other header and defines no name outside its namespace except macros that begin with GPUDROP.
    CUDA's compilers and g++ compile it.

    Returns
    -------
    str
        The text, for `cupy.RawModule`, or as `preamble=` of a `cupy.ElementwiseKernel`.

    Examples
    --------
    >>> from gpudrop import device
    >>> "GPUDROP_DEVICE inline bool keep(Words words, uint32 lane, uint64 threshold)" in device.cuda_source()
    True
    """
    source = CudaSource({philox.product: "product"}, generic=True)
    for formula in (philox.draw, philox.reaches, philox.reaches_at, philox.uniform, philox.normal):
        source.add(formula)
    namespaces = ""
    for space, of in (("activations", "value"), ("slopes", "slope")):
        functions = ""
        for name in sorted(BUILT_IN):
            printed = source.add(getattr(ACTIVATIONS[name], of)).replace("<real>", "<T>")
            functions += f"template <typename T>\n__device__ inline T {name}(T x) {{ return {printed}(x); }}\n"
        namespaces += f"\nnamespace {space} {{\n{functions}}}\n"
    text = f"{WORDS}{DIVIDE}\n{_host_math()}\n{source.text}{END}{namespaces}".replace("__device__", "GPUDROP_DEVICE")
    return f"{BEGIN}{text}{LAST}"


def _host_math() -> str:
    """The mathematical functions that CUDA's compilers have built in, for other compilers."""
    lines = []
    for name in MATH:
        for real, builtin in (("float", f"__builtin_{name}f"), ("double", f"__builtin_{name}")):
            lines.append(f"inline {real} {name}({real} x) {{ return {builtin}(x); }}\n")
    return f"#ifndef __CUDACC__\n{''.join(lines)}#endif\n"


def include_dir() -> Path:
    """Return a folder with the text of `cuda_source` as the file gpudrop_device.h, for the compiler's option -I.

    The folder's name contains gpudrop's version and a hash of the text. So a build system, or the cache of CuPy, which
    does not read included files, notices another text.

    Returns
    -------
    pathlib.Path
        A folder in the user's cache: XDG_CACHE_HOME, by default ~/.cache. The file is written if it is missing.

    Raises
    ------
    OSError
        If the file can't be written.

    Examples
    --------
    >>> from gpudrop import device
    >>> (device.include_dir() / "gpudrop_device.h").read_text() == device.cuda_source()
    True
    """
    text = cuda_source()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = caches / "gpudrop" / f"{VERSION}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    file = folder / HEADER
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        # First to a file of another name, so that another process never reads a part.
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            written = Path(temporary) / HEADER
            written.write_text(text, encoding="utf-8")
            written.replace(file)
    return folder
