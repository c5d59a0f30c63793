// The functions that formulas call on a GPU. The types and the constant `approximate` precede this text.

// The value of the thread whose lane differs from this one's in the bit `distance`.
__device__ inline uint32 exchanged(uint32 value, uint32 distance) {
  return __shfl_xor_sync(0xFFFFFFFFu, value, distance);
}

// For 16-bit results: the hardware's float32 instructions. Rounding to 16 bits hides their error.
__device__ inline real divide(real a, real b) {
  if constexpr (approximate) {
    return __fdividef(a, b);
  } else {
    return a / b;
  }
}
__device__ inline real power_of_two(real x) {
#ifdef __CUDA_ARCH__
  if constexpr (approximate) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(static_cast<float>(x)));
    return y;
  }
#endif
  return ::exp2(x);
}
__device__ inline real exp(real x) {
#ifdef __CUDA_ARCH__
  if constexpr (approximate) return power_of_two(x * 1.4426950408889634f);
#endif
  return ::exp(x);
}
