"""CuPy kernels: elementwise, a program per fusion, assembled from printed formulas.

A thread takes a chunk, the elements of one Philox call: it loads as many with 16-byte accesses, draws meanwhile, runs
the element formula over them in registers, and stores them the same way. The two ends of an array, and arrays that
aren't contiguous or aligned, go element by element through the same formula. What is given is read at a place that
moves on with the chunks, since divisions would cost more than the rest.

The kernels are CuPy's RawKernels, which take arrays as they are and all numbers as one structure: the call of an
ElementwiseKernel, with a view of each array and a check of each number, takes the host three times as long.
"""

import functools
import struct

import numpy as np

try:
    import cupy
    from cupy.cuda import driver, runtime
except ImportError as error:  # where all the same the text of kernels can be printed
    cupy, NO_CUPY = None, f"CuPy can't be imported ({error})"

from gpudrop.formulas import philox
from gpudrop.formulas.cuda_cpp import CudaSource, prelude
from gpudrop.kernels import WARP, accesses, device_math, numbers, thread_count

CONVERSIONS = {
    "float16": ("__half2float(__ushort_as_half(x))", "__half_as_ushort(__float2half_rn(x))"),
    "bfloat16": ("__bfloat162float(__ushort_as_bfloat16(x))", "__bfloat16_as_ushort(__float2bfloat16_rn(x))"),
    "float32": ("x", "x"),
    "float64": ("x", "x"),
    "bool": ("x", "static_cast<storage>(x)"),
}
HEADERS = {"float16": "#include <cuda_fp16.h>", "bfloat16": "#include <cuda_bf16.h>"}
C_TYPES = {"uint8": "unsigned char", "uint16": "unsigned short", "float32": "float", "float64": "double"}
THREADS = 128  # of a block


def unavailable():
    if cupy is None:
        return NO_CUPY
    try:
        return None if runtime.getDeviceCount() else "CuPy finds no CUDA GPU"
    except Exception as error:  # CUDARuntimeError, or whatever a broken driver makes of it
        return f"CuPy finds no CUDA GPU and driver ({error})"


def devices():
    return [runtime.getDeviceProperties(i)["name"].decode() for i in range(runtime.getDeviceCount())]


PRODUCT = """
// Given a product of 64 bits, the PTX compiler adds the product of the upper halves, which are 0.
__device__ inline uint64 product(uint32 a, uint32 b) {
#ifdef __CUDA_ARCH__
  uint64 both;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(both) : "r"(a), "r"(b));
  return both;
#else
  return static_cast<uint64>(a) * b;
#endif
}
"""

EXACT = "__device__ inline real divide(real a, real b) { return a / b; }"
APPROXIMATE = """
__device__ inline real divide(real a, real b) { return __fdividef(a, b); }
__device__ inline real exp(real x) {
#ifdef __CUDA_ARCH__
  real y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
  return y;
#else
  return ::exp(x);
#endif
}
"""

PLACE = """
// Where an element finds what is given for it, as gpudrop.fusion.Given tells.
struct Place {
  int64 within, at, turn, base;
};
__device__ inline Place find(int64 i, const Numbers& n) {
  const int64 place = i / n.run, lap = place / n.period;
  return {i - place * n.run, place - lap * n.period, lap % n.repeat, lap / n.repeat * n.period};
}
// To the place of a later element: `by` is the place of the element as far from the first one.
__device__ inline void move_on(Place& place, const Place& by, const Numbers& n) {
  place = {place.within + by.within, place.at + by.at, place.turn + by.turn, place.base + by.base};
  if (place.within >= n.run) {
    place.within -= n.run;
    ++place.at;
  }
  if (place.at >= n.period) {
    place.at -= n.period;
    ++place.turn;
  }
  if (place.turn >= n.repeat) {
    place.turn -= n.repeat;
    place.base += n.period;
  }
}
"""

