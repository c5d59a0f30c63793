"""Compiles and launches CuPy's kernels.

Contiguous arrays use RawKernels, with 16-byte accesses and all arguments in one structure. Other arrays use
ElementwiseKernels of the same formulas. Calling one takes the CPU three times as long. Kernels with sums are always
RawKernels: other arrays are copied.
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
    addresses = sum(slot.layout in ("full", "row", "sums") for slot in (*kernel.inputs, *kernel.outputs)) + 5
    return struct.Struct(f"{addresses}P8q4Q{reals}I4x").pack


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
    operation, inputs, rows, outputs = source.operation(kernel)
    (read, written), real = kernel.storages, kernel.real
    parameters = [f"raw {storage} {name}" for storage, name in zip(read, inputs, strict=False)]
    parameters += [f"uint64 {name}" for name in (*rows, "mask", "kept", "stream", "given", "marked")]
    parameters += [f"int64 {name}" for name in ("row", "turns", "period", "repeat", "run", "columns", "rows")]
    parameters += [f"uint64 {name}" for name in ("pitch", "start", "seed", "call")]
    parameters += [f"{real} scale", f"{real} shift", "uint32 limit"]
    results = ", ".join(f"raw {storage} {name}" for storage, name in zip(written, outputs, strict=True))
    return cupy.ElementwiseKernel(
        ", ".join(parameters), results, operation, kernel.name, preamble=source.preamble(kernel), options=OPTIONS
    )


def address(array):
    """The address of a contiguous array; None for others."""
    return array.data.ptr if array._c_contiguous else None  # flags.c_contiguous would create an object


def saves_bits(array):
    return False  # not measured yet


def launch(kernel, inputs, outputs, draw):
    full = inputs[0] if kernel.num_inputs else outputs[0]
    size = full.size
    if size == 0:
        return
    if kernel.num_sums and any(address(array) is None for array in (*inputs[: kernel.num_inputs], *outputs)):
        _launch_copies(kernel, inputs, outputs, draw)
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
    of = scalars(kernel, size, draw, mask, full.shape[-1] if kernel.by_columns else 1)
    addresses, contiguous = [], raw_kernels or kernel.num_sums > 0
    if kernel.writes_bits:
        *outputs, bits = outputs
        marked = address(bits)
    for array in (*inputs, *outputs):
        begin = address(array)
        contiguous = contiguous and begin is not None
        addresses.append(begin)
    if marked and not writes_all_words(kernel, size, draw, contiguous and all(begin % 16 == 0 for begin in addresses)):
        bits.fill(0)
    others = drawn, kept, stream, given, marked
    if contiguous:
        run(kernel, (*addresses, *others), of)
    else:
        rows = addresses[kernel.num_inputs : len(inputs)]
        _launch_elementwise(kernel, inputs[: kernel.num_inputs], outputs, (*rows, *others), of)


def _launch_copies(kernel, inputs, outputs, draw):
    """Launch a kernel with sums on contiguous copies of its arrays, and copy the results back."""
    (read, written), num_inputs = kernel.storages, kernel.num_inputs
    arrays = [array.view(storage) for array, storage in zip(outputs, written, strict=False)]
    copies = [array.copy() for array in arrays]
    given = [array.view(storage).copy() for array, storage in zip(inputs[:num_inputs], read, strict=False)]
    launch(kernel, [*given, *inputs[num_inputs:]], [*copies, *outputs[len(arrays) :]], draw)
    for array, copy in zip(arrays, copies, strict=True):
        array[...] = copy


def _launch_elementwise(kernel, inputs, outputs, others, of):
    """others: the addresses of the rows, the mask, its count, the stream and the bits; of: the scalars."""
    arrays = (*inputs, *outputs)
    storages = (*kernel.storages[0][: len(inputs)], *kernel.storages[1])
    arrays = [array.view(storage) for array, storage in zip(arrays, storages, strict=True)]
    count, *integers, scale, shift, limit = of
    types = (np.int64,) * 7 + (np.uint64,) * 4
    elementwise(kernel)(
        *arrays[: len(inputs)],
        *map(np.uint64, others),
        *(of_type(integer) for of_type, integer in zip(types, integers, strict=True)),
        *map(getattr(np, kernel.real), (scale, shift)),
        np.uint32(limit),
        *arrays[len(inputs) :],
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
