"""Numba CUDA kernels: one grid-stride loop, compiled per fusion.

A thread takes a chunk, the elements of one Philox call: it loads them with 16-byte accesses, runs the
element formula over them in registers, and stores them the same way. The two ends of an array, and
arrays that aren't contiguous or aligned, go element by element through the same formula. What is given is
read element by element, at a place that moves on with the elements, since a division each would cost more
than the rest.
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


@device
def find(i, period, repeat, run):
    """Where element i finds what is given for it, as `fusion.Given` tells: (within, at, turn, base)."""
    place = i // run
    lap = place // period
    return i - place * run, place - lap * period, lap % repeat, lap // repeat * period


@device
def move_on(place, period, repeat, run):
    """The place of the next element."""
    within, at, turn, base = place
    within += 1
    if within == run:
        within = np.int64(0)
        at += 1
        if at == period:
            at = np.int64(0)
            turn += 1
            if turn == repeat:
                turn = np.int64(0)
                base += period
    return within, at, turn, base


def drawer(fusion):
    """What is drawn for an element, out of the chunk's words and its lane."""
    bits, real, drawn = np.uint32(fusion.bits), getattr(np, fusion.real), fusion.acting.drawn
    normal = compiled(random_bits.normal, real, MATH_FUNCTIONS, device)

    @device
    def everything(words, lane, limit):
        return True

    @device
    def keep(words, lane, limit):
        return draw_field(words, lane, bits) > limit

    @device
    def field(words, lane, limit):
        return real(draw_field(words, lane, bits))

    @device
    def deviate(words, lane, limit):
        return normal(words, lane)

    return {"keep": keep, "field": field, "normal": deviate}[drawn] if fusion.bits else everything


def reader(fusion):
    """What is given for an element."""

    @device
    def truth(given, i):
        return given[i] != np.uint8(0)

    @device
    def number(given, i):
        return given[i]

    return truth if fusion.keeps else number


def stream_reader(fusion):
    """The seed and the call, each of what a kernel gets for both."""

    @device
    def first(seed, call):
        return seed

    @device
    def second(seed, call):
        return call

    @device
    def first_stored(seed, call):
        return seed[0]

    @device
    def second_stored(seed, call):
        return seed[1]

    return (first_stored, second_stored) if fusion.stored else (first, second)


@functools.cache
def kernel(fusion, contiguous):
    """The kernel of a fusion, jitted for its argument types at the first launch.

    contiguous: whether a, b and out are flat and contiguous; otherwise they are indexed by
    logical index through `.flat`.
    """
    chunk, real, storage = fusion.chunk, getattr(np, fusion.real), getattr(np, fusion.storage)
    drawn, is_given, counted, windowed = fusion.bits > 0, fusion.given, fusion.counted, fusion.window
    two_inputs, has_input = fusion.reads == 2, fusion.reads > 0
    width = min(16, chunk * np.dtype(storage).itemsize)
    step = width // np.dtype(storage).itemsize
    load, store = vector_access(width)
    formula = compiled(fusion.element, real, MATH_FUNCTIONS, device)
    draw, read, (seed_of, call_of) = drawer(fusion), reader(fusion), stream_reader(fusion)
    widen, narrow = CONVERSIONS[fusion.dtype]

    def body(
        a, b, given, kept, out,
        chunks, row, turns, pitch, start, seed, call, limit, scale, shift, period, repeat, run,
    ):  # fmt: skip
        a_lanes = cuda.local.array(chunk, storage)
        b_lanes = cuda.local.array(chunk, storage)
        out_lanes = cuda.local.array(chunk, storage)
        if counted:
            scale = real(real(row) / real(max(kept[0], np.uint64(1))))  # nothing is multiplied if none are kept
        for i in range(cuda.grid(1), chunks, cuda.gridsize(1)):
            line = np.int64(i) // turns if windowed else np.int64(0)
            turn = np.int64(i) - line * turns
            origin = start + np.uint64(line) * pitch
            begin = line * row
            end = begin + row
            first = begin + turn * chunk - np.int64(origin % np.uint64(chunk))
            if drawn:
                number = np.uint64(origin // np.uint64(chunk) + np.uint64(turn))
                words = draw_words(seed_of(seed, call), call_of(seed, call), number)
            else:
                words = (np.uint32(0), np.uint32(0), np.uint32(0), np.uint32(0))
            if is_given:
                place = find(max(first, np.int64(0)), period, repeat, run)
            whole = False
            if contiguous:
                whole = (
                    first >= begin
                    and first + chunk <= end
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
                    if is_given:
                        r = read(given, place[1] + place[3])
                        place = move_on(place, period, repeat, run)
                    else:
                        r = draw(words, np.uint32(j), limit)
                    x = widen(a_lanes[j])
                    out_lanes[j] = narrow(formula(r, scale, shift, x, widen(b_lanes[j]) if two_inputs else x))
                for j in range(0, chunk, step):
                    store(out_lanes, j, out, first + j)
            else:
                for j in range(chunk):
                    m = first + j
                    if m >= begin and m < end:
                        if is_given:
                            r = read(given, place[1] + place[3])
                            place = move_on(place, period, repeat, run)
                        else:
                            r = draw(words, np.uint32(j), limit)
                        if contiguous:
                            out[m] = narrow(formula(r, scale, shift, widen(a[m]), widen(b[m])))
                        else:
                            out.flat[m] = narrow(formula(r, scale, shift, widen(a.flat[m]), widen(b.flat[m])))

    body.__name__ = body.__qualname__ = fusion.name
    return cuda.jit(body)


def signature(fusion, contiguous=True, ndim=1):
    """The Numba signature of a fusion's kernel, for compiling it without a GPU."""
    array = types.Array(getattr(types, fusion.storage), ndim, "C" if contiguous else "A")
    drawn = kept = array
    if fusion.given:
        drawn = types.Array(types.uint8 if fusion.keeps else getattr(types, fusion.real), 1, "C")
        kept = types.Array(types.uint64, 1, "C") if fusion.counted else drawn
    real, i64, u64 = getattr(types, fusion.real), types.int64, types.uint64
    seed = types.Array(u64, 1, "C") if fusion.stored else u64
    window, place = (i64, i64, i64, u64), (i64, i64, i64)
    return types.void(array, array, drawn, kept, array, *window, u64, seed, u64, types.uint32, real, real, *place)


def launch(fusion, a, b, out, draw, given=None):
    if out.size == 0:
        return
    contiguous = all(array.is_c_contiguous() for array in (a, b, out))
    stream = a.stream or out.stream
    a, b, drawn, kept, out, numbers = arguments(fusion, a, b, out, draw, given, contiguous)
    kernel(fusion, contiguous)[_blocks(int(numbers[0])), THREADS, stream](a, b, drawn, kept, out, *numbers)


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
    def gpudrop_zero(count):
        count[0] = 0

    return cuda.jit(gpudrop_zero)


def grow(seeds, mask, block):
    stream = mask.stream
    kept = cuda.device_array(1, np.uint64, stream=stream)
    zero_kernel()[1, 1, stream](kept)  # a copy from the host would wait for the device
    arrays = (seeds.view(np.uint8), mask.view(np.uint8))
    grow_kernel()[_blocks(mask.size), THREADS, stream](*arrays, np.int64(block[0]), np.int64(block[1]), kept)
    return kept


def _blocks(threads):
    """How many blocks work on so many chunks."""
    return min(-(-threads // THREADS), BLOCKS_PER_MULTIPROCESSOR * _multiprocessors())


def _multiprocessors():
    return 1 if SIMULATED else cuda.get_current_device().MULTIPROCESSOR_COUNT
