// The kernel for contiguous arrays: the same loop as ../numba_cuda/map.py, with the same names.
//
// operands.cuh and the kernel's name precede this text.

namespace gpudrop {
// The number of indices at which a whole chunk may begin. A negative index is larger, as an unsigned number.
__device__ inline uint64 begins(bool straight, int64 row) { return straight && row >= size ? row - size + 1 : 0; }
// Compute those elements of a chunk that are inside a row of the arrays, one at a time. `inner` is in `column`.
__device__ inline void compute_ends(
    const Arguments& n, real scale, Chunk chunk, int64 begin, int64 inner, int64 column) {
  for (int j = 0; j < size; ++j) {
    if (inner + j >= 0 && inner + j < n.row) {
      const drawn_t r = next_drawn(chunk, j, n.mask, n.period, n.repeat, n.run, n.limit);
      compute_one(r, scale, n.shift, n, begin + inner + j, column);
    }
    if constexpr (has_rows) column = next_column(column, 1, n.columns);
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
  const uint32 lane = cooperating ? i % warp : 0;
  const int64 to_own = exchanges ? own_chunk(lane) - lane : 0;  // from i to the chunk that this thread draws
  Location here = {0, i}, further = {0, threads}, in_mask = {}, further_in_mask = {};
  if constexpr (windowed) {
    here = first_turn(i, n.turns);
    further = first_turn(threads, n.turns);
  }
  if constexpr (masked) {
    in_mask = locate(i * size, n.period, n.repeat, n.run);
    further_in_mask = locate(threads * size, n.period, n.repeat, n.run);
  }
  int64 begin = 0, skip = static_cast<int64>(n.start % size);
  uint64 number = n.start / size;
  bool straight = !windowed && aligned(n, -skip);
  uint64 wholes = begins(straight, n.row);
  // The column of the first element that the thread loads, if the chunks of a window skipped none. Distances in columns:
  // to its next chunk, from the end of a window's row to the next row, from one part of a chunk to the next, and to the
  // chunk whose words it draws.
  int64 column = 0, further_columns = 0, to_row = 0, apart_columns = 0, own_columns = 0;
  bool wide_rows = false;
  if constexpr (has_rows) {
    apart_columns = remainder(static_cast<int64>(exchanges ? warp * step : step), n.columns);
    if constexpr (windowed) {
      column = (here[0] * n.row + here[1] * size) % n.columns;
      further_columns = (further[0] * n.row + further[1] * size) % n.columns;
      to_row = (n.row + n.columns - n.turns * size % n.columns) % n.columns;
    } else {
      column = column_before(column_of_chunk(exchanges ? i - lane : i, n.columns), skip, n.columns);
      further_columns = column_of_chunk(threads, n.columns);
    }
    if constexpr (exchanges) {
      const int64 ahead = lane * step;  // signed, because C has a function `remainder` of other types
      column = next_column(column, remainder(ahead, n.columns), n.columns);
      own_columns = column_before(remainder((lane + to_own) * size, n.columns), ahead, n.columns);
    }
    if constexpr (!windowed) wide_rows = aligned_rows(n, column);
  }
  #pragma unroll 1
  for (; i < n.count; i += threads) {
    int64 first_column = column;
    if constexpr (windowed) {
      const uint64 origin = n.start + here[0] * n.pitch;
      begin = here[0] * n.row;
      skip = static_cast<int64>(origin % size);
      number = origin / size;
      straight = aligned(n, begin - skip);
      wholes = begins(straight, n.row);
      if constexpr (has_rows) {
        first_column = column_before(column, skip, n.columns);
        wide_rows = aligned_rows(n, first_column);
      }
    }
    const int64 turn = windowed ? here[1] : i, own = turn + to_own;
    int64 inner = own * size - skip;
    // Without this empty instruction, NVRTC 13 splits the wide stores of a window into narrow ones.
    if constexpr (windowed) asm volatile("" : "+l"(inner));
    bool whole = static_cast<uint64>(inner) < wholes;
    int64 m = begin + inner, apart = step;
    bool together = false;
    if constexpr (cooperating) {
      const int64 tile = (turn - lane) * size - skip;
      together = straight && tile >= 0 && tile + warp * size <= n.row;
      if (exchanges && together) {
        m = begin + tile + lane * step;
        apart = warp * step;
      }
    }
    if constexpr (whole_warps) whole = together;
    Lanes lanes;
    uint32 bits = 0;
    if (whole) {
      load(n, m, apart, lanes);
      load_rows(n, first_column, apart_columns, wide_rows, lanes);
      bits = read_bits(n, m, apart);
    }
    Chunk chunk = chunk_of(seed, call, number + own, in_mask);
    if (whole) {
      if (exchanges && together) chunk.words = exchange(chunk.words, lane);
      bits = compute_chunk(n, scale, chunk, lanes, bits);
      store(lanes, n, m, apart);
      write_bits(bits, n, m, apart, lane);
    } else {
      if constexpr (has_rows && exchanges) first_column = next_column(column, own_columns, n.columns);
      compute_ends(n, scale, chunk, begin, inner, first_column);
    }
    if constexpr (masked) in_mask = advance(in_mask, further_in_mask, n.period, n.repeat, n.run);
    if constexpr (has_rows) {
      column = next_column(column, further_columns, n.columns);
      if (windowed && here[1] + further[1] >= n.turns) column = next_column(column, to_row, n.columns);
    }
    if constexpr (windowed) here = next_turn(here, further, n.turns);
  }
}
