// The operands of kernels for contiguous arrays: their addresses, their chunks in registers, and the computation.
//
// The following precede this text: the types real, drawn_t and mask_t, the kernel's constants, its formulas, the lists
// of its operands and the function `compute`. `compute` computes an element of each output from one of each input. It
// takes the element's bit and returns another; both are false in kernels without such operands.

struct Arguments {
#define MEMBER(k) const input_##k* a##k;
  INPUTS(MEMBER)
  ROWS(MEMBER)
#undef MEMBER
#define MEMBER(k) output_##k* y##k;
  OUTPUTS(MEMBER)
#undef MEMBER
#define MEMBER(k) real* s##k;
  SUMS(MEMBER)
#undef MEMBER
  const mask_t* mask;
  const uint64* kept;
  const uint64* stream;
  const uint8* given;  // the operands of bits: read as bytes, written as words
  uint32* marked;
  int64 count, row, turns, period, repeat, run, columns, rows;
  uint64 pitch, start, seed, call;
  real scale, shift;
  uint32 limit;
};
// Part: the elements of one access, or of several if a row has a wider type than the arrays. Lanes: the chunks of all
// operands, and the sums of the columns of a chunk.
template <typename storage>
struct alignas(step * sizeof(storage) < 16 ? step * sizeof(storage) : 16) Part {
  storage lane[step];
};
struct Lanes {
#define MEMBER(k) Part<input_##k> a##k[parts];
  INPUTS(MEMBER)
  ROWS(MEMBER)
#undef MEMBER
#define MEMBER(k) Part<output_##k> y##k[parts];
  OUTPUTS(MEMBER)
#undef MEMBER
#define MEMBER(k) real s##k[size];
  SUMS(MEMBER)
#undef MEMBER
};

// Whether the accesses to element i of all arrays are aligned.
__device__ inline bool aligned(const Arguments& n, int64 i) {
  bool all = true;
#define CHECK(address, type) all = all && reinterpret_cast<size_t>(address + i) % sizeof(Part<type>) == 0;
#define CHECK_INPUT(k) CHECK(n.a##k, input_##k)
#define CHECK_OUTPUT(k) CHECK(n.y##k, output_##k)
  INPUTS(CHECK_INPUT)
  OUTPUTS(CHECK_OUTPUT)
#undef CHECK
#undef CHECK_INPUT
#undef CHECK_OUTPUT
  if constexpr (reads_bits) all = all && i % group == 0;
  if constexpr (writes_bits) all = all && i % 32 == 0;
  return all;
}
// Whether the rows can be accessed like arrays: a part that begins at this column is aligned and has no first column
// but its first element.
__device__ inline bool aligned_rows(const Arguments& n, int64 column) {
  bool all = n.columns % step == 0 && column % step == 0;
#define CHECK(k) all = all && reinterpret_cast<size_t>(n.a##k) % alignof(Part<input_##k>) == 0;
  ROWS(CHECK)
#undef CHECK
  return all;
}
// Load a chunk of each array. Its parts begin at elements m, m + apart, ...
__device__ inline void load(const Arguments& n, int64 m, int64 apart, Lanes& lanes) {
#define LOAD(k)                                                                                  \
  _Pragma("unroll") for (int s = 0; s < parts; ++s) {                                            \
    lanes.a##k[s] = *reinterpret_cast<const Part<input_##k>*>(&n.a##k[m + s * apart]);            \
  }
  INPUTS(LOAD)
#undef LOAD
}
// Load the same elements' parts of the rows. They begin at columns `column`, `column` + `apart`, ...
__device__ inline void load_rows(const Arguments& n, int64 column, int64 apart, bool wide, Lanes& lanes) {
  if constexpr (has_rows) {
    #pragma unroll
    for (int s = 0; s < parts; ++s) {
      if (wide) {
#define LOAD(k) lanes.a##k[s] = *reinterpret_cast<const Part<input_##k>*>(&n.a##k[column]);
        ROWS(LOAD)
#undef LOAD
      } else {
        int64 c = column;
        #pragma unroll
        for (int j = 0; j < step; ++j) {
#define LOAD(k) lanes.a##k[s].lane[j] = n.a##k[c];
          ROWS(LOAD)
#undef LOAD
          c = next_column(c, 1, n.columns);
        }
      }
      column = next_column(column, apart, n.columns);
    }
  }
}
__device__ inline void store(const Lanes& lanes, const Arguments& n, int64 m, int64 apart) {
#define STORE(k)                                                                                 \
  _Pragma("unroll") for (int s = 0; s < parts; ++s) {                                            \
    *reinterpret_cast<Part<output_##k>*>(&n.y##k[m + s * apart]) = lanes.y##k[s];                 \
  }
  OUTPUTS(STORE)
#undef STORE
}
// An element of an access. A 16-bit element is shifted out of a 32-bit word: so most are widened by one instruction.
template <typename storage>
__device__ inline storage element_of(const Part<storage>& part, int lane) {
  if constexpr (sizeof(storage) == 2) {
    uint32 word;
    memcpy(&word, &part.lane[lane & ~1], sizeof(word));
    return static_cast<storage>(word >> 16 * (lane & 1));
  } else {
    return part.lane[lane];
  }
}
// Set the sums of a chunk of columns to 0, and write the first `left` ones from element m on.
__device__ inline void clear_sums(Lanes& lanes) {
  #pragma unroll
  for (int j = 0; j < size; ++j) {
#define CLEAR(k) lanes.s##k[j] = 0;
    SUMS(CLEAR)
#undef CLEAR
  }
}
__device__ inline void write_sums(const Lanes& lanes, const Arguments& n, int64 m, int left) {
  #pragma unroll
  for (int j = 0; j < size; ++j) {
    if (j < left) {
#define WRITE(k) n.s##k[m + j] = lanes.s##k[j];
      SUMS(WRITE)
#undef WRITE
    }
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
  Inputs x;
  Results y;
#define TAKE(k) x.a##k = element_of(lanes.a##k[j / step], j % step);
  INPUTS(TAKE)
  ROWS(TAKE)
#undef TAKE
  const bool mark = compute(r, scale, shift, x, bit, y);
#define KEEP(k) lanes.y##k[j / step].lane[j % step] = y.y##k;
  OUTPUTS(KEEP)
#undef KEEP
#define ADD(k) lanes.s##k[j] += y.s##k;
  SUMS(ADD)
#undef ADD
  return mark;
}
__device__ inline Results compute_one(drawn_t r, real scale, real shift, const Arguments& n, int64 e, int64 column) {
  Inputs x;
  Results y;
#define TAKE(k) x.a##k = n.a##k[e];
  INPUTS(TAKE)
#undef TAKE
#define TAKE(k) x.a##k = n.a##k[column];
  ROWS(TAKE)
#undef TAKE
  const bool bit = reads_bits && bit_of(n.given, e) != 0;
  const bool mark = compute(r, scale, shift, x, bit, y);
#define KEEP(k) n.y##k[e] = y.y##k;
  OUTPUTS(KEEP)
#undef KEEP
  if (writes_bits && mark) atomicOr(&n.marked[e / 32], 1u << e % 32);
  return y;
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
// The stream and the scale.
__device__ inline uint64 seed_of(const Arguments& n) { return stored ? n.stream[0] : n.seed; }
__device__ inline uint64 call_of(const Arguments& n) { return stored ? n.stream[1] : n.call; }
__device__ inline real scale_of(const Arguments& n) {
  return counted ? static_cast<real>(n.row) / static_cast<real>(max(n.kept[0], 1ULL)) : n.scale;
}
