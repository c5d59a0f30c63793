"""Formulas for the GPU, for 16-bit results: rounding to 11 digits hides their error.

The hardware's exp2 and division are used with them. Each is wrong by a few units in the last place of a float32. But
the reciprocal of 1 must be 1, because slopes of large x contain x * (1 - s) with s = 1.

The coefficients are minimax fits: least squares, repeated with larger weights where the error was large. Errors are in
float16's ulps at max(1, |result|), before rounding. In bfloat16's ulps they are an eighth of that.
"""

import math
from math import exp

from gpudrop.formulas import activations

LN_2 = math.log(2)
LOG2_E = 1 / LN_2
QUICK = -1.702 * LOG2_E
GELU_TANH_0, GELU_TANH_2 = (-LOG2_E * activations.SQRT_8_OVER_PI * c for c in (1, 0.044715))


def exp2(x):
    """2**x. Both backends replace it by the GPU's instruction, so that constants contain the factor of exp."""
    return exp(LN_2 * x)


def gelu(x):
    """x / (1 + 2**(x * u)), where u is a polynomial of |x|. The error is 0.15."""
    a = abs(x)
    u = -0.09054860 * a - 0.03054796
    u = u * a - 2.28685335
    return x / (1 + exp2(x * u))


def gelu_tanh(x):
    """The same function as on other processors, with a factor less."""
    return x / (1 + exp2(x * (GELU_TANH_2 * (x * x) + GELU_TANH_0)))


# If s is the logistic function of c * x, the derivative of x * s is s + c * x * s * (1 - s). It is computed from one
# exponential and one quotient, in an order that does not overflow.


def silu_slope(x):
    s = 1 / (1 + exp2(-LOG2_E * x))
    return s + s * (x - x * s)


def quick_gelu_slope(x):
    s = 1 / (1 + exp2(QUICK * x))
    return s + 1.702 * (s * (x - x * s))


# The slopes of gelu and gelu_tanh have nearly this form with s = 1 / (1 + 2**(x * u)).


def gelu_slope(x):
    """The error is 0.13."""
    a = abs(x)
    u = -0.08703496 * a - 0.00555409
    u = u * a - 2.03298774
    s = 1 / (1 + exp2(x * u))
    return s + 1.77919048 * (s * (x - x * s))


def gelu_tanh_slope(x):
    """The error is 0.18."""
    a = abs(x)
    u = -0.09719976 * a + 0.02968160
    u = u * a - 2.05354698
    s = 1 / (1 + exp2(x * u))
    return s + 1.77545441 * (s * (x - x * s))


FORMULAS = {
    activations.gelu: gelu,
    activations.gelu_slope: gelu_slope,
    activations.gelu_tanh: gelu_tanh,
    activations.gelu_tanh_slope: gelu_tanh_slope,
    activations.silu_slope: silu_slope,
    activations.quick_gelu_slope: quick_gelu_slope,
}
"""{a formula of all processors: the formula that replaces it}."""
