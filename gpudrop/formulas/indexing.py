"""Index arithmetic of CUDA kernels, for Numba and for CuPy: chunks, windows, broadcast masks and warps.

A thread processes several chunks. It moves from one to the next by additions, because divisions would cost more than
all other work. A Location describes where the thread is, and `advance` adds another Location to it.
"""

from functools import cache
from typing import Any

from numpy import int64, uint32

from gpudrop.formulas import BitArray, Location, MaskArray, exchanged, rolled
from gpudrop.formulas.philox import Words

WARP = int64(32)
ALL = uint32(0xFFFFFFFF)


# Broadcast masks: a Location is (index in the run, index in the period, number of the repeat, start of the period).
# `gpudrop.kernels.spec.Mask` defines these terms.


def locate(i: int64, period: int64, repeat: int64, run: int64) -> Location:
    """The Location of element i in the mask."""
    number = i // run
    lap = number // period
    return i - number * run, number - lap * period, lap % repeat, lap // repeat * period


def index_of(here: Location) -> int64:
    """The index in the mask's array."""
    return here[1] + here[3]


def ahead_by(elements: int64, numbers: int64) -> Location:
    """The Location of an element within the first period."""
    return elements, numbers, int64(0), int64(0)


def advance(here: Location, by: Location, period: int64, repeat: int64, run: int64) -> Location:
    """The Location of a later element. `by` is the Location of the element at the same distance from element 0."""
    within = here[0] + by[0]
    at = here[1] + by[1]
    turn = here[2] + by[2]
    base = here[3] + by[3]
    if within >= run:
        within -= run
        at += int64(1)
    if at >= period:
        at -= period
        turn += int64(1)
    if turn >= repeat:
        turn -= repeat
        base += period
    return within, at, turn, base


def next_element(here: Location, period: int64, repeat: int64, run: int64) -> Location:
    """The Location of the next element."""
    return advance(here, ahead_by(int64(1), int64(0)), period, repeat, run)


def is_kept(mask: MaskArray, i: int64) -> uint32:
    return uint32(uint32(mask[i]) != uint32(0))


@cache
def chunk_bits(chunk: int) -> Any:
    """A formula for a chunk that begins at a Location: bit j says whether element j of the chunk is kept."""

    def bits(mask: MaskArray, here: Location, period: int64, repeat: int64, run: int64) -> uint32:
        keeps = uint32(0)
        if (period if run == int64(1) else run) < int64(chunk):
            for j in rolled(chunk):
                keeps = uint32(keeps | uint32(is_kept(mask, index_of(here)) << uint32(j)))
                here = next_element(here, period, repeat, run)
            return keeps
        # Fast path: a chunk that spans at most one boundary of runs or periods needs two lookups.
        before = index_of(here)
        if run == int64(1):
            ahead = period - here[1]
            later = index_of(advance(here, ahead_by(int64(0), ahead), period, repeat, run)) - ahead
            for j in range(chunk):
                keeps = uint32(
                    keeps | uint32(is_kept(mask, (before if int64(j) < ahead else later) + int64(j)) << uint32(j))
                )
            return keeps
        left = run - here[0]
        keeps = ALL if is_kept(mask, before) != uint32(0) else uint32(0)
        if left < int64(chunk):
            after = index_of(advance(here, ahead_by(left, int64(0)), period, repeat, run))
            rest = uint32(ALL << uint32(left))
            keeps = uint32(uint32(keeps & uint32(~rest)) | (rest if is_kept(mask, after) != uint32(0) else uint32(0)))
        return keeps

    return bits


# Operands of one bit per element: see `gpudrop.kernels.spec.Slot`.


