"""The shape of the CPU's loops, by processor. It decides how fast a kernel is, and never a mask or a value."""

import os
from typing import NamedTuple

from numba.core.registry import cpu_target

VARIABLE = "GPUDROP_CPU_SHAPE"
"""The environment variable that selects a row of SHAPES; by default, the processor does."""


class Shape(NamedTuple):
    """How loops are compiled for a processor.

    Attributes
    ----------
    chunks : int
        Philox calls per group. A group has several registers, whose chains of dependent rounds overlap.
    lane : {32, 64}
        Bits per word while words are drawn: 64 where the processor multiplies words in such lanes.
    unrolled : bool
        Whether the ten rounds are written one after the other.
    width : int
        Bits per register in the loop that applies the formula.
    level : {1, 2}
        The cache to which inputs are prefetched.
    ahead : int
        How many bytes ahead they are prefetched.
    streamed : int
        The least number of bytes of a result that is written past the caches; 0 if none is.
    """

    chunks: int
    lane: int
    unrolled: bool
    width: int
    level: int
    ahead: int
    streamed: int


# The measurements, all with two threads:
# - Intel with AVX-512 (a Xeon of 2023). Drawing takes 0.41 of the time that one register after the other takes, and
#   0.45 with 16 chunks per group. gelu takes 0.8 of its time with 256 bits. Streaming results of 32 MiB or more doubles
#   the speed. It is then 0.8 to 0.9 of that of a streaming copy.
# - AVX2, on the same processor. Drawing takes 0.83 of the time of one register after the other. Without unrolling,
#   or with 8 chunks, it takes 0.9.
# - Zen 4 (last cache: 32 MiB). Streaming results of 32 MiB doubles the speed. With 16 MiB, a kernel and a reader
#   of its results take as long as without streaming, and with less they take longer. Prefetching to the first level, or
#   0, 2 or 8 KiB ahead, takes 1.05 to 1.4 of the time. Unrolled rounds take 0.95 of the time.
# - Zen 4 with the loops for AVX2: 1.02 to 1.2 of the time of those for AVX-512.
# ARM and AMD processors without AVX-512 have not been measured, and Zen 5 only with loops before these.
_INTEL = Shape(chunks=32, lane=64, unrolled=False, width=512, level=2, ahead=4096, streamed=1 << 25)
_AVX2 = _INTEL._replace(chunks=16, unrolled=True, width=256)
_ZEN4 = _INTEL._replace(unrolled=True, streamed=1 << 24)
SHAPES = {
    "avx512": _INTEL,
    "avx2": _AVX2,
    "zen4": _ZEN4,
    "zen": _AVX2._replace(streamed=_ZEN4.streamed),
    "neon": Shape(chunks=8, lane=32, unrolled=False, width=128, level=1, ahead=0, streamed=0),
}


def name_for(triple, processor, features):
    """The row of SHAPES for a processor, given LLVM's names."""
    if triple.startswith(("aarch64", "arm")):
        return "neon"
    wide, zen = "+avx512f" in features.split(","), processor.startswith("znver")
    return ("zen4" if zen else "avx512") if wide else "zen" if zen else "avx2"


NAME = os.environ.get(VARIABLE) or name_for(*cpu_target.target_context.codegen().magic_tuple())


def unknown():
    """The reason why the environment variable is wrong, or None."""
    known = ", ".join(SHAPES)
    return None if NAME in SHAPES else f"{VARIABLE} must be one of {known}, got {NAME!r}"


SHAPE = SHAPES.get(NAME, _AVX2)
