"""Numba CUDA kernels: one grid-stride loop, compiled for each kernel.

A thread processes one chunk at a time: the elements of one Philox call. It loads the chunk with 16-byte accesses, and
draws while the loads run. It applies the element formula in registers, and stores the results with 16-byte accesses.
The two ends of an array are processed one element at a time by the same formula. So are arrays that are not contiguous
or not aligned. If the kernel reads a mask, a thread's location in it advances with the chunks.

`../cupy_elementwise/map.cuh` is the same loop for CuPy, with the same names.
"""

import numpy as np

from gpudrop.kernels.chunks import WARP, chunks
from gpudrop.kernels.numba_cuda.operands import (
    all_threads,
    device,
    entry,
    functions_of,
    itself,
    operands_of,
    this_thread,
)

NOWHERE, NO_WORDS = (np.int64(0),) * 4, (np.uint32(0),) * 4


def chunk_functions(kernel, formulas, of):
    """The functions words_of, next_drawn and compute_chunk, which both kinds of kernels use.

    compute_chunk computes a chunk in registers; all of its elements are inside the arrays. It takes and returns the
    chunk's bits. n contains kernel arguments, as `operands.entry` passes them.
    """
    size, shares, masked, draws = chunks(kernel).size, np.uint64(chunks(kernel).shares), kernel.masked, kernel.bits > 0
    bits_of_mask = masked and kernel.keeps
    draw, drawn_of, index_of, next_element = (
        formulas["draw"], formulas["drawn_of"], formulas["index_of"], formulas["next_element"]
    )  # fmt: skip
    chunk_bits, read, compute = formulas["chunk_bits"], truth if kernel.keeps else number, of["compute"]

    @device
    def words_of(seed, call, number):
        """The random words of a chunk of the mask, and the lane of its first element."""
        if draws:
            first_lane = np.uint32(np.uint32(number % shares) * np.uint32(size))
            return draw(seed, call, np.uint64(number // shares)), first_lane
        return NO_WORDS, np.uint32(0)

    @device
    def next_drawn(n, words, lane, at):
        """The random value of the next element of a chunk, and the location of the element after it."""
        mask, period, repeat, run, _, _, limit, _ = n
        if masked:
            return read(mask, index_of(at)), next_element(at, period, repeat, run)
        return drawn_of(words, lane, limit), at

    @device
    def compute_chunk(n, words, first_lane, at, lanes, bits, results):
        mask, period, repeat, run, scale, shift, _, _ = n
        marks = np.uint32(0)
        keeps = chunk_bits(mask, at, period, repeat, run) if bits_of_mask else np.uint32(0)
        for j in range(size):
            if bits_of_mask:
                r = (keeps >> np.uint32(j)) & np.uint32(1) != 0
            else:
                r, at = next_drawn(n, words, np.uint32(first_lane + np.uint32(j)), at)
            marks = np.uint32(marks | compute(r, scale, shift, lanes, bits, results, j))
        return marks

    return words_of, next_drawn, compute_chunk


@device
def truth(mask, i):
    return mask[i] != np.uint8(0)


@device
def number(mask, i):
    return mask[i]


def body(kernel, contiguous, native, as_array=itself, as_real=itself):
    """The kernel as a Python function of its inputs, its outputs, the mask, its count, the stream and the scalars.

    contiguous: whether the operands are flat and contiguous; otherwise `.flat` maps logical indices to elements.
    native: whether the GPU has an instruction that converts to bfloat16, as from compute capability 8 on.
    as_array, as_real: functions that convert arguments to arrays, and to scale and shift.
    """
    size, _, _, parts, exchanges, cooperating, _ = chunks(kernel)
    masked, windowed, has_rows, step = kernel.masked, kernel.window, kernel.num_rows > 0, size // parts
    exchanges, cooperating = exchanges and contiguous, cooperating and contiguous
    # Whether a warp that does not work together computes one element at a time. With rows, a thread keeps the column at
    # which it loads while its warp works together, and no other.
    whole_warps = kernel.writes_bits or (exchanges and has_rows)
    f = functions_of(kernel)
    own_chunk, exchange, locate, advance = f["own_chunk"], f["exchange"], f["locate"], f["advance"]
    first_turn, next_turn, next_column, remainder = f["first_turn"], f["next_turn"], f["next_column"], f["remainder"]
    column_of_chunk, column_before = f["column_of_chunk"], f["column_before"]
    of = operands_of(kernel, contiguous, native, as_array, f)
    load, store, aligned, compute_one = of["load"], of["store"], of["aligned"], of["compute_one"]
    load_rows, aligned_rows, read_bits, write_bits = (
        of["load_rows"], of["aligned_rows"], of["read_bits"], of["write_bits"]
    )  # fmt: skip
    new_lanes, new_results = of["new_lanes"], of["new_results"]
    words_of, next_drawn, compute_chunk = chunk_functions(kernel, f, of)

    @device
    def begins(straight, row):
        """The number of indices at which a whole chunk may begin. A negative index is larger, as an unsigned number."""
        return np.uint64(row - size + 1 if straight and row >= size else 0)

    @device
    def compute_ends(n, words, first_lane, at, inputs, outputs, results, begin, inner, column, columns):
        """Compute those elements of a chunk that are inside a row of the arrays, one at a time."""
        _, _, _, _, scale, shift, _, row = n
        for j in range(size):
            if inner + j >= 0 and inner + j < row:
                r, at = next_drawn(n, words, np.uint32(first_lane + np.uint32(j)), at)
                compute_one(r, scale, shift, inputs, outputs, results, begin + inner + j, column, j)
            if has_rows:
                column = next_column(column, np.int64(1), columns)

    @device
    def run_chunks(inputs, outputs, n, count, turns, columns, rows, pitch, start, seed, call):
        _, period, repeat, run, _, _, _, row = n
        lanes, results = new_lanes(), new_results()
        threads, i = all_threads(), this_thread()
        lane = i % WARP if cooperating else np.int64(0)
        to_own = own_chunk(lane) - lane if exchanges else np.int64(0)  # from i to the chunk that this thread draws
        here, further = (np.int64(0), i, np.int64(0), np.int64(0)), (np.int64(0), threads, np.int64(0), np.int64(0))
        if windowed:
            here, further = first_turn(i, turns), first_turn(threads, turns)
        in_mask, further_in_mask = NOWHERE, NOWHERE
        if masked:
            in_mask = locate(i * size, period, repeat, run)
            further_in_mask = locate(threads * size, period, repeat, run)
        origin, begin = start, np.int64(0)
        skip, number = np.int64(origin % np.uint64(size)), np.uint64(origin // np.uint64(size))
        straight = contiguous
        if contiguous and not windowed:
            straight = aligned(inputs, outputs, -skip)
        wholes = begins(straight, row)
        # The column of the first element that the thread loads, if the chunks of a window skipped none. Distances in
        # columns: to its next chunk, from the end of a window's row to the next row, from one part of a chunk to the
        # next, and to the chunk whose words it draws.
        column, further_columns, to_row, apart_columns = NOWHERE
        own_columns, wide_rows = np.int64(0), False
        if has_rows:
            apart_columns = remainder(np.int64(WARP * step if exchanges else step), columns)
            if windowed:
                column = (here[0] * row + here[1] * size) % columns
                further_columns = (further[0] * row + further[1] * size) % columns
                to_row = (row + columns - turns * size % columns) % columns
            else:
                column = column_before(column_of_chunk(i - lane if exchanges else i, columns), skip, columns)
                further_columns = column_of_chunk(threads, columns)
            if exchanges:
                column = next_column(column, remainder(lane * step, columns), columns)
                own_columns = column_before(remainder((lane + to_own) * size, columns), lane * step, columns)
            if not windowed:
                wide_rows = aligned_rows(inputs, column, columns)
        while i < count:
            if windowed:
                origin = start + np.uint64(here[0]) * pitch
                begin = here[0] * row
                skip, number = np.int64(origin % np.uint64(size)), np.uint64(origin // np.uint64(size))
                if contiguous:
                    straight = aligned(inputs, outputs, begin - skip)
                    wholes = begins(straight, row)
            turn = here[1] if windowed else i
            own = turn + to_own
            inner = own * size - skip
            whole = np.uint64(inner) < wholes
            m, apart, together = begin + inner, np.int64(step), False
            if cooperating:
                tile = (turn - lane) * size - skip
                together = straight and tile >= 0 and tile + WARP * size <= row
                if exchanges and (together or has_rows):  # with rows, other warps do not use m
                    m, apart = begin + tile + lane * step, np.int64(WARP * step)
            if whole_warps:
                whole = together
            first_column = column
            if has_rows and windowed:
                first_column = column_before(column, skip, columns)
                wide_rows = aligned_rows(inputs, first_column, columns)
            bits = np.uint32(0)
            if whole:
                load(inputs, m, apart, lanes)
                if has_rows:
                    load_rows(inputs, first_column, apart_columns, columns, wide_rows, lanes)
                bits = read_bits(inputs, m, apart)
            words, first_lane = words_of(seed, call, np.uint64(number + np.uint64(own)))
            if whole:
                if exchanges and together:
                    words = exchange(words, np.uint32(lane))
                bits = compute_chunk(n, words, first_lane, in_mask, lanes, bits, results)
                store(results, outputs, m, apart)
                write_bits(bits, outputs, m, apart, lane)
            else:
                if has_rows and exchanges:
                    first_column = next_column(column, own_columns, columns)
                compute_ends(
                    n, words, first_lane, in_mask, inputs, outputs, results, begin, inner, first_column, columns
                )
            if masked:
                in_mask = advance(in_mask, further_in_mask, period, repeat, run)
            if has_rows:
                column = next_column(column, further_columns, columns)
                if windowed and here[1] + further[1] >= turns:
                    column = next_column(column, to_row, columns)
            i += threads
            if windowed:
                here = next_turn(here, further, turns)

    return entry(kernel, run_chunks, as_array, as_real)
