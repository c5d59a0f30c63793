"""Subclasses of torch's modules that fuse an activation with the dropout after it, where this is unobservable.

`convert` changes existing modules to these classes. The children and their names stay the same. Each call decides
whether to fuse, because hooks can be added and removed at any time.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from gpudrop.torch import functional, modules
from gpudrop.torch.activations import name_of

LINEAR = (nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MAKES_ITS_OUTPUT = frozenset([*LINEAR, *TRANSPOSED, *NORMS])
"""Modules that return a new tensor, do not keep a reference to it and do not write to their input."""

SAVES_ITS_OUTPUT = ("sigmoid", "tanh")
"""Activations whose gradient uses x in gpudrop but the result in torch: a user may overwrite x."""

WIDENED = ("softplus",)
"""Activations that run in float32 under autocast."""


def _is_plain(module: Any) -> bool:
    """Whether a call of the module only runs the forward of its class, without hooks."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
    )


def _is_watched() -> bool:
    """Whether a global hook observes all modules, or a mode observes all functions of torch."""
    if _has_any_global_hook():
        return True
    if torch.compiler.is_compiling() or not torch._C._len_torch_function_stack():
        return False
    return any(not isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())


def _makes_its_output(module: Any) -> bool:
    """Whether this is one of MAKES_ITS_OUTPUT without hooks."""
    return type(module) in MAKES_ITS_OUTPUT and _is_plain(module)


def _drops(dropout: Any, x: Any) -> bool:
    """Whether this module drops elements of x and uses gpudrop's kernels."""
    return (
        type(dropout) in modules.STANDS_FOR
        and dropout.training
        and dropout.activation is None
        and type(x) in functional.PLAIN
        and functional.serves(x, dropout.variant)
        and dropout.probability() != 0
    )


def activated_and_dropped(before: Any, activation: Any, dropout: Any, after: Any, x: Any) -> Any:
    """Return dropout(activation(x)), in one pass where this is unobservable.

    before is the module that returned x. after is the module that receives the result.
    """
    name = name_of(activation)
    if (
        name is None
        or not _drops(dropout, x)
        or (isinstance(activation, nn.Module) and not (_is_plain(activation) and not getattr(activation, "inplace", 0)))
        or not _is_plain(dropout)
        or _is_watched()
        or (name in SAVES_ITS_OUTPUT and not _makes_its_output(before))
        or (name in WIDENED and torch.is_autocast_enabled(x.device.type))
    ):
        return dropout(activation(x))
    # In torch, relu's gradient uses relu's result, and dropout's its mask. So x and y may be overwritten: save neither.
    bits = name == "relu" and not (_makes_its_output(before) and _makes_its_output(after))
    return dropout.apply_to(x, activation=name, inplace=False, save="bits" if bits else None)


class Sequential(nn.Sequential):
    """`torch.nn.Sequential` that fuses activations with the dropout after them."""

    def forward(self, input: Any) -> Any:
        parts: list[Any] = [None, *self._modules.values(), None]
        x = input
        k = 1
        while k < len(parts) - 1:
            before, part, after = parts[k - 1 : k + 2]
            if type(after) in modules.STANDS_FOR:
                x = activated_and_dropped(before, part, after, parts[k + 2], x)
                k += 2
            else:
                x = part(x)
                k += 1
        return x

    __prepare_scriptable__ = modules.refuse_scripts


class _FusedLayer(nn.Module):
    """The common part of torch's transformer layers: linear2(dropout(activation(linear1(x))))."""

    def _fed_forward(self, x: torch.Tensor) -> Any:
        parts: Any = self
        x = parts.linear1(x)
        return parts.linear2(activated_and_dropped(parts.linear1, parts.activation, parts.dropout, parts.linear2, x))

    __prepare_scriptable__ = modules.refuse_scripts


class TransformerEncoderLayer(_FusedLayer, nn.TransformerEncoderLayer):
    """`torch.nn.TransformerEncoderLayer` that fuses its activation with the dropout after it."""

    forward = modules.leaf(nn.TransformerEncoderLayer.forward)

    def _ff_block(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout2(self._fed_forward(x))


class TransformerDecoderLayer(_FusedLayer, nn.TransformerDecoderLayer):
    """`torch.nn.TransformerDecoderLayer` that fuses its activation with the dropout after it."""

    forward = modules.leaf(nn.TransformerDecoderLayer.forward)

    def _ff_block(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout3(self._fed_forward(x))
