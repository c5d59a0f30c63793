// The random values of a chunk, and one element of each operand, for both kinds of kernels. The formulas, the kernel's
// constants and the lists of operands precede this text.

// The source of a chunk's random values: words of Philox, or a location in a mask.
struct Chunk {
  Words words;
  uint32 first_lane;
  Location at;
};
__device__ inline Chunk chunk_of(uint64 seed, uint64 call, uint64 number, Location at) {
  Chunk chunk = {{}, 0, at};
  if constexpr (draws) {
    chunk.words = draw(seed, call, number / shares);
    chunk.first_lane = static_cast<uint32>(number % shares) * size;
  }
  return chunk;
}
// The random value of element j of a chunk. It must be called for j = 0, 1, 2, ... in this order.
__device__ inline drawn_t next_drawn(
    Chunk& chunk, int j, const mask_t* mask, int64 period, int64 repeat, int64 run, uint32 limit) {
  if constexpr (masked) {
    const drawn_t r = mask[index_of(chunk.at)];
    chunk.at = next_element(chunk.at, period, repeat, run);
    return r;
  } else {
    return drawn_of(chunk.words, chunk.first_lane + j, limit);
  }
}

// One element of each operand. INPUTS(of) is of(0) of(1) for two full inputs, for example, and ROWS(of) continues their
// numbers. Operand k has the type input_k or output_k.
struct Inputs {
#define MEMBER(k) input_##k a##k;
  INPUTS(MEMBER)
  ROWS(MEMBER)
#undef MEMBER
};
struct Results {
#define MEMBER(k) output_##k y##k;
  OUTPUTS(MEMBER)
#undef MEMBER
#define MEMBER(k) real s##k;
  SUMS(MEMBER)
#undef MEMBER
};
