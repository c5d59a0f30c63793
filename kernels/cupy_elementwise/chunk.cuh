// The random values of a chunk, for both kinds of kernels. The formulas and the kernel's constants precede this text.

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
