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

from gpudrop.kernels.chunks import scalars, thread_count, writes_all_words
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
    return struct.Struct(f"{max(1, kernel.num_inputs) + max(1, kernel.num_outputs) + 5}P6q4Q{reals}I4x").pack


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
    parameters += [f"uint64 {name}" for name in ("mask", "kept", "stream", "given", "marked")]
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


def saves_bits(array):
    return False  # not measured yet


def launch(kernel, inputs, outputs, draw):
    size = inputs[0].size if kernel.num_inputs else outputs[0].size
    if size == 0:
        return
    mask, drawn, kept, stream, given, marked = None, 0, 0, 0, 0, 0
    if kernel.masked:
        *inputs, mask = inputs
        drawn, kept = address(mask.array), address(mask.kept) if kernel.counted else 0
    elif kernel.stored:
        stream = address(draw.seed)
    if kernel.reads_bits:
        *inputs, bits = inputs
        given = address(bits)
    of, addresses, contiguous = scalars(kernel, size, draw, mask), [] if inputs else [0], raw_kernels
    if kernel.writes_bits:
        *outputs, bits = outputs
        marked = address(bits)
    for array in (*inputs, *outputs):
        begin = address(array)
        contiguous = contiguous and begin is not None
        addresses.append(begin)
    if not outputs:
        addresses.append(0)
    if marked and not writes_all_words(kernel, size, of[7], contiguous and all(begin % 16 == 0 for begin in addresses)):
        bits.fill(0)
    others = drawn, kept, stream, given, marked
    if contiguous:
        run(kernel, (*addresses, *others), of)
    else:
        _launch_elementwise(kernel, inputs, outputs, others, of)


def _launch_elementwise(kernel, inputs, outputs, others, of):
    """others: the addresses of the mask, its count, the stream and the bits; of: the scalars."""
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
