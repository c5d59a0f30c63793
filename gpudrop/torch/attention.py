"""Attention with gpudrop's dropout: torch's own function and module, in which `dropout` is replaced."""

import math
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from gpudrop.context import current
from gpudrop.torch import functional, modules, operators

torchs_own = F.scaled_dot_product_attention


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Compute `torch.nn.functional.scaled_dot_product_attention` with the dropout of `gpudrop.torch.functional`.

    With dropout_p = 0 it calls torch's function. Otherwise the attention weights are stored, as in torch on the CPU.
    The backward pass keeps one copy of the weights, from before dropout, and no mask. On a GPU this takes longer than
    torch's fused kernels, which draw their own masks.

    Examples
    --------
    >>> import torch, gpudrop.torch
    >>> x = torch.ones(2, 3, 4)
    >>> gpudrop.torch.scaled_dot_product_attention(x, x, x, dropout_p=0.5).shape
    torch.Size([2, 3, 4])
    """
    options: dict[str, Any] = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    if dropout_p == 0:
        return torchs_own(query, key, value, dropout_p=0.0, **options)
    device, inputs = query.device.type, (query, key, value)
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return _attend(*inputs, dropout_p, options)
    dtype = torch.get_autocast_dtype(device)
    query, key, value = (x if x.dtype is torch.float64 else x.to(dtype) for x in inputs)
    with torch.autocast(device, enabled=False):
        return _attend(query, key, value, dropout_p, options)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout_p: float, options: dict[str, Any]
) -> torch.Tensor:
    attn_mask, scale = options["attn_mask"], options["scale"]
    if not takes(query, attn_mask) or (attn_mask is not None and options["is_causal"]):
        return torchs_own(query, key, value, dropout_p=dropout_p, **options)  # which raises
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -math.inf)
    if options["enable_gqa"]:
        key, value = (x.repeat_interleave(query.size(-3) // x.size(-3), -3) for x in (key, value))
    if _is_plain(query, key, value, attn_mask):
        fixed = options["is_causal"], query.size(-1) ** -0.5 if scale is None else scale
        return _Attention.apply(query, key, value, attn_mask, fixed, *functional.drawing(query, dropout_p))
    # Torch computes the weights. With values of width 0, the product of weights and values costs nothing.
    options = options | {"attn_mask": attn_mask, "enable_gqa": False}
    math_only = torch.ops.aten._scaled_dot_product_attention_math
    weights = math_only(query, key, value[..., :0], dropout_p=0.0, **options)[1]
    return functional.dropout(weights, dropout_p) @ value


def takes(query: torch.Tensor, attn_mask: Any) -> bool:
    """Whether torch's function accepts this type of mask for this query."""
    if attn_mask is None:
        return True
    return isinstance(attn_mask, torch.Tensor) and attn_mask.dtype in (torch.bool, torch.float32, query.dtype)


def _is_plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None) -> bool:
    """Whether `_Attention` supports the call.

    That requires eager mode, plain tensors without subclasses, and a mask that needs no gradient.
    """
    inputs = (query, key, value)
    return (
        not torch.compiler.is_compiling()
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and all(type(x) in functional.PLAIN and x.dtype in (torch.float32, torch.float64) for x in inputs)
        and query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
        and min(*query.shape, *key.shape) > 0
        and query.device.type in ("cpu", "cuda")
        and not (attn_mask is not None and attn_mask.requires_grad)
        and current().on
    )


def _weights(
    query: torch.Tensor, key: torch.Tensor, attn_mask: torch.Tensor | None, is_causal: bool, scale: float
) -> torch.Tensor:
    """Return softmax(query @ key.T * scale + attn_mask), in place where possible; rows without a key are 0."""
    scores = (query * scale) @ key.mT
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu_(1)
        scores = scores.masked_fill_(later, -math.inf)
    if attn_mask is None:
        return _softmax(scores)
    scores = scores.add_(attn_mask)
    keyless = scores.amax(-1, keepdim=True) == -math.inf
    return _softmax(scores.masked_fill_(keyless, 0)).masked_fill(keyless, 0)


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    return torch.softmax(scores, -1) if torch.is_grad_enabled() else torch.softmax(scores, -1, out=scores)


class _Attention(torch.autograd.Function):
    """Attention that keeps one copy of its weights, from before dropout, and works in place on its own buffers.

    Memory decides the time here: first use of new pages takes longer than the arithmetic.
    """

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, attn_mask: Any, fixed: Any, stream: Any, *call: Any) -> Any:
        weights = _weights(query, key, attn_mask, *fixed)
        ctx.fixed, ctx.stream, ctx.call = fixed, stream, call
        ctx.save_for_backward(query, key, value, attn_mask, weights)
        return operators.FORWARD(weights, None, stream, *call) @ value

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        with torch.autocast(dy.device.type, enabled=False):
            return *_attention_gradient(ctx, dy), *(None,) * (3 + len(ctx.call))


def _attention_gradient(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, ...]:
    query, key, value, attn_mask, weights = ctx.saved_tensors
    scale, again = ctx.fixed[1], torch.is_grad_enabled()
    if again:  # the gradient may be differentiated again
        weights = _weights(query, key, attn_mask, *ctx.fixed)
    dvalue = operators.FORWARD(weights, None, ctx.stream, *ctx.call).mT @ dy
    dscores = dy @ value.mT
    batched = torch._C._functorch.is_legacy_batchedtensor(dscores)  # by is_grads_batched
    if again or batched or torch._C._functorch.is_functorch_wrapped_tensor(dscores):
        dscores = operators.BACKWARD(dscores, None, ctx.stream, *ctx.call, False)
        dscores = weights * (dscores - (dscores * weights).sum(-1, keepdim=True))
    else:
        operators.backward(dscores, None, ctx.stream, *ctx.call, False, out=dscores)
        torch.ops.aten._softmax_backward_data.out(dscores, weights, -1, dscores.dtype, grad_input=dscores)
    return dscores @ key * scale, dscores.mT @ (query * scale), dvalue


def _where(function: Any, **names: Any) -> Any:
    """Return a copy of a function in which some global names are replaced."""
    # Leave out __name__: with it torch.compile would find the original globals of the module.
    around = {name: value for name, value in function.__globals__.items() if name != "__name__"}
    copy = FunctionType(function.__code__, around | names, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__globals__[function.__name__] = copy  # the function passes itself to modes, which call it
    return copy


def _without_weights(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Compute attention without returning its weights; on CUDA by torch's fused kernels, which do not store them."""
    if query.is_cuda and functional.is_on():
        return torchs_own(query, *args, **kwargs)
    return scaled_dot_product_attention(query, *args, **kwargs)


_own = {"dropout": functional.dropout, "scaled_dot_product_attention": _without_weights}
_functional = SimpleNamespace(
    **vars(F) | {"multi_head_attention_forward": _where(F.multi_head_attention_forward, **_own)}
)


class MultiheadAttention(torch.nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` with `gpudrop.torch.functional.dropout` on the attention weights.

    On CUDA with need_weights=False it runs torch's fused kernels, which do not store the weights.

    Examples
    --------
    >>> import torch, gpudrop.torch
    >>> attention = gpudrop.torch.MultiheadAttention(8, num_heads=2, dropout=0.1)
    >>> x = torch.ones(5, 3, 8)
    >>> attention(x, x, x)[0].shape
    torch.Size([5, 3, 8])
    """

    forward = modules.leaf(_where(torch.nn.MultiheadAttention.forward, F=_functional))

    __prepare_scriptable__ = modules.refuse_scripts
