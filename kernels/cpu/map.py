"""The loop of the CPU kernels, which Numba compiles for each kernel.

A range of elements is processed in blocks. A block draws its words in groups of Philox calls, or gathers the values of
a mask that was drawn before. Then the element formula runs over the block. Words stay in the L1 cache. Each of these
loops vectorises; one loop for all would not. Meanwhile the inputs of later blocks are prefetched. Results that replace
an input, or that bypass the caches, go to a buffer first.
"""

import functools

import numpy as np
from llvmlite import ir
from numba import from_dtype, types
from numba.core.pythonapi import NativeValue
from numba.extending import intrinsic, models, overload, register_model, unbox

from gpudrop.formulas import compiled, philox
from gpudrop.kernels import half, host_math, threads
from gpudrop.kernels.cpu import bits, blocks, memory, vectors
from gpudrop.kernels.cpu.memory import LINE, at, copy
from gpudrop.kernels.cpu.processors import SHAPE
from gpudrop.kernels.host_math import inner, jit

ROWS = 128  # rows per partial sum: a sum of so many numbers in a row is still exact enough
BLOCK = threads.BLOCK  # elements per block: their words and results stay in the L1 cache together
GROUP, SMALL = SHAPE.chunks, SHAPE.chunks // 4  # Philox calls per group; small ones are for the rest of a row


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


def _line(kernel):
    """The number of elements of the kernel's dtype per cache line. Narrower operands are prefetched more often."""
    return LINE // np.dtype(kernel.storage).itemsize


_draw = compiled(philox.draw, np.float32, vectors.CASTS, inner(), unrolled=SHAPE.unrolled)
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
_adds = _constant(lambda kernel: kernel.num_sums > 0)
_is_random = _constant(lambda kernel: kernel.source is not None)


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
    """The buffers of a block's results. Before each there is memory for a cache line: see `stream`."""
    return memory.buffers(list(map(numba_dtype, KERNELS[kernel.name].storages[1])), BLOCK + LINE, kernel)


@intrinsic
def _tiles(typingctx, kernel):
    """The buffers of a block's elements of rows, which are repeated there."""
    of = KERNELS[kernel.name]
    return memory.buffers(list(map(numba_dtype, of.storages[0][of.num_inputs :])), BLOCK, kernel)


@intrinsic
def _terms(typingctx, kernel):
    """The buffers of a block's results that are added up."""
    of = KERNELS[kernel.name]
    return memory.buffers([numba_dtype(of.real)] * of.num_sums, BLOCK, kernel)


def _flags(used):
    """An intrinsic that returns a buffer with one byte per element of a block, if `used` of the kernel is true."""

    @intrinsic
    def flags(typingctx, kernel):
        return memory.buffer(types.uint8, (BLOCK + LINE) * used(KERNELS[kernel.name]), kernel)

    return flags


_given, _marked = _flags(lambda kernel: kernel.reads_bits), _flags(lambda kernel: kernel.writes_bits)


def _parts(count):
    """A compiled function of a kernel, a pointer and a size: pointers to that many elements for each operand."""

    @intrinsic
    def parts(typingctx, kernel, pointer, size):
        found = types.UniTuple(pointer, count(KERNELS[kernel.name]))

        def emit(context, builder, signature, args):
            _, first, size = args
            members = [builder.gep(first, [builder.mul(size, size.type(k))]) for k in range(found.count)]
            return context.make_tuple(builder, found, members)

        return found(kernel, pointer, size), emit

    return parts


_read, _written = _parts(lambda kernel: kernel.num_inputs), _parts(lambda kernel: kernel.num_outputs)


def _deviate(kernel, words, count, normals):
    """Compute normal deviates from `count` pairs of words, if the kernel draws normal deviates."""


def _fetch(kernel, mask, period, repeat, run, first, values, count):
    """Write the mask's values for `count` elements from index `first` on to values, if the kernel reads a mask."""


def _prefetched(kernel, inputs, apart, first, count):
    """Prefetch elements first to first + count of each input. Neighbours are `apart` elements apart in memory."""


