// The kernel with partial sums, for contiguous arrays: the same loop as ../numba_cuda/sums.py, with the same names.
//
// A thread processes a chunk of columns in the rows of a group, one row after the other, and adds up the results in
// registers. In a window, a row of the mask has one or more whole rows of the arrays.
//
// One part differs: a chunk of the arrays that touches two chunks of the mask. Numba's compute_ends selects the words of
// one of the two for each element. Here, draw_ends draws all values of both and moves them to their elements. Registers
// have no variable index, so each step moves the values by a constant.
//
// operands.cuh and the kernel's name precede this text.

namespace gpudrop {
// The random values of those elements of a chunk of the arrays that are inside a row. `origin` is the first one's index
// in the mask. One or two chunks of the mask contain them.
__device__ inline void draw_ends(
    const Arguments& n, uint64 seed, uint64 call, uint64 origin, Location at, int left, drawn_t (&r)[2 * size]) {
  Chunk chunk = chunk_of(seed, call, origin / size, at);
  #pragma unroll
  for (int j = 0; j < size; ++j) {
    if (!masked || j < left) r[j] = next_drawn(chunk, j, n.mask, n.period, n.repeat, n.run, n.limit);
  }
  if constexpr (draws) {
    const int skip = static_cast<int>(origin % size);
    // It is the same chunk again if one contains them.
    Chunk later = chunk_of(seed, call, origin / size + (skip + left > size), at);
    #pragma unroll
    for (int j = 0; j < size; ++j) {
      r[size + j] = next_drawn(later, j, n.mask, n.period, n.repeat, n.run, n.limit);
    }
    // Move the values forward by `skip`.
    #pragma unroll
    for (int by = size / 2; by > 0; by /= 2) {
      #pragma unroll
      for (int j = 0; j < size + size / 2; ++j) r[j] = skip & by ? r[j + by] : r[j];
    }
  }
}
// Compute these elements, one at a time.
__device__ inline void compute_ends(
    const Arguments& n, real scale, const drawn_t (&r)[2 * size], int64 e, int64 column, int left, Lanes& lanes) {
  #pragma unroll
  for (int j = 0; j < size; ++j) {
    if (j < left) {
      const Results y = compute_one(r[j], scale, n.shift, n, e + j, column + j);
#define ADD(k) lanes.s##k[j] += y.s##k;
      SUMS(ADD)
#undef ADD
    }
  }
}
}

extern "C" __global__ void KERNEL(const gpudrop::Arguments n) {
  using namespace gpudrop;
  const uint64 seed = seed_of(n), call = call_of(n);
  // `real` is qualified, because a header of CuPy has a function of that name.
  const gpudrop::real scale = scale_of(n);
  const int64 threads = static_cast<int64>(gridDim.x) * blockDim.x;
  int64 i = static_cast<int64>(blockIdx.x) * blockDim.x + threadIdx.x;
  // Whether each row of the arrays consists of whole chunks of the mask, and all accesses are aligned.
  bool straight = n.columns % size == 0 && n.start % size == 0 && aligned(n, 0);
  if constexpr (windowed) straight = straight && n.pitch % size == 0;
  const bool wide_rows = straight && has_rows && aligned_rows(n, 0);
  Location here = first_turn(i, n.turns), further = first_turn(threads, n.turns);
  #pragma unroll 1
  for (; i < n.count; i += threads) {
    const int64 first = here[0] * group_rows, column = here[1] * size;
    int length = static_cast<int>(min(n.rows - first, static_cast<int64>(group_rows)));
    const int left = static_cast<int>(min(n.columns - column, static_cast<int64>(size)));
    int64 e = first * n.columns + column;
    Location in_window = {};
    if constexpr (windowed) in_window = first_turn(e, n.row);
    Lanes lanes;
    clear_sums(lanes);
    if (straight) load_rows(n, column, step, wide_rows, lanes);
    #pragma unroll 1
    for (; length > 0; --length, e += n.columns) {  // counting down needs fewer registers
      const uint64 origin = n.start + (windowed ? in_window[0] * n.pitch + in_window[1] : e);
      Location in_mask = {};
      if constexpr (masked) in_mask = locate(e, n.period, n.repeat, n.run);
      if (straight) {
        load(n, e, step, lanes);
        const uint32 bits = read_bits(n, e, step);
        compute_chunk(n, scale, chunk_of(seed, call, origin / size, in_mask), lanes, bits);
        store(lanes, n, e, step);
      } else {
        drawn_t r[2 * size] = {};
        draw_ends(n, seed, call, origin, in_mask, left, r);
        compute_ends(n, scale, r, e, column, left, lanes);
      }
      if constexpr (windowed) in_window = next_turn(in_window, {0, n.columns}, n.row);
    }
    write_sums(lanes, n, here[0] * n.columns + column, left);
    here = next_turn(here, further, n.turns);
  }
}
