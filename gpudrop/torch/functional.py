"""The dropout variants as functions of tensors, with gpudrop's names and torch's arguments.

The positional arguments are (input, p, training, inplace), as in torch. Three functions take a second tensor, after
input: zoneout takes previous, dropout_add takes residual, and dropout_glu takes value, which may be None. Each function
accepts the options of `gpudrop.NAME` as keywords, such as the bias of dropout and the gain of dropout_add, and these
keywords:

    activation : str, optional
        The activation that is applied before dropout, in the same pass. The default of dropout_glu is "silu".
    generator : torch.Generator, optional
        A CPU generator. By default it is torch's own, so torch.manual_seed, fork_rng and the preserve_rng_state of
        checkpoints apply. The masks are the same on every device.
    rng : gpudrop.Generator, Stream, int, NumPy's Generator, BitGenerator or SeedSequence, optional
        The source of the mask instead of torch's generator, as for `gpudrop.dropout`.
    bits : int
        Random bits per element.
    save : {"auto", "output", "bits"}
        What is saved for the backward pass, if the activation is relu or leaky_relu: see `gpudrop.dropout_vjp`. With
        "bits", one bit per element is saved, and the input and the result may be changed in place. "bits" raises a
        ValueError for other activations.

With training=False the function computes the variant's prediction. With p = 0 nothing is dropped: the activation, the
bias, the gain, the residual and the gate remain. With inplace=True the function writes the result to input and returns
input, which must have the shape and the dtype of the result. The backward pass then raises an error if it needs the
input: with a gain, a gate, or an activation whose derivative needs it. All tensors have gradients.

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
import inspect
import itertools
import json
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import numpy as np
import torch
from torch._compile import _disable_dynamo
from torch.overrides import handle_torch_function, has_torch_function_variadic

from gpudrop import variants
from gpudrop.checks import check_bits, check_truth
from gpudrop.context import DEFAULT, Context, current, visible
from gpudrop.formulas.activations import find_activation
from gpudrop.generator import Generator, NumpySource, RngLike, Source, Stream, check_rng
from gpudrop.hints import name_of, unexpected
from gpudrop.masks import check_mask_shape
from gpudrop.plan import check_saved
from gpudrop.torch import operators
from gpudrop.torch.activations import TORCHS
from gpudrop.torch.checks import DTYPES, Likeness, check_tensors, likeness_of, name_of_dtype
from gpudrop.variants import FAMILY, OPTIONS

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from gpudrop.signatures import Own, Save

    class Keywords(TypedDict, total=False):
        """The keyword arguments of every function."""

        activation: str | None
        generator: torch.Generator | None
        rng: RngLike
        bits: int
        save: Save

    class WithOptions(Keywords, Own, total=False):
        """The same with the options that only some variants have."""


REPLACED = tuple(name for name, row in FAMILY.items() if row.torchs is not None)
"""The functions that torch.nn.functional has too."""


def _on_by_default(torchs: Callable[..., Any]) -> bool:
    training = inspect.signature(torchs).parameters.get("training")
    return training is None or training.default is not False


OFF_BY_DEFAULT = tuple(name for name in REPLACED if not _on_by_default(getattr(torch.nn.functional, name)))
"""The functions whose default in torch is training=False."""

PLAIN = (torch.Tensor, torch.nn.Parameter)

AXES = {"dropout1d": (2, 3), "dropout2d": (3, 4), "dropout3d": (4, 5), "feature_alpha_dropout": range(2, 65)}
"""Name -> numbers of axes that gpudrop supports; for other numbers torch's function warns or raises."""

_torchs_dropout2d = torch.nn.functional.dropout2d


def own_options(name: str) -> dict[str, Any]:
    """Return a variant's own options and their defaults, except for options that change the shape of the result."""
    return {option: default for option, default in FAMILY[name].options.items() if not OPTIONS[option].reshapes}


def _constant_in_graphs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Do the same as torch.compiler.assume_constant_result, whose import of the compiler takes as long as torch's."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def is_on() -> bool:
    """Whether dropout is on in the context that is running or being compiled."""
    return visible.on if torch.compiler.is_compiling() else current().on


