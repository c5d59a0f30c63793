"""gpudrop's variants as functions of tensors, under gpudrop's names and with torch's arguments.

A function here takes (input, p, training, inplace) as torch's do, zoneout (input, previous, p, training, inplace), and
by name the options that `gpudrop.NAME` has of its own, and

    activation : str, optional
        Applied before, in the same pass.
    generator : torch.Generator, optional
        One of the host. Without it torch's own, so that torch.manual_seed, fork_rng and checkpointing's
        preserve_rng_state hold, and the masks are the same on every device.
    rng : gpudrop.Stream or gpudrop.Generator, optional
        In the place of torch's generator.
    bits : int
        Random bits per element.

Without training it does what prediction does, and with p = 0 as well it is the activation alone. inplace writes the
result into input and returns that.

Examples
--------
>>> import torch, gpudrop.torch
>>> x = torch.ones(8, requires_grad=True)
>>> _ = torch.manual_seed(0)
>>> y = gpudrop.torch.functional.dropout(x, 0.5, activation="relu")
>>> y.sum().backward()
>>> bool((x.grad == y).all())
True
"""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch

from gpudrop import layers
from gpudrop.activations import find_activation
from gpudrop.dropout import EVERYWHERE, Surroundings, here
from gpudrop.generator import Generator, Stream, check_rng
from gpudrop.masks import check_mask_shape
from gpudrop.random_bits import check_bits
from gpudrop.torch import operators

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from gpudrop.signatures import Own

VARIANTS = {cls.function.__name__: cls for cls in layers.Layer.__subclasses__()}
"""The variants by name, each with its layer, which knows what p may be and which options there are."""

LACKING = {"drop_connect": ("samples",)}
"""Options that make a result of another shape than input's."""

OFF_BY_DEFAULT = ("alpha_dropout", "feature_alpha_dropout")  # as torch has it


PLAIN = (torch.Tensor, torch.nn.Parameter)

DROPOUT_BITS = layers.Dropout.defaults()["bits"]  # once, for a signature takes longer to read than a small call


def own_options(name: str) -> dict[str, Any]:
    """A variant's options and their defaults, but for activation and bits."""
    defaults = VARIANTS[name].defaults()
    return {n: d for n, d in defaults.items() if n not in ("activation", "bits", *LACKING.get(name, ()))}


