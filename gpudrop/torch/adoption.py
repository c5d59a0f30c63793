"""Use gpudrop in existing models: accelerate replaces torch's functions, convert changes the classes of modules."""

import functools
import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import nn
from torch.jit import _builtins
from torch.overrides import handle_torch_function, has_torch_function_unary, has_torch_function_variadic

from gpudrop.context import Block
from gpudrop.torch import attention, functional, fused, modules
from gpudrop.torch.activations import name_of

_lock = threading.Lock()
_held: list["Accelerated"] = []  # the active blocks, including the one that accelerate(True) starts
_everywhere = False  # whether attention on CUDA is replaced too


def _overrides(x: Any) -> bool:
    """Whether the type of x defines its own __torch_function__."""
    method = getattr(type(x), "__torch_function__", torch._C._disabled_torch_function_impl)
    inherited = getattr(method, "__func__", None) is getattr(torch.Tensor.__torch_function__, "__func__")  # noqa: B009
    return method is not torch._C._disabled_torch_function_impl and not inherited


def _rerouted(name: str, on: bool) -> Callable[..., Any]:
    """Return the replacement for a function of torch.

    It calls gpudrop's function if elements are dropped and gpudrop has kernels for the input. Otherwise it calls
    torch's function, which then raises torch's errors.
    """
    torchs, own = getattr(F, name), getattr(functional, name)

    @functools.wraps(torchs)
    def function(input: Any, p: Any = 0.5, training: Any = on, inplace: Any = False) -> Any:
        if has_torch_function_unary(input):  # tensor subclasses and modes get torch's function if nothing is dropped
            drops = training is True and isinstance(p, (int, float)) and p > 0 and not _overrides(input)
            seen = function if drops else torchs
            return handle_torch_function(seen, (input,), input, p=p, training=training, inplace=inplace)
        if p < 0.0 or p > 1.0 or not p > 0.0 or training is not True or not functional.serves(input, name):
            return torchs(input, p, training if not training or functional.is_on() else False, inplace)
        return own(input, p if type(p) is float else float(p), True, inplace)

    function.__prepare_scriptable__ = lambda: torchs  # type: ignore[attr-defined]  # torch.jit.script compiles torchs
    return function


ATTENTION = "scaled_dot_product_attention"
_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")  # scale and enable_gqa are keyword-only


def _rerouted_attention() -> Callable[..., Any]:
    torchs = F.scaled_dot_product_attention

    @functools.wraps(torchs)
    def function(*args: Any, **kwargs: Any) -> Any:
        named = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
        tensors: Any = [named.get(name) for name in _ARGUMENTS[:3]]
        if not all(isinstance(x, torch.Tensor) for x in tensors) or len(named) != len(args) + len(kwargs):
            return torchs(*args, **kwargs)
        if not functional.is_on():
            return torchs(**named | {"dropout_p": 0.0})
        if not _serves_attention(tensors, named.get("attn_mask"), named.get("dropout_p", 0.0)):
            return torchs(*args, **kwargs)
        if has_torch_function_variadic(*tensors):
            return handle_torch_function(function, tensors, *args, **kwargs)
        if torch.compiler.is_compiling():
            return attention.scaled_dot_product_attention(*args, **kwargs)
        try:
            return attention.scaled_dot_product_attention(*args, **kwargs)
        except (IndexError, RuntimeError, TypeError, ValueError):
            return torchs(*args, **kwargs)  # which raises torch's own error

    _builtins._register_builtin(function, "aten::scaled_dot_product_attention")  # torch.jit.script compiles this one
    return function


def _serves_attention(tensors: list[torch.Tensor], mask: Any, p: Any) -> bool:
    """Whether elements are dropped, gpudrop has kernels for the tensors, and torch accepts their dtypes together."""
    if any(type(x) not in functional.PLAIN and _overrides(x) for x in tensors):
        return False
    if not isinstance(p, float) or not 0 < p <= 1 or not all(functional.serves(x, "") for x in tensors):
        return False
    query, key, value = tensors
    if not query.dtype == key.dtype == value.dtype or not query.device == key.device == value.device:
        return False
    if not _everywhere and query.device.type != "cpu":
        return False
    return attention.takes(query, mask) and min(x.dim() for x in tensors) >= 2


_rerouting = {name: _rerouted(name, on=name not in functional.OFF_BY_DEFAULT) for name in functional.REPLACED}
_rerouting[ATTENTION] = _rerouted_attention()
_before: dict[str, Callable[..., Any]] = {}  # the functions that were replaced


class Accelerated(Block):
    """A block in which torch's functions are replaced; attention as for `accelerate`."""

    def __init__(self, attention: bool | None) -> None:
        self.attention = attention

    def __enter__(self) -> None:
        with _lock:
            _held.append(self)
            _reroute()

    def __exit__(self, *error: object) -> None:
        with _lock:
            for k in reversed(range(len(_held))):
                if _held[k] is self:
                    del _held[k]
                    break
            _reroute()


def _reroute() -> None:
    """Replace or restore torch's functions, according to the active blocks.

    The restored function is the one that was replaced, which may be another library's.
    """
    global _everywhere
    _everywhere = any(held.attention for held in _held)
    for name, function in _rerouting.items():
        wanted = bool(_held) and not (name == ATTENTION and any(held.attention is False for held in _held))
        is_ours = getattr(F, name) is function
        if wanted and not is_ours:
            _before[name] = getattr(F, name)
            setattr(F, name, function)
        elif not wanted and is_ours:
            setattr(F, name, _before[name])