def serves(x: Any, name: str) -> bool:
    """Whether gpudrop has kernels for torch's function of this name applied to x."""
    if not isinstance(x, torch.Tensor) or x.dtype not in DTYPES or x.layout is not torch.strided or x.is_nested:
        return False
    if x.numel() == 0:  # torch returns an empty tensor unchanged
        return False
    if name in AXES and x.dim() not in AXES[name]:
        return False
    return x.is_cpu or (x.device.type == "cuda" and _have_cupy())


@functools.cache
def _have_cupy() -> bool:
    """Whether CuPy, which reads CUDA tensors, can be imported; if not, warn once."""
    try:
        importlib.import_module("cupy")
    except ImportError as error:
        warnings.warn(
            f"gpudrop uses PyTorch's own dropout for CUDA tensors, as CuPy can't be imported: {error}", stacklevel=4
        )
        return False
    return True


_sites = itertools.count(1)


@_constant_in_graphs
def _site() -> int:
    return next(_sites)


def _source(
    generator: torch.Generator | None, rng: RngLike, block: bool
) -> tuple[torch.Generator | None, Source | None]:
    """Check the generator and the rng of a call; return (None, None) if the generator of a block replaces them."""
    if generator is not None and rng is not None:
        raise ValueError("generator and rng can't both be set: pass only one of them")
    source = None if rng is None else check_rng(rng)
    if block and not isinstance(source, Stream):
        return None, None
    if source is not None and source.stored:
        raise ValueError("rng must keep its state on the CPU; for a captured graph leave rng out, to use torch's own")
    return generator, source


def _stream(x: torch.Tensor, generator: torch.Generator | None, rng: RngLike, context: Context) -> torch.Tensor:
    """Return the seed and the call of a dropout call, as a tensor."""
    transformed = torch._C._are_functorch_transforms_active()
    traced = transformed or torch._C._len_torch_dispatch_stack() > 0 or type(x) not in PLAIN
    if generator is None and rng is None and context is DEFAULT and not traced and x.is_cpu:
        return operators.drawn()  # the fast path of most calls
    generator, source = _source(generator, rng, context.rng is not None)
    source = context.rng if generator is None and source is None else source
    captured = x.is_cuda and torch.cuda.is_current_stream_capturing()
    if captured and generator is not None:
        raise ValueError("a graph can't be captured with a CPU generator: each replay would repeat the same masks")
    if transformed and not isinstance(source, Stream):
        torch.rand(0)  # raises if vmap forbids randomness, before a generator is advanced

    def draw() -> torch.Tensor:
        if source is None:
            return operators.drawn(generator)
        return operators.to_tensor(source if isinstance(source, Stream) else source.next())

    torchs = generator is None and source is None  # torch's own generator, whose state checkpoints restore
    if context.tape is not None and not (torchs and traced):
        stream = context.tape.next(draw, torchs)
    elif traced and source is None:
        stream = None
    else:
        stream = draw()
    if traced:
        _know_tracers()
        with getattr(x, "fake_mode", None) or nullcontext():
            stream = operators.STREAM(stream, generator=generator, device="cpu")
    return operators.PLACED(stream, device=x.device) if captured else stream


@_disable_dynamo  # imports the compiler only when it is first called
def _next(source: Generator | NumpySource) -> torch.Tensor:
    """Return the next stream of a generator; a graph breaks here: it can't take a lock or call NumPy's generator."""
    return operators.to_tensor(source.next())


def _stream_in_graph(x: torch.Tensor, generator: torch.Generator | None, rng: RngLike) -> torch.Tensor:
    """Return the stream in a compiled graph, which draws it when the graph runs."""
    _know_tracers()
    generator, source = _source(generator, rng, visible.draws)
    base = None
    if source is not None:
        base = operators.to_tensor(source) if isinstance(source, Stream) else _next(source)
    stream = operators.STREAM(base, generator=generator, site=_site(), block=visible.draws, device="cpu")
    return operators.PLACED(stream, device=x.device) if x.is_cuda else stream


@_constant_in_graphs
def _know_tracers() -> None:
    importlib.import_module("gpudrop.torch.tracing")  # only when needed: it imports much of the compiler


