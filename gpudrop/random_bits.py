"""The mapping: which random bits belong to which element of which call.

Everything here is a pure function of (seed, call, element): no thread, tile, layout, dtype or device
appears in it, so none of them can change a mask. The annotated functions are formulas
(see `gpudrop.formulas`): the host, Numba's CUDA and CuPy all compile this one text.

    chunk   = element // lanes(bits)         one Philox call serves a chunk of `lanes` elements
    words   = draw(seed, call, chunk)        128 bits
    field   = field(words, lane, bits)       lane = element % lanes(bits)
    keep    = field >= threshold             keep(words, lane, bits, limit) with limit = threshold - 1
    normal  = radius(one word) * cosine or sine(the next word)      32 bits, so 4 elements a chunk

Philox4x32-10 is from Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3"
(SC 2011, https://doi.org/10.1145/2063384.2063405).
"""

import math
import operator
from dataclasses import dataclass
from math import log, log1p, sqrt
from typing import Any

from numpy import uint32, uint64

PHILOX_M0 = uint32(0xD2511F53)
PHILOX_M1 = uint32(0xCD9E8D57)
PHILOX_W0 = uint32(0x9E3779B9)
PHILOX_W1 = uint32(0xBB67AE85)

EIGHTH, QUARTER, HALF = uint32(1 << 29), uint32(1 << 30), uint32(1 << 31)
"""Of a turn, in units of 2**-32."""
UNIT = 2.0**-32
RADIANS = 2 * math.pi * UNIT

BITS = (8, 16, 32)
"""The widths a field may have. Wider fields honour p more finely, narrower ones cost fewer words."""

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
        # Added in 64 bits and cut back, so that plain NumPy scalars do not warn of the overflow.
        k0 = uint32(uint64(k0) + uint64(PHILOX_W0))
        k1 = uint32(uint64(k1) + uint64(PHILOX_W1))
    return c0, c1, c2, c3


def product(a: uint32, b: uint32) -> uint64:
    """All 64 bits of a product."""
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
    """field(words, lane, bits) > limit, compared where the field is the upper end of a word: one shift and no mask."""
    position = uint32(lane * bits)
    rest = uint32(uint32(32) - bits)
    word = uint32(words[position >> uint32(5)] << uint32(rest - uint32(position & uint32(31))))
    return word > uint32(uint32(limit << rest) | uint32(~uint32(uint32(0xFFFFFFFF) << rest)))


def normal(words: Words, lane: uint32) -> float:
    """The normal deviate of a lane of four: two of each pair of words, by Box and Muller.

    Source: Box and Muller, "A note on the generation of random normal deviates", Annals of Mathematical
    Statistics 29 (1958): for uniform u and v, sqrt(-2 log u) * cos(2 pi v) and sqrt(-2 log u) * sin(2 pi v).
    """
    angle = words[uint32(lane | uint32(1))]
    quarter = uint32(0) if lane & uint32(1) else QUARTER
    return radius(words[uint32(lane & uint32(2))]) * sine(uint32(uint64(angle) + uint64(quarter)))


def radius(word: uint32) -> float:
    """sqrt(-2 * log(u)) for u = (word + 1/2) / 2**32."""
    # From 1/2 on through 1 - u, since a float32 near 1 has too few digits for the logarithm.
    rest = (float(uint32(~word)) + 0.5) * UNIT
    return sqrt(-2 * (log((float(word) + 0.5) * UNIT) if word < HALF else log1p(-rest)))


def sine(turn: uint32) -> float:
    """sin(2 * pi * turn / 2**32), from series on an eighth of the circle; they hold for float64."""
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
    """How many elements one Philox call serves."""
    return 128 // bits


@dataclass(frozen=True)
class Quantized:
    """A probability of dropping, as the integers that kernels compare with.

    Attributes
    ----------
    threshold : int
        A field below it drops its element; from 0 to 2**bits.
    scale : float
        What kept elements are multiplied by: 1 / (1 - effective_p), or 0 where nothing is kept.
    effective_p : float
        The probability that is honoured, threshold / 2**bits.
    """

    threshold: int
    scale: float
    effective_p: float


def quantize(p: float, bits: int = 16) -> Quantized:
    """Round a probability of dropping to the nearest one that `bits` random bits can express.

    Parameters
    ----------
    p : float
        The probability of dropping an element, from 0 to 1.
    bits : {8, 16, 32}
        Random bits per element. The honoured probability is within 2**-(bits + 1) of p.

    Returns
    -------
    Quantized
        threshold = floor(p * 2**bits + 0.5), scale = 2**bits / (2**bits - threshold), effective_p.
        The scale comes from the honoured probability, so the expected value is kept exactly.

    Raises
    ------
    ValueError
        If p is not between 0 and 1, or bits is not 8, 16 or 32.
    TypeError
        If p is not a real number.

    Examples
    --------
    >>> import gpudrop
    >>> gpudrop.quantize(0.1, bits=8)
    Quantized(threshold=26, scale=1.1130434782608696, effective_p=0.1015625)
    """
    p, bits = check_p(p), check_bits(bits)
    steps = 2**bits
    threshold = int(p * steps)
    # floor(p * steps + 0.5) without the sum, whose rounding is wrong for the p just below half a step.
    threshold += p * steps - threshold >= 0.5
    kept = steps - threshold
    return Quantized(threshold, steps / kept if kept else 0.0, threshold / steps)


def check_number(name: str, value: Any, rule: str = "") -> float:
    """value as a float, or a TypeError that names the argument; what overflows is infinite."""
    # What float() would take besides: text, and the real part of NumPy's complex numbers.
    text = isinstance(value, (str, bytes, bytearray, memoryview))
    text_or_complex = text or getattr(getattr(value, "dtype", None), "kind", None) in ("S", "U", "c")
    try:
        return float("text" if text_or_complex else value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number{rule}, got {value!r}") from None


def check_p(p: Any, name: str = "p") -> float:
    """p as a float, or a ValueError or TypeError that names the argument."""
    value = check_number(name, p, " between 0 and 1")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {p}")
    return value


def check_bits(bits: Any) -> int:
    """bits as an int, or a ValueError that lists the widths."""
    try:
        width = operator.index(bits)
    except TypeError:
        width = None
    if width not in BITS:
        raise ValueError(f"bits must be one of {', '.join(map(str, BITS))}, got {bits!r}")
    return width


def check_truth(name: str, value: Any) -> bool:
    """value as a bool: True or False, NumPy's and other libraries', 1 or 0."""
    try:
        if value is True or value is False or (getattr(value, "ndim", 0) == 0 and value in (0, 1)):
            return bool(value)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{name} must be True or False, got {value!r}")


def check_integer(name: str, value: Any) -> int:
    """value as a Python int, or a TypeError that names the argument."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None


def check_uint64(name: str, value: Any) -> int:
    """value as a Python int in [0, 2**64), or an error that names the argument."""
    number = check_integer(name, value)
    if not 0 <= number < 2**64:
        raise ValueError(f"{name} must be between 0 and 2**64 - 1, got {value}")
    return number
