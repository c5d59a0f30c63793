"""Compiles and launches Numba's CUDA kernels."""

import functools
import importlib
import struct
import threading

import numba_cuda
import numpy as np
from numba import config, cuda
from numba.cuda import types

from gpudrop.kernels.chunks import scalars, thread_count, writes_all_words
from gpudrop.kernels.numba_cuda.map import body
from gpudrop.kernels.numba_cuda.operands import SIMULATED
from gpudrop.kernels.numba_cuda.sums import body as body_with_sums

if not SIMULATED:
    from cuda.bindings import driver
    from cuda.core import LaunchConfig, Stream
    from cuda.core import launch as launch_function

    from gpudrop.kernels.numba_cuda.intrinsics import flat, from_bits

    # Cached, because it takes a third of a call's time.
    stream_of = functools.lru_cache(maxsize=1024)(Stream.from_handle)

THREADS = 32 if SIMULATED else 256
BLOCKS_PER_MULTIPROCESSOR = 8
_configuring = threading.Lock()


def unavailable():
    if SIMULATED:
        return None
    try:
        if not cuda.is_available():
            reason = cuda.cuda_error() or "NVVM, its compiler, can't be loaded"
            return f"Numba finds no CUDA GPU and driver ({' '.join(reason.split())})"
        (driver, minor), toolkit = cuda.cudadrv.driver.get_version(), cuda.runtime.get_version()[0]
        if driver < toolkit:
            return (
                f"the CUDA driver supports CUDA {driver}.{minor}, which is too old for CUDA {toolkit}, "
                "which Numba uses: update the driver"
            )
        if not devices():
            return "Numba finds no CUDA GPU"
    except Exception as error:  # from a driver that lacks some functions, for example
        return f"Numba can't use the CUDA driver, which is broken or older than CUDA 12 ({error})"
    try:
        importlib.import_module("numba.cuda.np.npyimpl")  # compiling needs it
    except Exception as error:  # numba-cuda 0.30 uses a function that NumPy 2.5 lacks
        return f"numba-cuda {numba_cuda.__version__} can't compile with NumPy {np.__version__} ({error})"
    return None


def devices():
    if SIMULATED:
        return ["the CUDA simulator"]
    return [gpu.name for gpu in cuda.gpus]


def on_device(number):
    return cuda.gpus[number]


def put(array):
    return cuda.to_device(array.view(f"u{array.itemsize}"))  # as integers, because the buffer protocol has no bfloat16


def _body(kernel):
    return body_with_sums if kernel.num_sums else body


@functools.cache
def any_kernel(kernel, contiguous, native=True):
    """A kernel that Numba compiles at the first launch, for the types of its arrays."""
    return cuda.jit(_body(kernel)(kernel, contiguous, native))


def strided_signature(kernel, ndim):
    """The Numba signature of a kernel for arrays that are not contiguous, to compile it without a GPU."""
    real, flat_array = getattr(types, kernel.real), {"ndim": 1, "layout": "C"}
    arrays = (
        types.Array(of, **({"ndim": ndim, "layout": "A"} if is_full else flat_array))
        for of, is_full in _operands(kernel)
    )
    others = (types.Array(of, 1, "C") for of in _others(kernel))
    scalars = (*(types.int64,) * 8, *(types.uint64,) * 4, real, real, types.uint32)
    return types.void(*arrays, *others, *scalars)


def _operands(kernel):
    """For each operand, the Numba type of its elements and whether it is full. Bits are read as bytes."""
    inputs, outputs = ([getattr(types, storage) for storage in of] for of in kernel.storages)
    found = [(of, k < kernel.num_inputs) for k, of in enumerate(inputs)] + [(types.uint8, False)] * kernel.reads_bits
    found += [(of, True) for of in outputs] + [(types.uint32, False)] * kernel.writes_bits
    return found + [(getattr(types, kernel.real), False)] * kernel.num_sums


def _others(kernel):
    """The element types of the mask, of the count of kept elements and of the stream."""
    drawn = types.uint8 if kernel.keeps else getattr(types, kernel.real)
    return drawn, types.uint64, types.uint64