MASK = """
// A bit for each element of a chunk that starts at a place: whether it is kept. In most masks no two boundaries, of
// runs or, where each element has its own, of periods, meet in a chunk: then all is found in two steps.
__device__ inline uint32 chunk_of_mask(const drawn_type* drawn, Place place, const Numbers& n) {
  uint32 keeps = 0;
  if ((n.run == 1 ? n.period : n.run) < chunk) {
    #pragma unroll 1
    for (int j = 0; j < chunk; ++j) {
      keeps |= static_cast<uint32>(drawn[place.at + place.base] != 0) << j;
      move_on(place, {1, 0, 0, 0}, n);
    }
    return keeps;
  }
  const int64 before = place.at + place.base;
  if (n.run == 1) {
    const int64 ahead = n.period - place.at;
    move_on(place, {0, ahead, 0, 0}, n);
    const int64 after = place.at + place.base - ahead;
    #pragma unroll
    for (int j = 0; j < chunk; ++j) {
      keeps |= static_cast<uint32>(drawn[(j < ahead ? before : after) + j] != 0) << j;
    }
    return keeps;
  }
  const int64 ahead = n.run - place.within;
  keeps = drawn[before] != 0 ? ~0u : 0u;
  if (ahead < chunk) {
    move_on(place, {ahead, 0, 0, 0}, n);
    const uint32 later = ~0u << ahead;
    keeps = (keeps & ~later) | (drawn[place.at + place.base] != 0 ? later : 0u);
  }
  return keeps;
}
"""

EXCHANGE = """
// Half of two words for half of the other thread's: the one has both low ones then, the other both high ones.
__device__ inline void swap(unsigned int lane, unsigned int distance, uint32& low, uint32& high) {
  const bool odd = lane & distance;
  const uint32 received = __shfl_xor_sync(0xFFFFFFFFu, odd ? low : high, distance);
  if (odd) {
    low = received;
  } else {
    high = received;
  }
}
// The words for a thread's own elements, which are parts of other threads' chunks: see gpudrop.kernels.accesses.
__device__ inline void exchange(uint32* words, unsigned int lane) {
  swap(lane, parts / 2, words[0], words[2]);
  swap(lane, parts / 2, words[1], words[3]);
  if (parts == 4) {
    swap(lane, 1, words[0], words[1]);
    swap(lane, 1, words[2], words[3]);
  }
}
"""


def functions(fusion):
    """The functions a kernel calls, as C++ text."""
    source = CudaSource({philox.product: "product"})
    if fusion.approximate:
        for replaced, by in device_math.FORMULAS.items():
            source.names[replaced] = source.add(by)
    for name in ("draw", "keep", "field", "normal"):
        source.add(getattr(philox, name), name)
    source.add(fusion.element, "element")
    widen, narrow = CONVERSIONS[fusion.dtype]
    width, parts, exchanges = accesses(fusion)
    return f"""
namespace gpudrop {{
{prelude(C_TYPES[fusion.real])}
typedef {C_TYPES[fusion.storage]} storage;
typedef long long int64;
struct Numbers {{
  int64 chunks, row, turns, period, repeat, run;
  uint64 pitch, start, seed, call;
  real scale, shift;
  uint32 limit;
}};
constexpr int chunk = {fusion.chunk}, width = {width}, parts = {parts}, step = chunk / parts, warp = {WARP};
// An access, and what it moves.
struct alignas(width) Part {{
  storage lane[step];
}};
__device__ inline real widen(storage x) {{ return {widen}; }}
__device__ inline storage narrow(real x) {{ return {narrow}; }}
__device__ inline bool aligned(const void* p) {{ return reinterpret_cast<size_t>(p) % width == 0; }}
{f"typedef {'unsigned char' if fusion.keeps else C_TYPES[fusion.real]} drawn_type;{PLACE}" if fusion.given else ""}
{MASK if fusion.given_mask else ""}
{EXCHANGE if exchanges else ""}
{PRODUCT}
{APPROXIMATE if fusion.approximate else EXACT}
{source.text}
}}
"""


# An empty instruction. From what goes into inner in a window, NVRTC 13 makes narrow stores of the wide ones.
OPAQUE = 'asm volatile("" : "+l"(inner));'


def source(fusion, form=None):
    """The program of a fusion's kernel.

    form: of a, b and out where they aren't all contiguous, (ndim, narrow): narrow where 32 bits index them. They are
    CuPy's strided arrays then, indexed by logical index, and without it addresses.
    """
    array = (
        "gpudrop::storage*" if form is None else f"CArray<gpudrop::storage, {form[0]}, false, {str(form[1]).lower()}>"
    )
    more = ", const gpudrop::drawn_type* drawn" if fusion.given else ""
    more += ", const unsigned long long* kept" if fusion.counted else ""
    more += ", const unsigned long long* stream" if fusion.stored else ""
    return f"""
{"" if form is None else "#include <cupy/carray.cuh>"}
{HEADERS.get(fusion.dtype, "")}
{functions(fusion)}
extern "C" __global__ void {fusion.name}({array} a, {array} b, {array} out{more}, const gpudrop::Numbers n) {{
  using namespace gpudrop;
{loop(fusion, form is None)}
}}
"""


