"""Attention whose dropout is gpudrop's: torch's own function and module, in which the name `dropout` means another."""

import math
from types import FunctionType, SimpleNamespace

import torch
import torch.nn.functional as F

from gpudrop.dropout import here
from gpudrop.torch import functional, operators

torchs_own = F.scaled_dot_product_attention


def scaled_dot_product_attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """`torch.nn.functional.scaled_dot_product_attention` with the dropout of `gpudrop.torch.functional`.

    Without dropout it is torch's function itself. With it the weights exist in memory, as they do for torch on the
    host: each once before the dropout and once after it. There is no mask.

    Examples
    --------
    >>> import torch, gpudrop.torch
    >>> x = torch.ones(2, 3, 4)
    >>> gpudrop.torch.scaled_dot_product_attention(x, x, x, dropout_p=0.5).shape
    torch.Size([2, 3, 4])
    """
    options = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    if dropout_p == 0:
        return torchs_own(query, key, value, dropout_p=0.0, **options)
    device = query.device.type
    if not torch.is_autocast_enabled(device):
        return _attend(query, key, value, dropout_p, options)
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        return _attend(query.to(dtype), key.to(dtype), value.to(dtype), dropout_p, options)


def _attend(query, key, value, dropout_p, options):
    weights = _weights(query, key, value, **options)
    if options["enable_gqa"]:
        value = value.repeat_interleave(query.size(-3) // value.size(-3), -3)
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or not here().on:
        return functional.dropout(weights, dropout_p) @ value
    return _DropAndMultiply.apply(weights, value, *functional.drawing(weights, dropout_p))


def _weights(query, key, value, attn_mask, is_causal, scale, enable_gqa):
    """softmax(query @ key.T * scale): torch's own, with all that it knows of masks and of rows without a key."""
    if attn_mask is None and not is_causal and not enable_gqa and query.dtype in (torch.float32, torch.float64):
        # The same without what rows without a key take, of which there are none.
        root = math.sqrt(query.size(-1) ** -0.5 if scale is None else scale)
        return torch.softmax((query * root) @ (key * root).mT, -1)
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, float("-inf"))
    options = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    # Values of no width make torch's product of weights and values free.
    operator = torch.ops.aten._scaled_dot_product_attention_math
    return operator(query, key, value[..., :0], attn_mask=attn_mask, dropout_p=0.0, **options)[1]


class _DropAndMultiply(torch.autograd.Function):
    """dropout(weights) @ value, of which the dropped weights are not saved: they are drawn again."""

    @staticmethod
    def forward(ctx, weights, value, stream, *call):
        ctx.stream, ctx.call = stream, call
        ctx.save_for_backward(weights, value)
        return torch.ops.gpudrop.forward(weights, None, stream, *call) @ value

    @staticmethod
    def backward(ctx, dy):
        weights, value = ctx.saved_tensors
        dweights = dvalue = None
        if ctx.needs_input_grad[1]:
            dvalue = torch.ops.gpudrop.forward(weights, None, ctx.stream, *ctx.call).mT @ dy
        if ctx.needs_input_grad[0]:
            dweights = dy @ value.mT
            if torch.is_grad_enabled() or type(dweights) is not torch.Tensor:  # for derivatives of second order
                dweights = torch.ops.gpudrop.backward(dweights, None, ctx.stream, *ctx.call, False)
            else:
                operators.backward(dweights, None, ctx.stream, *ctx.call, False, out=dweights)
        return dweights, dvalue, *(None,) * (1 + len(ctx.call))


def _where(function, **names):
    """A copy of a function for which these names of its module mean other things."""
    # Without __name__, by which torch.compile would find the module's own names again.
    surroundings = {name: value for name, value in function.__globals__.items() if name != "__name__"}
    copy = FunctionType(function.__code__, surroundings | names, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_own = {"dropout": functional.dropout, "scaled_dot_product_attention": scaled_dot_product_attention}
_functional = SimpleNamespace(
    **vars(F) | {"multi_head_attention_forward": _where(F.multi_head_attention_forward, **_own)}
)


class MultiheadAttention(torch.nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` whose weights are dropped by `gpudrop.torch.functional.dropout`.

    Examples
    --------
    >>> import torch, gpudrop.torch
    >>> attention = gpudrop.torch.MultiheadAttention(8, num_heads=2, dropout=0.1)
    >>> x = torch.ones(5, 3, 8)
    >>> attention(x, x, x)[0].shape
    torch.Size([5, 3, 8])
    """

    forward = _where(torch.nn.MultiheadAttention.forward, F=_functional)
