"""Dropout modules: torch's own classes with gpudrop's kernels and an activation, and variants that torch lacks."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from gpudrop import variants
from gpudrop.formulas.activations import check_activation, check_loaded, find_activation
from gpudrop.hints import hint_of_argument
from gpudrop.plan import check_saved
from gpudrop.schedules import Schedule
from gpudrop.torch import functional, operators
from gpudrop.variants import FAMILY, OPTIONS

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from gpudrop.signatures import Own, Save

    class Options(Own, total=False):
        """The keyword arguments of modules that depend on the variant."""

        activation: str | None


def proxy_of(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Return a torch.fx proxy for a call of the module during symbolic tracing, as for torch's modules; else None."""
    if args and type(args[0]) in functional.PLAIN:
        return None
    proxy = next((x for x in (*args, *kwargs.values()) if isinstance(x, torch.fx.Proxy)), None)
    if proxy is None:
        return None
    tracer: Any = proxy.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), args, kwargs)


def leaf(forward: Any) -> Any:
    """Wrap a forward of torch so that torch.fx traces it as one call of the module, as for torch's own class."""

    @functools.wraps(forward)
    def wrapper(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        traced = proxy_of(self, *args, **kwargs)
        return forward(self, *args, **kwargs) if traced is None else traced

    return wrapper


def refuse_scripts(module: Any) -> Any:
    """Raise an error when torch.jit.script compiles a module."""
    raise RuntimeError(
        f"torch.jit.script can't compile gpudrop's {type(module).__name__}: apply gpudrop.torch.revert to the model "
        "first, or use torch.compile or torch.export"
    )


class Variant(torch.nn.Module):
    """The base class of the dropout modules; each subclass is the module of one variant.

    Parameters
    ----------
    p : float or Schedule
        As for the function of `gpudrop.torch.functional`. The default is that function's. A Schedule
        (`gpudrop.schedules`) returns p for the current `step`.
    inplace : bool
        Whether the result is written to the input.
    activation : str, optional
        The activation that is applied before dropout, in the same pass. The default is that of the function.
    generator : torch.Generator, optional
        A CPU generator. By default it is torch's own.
    bits : int, optional
        Random bits per element.
    save : {"auto", "output", "bits"}
        What is saved for the backward pass, as for the functions.
    **options
        The variant's own options.

    Attributes
    ----------
    step : int
        The training step that is passed to a Schedule. Set it in the training loop, on each of `model.modules()` that
        has a Schedule.

    Notes
    -----
    A deep copy of a module with its own generator draws other masks. The generator of the copy is seeded by a number
    that the module's generator draws. A module that replaces a module of torch runs torch's code for tensors that
    gpudrop does not support. These have other devices, dtypes, layouts or numbers of dimensions.

    Examples
    --------
    >>> import torch, gpudrop.torch
    >>> from gpudrop import schedules
    >>> module = gpudrop.torch.DropPath(schedules.linear(0.0, 0.2, 1000))
    >>> module.step = 500
    >>> module(torch.ones(4, 3)).shape
    torch.Size([4, 3])
    """

    variant: ClassVar[str]
    torchs: ClassVar[type[torch.nn.Module] | None] = None  # the equivalent class of torch.nn
    overwrites: ClassVar[bool] = True  # whether inplace has an effect
    p: Any  # a float, as in torch's classes, or a Schedule

    # Class attributes, because a module that convert changes to this class has no instance attributes of these names.
    activation: str | None = None
    generator: torch.Generator | None = None
    step = 0
    save: Save = "auto"
    bits: int
    options: Mapping[str, Any]

    def __init_subclass__(cls, of: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if of is not None:
            cls.variant, cls.torchs = of, next(iter(cls.__bases__[1:]), None)
            cls.bits, cls.options, cls.activation = FAMILY[of].bits, functional.own_options(of), FAMILY[of].activation
            cls.__doc__ = f"A module that applies `gpudrop.{of}`. `Variant` describes the common parameters."

    def __init__(
        self,
        p: float | Schedule | None = None,
        inplace: bool = False,
        *,
        generator: torch.Generator | None = None,
        bits: int | None = None,
        save: Save = "auto",
        **options: Unpack[Options],
    ) -> None:
        super().__init__()
        row, own = FAMILY[self.variant], type(self).options
        activation = options.pop("activation", type(self).activation)
        for name, value in options.items():
            if name not in own:
                known = ("p", "activation", "generator", "bits", "save", *own)
                near = hint_of_argument(name, value, known)
                raise TypeError(f"{type(self).__name__} has no option {name!r}; it has {', '.join(known)}{near}")
        p = row.default if p is None else p
        self.p, self.step = p if isinstance(p, Schedule) else row.noise.check(p), 0
        self.inplace, self.activation, self.generator = bool(inplace), check_activation(activation), generator
        self.bits = row.noise.check_bits(type(self).bits if bits is None else bits)
        self.save = check_saved(save, find_activation(activation))
        self.options = {**own} | {name: OPTIONS[name].check(value) for name, value in options.items()}

    def is_own(self) -> bool:
        """Whether the module has an activation, a generator or a Schedule, which torch's modules do not support."""
        return self.activation is not None or self.generator is not None or isinstance(self.p, Schedule)

    def probability(self) -> Any:
        """Return p for the current step."""
        return self.p(self.step) if isinstance(self.p, Schedule) else self.p

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if (traced := proxy_of(self, input)) is not None:
            return traced
        if self.torchs is not None and self.activation is None and not functional.serves(input, self.variant):
            return input if self.training and not functional.is_on() else self.torchs.forward(self, input)
        return self.apply_to(input)

    def apply_to(
        self,
        input: torch.Tensor,
        other: torch.Tensor | None = None,
        *,
        activation: str | None = None,
        inplace: bool | None = None,
        save: Save | None = None,
        **rows: torch.Tensor | None,
    ) -> torch.Tensor:
        """Apply the variant to its tensors; the defaults are the module's attributes. rows: the bias and the gain."""
        return functional.apply(
            self.variant,
            input,
            other,
            self.probability(),
            self.training,
            (self.inplace if inplace is None else inplace) and self.overwrites,
            self.activation if activation is None else activation,
            self.generator,
            None,
            self.bits,
            self.save if save is None else save,
            self.options,
            **rows,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        generator = self.generator
        if generator is not None and id(generator) not in memo:  # modules that share a generator share the new one
            memo[id(generator)] = torch.Generator().manual_seed(int(operators.drawn(generator)[0]))
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(vars(self), memo))
        return made

    def __setstate__(self, state: dict[str, Any]) -> None:
        check_loaded(state.get("activation"))
        super().__setstate__(state)

    __prepare_scriptable__ = refuse_scripts

    def extra_repr(self) -> str:
        text = f"p={self.p}, inplace={self.inplace}"
        own = type(self).options
        shown = {name: value for name, value in self.options.items() if value != own[name]}
        if self.activation != type(self).activation:
            shown["activation"] = self.activation
        if self.save != "auto":
            shown["save"] = self.save
        return ", ".join([text, *(f"{name}={value!r}" for name, value in shown.items())])


IGNORES_INPLACE = ("AlphaDropout", "FeatureAlphaDropout")
"""Torch's modules that ignore inplace and never write to their input."""


def _forward_of(row: variants.Variant) -> Any:
    """Create the forward of a module with more tensors than input; its signature has their names."""
    keywords: Any = inspect.Parameter.KEYWORD_ONLY
    parameters = inspect.signature(getattr(functional, row.name)).parameters
    second = [parameters[name] for name in row.inputs[1:]]
    rows = [parameters[name].replace(kind=keywords) for name in row.rows]
    names, required = [a.name for a in (*second, *rows)], [a.name for a in second if a.default is a.empty]

    def forward(self: Variant, input: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
        if not (second or named):
            return Variant.forward(self, input, *others)
        given = dict(zip(row.inputs[1:], others, strict=False)) | named
        wrong = len(others) > len(second) or len(others) + len(named) != len(given) or given.keys() - {*names}
        if wrong or not given.keys() >= {*required}:
            optional = [name for name in names if name not in required]
            takes = " and ".join(["input", *required]) + f", and optionally {' and '.join(optional)}" * bool(optional)
            raise TypeError(f"{type(self).__name__} takes {takes}")
        if (traced := proxy_of(self, input, *others, **named)) is not None:
            return traced
        if not second and all(tensor is None for tensor in named.values()):
            return Variant.forward(self, input)
        return self.apply_to(input, *(given.pop(a.name, None) for a in second), **given)

    shown: Any = forward
    own = inspect.signature(Variant.forward).parameters.values()
    shown.__signature__ = inspect.Signature([*own, *second, *rows])
    return forward


def _module_of(row: variants.Variant) -> type[Variant]:
    """Create the module class of a variant, with the name of its layer; torch's equivalent class is the second base."""
    body: dict[str, Any] = {"__module__": __name__, "overwrites": row.torchs not in IGNORES_INPLACE}
    if len(row.inputs) > 1 or row.rows:
        body["forward"] = _forward_of(row)
    bases = (Variant,) if row.torchs is None else (Variant, getattr(torch.nn, row.torchs))
    return type(row.layer, bases, body, of=row.name)


MODULES = {name: _module_of(row) for name, row in FAMILY.items()}
"""Name of the variant -> module class."""

globals().update((cls.__name__, cls) for cls in MODULES.values())

if TYPE_CHECKING:
    # Generated by python -m tests.declarations.
    class Dropout(Variant, torch.nn.Dropout):
        """A module that applies `gpudrop.dropout`. `Variant` describes the common parameters."""

        def forward(self, input: torch.Tensor, *, bias: torch.Tensor | None = None) -> torch.Tensor: ...

    class Dropout1d(Variant, torch.nn.Dropout1d):
        """A module that applies `gpudrop.dropout1d`. `Variant` describes the common parameters."""

    class Dropout2d(Variant, torch.nn.Dropout2d):
        """A module that applies `gpudrop.dropout2d`. `Variant` describes the common parameters."""

    class Dropout3d(Variant, torch.nn.Dropout3d):
        """A module that applies `gpudrop.dropout3d`. `Variant` describes the common parameters."""

    class DropPath(Variant):
        """A module that applies `gpudrop.drop_path`. `Variant` describes the common parameters."""

    class LockedDropout(Variant):
        """A module that applies `gpudrop.locked_dropout`. `Variant` describes the common parameters."""

    class EmbeddingDropout(Variant):
        """A module that applies `gpudrop.embedding_dropout`. `Variant` describes the common parameters."""

    class TokenDropout(Variant):
        """A module that applies `gpudrop.token_dropout`. `Variant` describes the common parameters."""

    class ConsistentDropout(Variant):
        """A module that applies `gpudrop.consistent_dropout`. `Variant` describes the common parameters."""

    class DropConnect(Variant):
        """A module that applies `gpudrop.drop_connect`. `Variant` describes the common parameters."""

    class DropBlock1d(Variant):
        """A module that applies `gpudrop.dropblock1d`. `Variant` describes the common parameters."""

    class DropBlock2d(Variant):
        """A module that applies `gpudrop.dropblock2d`. `Variant` describes the common parameters."""

    class AlphaDropout(Variant, torch.nn.AlphaDropout):
        """A module that applies `gpudrop.alpha_dropout`. `Variant` describes the common parameters."""

    class FeatureAlphaDropout(Variant, torch.nn.FeatureAlphaDropout):
        """A module that applies `gpudrop.feature_alpha_dropout`. `Variant` describes the common parameters."""

    class GaussianDropout(Variant):
        """A module that applies `gpudrop.gaussian_dropout`. `Variant` describes the common parameters."""

    class UniformDropout(Variant):
        """A module that applies `gpudrop.uniform_dropout`. `Variant` describes the common parameters."""

    class GaussianNoise(Variant):
        """A module that applies `gpudrop.gaussian_noise`. `Variant` describes the common parameters."""

    class Zoneout(Variant):
        """A module that applies `gpudrop.zoneout`. `Variant` describes the common parameters."""

        def forward(self, input: torch.Tensor, previous: torch.Tensor) -> torch.Tensor: ...  # type: ignore[override]

    class DropoutAdd(Variant):
        """A module that applies `gpudrop.dropout_add`. `Variant` describes the common parameters."""

        def forward(  # type: ignore[override]
            self,
            input: torch.Tensor,
            residual: torch.Tensor,
            *,
            bias: torch.Tensor | None = None,
            gain: torch.Tensor | None = None,
        ) -> torch.Tensor: ...

    class DropoutGLU(Variant):
        """A module that applies `gpudrop.dropout_glu`. `Variant` describes the common parameters."""

        def forward(self, input: torch.Tensor, value: torch.Tensor | None = None) -> torch.Tensor: ...

    # End of what is generated.

STANDS_FOR: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    cls: cls.torchs for cls in MODULES.values() if cls.torchs is not None
}
"""gpudrop's module class -> the equivalent class of torch.nn."""


class WeightDrop(torch.nn.Module):
    """Run a module with dropout on some of its parameters: DropConnect for any module, with one mask per call.

    Source: Wan, Zeiler, Zhang, LeCun and Fergus, "Regularization of neural networks using DropConnect", ICML 2013.
    For the recurrent weights of an LSTM: Merity, Keskar and Socher, "Regularizing and optimizing LSTM language
    models", ICLR 2018.

    Parameters
    ----------
    module : torch.nn.Module
        The module to run. Its parameters are not changed, and receive the gradients.
    names : str or sequence of str
        The parameters to drop, by their names in `named_parameters`.
    p, generator, bits
        As for `Variant`. The default of p is that of `gpudrop.drop_connect`.

    Raises
    ------
    ValueError
        If the module has no parameter of this name.

    Examples
    --------
    >>> import torch, gpudrop.torch
    >>> lstm = gpudrop.torch.WeightDrop(torch.nn.LSTM(4, 8), "weight_hh_l0", 0.5)
    >>> output, state = lstm(torch.ones(5, 3, 4))
    >>> output.shape
    torch.Size([5, 3, 8])
    """

    def __init__(
        self,
        module: torch.nn.Module,
        names: str | Sequence[str],
        p: float | Schedule | None = None,
        *,
        generator: torch.Generator | None = None,
        bits: int | None = None,
    ) -> None:
        super().__init__()
        names = (names,) if isinstance(names, str) else tuple(names)
        known = dict(module.named_parameters())
        for name in names:
            if name not in known:
                raise ValueError(f"the module has no parameter {name!r}; it has {', '.join(known)}")
        self.module, self.names = module, names
        self.drop = DropConnect(p, generator=generator, bits=bits)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        dropped = {name: self.drop(self.module.get_parameter(name)) for name in self.names}
        return torch.func.functional_call(self.module, dropped, args, kwargs)

    def extra_repr(self) -> str:
        return f"names={self.names}"
