"""How CUDA kernels divide the elements into chunks, and the formulas that they are made of: for Numba and for CuPy."""

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy import uint32

from gpudrop.formulas import indexing, philox
from gpudrop.formulas.philox import Words

WARP = int(indexing.WARP)


class Chunks(NamedTuple):
    """What a thread does at a time.

    Attributes
    ----------
    size : int
        Elements of a chunk. A kernel that draws: those of one Philox call, at most 64 bytes, because registers are few.
        Others: those of 16 bytes, or of 32 bytes where a mask has to be located.
    shares : int
        How many chunks share a Philox call.
    width : int
        Bytes of an access.
    parts : int
        Accesses of a chunk.
    exchanged : bool
        Whether threads exchange words. Where a chunk takes several accesses, a warp's threads would reach only every
        second or fourth 16 bytes in each, and write half sectors. So the accesses of a warp's 32 chunks follow one
        another, and the threads exchange random words instead: of n accesses, thread t's number s belongs to chunk
        s * 32 / n + t // n, and is part t % n of it.
    """

    size: int
    shares: int
    width: int
    parts: int
    exchanged: bool


@functools.cache
def chunks(kernel: Any) -> Chunks:
    itemsize = np.dtype(kernel.storage).itemsize
    if kernel.bits:
        size = min(philox.lanes(kernel.bits), 64 // itemsize)
        shares = philox.lanes(kernel.bits) // size
    else:
        size = min(16, 32 // itemsize) if kernel.masked and kernel.keeps else 16 // itemsize
        shares = 1
    parts = max(1, size * itemsize // 16)
    exchanged = parts in (2, 4) and kernel.bits > 0 and shares == 1 and not kernel.window
    return Chunks(size, shares, min(16, size * itemsize), parts, exchanged)


def formulas_of(kernel: Any) -> dict[str, Any]:
    """The formulas of a kernel, by the names under which both CUDA backends call them."""
    size, _, _, parts, _ = chunks(kernel)
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
        "own_chunk": indexing.own_chunk(parts),
        "exchange": indexing.exchange(parts),
    }


@functools.cache
def _drawn_of(drawn: str | None, bits: int) -> Any:
    """A formula: what is drawn for a lane of a chunk."""
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
    """How many threads of a CUDA kernel share so many chunks, where `wave` of them fill the device.

    A thread does several chunks, as what it does before its first takes time, as does the start of a block: at least 4,
    or 16 where it first divides for its location. Of one wave alone a part of the device would idle at the end.
    """
    threads = count // (16 if kernel.masked or kernel.window else 4)
    return threads if threads > wave else min(count, wave)


def scalars(kernel: Any, size: int, draw: Any, mask: Any) -> tuple[Any, ...]:
    """The scalars that CUDA kernels take, in this order: for `size` elements, a Draw, and a Mask or None.

    count, row, turns       a kernel does so many chunks, turns of them in each row of so many elements
    period, repeat, run     of the Mask
    pitch, start            of the Draw
    seed, call              of the Draw, unless a kernel draws nothing or reads them from memory
    scale, shift, limit     of the Draw
    """
    seed, call, start, limit, scale, shift, row, pitch = draw
    chunk, period, repeat, run = chunks(kernel)[0], 1, 1, 1
    if mask is not None:
        _, period, repeat, run, _ = mask
    if not kernel.bits:
        start = seed = call = 0  # start is that of the mask, drawn before
    elif kernel.stored:
        seed = call = 0
    if kernel.window:
        # Rows that begin at different lanes of a chunk take as many turns as the one that takes most.
        turns = -(-(row + (start % chunk if pitch % chunk == 0 else chunk - 1)) // chunk)
        count = size // row * turns
    else:
        row = size
        turns = count = -(-(size + start % chunk) // (WARP * chunk)) * WARP  # so that whole warps exchange words
    return count, row, turns, period, repeat, run, pitch, start, seed, call, scale, shift, limit
