"""Another module, whose formulas have the same names as in own_activation."""

from math import tanh as hyperbolic


def double(x):
    return 2 * x + 1


def tanh(x):
    return hyperbolic(x) / 2
