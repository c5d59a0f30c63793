"""Host kernels: one loop that Numba compiles per fusion, shared out to threads in slices.

A slice is done in blocks that stay in the first-level cache. The words of a block are drawn in groups of
Philox calls, each group behind prefetches of the lines its elements lie in, so that memory is read while
the processor draws; then `_apply` runs the element formula over the block. Each of the two loops
vectorises, while one loop doing both would not.
"""

import functools
import hashlib
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FunctionType

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.pythonapi import NativeValue
from numba.core.registry import cpu_target
from numba.extending import intrinsic, models, overload, register_model, unbox

from gpudrop import formulas, random_bits
from gpudrop.formulas import compiled
from gpudrop.kernels import half, host_math
from gpudrop.kernels.host_math import inner, jit

BLOCK = 1024  # elements whose words and data stay in the first-level cache together
GROUP = 16  # Philox calls drawn in one go: LLVM turns a loop of this known length into vector instructions
LINE = 64  # bytes in a line of the cache
SLICE = 1 << 16  # elements that a thread takes at a time, at least
SHARED = 1 << 21  # elements that are worth waking threads for, which takes up to 100 microseconds


def unavailable():
    return "NUMBA_DISABLE_JIT is set, and the host kernels exist only compiled" if numba.config.DISABLE_JIT else None


def devices():
    return [f"{_threads()} host threads"]


def _threads():
    """How many threads Numba would use here, where no threading layer can be loaded as well."""
    try:
        return numba.get_num_threads()
    except ValueError:
        return numba.config.NUMBA_NUM_THREADS


# A kernel's first argument has a Numba type of its own, which selects the element formula: a kernel that
# closed over the formula would never be found again in Numba's disk cache. The cache stores the type, so it
# is only a name, and the fusion is found by it.
class FusionType(types.Dummy):
    pass


register_model(FusionType)(models.OpaqueModel)


@unbox(FusionType)
def _unbox_fusion(typ, obj, c):
    return NativeValue(c.context.get_dummy_value())


_fusions = {}


# What a kernel is made of beside its formula: sources, as they are when they are imported, and the processor.
_SOURCES = (__file__, *(module.__file__ for module in (formulas, half, host_math, random_bits)))
_SURROUNDINGS = "".join(Path(file).read_text("utf-8") for file in _SOURCES)
_SURROUNDINGS += str(cpu_target.target_context.codegen().magic_tuple())


@functools.cache
def kernel(fusion):
    """The compiled kernel, as Numba's entry from Python: it looks at no types, so a call costs a third."""
    function, signature = specialised(fusion)
    try:
        dispatcher = jit(signature, cache=True)(function)
    except Exception as error:  # no folder for the cache, no room, a damaged file; or the formula, which fails again
        dispatcher = jit(signature)(function)
        advice = "every process compiles anew; NUMBA_CACHE_DIR names a folder that can be written to"
        warnings.warn(f"Numba's cache can't be used ({error}): {advice}", RuntimeWarning, stacklevel=2)
    return dispatcher.get_compile_result(signature).entry_point


def specialised(fusion):
    """`_run` for one fusion, and its signature.

    A function of its own name, with one signature, has cache files of its own. Numba doesn't lock them:
    processes that compile different signatures of one function at once may give one the other's code.
    """
    digest = hashlib.sha256((formulas.parse(fusion.element).digest + _SURROUNDINGS).encode()).hexdigest()[:20]
    name = f"{fusion.name}_{fusion.dtype}_{digest}"
    _fusions[name] = fusion
    function = FunctionType(_run.__code__, globals(), name)
    function.__qualname__ = name
    storage, field, real = (numba.from_dtype(np.dtype(d)) for d in (fusion.storage, _FIELD[fusion.bits], fusion.real))
    source, target = types.Array(storage, 1, "C", readonly=True), types.Array(storage, 1, "C")
    i64, u64 = types.int64, types.uint64
    return function, types.void(FusionType(name), field, real, source, source, target, i64, i64, u64, u64, u64)


_draw = compiled(random_bits.draw, np.float32, {}, inner())
_CONVERSIONS = half.conversions(intrinsic, types, inner(), *half.host_instructions())
_FIELD = {0: np.uint16, 8: np.uint8, 16: np.uint16, 32: np.uint32}


def _constant(of):
    """A function that kernels call with a fusion's type, for what is known of the fusion when they are compiled."""

    def constant(fusion):
        raise NotImplementedError

    @overload(constant)
    def _overload_constant(fusion):
        value = of(_fusions[fusion.name])
        return lambda fusion: value

    return constant


_drawn = _constant(lambda fusion: fusion.bits > 0)
_reads = _constant(lambda fusion: fusion.direction != "mask")  # a mask is made out of nothing
_lanes = _constant(lambda fusion: fusion.chunk)  # elements per Philox call


def _fields(fusion, words):
    """Random words as the fields that elements are compared with."""


def _element(fusion, field, limit, scale, a, b):
    """What is stored for one element."""


@overload(_fields)
def _overload_fields(fusion, words):
    field = _FIELD[_fusions[fusion.name].bits]
    return lambda fusion, words: words.view(field)


@overload(_element)
def _overload_element(fusion, field, limit, scale, a, b):
    f = _fusions[fusion.name]
    formula = compiled(f.element, getattr(np, f.real), host_math.HOST_MATH[f.real], inner())
    widen, narrow = _CONVERSIONS[f.dtype]
    keep_all = f.bits == 0
    return lambda fusion, field, limit, scale, a, b: narrow(
        formula(keep_all or field > limit, scale, widen(a), widen(b))
    )


