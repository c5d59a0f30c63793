"""exp, expm1, log, log1p, erf and tanh for the CPU in float32, branch-free so that LLVM vectorises their loops.

The C library's versions are scalar calls, about 20 times slower in a loop. The polynomials are
minimax fits made with mpmath; their errors are in gpudrop/testing/ulps.json. float64 uses the C library.
"""

import functools
import math

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from gpudrop.formulas import MATH, philox
from gpudrop.kernels import half

f32, i32, u32 = np.float32, np.int32, np.uint32
jit = functools.partial(njit, nogil=True, error_model="numpy", fastmath={"contract"})
# For functions that only kernels call. Without an entry point from Python they compile a fifth faster. They are always
# inlined, because a remaining call stops LLVM from vectorising the loop around it.
inner = functools.partial(jit, no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True)

ROUND = 12582912  # 1.5 * 2**23: adding it rounds to an integer, which is then in the lowest bits
SQRT_HALF = 0x3F3504F3  # the bits of sqrt(0.5)


_bits, _from_bits = half.bitcasts(intrinsic, types)


@inner()
def _half_power_of_two(k_plus_round):
    """2.0**(k - 1), given k + ROUND, for k from -125 to 128; 0 for k = -126."""
    return _from_bits(u32(u32(_bits(k_plus_round) << u32(23)) + u32(126 << 23)))


@inner()
def _reduce(x):
    """For x = k * log(2) + r: expm1(r) and 2**(k - 1). 2**k itself would overflow for k = 128."""
    # Outside these bounds exp is inf, or 0 instead of less than 1.7e-38. nan passes through both comparisons.
    x = f32(89) if x > f32(89) else x
    x = f32(-87.5) if x < f32(-87.5) else x
    k_plus_round = f32(x * f32(1.4426950408889634) + f32(ROUND))
    k = f32(k_plus_round - f32(ROUND))
    # log(2) in two parts. Products of k and the first part are exact.
    r = f32(x - k * f32(0.693359375)) - k * f32(-2.12194440e-4)
    q = f32(1.39262008929e-3) * r + f32(8.36323283247e-3)
    q = q * r + f32(4.16665544008e-2)
    q = q * r + f32(1.66665766663e-1)
    q = q * r + f32(0.5)
    return q * f32(r * r) + r, _half_power_of_two(k_plus_round)


@inner()
def exp32(x):
    m, half_scale = _reduce(x)
    return f32(m * f32(2) + f32(2)) * half_scale


@inner()
def expm132(x):
    m, half_scale = _reduce(x)
    return f32(m * half_scale + f32(half_scale - f32(0.5))) * f32(2)


@inner()
def _log_of_sum(u, lost, halvings):
    """log((u + lost) / 2**halvings) for a finite u above 0, where lost is the rounding error of u."""
    # u = 2**k * (1 + f), with 1 + f between sqrt(0.5) and sqrt(2).
    above = u32(_bits(u) - u32(SQRT_HALF))
    k = i32(i32(above) >> i32(23))
    scale = _from_bits(u32(u32(127 << 23) - u32(u32(k) << u32(23))))  # 2**-k
    f = f32(_from_bits(u32(u32(above & u32(0x7FFFFF)) + u32(SQRT_HALF))) - f32(1))
    f = f32(f + lost * scale) if u < f32(2.0**60) else f
    p = f32(-7.634493708610535e-02) * f + f32(1.2761574983596802e-01)
    p = p * f + f32(-1.3160182535648346e-01)
    p = p * f + f32(1.4201758801937103e-01)
    p = p * f + f32(-1.6623356938362122e-01)
    p = p * f + f32(2.0001226663589478e-01)
    p = p * f + f32(-2.500081956386566e-01)
    p = p * f + f32(3.333333134651184e-01)
    k = f32(k - i32(halvings))
    # log(2) in two parts. Products of k and the first part are exact.
    y = f32(f32(p * f - f32(0.5)) * f32(f * f) + f) + k * f32(-2.12194440e-4)
    return k * f32(0.693359375) + y


@inner()
def _of_any(u, y):
    """log(u) for any u; y is the result for u between 0 and infinity."""
    y = y if u > f32(0) else f32(-np.inf) if u == f32(0) else f32(np.nan)
    return y if u < f32(np.inf) else u


@inner()
def log1p32(x):
    u = f32(x + f32(1))
    # The rounding error of the sum. It is negligible for large u, where 2**-k is not a float32.
    lost = f32(x - f32(u - f32(1))) if x < f32(1) else f32(f32(1) - f32(u - x))
    return _of_any(u, _log_of_sum(u, lost, 0))


@inner()
def log32(x):
    # Scale subnormal numbers up, because they have no exponent of their own.
    small = x < f32(1.1754943508222875e-38)
    y = _log_of_sum(f32(x * f32(2.0**25)) if small else x, f32(0), 25 if small else 0)
    return _of_any(x, y)


@inner()
def radius32(word):
    """philox.radius with a single logarithm, which includes the word's rounding error as a float32."""
    u = f32(f32(word) + f32(0.5))
    high, low = f32(u32(word & u32(0xFFFFFF00))), f32(u32(word & u32(0xFF)))
    lost = f32(f32(low + f32(0.5)) - f32(u - high))
    return f32(math.sqrt(f32(-2) * _log_of_sum(u, lost, 32)))


@inner()
def tanh32(x):
    m = expm132(f32(-2) * abs(x))
    sign = u32(_bits(x) & u32(0x80000000))  # the sign of 0 too
    return _from_bits(u32(_bits(f32(abs(m) / (m + f32(2)))) | sign))


@inner()
def erf32(x):
    # x times a rational function of x**2. erf rounds to 1 from 3.92 on, so x is limited to 4 and the result to 1.
    x = f32(4) if x > f32(4) else x
    x = f32(-4) if x < f32(-4) else x
    t = x * x
    p = f32(2.0742803014424055e-06) * t + f32(2.8443205897419054e-04)
    p = p * t + f32(3.7035548317486478e-03)
    p = p * t + f32(5.255864309261681e-02)
    p = p * t + f32(1.8883209985101576e-01)
    p = p * t + f32(1.1283791546362292)
    q = f32(3.831942141787946e-05) * t + f32(1.149287391214862e-03)
    q = q * t + f32(1.4843537958744442e-02)
    q = q * t + f32(1.1347496208770605e-01)
    q = q * t + f32(5.006809793674689e-01)
    q = q * t + f32(1)
    y = x * p / q
    y = f32(1) if y > f32(1) else y
    return f32(-1) if y < f32(-1) else y


@inner()
def divide(a, b):
    return a / b


_LIBRARY = {name: getattr(math, name) for name in MATH} | {"divide": divide}
HOST_MATH = {
    "float32": _LIBRARY
    | {"exp": exp32, "expm1": expm132, "log": log32, "log1p": log1p32, "tanh": tanh32, "erf": erf32},
    "float64": _LIBRARY,
}
"""The CPU's implementation of each function of a formula, by arithmetic type."""

FORMULAS = {"float32": {philox.radius: radius32}, "float64": {}}
"""Formulas for which the CPU has a faster implementation, by arithmetic type."""
