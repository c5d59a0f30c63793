"""The table of activations. Each has a value and a slope, and each of these is one scalar formula.

A formula is a plain Python function of one number. `gpudrop.formulas` compiles it for the CPU, for Numba CUDA and for
CuPy. A bare number in it has the type of x. A slope is the derivative d value / d x.
"""

import ast
import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from math import erf, exp, expm1, log1p, tanh
from typing import Any

import numpy as np

from gpudrop import hints
from gpudrop.formulas import Formula, latest, parse
from gpudrop.formulas.cuda_cpp import CudaSource

INV_SQRT_2 = 0.7071067811865476
INV_SQRT_2PI = 0.3989422804014327
SQRT_8_OVER_PI = 1.5957691216057308
SELU_ALPHA = 1.6732632423543772
SELU_SCALE = 1.0507009873554805


@dataclass(frozen=True, eq=False)
class Activation:
    """One row of the table: an activation's name, value and slope, and the argument of its slope.

    slope_of is "input" if the slope is a function of x, and None if it is constant. It is "output" if the slope is a
    function of y. Such a slope must be 0 where y is 0: then the backward pass needs no mask, because dropped elements
    have the slope 0.

    slopes contains both values of a slope that has only two, and None otherwise. Then one bit per element is enough for
    the backward pass: it says whether the slope is the second value.
    """

    name: str
    value: Callable[[Any], Any]
    slope: Callable[[Any], Any]
    slope_of: str | None = "input"
    slopes: tuple[float, float] | None = None


def identity(x):
    return x


def identity_slope(x):
    return 1


def relu(x):
    # Written so that nan stays nan.
    return 0 if x <= 0 else x


def relu_slope(y):
    return 0 if y <= 0 else 1  # 1 where y is nan, so that a gradient of nan stays visible


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


# sigmoid, from the same exponential as sigmoid_slope: together they compute only one.
def _sigmoid_by_abs(x):
    e = exp(-abs(x))
    return (1 if x > 0 else e) / (1 + e)


# gelu_tanh: 0.5 * (1 + tanh(u)) is sigmoid(2u): one exponential, and exact in the tail.
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
    Activation("relu", relu, relu_slope, slope_of="output", slopes=(0, 1)),
    Activation("leaky_relu", leaky_relu, leaky_relu_slope, slopes=(0.01, 1)),
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


BUILT_IN = frozenset(ACTIVATIONS)


