"""The mapping from (seed, call, element) to random bits.

Everything here is a pure function of (seed, call, element): no thread, tile, layout, dtype or device
appears in it, so none of them can change a mask. The annotated functions are formulas
(see `gpudrop.formulas`): this one text is compiled for the CPU, for Numba CUDA and for CuPy.

    chunk   = element // lanes(bits)         one Philox call covers a chunk of `lanes` elements
    words   = draw(seed, call, chunk)        128 bits
    field   = field(words, lane, bits)       lane = element % lanes(bits)
    keep    = field >= threshold             keep(words, lane, bits, limit) with limit = threshold - 1
    uniform = (field + 1/2) / 2**bits
    normal  = radius(one word) * cosine or sine(the next word)      32 bits, so 4 elements a chunk

Philox4x32-10 is from Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3"
(SC 2011, https://doi.org/10.1145/2063384.2063405).
"""

import math
from math import log, log1p, sqrt

from numpy import uint32, uint64

PHILOX_M0 = uint32(0xD2511F53)
PHILOX_M1 = uint32(0xCD9E8D57)
PHILOX_W0 = uint32(0x9E3779B9)
PHILOX_W1 = uint32(0xBB67AE85)

EIGHTH, QUARTER, HALF = uint32(1 << 29), uint32(1 << 30), uint32(1 << 31)
"""Fractions of a full turn, in units of 2**-32."""
UNIT = 2.0**-32
RADIANS = 2 * math.pi * UNIT

BITS = (8, 16, 32)
"""The possible widths of a field. Wider fields represent p more precisely, narrower ones need fewer words."""

Words = tuple[uint32, uint32, uint32, uint32]


def philox4x32(c0: uint32, c1: uint32, c2: uint32, c3: uint32, k0: uint32, k1: uint32) -> Words:
    """Ten rounds of Philox4x32: the 128-bit counter c under the 64-bit key k."""
    for _ in range(10):
        p0 = product(PHILOX_M0, c0)
        p1 = product(PHILOX_M1, c2)
        c0 = uint32(uint32(p1 >> uint64(32)) ^ c1 ^ k0)
        c1 = uint32(p1)
        c2 = uint32(uint32(p0 >> uint64(32)) ^ c3 ^ k1)
        c3 = uint32(p0)
        # Added in 64 bits and truncated, so that plain NumPy scalars do not warn of the overflow.
        k0 = uint32(uint64(k0) + uint64(PHILOX_W0))
        k1 = uint32(uint64(k1) + uint64(PHILOX_W1))
    return c0, c1, c2, c3


def product(a: uint32, b: uint32) -> uint64:
    """The full 64-bit product."""
    return uint64(a) * uint64(b)


def draw(seed: uint64, call: uint64, chunk: uint64) -> Words:
    """The 128 random bits of a chunk: the chunk and the call are the counter, the seed is the key."""
    return philox4x32(
        uint32(chunk),
        uint32(chunk >> uint64(32)),
        uint32(call),
        uint32(call >> uint64(32)),
        uint32(seed),
        uint32(seed >> uint64(32)),
    )


def field(words: Words, lane: uint32, bits: uint32) -> uint32:
    """Field number `lane` of a chunk's words, both counted from the least significant end."""
    position = uint32(lane * bits)
    word = uint32(words[position >> uint32(5)] >> uint32(position & uint32(31)))
    return uint32(word & uint32(uint32(0xFFFFFFFF) >> uint32(uint32(32) - bits)))


def keep(words: Words, lane: uint32, bits: uint32, limit: uint32) -> bool:
    """field(words, lane, bits) > limit. The field is shifted to the upper end of its word: one shift and no mask."""
    position = uint32(lane * bits)
    rest = uint32(uint32(32) - bits)
    word = uint32(words[position >> uint32(5)] << uint32(rest - uint32(position & uint32(31))))
    return word > uint32(uint32(limit << rest) | uint32(~uint32(uint32(0xFFFFFFFF) << rest)))


def reaches(words: Words, lane: uint32, bits: uint32, threshold: uint64) -> bool:
    """field(words, lane, bits) >= threshold, for any threshold from 0 to 2**bits."""
    return uint64(field(words, lane, bits)) >= threshold


def reaches_at(seed: uint64, call: uint64, element: uint64, bits: uint32, threshold: uint64) -> bool:
    """The same for an element of a stream."""
    shift = uint64(uint64(4) - uint64(bits >> uint32(4)))  # the logarithm of the number of lanes
    first = uint64(uint64(element >> shift) << shift)
    words = draw(seed, call, uint64(element >> shift))
    return reaches(words, uint32(uint64(element - first)), bits, threshold)


def uniform(words: Words, lane: uint32, bits: uint32) -> float:
    """The number in the middle of the field's part of the unit interval: (field + 1/2) / 2**bits."""
    unit = float(uint32(uint32(1) << uint32(uint32(32) - bits))) * UNIT
    return (float(field(words, lane, bits)) + 0.5) * unit


def normal(words: Words, lane: uint32) -> float:
    """The normal deviate of one of four lanes, by the method of Box and Muller: two deviates per pair of words.

    Source: Box and Muller, "A note on the generation of random normal deviates", Annals of Mathematical
    Statistics 29 (1958): for uniform u and v, sqrt(-2 log u) * cos(2 pi v) and sqrt(-2 log u) * sin(2 pi v).
    """
    angle = words[uint32(lane | uint32(1))]
    quarter = uint32(0) if lane & uint32(1) else QUARTER
    return radius(words[uint32(lane & uint32(2))]) * sine(uint32(uint64(angle) + uint64(quarter)))


def radius(word: uint32) -> float:
    """sqrt(-2 * log(u)) for u = (word + 1/2) / 2**32."""
    # From 1/2 on by log1p(u - 1), because a float32 near 1 has too few digits for the logarithm.
    rest = (float(uint32(~word)) + 0.5) * UNIT
    return sqrt(-2 * (log((float(word) + 0.5) * UNIT) if word < HALF else log1p(-rest)))


def sine(turn: uint32) -> float:
    """sin(2 * pi * turn / 2**32), by series on an eighth of the circle that are accurate to float64."""
    within = uint32(turn & uint32(QUARTER - uint32(1)))
    x = float(uint32(QUARTER - within) if within > EIGHTH else within) * RADIANS
    t = x * x
    s = 1 / 6227020800 - t * (1 / 1307674368000)
    s = s * t - 1 / 39916800
    s = s * t + 1 / 362880
    s = s * t - 1 / 5040
    s = s * t + 1 / 120
    s = s * t - 1 / 6
    s = s * t * x + x
    c = t * (1 / 20922789888000) - 1 / 87178291200
    c = c * t + 1 / 479001600
    c = c * t - 1 / 3628800
    c = c * t + 1 / 40320
    c = c * t - 1 / 720
    c = c * t + 1 / 24
    c = c * t - 1 / 2
    c = c * t + 1
    y = c if (within > EIGHTH) != (uint32(turn & QUARTER) != uint32(0)) else s
    return -y if turn >= HALF else y


def lanes(bits: int) -> int:
    """The number of elements that one Philox call covers."""
    return 128 // bits
