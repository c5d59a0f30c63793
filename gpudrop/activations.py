"""The table of activations: each one a value and a slope, each of them one scalar formula.

A formula is a plain Python function of one number. `gpudrop.formulas` makes the host, Numba's CUDA
and CuPy compile it; a bare number in it has the type of x. Slopes are d value / d x.
"""

import ast
import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from math import erf, exp, expm1, log1p, tanh
from typing import Any

import numpy as np

from gpudrop.cuda_source import CudaSource
from gpudrop.formulas import parse

INV_SQRT_2 = 0.7071067811865476
INV_SQRT_2PI = 0.3989422804014327
SQRT_8_OVER_PI = 1.5957691216057308
SELU_ALPHA = 1.6732632423543772
SELU_SCALE = 1.0507009873554805


@dataclass(frozen=True, eq=False)
class Activation:
    """One row of the table: an activation's name, value, slope, and what its slope is a function of.

    slope_of is "input" (x), "output" (y: the slope must be 0 where y is 0, so that a dropped element
    needs no bits to be told from a kept one) or None (the slope is constant).
    """

    name: str
    value: Callable[[Any], Any]
    slope: Callable[[Any], Any]
    slope_of: str | None = "input"


def identity(x):
    return x


def identity_slope(x):
    return 1


def relu(x):
    # Written so that nan stays nan.
    return 0 if x <= 0 else x


def relu_slope(y):
    return 0 if y <= 0 else 1  # a gradient of nan shows where y is nan


def leaky_relu(x):
    return x if x > 0 else 0.01 * x


def leaky_relu_slope(x):
    return 1 if x > 0 else 0.01


def relu2(x):
    return 0 if x <= 0 else x * x


def relu2_slope(x):
    return 2 * x if x > 0 else 0


def elu(x):
    return x if x > 0 else expm1(x)


def elu_slope(x):
    return 1 if x > 0 else exp(x)


def selu(x):
    return SELU_SCALE * (x if x > 0 else SELU_ALPHA * expm1(x))


def selu_slope(x):
    return SELU_SCALE * (1 if x > 0 else SELU_ALPHA * exp(x))


def normal_cdf(x):
    return 0.5 * (1 + erf(x * INV_SQRT_2))


def gelu(x):
    return x * normal_cdf(x)


def gelu_slope(x):
    return normal_cdf(x) + x * INV_SQRT_2PI * exp(-0.5 * x * x)


def sigmoid(x):
    return 1 / (1 + exp(-x))


def sigmoid_slope(x):
    # exp(-|x|) keeps the quotient finite on both sides.
    e = exp(-abs(x))
    return e / ((1 + e) * (1 + e))


# sigmoid, out of what sigmoid_slope computes: together they cost one exponential.
def _sigmoid_by_abs(x):
    e = exp(-abs(x))
    return (1 if x > 0 else e) / (1 + e)


# gelu_tanh: 0.5 * (1 + tanh(u)) is sigmoid(2u), one exponential and exact in the tail.
def gelu_tanh(x):
    return x * sigmoid(SQRT_8_OVER_PI * x * (1 + 0.044715 * x * x))


def gelu_tanh_slope(x):
    # Beyond 10 the slope is 0 or 1 to the last digit, and x * x may overflow.
    return 1 if x > 10 else 0 if x < -10 else _gelu_tanh_slope(x)


def _gelu_tanh_slope(x):
    u = SQRT_8_OVER_PI * x * (1 + 0.044715 * x * x)
    return _sigmoid_by_abs(u) + x * sigmoid_slope(u) * SQRT_8_OVER_PI * (1 + 0.134145 * x * x)


def quick_gelu(x):
    return x * sigmoid(1.702 * x)


def quick_gelu_slope(x):
    return _sigmoid_by_abs(1.702 * x) + x * sigmoid_slope(1.702 * x) * 1.702


def silu(x):
    return x / (1 + exp(-x))


def silu_slope(x):
    return _sigmoid_by_abs(x) + x * sigmoid_slope(x)


def softplus(x):
    return (x if x > 0 else 0) + log1p(exp(-abs(x)))


# tanh(softplus(x)) = n / (n + 2) with n = e * (e + 2), e = exp(x); for x > 0 in terms of w = 1 / e.
def mish(x):
    w = exp(-abs(x))
    return x * ((1 + 2 * w) / (1 + 2 * w + 2 * w * w) if x > 0 else w * (w + 2) / (w * (w + 2) + 2))


def mish_slope(x):
    w = exp(-abs(x))
    divisor = 1 + 2 * w + 2 * w * w if x > 0 else w * (w + 2) + 2
    t = (1 + 2 * w if x > 0 else w * (w + 2)) / divisor
    one_minus_t = (2 * w * w if x > 0 else 2) / divisor
    return t + x * one_minus_t * (1 + t) * _sigmoid_by_abs(x)


