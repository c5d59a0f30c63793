"""CPU kernels: one loop that Numba compiles for each kernel, divided among threads in slices.

A slice is processed in blocks that stay in the L1 cache. The words of a block are drawn in groups of Philox calls. Each
group first prefetches the cache lines of its elements, so that memory is read while the processor draws. A kernel that
reads a mask gathers the mask's values for the block instead. Then `_apply` runs the element formula over the block.
Each of the two loops vectorises; one loop that does both would not.
"""

import atexit
import contextlib
import functools
import hashlib
import os
import warnings
from types import FunctionType
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock
from numba.core.pythonapi import NativeValue
from numba.core.registry import cpu_target
from numba.extending import intrinsic, models, overload, register_model, unbox

from gpudrop import formulas
from gpudrop.formulas import compiled, philox
from gpudrop.kernels import half, host_math, threads
from gpudrop.kernels.host_math import inner, jit
from gpudrop.uninterrupted import uninterrupted

BLOCK = threads.BLOCK  # elements per block: their words and data stay in the L1 cache together
GROUP = 16  # Philox calls per group: LLVM vectorises a loop of this constant length
LINE = 64  # bytes per cache line


def unavailable():
    return "NUMBA_DISABLE_JIT is set, but CPU kernels must be compiled: unset it" if numba.config.DISABLE_JIT else None


def devices():
    count = threads.available()
    return [f"{count} CPU thread{'s' * (count > 1)}"]


def on_device(number):
    return contextlib.nullcontext()


# A kernel's first argument has its own Numba type, which selects the element formula. Numba's disk cache would never
# find a kernel that closes over its formula. The cache stores the type, so the type is only a name, and `_kernels` maps
# the name to the kernel.
class KernelType(types.Dummy):
    pass


register_model(KernelType)(models.OpaqueModel)


@unbox(KernelType)
def _unbox_kernel(typ, obj, c):
    return NativeValue(c.context.get_dummy_value())


_kernels: dict[str, Any] = {}


# Besides its formula, a kernel depends on these sources, as they are at import, and on the processor.
_SOURCES = (globals(), *map(vars, (formulas, half, host_math, philox, threads)))
_DEPENDENCIES = "".join(formulas.text_of(namespace["__file__"], namespace) for namespace in _SOURCES)
_DEPENDENCIES += str(cpu_target.target_context.codegen().magic_tuple())


@functools.cache
def entry(kernel):
    """The compiled kernel as Numba's entry point. It checks no types, so a call takes a third of the time."""
    if kernel.window:  # use the kernel without a window, which treats all elements as one row
        source, name = kernel.source._replace(window=False), kernel.name.removesuffix("_window")
        return entry(kernel._replace(name=name, source=source))
    function, signature = specialised(kernel)
    dispatcher, fault = _when_compiled(lambda: _compiled(function, signature))
    # Warn once per process. Python alone would not: Numba resets the record of shown warnings as it compiles.
    if fault and not _faults:
        _faults.append(fault)
        advice = "every process compiles the kernels again; set NUMBA_CACHE_DIR to a writable folder"
        warnings.warn(f"Numba's cache can't be used ({fault}): {advice}", RuntimeWarning, stacklevel=2)
    return dispatcher.get_compile_result(signature).entry_point


_faults: list[Exception] = []


def _compiled(function, signature):
    """Numba's dispatcher, and the error of its cache or None."""
    dispatcher, fault = jit()(function), None
    try:
        dispatcher.enable_caching()
        dispatcher.compile(signature)
    except Exception as error:  # no cache folder, a full disk, a damaged file; or the formula, which fails again
        fault = error
        if not dispatcher.overloads:
            dispatcher = jit()(function)
            dispatcher.compile(signature)
    return dispatcher, fault


def _when_compiled(compiling):
    """Call compiling() without interrupts: one could leave Numba unable to compile ever again."""
    # If this thread holds the compiler's lock, another thread would wait for it forever.
    return compiling() if global_compiler_lock.is_locked() else uninterrupted(compiling)