def register_activation(
    name: str, value: Callable[[Any], Any], slope: Callable[[Any], Any], *, replace: bool = False
) -> Activation:
    """Add an activation of your own, fused with dropout on every backend.

    Parameters
    ----------
    name : str
        The name for `activation=`: an identifier that is not in use.
    value, slope : function
        Plain Python functions of one number, written with def: the activation and its derivative with
        respect to x. They may use arithmetic, comparisons, conditional expressions, abs, min, max,
        the functions exp, expm1, log, log1p, sqrt, erf, tanh, sin, cos and floor of math or numpy, numbers of
        their module, and other such functions. A bare number in them has the type of the array's arithmetic.
    replace : bool
        Whether to replace an activation that you have registered under that name. It is meant for notebook cells that
        run again, and for modules that are reloaded. Layers with that name use the new activation from then on. In
        PyTorch a backward pass does too, so do not replace an activation between a forward pass and its backward pass.

    Returns
    -------
    Activation
        The new row of the table.

    Raises
    ------
    ValueError
        If the name is in use or not an identifier.
    TypeError
        If value or slope is not a function of one number written with def, or fails for a number.
    SyntaxError
        If a formula uses something that formulas do not support; the message names the line. If it is nested more than
        200 levels deep. If its source cannot be found, or is not the source that the function was compiled from.

    Notes
    -----
    The formula is fixed at registration: later changes of a module's numbers have no effect. The source is read from
    its file, from the notebook's cell, or, from Python 3.13 on, from the prompt. A new process, such as those of
    multiprocessing's spawn and of joblib, must register the activation too. gpudrop does not check that slope is the
    derivative of value.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> from gpudrop.formulas.activations import relu2, relu2_slope  # or two functions of your own
    >>> row = gpudrop.register_activation("my_relu2", relu2, relu2_slope)
    >>> gpudrop.dropout(np.float32([-1, 3]), 0, activation="my_relu2")
    array([0., 9.], dtype=float32)
    >>> gpudrop.unregister_activation("my_relu2")
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"name must be an identifier, got {name!r}")
    if name in BUILT_IN or (name in ACTIVATIONS and not replace):
        advice = "a built-in one can't be replaced" if name in BUILT_IN else "replace=True replaces it"
        raise ValueError(f"activation {name!r} exists already; {advice}")
    ACTIVATIONS[name] = Activation(name, _checked("value", value), _checked("slope", slope))
    return ACTIVATIONS[name]


def unregister_activation(name: str) -> None:
    """Remove an activation of your own from the table.

    Parameters
    ----------
    name : str
        An activation that `register_activation` has added. Calls with this name raise ValueError from then on.

    Raises
    ------
    ValueError
        If no activation has that name, or the activation is built in.

    Examples
    --------
    >>> import gpudrop
    >>> from gpudrop.formulas.activations import relu2, relu2_slope
    >>> row = gpudrop.register_activation("short_lived", relu2, relu2_slope)
    >>> gpudrop.unregister_activation("short_lived")
    """
    known = find_activation(check_activation(name)).name
    if known in BUILT_IN:
        raise ValueError(f"activation {name!r} is built in and can't be removed")
    del ACTIVATIONS[known]


def _checked(role: str, formula: Any) -> Any:
    """A user's formula with the current values of its names, after all checks that are possible before compiling."""
    if isinstance(formula, types.FunctionType):
        signature = inspect.signature(formula, follow_wrapped=False)  # of the function that a decorator returned
        if [a.kind for a in signature.parameters.values()] != [inspect.Parameter.POSITIONAL_OR_KEYWORD]:
            raise TypeError(f"{role} must take one number, {formula.__name__} takes {signature}")
    try:
        formula = latest(formula)
        CudaSource().add(formula)
        _refuse_indices(parse(formula), set())
        nested = _depth(parse(formula).tree)
    except RecursionError:
        nested = DEPTH + 1
    if nested > DEPTH:
        raise SyntaxError(f"{role} is nested too deeply, more than {DEPTH} levels")
    (argument,) = parse(formula).tree.args.args
    if argument.annotation and ast.unparse(argument.annotation) != "float":
        raise TypeError(f"{role} must take a real number, {formula.__name__} takes {ast.unparse(argument.annotation)}")
    try:
        with np.errstate(all="ignore"):
            formula(0.5)
    except (ArithmeticError, ValueError):
        pass  # the function is not defined at 0.5
    except Exception as error:  # operations on bits, for example, which formulas support for integers only
        raise TypeError(f"{role} must be computable from a number, {formula.__name__}(0.5) fails: {error}") from None
    return formula


def _refuse_indices(formula: Formula, seen: set[Formula]) -> None:
    """Raise a SyntaxError for what only index formulas may use: processors differ for negative numbers."""
    seen.add(formula)
    for node in ast.walk(formula.tree):
        operator = node.op if isinstance(node, (ast.BinOp, ast.AugAssign)) else None
        name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        indices = isinstance(node, ast.Tuple) or isinstance(operator, (ast.FloorDiv, ast.Mod))
        if indices or name in ("int64", "rolled", "exchanged"):
            raise formula.refuse(node)
    for called in map(parse, formula.calls.values()):
        if called not in seen:
            _refuse_indices(called, seen)


DEPTH = 200
"""The most levels of a formula's syntax tree. Python's own limit varies, and clang allows 256 nested brackets."""


def _depth(tree: ast.AST) -> int:
    level, depth = [tree], 0
    while level:
        level, depth = [child for node in level for child in ast.iter_child_nodes(node)], depth + 1
    return depth


def find_activation(name: str | Activation | None) -> Activation:
    """The row of a name; None means the identity. A row is returned as it is. A ValueError lists the known names."""
    if isinstance(name, Activation):
        return name
    try:
        return ACTIVATIONS["identity" if name is None else name]
    except (KeyError, TypeError):
        known = ", ".join(sorted(ACTIVATIONS))
        near = hints.hint(name, ACTIVATIONS, hints.ACTIVATIONS)
        near = "; use register_activation to register your own function under a name" if callable(name) else near
        raise ValueError(f"unknown activation {name!r}; known: {known}{near}") from None


def check_activation(activation: Any) -> str | None:
    """The name of an activation in the table, or None; a ValueError if the table does not have it."""
    name = activation.name if isinstance(activation, Activation) else activation
    find_activation(name)
    return name


def check_loaded(activation: str | None) -> None:
    """Raise a ValueError with advice if this process does not know the activation of an unpickled layer."""
    try:
        find_activation(activation)
    except ValueError as error:
        advice = "register your own activation in this process before you load a layer that uses it"
        raise ValueError(f"{error}; {advice}") from None
