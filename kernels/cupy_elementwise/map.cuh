// The kernel for contiguous arrays. ../numba_cuda/map.py is the same code for Numba, with the same names.
//
// The following precede this text: the types real, storage, drawn_t and mask_t, the kernel's constants, its formulas,
// the function `compute` and the kernel's name. `compute` computes an element of each output from one of each input. It
// takes the element's bit and returns another; both are false in kernels without such operands.

namespace gpudrop {
struct Arguments {
  const storage* inputs[num_inputs > 0 ? num_inputs : 1];
  storage* outputs[num_outputs > 0 ? num_outputs : 1];
  const mask_t* mask;
  const uint64* kept;
  const uint64* stream;
  const uint8* given;  // the operands of bits: read as bytes, written as words
  uint32* marked;
  int64 count, row, turns, period, repeat, run;
  uint64 pitch, start, seed, call;
  real scale, shift;
  uint32 limit;
};
// Part: the elements of one access. Lanes: the chunks of all operands.
struct alignas(width) Part {
  storage lane[step];
};
struct Lanes {
  Part inputs[num_inputs > 0 ? num_inputs : 1][parts];
  Part outputs[num_outputs > 0 ? num_outputs : 1][parts];
};

__device__ inline bool aligned(const Arguments& n, int64 i) {
  bool all = true;
  for (int k = 0; k < num_inputs; ++k) all = all && reinterpret_cast<size_t>(n.inputs[k] + i) % width == 0;
  for (int k = 0; k < num_outputs; ++k) all = all && reinterpret_cast<size_t>(n.outputs[k] + i) % width == 0;
  if constexpr (reads_bits) all = all && i % group == 0;
  if constexpr (writes_bits) all = all && i % 32 == 0;
  return all;
}
// The number of indices at which a whole chunk may begin. A negative index is larger, as an unsigned number.
__device__ inline uint64 begins(bool straight, int64 row) { return straight && row >= size ? row - size + 1 : 0; }
__device__ inline void load(const Arguments& n, int64 m, int64 apart, Lanes& lanes) {
  #pragma unroll
  for (int k = 0; k < num_inputs; ++k) {
    #pragma unroll
    for (int s = 0; s < parts; ++s) {
      lanes.inputs[k][s] = *reinterpret_cast<const Part*>(&n.inputs[k][m + s * apart]);
    }
  }
}
__device__ inline void store(const Lanes& lanes, const Arguments& n, int64 m, int64 apart) {
  #pragma unroll
  for (int k = 0; k < num_outputs; ++k) {
    #pragma unroll
    for (int s = 0; s < parts; ++s) {
      *reinterpret_cast<Part*>(&n.outputs[k][m + s * apart]) = lanes.outputs[k][s];
    }
  }
}
// An element of an access. A 16-bit element is shifted out of a 32-bit word: so most are widened by one instruction.
__device__ inline storage element_of(const Part& part, int lane) {
  if constexpr (sizeof(storage) == 2) {
    uint32 word;
    memcpy(&word, &part.lane[lane & ~1], sizeof(word));
    return static_cast<storage>(word >> 16 * (lane & 1));
  } else {
    return part.lane[lane];
  }
}
// The bits of a chunk's elements, in the order of the lanes.
__device__ inline uint32 read_bits(const Arguments& n, int64 m, int64 apart) {
  uint32 bits = 0;
  if constexpr (reads_bits) {
    #pragma unroll
    for (int g = 0; g < size / group; ++g) bits |= bits_of(n.given, m + g * apart) << g * group;
  }
  return bits;
}
__device__ inline void write_bits(uint32 bits, const Arguments& n, int64 m, int64 apart, uint32 lane) {
  if constexpr (writes_bits) {
    #pragma unroll
    for (int g = 0; g < size / group; ++g) {
      const uint32 word = word_of(bits >> g * group & ((1u << group) - 1), lane);
      if (lane % (32 / group) == 0) n.marked[(m + g * apart) / 32] = word;
    }
  }
}
__device__ inline bool compute_lane(drawn_t r, real scale, real shift, Lanes& lanes, bool bit, int j) {
  storage x[num_inputs > 0 ? num_inputs : 1], y[num_outputs > 0 ? num_outputs : 1];
  #pragma unroll
  for (int k = 0; k < num_inputs; ++k) x[k] = element_of(lanes.inputs[k][j / step], j % step);
  const bool mark = compute(r, scale, shift, x, bit, y);
  #pragma unroll
  for (int k = 0; k < num_outputs; ++k) lanes.outputs[k][j / step].lane[j % step] = y[k];
  return mark;
}
__device__ inline void compute_one(drawn_t r, real scale, real shift, const Arguments& n, int64 e) {
  storage x[num_inputs > 0 ? num_inputs : 1], y[num_outputs > 0 ? num_outputs : 1];
  for (int k = 0; k < num_inputs; ++k) x[k] = n.inputs[k][e];
  const bool bit = reads_bits && bit_of(n.given, e) != 0;
  const bool mark = compute(r, scale, shift, x, bit, y);
  for (int k = 0; k < num_outputs; ++k) n.outputs[k][e] = y[k];
  if (writes_bits && mark) atomicOr(&n.marked[e / 32], 1u << e % 32);
}

// Compute a chunk in registers. All of its elements are inside the arrays. Take and return its bits.
__device__ inline uint32 compute_chunk(const Arguments& n, real scale, Chunk chunk, Lanes& lanes, uint32 bits) {
  uint32 keeps = 0, marks = 0;
  if constexpr (bits_of_mask) keeps = chunk_bits(n.mask, chunk.at, n.period, n.repeat, n.run);
  #pragma unroll
  for (int j = 0; j < size; ++j) {
    const drawn_t r = bits_of_mask ? static_cast<drawn_t>(keeps >> j & 1)
                                   : next_drawn(chunk, j, n.mask, n.period, n.repeat, n.run, n.limit);
    marks |= static_cast<uint32>(compute_lane(r, scale, n.shift, lanes, bits >> j & 1, j)) << j;
  }
  return marks;
}
// Compute those elements of a chunk that are inside a row of the arrays, one at a time.
__device__ inline void compute_ends(const Arguments& n, real scale, Chunk chunk, int64 begin, int64 inner) {
  for (int j = 0; j < size; ++j) {
    if (inner + j >= 0 && inner + j < n.row) {
      const drawn_t r = next_drawn(chunk, j, n.mask, n.period, n.repeat, n.run, n.limit);
      compute_one(r, scale, n.shift, n, begin + inner + j);
    }
  }
}
}

