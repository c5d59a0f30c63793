"""Kernels that are written with `gpudrop.device`, as users write their own, for `gpudrop.testing.selftest`.

kernel(backend) returns a function of (kept, seed, call, threshold, start, bits). It fills an array of uint8 with
the part of a mask that begins at element `start`.
"""

import functools

import numba
from numba import cuda

from gpudrop.device import cuda_source, keep_at

CPP = """
const uint64 element = start + i;
kept = bits == 8 ? gpudrop::keep_at<8>(seed, call, element, threshold)
     : bits == 16 ? gpudrop::keep_at<16>(seed, call, element, threshold)
     : gpudrop::keep_at<32>(seed, call, element, threshold);
"""


def fill(kept, seed, call, threshold, start, bits):
    for i in range(kept.size):
        kept[i] = keep_at(seed, call, start + numba.uint64(i), threshold, bits)


def fill_element(kept, seed, call, threshold, start, bits):
    i = cuda.grid(1)
    if i < kept.size:
        kept[i] = keep_at(seed, call, start + numba.uint64(i), threshold, bits)


@functools.cache
def kernel(backend):
    if backend == "cpu":
        return numba.njit(fill)
    if backend == "numba_cuda":
        return cuda.jit(fill_element)[4, 32]
    import cupy

    numbers = "uint64 seed, uint64 call, uint64 threshold, uint64 start, int32 bits"
    elementwise = cupy.ElementwiseKernel(numbers, "uint8 kept", CPP, "gpudrop_keep_at", preamble=cuda_source())
    return lambda kept, *numbers: elementwise(*numbers, kept)