@intrinsic
def prefetch(typingctx, array, i):
    """Have the line of array[i] brought into the cache; any i will do, since a prefetch never faults."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        read, keep, of_data = i32(0), i32(3), i32(1)
        builder.call(function, [builder.bitcast(builder.gep(data, [args[1]]), byte), read, keep, of_data])
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


@inner()
def _draw_group(words, at, chunk, seed, call):
    """The words of GROUP chunks, in pairs, to words[at:]."""
    for i in range(GROUP):
        w0, w1, w2, w3 = _draw(seed, call, np.uint64(chunk + np.uint64(i)))
        # Pairs, because vectors hold the words in 64 bits. Unsigned, so that no index counts from the end.
        words[np.uint64(at + np.uint64(2 * i))] = np.uint64(w0) | np.uint64(w1) << np.uint64(32)
        words[np.uint64(at + np.uint64(2 * i + 1))] = np.uint64(w2) | np.uint64(w3) << np.uint64(32)


@inner()
def _apply(fusion, fields, limit, scale, a, b, out):
    for i in range(out.size):
        out[i] = _element(fusion, fields[i], limit, scale, a[i], b[i])


@inner()
def _copy(source, spare):
    for i in range(source.size):
        spare[i] = source[i]
    return spare[: source.size]


def _run(fusion, limit, scale, a, b, out, lo, hi, start, seed, call):
    """out[lo:hi]"""
    lanes = np.int64(_lanes(fusion))
    words = np.empty(2 * (BLOCK // lanes + GROUP), np.uint64)
    fields = _fields(fusion, words)
    spare = np.empty(BLOCK, a.dtype)
    in_place = _reads(fusion) and a.ctypes.data == out.ctypes.data
    shift = np.int64(0)
    for first in range(lo, hi, BLOCK):
        last = min(first + BLOCK, hi)
        if _drawn(fusion):
            m = np.uint64(start + np.uint64(first))
            chunk, shift = m // np.uint64(lanes), np.int64(m % np.uint64(lanes))
            for group in range((shift + last - first + GROUP * lanes - 1) // (GROUP * lanes)):
                ahead = first + group * GROUP * lanes
                if _reads(fusion):
                    for i in range(ahead, ahead + GROUP * lanes, LINE // a.itemsize):
                        prefetch(a, i)
                        prefetch(b, i)
                _draw_group(
                    words, np.uint64(2 * GROUP * group), np.uint64(chunk + np.uint64(GROUP * group)), seed, call
                )
        source = a[first:last]
        if in_place:  # a loop that reads what it writes would not vectorise
            source = _copy(source, spare)
        _apply(fusion, fields[shift:], limit, scale, source, b[first:last], out[first:last])


@jit()
def _fill(words, chunk, seed, call):
    for at in range(0, words.size, 2 * GROUP):
        _draw_group(words, np.uint64(at), chunk + np.uint64(at // 2), seed, call)


def random_bytes(stream, chunk, count):
    """The 16 * count random bytes of `count` chunks of a stream, from chunk number `chunk` on."""
    words = np.empty(2 * GROUP * -(-count // GROUP), np.uint64)
    _fill(words, np.uint64(chunk), np.uint64(stream.seed), np.uint64(stream.call))
    return words[: 2 * count].astype("<u8", copy=False).tobytes()


def launch(fusion, a, b, out, draw):
    run, flat_a = kernel(fusion), _flat(fusion, a)
    flat_b = flat_a if b is a else _flat(fusion, b)
    in_order = out.flags.carray
    target = _flat(fusion, out if in_order else np.empty(out.shape, out.dtype))

    def part(lo, hi):
        run(None, draw.limit, draw.scale, flat_a, flat_b, target, lo, hi, draw.start, draw.seed, draw.call)

    _share_out(part, target.size)
    if not in_order:
        out[...] = target.view(out.dtype).reshape(out.shape)


def _flat(fusion, array):
    """The elements in logical order, in the kernel's storage type; a copy if they don't lie so."""
    if not (array.flags.c_contiguous and array.flags.aligned):
        array = np.require(array, requirements="CA")
    return array.reshape(-1).view(fusion.storage)


def _share_out(part, size):
    """part(lo, hi) over [0, size) on as many threads as numba.set_num_threads allows.

    Python's threads, because the kernels hold no lock: unlike Numba's own layers they may be entered by
    many threads at once and survive a fork.
    """
    threads = min(_threads(), size // SLICE) if size >= SHARED else 1
    if threads == 1:
        return part(0, size)
    # Several slices for each thread, so that one that wakes late or is held up takes fewer.
    step = max(SLICE, size // (8 * threads * BLOCK) * BLOCK)
    starts = iter(range(0, size, step))
    change, busy, failures = threading.Condition(), 0, []

    def work():
        nonlocal busy
        while True:
            with change:
                lo = None if failures else next(starts, None)
                if lo is None:
                    return
                busy += 1
            try:
                part(lo, min(lo + step, size))
            except BaseException as error:
                failures.append(error)
            finally:
                with change:
                    busy -= 1
                    change.notify()

    try:
        for _ in range(threads - 1):
            _pool().submit(work)
    except RuntimeError:
        pass  # no thread can be started, as at interpreter shutdown; one may still come by and take a slice
    work()
    # For the slices that are being done, not for threads: one that hasn't begun has nothing left to do.
    with change:
        change.wait_for(lambda: busy == 0)
    if failures:
        raise failures[0]


@functools.cache
def _pool_of(process):
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="gpudrop")


def _pool():
    # A forked child inherits the pool without its threads, so each process has its own.
    return _pool_of(os.getpid())
