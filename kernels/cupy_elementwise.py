"""CuPy kernels: an ElementwiseKernel per fusion, assembled from printed formulas.

CuPy's loop runs once per chunk, the elements of one Philox call. With `raw` parameters an iteration
loads the chunk with 16-byte accesses, runs the element formula over it in registers, and stores it the
same way. The two ends of an array, and arrays that aren't contiguous or aligned, go element by element
through the same formula, indexed by CuPy's own strided arrays.
"""

import functools

import numpy as np

from gpudrop import random_bits
from gpudrop.cuda_source import CudaSource, prelude
from gpudrop.kernels import arguments

CONVERSIONS = {
    "float16": ("__half2float(__ushort_as_half(x))", "__half_as_ushort(__float2half_rn(x))"),
    "bfloat16": ("__bfloat162float(__ushort_as_bfloat16(x))", "__bfloat16_as_ushort(__float2bfloat16_rn(x))"),
    "float32": ("x", "x"),
    "float64": ("x", "x"),
    "bool": ("x", "static_cast<storage>(x)"),
}
HEADERS = {"float16": "#include <cuda_fp16.h>", "bfloat16": "#include <cuda_bf16.h>"}
C_TYPES = {"uint8": "unsigned char", "uint16": "unsigned short", "float32": "float", "float64": "double"}


def unavailable():
    try:
        import cupy
    except ImportError as error:
        return f"CuPy can't be imported ({error})"
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy finds no CUDA GPU and driver ({error})"
    return None


def devices():
    from cupy.cuda import runtime

    return [runtime.getDeviceProperties(i)["name"].decode() for i in range(runtime.getDeviceCount())]


def preamble(fusion):
    """The functions a kernel calls, as C++ text."""
    source = CudaSource()
    source.add(random_bits.draw, "draw")
    source.add(random_bits.field, "field")
    source.add(fusion.element, "element")
    widen, narrow = CONVERSIONS[fusion.dtype]
    width = min(16, fusion.chunk * np.dtype(fusion.storage).itemsize)
    return f"""
{HEADERS.get(fusion.dtype, "")}
namespace gpudrop {{
{prelude(C_TYPES[fusion.real])}
typedef {C_TYPES[fusion.storage]} storage;
typedef long long int64;
constexpr int chunk = {fusion.chunk}, width = {width};
struct alignas(width) Chunk {{
  storage lane[chunk];
}};
__device__ inline real widen(storage x) {{ return {widen}; }}
__device__ inline storage narrow(real x) {{ return {narrow}; }}
__device__ inline bool aligned(const void* p) {{ return reinterpret_cast<size_t>(p) % width == 0; }}
{source.text}
}}
"""


def operation(fusion, contiguous):
    """One iteration: the elements of chunk i, counted from the one that holds `start`."""
    keep = f"gpudrop::field(words, j, {fusion.bits}) > limit" if fusion.bits else "true"
    draw = "const gpudrop::Words words = gpudrop::draw(seed, call, start / gpudrop::chunk + i);" if fusion.bits else ""

    def store(out, a, b):
        return f"{out} = gpudrop::narrow(gpudrop::element({keep}, scale, gpudrop::widen({a}), gpudrop::widen({b})));"

    two_inputs = fusion.direction == "backward"
    chunk_b = "b_chunk" if two_inputs else "a_chunk"
    load_b = "const gpudrop::Chunk b_chunk = *reinterpret_cast<const gpudrop::Chunk*>(&b[first]);" if two_inputs else ""
    load_a = "const gpudrop::Chunk a_chunk = *reinterpret_cast<const gpudrop::Chunk*>(&a[first]);"
    if fusion.direction == "mask":
        load_a = "const gpudrop::Chunk a_chunk = {};"
    vector = f"""
if (first >= 0 && first + gpudrop::chunk <= size && gpudrop::aligned(&a[first]) && gpudrop::aligned(&b[first])
    && gpudrop::aligned(&out[first])) {{
  {load_a}
  {load_b}
  gpudrop::Chunk out_chunk;
  #pragma unroll
  for (unsigned int j = 0; j < gpudrop::chunk; ++j) {{
    {store("out_chunk.lane[j]", "a_chunk.lane[j]", f"{chunk_b}.lane[j]")}
  }}
  *reinterpret_cast<gpudrop::Chunk*>(&out[first]) = out_chunk;
}} else"""
    return f"""
const gpudrop::int64 first = static_cast<gpudrop::int64>(i) * gpudrop::chunk
    - static_cast<gpudrop::int64>(start % gpudrop::chunk);
{draw}
{vector if contiguous else ""}
for (unsigned int j = 0; j < gpudrop::chunk; ++j) {{
  const gpudrop::int64 m = first + j;
  if (m >= 0 && m < size) {{
    {store("out[m]", "a[m]", "b[m]")}
  }}
}}
"""


@functools.cache
def kernel(fusion, contiguous):
    """The ElementwiseKernel of a fusion, compiled by CuPy at its first launch.

    contiguous: whether a, b and out are flat and contiguous; otherwise they are indexed by logical
    index through CuPy's strided arrays.
    """
    import cupy

    storage, real = fusion.storage, fusion.real
    return cupy.ElementwiseKernel(
        f"raw {storage} a, raw {storage} b, int64 size, uint64 start, uint64 seed, uint64 call, "
        f"uint32 limit, {real} scale",
        f"raw {storage} out",
        operation(fusion, contiguous),
        fusion.name,
        preamble=preamble(fusion),
    )


def launch(fusion, a, b, out, draw):
    if out.size == 0:
        return
    contiguous = all(array.flags.c_contiguous for array in (a, b, out))
    a, b, out, numbers = arguments(fusion, a, b, out, draw, contiguous)
    chunks = -(-(out.size + draw.start % fusion.chunk) // fusion.chunk)
    kernel(fusion, contiguous)(a, b, *numbers, out, size=chunks)
