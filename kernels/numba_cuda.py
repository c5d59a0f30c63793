"""Numba CUDA kernels: one grid-stride loop, compiled per fusion.

A thread takes a chunk, the elements of one Philox call: it loads as many with 16-byte accesses, draws meanwhile, runs
the element formula over them in registers, and stores them the same way. The two ends of an array, and arrays that
aren't contiguous or aligned, go element by element through the same formula. What is given is read at a place that
moves on with the chunks, since divisions would cost more than the rest.
"""

import functools
import importlib
import math
import struct
import threading

import numba_cuda  # first: without it, old versions of Numba have a numba.cuda of their own
import numpy as np
from llvmlite import ir
from numba import config, cuda
from numba.cuda import types

from gpudrop.formulas import MATH, compiled, philox
from gpudrop.kernels import WARP, accesses, device_math, half, numbers, thread_count

I32, I64 = ir.IntType(32), ir.IntType(64)
LOG2_E = np.float32(math.log2(math.e))

SIMULATED = bool(config.ENABLE_CUDASIM)
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
            return f"the CUDA driver is one of CUDA {driver}.{minor}, and too old for CUDA {toolkit}, which Numba uses"
        if not devices():
            return "Numba finds no CUDA GPU"
    except Exception as error:  # as it comes from a driver without some of its functions
        return f"Numba can't use the CUDA driver, which is broken or older than CUDA 12 ({error})"
    try:
        importlib.import_module("numba.cuda.np.npyimpl")  # as compiling does
    except Exception as error:  # numba-cuda 0.30 uses a function that NumPy 2.5 lacks
        return f"numba-cuda {numba_cuda.__version__} can't compile with NumPy {np.__version__} ({error})"
    return None


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

    def exchanged(value, distance):
        everyone, me = cuda.shared.array(WARP, np.uint32), cuda.threadIdx.x
        everyone[me] = value
        cuda.syncthreads()
        value = everyone[me ^ distance]
        cuda.syncthreads()
        return value

    conversions = functools.cache(lambda native: half.numpy_conversions(device))
    MATH_FUNCTIONS = {name: getattr(np, name, None) for name in (*MATH, "divide")}
    MATH_FUNCTIONS["erf"] = lambda x: type(x)(math.erf(x))
    FAST_FUNCTIONS, OWN_FORMULAS = {}, {}
else:
    from cuda.bindings import driver
    from cuda.core import LaunchConfig, Stream
    from cuda.core import launch as launch_function
    from numba.cuda import cgutils
    from numba.cuda.extending import intrinsic

    stream_of = functools.lru_cache(maxsize=1024)(Stream.from_handle)  # which takes a third of the time of a call

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
    def flat(typingctx, pointer):
        """The contiguous array at an address, of unknown size."""
        kind = types.Array(pointer.dtype, 1, "C")

        def codegen(context, builder, signature, values):
            array = context.make_array(kind)(context, builder)
            array.data = builder.bitcast(values[0], array.data.type)
            array.itemsize = I64(context.get_abi_sizeof(context.get_data_type(pointer.dtype)))
            array.strides = cgutils.pack_array(builder, [array.itemsize])
            return array._getvalue()

        return kind(pointer), codegen

    @intrinsic
    def aligned(typingctx, array, i, width):
        """Whether array[i] lies at a multiple of `width` bytes."""

        def codegen(context, builder, signature, values):
            data = context.make_array(array)(context, builder, values[0]).data
            address = builder.ptrtoint(builder.gep(data, [values[1]]), I64)
            mask = builder.sub(values[2], I64(1))
            return builder.icmp_unsigned("==", builder.and_(address, mask), I64(0))

        return types.boolean(array, types.int64, types.int64), codegen

    @device
    def exchanged(value, distance):
        """The value of the thread whose number in the warp differs in the bit `distance`."""
        return np.uint32(cuda.shfl_xor_sync(np.uint32(0xFFFFFFFF), np.int32(value), np.int32(distance)))

    @functools.cache
    def conversions(native):
        """By dtype; native: whether the GPU converts to bfloat16 by itself."""
        native = half.ptx_narrow_bfloat16 if native else None
        return half.conversions(intrinsic, types, device, half.ptx_widen, half.ptx_narrow, native)

    def assembly(text, constraints, result, *arguments):
        """An instruction of two arguments as a function; its operands are $0, the result, $1 and $2."""

        @intrinsic
        def function(typingctx, a, b):
            def codegen(context, builder, signature, values):
                of = ir.FunctionType(context.get_value_type(result), [value.type for value in values])
                return builder.asm(of, text, constraints, values, side_effect=False)

            return result(*arguments), codegen

        return function

    from_bits = {
        "float32": half.instruction(intrinsic, types.float32, types.int32, half.llvm_float32),
        "float64": half.instruction(intrinsic, types.float64, types.int64, half.llvm_float64),
    }
    exp2 = half.instruction(intrinsic, types.float32, types.float32, half.ptx_exp2)
    MATH_FUNCTIONS = {name: getattr(math, name) for name in MATH} | {"divide": device(lambda a, b: a / b)}
    FAST_FUNCTIONS = {
        "exp": device(lambda x: exp2(x * LOG2_E)),
        "divide": assembly("div.approx.f32 $0, $1, $2;", "=f,f,f", *(types.float32,) * 3),
    }
    # Given a product of 64 bits, the PTX compiler adds the product of the upper halves, which are 0.
    multiply = assembly("mul.wide.u32 $0, $1, $2;", "=l,r,r", types.uint64, types.uint32, types.uint32)
    OWN_FORMULAS = {philox.product: device(lambda a, b: multiply(a, b))}