def _further(kernel, arrays):
    """Pointers to elements that are prefetched while an array's first element is processed, and how far apart."""


def _next(kernel, arrays, steps, row, column, next_row, next_column, k, rows, columns):
    """As `_further`, for row number k of a rectangle. next_row and next_column: the corner of the next rectangle."""


def _load(kernel, inputs, steps, row, column, buffers, width, rows, columns):
    """Copy a rectangle of each input to its buffer, unless the input is contiguous along its rows."""


def _store(kernel, buffers, width, outputs, steps, row, column, rows, columns):
    """Copy the buffer of each output to a rectangle of the output, unless it is contiguous along its rows."""


def _lines(arrays, steps, row, column, buffers, first):
    """Pointers to a row of a rectangle of each array, or of its buffer."""


def _pack(kernel, flags, others, first, count, is_last):
    """Write the bits of a block, if the kernel writes bits: see `bits.pack`."""


def _repeat_rows(kernel, others, tiles, columns, column, before):
    """Fill the buffers of rows with repetitions, beginning with a column, unless they begin with it from before."""


def _add_up(kernel, terms, others, columns, first, count):
    """Add a block's results to the partial sums, if the kernel has any."""


def _apply(
    kernel,
    drawn,
    limit,
    scale,
    shift,
    inputs,
    tiles,
    results,
    outputs,
    others,
    flags,
    terms,
    more,
    first,
    count,
    streamed,
    begin,
    end,
):
    """Run the formula over a block.

    others: the rows, the operands of bits and the sums. flags: the buffers of the bits that are read and of those that
    are written. terms: the buffers of results that are added up. more: whether they have the results of blocks before,
    to which those of this block are added. begin, end: the range that consecutive blocks write, see `memory.stream`.
    """


# Inlined like every other loop. A separate function would be optimised differently in the process that compiles it and
# in those that load it from the cache: multiplications and additions would be fused in different ways.
_overload = functools.partial(overload, jit_options={"forceinline": True, "no_cfunc_wrapper": True})


@_overload(_deviate)
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


@_overload(_fetch)
def _overload_fetch(kernel, mask, period, repeat, run, first, values, count):
    if not KERNELS[kernel.name].masked:  # as above
        return lambda kernel, mask, period, repeat, run, first, values, count: None
    return lambda kernel, mask, period, repeat, run, first, values, count: _gather(
        mask, period, repeat, run, first, values, count
    )


@_overload(_prefetched)
def _overload_prefetched(kernel, inputs, apart, first, count):
    lines = []
    for k in range(inputs.count):
        lines += [f"for i in range(first, first + count, max(1, line // max(1, abs(apart[{k}])))):"]
        lines += [f"    prefetch(at(inputs[{k}], i * apart[{k}]))"]
    names = {"prefetch": _prefetch, "at": at, "line": _line(KERNELS[kernel.name])}
    return _function("kernel, inputs, apart, first, count", lines or ["pass"], names)


@_overload(_further)
def _overload_further(kernel, arrays):
    pointers = [f"at(arrays[{k}], ahead)" for k in range(arrays.count)]
    return _pairs(kernel, "kernel, arrays", pointers, ["1"] * arrays.count)


@_overload(_next)
def _overload_next(kernel, arrays, steps, row, column, next_row, next_column, k, rows, columns):
    pointers, apart = [], []
    for j in range(arrays.count):
        down, across = f"steps[{j}][0]", f"steps[{j}][1]"
        same_row = f"(row + k) * {down} + column + ahead"
        # The next rectangle, column by column: as many elements per row of this rectangle as the row has.
        by_columns = f"next_row + k * columns % rows + (next_column + k * columns // rows) * {across}"
        by_rows = f"(next_row + k) * {down} + next_column * {across}"
        index = f"{same_row} if {across} == 1 else {by_columns} if {down} == 1 else {by_rows}"
        pointers += [f"at(arrays[{j}], {index})"]
        apart += [f"1 if {down} == 1 else {across}"]
    arguments = "kernel, arrays, steps, row, column, next_row, next_column, k, rows, columns"
    return _pairs(kernel, arguments, pointers, apart)


