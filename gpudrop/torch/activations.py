"""Activations that torch has too: the matching modules and functions of torch, and torch's derivatives of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from gpudrop.formulas.activations import SELU_ALPHA, SELU_SCALE

aten = torch.ops.aten


class Torchs(NamedTuple):
    """An activation computed by torch's own operators.

    slope(dy, x) is dy * d value / d x. Torch can differentiate it again, in forward and in reverse mode.
    """

    value: Callable[[Any], Any]
    slope: Callable[[Any, Any], Any]


def _silu_slope(dy: Any, x: Any) -> Any:
    s = x.sigmoid()
    return dy * (s + x * s * (1 - s))


def _mish_slope(dy: Any, x: Any) -> Any:
    t = F.softplus(x).tanh()
    return dy * (t + x * x.sigmoid() * (1 - t * t))


def _quick_gelu_slope(dy: Any, x: Any) -> Any:
    s = (1.702 * x).sigmoid()
    return dy * (s + 1.702 * x * s * (1 - s))


ACTIVATIONS: list[tuple[type[nn.Module], dict[str, Any], str, Callable[[Any, Any], Any]]] = [
    (nn.ReLU, {}, "relu", lambda dy, x: aten.threshold_backward(dy, x, 0)),
    (nn.LeakyReLU, {"negative_slope": 0.01}, "leaky_relu", lambda dy, x: aten.leaky_relu_backward(dy, x, 0.01, False)),
    (nn.ELU, {"alpha": 1.0}, "elu", lambda dy, x: aten.elu_backward(dy, 1.0, 1.0, 1.0, False, x)),
    (nn.SELU, {}, "selu", lambda dy, x: aten.elu_backward(dy, SELU_ALPHA, SELU_SCALE, 1.0, False, x)),
    (nn.GELU, {"approximate": "none"}, "gelu", lambda dy, x: aten.gelu_backward(dy, x)),
    (nn.GELU, {"approximate": "tanh"}, "gelu_tanh", lambda dy, x: aten.gelu_backward(dy, x, approximate="tanh")),
    (nn.SiLU, {}, "silu", _silu_slope),
    (nn.Mish, {}, "mish", _mish_slope),
    (nn.Softplus, {"beta": 1.0, "threshold": 20.0}, "softplus", lambda dy, x: aten.softplus_backward(dy, x, 1.0, 20.0)),
    (nn.Sigmoid, {}, "sigmoid", lambda dy, x: aten.sigmoid_backward(dy, x.sigmoid())),
    (nn.Tanh, {}, "tanh", lambda dy, x: aten.tanh_backward(dy, x.tanh())),
    (nn.Hardswish, {}, "hardswish", lambda dy, x: aten.hardswish_backward(dy, x)),
]
"""Rows of (torch's module, the arguments that it must have, gpudrop's name, slope)."""

BY_CLASS: dict[type[nn.Module], list[tuple[dict[str, Any], str]]] = {}
for _cls, _arguments, _name, _ in ACTIVATIONS:
    BY_CLASS.setdefault(_cls, []).append((_arguments, _name))

FUNCTIONS = {F.relu: "relu", F.gelu: "gelu"}
"""The functions that torch's transformer layers accept by name -> gpudrop's name."""

TORCHS = {name: Torchs(cls(**arguments), slope) for cls, arguments, name, slope in ACTIVATIONS}
TORCHS["relu2"] = Torchs(lambda x: F.relu(x).square(), lambda dy, x: dy * 2 * F.relu(x))
TORCHS["quick_gelu"] = Torchs(lambda x: x * (1.702 * x).sigmoid(), _quick_gelu_slope)
"""gpudrop's name -> Torchs, for all of gpudrop's activations except those that users register."""


def name_of(activation: Any) -> str | None:
    """Return gpudrop's name of an activation module of torch or of a function in FUNCTIONS; None for any other."""
    if isinstance(activation, nn.Module):
        rows = BY_CLASS.get(type(activation), ())
        return next((name for arguments, name in rows if arguments.items() <= vars(activation).items()), None)
    return next((name for function, name in FUNCTIONS.items() if function is activation), None)