def device_function(formula, fusion):
    """A formula as a function that kernels of a fusion call."""
    functions, own = MATH_FUNCTIONS, dict(OWN_FORMULAS)
    real = getattr(np, fusion.real)
    if fusion.approximate:
        functions = functions | FAST_FUNCTIONS
        for replaced, by in device_math.FORMULAS.items():
            own[replaced] = compiled(by, real, functions, device)
    return compiled(formula, real, functions, device, own)


NEXT = (np.int64(1), np.int64(0), np.int64(0), np.int64(0))  # the place of element 1


@device
def find(i, period, repeat, run):
    """Where element i finds what is given for it, as `fusion.Given` tells: (within, at, turn, base)."""
    place = i // run
    lap = place // period
    return i - place * run, place - lap * period, lap % repeat, lap // repeat * period


@device
def move_on(place, by, period, repeat, run):
    """The place of a later element: `by` is the place of the element as far from the first one."""
    within, at, turn, base = place[0] + by[0], place[1] + by[1], place[2] + by[2], place[3] + by[3]
    if within >= run:
        within -= run
        at += 1
    if at >= period:
        at -= period
        turn += 1
    if turn >= repeat:
        turn -= repeat
        base += period
    return within, at, turn, base


@device
def truth(given, i):
    return given[i] != np.uint8(0)


@functools.cache
def masker(chunk):
    """A bit for each element of a chunk that starts at a place: whether it is kept. As a function.

    In most masks no two boundaries, of runs or, where each element has its own, of periods, meet in a chunk: then all
    is found in two steps.
    """

    @device
    def bit(mask, i, j):
        return np.uint32(np.uint32(truth(mask, i)) << np.uint32(j))

    @device
    def chunk_of_mask(mask, place, period, repeat, run):
        keeps, before = np.uint32(0), place[1] + place[3]
        if (period if run == 1 else run) < chunk:
            for j in range(chunk):
                keeps |= bit(mask, place[1] + place[3], j)
                place = move_on(place, NEXT, period, repeat, run)
        elif run == 1:
            ahead = period - place[1]
            place = move_on(place, (np.int64(0), ahead, np.int64(0), np.int64(0)), period, repeat, run)
            after = place[1] + place[3] - ahead
            for j in range(chunk):
                keeps |= bit(mask, (before if j < ahead else after) + j, j)
        else:
            ahead = run - place[0]
            if truth(mask, before):
                keeps = np.uint32(0xFFFFFFFF)
            if ahead < chunk:
                place = move_on(place, (ahead, np.int64(0), np.int64(0), np.int64(0)), period, repeat, run)
                later = np.uint32(np.uint32(0xFFFFFFFF) << np.uint32(ahead))
                keeps = np.uint32(keeps & ~later)
                if truth(mask, place[1] + place[3]):
                    keeps = np.uint32(keeps | later)
        return keeps

    return chunk_of_mask


@device
def swap(lane, distance, low, high):
    """Half of two words for half of the other thread's: the one has both low ones then, the other both high ones."""
    odd = lane & distance != 0
    received = exchanged(low if odd else high, distance)
    return (received, high) if odd else (low, received)


@device
def exchange(words, lane, parts):
    """The words for a thread's own elements, which are parts of other threads' chunks: see `kernels.accesses`."""
    w0, w1, w2, w3 = words
    if parts > 1:
        w0, w2 = swap(lane, parts >> 1, w0, w2)
        w1, w3 = swap(lane, parts >> 1, w1, w3)
    if parts == 4:
        w0, w1 = swap(lane, 1, w0, w1)
        w2, w3 = swap(lane, 1, w2, w3)
    return w0, w1, w2, w3