def _pairs(kernel, arguments, *parts):
    """A function that returns two tuples of the expressions in two lists."""
    names = {"at": at, "ahead": SHAPE.ahead // LINE * _line(KERNELS[kernel.name])}
    tuples = [f"({''.join(f'{part}, ' for part in expressions)})" for expressions in parts]
    return _function(arguments, [f"return {', '.join(tuples)}"], names)


@_overload(_load)
def _overload_load(kernel, inputs, steps, row, column, buffers, width, rows, columns):
    lines = []
    for k in range(inputs.count):
        lines += [f"if steps[{k}][1] != 1:"]
        lines += [f"    load(inputs[{k}], steps[{k}], row, column, buffers[{k}], width, rows, columns)"]
    arguments = "kernel, inputs, steps, row, column, buffers, width, rows, columns"
    return _function(arguments, lines or ["pass"], {"load": blocks.load})


@_overload(_store)
def _overload_store(kernel, buffers, width, outputs, steps, row, column, rows, columns):
    lines = []
    for k in range(outputs.count):
        lines += [f"if steps[{k}][1] != 1:"]
        lines += [f"    store(buffers[{k}], width, outputs[{k}], steps[{k}], row, column, rows, columns)"]
    arguments = "kernel, buffers, width, outputs, steps, row, column, rows, columns"
    return _function(arguments, lines, {"store": blocks.store})


@_overload(_lines)
def _overload_lines(arrays, steps, row, column, buffers, first):
    pointers = [
        f"at(arrays[{k}], row * steps[{k}][0] + column) if steps[{k}][1] == 1 else at(buffers[{k}], first), "
        for k in range(arrays.count)
    ]
    return _function("arrays, steps, row, column, buffers, first", [f"return ({''.join(pointers)})"], {"at": at})


def _function(arguments, lines, names):
    """A function with these arguments and lines. It names each operand: loops over tuples take longer to compile."""
    text = "\n    ".join([f"def function({arguments}):", *lines])
    exec(text, names)  # noqa: S102  (the text above)
    return names["function"]


@_overload(_pack)
def _overload_pack(kernel, flags, others, first, count, is_last):
    lines = ["pack(flags[1], others[-1], first, count, is_last)"] * KERNELS[kernel.name].writes_bits
    return _function("kernel, flags, others, first, count, is_last", lines or ["pass"], {"pack": bits.pack})


@_overload(_repeat_rows)
def _overload_repeat_rows(kernel, others, tiles, columns, column, before):
    # The whole buffer, whatever the size of the block: then equal blocks that follow each other fill it once.
    lines = [f"    tile(others[{k}], columns, column, tiles[{k}], {BLOCK})" for k in range(tiles.count)]
    lines = ["if column != before:", *lines] if lines else ["pass"]
    return _function("kernel, others, tiles, columns, column, before", lines, {"tile": _tile})


@_overload(_add_up)
def _overload_add_up(kernel, terms, others, columns, first, count):
    lines = [f"add(terms[{k}], others[{k - terms.count}], columns, first, count)" for k in range(terms.count)]
    return _function("kernel, terms, others, columns, first, count", lines or ["pass"], {"add": _add_rows})


@_overload(_apply)
def _overload_apply(
    kernel, drawn, limit, scale, shift, inputs, tiles, results, outputs, others, flags, terms, more,
    first, count, streamed, begin, end
):  # fmt: skip
    of = KERNELS[kernel.name]
    formula = compiled(of.formula, getattr(np, of.real), host_math.HOST_MATH[of.real], inner())
    names = {"formula": formula, "real": getattr(np, of.real), "wide": _wide}
    names |= {"at": at, "address": memory.address, "copy": copy, "stream": memory.stream}
    names |= {"unpack": bits.unpack, "uint8": np.uint8}
    read, written = of.dtypes
    names |= {f"widen{k}": _CONVERSIONS[dtype][0] for k, dtype in enumerate(read)}
    names |= {f"narrow{k}": _CONVERSIONS[dtype][1] for k, dtype in enumerate(written)}
    names |= {f"real{k}": np.float64 if dtype == "float64" else np.float32 for k, dtype in enumerate(written)}
    drawn = "drawn[i] > limit" if of.bits else "True"
    drawn = "real(drawn[i])" if not of.keeps else "drawn[i] != 0" if of.masked else drawn
    inputs, outputs, sums = range(of.num_inputs), range(of.num_outputs), range(of.num_sums)
    elements = [f"real(widen{k}(a{k}[i]))" for k in range(len(read))]
    arguments = [drawn, "scale", "shift", *elements, *["given[i] != 0"] * of.reads_bits]
    values = ", ".join(f"value{k}" for k in range(len(of.outputs)))
    # Where a result replaces an input in place, it goes to a buffer first: otherwise LLVM's loop would not vectorise.
    replaced = [f"address(a{j}) == address(at(outputs[{k}], first))" for j in inputs for k in outputs]
    given = f"unpack(others[{of.num_rows}], flags[0], first, count)", "given = at(flags[0], first & 7)"
    lines = [
        "wide()",
        *given * of.reads_bits,
        *["marked = at(flags[1], first & 7)"] * of.writes_bits,
        *(f"a{k} = at(inputs[{k}], first)" for k in inputs),
        *(f"a{of.num_inputs + k} = tiles[{k}]" for k in range(of.num_rows)),
        *(f"term{k} = terms[{k}]" for k in sums),
        f"buffered = {' or '.join(['streamed', *replaced])}",
        *(f"y{k} = at(results[{k}], {LINE}) if buffered else at(outputs[{k}], first)" for k in outputs),
        "for i in range(count):",
        f"    {values} = formula({', '.join(arguments)})",
        *(f"    y{k}[i] = narrow{k}(real{k}(value{k}))" for k in outputs),
        *(f"    term{k}[i] = value{len(outputs) + k} + (term{k}[i] if more else real(0))" for k in sums),
        *[f"    marked[i] = uint8(value{len(outputs)} != 0)"] * of.writes_bits,
    ]
    if outputs:
        lines += ["if streamed:", *(f"    stream(y{k}, outputs[{k}], first, count, begin, end)" for k in outputs)]
        lines += ["elif buffered:", *(f"    copy(y{k}, at(outputs[{k}], first), count)" for k in outputs)]
    operands = "inputs, tiles, results, outputs, others, flags, terms, more"
    arguments = f"kernel, drawn, limit, scale, shift, {operands}, first, count, streamed, begin, end"
    return _function(arguments, lines, names)


def numba_dtype(dtype):
    return from_dtype(np.dtype(dtype))


def _drawing(count):
    """A compiled function that writes the words of `count` chunks."""
    vector = vectors.Vector(64, count, SHAPE.lane)
    consecutive, equal = vectors.consecutive(vector, 1), vectors.consecutive(vector, 0)

    @inner()
    def draw_chunks(words, chunk, seed, call):
        vectors.store_chunks(words, *_draw(seed, equal(call), consecutive(chunk)))

    return draw_chunks


_draw_group, _draw_small = _drawing(GROUP), _drawing(SMALL)


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
def _add_rows(terms, sums, columns, first, count):
    """Add the terms of elements first to first + count to the partial sums of their columns."""
    row = first // columns
    column, done = first - row * columns, 0
    while done < count:
        more = min(columns - column, count - done)
        source, target = at(terms, done), at(sums, row // ROWS * columns + column)
        if row % ROWS == 0:
            copy(source, target, more)
        else:
            for i in range(more):
                target[i] += source[i]
        done, row, column = done + more, row + 1, 0


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


@inner()
def _random(kernel, words, values, mask, inputs, apart, first, m, count, seed, call, period, repeat, run):
    """Draw or gather the random values of `count` elements, from element m of the mask on. Meanwhile, prefetch.

    The values begin with element number m % lanes of the buffer if they are drawn.
    """
    if _draws(kernel):
        lanes = _lanes(kernel)
        chunk, skip = m // np.uint64(lanes), np.int64(m % np.uint64(lanes))
        chunks, done = (skip + count + lanes - 1) // lanes, 0
        while chunks - done > GROUP // 2:
            _prefetched(kernel, inputs, apart, first + done * lanes, GROUP * lanes)
            _draw_group(at(words, 2 * done), np.uint64(chunk + np.uint64(done)), seed, call)
            done += GROUP
        while done < chunks:
            _prefetched(kernel, inputs, apart, first + done * lanes, SMALL * lanes)
            _draw_small(at(words, 2 * done), np.uint64(chunk + np.uint64(done)), seed, call)
            done += SMALL
        _deviate(kernel, words, 2 * done, values)
    else:
        _prefetched(kernel, inputs, apart, first, count)
        _fetch(kernel, mask, period, repeat, run, np.int64(m), values, count)


# fmt: off
def run(
    kernel, limit, scale, shift, inputs, outputs, others, columns, mask, lo, hi, streamed,
    start, seed, call, row, pitch, period, repeat, run
):
    """Compute outputs[lo:hi] of contiguous arrays. lo is a multiple of 8, and of ROWS rows if the kernel has sums.

    others: the rows, the operands of bits and the sums. columns: the number of elements of a row.
    """
    # fmt: on
    lanes = _lanes(kernel)
    sources, targets, (stored,) = memory.pointers(inputs), memory.pointers(outputs), memory.pointers((mask,))
    words, others, flags = _words(kernel), memory.pointers(others), (_given(kernel), _marked(kernel))
    values, results, tiles, terms = _values(kernel, words), _results(kernel), _tiles(kernel), _terms(kernel)
    further, apart = _further(kernel, sources)
    first, before, repeated = lo, 0, -1
    group, added, held = ROWS * columns, lo, 0  # the terms have the results of `held` elements from `added` on
    while first < hi:
        index = first // row
        m = np.uint64(start + np.uint64(index) * pitch + np.uint64(first - index * row))
        skip = np.int64(m % np.uint64(lanes)) if _draws(kernel) else 0
        # What is drawn for a block fits into the buffer, and the next block begins with a chunk. Where a block ends
        # must not depend on an address: LLVM may fuse products and sums in another way for the last elements, and
        # equal calls must have equal results.
        count = min(BLOCK - skip, hi - first, (index + 1) * row - first)
        more = False
        if _adds(kernel):
            # Where groups begin and how they are divided into blocks must not depend on the slice either. Blocks of
            # the same columns are added up element by element, which needs no loop of its own.
            count = min(count, group - first % group)
            more = held == count and first % group != 0 and (first - added) % columns == 0
            if not more:
                _add_up(kernel, terms, others, columns, added, held)
                added = first
            held = count
        _random(kernel, words, values, stored, further, apart, first, m, count, seed, call, period, repeat, run)
        # Only now, because the flags of the block before are still in the processor's store buffer when it ends.
        _pack(kernel, flags, others, first - before, before, False)
        column = first % columns
        _repeat_rows(kernel, others, tiles, columns, column, repeated)
        _apply(
            kernel, at(values, skip), limit, scale, shift, sources, tiles, results, targets, others, flags, terms, more,
            first, count, streamed, lo, hi,
        )  # fmt: skip
        first, before, repeated = first + count, count, column
    _pack(kernel, flags, others, first - before, before, True)
    _add_up(kernel, terms, others, columns, added, held)


BLOCK_ROWS, BLOCK_COLUMNS = 256, 512  # of a block whose rows lie across those of the mask: it fits in the L2 cache
STRIP = 16  # the mask's rows that are transposed at a time


@intrinsic
def _strip(typingctx, kernel, words):
    """The buffer for STRIP rows of random values, BLOCK_ROWS in each."""
    return memory.buffer(numba_dtype(drawn_dtype(KERNELS[kernel.name])), STRIP * BLOCK_ROWS, kernel, words)


# fmt: off
@inner()
def _random_across(
    kernel, words, values, strip, randoms, padded, mask, inputs, steps, read,
    r, c, rows, columns, start, seed, call, pitch, period, repeat, run
):
    """Draw or gather the random values of a block whose rows lie across those of the mask. Prefetch its inputs."""
    # fmt: on
    lanes, (_, apart) = _lanes(kernel), _further(kernel, inputs)
    row, column = r, 0  # the part of the block to prefetch next
    for j in range(0, columns, STRIP):
        more = min(STRIP, columns - j)
        for k in range(more):
            _prefetched(kernel, _lines(inputs, steps, row, c + column, read, 0), apart, 0, rows)
            column += rows
            if column >= columns:
                row, column = row + 1, column - columns
            m = np.uint64(start + np.uint64(c + j + k) * pitch + np.uint64(r))
            skip = np.int64(m % np.uint64(lanes)) if _draws(kernel) else 0
            _random(kernel, words, values, mask, (), (), 0, m, rows, seed, call, period, repeat, run)
            copy(at(values, skip), at(strip, k * BLOCK_ROWS), BLOCK_ROWS)  # a constant number: without a call
        blocks.transpose(strip, BLOCK_ROWS, at(randoms, j), padded, rows, more, True)


# fmt: off
def run_rows(
    kernel, limit, scale, shift, inputs, outputs, mask, buffers, randoms, height, width, across, streamed,
    start, seed, call, pitch, period, repeat, run
):
    """Compute two-dimensional arrays with any strides, row by row, in blocks of a height and a width.

    Element (r, c) has the index start + r * pitch + c in the mask. If the rows lie across those of the mask, it is
    start + c * pitch + r. Operands that are not contiguous along the rows are copied to buffers and back. buffers has
    memory for a block of each operand, and randoms for a block of the mask.
    """
    # fmt: on
    lanes, padded = _lanes(kernel), width + LINE  # padded: so that rows begin in different sets of the L1 cache
    rows, columns = outputs[0].shape
    sources, targets, (stored,) = memory.pointers(inputs), memory.pointers(outputs), memory.pointers((mask,))
    source_steps, target_steps = memory.steps(inputs), memory.steps(outputs)
    (buffer,), (turned,) = memory.pointers((buffers,)), memory.pointers((randoms,))
    read, written = _read(kernel, buffer, height * width), _written(kernel, buffer, height * width)
    words = _words(kernel)
    values, results, strip = _values(kernel, words), _results(kernel), _strip(kernel, words)
    for r in range(0, rows, height):
        h = min(height, rows - r)
        for c in range(0, columns, width):
            w = min(width, columns - c)
            # Consecutive blocks continue a row only if they have one row.
            begin, end = (-c, columns - c) if height == 1 else (0, w)
            next_r, next_c = (r, c + width) if c + width < columns else (r + height, 0)
            _load(kernel, sources, source_steps, r, c, read, width, h, w)
            if across and _is_random(kernel):
                _random_across(
                    kernel, words, values, strip, turned, padded, stored, sources, source_steps, read,
                    r, c, h, w, start, seed, call, pitch, period, repeat, run,
                )  # fmt: skip
            for k in range(h):
                ins = _lines(sources, source_steps, r + k, c, read, k * width)
                outs = _lines(targets, target_steps, r + k, c, written, k * width)
                drawn = at(turned, k * padded)
                if not across:
                    m = np.uint64(start + np.uint64(r + k) * pitch + np.uint64(c))
                    skip = np.int64(m % np.uint64(lanes)) if _draws(kernel) else 0
                    further, apart = _next(kernel, sources, source_steps, r, c, next_r, next_c, k, h, w)
                    _random(kernel, words, values, stored, further, apart, 0, m, w, seed, call, period, repeat, run)
                    drawn = at(values, skip)
                _apply(
                    kernel, drawn, limit, scale, shift, ins, (), results, outs, (), (), (), False,
                    0, w, streamed, begin, end,
                )  # fmt: skip
            _store(kernel, written, width, targets, target_steps, r, c, h, w)


@jit()
def draw_fields(words, chunk, seed, call):
    """Fill an array of unsigned 64-bit integers, a multiple of 2 * GROUP, with the words of consecutive chunks."""
    (target,) = memory.pointers((words,))
    for done in range(0, words.size, 2 * GROUP):
        _draw_group(at(target, done), np.uint64(chunk + np.uint64(done // 2)), seed, call)
