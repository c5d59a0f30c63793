"""exp, expm1, erf and tanh for the host in float32, branch-free so that LLVM vectorises their loops.

The C library's versions are scalar calls, about 20 times slower in a loop. The polynomials are
minimax fits made with mpmath; their errors are in gpudrop/ulps.json. In float64 the C library serves.
"""

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from gpudrop.formulas import MATH

f32, i32 = np.float32, np.int32
jit = njit(nogil=True, error_model="numpy", fastmath={"contract"}, no_cpython_wrapper=True, no_cfunc_wrapper=True)


@intrinsic
def _power_of_two(typingctx, k):
    """2.0**k for an int32 k from -126 to 127, by its bits."""

    def codegen(context, builder, signature, args):
        biased = builder.add(args[0], ir.Constant(ir.IntType(32), 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(ir.IntType(32), 23)), ir.FloatType())

    return types.float32(types.int32), codegen


@jit
def _reduce(x):
    """x = k * log(2) + r: returns expm1(r), and two halves of k."""
    # Beyond these bounds exp is inf or 0. nan passes through both comparisons.
    x = f32(89) if x > f32(89) else x
    x = f32(-105) if x < f32(-105) else x
    # Adding 1.5 * 2**23 rounds to an integer.
    rounded = f32(x * f32(1.4426950408889634) + f32(12582912)) - f32(12582912)
    k = i32(rounded)
    # log(2) in two parts, the first of them exact in its products with k.
    r = f32(x - rounded * f32(0.693359375)) - rounded * f32(-2.12194440e-4)
    q = f32(1.39262008929e-3) * r + f32(8.36323283247e-3)
    q = q * r + f32(4.16665544008e-2)
    q = q * r + f32(1.66665766663e-1)
    q = q * r + f32(0.5)
    half = i32(k >> i32(1))
    return q * r * r + r, half, i32(k - half)


@jit
def exp32(x):
    # The scale goes on in two halves: 2**k itself may be out of range where the result is not.
    m, k1, k2 = _reduce(x)
    return f32(f32(m + f32(1)) * _power_of_two(k1)) * _power_of_two(k2)


@jit
def expm132(x):
    m, k1, k2 = _reduce(x)
    s = _power_of_two(k1)
    return f32(m * s + f32(s - _power_of_two(i32(-k2)))) * _power_of_two(k2)


@jit
def tanh32(x):
    m = expm132(f32(-2) * abs(x))
    t = f32(-m / (m + f32(2)))
    return t if x >= f32(0) else -t


@jit
def erf32(x):
    # x times a rational function of x**2; from 3.92 on erf rounds to 1.
    a = f32(3.92) if abs(x) > f32(3.92) else abs(x)
    t = a * a
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
    y = a * p / q
    y = f32(1) if y > f32(1) or a >= f32(3.92) else y
    return y if x >= f32(0) else -y


HOST_MATH = {
    "float32": {name: getattr(math, name) for name in MATH}
    | {"exp": exp32, "expm1": expm132, "tanh": tanh32, "erf": erf32},
    "float64": {name: getattr(math, name) for name in MATH},
}
"""What each function of a formula means on the host, by the arithmetic."""
