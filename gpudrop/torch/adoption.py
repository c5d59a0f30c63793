"""One line for models that exist: accelerate reroutes torch's functions, convert gives modules other classes."""

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
_held: list["Accelerated"] = []  # what is in force: blocks, and what was asked for the process
_everywhere = False  # whether attention on CUDA is rerouted too


def _overrides(x: Any) -> bool:
    """Whether its type says itself what torch's functions do with it."""
    method = getattr(type(x), "__torch_function__", torch._C._disabled_torch_function_impl)
    inherited = getattr(method, "__func__", None) is getattr(torch.Tensor.__torch_function__, "__func__")  # noqa: B009
    return method is not torch._C._disabled_torch_function_impl and not inherited


def _rerouted(name: str, on: bool) -> Callable[..., Any]:
    """gpudrop's function where it drops something and has kernels for it, and torch's, with its errors, elsewhere."""
    torchs, own = getattr(F, name), getattr(functional, name)

    @functools.wraps(torchs)
    def function(input: Any, p: Any = 0.5, training: Any = on, inplace: Any = False) -> Any:
        if has_torch_function_unary(input):  # who looks sees torch's function, but for one that drops
            drops = training is True and isinstance(p, (int, float)) and p > 0 and not _overrides(input)
            seen = function if drops else torchs
            return handle_torch_function(seen, (input,), input, p=p, training=training, inplace=inplace)
        if p < 0.0 or p > 1.0 or not p > 0.0 or training is not True or not functional.serves(input, name):
            return torchs(input, p, training if not training or functional.is_on() else False, inplace)
        return own(input, p if type(p) is float else float(p), True, inplace)

    function.__prepare_scriptable__ = lambda: torchs  # type: ignore[attr-defined]  # what torch.jit.script compiles
    return function


ATTENTION = "scaled_dot_product_attention"
_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")  # and by name alone scale and enable_gqa


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
            return torchs(*args, **kwargs)  # whose error it then is

    _builtins._register_builtin(function, "aten::scaled_dot_product_attention")  # what torch.jit.script compiles
    return function


def _serves_attention(tensors: list[torch.Tensor], mask: Any, p: Any) -> bool:
    """Whether something is dropped of what gpudrop has kernels for, and torch takes these dtypes together."""
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
_before: dict[str, Callable[..., Any]] = {}  # what the names meant


class Accelerated(Block):
    """A block in which torch's functions are rerouted; attention as for `accelerate`."""

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
    """Have torch's names mean what is in force; a name gets back what it meant before, which may be somebody else's."""
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
    """Have the dropout of torch.nn.functional, and so of every model that is built on it, drawn by gpudrop.

    Rerouted are dropout, dropout1d, dropout2d, dropout3d, alpha_dropout, feature_alpha_dropout and what
    scaled_dot_product_attention and multi_head_attention_forward drop, and with these functions torch's modules.
    Without training, with p = 0, and for tensors of other devices, dtypes and layouts than gpudrop's, they are torch's
    own functions; so are their errors and warnings.

    Parameters
    ----------
    process : bool, optional
        True: from now on; False: no longer. Without it, for a block.
    attention : bool, optional
        Whether scaled_dot_product_attention is rerouted. None: on the CPU, but not on CUDA, where PyTorch's fused
        kernels draw masks of their own and hold no weights. True: on CUDA too, where the weights then exist in memory,
        batch * heads * length * length of them, and a call takes longer. False: nowhere.

    Returns
    -------
    context manager, or None if `process` is given
        It is a decorator as well, and may be entered again.

    Notes
    -----
    It holds for the whole process, for all of its threads. What was imported by name before (`from
    torch.nn.functional import dropout`), `torch.dropout`, and torch.nn's recurrent layers stay torch's. A model whose
    activations are recomputed (`torch.utils.checkpoint`) needs its backward pass in the block too, for that runs
    parts of the model again. torch.compile compiles a model for inside and for outside. Without CuPy, CUDA tensors are
    left to torch, with a warning.

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


# What convert makes of modules, by their exact class. A Sequential becomes another one where it may fuse something.
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
    """Give torch's dropout modules in a model gpudrop's classes, and have the activations before them fused.

    nn.Dropout, Dropout1d, Dropout2d, Dropout3d, AlphaDropout and FeatureAlphaDropout become the modules of that name
    here, nn.MultiheadAttention `gpudrop.torch.MultiheadAttention`. In an nn.Sequential, and in the feed-forward block
    of nn.TransformerEncoderLayer and nn.TransformerDecoderLayer, an activation and the dropout directly after it run in
    one pass. Each module stays the object that it was, with its parameters, its mode and its hooks, at its index.

    But for masks and speed the model does what it did: a pass is fused only where nothing can tell, as hooks, modes and
    in-place operations can, which is decided at each call. In evaluation, and with p = 0, the modules are torch's own.
    Subclasses of torch's modules are left alone, and so is what a model drops by calling functions: see `accelerate`.

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
    torch.jit.script can't compile a converted model, and says so.

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
    """Undo `convert`: give gpudrop's modules in a model the classes that they stand for.

    Left alone are modules that torch has none for: other variants, and those with an activation, a generator or a
    Schedule of their own.

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
