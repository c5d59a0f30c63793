"""How CUDA kernels divide elements into chunks, and which formulas they use. Numba and CuPy share this module."""

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy import uint32

from gpudrop.formulas import indexing, philox
from gpudrop.formulas.philox import Words

WARP = int(indexing.WARP)
ROWS = 32  # rows per partial sum: see `spec.Slot`
MAX_THREADS = 2**31  # `indexing.column_of_chunk` divides the number of a thread as a 32-bit integer


class Chunks(NamedTuple):
    """The work of a thread per iteration.

    Attributes
    ----------
    size : int
        Elements per chunk. If the kernel draws, a chunk has the elements of one Philox call, at most 64 bytes, because
        registers are few. Otherwise it has 16 bytes, or 32 bytes if a mask has to be located.
    shares : int
        Number of chunks that share a Philox call.
    width : int
        Bytes per memory access to an array of the kernel's dtype. Narrower arrays have narrower accesses.
    parts : int
        Memory accesses per chunk.
    exchanged : bool
        Whether the threads of a warp exchange random words. If each thread accessed its own chunk in several parts, an
        access of the warp would touch only every second or fourth 16 bytes. It would write half sectors. Instead, each
        access of a warp is contiguous: with n parts, access s of thread t is part t % n of chunk s * 32 / n + t // n.
        The threads exchange random words to match.
    together : bool
        Whether the threads of a warp work together: they exchange random words, or join their bits to words.
    group : int
        The number of neighbouring elements whose bits a thread reads or writes at once.
    """

    size: int
    shares: int
    width: int
    parts: int
    exchanged: bool
    together: bool
    group: int


@functools.cache
def chunks(kernel: Any) -> Chunks:
    itemsize = np.dtype(kernel.storage).itemsize  # the largest of all full operands
    if kernel.bits:
        size = min(philox.lanes(kernel.bits), 64 // itemsize)
        shares = philox.lanes(kernel.bits) // size
    else:
        size = min(16, 32 // itemsize) if kernel.masked and kernel.keeps else 16 // itemsize
        shares = 1
    parts = max(1, size * itemsize // 16)
    exchanged = parts in (2, 4) and kernel.bits > 0 and shares == 1 and not kernel.window
    # With sums, a thread adds up the columns of its own chunk only, and the chunks of a warp may be in several rows.
    exchanged = exchanged and not kernel.num_sums
    together = exchanged or (kernel.writes_bits and not kernel.window)
    return Chunks(
        size, shares, min(16, size * itemsize), parts, exchanged, together, size // parts if exchanged else size
    )


def formulas_of(kernel: Any) -> dict[str, Any]:
    """A kernel's formulas, under the names that both CUDA backends use."""
    size, _, _, parts, _, _, group = chunks(kernel)
    return {
        "element": kernel.formula,
        "draw": philox.draw,
        "drawn_of": _drawn_of(kernel.drawn if kernel.bits else None, kernel.bits),
        "locate": indexing.locate,
        "index_of": indexing.index_of,
        "advance": indexing.advance,
        "next_element": indexing.next_element,
        "chunk_bits": indexing.chunk_bits(size),
        "first_turn": indexing.first_turn,
        "next_turn": indexing.next_turn,
        "next_column": indexing.next_column,
        "remainder": indexing.remainder,
        "column_of_chunk": indexing.column_of_chunk(size),
        "column_before": indexing.column_before,
        "own_chunk": indexing.own_chunk(parts),
        "exchange": indexing.exchange(parts),
        "bits_of": indexing.bits_of(group),
        "bit_of": indexing.bits_of(1),
        "word_of": indexing.word_of(group),
    }


@functools.cache
def _drawn_of(drawn: str | None, bits: int) -> Any:
    """A formula that returns the random value of one lane of a chunk."""
    width = uint32(bits)

    def keep(words: Words, lane: uint32, limit: uint32) -> bool:
        return philox.keep(words, lane, width, limit)

    def field(words: Words, lane: uint32, limit: uint32) -> float:
        return float(philox.field(words, lane, width))

    def normal(words: Words, lane: uint32, limit: uint32) -> float:
        return philox.normal(words, lane)

    def nothing(words: Words, lane: uint32, limit: uint32) -> bool:
        return True

    return {"keep": keep, "field": field, "normal": normal, None: nothing}[drawn]


def thread_count(kernel: Any, count: int, wave: int) -> int:
    """The number of threads that process `count` chunks. `wave` threads fill the device.

    A thread processes several chunks, because its setup and the start of a block take time. It processes at least 4, or
    16 if its setup needs divisions to find its location. With a single wave, part of the device would idle at the end.
    """
    threads = count // (16 if kernel.masked or kernel.window else 4)
    return min(threads, MAX_THREADS) if threads > wave else min(count, wave)


def writes_all_words(kernel: Any, size: int, draw: Any, aligned: bool) -> bool:
    """Whether warps write all words of an output of bits. Otherwise bits are added to words, which must be 0 before.

    aligned: whether the arrays are contiguous and aligned for the kernel's accesses.
    """
    chunk, start = chunks(kernel).size, draw.start if kernel.bits else 0
    return aligned and not kernel.window and start % chunk == 0 and size % (WARP * chunk) == 0


def scalars(kernel: Any, size: int, draw: Any, mask: Any, columns: int = 1) -> tuple[Any, ...]:
    """The scalar arguments of a CUDA kernel for `size` elements, in this order; mask is a Mask or None.

    columns is the size of the last axis, if the kernel has operands of layout "row" or "sums". A kernel with sums
    processes a group of rows of a chunk of columns at a time.

    count, row, turns       number of chunks, elements per row, chunks per row
    period, repeat, run     from the Mask
    columns, rows           columns, and size / columns
    pitch, start            from the Draw
    seed, call              from the Draw; 0 if the kernel draws nothing or reads them from memory
    scale, shift, limit     from the Draw
    """
    seed, call, start, limit, scale, shift, row, pitch = draw
    chunk, period, repeat, run = chunks(kernel)[0], 1, 1, 1
    if mask is not None:
        _, period, repeat, run, _ = mask
    if not kernel.bits:
        start = seed = call = 0  # start refers to the mask, which was drawn before
    elif kernel.stored:
        seed = call = 0
    if kernel.window:
        # Rows may begin at different lanes of a chunk. All have as many turns as the row that needs most.
        turns = -(-(row + (start % chunk if pitch % chunk == 0 else chunk - 1)) // chunk)
        count = size // row * turns
    else:
        row = size
        turns = count = -(-(size + start % chunk) // (WARP * chunk)) * WARP  # whole warps, because they exchange words
    rows = size // columns
    if kernel.num_sums:
        turns = -(-columns // chunk)
        count = -(-rows // ROWS) * turns
    return count, row, turns, period, repeat, run, columns, rows, pitch, start, seed, call, scale, shift, limit