def loop(fusion, contiguous):
    """A kernel's text: the chunks that a thread does."""
    exchanges = contiguous and accesses(fusion)[2]
    seed, call = ("stream[0]", "stream[1]") if fusion.stored else ("n.seed", "n.call")
    mine, at = "number + own", "j"
    if fusion.shares > 1:
        mine, at = (
            f"(number + own) / {fusion.shares}",
            f"j + static_cast<uint32>((number + own) % {fusion.shares}) * chunk",
        )
    drawn = {
        "keep": f"keep(words, {at}, {fusion.bits}, n.limit)",
        "field": f"static_cast<real>(field(words, {at}, {fusion.bits}))",
        "normal": f"normal(words, {at})",
        None: "true",
    }[fusion.acting.drawn]
    if fusion.given:
        drawn = f"drawn[here.at + here.base]{' != 0' if fusion.keeps else ''}"
    elif not fusion.bits:
        drawn = "true"
    scale = "static_cast<real>(n.row) / static_cast<real>(max(kept[0], 1ULL))" if fusion.counted else "n.scale"

    def element(out, a, b, drawn=drawn, then="move_on(here, {1, 0, 0, 0}, n);" if fusion.given else ""):
        second = b if fusion.reads == 2 else a
        return f"{out} = narrow(element({drawn}, {scale}, n.shift, widen({a}), widen({second}))); {then}"

    def load(array):
        return f"""
    Part {array}_parts[parts] = {{}};
    if (whole) {{
      #pragma unroll
      for (int s = 0; s < parts; ++s) {{
        {array}_parts[s] = *reinterpret_cast<const Part*>(&{array}[m + s * apart]);
      }}
    }}"""

    whole, wide = "", ""
    if contiguous:
        whole = f"""
    {OPAQUE if fusion.window else ""}
    const bool whole = straight && inner >= 0 && inner + chunk <= n.row;
    int64 m = begin + inner;
    {TOGETHER if exchanges else "const int64 apart = step;"}
    {load("a") if fusion.reads else "const Part a_parts[parts] = {};"}
    {load("b") if fusion.reads == 2 else ""}"""
        lanes = (f"{name}_parts[j / step].lane[j % step]" for name in ("out", "a", "b"))
        wide = f"""
    if (whole) {{
      {"if (together) exchange(words.w, lane);" if exchanges else ""}
      {"const uint32 keeps = chunk_of_mask(drawn, place, n);" if fusion.given_mask else ""}
      Part out_parts[parts];
      #pragma unroll
      for (unsigned int j = 0; j < chunk; ++j) {{
        {element(*lanes, "keeps >> j & 1", "") if fusion.given_mask else element(*lanes)}
      }}
      #pragma unroll
      for (int s = 0; s < parts; ++s) {{
        *reinterpret_cast<Part*>(&out[m + s * apart]) = out_parts[s];
      }}
    }} else"""
    return f"""
  const int64 threads = static_cast<int64>(gridDim.x) * blockDim.x;
  int64 i = static_cast<int64>(blockIdx.x) * blockDim.x + threadIdx.x;
  int64 turn = i, begin = 0, skip = static_cast<int64>(n.start % chunk);
  {"uint64 number = n.start / chunk;" if fusion.bits else ""}
  {FIRST_LINE if fusion.window else ""}
  {OWN if exchanges else ""}
  {PLACES if fusion.given else ""}
  {"bool straight = aligned(a - skip) && aligned(b - skip) && aligned(out - skip);" if contiguous else ""}
  #pragma unroll 1
  for (; i < n.chunks; i += threads) {{
    {LINE if fusion.window else ""}
    {STRAIGHT if fusion.window and contiguous else ""}
    const int64 own = turn{" + to_own" if exchanges else ""};
    int64 inner = own * chunk - skip;
    {whole}
    {f"Words words = draw({seed}, {call}, {mine});" if fusion.bits else ""}
    {"Place here = place;" if fusion.given else ""}
    {wide} {{
      for (unsigned int j = 0; j < chunk; ++j) {{
        if (inner + j >= 0 && inner + j < n.row) {{
          const int64 e = begin + inner + j;
          {element("out[e]", "a[e]", "b[e]")}
        }}
      }}
    }}
    {"move_on(place, further_place, n);" if fusion.given else ""}
    {NEXT_LINE if fusion.window else "turn += threads;"}
  }}
"""


