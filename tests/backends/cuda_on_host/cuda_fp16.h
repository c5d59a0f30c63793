// The part of CUDA's header of this name that gpudrop's kernels use, for g++.
#pragma once
struct __half {
  _Float16 value;
};
inline __half __ushort_as_half(unsigned short bits) { return {__builtin_bit_cast(_Float16, bits)}; }
inline unsigned short __half_as_ushort(__half h) { return __builtin_bit_cast(unsigned short, h.value); }
inline float __half2float(__half h) { return static_cast<float>(h.value); }
inline __half __float2half_rn(float x) { return {static_cast<_Float16>(x)}; }