def flat_kernel(kernel, native=True):
    """(function, signature) of a kernel for contiguous arrays, which are passed as addresses.

    A Numba array would be passed as seven arguments, and each takes time at every launch.
    """
    pointers = (types.CPointer(of) for of in (*(of for of, _ in _operands(kernel)), *_others(kernel)))
    bits = types.int64 if kernel.real == "float64" else types.int32
    function = _body(kernel)(kernel, True, native, flat, from_bits[kernel.real])
    return function, types.void(*pointers, *(types.int64,) * 12, bits, bits, types.int64)


@functools.cache
def flat_function(kernel, device):
    """The compiled kernel for contiguous arrays on the current device, and how many threads fill that device.

    cuda.core launches it, because Numba's own launch checks the type of each argument every time.
    """
    function, signature = flat_kernel(kernel, _converts())
    (compiled,) = cuda.jit(signature)(function).overloads.values()
    loaded = compiled.library.get_cufunc()
    blocks = cuda.current_context().get_active_blocks_per_multiprocessor(loaded, THREADS, 0)
    return loaded.kernel, max(1, blocks) * _multiprocessors() * THREADS


def _converts():
    """Whether the current device has an instruction that converts to bfloat16."""
    return SIMULATED or cuda.get_current_device().compute_capability >= (8, 0)


def saves_bits(array):
    return False  # not measured yet


def launch(kernel, inputs, outputs, draw):
    mask = None
    if kernel.masked:
        *inputs, mask = inputs
    operands, contiguous = (*inputs, *outputs), True
    size = operands[0].size if kernel.num_inputs else outputs[0].size
    if size == 0:
        return
    for array in operands:
        contiguous = contiguous and array.is_c_contiguous()
    columns = 1
    if kernel.by_columns:
        columns = operands[0].shape[operands[0].ndim - 1]  # the simulator's shapes have no index -1
    of, stream = scalars(kernel, size, draw, mask, columns), operands[0].stream or outputs[0].stream
    stored = draw.seed if kernel.stored else None
    if kernel.writes_bits:
        aligned = contiguous and all(_address(array) % 16 == 0 for array in operands)
        if not writes_all_words(kernel, size, draw, aligned):
            _clear(outputs[-1], stream)
    if contiguous and not SIMULATED:
        _launch_flat(kernel, operands, mask, stored, of, stream)
    else:
        _launch_any(kernel, operands, mask, stored, of, stream, contiguous)


def _launch_flat(kernel, operands, mask, stored, of, stream):
    function, wave = flat_function(kernel, current_device())
    addresses = [_address(array) for array in operands]
    # Arrays that the kernel does not read still need a valid address.
    drawn = kept = stored_at = addresses[0]
    if mask is not None:
        drawn = _address(mask.array)
        kept = drawn if mask.kept is None else _address(mask.kept)
    if stored is not None:
        stored_at = _address(stored)
    *integers, start, seed, call, scale, shift, limit = of
    if (start | seed | call) >> 63:  # cuda.core passes signed integers
        start, seed, call = (n if n < 2**63 else n - 2**64 for n in (start, seed, call))
    bits = _bits[kernel.real]
    stream = stream_of(stream.__cuda_stream__()[1] if stream else 0)
    launch_function(
        stream, _configured(_blocks(thread_count(kernel, of[0], wave))), function,
        *addresses, drawn, kept, stored_at, *integers, start, seed, call, bits(scale), bits(shift), limit,
    )  # fmt: skip


def _address(array):
    return array._ary.ctypes.data if SIMULATED else array.device_ctypes_pointer.value


def _packed(real, integer):
    """A function that returns a number's bits as an integer. Passing it takes half the time of a NumPy number."""
    return functools.lru_cache(maxsize=1024)(lambda number: struct.unpack(integer, struct.pack(real, number))[0])


_bits = {"float32": _packed("f", "i"), "float64": _packed("d", "q")}


def current_device():
    """The number of the current device. Numba's query takes ten times as long, and is used before CUDA has started."""
    error, number = driver.cuCtxGetDevice()
    return cuda.current_context().device.id if error else int(number)


@functools.lru_cache(maxsize=1024)
def _configured(blocks):
    return LaunchConfig(grid=blocks, block=THREADS)


