"""One line for models that exist: accelerate reroutes torch's functions, convert replaces a model's modules."""

import copy
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeVar, overload

import torch
import torch.nn.functional as F
from torch import nn

from gpudrop.dropout import DTYPES as NAMES_OF_DTYPES
from gpudrop.torch import attention, functional, modules

DTYPES = tuple(getattr(torch, name) for name in NAMES_OF_DTYPES)

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

AXES = {"dropout1d": (2, 3), "dropout2d": (3, 4), "dropout3d": (4, 5)}
"""How many axes gpudrop takes, of the functions that take more of them in torch, some with a warning."""


class Block(AbstractContextManager[None], Protocol):
    """A context manager that is a decorator as well."""

    def __call__(self, function: Decorated, /) -> Decorated: ...


def _serves(x: Any, torchs: Callable[..., Any]) -> bool:
    """Whether gpudrop does what this function of torch's does with x."""
    if not isinstance(x, torch.Tensor) or x.layout is not torch.strided or x.is_nested:
        return False
    axes = AXES.get(torchs.__name__)
    return x.dtype in DTYPES and x.device.type in ("cpu", "cuda") and (axes is None or x.dim() in axes)


def _rerouted(torchs: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    """gpudrop's function where it serves, and torch's for the devices, dtypes and layouts that only torch has."""

    @functools.wraps(torchs)
    def function(*args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs.get("input", kwargs.get("query"))
        return (own if _serves(x, torchs) else torchs)(*args, **kwargs)

    return function


_names = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
_own = {name: getattr(functional, name) for name in _names}
_own["scaled_dot_product_attention"] = attention.scaled_dot_product_attention
_torchs = {name: getattr(F, name) for name in _own}
_rerouting = {name: _rerouted(_torchs[name], own) for name, own in _own.items()}

_lock, _blocks, _process = threading.Lock(), 0, False


def _count(blocks: int = 0, process: bool | None = None) -> None:
    """Note that blocks begin or end, or what is asked for the process, and have torch's names mean what follows."""
    global _blocks, _process
    with _lock:
        before = _blocks > 0 or _process
        _blocks += blocks
        _process = _process if process is None else process
        after = _blocks > 0 or _process
        if before != after:
            for name, function in (_rerouting if after else _torchs).items():
                setattr(F, name, function)


@overload
def accelerate(process: None = None) -> Block: ...
@overload
def accelerate(process: bool) -> None: ...
def accelerate(process: bool | None = None) -> Block | None:
    """Have the dropout of torch.nn.functional, and so of every model that is built on it, drawn by gpudrop.

    Rerouted are dropout, dropout1d, dropout2d, dropout3d, alpha_dropout, feature_alpha_dropout and what
    scaled_dot_product_attention and multi_head_attention_forward drop, and with these functions torch's modules.
    Without training, or with p = 0, they do what torch's do. Tensors of other devices, dtypes and layouts than
    gpudrop's go to torch's functions.

    Parameters
    ----------
    process : bool, optional
        True: from now on; False: no longer. Without it, for a block.

    Returns
    -------
    context manager, or None if `process` is given
        It serves as a decorator as well.

    Notes
    -----
    It holds for the whole process, for all of its threads. What was imported by name before (`from
    torch.nn.functional import dropout`), `torch.dropout`, and torch.nn's recurrent layers stay torch's. A model whose
    activations are recomputed (`torch.utils.checkpoint`) needs its backward pass in the block too, for that runs
    parts of the model again. torch.compile compiles a model for inside and for outside.

    Examples
    --------
    >>> import torch, gpudrop.torch
    >>> layer = torch.nn.TransformerEncoderLayer(16, nhead=2, dropout=0.1, batch_first=True)
    >>> with gpudrop.torch.accelerate():
    ...     layer(torch.ones(3, 5, 16)).sum().backward()
    """
    if process is None:
        return _block()
    _count(process=bool(process))
    return None


@contextmanager
def _block() -> Iterator[None]:
    _count(blocks=1)
    try:
        yield
    finally:
        _count(blocks=-1)


REPLACED = {cls.__bases__[1]: cls for cls in modules.Variant.__subclasses__() if len(cls.__bases__) > 1}
"""torch's dropouts, and the modules that stand for them."""

ACTIVATIONS: list[tuple[type[nn.Module], dict[str, Any], str]] = [
    (nn.ReLU, {}, "relu"),
    (nn.LeakyReLU, {"negative_slope": 0.01}, "leaky_relu"),
    (nn.ELU, {"alpha": 1.0}, "elu"),
    (nn.SELU, {}, "selu"),
    (nn.GELU, {"approximate": "none"}, "gelu"),
    (nn.GELU, {"approximate": "tanh"}, "gelu_tanh"),
    (nn.SiLU, {}, "silu"),
    (nn.Mish, {}, "mish"),
    (nn.Softplus, {"beta": 1.0, "threshold": 20.0}, "softplus"),
    (nn.Sigmoid, {}, "sigmoid"),
    (nn.Tanh, {}, "tanh"),
    (nn.Hardswish, {}, "hardswish"),
]
"""torch's activations, which arguments they must have, and what gpudrop calls them."""


FUNCTIONS = {F.relu: "relu", F.gelu: "gelu"}
"""Those that torch's transformer layers have by name."""


def convert(model: nn.Module) -> nn.Module:
    """Replace torch's dropout modules in a model by gpudrop's, and fuse the activations before them.

    nn.Dropout, Dropout1d, Dropout2d, Dropout3d, AlphaDropout and FeatureAlphaDropout become the modules of that name
    here, with their p, mode and hooks; nn.MultiheadAttention becomes `gpudrop.torch.MultiheadAttention`. Where an
    activation module stands directly before a dropout in an nn.Sequential, the dropout applies it and nn.Identity
    stands in its place, so that the names of parameters stay. The activation of nn.TransformerEncoderLayer and
    nn.TransformerDecoderLayer is fused as well. Subclasses of torch's modules are left alone, and so is what a model
    drops by calling functions: see `accelerate` for that.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place.

    Returns
    -------
    torch.nn.Module
        The model, or what stands for it if it is a dropout itself.

    Examples
    --------
    >>> import torch, gpudrop.torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Dropout(0.1))
    >>> gpudrop.torch.convert(model)
    Sequential(
      (0): Linear(in_features=4, out_features=8, bias=True)
      (1): Identity()
      (2): Dropout(p=0.1, inplace=False, activation='relu')
    )
    """
    if type(model) in REPLACED:
        return _standing_for(model)
    # A module that is at several places stands at all of them again, if nothing different is fused at one.
    made = {}
    for parent in list(model.modules()):
        if type(parent) is nn.MultiheadAttention:
            parent.__class__ = attention.MultiheadAttention
        before: Any = None
        children: dict[str, Any] = parent._modules
        sequential = type(parent).forward is nn.Sequential.forward
        for name, child in list(children.items()):
            if type(child) in REPLACED:
                fusing = sequential and before is not None and not child._forward_pre_hooks
                activation = _activation(children[before]) if fusing else None
                if (child, activation) not in made:
                    made[child, activation] = _standing_for(child, activation)
                children[name] = made[child, activation]
                if activation is not None:
                    children[before] = nn.Identity()
            before = name
        if type(parent) in (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer):
            _fuse_feed_forward(parent)
    return model


def _fuse_feed_forward(layer: Any) -> None:
    """In a layer of torch's transformer the activation, a function or a module, stands before `dropout`."""
    name, dropout = FUNCTIONS.get(layer.activation) or _activation(layer.activation), layer.dropout
    plain = type(dropout) is modules.Dropout and dropout.activation is None and not dropout._forward_pre_hooks
    if name is not None and plain:
        del layer.activation
        layer.activation = unchanged  # no module: copies of a decoder layer whose activation is one get relu instead
        layer.dropout = copy.copy(dropout)  # which may stand in other places too
        layer.dropout.activation = name


def unchanged(x: Any) -> Any:
    return x


def _standing_for(dropout: Any, activation: str | None = None) -> nn.Module:
    own = REPLACED[type(dropout)](dropout.p, activation=activation)
    own.__dict__.update(vars(dropout))  # its mode, its hooks, inplace
    return own


def _activation(module: Any) -> str | None:
    """The name of an activation that may be fused, or None: nothing may look at what it gives."""
    if not isinstance(module, nn.Module) or getattr(module, "inplace", False):  # or change what it gets
        return None
    if any(value for name, value in vars(module).items() if name.endswith("_hooks")):
        return None
    for cls, arguments, name in ACTIVATIONS:
        if type(module) is cls and all(getattr(module, a) == value for a, value in arguments.items()):
            return name
    return None