@_constant_in_graphs
def _text(
    name: str, training: bool, activation: str | None, bits: int, options: tuple[Any, ...], save: Save, factor: str
) -> tuple[Any, ...]:
    """Check a call except for p, and return (options as JSON, activation, bits); the given options are pairs."""
    bits, row = check_bits(bits), find_activation(activation)
    given = {o: v.item() if isinstance(v, np.generic) else v for o, v in options if v is not None}
    given |= {} if training else {"training": False}
    given |= {} if check_saved(save, row, factor) == "auto" else {"save": save}
    return json.dumps(given), row.name, bits


@functools.lru_cache(maxsize=1024)
def _checked(
    name: str,
    p: float,
    training: bool,
    activation: str | None,
    bits: int,
    options: tuple[Any, ...],
    save: Save = "auto",
    factor: str = "",
) -> tuple[Any, ...]:
    """Check a call and return its numbers and texts for the operators."""
    noise = FAMILY[name].noise
    p = noise.check(p)
    text, activation, bits = _text(name, training, activation, bits, options, save, factor)
    return (name, text, p, activation, bits), training and noise.scalars(p, noise.check_bits(bits)) is not None


@functools.lru_cache(maxsize=1024)
def _check_call(
    name: str, text: str, x: Likeness, other: Likeness | None, bias: Likeness | None, gain: Likeness | None
) -> None:
    """Raise an error if the variant does not support such tensors or options.

    The operators check them too, but only after a stream was drawn.
    """
    check_tensors(name, x, other, bias, gain)
    arrays = [None if each is None else _zeros(each) for each in (x, other)[: len(FAMILY[name].inputs)]]
    FAMILY[name].function.prepare(*arrays, 0.5, rng=Stream(0, 0), context=DEFAULT, **operators.options_of(text)[0])


def _zeros(likeness: Likeness) -> Any:
    """Return an array of zeros, of one element in memory."""
    return np.broadcast_to(np.zeros((), name_of_dtype(likeness[0])), likeness[2])


@_constant_in_graphs
def _know_sharded_tensors() -> None:
    if "torch.distributed.tensor" in sys.modules:  # otherwise no sharded tensor exists
        importlib.import_module("gpudrop.torch.sharding")


def apply(
    name: str,
    x: torch.Tensor,
    other: torch.Tensor | None,
    p: float,
    training: bool,
    inplace: bool,
    activation: str | None,
    generator: torch.Generator | None,
    rng: RngLike,
    bits: int,
    save: Save,
    options: Mapping[str, Any],
    bias: torch.Tensor | None = None,
    gain: torch.Tensor | None = None,
) -> torch.Tensor:
    """Apply a variant to x."""
    plain, row = type(x) in PLAIN, FAMILY[name]
    if not plain:
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"input must be a torch.Tensor, got {name_of(type(x))}; gpudrop.{name} takes arrays")
        _know_sharded_tensors()
    factor = "gain" if gain is not None else "value" if row.is_product else ""
    fused = factor != "" or bias is not None
    if fused or len(row.inputs) > 1:
        fused = _check_neighbours(row, x, other, bias, gain, inplace) or fused
    if name == "dropout2d" and x.dim() == 3:  # torch takes this for samples, channels and length,
        _torchs_dropout2d(x, training=False)  # and warns
        name = "dropout1d"
    compiling = torch.compiler.is_compiling()
    context: Any = visible if compiling else current()
    if training is not True and training is not False:
        training = check_truth("training", training)
    training = training and context.on
    if compiling:
        text, active, bits = _text(name, training, activation, bits, tuple(options.items()), save, factor)
        call: tuple[Any, ...] = name, text, p, active, bits  # p may be symbolic: the operators check it when they run
        drawn = training and p != 0
    else:
        p, pairs = p if type(p) is float else _number(p), tuple(options.items())
        try:
            call, drawn = _checked(name, p, training, activation, bits, pairs, save, factor)
        except TypeError:
            _check_as_numpys(name, x, options)
            raise
    if not drawn and (rng is not None or generator is not None):
        _source(generator, rng, False)  # raises for a wrong rng
    if not drawn and other is None and not fused:
        if activation is None or activation == "identity":
            return x
        if activation in TORCHS and save != "bits":  # torch's activations save x or y
            y = TORCHS[activation].value(x)
            return x.copy_(y) if inplace else y
    if not compiling and (plain or _is_sharded(x)):
        _check_call(name, call[1], likeness_of(x), likeness_of(other), likeness_of(bias), likeness_of(gain))
    if drawn:
        stream = _stream_in_graph(x, generator, rng) if compiling else _stream(x, generator, rng, context)
    else:
        stream = torch.zeros(2, dtype=torch.int64, device="cpu")
    if fused:
        y = operators.FUSED(x, other, bias, gain, stream, *call, context.first, False)[0]
    else:
        y = operators.FORWARD(x, other, stream, *call, context.first)
    return x.copy_(y) if inplace else y


