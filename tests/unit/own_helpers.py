"""Another module with formulas of the same names as own_activation's."""

from math import tanh as hyperbolic


def double(x):
    return 2 * x + 1


def tanh(x):
    return hyperbolic(x) / 2
