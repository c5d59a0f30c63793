"""CuPy kernels: an ElementwiseKernel per fusion, assembled from printed formulas.

CuPy's loop runs once per chunk, the elements of one Philox call. With `raw` parameters an iteration
loads the chunk with 16-byte accesses, runs the element formula over it in registers, and stores it the
same way. The two ends of an array, and arrays that aren't contiguous or aligned, go element by element
through the same formula, indexed by CuPy's own strided arrays. What is given is read element by element, at
a place that moves on with the elements, since a division each would cost more than the rest.
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
    source.add(random_bits.normal, "normal")
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
{PLACE if fusion.given else ""}
{source.text}
}}
"""


PLACE = """
// Where the element that comes next finds what is given for it, as gpudrop.fusion.Given tells.
struct Place {
  int64 period, repeat, run, within, at, turn, base;
  __device__ Place(int64 i, int64 period, int64 repeat, int64 run) : period(period), repeat(repeat), run(run) {
    const int64 place = i / run, lap = place / period;
    within = i - place * run;
    at = place - lap * period;
    turn = lap % repeat;
    base = lap / repeat * period;
  }
  __device__ int64 next() {
    const int64 here = base + at;
    if (++within == run) {
      within = 0;
      if (++at == period) {
        at = 0;
        if (++turn == repeat) {
          turn = 0;
          base += period;
        }
      }
    }
    return here;
  }
};
"""


# An empty instruction. From what goes into inner in a window, NVRTC 13 makes narrow stores of the wide ones.
OPAQUE = 'asm volatile("" : "+l"(inner));'


def operation(fusion, contiguous):
    """One iteration: the elements of chunk i, counted from the one that holds `start`."""
    draw = f"""
const unsigned long long number = origin / gpudrop::chunk + turn;
const gpudrop::Words words = gpudrop::draw({"stream[0], stream[1]" if fusion.stored else "seed, call"}, number);"""
    drawn = {
        "keep": f"gpudrop::field(words, j, {fusion.bits}) > limit",
        "field": f"static_cast<gpudrop::real>(gpudrop::field(words, j, {fusion.bits}))",
        "normal": "gpudrop::normal(words, j)",
        None: "true",
    }[fusion.acting.drawn]
    if fusion.given:
        draw = "gpudrop::Place place(first > 0 ? first : 0, period, repeat, run);"
        drawn = f"drawn[place.next()]{' != 0' if fusion.keeps else ''}"
    elif not fusion.bits:
        draw, drawn = "", "true"
    scale = (
        "static_cast<gpudrop::real>(row) / static_cast<gpudrop::real>(max(kept[0], 1ULL))"
        if fusion.counted
        else "scale"
    )

    def store(out, a, b):
        return (
            f"{out} = gpudrop::narrow(gpudrop::element({drawn}, {scale}, shift, "
            f"gpudrop::widen({a}), gpudrop::widen({b})));"
        )

    chunk_b = "b_chunk" if fusion.reads == 2 else "a_chunk"
    load_a = "const gpudrop::Chunk a_chunk = *reinterpret_cast<const gpudrop::Chunk*>(&a[first]);"
    load_b = "const gpudrop::Chunk b_chunk = *reinterpret_cast<const gpudrop::Chunk*>(&b[first]);"
    if fusion.reads == 0:
        load_a = "const gpudrop::Chunk a_chunk = {};"
    vector = f"""
if (inner >= 0 && inner + gpudrop::chunk <= row && gpudrop::aligned(&a[first]) && gpudrop::aligned(&b[first])
    && gpudrop::aligned(&out[first])) {{
  {load_a}
  {load_b if fusion.reads == 2 else ""}
  gpudrop::Chunk out_chunk;
  #pragma unroll
  for (unsigned int j = 0; j < gpudrop::chunk; ++j) {{
    {store("out_chunk.lane[j]", "a_chunk.lane[j]", f"{chunk_b}.lane[j]")}
  }}
  *reinterpret_cast<gpudrop::Chunk*>(&out[first]) = out_chunk;
}} else"""
    return f"""
const gpudrop::int64 line = {"i / turns" if fusion.window else "0"}, turn = i - line * turns;
const unsigned long long origin = start + line * pitch;
gpudrop::int64 inner = turn * gpudrop::chunk - static_cast<gpudrop::int64>(origin % gpudrop::chunk);
{OPAQUE if fusion.window else ""}
const gpudrop::int64 first = line * row + inner;
{draw}
{vector if contiguous else ""}
for (unsigned int j = 0; j < gpudrop::chunk; ++j) {{
  const gpudrop::int64 m = first + j;
  if (inner + j >= 0 && inner + j < row) {{
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
    drawn = "uint8" if fusion.keeps else real
    kept = ", raw uint64 kept" if fusion.counted else ""
    given = f", raw {drawn} drawn{kept}, int64 period, int64 repeat, int64 run" if fusion.given else ""
    stream = "raw uint64 stream" if fusion.stored else "uint64 seed, uint64 call"
    return cupy.ElementwiseKernel(
        f"raw {storage} a, raw {storage} b, int64 row, int64 turns, uint64 pitch, uint64 start, {stream}, "
        f"uint32 limit, {real} scale, {real} shift{given}",
        f"raw {storage} out",
        operation(fusion, contiguous),
        fusion.name,
        preamble=preamble(fusion),
    )


def launch(fusion, a, b, out, draw, given=None):
    if out.size == 0:
        return
    contiguous = all(array.flags.c_contiguous for array in (a, b, out))
    a, b, drawn, kept, out, numbers = arguments(fusion, a, b, out, draw, given, contiguous)
    chunks, *numbers = numbers
    numbers, place = numbers[:-3], numbers[-3:]
    if fusion.stored:
        del numbers[5]  # the call, which lies beside the seed
    if fusion.given:
        numbers = (*numbers, drawn, *([kept] if fusion.counted else []), *place)
    kernel(fusion, contiguous)(a, b, *numbers, out, size=int(chunks))


GROW = """
const int64 column = i % width, above = i / width, row = above % height;
const int64 seed_rows = height - rows + 1, seed_columns = width - columns + 1;
const int64 first = above / height * seed_rows;
unsigned char keep = 1;
for (int64 r = max(row - rows + 1, 0LL); r <= min(row, seed_rows - 1); ++r) {
  for (int64 c = max(column - columns + 1, 0LL); c <= min(column, seed_columns - 1); ++c) {
    keep &= seeds[(first + r) * seed_columns + c];
  }
}
mask[i] = keep;
"""


@functools.cache
def grow_kernel():
    import cupy

    return cupy.ElementwiseKernel(
        "raw uint8 seeds, int64 height, int64 width, int64 rows, int64 columns",
        "raw uint8 mask",
        GROW,
        "gpudrop_grow",
        preamble="typedef long long int64;",
    )


def grow(seeds, mask, block):
    grown = mask.view(np.uint8).reshape(-1)
    numbers = map(np.int64, (*mask.shape[1:], *block))
    grow_kernel()(seeds.view(np.uint8).reshape(-1), *numbers, grown, size=grown.size)
    return grown.sum(dtype=np.uint64).reshape(1)