extern "C" __global__ void KERNEL(const gpudrop::Arguments n) {
  using namespace gpudrop;
  const uint64 seed = stored ? n.stream[0] : n.seed, call = stored ? n.stream[1] : n.call;
  // `real` is qualified, because a header of CuPy has a function of that name.
  const gpudrop::real scale =
      counted ? static_cast<gpudrop::real>(n.row) / static_cast<gpudrop::real>(max(n.kept[0], 1ULL)) : n.scale;
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
  #pragma unroll 1
  for (; i < n.count; i += threads) {
    if constexpr (windowed) {
      const uint64 origin = n.start + here[0] * n.pitch;
      begin = here[0] * n.row;
      skip = static_cast<int64>(origin % size);
      number = origin / size;
      straight = aligned(n, begin - skip);
      wholes = begins(straight, n.row);
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
    if constexpr (writes_bits) whole = together;
    Lanes lanes;
    uint32 bits = 0;
    if (whole) {
      load(n, m, apart, lanes);
      bits = read_bits(n, m, apart);
    }
    Chunk chunk = chunk_of(seed, call, number + own, in_mask);
    if (whole) {
      if (exchanges && together) chunk.words = exchange(chunk.words, lane);
      bits = compute_chunk(n, scale, chunk, lanes, bits);
      store(lanes, n, m, apart);
      write_bits(bits, n, m, apart, lane);
    } else {
      compute_ends(n, scale, chunk, begin, inner);
    }
    if constexpr (masked) in_mask = advance(in_mask, further_in_mask, n.period, n.repeat, n.run);
    if constexpr (windowed) here = next_turn(here, further, n.turns);
  }
}