@atexit.register
def _finish():
    # A compilation may still be running after an interrupt. Wait for it before LLVM is shut down.
    with global_compiler_lock:
        pass


if hasattr(os, "register_at_fork"):  # a child could never compile if another thread held the lock at the fork
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )


def specialised(kernel):
    """`_run` for one kernel, and its signature.

    The function has its own name and one signature, so it has its own cache files. Numba does not lock cache files:
    if two processes compile different signatures of one function at once, one may load the other's code.
    """
    digest = hashlib.sha256((formulas.parse(kernel.formula).digest + _DEPENDENCIES).encode()).hexdigest()[:20]
    name = f"{kernel.name}_{kernel.dtype}_{digest}"
    _kernels[name] = kernel
    function = FunctionType(_run.__code__, globals(), name)
    function.__qualname__ = name
    drawn, limit = _drawn_dtype(kernel) if kernel.masked else kernel.storage, _FIELD[kernel.bits]
    storage, drawn, limit, real = (numba.from_dtype(np.dtype(d)) for d in (kernel.storage, drawn, limit, kernel.real))
    source, target = types.Array(storage, 1, "C", readonly=True), types.Array(storage, 1, "C")
    operands = types.UniTuple(source, kernel.num_inputs), types.UniTuple(target, len(kernel.outputs))
    mask = types.Array(drawn, 1, "C", readonly=True)
    numbers = (*(types.int64,) * 2, *(types.uint64,) * 3, types.int64, types.uint64, *(types.int64,) * 3)
    return function, types.void(KernelType(name), limit, real, real, *operands, mask, *numbers)


def _drawn_dtype(kernel):
    """The dtype of a block's random values: fields, booleans or real numbers."""
    if kernel.masked:
        return np.uint8 if kernel.keeps else kernel.real
    return kernel.real if kernel.drawn == "normal" else _FIELD[kernel.bits]


_draw = compiled(philox.draw, np.float32, {}, inner())
_CONVERSIONS = half.conversions(intrinsic, types, inner(), *half.host_instructions())
_FIELD = {0: np.uint16, 8: np.uint8, 16: np.uint16, 32: np.uint32}


def _constant(of):
    """A function that kernels call with a kernel's type. It returns a compile-time constant of the kernel."""

    def constant(kernel):
        raise NotImplementedError

    @overload(constant)
    def _overload_constant(kernel):
        value = of(_kernels[kernel.name])
        return lambda kernel: value

    return constant


_draws = _constant(lambda kernel: kernel.bits > 0)
_masked = _constant(lambda kernel: kernel.masked)
_lanes = _constant(lambda kernel: philox.lanes(kernel.bits or 16))


def _block(kernel, words):
    """The buffer of a block's random values: a view of the words as fields, or memory for computed values."""


def _deviate(kernel, words, count, normals):
    """Compute normal deviates from `count` pairs of words, if the kernel draws normal deviates."""


def _fetch(kernel, mask, period, repeat, run, first, block):
    """Write the mask's values for the elements from index `first` on to block, if the kernel reads a mask."""


def _prefetched(kernel, inputs, first, count):
    """Prefetch `count` elements of each input into the cache."""


def _apply(kernel, drawn, limit, scale, shift, inputs, outputs, spare, first, last):
    """Run the formula over a block."""


@overload(_block)
def _overload_block(kernel, words):
    of = _kernels[kernel.name]
    stored = np.dtype(_drawn_dtype(of)).type
    if of.masked:
        return lambda kernel, words: np.empty(BLOCK, stored)
    if of.drawn == "normal":
        return lambda kernel, words: np.empty(2 * words.size, stored)  # two values per pair of words
    return lambda kernel, words: words.view(stored)