OWN = """
  const unsigned int lane = i % warp;
  // From i to the chunk that this thread draws for.
  const int64 to_own = static_cast<int64>(lane % parts * (warp / parts) + lane / parts) - lane;
"""
TOGETHER = """
    const int64 tile = (turn - lane) * chunk - skip;
    const bool together = straight && tile >= 0 && tile + warp * chunk <= n.row;
    int64 apart = step;
    if (together) {
      m = begin + tile + lane * step;
      apart = warp * step;
    }
"""
PLACES = """
  Place place = find(i * chunk, n);
  const Place further_place = find(threads * chunk, n);
"""
FIRST_LINE = """
  int64 line = i / n.turns;
  const int64 further_lines = threads / n.turns, further = threads - further_lines * n.turns;
  turn -= line * n.turns;
"""
LINE = """
    const uint64 origin = n.start + line * n.pitch;
    begin = line * n.row;
    skip = static_cast<int64>(origin % chunk);
    number = origin / chunk;
"""
STRAIGHT = """
    straight = aligned(a + (begin - skip)) && aligned(b + (begin - skip)) && aligned(out + (begin - skip));
"""
NEXT_LINE = """
    turn += further;
    line += further_lines;
    if (turn >= n.turns) {
      turn -= n.turns;
      ++line;
    }
"""

PACK = {"float32": struct.Struct("6q4Q2fI4x").pack, "float64": struct.Struct("6q4Q2dI4x").pack}
"""Numbers as the bytes of their structure, by the arithmetic."""


@functools.cache
def function(fusion, form, device):
    """The compiled kernel on a device, how many threads of it fill the device, and how to pack its numbers."""
    compiled = cupy.RawKernel(source(fusion, form), fusion.name, ("-std=c++17",)).kernel
    blocks = driver.occupancyMaxActiveBlocksPerMultiprocessor(compiled.ptr, THREADS, 0)
    multiprocessors = runtime.deviceGetAttribute(runtime.cudaDevAttrMultiProcessorCount, device)
    return compiled, max(1, blocks) * multiprocessors * THREADS, PACK[fusion.real]


def run(fusion, form, arrays, of):
    """Launch a kernel; of: its numbers."""
    compiled, wave, pack = function(fusion, form, runtime.getDevice())
    compiled.linear_launch(thread_count(fusion, of[0], wave), (*arrays, np.void(pack(*of))), 0, THREADS)


def launch(fusion, a, b, out, draw, given=None):
    size = out.size
    if size == 0:
        return
    arrays, form = (a, b, out), None
    if not (a.flags.c_contiguous and (b is a or b.flags.c_contiguous) and (out is a or out.flags.c_contiguous)):
        form = out.ndim, size < 2**31 and all(map(_within_32_bits, arrays))
    if given is not None:
        arrays += (given.array, given.kept) if fusion.counted else (given.array,)
    if fusion.stored:
        arrays += (draw.seed,)
    run(fusion, form, arrays, numbers(fusion, size, draw, given))


def _within_32_bits(array):
    return sum((n - 1) * abs(stride) for n, stride in zip(array.shape, array.strides, strict=True)) < 2**31


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
    return cupy.ElementwiseKernel(
        "raw uint8 seeds, int64 height, int64 width, int64 rows, int64 columns",
        "raw uint8 mask",
        GROW,
        "gpudrop_grow",
        preamble="typedef long long int64;",
    )


def grow(seeds, mask, block):
    grown = mask.view(np.uint8).reshape(-1)
    shape = map(np.int64, (*mask.shape[1:], *block))
    grow_kernel()(seeds.view(np.uint8).reshape(-1), *shape, grown, size=grown.size)
    return grown.sum(dtype=np.uint64).reshape(1)


@functools.cache
def advance_kernel():
    return cupy.ElementwiseKernel(
        "",
        "raw uint64 state, raw uint64 stream",
        "stream[0] = state[0]; stream[1] = atomicAdd(&state[1], 1ULL);",
        "gpudrop_advance",
    )


def advance(state, stream):
    advance_kernel()(state, stream, size=1)