def drawer(fusion):
    """What is drawn for an element, out of the chunk's words and its lane."""
    bits, real, drawn = np.uint32(fusion.bits), getattr(np, fusion.real), fusion.acting.drawn
    kept, field, normal = (device_function(f, fusion) for f in (philox.keep, philox.field, philox.normal))

    @device
    def everything(words, lane, limit):
        return True

    @device
    def keep(words, lane, limit):
        return kept(words, lane, bits, limit)

    @device
    def number(words, lane, limit):
        return real(field(words, lane, bits))

    @device
    def deviate(words, lane, limit):
        return normal(words, lane)

    return {"keep": keep, "field": number, "normal": deviate}[drawn] if fusion.bits else everything


def reader(fusion):
    """What is given for an element."""

    @device
    def number(given, i):
        return given[i]

    return truth if fusion.keeps else number


@device
def itself(x):
    return x


def body(fusion, contiguous, native, as_array=itself, as_real=itself):
    """The kernel of a fusion, as a Python function.

    contiguous: whether a, b and out are flat and contiguous; otherwise they are indexed by logical index through
    `.flat`. native: whether the GPU converts to bfloat16 by itself, as those of capability 8 and later do. as_array,
    as_real: what makes arrays, and scale and shift, of the arguments for them.
    """
    chunk, real, storage = fusion.chunk, getattr(np, fusion.real), getattr(np, fusion.storage)
    drawn, stored, is_given, counted = fusion.bits > 0, fusion.stored, fusion.given, fusion.counted
    windowed, shares = fusion.window, np.uint64(fusion.shares)
    two_inputs, has_input = fusion.reads == 2, fusion.reads > 0
    width, parts, exchanges = accesses(fusion)
    exchanges, step = exchanges and contiguous, chunk // parts
    load, store = vector_access(width)
    formula, draw_words = device_function(fusion.element, fusion), device_function(philox.draw, fusion)
    draw, read = drawer(fusion), reader(fusion)
    widen, narrow = conversions(native)[fusion.dtype]
    is_mask, chunk_of_mask = fusion.given_mask, masker(chunk)

    def run_chunks(
        a, b, given, kept, stream, out,
        chunks, row, turns, period, repeat, run, pitch, start, seed, call, scale, shift, limit,
    ):  # fmt: skip
        a, b, given, kept, stream, out = (
            as_array(a), as_array(b), as_array(given), as_array(kept), as_array(stream), as_array(out)
        )  # fmt: skip
        pitch, start, seed, call = np.uint64(pitch), np.uint64(start), np.uint64(seed), np.uint64(call)
        scale, shift, limit = as_real(scale), as_real(shift), np.uint32(limit)
        a_lanes = cuda.local.array(chunk, storage)
        b_lanes = cuda.local.array(chunk, storage)
        out_lanes = cuda.local.array(chunk, storage)
        if stored:
            seed, call = stream[0], stream[1]
        if counted:
            scale = real(real(row) / real(max(kept[0], np.uint64(1))))  # nothing is multiplied if none are kept
        threads, i = np.int64(cuda.gridsize(1)), np.int64(cuda.grid(1))
        lane = i % WARP if exchanges else np.int64(0)
        # From i to the chunk that this thread draws for.
        to_own = lane % parts * (WARP // parts) + lane // parts - lane if exchanges else np.int64(0)
        line, further_lines, origin, begin = np.int64(0), np.int64(0), start, np.int64(0)
        turn, further = i, threads
        if windowed:
            line, further_lines = i // turns, threads // turns
            turn, further = i - line * turns, threads - further_lines * turns
        if is_given:
            place, further_place = find(i * chunk, period, repeat, run), find(threads * chunk, period, repeat, run)
        else:
            place, further_place = NEXT, NEXT
        skip = np.int64(origin % np.uint64(chunk))
        number = np.uint64(origin // np.uint64(chunk))
        straight = contiguous
        if contiguous and not windowed:
            straight = aligned(a, -skip, width) and aligned(b, -skip, width) and aligned(out, -skip, width)
        while i < chunks:
            if windowed:
                origin = start + np.uint64(line) * pitch
                begin = line * row
                skip = np.int64(origin % np.uint64(chunk))
                number = np.uint64(origin // np.uint64(chunk))
                if contiguous:
                    at = begin - skip
                    straight = aligned(a, at, width) and aligned(b, at, width) and aligned(out, at, width)
            own = turn + to_own
            inner = own * chunk - skip
            whole = straight and inner >= 0 and inner + chunk <= row
            m, apart, together = begin + inner, np.int64(step), False
            if exchanges:
                tile = (turn - lane) * chunk - skip
                together = straight and tile >= 0 and tile + WARP * chunk <= row
                if together:
                    m, apart = begin + tile + lane * step, np.int64(WARP * step)
            if whole:
                for s in range(parts):
                    if has_input:
                        load(a, m + s * apart, a_lanes, s * step)
                    if two_inputs:
                        load(b, m + s * apart, b_lanes, s * step)
            if drawn:
                mine = np.uint64(number + np.uint64(own))
                words = draw_words(seed, call, np.uint64(mine // shares))
                first_lane = np.uint32(np.uint32(mine % shares) * np.uint32(chunk))
            else:
                first_lane = np.uint32(0)
                words = (np.uint32(0), np.uint32(0), np.uint32(0), np.uint32(0))
            here = place
            if whole:
                if together:
                    words = exchange(words, lane, parts)
                keeps = chunk_of_mask(given, place, period, repeat, run) if is_mask else np.uint32(0)
                for j in range(chunk):
                    if is_mask:
                        r = (keeps >> np.uint32(j)) & np.uint32(1) != 0
                    elif is_given:
                        r = read(given, here[1] + here[3])
                        here = move_on(here, NEXT, period, repeat, run)
                    else:
                        r = draw(words, np.uint32(first_lane + np.uint32(j)), limit)
                    x = widen(a_lanes[j])
                    out_lanes[j] = narrow(formula(r, scale, shift, x, widen(b_lanes[j]) if two_inputs else x))
                for s in range(parts):
                    store(out_lanes, s * step, out, m + s * apart)
            else:
                for j in range(chunk):
                    if inner + j >= 0 and inner + j < row:
                        if is_given:
                            r = read(given, here[1] + here[3])
                            here = move_on(here, NEXT, period, repeat, run)
                        else:
                            r = draw(words, np.uint32(first_lane + np.uint32(j)), limit)
                        e = begin + inner + j
                        if contiguous:
                            out[e] = narrow(formula(r, scale, shift, widen(a[e]), widen(b[e])))
                        else:
                            out.flat[e] = narrow(formula(r, scale, shift, widen(a.flat[e]), widen(b.flat[e])))
            if is_given:
                place = move_on(place, further_place, period, repeat, run)
            i += threads
            turn += further
            if windowed:
                line += further_lines
                if turn >= turns:
                    turn -= turns
                    line += 1

    run_chunks.__name__ = run_chunks.__qualname__ = fusion.name
    return run_chunks


@functools.cache
def any_kernel(fusion, contiguous, native=True):
    """The kernel of a fusion, jitted for the types of its arrays at the first launch."""
    return cuda.jit(body(fusion, contiguous, native))


def strided_signature(fusion, ndim):
    """The Numba signature of a kernel for arrays that aren't contiguous, for compiling it without a GPU."""
    array = types.Array(getattr(types, fusion.storage), ndim, "A")
    others = (types.Array(of, 1, "C") for of in _others(fusion))
    real = getattr(types, fusion.real)
    numbers = (*(types.int64,) * 6, *(types.uint64,) * 4, real, real, types.uint32)
    return types.void(array, array, *others, array, *numbers)


def _others(fusion):
    """The types of the elements of what is given, of how many are kept, and of the stream."""
    drawn = types.uint8 if fusion.keeps else getattr(types, fusion.real)
    return drawn, types.uint64, types.uint64


def flat_kernel(fusion, native=True):
    """(function, signature) of a fusion's kernel for contiguous arrays, which it takes as their addresses.

    An array of Numba's is seven arguments, each of which costs time at every launch.
    """
    storage = getattr(types, fusion.storage)
    pointers = (types.CPointer(of) for of in (storage, storage, *_others(fusion), storage))
    bits = types.int64 if fusion.real == "float64" else types.int32
    function = body(fusion, True, native, flat, from_bits[fusion.real])
    return function, types.void(*pointers, *(types.int64,) * 10, bits, bits, types.int64)


@functools.cache
def flat_function(fusion, device):
    """The compiled kernel for contiguous arrays on a device, the current one, and how many of its threads fill that.

    cuda.core launches it, for Numba's own launch looks at the type of each argument every time.
    """
    function, signature = flat_kernel(fusion, _converts())
    (compiled,) = cuda.jit(signature)(function).overloads.values()
    loaded = compiled.library.get_cufunc()
    blocks = cuda.current_context().get_active_blocks_per_multiprocessor(loaded, THREADS, 0)
    return loaded.kernel, max(1, blocks) * _multiprocessors() * THREADS


def _converts():
    """Whether the current device converts to bfloat16 by itself."""
    return SIMULATED or cuda.get_current_device().compute_capability >= (8, 0)


def launch(fusion, a, b, out, draw, given=None):
    size = out.size
    if size == 0:
        return
    of, stream = numbers(fusion, size, draw, given), a.stream or out.stream
    contiguous = a.is_c_contiguous() and (b is a or b.is_c_contiguous()) and (out is a or out.is_c_contiguous())
    stored = draw.seed if fusion.stored else None
    if contiguous and not SIMULATED:
        _launch_flat(fusion, a, b, out, given, stored, of, stream)
    else:
        _launch_any(fusion, a, b, out, given, stored, of, stream, contiguous)


def _launch_flat(fusion, a, b, out, given, stored, of, stream):
    function, wave = flat_function(fusion, current_device())
    # What a kernel doesn't read is the address of a.
    first = second = drawn = kept = _address(a)
    if b is not a:
        second = _address(b)
    if given is not None:
        drawn = _address(given.array)
        kept = drawn if given.kept is None else _address(given.kept)
    stored = first if stored is None else _address(stored)
    *integers, start, seed, call, scale, shift, limit = of
    if (start | seed | call) >> 63:  # cuda.core passes integers with a sign
        start, seed, call = (n if n < 2**63 else n - 2**64 for n in (start, seed, call))
    bits = _bits[fusion.real]
    stream = stream_of(stream.__cuda_stream__()[1] if stream else 0)
    launch_function(
        stream, _configured(_blocks(thread_count(fusion, of[0], wave))), function,
        first, second, drawn, kept, stored, _address(out),
        *integers, start, seed, call, bits(scale), bits(shift), limit,
    )  # fmt: skip


def _address(array):
    return array.device_ctypes_pointer.value


def _packed(real, integer):
    """A function that gives a number's bits as an integer, which is passed in half the time of a NumPy number."""
    return functools.lru_cache(maxsize=1024)(lambda number: struct.unpack(integer, struct.pack(real, number))[0])


_bits = {"float32": _packed("f", "i"), "float64": _packed("d", "q")}


def current_device():
    """The current device's number. Numba's own way to it takes ten times as long, and is for where nothing has run."""
    error, number = driver.cuCtxGetDevice()
    return cuda.current_context().device.id if error else int(number)


@functools.lru_cache(maxsize=1024)
def _configured(blocks):
    return LaunchConfig(grid=blocks, block=THREADS)


def _launch_any(fusion, a, b, out, given, stored, of, stream, contiguous):
    """By Numba's own launch: arrays in any order, and all of them in the simulator."""

    def view(array):
        array = array.view(fusion.storage)
        return array.reshape(-1) if contiguous else array

    a, b, out = map(view, (a, b, out))
    drawn = kept = a
    if given is not None:
        drawn = given.array.view(np.uint8) if fusion.keeps else given.array
        kept = a if given.kept is None else given.kept
    *integers, scale, shift, limit = of
    real = getattr(np, fusion.real)
    kernel = any_kernel(fusion, contiguous, _converts())
    _over(kernel, _blocks(thread_count(fusion, of[0], _wave())), THREADS, stream)(
        a, b, drawn, kept, a if stored is None else stored, out,
        *map(np.int64, integers[:6]), *map(np.uint64, integers[6:]), real(scale), real(shift), np.uint32(limit),
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
    def gpudrop_zero(count):
        count[0] = 0

    return cuda.jit(gpudrop_zero)


def grow(seeds, mask, block):
    stream = mask.stream
    kept = cuda.device_array(1, np.uint64, stream=stream)
    _over(zero_kernel(), 1, 1, stream)(kept)  # a copy from the host would wait for the device
    arrays = (seeds.view(np.uint8), mask.view(np.uint8))
    blocks = _blocks(min(mask.size, _wave()))
    _over(grow_kernel(), blocks, THREADS, stream)(*arrays, np.int64(block[0]), np.int64(block[1]), kept)
    return kept


def _over(kernel, blocks, threads, stream):
    """A kernel with its grid, and without Numba's warning of small ones: small arrays have no others."""
    with _configuring:
        before, config.DISABLE_PERFORMANCE_WARNINGS = config.DISABLE_PERFORMANCE_WARNINGS, 1
        try:
            return kernel[blocks, threads, stream]
        finally:
            config.DISABLE_PERFORMANCE_WARNINGS = before


def _blocks(of_threads):
    return -(-of_threads // THREADS)


def _wave():
    """About how many threads fill the current device."""
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
