"""The loop of the CPU kernels, which Numba compiles for each kernel.

A range of elements is processed in blocks. A block draws its words in groups of Philox calls, or gathers the values of
a mask that was drawn before. Then the element formula runs over the block and writes to a buffer, and the buffer is
copied to the results. Words and buffers stay in the L1 cache. Each of these loops vectorises; one loop for all would
not. Meanwhile the inputs of later blocks are prefetched.
"""

import numpy as np
from llvmlite import ir
from numba import from_dtype, types
from numba.core.pythonapi import NativeValue
from numba.extending import intrinsic, models, overload, register_model, unbox

from gpudrop.formulas import compiled, philox
from gpudrop.kernels import half, host_math, threads
from gpudrop.kernels.cpu import memory, vectors
from gpudrop.kernels.cpu.memory import LINE, at, copy, stream
from gpudrop.kernels.cpu.processors import SHAPE
from gpudrop.kernels.host_math import inner, jit

BLOCK = threads.BLOCK  # elements per block: their words and results stay in the L1 cache together
GROUP = SHAPE.chunks


# A kernel's first argument has its own Numba type, which selects the element formula. Numba's disk cache would never
# find a kernel that closes over its formula. The cache stores the type, so the type is only a name, and `KERNELS` maps
# the name to the kernel.
class KernelType(types.Dummy):
    pass


register_model(KernelType)(models.OpaqueModel)


@unbox(KernelType)
def _unbox_kernel(typ, obj, c):
    return NativeValue(c.context.get_dummy_value())


KERNELS: dict[str, object] = {}
FIELD = {0: np.uint16, 8: np.uint8, 16: np.uint16, 32: np.uint32}


def drawn_dtype(kernel):
    """The dtype of a block's random values: fields, booleans or real numbers."""
    if kernel.masked:
        return np.uint8 if kernel.keeps else kernel.real
    return kernel.real if kernel.drawn == "normal" else FIELD[kernel.bits]


_CHUNKS = vectors.Vector(64, GROUP, SHAPE.lane)
_draw = compiled(philox.draw, np.float32, vectors.CASTS, inner(), unrolled=SHAPE.unrolled)
_consecutive, _equal = vectors.consecutive(_CHUNKS, 1), vectors.consecutive(_CHUNKS, 0)
_prefetch, _wide = memory.prefetcher(SHAPE.level), memory.wide(SHAPE.width)
_CONVERSIONS = half.conversions(intrinsic, types, inner(), *half.host_instructions())


def _constant(of):
    """A compiled function of a kernel's type: an integer, which is a constant of the kernel."""

    @intrinsic
    def constant(typingctx, kernel):
        value = int(of(KERNELS[kernel.name]))
        return types.int64(kernel), lambda context, builder, signature, args: ir.IntType(64)(value)

    return constant


_draws = _constant(lambda kernel: bool(kernel.bits))
_lanes = _constant(lambda kernel: philox.lanes(kernel.bits or 16))
_itemsize = _constant(lambda kernel: np.dtype(kernel.storage).itemsize)


# The buffers of a block, in the L1 cache. Intrinsics, because a function's stack is gone when it returns.


