"""Compiles and launches CuPy's kernels.

Contiguous arrays use RawKernels, with 16-byte accesses and all arguments in one structure. Other arrays use
ElementwiseKernels of the same formulas. Calling one takes the CPU three times as long.
"""

import functools
import struct

import numpy as np

try:
    import cupy
    from cupy.cuda import driver, runtime
except ImportError as error:  # the text of kernels can still be printed
    cupy, NO_CUPY = None, f"CuPy can't be imported ({error})"

from gpudrop.kernels.chunks import scalars, thread_count
from gpudrop.kernels.cupy_elementwise import source

THREADS = 128  # per block
OPTIONS = ("-std=c++17",)

raw_kernels = True
"""Whether contiguous arrays use RawKernels. With False all arrays use ElementwiseKernels, for comparison."""


def unavailable():
    if cupy is None:
        return NO_CUPY
    try:
        return None if runtime.getDeviceCount() else "CuPy finds no CUDA GPU"
    except Exception as error:  # CUDARuntimeError, or any other error of a broken driver
        return f"CuPy finds no CUDA GPU and driver ({error})"


def devices():
    return [runtime.getDeviceProperties(i)["name"].decode() for i in range(runtime.getDeviceCount())]


def on_device(number):
    return cupy.cuda.Device(number)


def put(array):
    return cupy.asarray(array)


@functools.cache
def packer(kernel):
    """The function that packs addresses and scalars into the bytes of the structure Arguments."""
    reals = {"float32": "2f", "float64": "2d"}[kernel.real]
    return struct.Struct(f"{max(1, kernel.num_inputs) + len(kernel.outputs) + 3}P6q4Q{reals}I4x").pack


@functools.cache
def function(kernel, device):
    """The compiled kernel on a device, how many threads fill the device, and the function that packs its arguments."""
    compiled = cupy.RawKernel(source.raw(kernel), kernel.name, OPTIONS).kernel
    blocks = driver.occupancyMaxActiveBlocksPerMultiprocessor(compiled.ptr, THREADS, 0)
    multiprocessors = runtime.deviceGetAttribute(runtime.cudaDevAttrMultiProcessorCount, device)
    return compiled, max(1, blocks) * multiprocessors * THREADS, packer(kernel)


def run(kernel, addresses, of):
    """Launch a RawKernel. of: its scalars."""
    compiled, wave, pack = function(kernel, runtime.getDevice())
    compiled.linear_launch(thread_count(kernel, of[0], wave), (np.void(pack(*addresses, *of)),), 0, THREADS)


@functools.cache
def elementwise(kernel):
    """The ElementwiseKernel, whose index counts chunks. Addresses are passed as integers, 0 if a kernel has none."""
    operation, inputs, outputs = source.operation(kernel)
    storage, real = kernel.storage, kernel.real
    parameters = [f"raw {storage} {name}" for name in inputs]
    parameters += [f"uint64 {name}" for name in ("mask", "kept", "stream")]
    parameters += [f"int64 {name}" for name in ("row", "turns", "period", "repeat", "run")]
    parameters += [f"uint64 {name}" for name in ("pitch", "start", "seed", "call")]
    parameters += [f"{real} scale", f"{real} shift", "uint32 limit"]
    results = ", ".join(f"raw {storage} {name}" for name in outputs)
    return cupy.ElementwiseKernel(
        ", ".join(parameters), results, operation, kernel.name, preamble=source.preamble(kernel), options=OPTIONS
    )


def address(array):
    """The address of a contiguous array; None for others."""
    return array.data.ptr if array._c_contiguous else None  # flags.c_contiguous would create an object


def launch(kernel, inputs, outputs, draw):
    size = outputs[0].size
    if size == 0:
        return
    mask, others = None, (0, 0, 0)
    if kernel.masked:
        *inputs, mask = inputs
        others = address(mask.array), address(mask.kept) if kernel.counted else 0, 0
    elif kernel.stored:
        others = 0, 0, address(draw.seed)
    of, addresses = scalars(kernel, size, draw, mask), [] if inputs else [0]
    for array in (*inputs, *outputs):
        begin = address(array)
        if begin is None or not raw_kernels:
            _launch_elementwise(kernel, inputs, outputs, others, of)
            return
        addresses.append(begin)
    run(kernel, (*addresses, *others), of)


def _launch_elementwise(kernel, inputs, outputs, others, of):
    """others: the addresses of the mask, its count and the stream; of: the scalars."""
    inputs, outputs = ([array.view(kernel.storage) for array in arrays] for arrays in (inputs, outputs))
    count, *integers, scale, shift, limit = of
    types = (np.int64,) * 5 + (np.uint64,) * 4
    elementwise(kernel)(
        *inputs,
        *map(np.uint64, others),
        *(of_type(integer) for of_type, integer in zip(types, integers, strict=True)),
        *map(getattr(np, kernel.real), (scale, shift)),
        np.uint32(limit),
        *outputs,
        size=count,
    )


@functools.cache
def grow_kernel():
    return cupy.ElementwiseKernel(
        "raw uint8 seeds, int64 height, int64 width, int64 rows, int64 columns",
        "raw uint8 mask",
        source.file("grow.cuh"),
        "gpudrop_grow",
        preamble="typedef long long int64;",
    )


def grow(seeds, mask, block):
    grown = mask.view(np.uint8).reshape(-1)
    shape = map(np.int64, (*mask.shape[1:], *block))
    grow_kernel()(seeds.view(np.uint8).reshape(-1), *shape, grown, size=grown.size)
    return grown.sum(dtype=np.uint64).reshape(1)


@functools.cache
def advance_kernel():
    return cupy.ElementwiseKernel(
        "",
        "raw uint64 state, raw uint64 stream",
        "stream[0] = state[0]; stream[1] = atomicAdd(&state[1], 1ULL);",
        "gpudrop_advance",
    )


def advance(state, stream):
    advance_kernel()(state, stream, size=1)