def tanh_slope(x):
    e = exp(-2 * abs(x))
    return 4 * e / ((1 + e) * (1 + e))


def tanh_value(x):
    return tanh(x)


def hardswish(x):
    return 0 if x <= -3 else x if x >= 3 else x * (x + 3) / 6


def hardswish_slope(x):
    return 0 if x <= -3 else 1 if x >= 3 else x / 3 + 0.5


_ROWS = (
    Activation("identity", identity, identity_slope, slope_of=None),
    Activation("relu", relu, relu_slope, slope_of="output"),
    Activation("leaky_relu", leaky_relu, leaky_relu_slope),
    Activation("relu2", relu2, relu2_slope),
    Activation("elu", elu, elu_slope),
    Activation("selu", selu, selu_slope),
    Activation("gelu", gelu, gelu_slope),
    Activation("gelu_tanh", gelu_tanh, gelu_tanh_slope),
    Activation("quick_gelu", quick_gelu, quick_gelu_slope),
    Activation("silu", silu, silu_slope),
    Activation("mish", mish, mish_slope),
    Activation("softplus", softplus, sigmoid),
    Activation("sigmoid", sigmoid, sigmoid_slope),
    Activation("tanh", tanh_value, tanh_slope),
    Activation("hardswish", hardswish, hardswish_slope),
)
ACTIVATIONS = {row.name: row for row in _ROWS}
"""The table: name -> Activation."""


def register_activation(name: str, value: Callable[[Any], Any], slope: Callable[[Any], Any]) -> Activation:
    """Add an activation of your own, fused with dropout on every backend.

    Parameters
    ----------
    name : str
        What `activation=` calls it; an identifier that isn't taken.
    value, slope : function
        Plain Python functions of one number, written with def: the activation and its derivative with
        respect to x. They may use arithmetic, comparisons, conditional expressions, abs, min, max,
        the functions exp, expm1, log, log1p, sqrt, erf, tanh, sin, cos and floor of math or numpy, and
        other such functions. A bare number in them has the type of the array's arithmetic.

    Returns
    -------
    Activation
        The new row of the table.

    Raises
    ------
    ValueError
        If the name is taken or not an identifier.
    TypeError
        If value or slope is not a function of one number written with def, or can't be computed from one.
    SyntaxError
        If a line has no CUDA spelling; it names the line. Or if a formula is nested more than 200 levels deep.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> from gpudrop.activations import relu2, relu2_slope  # or two functions of your own
    >>> row = gpudrop.register_activation("my_relu2", relu2, relu2_slope)
    >>> gpudrop.dropout(np.float32([-1, 3]), 0, activation="my_relu2")
    array([0., 9.], dtype=float32)
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"name must be an identifier, got {name!r}")
    if name in ACTIVATIONS:
        raise ValueError(f"activation {name!r} exists already")
    for role, formula in (("value", value), ("slope", slope)):
        _check_formula(role, formula)
    ACTIVATIONS[name] = Activation(name, value, slope)
    return ACTIVATIONS[name]


def _check_formula(role: str, formula: Any) -> None:
    """What can be known of a user's formula before a processor compiles it."""
    try:
        CudaSource().add(formula)
        nested = _depth(parse(formula).tree)
    except RecursionError:
        nested = DEPTH + 1
    if nested > DEPTH:
        raise SyntaxError(f"{role} is nested too deeply, more than {DEPTH} levels")
    signature = inspect.signature(formula)
    if [a.kind for a in signature.parameters.values()] != [inspect.Parameter.POSITIONAL_OR_KEYWORD]:
        raise TypeError(f"{role} must take one number, {formula.__name__} takes {signature}")
    try:
        with np.errstate(all="ignore"):
            formula(0.5)
    except (ArithmeticError, ValueError):
        pass  # it isn't defined there
    except Exception as error:  # operations on bits, say, which have a spelling but no meaning
        raise TypeError(f"{role} must be computable from a number, {formula.__name__}(0.5) fails: {error}") from None


DEPTH = 200
"""Levels of a formula's syntax tree at most. Python's own limit may be any, and clang, say, allows 256 brackets."""


def _depth(tree: ast.AST) -> int:
    level, depth = [tree], 0
    while level:
        level, depth = [child for node in level for child in ast.iter_child_nodes(node)], depth + 1
    return depth


@functools.cache
def of_input(activation: Activation) -> Activation:
    """The activation with a slope that is a function of x, for a backward pass that must not rely on y."""
    return dataclasses.replace(activation, name=f"{activation.name}_of_input", slope_of="input")


def find_activation(name: str | Activation | None) -> Activation:
    """The row for a name, or for None the identity; a ValueError lists the known names. A row is what it is."""
    if isinstance(name, Activation):
        return name
    try:
        return ACTIVATIONS["identity" if name is None else name]
    except (KeyError, TypeError):
        raise ValueError(f"unknown activation {name!r}; known: {', '.join(sorted(ACTIVATIONS))}") from None