@intrinsic
def _words(typingctx, kernel):
    """The buffer of a block's words."""
    return memory.buffer(types.uint64, BLOCK * (KERNELS[kernel.name].bits or 8) // 64, kernel)


@intrinsic
def _values(typingctx, kernel, words):
    """The buffer of a block's random values: the words as fields, or a buffer for computed or gathered values."""
    of = KERNELS[kernel.name]
    drawn = numba_dtype(drawn_dtype(of))
    if of.masked or of.drawn == "normal":
        return memory.buffer(drawn, BLOCK, kernel, words)
    pointer = types.CPointer(drawn)
    return pointer(kernel, words), lambda context, builder, signature, args: builder.bitcast(
        args[1], context.get_value_type(pointer)
    )


@intrinsic
def _results(typingctx, kernel):
    """The buffer of a block's results, one output after the other."""
    of = KERNELS[kernel.name]
    return memory.buffer(numba_dtype(of.storage), BLOCK * len(of.outputs), kernel)


def _deviate(kernel, words, count, normals):
    """Compute normal deviates from `count` pairs of words, if the kernel draws normal deviates."""


def _fetch(kernel, mask, period, repeat, run, first, values, count):
    """Write the mask's values for `count` elements from index `first` on to values, if the kernel reads a mask."""


def _prefetched(kernel, inputs, first, count):
    """Prefetch `count` elements of each input, some distance ahead of index `first`."""


def _apply(kernel, drawn, limit, scale, shift, inputs, results, outputs, first, count, streamed):
    """Run the formula over a block."""


@overload(_deviate)
def _overload_deviate(kernel, words, count, normals):
    of = KERNELS[kernel.name]
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
def _overload_fetch(kernel, mask, period, repeat, run, first, values, count):
    if not KERNELS[kernel.name].masked:  # as above
        return lambda kernel, mask, period, repeat, run, first, values, count: None
    return lambda kernel, mask, period, repeat, run, first, values, count: _gather(
        mask, period, repeat, run, first, values, count
    )


@overload(_prefetched)
def _overload_prefetched(kernel, inputs, first, count):
    if not inputs.count:
        return lambda kernel, inputs, first, count: None
    itemsize = inputs.dtype.dtype.bitwidth // 8
    text = "def prefetched(kernel, inputs, first, count):\n    first += ahead"
    text += "\n    for i in range(first, first + count, line):"
    text += "".join(f"\n        prefetch(at(inputs[{k}], i))" for k in range(inputs.count))
    names = {"prefetch": _prefetch, "at": at, "line": LINE // itemsize, "ahead": SHAPE.ahead // itemsize}
    exec(text, names)  # noqa: S102  (the text above)
    return names["prefetched"]


# Inlined like every other loop. A separate function would be optimised differently in the process that compiles it and
# in those that load it from the cache: multiplications and additions would be fused in different ways.
@overload(_apply, jit_options={"forceinline": True})
def _overload_apply(kernel, drawn, limit, scale, shift, inputs, results, outputs, first, count, streamed):
    of = KERNELS[kernel.name]
    widen, narrow = _CONVERSIONS[of.dtype]
    formula = compiled(of.formula, getattr(np, of.real), host_math.HOST_MATH[of.real], inner())
    names = {"widen": widen, "narrow": narrow, "formula": formula, "real": getattr(np, of.real), "wide": _wide}
    names |= {"at": at, "copy": copy, "stream": stream, "block": BLOCK, "itemsize": np.dtype(of.storage).itemsize}
    exec(_loop(of), names)  # noqa: S102  (the text of _loop)
    return names["apply"]


def _loop(kernel):
    """The text of `_apply` for a kernel. It names each operand, because loops over tuples take longer to compile.

    Results go to a buffer first: LLVM knows that no input overlaps it, also if a result replaces the input in place.
    """
    drawn = "drawn[i] > limit" if kernel.bits else "True"
    drawn = "real(drawn[i])" if not kernel.keeps else "drawn[i] != 0" if kernel.masked else drawn
    inputs, outputs = range(kernel.num_inputs), range(len(kernel.outputs))
    arguments = [drawn, "scale", "shift", *(f"widen(a{k}[i])" for k in inputs)]
    lines = [
        "def apply(kernel, drawn, limit, scale, shift, inputs, results, outputs, first, count, streamed):",
        "wide()",
        *(f"a{k} = at(inputs[{k}], first)" for k in inputs),
        *(f"y{k} = at(results, {k} * block)" for k in outputs),
        "for i in range(count):",
        f"    {', '.join(f'value{k}' for k in outputs)} = formula({', '.join(arguments)})",
        *(f"    y{k}[i] = narrow(value{k})" for k in outputs),
        "if streamed:",
        *(f"    stream(y{k}, at(outputs[{k}], first), count, itemsize)" for k in outputs),
        "else:",
        *(f"    copy(y{k}, at(outputs[{k}], first), count)" for k in outputs),
    ]
    return "\n    ".join(lines)


def numba_dtype(dtype):
    return from_dtype(np.dtype(dtype))


@inner()
def _draw_group(words, chunk, seed, call):
    """Write the words of GROUP chunks."""
    vectors.store_chunks(words, *_draw(seed, _equal(call), _consecutive(chunk)))


@inner()
def _repeat(value, target, count):
    for i in range(count):
        target[i] = value


@inner()
def _tile(source, period, first, target, count):
    """Fill target with repetitions of a source of `period` elements, beginning with source[first]."""
    head = min(period - first, count)
    copy(at(source, first), target, head)
    filled = min(head + period, count)
    copy(source, at(target, head), filled - head)
    while filled < count:  # target[head:filled] holds whole repetitions: double them
        more = min(filled - head, count - filled)
        copy(at(target, head), at(target, filled), more)
        filled += more


@inner()
def _gather(mask, period, repeat, run, first, values, count):
    """`_fetch` for a kernel that reads a mask: see `spec.Mask`."""
    number = first // run
    left = run - (first - number * run)  # elements left in this run
    lap = number // period
    column = number - lap * period
    turn, base = lap % repeat, lap // repeat * period
    done = 0
    while done < count:
        if run == 1:
            more = min((repeat - turn) * period - column, count - done)
            _tile(at(mask, base), period, column, at(values, done), more)
            column, turn = period, repeat - 1
        else:
            more = min(left, count - done)
            _repeat(mask[base + column], at(values, done), more)
            left = run
            column += 1
        done += more
        if column == period:
            column = 0
            turn += 1
            if turn == repeat:
                turn = 0
                base += period


def run(
    kernel,
    limit,
    scale,
    shift,
    inputs,
    outputs,
    mask,
    lo,
    hi,
    streamed,
    start,
    seed,
    call,
    row,
    pitch,
    period,
    repeat,
    run,
):
    """Compute outputs[lo:hi]."""
    lanes = np.int64(_lanes(kernel))
    sources, targets = memory.pointers(inputs), memory.pointers(outputs)
    (stored,) = memory.pointers((mask,))
    words = _words(kernel)
    values, results = _values(kernel, words), _results(kernel)
    line = LINE // _itemsize(kernel)
    skip = np.int64(0)
    first = lo
    while first < hi:
        index = first // row
        if _draws(kernel):
            m = np.uint64(start + np.uint64(index) * pitch + np.uint64(first - index * row))
            chunk, skip = m // np.uint64(lanes), np.int64(m % np.uint64(lanes))
        # Blocks end where a cache line of the first result does, and what is drawn for them fits into the buffer.
        over = memory.address(at(targets[0], first)) // _itemsize(kernel) % line
        over += max(line, lanes) if over < skip else 0
        count = min(BLOCK - over, hi - first, (index + 1) * row - first)
        if _draws(kernel):
            groups = (skip + count + GROUP * lanes - 1) // (GROUP * lanes)
            for group in range(groups):
                _prefetched(kernel, sources, first + group * GROUP * lanes, GROUP * lanes)
                _draw_group(at(words, 2 * GROUP * group), np.uint64(chunk + np.uint64(GROUP * group)), seed, call)
            _deviate(kernel, words, 2 * GROUP * groups, values)
        else:
            _prefetched(kernel, sources, first, count)
            _fetch(kernel, stored, period, repeat, run, first, values, count)
        _apply(kernel, at(values, skip), limit, scale, shift, sources, results, targets, first, count, streamed)
        first += count


@jit()
def draw_fields(words, chunk, seed, call):
    """Fill an array of unsigned 64-bit integers, a multiple of 2 * GROUP, with the words of consecutive chunks."""
    (target,) = memory.pointers((words,))
    for done in range(0, words.size, 2 * GROUP):
        _draw_group(at(target, done), np.uint64(chunk + np.uint64(done // 2)), seed, call)
