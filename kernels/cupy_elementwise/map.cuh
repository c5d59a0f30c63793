// The kernel for contiguous arrays. ../numba_cuda/map.py is the same code for Numba, with the same names.
//
// operands.cuh and the kernel's name precede this text.

namespace gpudrop {
// The number of indices at which a whole chunk may begin. A negative index is larger, as an unsigned number.
__device__ inline uint64 begins(bool straight, int64 row) { return straight && row >= size ? row - size + 1 : 0; }
// The column of the element `skip` elements earlier. skip is less than a chunk, so 32 bits and a short row are enough.
__device__ inline int64 column_before(int64 column, int64 skip, int64 columns, int64 short_row) {
  const int64 back = static_cast<uint32>(skip) % static_cast<uint32>(short_row);
  return next_column(column, columns - back, columns);
}
// Compute those elements of a chunk that are inside a row of the arrays, one at a time. `inner` is in `column`.
__device__ inline void compute_ends(
    const Arguments& n, real scale, Chunk chunk, int64 begin, int64 inner, int64 column) {
  for (int j = 0; j < size; ++j) {
    if (inner + j >= 0 && inner + j < n.row) {
      const drawn_t r = next_drawn(chunk, j, n.mask, n.period, n.repeat, n.run, n.limit);
      compute_one(r, scale, n.shift, n, begin + inner + j, column);
    }
    if constexpr (num_rows > 0) column = next_column(column, 1, n.columns);
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
  const uint32 lane = works_together ? i % warp : 0;
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
  // The column of the thread's first access if a chunk skipped no elements, and distances modulo the number of columns:
  // to the next chunk, from the end of a window's row to the next one, from one access to the next, and from the first
  // access to the chunk that the thread draws.
  int64 column = 0, ahead = 0, to_row = 0, apart_in_row = 0, drawn = 0;
  const int64 short_row = min(n.columns, static_cast<int64>(size));  // skip is shorter than a chunk
  if constexpr (num_rows > 0) {
    column = (exchanges ? (i - lane) * size + lane * step : here[0] * n.row + here[1] * size) % n.columns;
    ahead = (further[0] * n.row + further[1] * size) % n.columns;
    apart_in_row = (exchanges ? warp * step : step) % n.columns;
    if constexpr (windowed) to_row = (n.row + n.columns - n.turns * size % n.columns) % n.columns;
    if constexpr (exchanges) drawn = ((lane + to_own) * size - lane * step) % n.columns;
    if constexpr (!windowed) column = column_before(column, skip, n.columns, short_row);
  }
  bool wide = num_rows > 0 && rows_aligned(n, column);
  #pragma unroll 1
  for (; i < n.count; i += threads) {
    int64 column_here = column;
    if constexpr (windowed) {
      const uint64 origin = n.start + here[0] * n.pitch;
      begin = here[0] * n.row;
      skip = static_cast<int64>(origin % size);
      number = origin / size;
      straight = aligned(n, begin - skip);
      wholes = begins(straight, n.row);
      if constexpr (num_rows > 0) {
        column_here = column_before(column, skip, n.columns, short_row);
        wide = rows_aligned(n, column_here);
      }
    }
    const int64 turn = windowed ? here[1] : i, own = turn + to_own;
    int64 inner = own * size - skip;
    // Without this empty instruction, NVRTC 13 splits the wide stores of a window into narrow ones.
    if constexpr (windowed) asm volatile("" : "+l"(inner));
    bool whole = static_cast<uint64>(inner) < wholes;
    int64 m = begin + inner, apart = step;
    bool together = false;
    if constexpr (works_together) {
      const int64 tile = (turn - lane) * size - skip;
      together = straight && tile >= 0 && tile + warp * size <= n.row;
      if (exchanges && together) {
        m = begin + tile + lane * step;
        apart = warp * step;
      }
    }
    // With rows, a thread keeps the column of one of its two possible first accesses.
    if constexpr (writes_bits || (exchanges && num_rows > 0)) whole = together;
    Lanes lanes;
    uint32 bits = 0;
    if (whole) {
      load(n, m, apart, lanes);
      load_rows(n, column_here, apart_in_row, wide, lanes);
      bits = read_bits(n, m, apart);
    }
    Chunk chunk = chunk_of(seed, call, number + own, in_mask);
    if (whole) {
      if (exchanges && together) chunk.words = exchange(chunk.words, lane);
      bits = compute_chunk(n, scale, chunk, lanes, bits);
      store(lanes, n, m, apart);
      write_bits(bits, n, m, apart, lane);
    } else {
      compute_ends(n, scale, chunk, begin, inner, next_column(column_here, drawn, n.columns));
    }
    if constexpr (masked) in_mask = advance(in_mask, further_in_mask, n.period, n.repeat, n.run);
    if constexpr (num_rows > 0) column = next_column(column, ahead, n.columns);
    if constexpr (windowed) {
      const Location later = next_turn(here, further, n.turns);
      if (num_rows > 0 && later[0] - here[0] > further[0]) column = next_column(column, to_row, n.columns);
      here = later;
    }
  }
}
