"""A plain activation of a user: its constants are Python numbers, and one function calls another."""

QUARTER = 0.25


def double(x):  # double and register are keywords of C++
    register = x + x
    return register


def cube(x):
    """x**3 + 1 above 0, a quarter of x below."""
    if x > 0:
        return double(x) * x * x / 2 + 1
    return QUARTER * x


def cube_slope(x):
    slope = 3 * x * x
    slope += 0
    return slope if x > 0 else QUARTER
