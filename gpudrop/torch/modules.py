"""Modules: torch's own dropouts with an activation and another engine, and the variants that torch lacks."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from gpudrop import variants
from gpudrop.formulas.activations import check_activation, check_loaded
from gpudrop.hints import hint_of_argument
from gpudrop.schedules import Schedule
from gpudrop.torch import functional, operators
from gpudrop.variants import FAMILY, OPTIONS

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from gpudrop.signatures import Own


def proxy_of(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    """In torch.fx's symbolic trace a call of the module, as torch's own modules are there; else None."""
    if args and type(args[0]) in functional.PLAIN:
        return None
    proxy = next((x for x in (*args, *kwargs.values()) if isinstance(x, torch.fx.Proxy)), None)
    if proxy is None:
        return None
    tracer: Any = proxy.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), args, kwargs)


def leaf(forward: Any) -> Any:
    """A forward of torch's for a class that is traced as torch's own is: as one call of the module."""

    @functools.wraps(forward)
    def wrapper(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        traced = proxy_of(self, *args, **kwargs)
        return forward(self, *args, **kwargs) if traced is None else traced

    return wrapper


def refuse_scripts(module: Any) -> Any:
    """What torch.jit.script asks a module for."""
    raise RuntimeError(
        f"torch.jit.script can't compile gpudrop's {type(module).__name__}: apply gpudrop.torch.revert to the model "
        "first, or use torch.compile or torch.export"
    )


class Variant(torch.nn.Module):
    """A variant as a module; a subclass says which.

    Parameters
    ----------
    p : float or Schedule
        As for the function of `gpudrop.torch.functional`; its default without it. A Schedule (`gpudrop.schedules`) is
        asked for p at `step`.
    inplace : bool
        Whether the result is written into the input.
    activation : str, optional
        Applied before, in the same pass.
    generator : torch.Generator, optional
        One of the host, instead of torch's own.
    bits : int, optional
        Random bits per element.
    **options
        The variant's own.

    Attributes
    ----------
    step : int
        The training step that a Schedule is asked for: set it in the loop, on each of `model.modules()` that has one.

    Notes
    -----
    A deep copy of a module with a generator of its own draws other masks: its generator is seeded by a number that the
    module's generator draws. Modules that stand for torch's leave to torch the tensors that gpudrop has no kernels for:
    other devices, dtypes and layouts, and numbers of dimensions.

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
    torchs: ClassVar[type[torch.nn.Module] | None] = None  # the class that it stands for
    overwrites: ClassVar[bool] = True  # whether inplace has an effect
    p: Any  # a float, as torch's classes have it, or a Schedule

    # Of the class, for a module of torch's that becomes one of these has none.
    activation: str | None = None
    generator: torch.Generator | None = None
    step = 0
    bits: int
    options: Mapping[str, Any]

    def __init_subclass__(cls, of: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if of is not None:
            cls.variant, cls.torchs = of, next(iter(cls.__bases__[1:]), None)
            cls.bits, cls.options = FAMILY[of].bits, functional.own_options(of)
            cls.__doc__ = f"`gpudrop.{of}` as a module: see there, and `Variant` for what all of them take."

    def __init__(
        self,
        p: float | Schedule | None = None,
        inplace: bool = False,
        *,
        activation: str | None = None,
        generator: torch.Generator | None = None,
        bits: int | None = None,
        **options: Unpack[Own],
    ) -> None:
        super().__init__()
        row, own = FAMILY[self.variant], type(self).options
        for name, value in options.items():
            if name not in own:
                known = ("p", "activation", "generator", "bits", *own)
                near = hint_of_argument(name, value, known)
                raise TypeError(f"{type(self).__name__} has no option {name!r}; it has {', '.join(known)}{near}")
        p = row.default if p is None else p
        self.p, self.step = p if isinstance(p, Schedule) else row.noise.check(p), 0
        self.inplace, self.activation, self.generator = bool(inplace), check_activation(activation), generator
        self.bits = row.noise.check_bits(type(self).bits if bits is None else bits)
        self.options = {**own} | {name: OPTIONS[name].check(value) for name, value in options.items()}

    def is_own(self) -> bool:
        """Whether it does what no module of torch's does."""
        return self.activation is not None or self.generator is not None or isinstance(self.p, Schedule)

    def probability(self) -> Any:
        """p of this step."""
        return self.p(self.step) if isinstance(self.p, Schedule) else self.p

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if (traced := proxy_of(self, input)) is not None:
            return traced
        if self.torchs is not None and self.activation is None and not functional.serves(input, self.variant):
            return input if self.training and not functional.is_on() else self.torchs.forward(self, input)
        return self.apply_to(input)

    def apply_to(
        self,
        *inputs: torch.Tensor,
        activation: str | None = None,
        inplace: bool | None = None,
        keeps_input: bool = False,
    ) -> torch.Tensor:
        """The variant of the inputs, by default as the module's attributes say."""
        return functional.apply(
            self.variant,
            inputs[0],
            inputs[1] if len(inputs) > 1 else None,
            self.probability(),
            self.training,
            (self.inplace if inplace is None else inplace) and self.overwrites,
            self.activation if activation is None else activation,
            self.generator,
            None,
            self.bits,
            self.options,
            keeps_input,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        generator = self.generator
        if generator is not None and id(generator) not in memo:  # one for all modules that share it
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
        if self.activation is not None:
            shown["activation"] = self.activation
        return ", ".join([text, *(f"{name}={value!r}" for name, value in shown.items())])


IGNORES_INPLACE = ("AlphaDropout", "FeatureAlphaDropout")
"""torch's own modules that never write into their input."""


def _forward_of_two(self: Variant, input: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    traced = proxy_of(self, input, previous)
    return self.apply_to(input, previous) if traced is None else traced


def _module_of(row: variants.Variant) -> type[Variant]:
    """The class of a variant, named as its layer is; torch's class that it stands for is the second base."""
    body: dict[str, Any] = {"__module__": __name__, "overwrites": row.torchs not in IGNORES_INPLACE}
    if len(row.inputs) > 1:
        body["forward"] = _forward_of_two
    bases = (Variant,) if row.torchs is None else (Variant, getattr(torch.nn, row.torchs))
    return type(row.layer, bases, body, of=row.name)


MODULES = {name: _module_of(row) for name, row in FAMILY.items()}
"""The module of each variant, by the variant's name."""

globals().update((cls.__name__, cls) for cls in MODULES.values())

if TYPE_CHECKING:
    # Generated by python -m tests.declarations.
    class Dropout(Variant, torch.nn.Dropout):
        """`gpudrop.dropout` as a module: see there, and `Variant`."""

    class Dropout1d(Variant, torch.nn.Dropout1d):
        """`gpudrop.dropout1d` as a module: see there, and `Variant`."""

    class Dropout2d(Variant, torch.nn.Dropout2d):
        """`gpudrop.dropout2d` as a module: see there, and `Variant`."""

    class Dropout3d(Variant, torch.nn.Dropout3d):
        """`gpudrop.dropout3d` as a module: see there, and `Variant`."""

    class DropPath(Variant):
        """`gpudrop.drop_path` as a module: see there, and `Variant`."""

    class LockedDropout(Variant):
        """`gpudrop.locked_dropout` as a module: see there, and `Variant`."""

    class EmbeddingDropout(Variant):
        """`gpudrop.embedding_dropout` as a module: see there, and `Variant`."""

    class TokenDropout(Variant):
        """`gpudrop.token_dropout` as a module: see there, and `Variant`."""

    class ConsistentDropout(Variant):
        """`gpudrop.consistent_dropout` as a module: see there, and `Variant`."""

    class DropConnect(Variant):
        """`gpudrop.drop_connect` as a module: see there, and `Variant`."""

    class DropBlock1d(Variant):
        """`gpudrop.dropblock1d` as a module: see there, and `Variant`."""

    class DropBlock2d(Variant):
        """`gpudrop.dropblock2d` as a module: see there, and `Variant`."""

    class AlphaDropout(Variant, torch.nn.AlphaDropout):
        """`gpudrop.alpha_dropout` as a module: see there, and `Variant`."""

    class FeatureAlphaDropout(Variant, torch.nn.FeatureAlphaDropout):
        """`gpudrop.feature_alpha_dropout` as a module: see there, and `Variant`."""

    class GaussianDropout(Variant):
        """`gpudrop.gaussian_dropout` as a module: see there, and `Variant`."""

    class UniformDropout(Variant):
        """`gpudrop.uniform_dropout` as a module: see there, and `Variant`."""

    class GaussianNoise(Variant):
        """`gpudrop.gaussian_noise` as a module: see there, and `Variant`."""

    class Zoneout(Variant):
        """`gpudrop.zoneout` as a module: see there, and `Variant`."""

        def forward(self, input: torch.Tensor, previous: torch.Tensor) -> torch.Tensor: ...  # type: ignore[override]

    # End of what is generated.

STANDS_FOR: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    cls: cls.torchs for cls in MODULES.values() if cls.torchs is not None
}
"""The modules that stand for torch's, and which these are."""


class WeightDrop(torch.nn.Module):
    """Run a module with some of its parameters dropped, by one mask for a call: DropConnect of any module.

    Source: Wan, Zeiler, Zhang, LeCun and Fergus, "Regularization of neural networks using DropConnect", ICML 2013;
    for an LSTM's weights from state to state, Merity, Keskar and Socher, "Regularizing and optimizing LSTM language
    models", ICLR 2018.

    Parameters
    ----------
    module : torch.nn.Module
        Its parameters stay its own, whole, and receive the gradients.
    names : str or sequence of str
        Which of its parameters, by the names of `named_parameters`.
    p, generator, bits
        As for `Variant`; p's default is that of `gpudrop.drop_connect`.

    Raises
    ------
    ValueError
        If the module has no parameter of such a name.

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