def _is_sharded(x: Any) -> bool:
    return type(x).__module__.startswith("torch.distributed.tensor")


def _check_neighbours(row: variants.Variant, x: Any, other: Any, bias: Any, gain: Any, inplace: bool) -> bool:
    """Check the types of the tensors besides x. Return whether the second one has another dtype than x."""
    tensors = dict(zip(row.inputs[1:], (other,), strict=False)) | {"bias": bias, "gain": gain}
    sharded = _is_sharded(x)
    for argument, tensor in tensors.items():
        if tensor is None and argument not in row.inputs[: row.least]:
            continue
        if not isinstance(tensor, torch.Tensor):
            got = None if tensor is None else name_of(type(tensor))
            raise TypeError(f"{argument} must be a torch.Tensor, got {got}")
        if _is_sharded(tensor) != sharded:
            kinds = name_of(type(x)), name_of(type(tensor))
            raise TypeError(f"{argument} must be a {kinds[0]}, because input is one, got {kinds[1]}")
    mixed = other is not None and other.dtype != x.dtype
    if inplace and (mixed or operators.is_packed(row.name, other)):
        what = "dtype" if mixed else "shape"
        raise ValueError(f"inplace=True needs an input with the {what} of the result")
    return mixed


def _number(p: Any) -> Any:
    """Convert p to a Python number, because a tensor may have another value at the next call."""
    return float(p) if isinstance(p, (torch.Tensor, np.generic)) else p


def _check_as_numpys(name: str, x: torch.Tensor, options: Mapping[str, Any]) -> None:
    """Raise the error of gpudrop's function of arrays if an option has no hash."""
    for option, value in options.items():
        if isinstance(value, (list, dict, set, np.ndarray, torch.Tensor)):
            array = np.broadcast_to(np.float32(0), x.shape)
            getattr(variants, name).prepare(array, 0, **{option: value})


def drawing(x: torch.Tensor, p: float) -> tuple[Any, ...]:
    """Return the arguments of the operators after x, for `dropout` in training: the stream and the rest of the call."""
    context = current()
    call, _ = _checked("dropout", p if type(p) is float else _number(p), True, None, FAMILY["dropout"].bits, ())
    return _stream(x, None, None, context), *call, context.first


class Function(Protocol):
    """The type of a variant with one input tensor."""

    def __call__(
        self,
        input: torch.Tensor,
        p: float = ...,
        training: bool = ...,
        inplace: bool = ...,
        **keywords: Unpack[WithOptions],
    ) -> torch.Tensor: ...


class FunctionOfTwo(Protocol):
    """The type of zoneout."""

    def __call__(
        self,
        input: torch.Tensor,
        previous: torch.Tensor,
        p: float = ...,
        training: bool = ...,
        inplace: bool = ...,
        **keywords: Unpack[Keywords],
    ) -> torch.Tensor: ...


class FunctionWithBias(Protocol):
    """The type of dropout."""

    def __call__(
        self,
        input: torch.Tensor,
        p: float = ...,
        training: bool = ...,
        inplace: bool = ...,
        *,
        bias: torch.Tensor | None = ...,
        **keywords: Unpack[WithOptions],
    ) -> torch.Tensor: ...


class FunctionOfResidual(Protocol):
    """The type of dropout_add."""

    def __call__(
        self,
        input: torch.Tensor,
        residual: torch.Tensor,
        p: float = ...,
        training: bool = ...,
        inplace: bool = ...,
        *,
        bias: torch.Tensor | None = ...,
        gain: torch.Tensor | None = ...,
        **keywords: Unpack[WithOptions],
    ) -> torch.Tensor: ...


