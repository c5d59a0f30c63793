// The part of CUDA C++ that CuPy's elementwise kernels use, for g++: a grid of one thread.
#pragma once
#include <math.h>
#include <string.h>
#include <algorithm>
#include <cassert>
#include <cstddef>

#define __device__
#define __host__
#define __global__
struct Dim3 {
  unsigned int x;
};
static const Dim3 blockIdx{0}, threadIdx{0}, blockDim{1}, gridDim{1};
inline unsigned int __popc(unsigned int x) { return __builtin_popcount(x); }
inline unsigned long long __popcll(unsigned long long x) { return __builtin_popcountll(x); }
using std::max;
using std::min;
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cupy/carray.cuh>
