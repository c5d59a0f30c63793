// The part of CUDA's header of this name that gpudrop's kernels use, for g++.
#pragma once
struct __nv_bfloat16 {
  unsigned short bits;
};
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 b) { return b.bits; }
inline float __uint_as_float(unsigned int bits) { return __builtin_bit_cast(float, bits); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  if (x != x) return {0x7fff};
  unsigned int bits = __builtin_bit_cast(unsigned int, x);
  unsigned int ulp = 1u << 16, rest = bits & (ulp - 1), half = ulp >> 1;
  bits -= rest;
  if (rest > half || (rest == half && (bits & ulp))) bits += ulp;
  return {static_cast<unsigned short>(bits >> 16)};
}