def _launch_any(kernel, operands, mask, stored, of, stream, contiguous):
    """Use Numba's own launch: for arrays with any strides, and for all arrays in the simulator."""

    described = list(zip(operands, _operands(kernel), strict=True))
    operands = [array.view(of.name) for array, (of, _) in described]
    flat = [contiguous or not is_full for _, (_, is_full) in described]
    operands = [array.reshape(-1) if is_flat else array for array, is_flat in zip(operands, flat, strict=True)]
    drawn = kept = nothing = operands[0]
    if mask is not None:
        drawn = mask.array.view(np.uint8) if kernel.keeps else mask.array
        kept = nothing if mask.kept is None else mask.kept
    *integers, scale, shift, limit = of
    real = getattr(np, kernel.real)
    function = any_kernel(kernel, contiguous, _converts())
    _over(function, _blocks(thread_count(kernel, of[0], _wave())), THREADS, stream)(
        *operands, drawn, kept, nothing if stored is None else stored,
        *map(np.int64, integers[:8]), *map(np.uint64, integers[8:]), real(scale), real(shift), np.uint32(limit),
    )  # fmt: skip


@functools.cache
def grow_kernel():
    def gpudrop_grow(seeds, mask, rows, columns, kept):
        together = cuda.shared.array(1, np.uint64)
        if cuda.threadIdx.x == 0:
            together[0] = 0
        cuda.syncthreads()
        _, height, width = mask.shape
        _, seed_rows, seed_columns = seeds.shape
        mine = np.uint64(0)
        for i in range(cuda.grid(1), mask.size, cuda.gridsize(1)):
            above, column = i // width, i % width
            k, row = above // height, above % height
            keep = np.uint8(1)
            for r in range(max(row - rows + 1, 0), min(row + 1, seed_rows)):
                for c in range(max(column - columns + 1, 0), min(column + 1, seed_columns)):
                    keep &= seeds[k, r, c]
            mask[k, row, column] = keep
            mine += np.uint64(keep)
        cuda.atomic.add(together, 0, mine)
        cuda.syncthreads()
        if cuda.threadIdx.x == 0:
            cuda.atomic.add(kept, 0, together[0])

    return cuda.jit(gpudrop_grow)


@functools.cache
def zero_kernel():
    def gpudrop_zero(array):
        for i in range(cuda.grid(1), array.size, cuda.gridsize(1)):
            array[i] = 0

    return cuda.jit(gpudrop_zero)


def _clear(array, stream):
    """Set an array to 0. Copying a 0 from the CPU would wait for the GPU."""
    _over(zero_kernel(), _blocks(min(array.size, _wave())), THREADS, stream)(array)


def grow(seeds, mask, block):
    stream = mask.stream
    kept = cuda.device_array(1, np.uint64, stream=stream)
    _clear(kept, stream)
    arrays = (seeds.view(np.uint8), mask.view(np.uint8))
    blocks = _blocks(min(mask.size, _wave()))
    _over(grow_kernel(), blocks, THREADS, stream)(*arrays, np.int64(block[0]), np.int64(block[1]), kept)
    return kept


def _over(kernel, blocks, threads, stream):
    """A kernel with its grid, without Numba's warning about small grids: small arrays cannot have larger ones."""
    with _configuring:
        before, config.DISABLE_PERFORMANCE_WARNINGS = config.DISABLE_PERFORMANCE_WARNINGS, 1
        try:
            return kernel[blocks, threads, stream]
        finally:
            config.DISABLE_PERFORMANCE_WARNINGS = before


def _blocks(of_threads):
    return -(-of_threads // THREADS)


def _wave():
    """Approximately how many threads fill the current device."""
    return BLOCKS_PER_MULTIPROCESSOR * _multiprocessors() * THREADS


def _multiprocessors():
    return 1 if SIMULATED else cuda.get_current_device().MULTIPROCESSOR_COUNT


@functools.cache
def advance_kernel():
    def gpudrop_advance(state, stream):
        stream[0] = state[0]
        stream[1] = cuda.atomic.add(state, 1, np.uint64(1))

    return cuda.jit(gpudrop_advance)


def advance(state, stream):
    _over(advance_kernel(), 1, 1, stream.stream)(state, stream)