_process: list[Accelerated] = []


@overload
def accelerate(process: None = None, *, attention: bool | None = None) -> Block: ...
@overload
def accelerate(process: bool, *, attention: bool | None = None) -> None: ...
def accelerate(process: bool | None = None, *, attention: bool | None = None) -> Block | None:
    """Replace the dropout of torch.nn.functional, and so of every model that uses it, by gpudrop's.

    The replaced functions are dropout, dropout1d, dropout2d, dropout3d, alpha_dropout, feature_alpha_dropout,
    scaled_dot_product_attention and multi_head_attention_forward. Torch's modules call these functions, so they change
    too. Torch's own functions still run outside training, with p = 0, and for unsupported devices, dtypes and layouts.
    Their errors and warnings stay the same.

    Parameters
    ----------
    process : bool, optional
        True replaces the functions from now on. False restores them. By default the result is a context manager.
    attention : bool, optional
        Whether scaled_dot_product_attention is replaced. None replaces it on the CPU but not on CUDA. PyTorch's fused
        CUDA kernels draw their own masks and do not store the attention weights. True replaces it on CUDA too. The
        weights are then stored, batch * heads * length * length of them, and a call takes longer. False never replaces
        it.

    Returns
    -------
    context manager, or None if `process` is set
        It is a decorator too, and can be entered again.

    Notes
    -----
    The replacement applies to the whole process and all of its threads. Some functions stay torch's own: those
    imported by name before (`from torch.nn.functional import dropout`), `torch.dropout`, and torch.nn's recurrent
    layers. With activation checkpointing (`torch.utils.checkpoint`), run the backward pass in the block too, because
    it runs parts of the model again. torch.compile compiles a model separately for use inside and outside the block.
    Without CuPy, CUDA tensors still use torch's dropout, and a warning says so.

    Examples
    --------
    >>> import torch, gpudrop.torch
    >>> layer = torch.nn.TransformerEncoderLayer(16, nhead=2, dropout=0.1, batch_first=True)
    >>> with gpudrop.torch.accelerate():
    ...     layer(torch.ones(3, 5, 16)).sum().backward()
    """
    block = Accelerated(attention)
    if process is None:
        return block
    while _process:
        _process.pop().__exit__()
    if process:
        _process.append(block)
        block.__enter__()
    return None


# Torch's class -> gpudrop's class, for convert. An nn.Sequential is handled separately, because only some can fuse.
CLASSES: dict[type[nn.Module], type[nn.Module]] = {torchs: cls for cls, torchs in modules.STANDS_FOR.items()} | {
    nn.MultiheadAttention: attention.MultiheadAttention,
    nn.TransformerEncoderLayer: fused.TransformerEncoderLayer,
    nn.TransformerDecoderLayer: fused.TransformerDecoderLayer,
}
TORCHS = {cls: torchs for torchs, cls in CLASSES.items()} | {fused.Sequential: nn.Sequential}


def _may_fuse(sequential: nn.Module) -> bool:
    parts = list(sequential.children())
    return any(name_of(a) is not None and type(b) in TORCHS for a, b in pairwise(parts))


def convert(model: nn.Module) -> nn.Module:
    """Convert torch's dropout modules in a model to gpudrop's, and fuse activations with the dropout after them.

    The modules nn.Dropout, Dropout1d, Dropout2d, Dropout3d, AlphaDropout, FeatureAlphaDropout and MultiheadAttention
    are converted to gpudrop's classes of the same names. An activation and the dropout directly after it run in one
    pass in an nn.Sequential. The same holds for the feed-forward block of nn.TransformerEncoderLayer and
    nn.TransformerDecoderLayer. Only the class of a module changes: it remains the same object, with its parameters,
    mode and hooks, at its index.

    Apart from masks and speed, the model behaves as before. Hooks, modes and in-place operations could observe a fused
    pass, so each call checks for them and does not fuse in that case. In evaluation mode, and with p = 0, the modules
    run torch's code. Subclasses of torch's modules do not change. For models that call dropout functions, use
    `accelerate`.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place.

    Returns
    -------
    torch.nn.Module
        The model.

    See Also
    --------
    revert

    Notes
    -----
    torch.jit.script can't compile a converted model and raises RuntimeError.

    Examples
    --------
    >>> import torch, gpudrop.torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Dropout(0.1))
    >>> type(gpudrop.torch.convert(model)[2])
    <class 'gpudrop.torch.modules.Dropout'>
    >>> type(gpudrop.torch.revert(model)[2])
    <class 'torch.nn.modules.dropout.Dropout'>
    """
    _with_classes(model, CLASSES)
    for module in model.modules():
        if type(module) is nn.Sequential and _may_fuse(module):
            module.__class__ = fused.Sequential
    return model


def revert(model: nn.Module) -> nn.Module:
    """Undo `convert`: change gpudrop's modules in a model back to torch's classes.

    Modules without an equivalent in torch do not change: other variants, and modules with an activation, a generator or
    a Schedule.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place.

    Returns
    -------
    torch.nn.Module
        The model.

    Examples
    --------
    >>> import torch, gpudrop.torch
    >>> gpudrop.torch.revert(gpudrop.torch.convert(torch.nn.Dropout(0.1)))
    Dropout(p=0.1, inplace=False)
    """
    return _with_classes(model, TORCHS)


def _with_classes(model: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> nn.Module:
    for module in list(model.modules()):
        cls = classes.get(type(module))
        if cls is not None and not (isinstance(module, modules.Variant) and module.is_own()):
            module.__class__ = cls
    return model