@cache
def bits_of(count: int) -> Any:
    """A formula that returns the bits of `count` elements from element e on, which is a multiple of count."""
    size, all_ones = max(1, count // 8), uint32((1 << count) - 1)

    def bits(packed: BitArray, e: int64) -> uint32:
        word = uint32(0)
        for k in range(size):
            word = uint32(word | uint32(uint32(packed[(e >> int64(3)) + int64(k)]) << uint32(uint32(k) * uint32(8))))
        return uint32(uint32(word >> uint32(e & int64(7))) & all_ones)

    return bits


@cache
def word_of(count: int) -> Any:
    """A formula that joins `count` bits of each of 32 // count neighbouring threads of a warp to a word."""
    threads, steps = uint32(32 // count), (32 // count).bit_length() - 1

    def word(bits: uint32, lane: uint32) -> uint32:
        joined = uint32(bits << uint32(uint32(lane & uint32(threads - uint32(1))) * uint32(count)))
        for k in range(steps):
            joined = uint32(joined | exchanged(joined, uint32(uint32(1) << uint32(k))))
        return joined

    return word


# Windows: a Location is (row, number of the chunk in the row, 0, 0).


def first_turn(i: int64, turns: int64) -> Location:
    """The Location of chunk number i."""
    row = i // turns
    return row, i - row * turns, int64(0), int64(0)


def next_turn(here: Location, by: Location, turns: int64) -> Location:
    """The Location of a later chunk. `by` is the Location of the chunk at the same distance from chunk 0."""
    row = here[0] + by[0]
    turn = here[1] + by[1]
    if turn >= turns:
        turn -= turns
        row += int64(1)
    return row, turn, int64(0), int64(0)


# Operands of one element per column: the column of element e is e % columns.


def next_column(column: int64, by: int64, columns: int64) -> int64:
    """The column of a later element. `by` is the column of the element at the same distance from element 0."""
    later = column + by
    return later - columns if later >= columns else later


def remainder(i: int64, columns: int64) -> int64:
    """i % columns, for i below 2**32. A remainder of 64 bits is a call, and kernels with calls use more registers."""
    return i if i < columns else int64(uint32(i) % uint32(columns))


@cache
def column_of_chunk(chunk: int) -> Any:
    """A formula that returns the column of the first element of chunk i, where i is below 2**32."""
    doublings = chunk.bit_length() - 1

    def column(i: int64, columns: int64) -> int64:
        c = remainder(i, columns)
        for _ in range(doublings):
            c = next_column(c, c, columns)
        return c

    return column


def column_before(column: int64, skip: int64, columns: int64) -> int64:
    """The column of the element `skip` elements earlier, where skip is below 2**32."""
    return next_column(column, columns - remainder(skip, columns), columns)


# Warps that exchange words: see `gpudrop.kernels.chunks`.


@cache
def own_chunk(parts: int) -> Any:
    """A formula that maps a thread's lane to the number in the warp of the chunk whose words it draws."""
    count = int64(parts)

    def own(lane: int64) -> int64:
        return lane % count * (WARP // count) + lane // count

    return own


def swapped(lane: uint32, distance: uint32, low: uint32, high: uint32) -> Words:
    """Exchange one of two words with another thread. One thread then has both low words, the other both high words."""
    odd = uint32(lane & distance) != uint32(0)
    received = exchanged(low if odd else high, distance)
    return received if odd else low, high if odd else received, uint32(0), uint32(0)


@cache
def exchange(parts: int) -> Any:
    """A formula that returns the words of a thread's own elements, which belong to chunks of other threads."""
    half, one = uint32(parts >> 1), uint32(1)

    def nothing(words: Words, lane: uint32) -> Words:
        return words

    def twice(words: Words, lane: uint32) -> Words:
        first = swapped(lane, half, words[0], words[2])
        second = swapped(lane, half, words[1], words[3])
        return first[0], second[0], first[1], second[1]

    def four_times(words: Words, lane: uint32) -> Words:
        words = twice(words, lane)
        first = swapped(lane, one, words[0], words[1])
        second = swapped(lane, one, words[2], words[3])
        return first[0], first[1], second[0], second[1]

    return {2: twice, 4: four_times}.get(parts, nothing)
