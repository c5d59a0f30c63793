"""Numba CUDA kernels with partial sums: see `gpudrop.kernels.spec.Slot`.

A thread processes a chunk of columns in the rows of a group, one row after the other, and adds up the results in
registers. If the rows consist of whole chunks of the mask, it accesses the chunks as `map` does. Otherwise it processes
one element at a time. So it does if arrays are not contiguous or not aligned.

`../cupy_elementwise/sums.cuh` is the same loop for CuPy, with the same names. It says which part differs.
"""

import numpy as np

from gpudrop.kernels.chunks import ROWS, chunks
from gpudrop.kernels.numba_cuda.map import NOWHERE, chunk_functions
from gpudrop.kernels.numba_cuda.operands import (
    all_threads,
    device,
    entry,
    functions_of,
    itself,
    operands_of,
    this_thread,
)


def body(kernel, contiguous, native, as_array=itself, as_real=itself):
    """The kernel as a Python function, as `map.body` makes it."""
    size, _, _, parts, *_ = chunks(kernel)
    masked, windowed, step = kernel.masked, kernel.window, size // parts
    chunk, group_rows = np.uint64(size), np.int64(ROWS)
    f = functions_of(kernel)
    locate, first_turn, next_turn = f["locate"], f["first_turn"], f["next_turn"]
    of = operands_of(kernel, contiguous, native, as_array, f)
    load, store, load_rows, read_bits = of["load"], of["store"], of["load_rows"], of["read_bits"]
    aligned, aligned_rows, clear_sums, write_sums = (
        of["aligned"], of["aligned_rows"], of["clear_sums"], of["write_sums"]
    )  # fmt: skip
    new_lanes, new_results, compute_one = of["new_lanes"], of["new_results"], of["compute_one"]
    words_of, next_drawn, compute_chunk = chunk_functions(kernel, f, of)

    @device
    def compute_ends(n, seed, call, origin, at, inputs, outputs, results, e, column, left):
        """Compute the first `left` elements of a chunk of the array, which may touch two chunks of the mask."""
        _, _, _, _, scale, shift, _, _ = n
        number, skip = np.uint64(origin // chunk), np.uint32(origin % chunk)
        words, first_lane = words_of(seed, call, number)
        later, later_lane = words, first_lane
        if np.int64(skip) + left > size:
            later, later_lane = words_of(seed, call, np.uint64(number + np.uint64(1)))
        for j in range(size):
            if j < left:
                lane = np.uint32(skip + np.uint32(j))
                if lane < np.uint32(size):
                    own, lane = words, np.uint32(first_lane + lane)
                else:
                    own, lane = later, np.uint32(later_lane + np.uint32(lane - np.uint32(size)))
                r, at = next_drawn(n, own, lane, at)
                compute_one(r, scale, shift, inputs, outputs, results, e + j, column + j, j)

    @device
    def run_chunks(inputs, outputs, n, count, turns, columns, rows, pitch, start, seed, call):
        _, period, repeat, run, _, _, _, row = n
        lanes, results = new_lanes(), new_results()
        straight, wide_rows = False, False
        if contiguous:
            straight = columns % size == 0 and start % chunk == 0 and aligned(inputs, outputs, np.int64(0))
            if windowed:
                straight = straight and pitch % chunk == 0
            wide_rows = straight and aligned_rows(inputs, np.int64(0), columns)
        threads, i = all_threads(), this_thread()
        here, further = first_turn(i, turns), first_turn(threads, turns)
        while i < count:
            first, column = here[0] * group_rows, here[1] * size
            length, left = min(rows - first, group_rows), min(columns - column, np.int64(size))
            e, in_window, in_mask = first * columns + column, NOWHERE, NOWHERE
            if windowed:
                in_window = first_turn(e, row)
            clear_sums(results)
            if straight:
                load_rows(inputs, column, np.int64(step), columns, wide_rows, lanes)
            for _ in range(length):
                origin = np.uint64(start + np.uint64(e))
                if windowed:
                    origin = np.uint64(np.uint64(start + np.uint64(in_window[0]) * pitch) + np.uint64(in_window[1]))
                if masked:
                    in_mask = locate(e, period, repeat, run)
                if straight:
                    load(inputs, e, np.int64(step), lanes)
                    bits = read_bits(inputs, e, np.int64(step))
                    words, first_lane = words_of(seed, call, np.uint64(origin // chunk))
                    compute_chunk(n, words, first_lane, in_mask, lanes, bits, results)
                    store(results, outputs, e, np.int64(step))
                else:
                    compute_ends(n, seed, call, origin, in_mask, inputs, outputs, results, e, column, left)
                e += columns
                if windowed:
                    in_window = next_turn(in_window, (np.int64(0), columns, np.int64(0), np.int64(0)), row)
            write_sums(results, outputs, here[0] * columns + column, left)
            i += threads
            here = next_turn(here, further, turns)

    return entry(kernel, run_chunks, as_array, as_real)
