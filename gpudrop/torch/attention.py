"""Attention whose dropout is gpudrop's: torch's own function and module, in which the name `dropout` means another."""

from types import FunctionType, SimpleNamespace

import torch
import torch.nn.functional as F

from gpudrop.torch import functional

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
    mask = options["attn_mask"]
    if mask is not None and mask.dtype is torch.bool:
        added = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
        options = options | {"attn_mask": added}
    # Torch's own weights, with all that it knows of masks; values of no width make its product with them free.
    nothing = value[..., :0]
    weights = torch.ops.aten._scaled_dot_product_attention_math(query, key, nothing, dropout_p=0.0, **options)[1]
    if options["enable_gqa"]:
        value = value.repeat_interleave(query.size(-3) // value.size(-3), -3)
    return functional.dropout(weights, dropout_p) @ value


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
