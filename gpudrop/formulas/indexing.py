"""Index arithmetic of CUDA kernels, for Numba and for CuPy: chunks, windows, masks that broadcast, and warps.

A thread takes chunks, and goes from one to the next by additions, since divisions would cost more than the rest: it is
at a Location, and `advance` brings it on by another one.
"""

from functools import cache
from typing import Any

from numpy import int64, uint32

from gpudrop.formulas import Location, MaskArray, exchanged, rolled
from gpudrop.formulas.philox import Words

WARP = int64(32)
ALL = uint32(0xFFFFFFFF)


# Masks that broadcast: a Location is (index in the run, index in the period, number of the repeat, start of the
# period), of which `gpudrop.kernels.spec.Mask` says what they are.


def locate(i: int64, period: int64, repeat: int64, run: int64) -> Location:
    """Where element i finds what was drawn for it."""
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
    """The Location of a later element: `by` is that of the element as far from the first one."""
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
    """A formula: a bit for each element of a chunk that begins at a Location, whether it is kept."""

    def bits(mask: MaskArray, here: Location, period: int64, repeat: int64, run: int64) -> uint32:
        keeps = uint32(0)
        if (period if run == int64(1) else run) < int64(chunk):
            for j in rolled(chunk):
                keeps = uint32(keeps | uint32(is_kept(mask, index_of(here)) << uint32(j)))
                here = next_element(here, period, repeat, run)
            return keeps
        # A chunk that spans at most one boundary, of runs or of periods, needs two lookups.
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


# Windows: a Location is (row, turn in the row, 0, 0).


def first_turn(i: int64, turns: int64) -> Location:
    """Where chunk number i is."""
    row = i // turns
    return row, i - row * turns, int64(0), int64(0)


def next_turn(here: Location, by: Location, turns: int64) -> Location:
    """A later chunk's: `by` is that of the chunk as far from the first one."""
    row = here[0] + by[0]
    turn = here[1] + by[1]
    if turn >= turns:
        turn -= turns
        row += int64(1)
    return row, turn, int64(0), int64(0)


# Warps that exchange words: see `gpudrop.kernels.chunks`.


@cache
def own_chunk(parts: int) -> Any:
    """A formula: from a thread's number in the warp to that of the chunk that it draws for."""
    count = int64(parts)

    def own(lane: int64) -> int64:
        return lane % count * (WARP // count) + lane // count

    return own


def swapped(lane: uint32, distance: uint32, low: uint32, high: uint32) -> Words:
    """Half of two words for half of the other thread's: the one has both low ones then, the other both high ones."""
    odd = uint32(lane & distance) != uint32(0)
    received = exchanged(low if odd else high, distance)
    return received if odd else low, high if odd else received, uint32(0), uint32(0)


@cache
def exchange(parts: int) -> Any:
    """A formula: the words for a thread's own elements, which are parts of other threads' chunks."""
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
