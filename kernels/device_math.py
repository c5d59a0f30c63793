"""Formulas for the GPU, for 16-bit results: rounding to 11 digits hides their error in float32.

The hardware's exp and division are used with them. Each is wrong by a few units in the last place of a float32.
"""

from math import exp

from gpudrop.formulas import activations


def normal_cdf(x):
    """1 / (1 + exp(-u)) where u, the logit, is an odd polynomial of degree 11.

    It is the minimax fit by linear programming (SciPy's linprog) on [0, 5.5]. Beyond 5.5, u is linear. The relative
    error is below 7.3e-5 for x >= -3. The absolute error is below 1.8e-7 for x < -3.
    """
    t = min(30.25, x * x)
    u = 3.86455687e-06 - 6.85543379e-08 * t
    u = u * t - 7.13066367e-05
    u = u * t - 2.45596608e-04
    u = u * t + 7.30149344e-02
    u = u * t + 1.59557893
    return 1 / (1 + exp(-x * u))


FORMULAS = {activations.normal_cdf: normal_cdf}
