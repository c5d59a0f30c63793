// The part of CUDA C++ that CuPy's kernels use, for g++. The grid is one block of one thread or of one warp.
#pragma once
#include <math.h>
#include <string.h>
#include <algorithm>
#include <cassert>
#include <cstddef>
#include <utility>

#define __device__
#define __host__
#define __global__
struct Dim3 {
  unsigned int x;
};
static const Dim3 blockIdx{0}, gridDim{1};
static thread_local Dim3 threadIdx{0}, blockDim{1};
inline unsigned int __popc(unsigned int x) { return __builtin_popcount(x); }
inline unsigned long long __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline unsigned long long atomicAdd(unsigned long long* x, unsigned long long y) { return (*x += y) - y; }
inline unsigned int atomicOr(unsigned int* x, unsigned int y) { return __atomic_fetch_or(x, y, __ATOMIC_RELAXED); }
using std::max;
using std::min;
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cupy/carray.cuh>

// As on the GPU: the result is 0 where the reciprocal of the divisor is subnormal.
inline float __fdividef(float a, float b) { return fabsf(b) > 0x1p126f && !isnan(a) && !isinf(a) ? 0 : a / b; }

// Defined in host.cpp, which is compiled once, because C++'s thread headers take long to compile.
void run_threads(int threads, void (*run)(void* context, unsigned int thread), void* context);
unsigned int exchange_in_warp(unsigned int thread, unsigned int value, unsigned int distance);

inline unsigned int __shfl_xor_sync(unsigned int mask, unsigned int value, unsigned int distance) {
  assert(mask == 0xFFFFFFFFu && blockDim.x == 32);
  return exchange_in_warp(threadIdx.x, value, distance);
}

template <class... A, size_t... I>
void launch_one(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_cv_t<A>*>(arguments[I])...);
}
template <class... A>
void launch(void (*kernel)(A...), void** arguments, unsigned int threads) {
  auto one = [=](unsigned int thread) {
    threadIdx.x = thread;
    blockDim.x = threads;
    launch_one(kernel, arguments, std::index_sequence_for<A...>());
  };
  run_threads(threads, [](void* context, unsigned int thread) { (*static_cast<decltype(one)*>(context))(thread); }, &one);
}
