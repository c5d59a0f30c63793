"""CPU kernels: one loop that Numba compiles for each kernel, divided among threads in slices."""

import contextlib

import numba
import numpy as np

from gpudrop.kernels import threads
from gpudrop.kernels.cpu import pages, processors, tiles
from gpudrop.kernels.cpu.compiling import entry, when_compiled
from gpudrop.kernels.cpu.map import GROUP, ROWS, draw_fields, drawn_dtype
from gpudrop.kernels.cpu.processors import SHAPE
from gpudrop.kernels.host_math import jit


def unavailable():
    if numba.config.DISABLE_JIT:
        return "NUMBA_DISABLE_JIT is set, but CPU kernels must be compiled: unset it"
    return processors.unknown()


def devices():
    count = threads.available()
    return [f"{count} CPU thread{'s' * (count > 1)}"]


def on_device(number):
    return contextlib.nullcontext()


def random_bytes(stream, chunk, count):
    """The 16 * count random bytes of `count` chunks of a stream, beginning with chunk number `chunk`."""
    words = np.empty(2 * GROUP * -(-count // GROUP), np.uint64)
    draw_fields(words, np.uint64(chunk), np.uint64(stream.seed), np.uint64(stream.call))
    return words[: 2 * count].astype("<u8", copy=False).tobytes()


def saves_bits(array):
    # Measured: an Intel Xeon with AVX-512, two threads. With less than this, saving bits takes up to 1.1 times as long.
    return array.nbytes >= 1 << 20 and array.flags.c_contiguous


def launch(kernel, inputs, outputs, draw):
    compiled, others, operands = entry(kernel), (), (inputs, outputs)
    read, written = kernel.stored_dtypes
    seed, call, start, limit, scale, shift, row, pitch = draw
    mask, period, repeat, share = None, 1, 1, 1
    if kernel.masked:
        *inputs, (mask, period, repeat, share, kept) = inputs
        mask = mask.view(np.uint8) if kernel.keeps else mask
        start = pitch = 0
    if len(inputs) > kernel.num_inputs:
        inputs, others = inputs[: kernel.num_inputs], tuple(inputs[kernel.num_inputs :])
        if kernel.num_rows:
            dtypes = (*read[kernel.num_inputs :], np.dtype(np.uint8))
            others = tuple([array.view(dtype) for array, dtype in zip(others, dtypes, strict=False)])
    if len(outputs) > kernel.num_outputs:
        outputs, others = outputs[: kernel.num_outputs], (*others, *outputs[kernel.num_outputs :])
        if kernel.num_sums:
            others = (*others[: -kernel.num_sums], *[sums.reshape(-1) for sums in others[-kernel.num_sums :]])
    full = (outputs or inputs)[0]
    size, columns = full.size, full.shape[-1] if kernel.by_columns else 1
    if kernel.counted:
        scale = size / max(1, int(kept[0]))
    sources, targets, contiguous = (), (), True  # loops, because they are faster than comprehensions here
    for array, dtype in zip(inputs, read, strict=False):
        flags = array.flags
        contiguous = contiguous and flags.c_contiguous and flags.aligned
        sources += (array if array.dtype is dtype else array.view(dtype),)
    for out, dtype in zip(outputs, written, strict=True):
        contiguous = contiguous and out.flags.carray
        targets += (out if out.dtype is dtype else out.view(dtype),)
    if not contiguous and (others or kernel.mixed):
        _launch_on_copies(kernel, *operands, draw)
        return
    any_array = (targets or sources)[0]
    streamed = 0 < SHAPE.streamed <= any_array.nbytes and _worth_streaming(sources, targets)
    if contiguous:
        if any_array.ndim != 1:
            sources, targets = tuple([a.reshape(-1) for a in sources]), tuple([a.reshape(-1) for a in targets])
            any_array = (targets or sources)[0]
        row, values = row if kernel.window else max(1, size), any_array if mask is None else mask
        numbers, unit = (streamed, start, seed, call, row, pitch, period, repeat, share), max(1, ROWS * columns)

        def part(lo, hi):
            if kernel.num_sums:  # whole groups of rows
                lo, hi = -(-lo // unit) * unit, min(-(-hi // unit) * unit, size)
            compiled(None, limit, scale, shift, sources, targets, others, columns, values, lo, hi, *numbers)

        threads.share_out(part, size)
        return

    def run(sources, targets, lo, hi, start, row, pitch):
        values, where = targets[0] if mask is None else mask, (start, seed, call, row, pitch, period, repeat, share)
        compiled(None, limit, scale, shift, sources, targets, (), 1, values, lo, hi, False, *where)

    def rows():
        run_rows = entry(kernel, True)

        def run(sources, targets, memory, height, width, across, start, pitch):
            values, where = memory[0] if mask is None else mask, (start, seed, call, pitch, period, repeat, share)
            in_rows = all(out.strides[1] == out.itemsize for out in targets)  # others are copied from a buffer
            block = *memory, height, width, across, streamed and in_rows
            run_rows(None, limit, scale, shift, sources, targets, values, *block, *where)

        return run

    if size:
        row = row if kernel.window else None
        tiles.compute(run, rows, drawn_dtype(kernel), sources, targets, start, row, pitch)


def _launch_on_copies(kernel, inputs, outputs, draw):
    """Compute a kernel for strided arrays whose tiles are not supported: other operands than full ones, or dtypes."""
    full, others = inputs[: kernel.num_inputs], inputs[kernel.num_inputs :]
    results = [np.empty(out.shape, out.dtype) for out in outputs[: kernel.num_outputs]]
    launch(kernel, [*(array.copy() for array in full), *others], [*results, *outputs[kernel.num_outputs :]], draw)
    for out, result in zip(outputs, results, strict=False):
        out[...] = result


def _worth_streaming(sources, targets):
    """Whether the caches need not hold the results: they replace no input, and their pages are not new.

    A new page is cleared in the cache.
    """
    return all(pages.exist(y) and not any(np.may_share_memory(x, y) for x in sources) for y in targets)


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
        when_compiled(lambda: part(0, 0))
    threads.share_out(part, mask.size)
    return np.array([sum(counts)], np.uint64)
