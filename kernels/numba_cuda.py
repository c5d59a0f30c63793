"""Numba CUDA kernels: one grid-stride loop, compiled per fusion.

A thread takes a chunk, the elements of one Philox call: it loads them with 16-byte accesses, runs the
element formula over them in registers, and stores them the same way. The two ends of an array, and
arrays that aren't contiguous or aligned, go element by element through the same formula.
"""

import functools
import math

import numba_cuda  # noqa: F401  (without it, old versions of Numba have a numba.cuda of their own)
import numpy as np
from llvmlite import ir
from numba import config, cuda
from numba.cuda import types

from gpudrop import random_bits
from gpudrop.formulas import MATH, compiled
from gpudrop.kernels import arguments, half

I32, I64 = ir.IntType(32), ir.IntType(64)

SIMULATED = bool(config.ENABLE_CUDASIM)
THREADS = 32 if SIMULATED else 256
BLOCKS_PER_MULTIPROCESSOR = 8


def unavailable():
    if cuda.is_available():
        return None
    return "Numba finds no CUDA GPU and driver"


def devices():
    if SIMULATED:
        return ["the CUDA simulator"]
    return [gpu.name for gpu in cuda.gpus]


if SIMULATED:

    def device(function):
        """Run as plain Python, where NumPy's scalars would warn of what CUDA passes over in silence."""

        def quiet(*args):
            with np.errstate(all="ignore"):
                return function(*args)

        return quiet

    def vector_access(width):
        def load(array, i, lanes, j):
            for k in range(width // lanes.dtype.itemsize):
                lanes[j + k] = array[i + k]

        def store(lanes, j, array, i):
            for k in range(width // lanes.dtype.itemsize):
                array[i + k] = lanes[j + k]

        return load, store

    def aligned(array, i, width):
        return (array.ctypes.data + i * array.dtype.itemsize) % width == 0

    CONVERSIONS = half.numpy_conversions(device)
    MATH_FUNCTIONS = {name: getattr(np, name, None) for name in MATH} | {"erf": lambda x: type(x)(math.erf(x))}
else:
    from numba.cuda.extending import intrinsic

    device = functools.partial(cuda.jit, device=True, inline="always")

    def vector_access(width):
        """load(array, i, lanes, j) and store(lanes, j, array, i): `width` bytes as one access.

        array is in global memory, lanes a local array. Elements and words are taken apart by shifts:
        given a vector of 16-bit elements, NVVM would split the access.
        """
        words = ir.VectorType(I32, width // 4)

        def pointer(context, builder, kind, array, index):
            return builder.gep(context.make_array(kind)(context, builder, array).data, [index])

        def each_lane(context, builder, kind, lanes, j):
            """For each element of the access: where it lives, its first word and its place in that."""
            bits = kind.dtype.bitwidth
            first = pointer(context, builder, kind, lanes, j)
            for k in range(8 * width // bits):
                yield builder.gep(first, [I32(k)]), I32(k * bits // 32), k * bits % 32, bits

        @intrinsic
        def load(typingctx, array, i, lanes, j):
            def codegen(context, builder, signature, values):
                address = builder.bitcast(pointer(context, builder, array, *values[:2]), words.as_pointer())
                loaded = builder.load(address, align=width)
                for target, word, place, bits in each_lane(context, builder, lanes, *values[2:]):
                    element = builder.extract_element(loaded, word)
                    if bits == 64:
                        high = builder.extract_element(loaded, I32(word.constant + 1))
                        high = builder.shl(builder.zext(high, I64), I64(32))
                        element = builder.or_(builder.zext(element, I64), high)
                    elif bits < 32:
                        element = builder.trunc(builder.lshr(element, I32(place)), ir.IntType(bits))
                    builder.store(builder.bitcast(element, target.type.pointee), target)
                return context.get_dummy_value()

            return types.void(array, types.int64, lanes, types.int64), codegen

        @intrinsic
        def store(typingctx, lanes, j, array, i):
            def codegen(context, builder, signature, values):
                gathered = [I32(0)] * (width // 4)
                for source, word, place, bits in each_lane(context, builder, lanes, *values[:2]):
                    element = builder.bitcast(builder.load(source), ir.IntType(bits))
                    if bits == 64:
                        gathered[word.constant + 1] = builder.trunc(builder.lshr(element, I64(32)), I32)
                        element = builder.trunc(element, I32)
                    elif bits < 32:
                        element = builder.shl(builder.zext(element, I32), I32(place))
                    gathered[word.constant] = builder.or_(gathered[word.constant], element)
                vector = ir.Constant(words, ir.Undefined)
                for k, word in enumerate(gathered):
                    vector = builder.insert_element(vector, word, I32(k))
                address = builder.bitcast(pointer(context, builder, array, *values[2:]), words.as_pointer())
                builder.store(vector, address, align=width)
                return context.get_dummy_value()

            return types.void(lanes, types.int64, array, types.int64), codegen

        return load, store

    @intrinsic
    def aligned(typingctx, array, i, width):
        """Whether array[i] lies at a multiple of `width` bytes."""

        def codegen(context, builder, signature, values):
            data = context.make_array(array)(context, builder, values[0]).data
            address = builder.ptrtoint(builder.gep(data, [values[1]]), I64)
            mask = builder.sub(values[2], I64(1))
            return builder.icmp_unsigned("==", builder.and_(address, mask), I64(0))

        return types.boolean(array, types.int64, types.int64), codegen

    CONVERSIONS = half.conversions(intrinsic, types, device, half.ptx_widen, half.ptx_narrow)
    MATH_FUNCTIONS = {name: getattr(math, name) for name in MATH}

draw_words = compiled(random_bits.draw, np.float32, MATH_FUNCTIONS, device)
draw_field = compiled(random_bits.field, np.float32, MATH_FUNCTIONS, device)


@functools.cache
def kernel(fusion, contiguous):
    """The kernel of a fusion, jitted for its argument types at the first launch.

    contiguous: whether a, b and out are flat and contiguous; otherwise they are indexed by
    logical index through `.flat`.
    """
    chunk, real, storage = fusion.chunk, getattr(np, fusion.real), getattr(np, fusion.storage)
    drawn, bits = fusion.bits > 0, np.uint32(fusion.bits)
    two_inputs = fusion.direction == "backward"
    has_input = fusion.direction != "mask"
    width = min(16, chunk * np.dtype(storage).itemsize)
    step = width // np.dtype(storage).itemsize
    load, store = vector_access(width)
    formula = compiled(fusion.element, real, MATH_FUNCTIONS, device)
    widen, narrow = CONVERSIONS[fusion.dtype]

    def body(a, b, out, size, start, seed, call, limit, scale):
        shift = np.int64(start % np.uint64(chunk))
        chunks = (size + shift + chunk - 1) // chunk
        a_lanes = cuda.local.array(chunk, storage)
        b_lanes = cuda.local.array(chunk, storage)
        out_lanes = cuda.local.array(chunk, storage)
        for i in range(cuda.grid(1), chunks, cuda.gridsize(1)):
            first = np.int64(i) * chunk - shift
            if drawn:
                words = draw_words(seed, call, np.uint64(start // np.uint64(chunk) + np.uint64(i)))
            else:
                words = (np.uint32(0), np.uint32(0), np.uint32(0), np.uint32(0))
            whole = False
            if contiguous:
                whole = (
                    first >= 0
                    and first + chunk <= size
                    and aligned(a, first, width)
                    and aligned(b, first, width)
                    and aligned(out, first, width)
                )
            if whole:
                for j in range(0, chunk, step):
                    if has_input:
                        load(a, first + j, a_lanes, j)
                    if two_inputs:
                        load(b, first + j, b_lanes, j)
                for j in range(chunk):
                    keep = not drawn or draw_field(words, np.uint32(j), bits) > limit
                    x = widen(a_lanes[j])
                    out_lanes[j] = narrow(formula(keep, scale, x, widen(b_lanes[j]) if two_inputs else x))
                for j in range(0, chunk, step):
                    store(out_lanes, j, out, first + j)
            else:
                for j in range(chunk):
                    m = first + j
                    if m >= 0 and m < size:
                        keep = not drawn or draw_field(words, np.uint32(j), bits) > limit
                        if contiguous:
                            out[m] = narrow(formula(keep, scale, widen(a[m]), widen(b[m])))
                        else:
                            out.flat[m] = narrow(formula(keep, scale, widen(a.flat[m]), widen(b.flat[m])))

    body.__name__ = body.__qualname__ = fusion.name
    return cuda.jit(body)


def signature(fusion, contiguous=True, ndim=1):
    """The Numba signature of a fusion's kernel, for compiling it without a GPU."""
    layout = "C" if contiguous else "A"
    array = types.Array(getattr(types, fusion.storage), ndim, layout)
    scalars = (types.int64, types.uint64, types.uint64, types.uint64, types.uint32)
    return types.void(array, array, array, *scalars, getattr(types, fusion.real))


def launch(fusion, a, b, out, draw):
    if out.size == 0:
        return
    contiguous = all(array.is_c_contiguous() for array in (a, b, out))
    stream = a.stream or out.stream
    a, b, out, numbers = arguments(fusion, a, b, out, draw, contiguous)
    chunks = -(-(out.size + draw.start % fusion.chunk) // fusion.chunk)
    blocks = min(-(-chunks // THREADS), BLOCKS_PER_MULTIPROCESSOR * _multiprocessors())
    kernel(fusion, contiguous)[blocks, THREADS, stream](a, b, out, *numbers)


def _multiprocessors():
    return 1 if SIMULATED else cuda.get_current_device().MULTIPROCESSOR_COUNT