class FunctionOfGate(Protocol):
    """The type of dropout_glu."""

    def __call__(
        self,
        input: torch.Tensor,
        value: torch.Tensor | None = ...,
        p: float = ...,
        training: bool = ...,
        inplace: bool = ...,
        **keywords: Unpack[WithOptions],
    ) -> torch.Tensor: ...


def _function(name: str) -> Any:
    """Create the function of a variant."""
    row, defaults = FAMILY[name], own_options(name)
    names_of_rows, optional = row.rows, row.least < len(row.inputs)

    def call(
        input: torch.Tensor,
        p: float,
        training: bool,
        inplace: bool,
        activation: str | None,
        generator: torch.Generator | None,
        rng: RngLike,
        bits: int,
        save: Save,
        options: dict[str, Any],
        other: torch.Tensor | None = None,
    ) -> torch.Tensor:
        rows = {name: options.pop(name, None) for name in names_of_rows}
        tensors = (input, other, *rows.values())
        if has_torch_function_variadic(*tensors):
            named = {"activation": activation, "generator": generator, "rng": rng, "bits": bits, "save": save} | options
            named |= {name: tensor for name, tensor in rows.items() if tensor is not None}
            positional = (input,) if len(row.inputs) == 1 else (input, other)
            handle: Any = handle_torch_function
            return handle(made, tensors, *positional, p, training, inplace, **named)
        for option in options:
            if option not in defaults:
                raise unexpected(name, options, ("p", *defaults, *names_of_rows, *made.__kwdefaults__))
        if options.get("mask_shape") is not None:
            options["mask_shape"] = check_mask_shape(options["mask_shape"])
        return apply(name, input, other, p, training, inplace, activation, generator, rng, bits, save, options, **rows)

    p_default, bits_default, on, activated = row.default, row.bits, name not in OFF_BY_DEFAULT, row.activation

    def function(
        input: torch.Tensor,
        p: float = p_default,
        training: bool = on,
        inplace: bool = False,
        *,
        activation: str | None = activated,
        generator: torch.Generator | None = None,
        rng: RngLike = None,
        bits: int = bits_default,
        save: Save = "auto",
        **options: Any,
    ) -> torch.Tensor:
        return call(input, p, training, inplace, activation, generator, rng, bits, save, options)

    def function_of_two(
        input: torch.Tensor,
        _second: torch.Tensor | None = None,
        p: float = p_default,
        training: bool = True,
        inplace: bool = False,
        *,
        activation: str | None = activated,
        generator: torch.Generator | None = None,
        rng: RngLike = None,
        bits: int = bits_default,
        save: Save = "auto",
        **options: Any,
    ) -> torch.Tensor:
        if row.inputs[1] in options:
            if _second is not None:
                raise TypeError(f"{name}() got multiple values for argument {row.inputs[1]!r}")
            _second = options.pop(row.inputs[1])
        return call(input, p, training, inplace, activation, generator, rng, bits, save, options, _second)

    made: Any = function_of_two if len(row.inputs) > 1 else function
    *named, keywords = inspect.signature(made).parameters.values()
    named += [inspect.Parameter(row, inspect.Parameter.KEYWORD_ONLY, default=None) for row in names_of_rows]
    if len(row.inputs) > 1:
        named[1] = named[1].replace(name=row.inputs[1])
        if not optional:
            named[1] = named[1].replace(default=inspect.Parameter.empty, annotation="torch.Tensor")
    made.__signature__ = inspect.Signature([*named, keywords])
    made.__name__ = made.__qualname__ = name
    made.__doc__ = f"Apply `gpudrop.{name}` to a tensor. The module's docstring describes the common arguments."
    return made


# Generated by python -m tests.declarations.
dropout: FunctionWithBias
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
dropout_add: FunctionOfResidual
dropout_glu: FunctionOfGate

# End of what is generated.

__all__ = [*FAMILY]  # noqa: PLE0604  # strings
_module = sys.modules[__name__]
for _name in FAMILY:
    setattr(_module, _name, _function(_name))