def _constant_in_graphs(function: Callable[..., Any]) -> Callable[..., Any]:
    """What torch.compiler.assume_constant_result does, which imports the compiler: as long again as importing torch."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


_places = itertools.count(1)


@_constant_in_graphs
def _place() -> int:
    return next(_places)


def _stream(
    x: torch.Tensor,
    generator: torch.Generator | None,
    rng: Generator | Stream | None,
    surroundings: Surroundings,
) -> torch.Tensor:
    """The two numbers of a call, as a tensor."""
    if generator is not None and rng is not None:
        raise ValueError("give generator or rng, not both")
    rng = surroundings.rng if rng is None and generator is None else rng
    if rng is None:
        if torch.compiler.is_compiling():
            return torch.ops.gpudrop.stream(generator, _place(), x.device if x.is_cuda else None)
        device = x.device if x.is_cuda and torch.cuda.is_current_stream_capturing() else None
        if torch._C._are_functorch_transforms_active():
            return torch.ops.gpudrop.stream(generator, 0, device)
        return operators.stream(generator, 0, device)  # the same without torch's dispatcher
    if check_rng(rng).stored:
        raise ValueError("rng must have its state on the host; in a captured graph, torch's own generator is moved on")
    return operators.to_tensor(rng if isinstance(rng, Stream) else rng.next())


def _surroundings() -> Surroundings:
    """Those of gpudrop.no_dropout and mc_samples, which a compiled graph knows nothing of."""
    return EVERYWHERE if torch.compiler.is_compiling() else here()


@_constant_in_graphs
def _constant(*call: Any) -> tuple[Any, ...]:
    return _checked(*call)


@functools.lru_cache(maxsize=1024)
def _checked(
    name: str, p: float, training: bool, activation: str | None, bits: int, options: tuple[Any, ...]
) -> tuple[Any, ...]:
    """The numbers and the text that the operators take; options are pairs."""
    p, bits, row = VARIANTS[name].check(p), check_bits(bits), find_activation(activation)
    given = {option: value for option, value in options if value is not None}
    return name, json.dumps(given if training else given | {"training": False}), p, row.name, bits


@_constant_in_graphs
def _know_sharded_tensors() -> None:
    importlib.import_module("gpudrop.torch.sharding")  # and with it torch's, which takes a third of a second


def _apply(
    name: str,
    x: torch.Tensor,
    other: torch.Tensor | None,
    p: float,
    training: bool,
    inplace: bool,
    activation: str | None,
    generator: torch.Generator | None,
    rng: Generator | Stream | None,
    bits: int,
    options: dict[str, Any],
) -> torch.Tensor:
    if type(x) not in PLAIN:
        _know_sharded_tensors()
    surroundings = _surroundings()
    training = bool(training) and surroundings.on
    checked = _constant if torch.compiler.is_compiling() else _checked
    call = checked(name, p, training, activation, bits, tuple(options.items()))
    drawn = training and p > 0
    if not drawn and other is None and activation is None:
        return x
    stream = _stream(x, generator, rng, surroundings) if drawn else torch.zeros(2, dtype=torch.int64, device="cpu")
    y = torch.ops.gpudrop.forward(x, other, stream, *call, surroundings.first)
    return x.copy_(y) if inplace else y


def drawing(x: torch.Tensor, p: float) -> tuple[Any, ...]:
    """What the operators take, after x, for a `dropout` of it in training: the stream and the rest of the call."""
    surroundings = here()
    stream = _stream(x, None, None, surroundings)
    return stream, *_checked("dropout", p, True, None, DROPOUT_BITS, ()), surroundings.first


class Function(Protocol):
    """A variant as a function of a tensor."""

    def __call__(
        self,
        input: torch.Tensor,
        p: float = ...,
        training: bool = ...,
        inplace: bool = ...,
        *,
        activation: str | None = ...,
        generator: torch.Generator | None = ...,
        rng: Generator | Stream | None = ...,
        bits: int = ...,
        **options: Unpack[Own],
    ) -> torch.Tensor: ...


class FunctionOfTwo(Protocol):
    """The same of two tensors."""

    def __call__(
        self,
        input: torch.Tensor,
        previous: torch.Tensor,
        p: float = ...,
        training: bool = ...,
        inplace: bool = ...,
        *,
        activation: str | None = ...,
        generator: torch.Generator | None = ...,
        rng: Generator | Stream | None = ...,
        bits: int = ...,
    ) -> torch.Tensor: ...


def _function(name: str) -> Any:
    """The function of a variant."""
    layer, defaults = VARIANTS[name], own_options(name)
    two = layer is layers.Zoneout

    def call(
        input: torch.Tensor,
        p: float,
        training: bool,
        inplace: bool,
        activation: str | None,
        generator: torch.Generator | None,
        rng: Generator | Stream | None,
        bits: int,
        options: dict[str, Any],
        previous: torch.Tensor | None = None,
    ) -> torch.Tensor:
        for option in options:
            if option not in defaults:
                raise TypeError(f"{name}() got an unexpected keyword argument {option!r}")
        if options.get("mask_shape") is not None:
            options["mask_shape"] = check_mask_shape(options["mask_shape"])
        return _apply(name, input, previous, p, training, inplace, activation, generator, rng, bits, options)

    p_default, bits_default, on = layer.default(), layer.defaults()["bits"], name not in OFF_BY_DEFAULT

    def function(
        input: torch.Tensor,
        p: float = p_default,
        training: bool = on,
        inplace: bool = False,
        *,
        activation: str | None = None,
        generator: torch.Generator | None = None,
        rng: Generator | Stream | None = None,
        bits: int = bits_default,
        **options: Any,
    ) -> torch.Tensor:
        return call(input, p, training, inplace, activation, generator, rng, bits, options)

    def function_of_two(
        input: torch.Tensor,
        previous: torch.Tensor,
        p: float = p_default,
        training: bool = True,
        inplace: bool = False,
        *,
        activation: str | None = None,
        generator: torch.Generator | None = None,
        rng: Generator | Stream | None = None,
        bits: int = bits_default,
        **options: Any,
    ) -> torch.Tensor:
        return call(input, p, training, inplace, activation, generator, rng, bits, options, previous)

    made: Any = function_of_two if two else function
    made.__name__ = made.__qualname__ = name
    made.__doc__ = f"`gpudrop.{name}` of a tensor: see there, and this module for what all of its functions take."
    return made


# For type checkers, what the loop makes.
dropout: Function
dropout1d: Function
dropout2d: Function
dropout3d: Function
drop_path: Function
locked_dropout: Function
embedding_dropout: Function
token_dropout: Function
consistent_dropout: Function
drop_connect: Function
dropblock1d: Function
dropblock2d: Function
alpha_dropout: Function
feature_alpha_dropout: Function
gaussian_dropout: Function
uniform_dropout: Function
gaussian_noise: Function
zoneout: FunctionOfTwo

_module = sys.modules[__name__]
for _name in VARIANTS:
    setattr(_module, _name, _function(_name))


def _warning(channels_of_four: Function, channels_of_three: Function) -> Any:
    """dropout2d with torch's reading of three axes."""

    @functools.wraps(channels_of_four)
    def dropout2d(input: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if input.dim() != 3:
            return channels_of_four(input, *args, **options)
        warnings.warn(
            "dropout2d: a 3-D input is read as (samples, channels, length), as torch reads it; dropout1d says so",
            stacklevel=2,
        )
        return channels_of_three(input, *args, **options)

    return dropout2d


dropout2d = _warning(_module.dropout2d, _module.dropout1d)