@overload(_deviate)
def _overload_deviate(kernel, words, count, normals):
    of = _kernels[kernel.name]
    if of.masked or of.drawn != "normal":  # left out of other kernels, because compiling it takes time
        return lambda kernel, words, count, normals: None
    real = of.real
    radius, sine = (
        compiled(formula, getattr(np, real), host_math.HOST_MATH[real], inner(), dict(host_math.FORMULAS[real]))
        for formula in (philox.radius, philox.sine)
    )
    quarter = philox.QUARTER

    def deviate(kernel, words, count, normals):
        # Both deviates of a pair at once: they share a radius and an angle.
        for i in range(count):
            pair = words[i]
            r, turn = radius(np.uint32(pair)), np.uint32(pair >> np.uint64(32))
            normals[2 * i] = r * sine(np.uint32(turn + quarter))
            normals[2 * i + 1] = r * sine(turn)

    return deviate


@overload(_fetch)
def _overload_fetch(kernel, mask, period, repeat, run, first, block):
    if not _kernels[kernel.name].masked:
        return lambda kernel, mask, period, repeat, run, first, block: None
    return lambda kernel, mask, period, repeat, run, first, block: _gather(mask, period, repeat, run, first, block)


@overload(_prefetched)
def _overload_prefetched(kernel, inputs, first, count):
    if not inputs.count:
        return lambda kernel, inputs, first, count: None

    text = "def prefetched(kernel, inputs, first, count):\n    for i in range(first, first + count, line):"
    text += "".join(f"\n        prefetch(inputs[{k}], i)" for k in range(inputs.count))
    names = {"prefetch": prefetch, "line": LINE // (inputs.dtype.dtype.bitwidth // 8)}
    exec(text, names)  # noqa: S102  (the text above)
    return names["prefetched"]


# Inlined like every other loop. A separate function would be optimised differently in the process that compiles it and
# in those that load it from the cache: multiplications and additions would be fused in different ways.
@overload(_apply, jit_options={"forceinline": True})
def _overload_apply(kernel, drawn, limit, scale, shift, inputs, outputs, spare, first, last):
    of = _kernels[kernel.name]
    real = getattr(np, of.real)
    widen, narrow = _CONVERSIONS[of.dtype]
    formula = compiled(of.formula, real, host_math.HOST_MATH[of.real], inner())
    names = {"widen": widen, "narrow": narrow, "formula": formula, "real": real, "copy": _copy}
    exec(_loop(of), names)  # noqa: S102  (the text of _loop)
    return names["apply"]


def _loop(kernel):
    """The text of `_apply` for a kernel. It names each operand, because loops over tuples take longer to compile."""
    drawn = "drawn[i] > limit" if kernel.bits else "True"
    drawn = "real(drawn[i])" if not kernel.keeps else "drawn[i] != 0" if kernel.masked else drawn
    inputs, outputs = range(kernel.num_inputs), range(len(kernel.outputs))
    arguments = [drawn, "scale", "shift", *(f"widen(a{k}[i])" for k in inputs)]
    lines = [
        "def apply(kernel, drawn, limit, scale, shift, inputs, outputs, spare, first, last):",
        *(f"a{k} = inputs[{k}][first:last]" for k in inputs),
        *(f"y{k} = outputs[{k}][first:last]" for k in outputs),
        "for i in range(y0.size):",
        f"    {', '.join(f'value{k}' for k in outputs)} = formula({', '.join(arguments)})",
        *(f"    y{k}[i] = narrow(value{k})" for k in outputs),
    ]
    if inputs:  # in place, copy the input first: a loop that reads the memory that it writes would not vectorise
        lines[2:2] = [
            "if inputs[0].ctypes.data == outputs[0].ctypes.data:",
            "    copy(a0, spare[: last - first])",
            "    a0 = spare[: last - first]",
        ]
    return "\n    ".join(lines)


@intrinsic
def prefetch(typingctx, array, i):
    """Prefetch the cache line of array[i]. Any i is allowed, because a prefetch never faults."""

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
    """Write the words of GROUP chunks, in pairs, to words[at:]."""
    for i in range(GROUP):
        w0, w1, w2, w3 = _draw(seed, call, np.uint64(chunk + np.uint64(i)))
        # Pairs, because vectors hold each word in 64 bits. Unsigned indices need no check for negative values.
        words[np.uint64(at + np.uint64(2 * i))] = np.uint64(w0) | np.uint64(w1) << np.uint64(32)
        words[np.uint64(at + np.uint64(2 * i + 1))] = np.uint64(w2) | np.uint64(w3) << np.uint64(32)


@inner()
def _copy(source, target):
    for i in range(target.size):
        target[i] = source[i]


@inner()
def _repeat(value, target):
    for i in range(target.size):
        target[i] = value


@inner()
def _tile(source, at, target):
    """Fill target with repetitions of source, beginning with source[at]."""
    head = min(source.size - at, target.size)
    _copy(source[at : at + head], target[:head])
    filled = min(head + source.size, target.size)
    _copy(source, target[head:filled])
    while filled < target.size:  # target[head:filled] holds whole repetitions: double them
        count = min(filled - head, target.size - filled)
        _copy(target[head:], target[filled : filled + count])
        filled += count


@inner()
def _gather(mask, period, repeat, run, first, block):
    """Write the mask's values for the elements from index `first` on to block: see `spec.Mask`."""
    number = first // run
    left = run - (first - number * run)  # elements left in this run
    lap = number // period
    at = number - lap * period
    turn, base = lap % repeat, lap // repeat * period
    i = 0
    while i < block.size:
        if run == 1:
            count = min((repeat - turn) * period - at, block.size - i)
            _tile(mask[base : base + period], at, block[i : i + count])
            at, turn = period, repeat - 1
        else:
            count = min(left, block.size - i)
            _repeat(mask[base + at], block[i : i + count])
            left = run
            at += 1
        i += count
        if at == period:
            at = 0
            turn += 1
            if turn == repeat:
                turn = 0
                base += period


def _run(
    kernel, limit, scale, shift, inputs, outputs, mask, lo, hi, start, seed, call, row, pitch, period, repeat, run
):
    """Compute outputs[lo:hi]."""
    lanes = np.int64(_lanes(kernel))
    words = np.empty(2 * (BLOCK // lanes + GROUP), np.uint64)
    block = _block(kernel, words)
    spare = np.empty(BLOCK, outputs[0].dtype)
    skip = np.int64(0)
    first = lo
    while first < hi:
        line = first // row
        last = min(first + BLOCK, hi, (line + 1) * row)
        if _draws(kernel):
            m = np.uint64(start + np.uint64(line) * pitch + np.uint64(first - line * row))
            chunk, skip = m // np.uint64(lanes), np.int64(m % np.uint64(lanes))
            groups = (skip + last - first + GROUP * lanes - 1) // (GROUP * lanes)
            for group in range(groups):
                _prefetched(kernel, inputs, first + group * GROUP * lanes, GROUP * lanes)
                _draw_group(
                    words, np.uint64(2 * GROUP * group), np.uint64(chunk + np.uint64(GROUP * group)), seed, call
                )
            _deviate(kernel, words, 2 * GROUP * groups, block)
        elif _masked(kernel):
            _prefetched(kernel, inputs, last, BLOCK)
            _fetch(kernel, mask, period, repeat, run, first, block[: last - first])
        _apply(kernel, block[skip:], limit, scale, shift, inputs, outputs, spare, first, last)
        first = last


@jit()
def _fill(words, chunk, seed, call):
    for at in range(0, words.size, 2 * GROUP):
        _draw_group(words, np.uint64(at), chunk + np.uint64(at // 2), seed, call)


draw_fields = _fill


def random_bytes(stream, chunk, count):
    """The 16 * count random bytes of `count` chunks of a stream, beginning with chunk number `chunk`."""
    words = np.empty(2 * GROUP * -(-count // GROUP), np.uint64)
    _fill(words, np.uint64(chunk), np.uint64(stream.seed), np.uint64(stream.call))
    return words[: 2 * count].astype("<u8", copy=False).tobytes()


def launch(kernel, inputs, outputs, draw):
    if not kernel.masked and len(inputs) == 1 and inputs[0].ndim > 1 and not kernel.window and _repeats(inputs[0]):
        for k, part in enumerate(inputs[0]):  # a broadcast input: one repetition at a time, without a full copy
            parts = tuple(out[k] for out in outputs)
            launch(kernel, (part,), parts, draw._replace(start=draw.start + k * part.size))
        return
    run, stored, size = entry(kernel), kernel.stored_dtype, outputs[0].size
    seed, call, start, limit, scale, shift, row, pitch = draw
    mask, period, repeat, share = None, 1, 1, 1
    if kernel.masked:
        *inputs, (mask, period, repeat, share, kept) = inputs
        mask = mask.view(np.uint8) if kernel.keeps else mask
        if kernel.counted:
            scale = size / max(1, int(kept[0]))
    sources, targets, in_order = (), (), True  # loops, because they are faster than comprehensions here
    for array in inputs:
        sources += (_flat(array, stored),)
    for out in outputs:
        if not out.flags.carray:
            out, in_order = np.empty(out.shape, out.dtype), False
        targets += (_flat(out, stored),)
    mask = targets[0] if mask is None else mask
    numbers = (start, seed, call, row if kernel.window else max(1, size), pitch, period, repeat, share)

    def part(lo, hi):
        run(None, limit, scale, shift, sources, targets, mask, lo, hi, *numbers)

    threads.share_out(part, size)
    if not in_order:
        for out, target in zip(outputs, targets, strict=True):
            if not out.flags.carray:
                out[...] = target.view(out.dtype).reshape(out.shape)


def _repeats(array):
    """Whether an array is broadcast along its first axis and each repetition is large."""
    return array.strides[0] == 0 and len(array) and array[0].size >= BLOCK


@jit()
def grow_rows(seeds, mask, rows, columns, lo, hi):
    """Set rows lo to hi of the mask, counted through all maps. Return how many of their elements are kept."""
    _, height, width = mask.shape
    _, seed_rows, seed_columns = seeds.shape
    kept = 0
    for k in range(lo // height, (hi + height - 1) // height):
        top, end = max(lo - k * height, 0), min(hi - k * height, height)
        mask[k, top:end] = 1
        for i in range(max(top - rows + 1, 0), min(end, seed_rows)):
            seed_row = seeds[k, i]
            all_kept = np.uint8(1)
            for j in range(seed_columns):
                all_kept &= seed_row[j]
            if all_kept:  # the usual case
                continue
            for j in range(seed_columns):
                if not seed_row[j]:
                    mask[k, max(i, top) : min(i + rows, end), j : j + columns] = 0
        for i in range(top, end):
            mask_row, in_row = mask[k, i], np.uint32(0)
            for j in range(width):
                in_row += np.uint32(mask_row[j])
            kept += in_row
    return kept


def grow(seeds, mask, block):
    width, counts = mask.shape[2], []
    seeds, grown = seeds.view(np.uint8), mask.view(np.uint8)

    def part(lo, hi):
        # The rows that begin in this slice of the elements.
        counts.append(grow_rows(seeds, grown, *block, -(-lo // width), -(-hi // width)))

    if not grow_rows.overloads:
        _when_compiled(lambda: part(0, 0))
    threads.share_out(part, mask.size)
    return np.array([sum(counts)], np.uint64)


def _flat(array, stored):
    """The elements in logical order, in the kernel's storage type; a copy if it is not contiguous and aligned."""
    flags = array.flags
    if not (flags.c_contiguous and flags.aligned):
        array = np.require(array, requirements="CA")
    flat = array if array.ndim == 1 else array.reshape(-1)
    return flat if flat.dtype is stored else flat.view(stored)
