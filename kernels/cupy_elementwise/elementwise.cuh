// The body of an ElementwiseKernel for arrays with any strides. Index i counts chunks. It computes the same as map.cuh,
// one element at a time.
//
// Rows are passed as addresses.
using namespace gpudrop;  // `real` is qualified nevertheless: a header of CuPy has a function of that name
const uint64* const numbers = reinterpret_cast<const uint64*>(stream);
const mask_t* const drawn = reinterpret_cast<const mask_t*>(mask);
uint32* const words = reinterpret_cast<uint32*>(marked);
Location here = {0, i}, at = {};
uint64 origin = start, key = seed, counter = call;
gpudrop::real factor = scale;
if constexpr (stored) {
  key = numbers[0];
  counter = numbers[1];
}
if constexpr (counted) {
  const uint64* const count = reinterpret_cast<const uint64*>(kept);
  factor = static_cast<gpudrop::real>(row) / static_cast<gpudrop::real>(max(count[0], 1ULL));
}
if constexpr (windowed) {
  here = first_turn(i, turns);
  origin = start + here[0] * pitch;
}
if constexpr (masked) at = locate(i * size, period, repeat, run);
const int64 inner = here[1] * size - static_cast<int64>(origin % size);
Chunk chunk = chunk_of(key, counter, origin / size + here[1], at);
for (int j = 0; j < size; ++j) {
  if (inner + j >= 0 && inner + j < row) {
    const int64 e = here[0] * row + inner + j;
    const drawn_t r = next_drawn(chunk, j, drawn, period, repeat, run, limit);
    Inputs x;
    Results y;
#define TAKE(k) x.a##k = a##k[e];
    INPUTS(TAKE)
#undef TAKE
#define TAKE(k) x.a##k = reinterpret_cast<const input_##k*>(a##k)[e % columns];
    ROWS(TAKE)
#undef TAKE
    const bool bit = reads_bits && bit_of(reinterpret_cast<const uint8*>(given), e) != 0;
    const bool mark = compute(r, factor, shift, x, bit, y);
#define KEEP(k) y##k[e] = y.y##k;
    OUTPUTS(KEEP)
#undef KEEP
    if (writes_bits && mark) atomicOr(&words[e / 32], 1u << e % 32);
  }
}
