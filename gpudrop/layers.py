"""Layers for hand-written training loops: one class for each dropout variant, all with the same interface."""

import copy
import functools
import inspect
import sys
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from gpudrop.checks import check_integer, check_keys, check_p, check_save, check_truth, check_uint64
from gpudrop.context import DEFAULT, current
from gpudrop.formulas.activations import check_activation, check_loaded
from gpudrop.formulas.noises import Noise
from gpudrop.generator import Generator, RngLike, Stream, check_rng, kept_rng, spawned
from gpudrop.hints import ARGUMENTS, hint
from gpudrop.schedules import Schedule
from gpudrop.signatures import Array, MaskShape, Save
from gpudrop.variants import FAMILY, OPTIONS, Variant, row_of

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from gpudrop.signatures import GateGradients, LayerOptions, PreviousGradients, ResidualGradients

SOURCES = {
    "default": ("the default generator", "None"),
    "generator": ("its own generator", "a gpudrop.Generator"),
    "stream": ("a Stream, which repeats its mask", "a gpudrop.Stream"),
}
"""The sources of a layer's masks. Name in a state -> (description, value of the layer's rng)."""


def _check_remember(remember: Any) -> int | None:
    if remember is None:
        return None
    calls = check_integer("remember", remember)
    if not 1 <= calls <= sys.maxsize:
        raise ValueError(f"remember must be at least 1, or None for all calls, got {remember!r}")
    return calls


def _other_probability(p: float) -> float:
    return round(1 - p, 15)  # so that keep_prob=0.8 is shown as p=0.2


def _source(rng: Generator | Stream | None) -> str:
    """Return the name in `SOURCES` of a layer's rng."""
    return "default" if rng is None else "generator" if isinstance(rng, Generator) else "stream"


class _Calls:
    """The calls that a layer remembers for `backward`."""

    __slots__ = ("backprops", "drawn", "draws", "warned")

    def __init__(self, remember: int | None) -> None:
        self.backprops: deque[Any] = deque(maxlen=remember)
        self.drawn = 0  # calls in training since the last backward pass
        self.draws = False  # whether the last call is counted in drawn
        self.warned = False


class _Kind(NamedTuple):
    """The properties shared by all layers of a class: see `Layer.settings`."""

    variant: Variant
    settings: dict[str, Callable[[Any], Any]]
    options: frozenset[str]


def _kind_of(row: Variant) -> _Kind:
    def check_strength(p: Any) -> Any:
        return p if isinstance(p, Schedule) else row.noise.check(p)

    settings: dict[str, Callable[[Any], Any]] = {row.strength: check_strength}
    if row.strength == "p":
        settings["keep_prob"] = lambda keep_prob: check_strength(_other_probability(check_p(keep_prob, "keep_prob")))
    options = {name: OPTIONS[name].check for name in row.options}
    options |= {"activation": check_activation, "bits": row.noise.check_bits}
    settings |= options
    settings["rng"] = kept_rng
    settings["remember"] = _check_remember
    settings["save"] = check_save
    settings["step"] = functools.partial(check_uint64, "step")
    settings["training"] = functools.partial(check_truth, "training")
    return _Kind(row, settings, frozenset(options))


class Layer:
    """A dropout variant as a layer: call the layer for the forward pass, then call `backward`.

    A subclass sets `variant` to a row of `gpudrop.variants.FAMILY`. For a function of your own, set `function` and
    `noise` instead; the noise checks p and bits. The options of the layer are those of the function.

    Parameters
    ----------
    p : float or Schedule
        As for the variant's function. The default is the variant's own. A Schedule returns p for the current `step`.
    keep_prob : float, optional
        1 - p. Pass either p or keep_prob.
    rng : Generator, Stream, int, NumPy's Generator, BitGenerator or SeedSequence, optional
        As for `gpudrop.dropout`, but a seed is converted to a Generator, which becomes the value of the attribute. An
        int n becomes ``Generator(n)``. NumPy's Generator draws one seed. The notes of `gpudrop.Generator` describe
        every type.
    remember : int, optional
        The number of calls that the layer remembers for `backward`, which processes the last one first. Set it to the
        number of calls between two backward passes, such as the steps of a sequence. None remembers all calls. With 1,
        the default, `backward` uses the last call, and may be called again.
    save : {"auto", "output", "bits"}
        What a call keeps for `backward`: see `gpudrop.dropout_vjp`.
    **options
        The variant's own options, and activation and bits as for `gpudrop.dropout`.

    Attributes
    ----------
    training : bool
        Whether elements are dropped. `train` and `eval` set it.
    step : int
        The training step that is passed to a Schedule. Set it in the training loop.

    Notes
    -----
    All parameters are attributes that can be read and set. A new value is checked, and the next call uses it. No other
    attributes can be set, except by subclasses of your own.

    `backward` uses an array of the call without a copy. For relu it is the array that the call returned, in variants
    that set dropped elements to 0 (not DropBlock, whose scale is counted). Otherwise, with any activation, it is the
    array that was passed to the call. If you change that array in place before `backward`, the gradient is wrong. For
    example, write ``h = h + skip`` instead of ``h += skip``. With ``save="bits"`` a call keeps one bit per element, and
    both arrays may be changed. With ``remember=None`` each array is kept until `backward` has processed its call.
    Setting `remember` forgets all calls.

    To repeat a call with the same mask, set the rng to a Stream. A gradient check by finite differences needs this:
    ``generator, layer.rng = layer.rng, gpudrop.Stream(0, 0)``, and afterwards ``layer.rng = generator``. To repeat a
    sequence of calls with different masks, set ``layer.rng = gpudrop.Generator(0)`` before the first call.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> layer = gpudrop.Dropout(keep_prob=0.75, activation="relu", rng=gpudrop.Generator(1))
    >>> layer
    Dropout(p=0.25, keep_prob=0.75, activation='relu', bits=16)
    >>> x = np.float32([[-3, 3, 6, 9]])
    >>> layer(x)
    array([[ 0.,  4.,  0., 12.]], dtype=float32)
    >>> layer.backward(np.ones_like(x))
    array([[0.       , 1.3333334, 0.       , 1.3333334]], dtype=float32)
    >>> layer.eval()(x)
    array([[0., 3., 6., 9.]], dtype=float32)
    """

    variant: ClassVar[Variant]
    function: ClassVar[Any] = None
    noise: ClassVar[Noise] = FAMILY["dropout"].noise

    _kind: ClassVar[_Kind]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        row = vars(cls).get("variant")
        if isinstance(row, Variant):  # not a user's own attribute of this name
            cls.function, cls.noise = staticmethod(row.function), row.noise
        elif cls.function is None:  # a base class for layers
            return
        else:
            base = cls._kind.variant if hasattr(cls, "_kind") else None
            if base is not None and (cls.function, cls.noise) == (base.function, base.noise):
                return
            row = row_of(cls.__name__, cls.function, cls.noise)
            if "variant" not in vars(cls):
                cls.variant = row
        cls._kind = _kind_of(row)

    def __init__(
        self,
        p: float | Schedule | None = None,
        *,
        keep_prob: float | None = None,
        rng: RngLike = None,
        remember: int | None = 1,
        save: Save = "auto",
        **options: "Unpack[LayerOptions]",
    ) -> None:
        if not hasattr(self, "_kind"):
            raise TypeError(f"{type(self).__name__} can't be created by itself: define a subclass that sets variant")
        defaults = self.defaults()
        for name in options:
            if name not in defaults:
                known = [setting for setting in self.settings() if setting not in ("step", "training")]
                near = hint(name, known, ARGUMENTS)
                raise TypeError(f"{type(self).__name__} has no option {name!r}; it has {', '.join(known)}{near}")
        if p is not None and keep_prob is not None:
            raise ValueError("p and keep_prob can't both be set: pass only one of them")
        if keep_prob is not None and self.strength() != "p":
            raise TypeError(f"{type(self).__name__} has no option 'keep_prob': {self.strength()} is not a probability")
        strength = {"keep_prob": keep_prob} if keep_prob is not None else {self.strength(): p}
        if p is None and keep_prob is None:
            strength = {self.strength(): self.default()}
        others = {"remember": remember, "save": save, "training": True, "step": 0}
        # rng is set last, because it may draw a seed from NumPy's generator: no error may follow that.
        self._begin({**strength, **defaults, **options, **others, "rng": rng})

    def _begin(self, settings: Mapping[str, Any]) -> None:
        put = object.__setattr__
        put(self, "_options", {})
        put(self, "_calls", _Calls(1))
        put(self, "_given_keep_prob", False)
        for name, value in settings.items():
            setattr(self, name, value)

    @classmethod
    def settings(cls) -> dict[str, Callable[[Any], Any]]:
        """Return the attributes that can be set: name -> function that checks a value and returns the stored one."""
        return cls._kind.settings

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return the options and their defaults, in order."""
        row = cls._kind.variant
        return {**row.options, "activation": row.activation, "bits": row.bits}

    @classmethod
    def default(cls) -> float:
        """Return the default of p."""
        return cls._kind.variant.default

    @classmethod
    def strength(cls) -> str:
        """Return the variant's name for p: "std" for GaussianNoise."""
        return cls._kind.variant.strength

    if TYPE_CHECKING:  # a class with __setattr__ may have any attribute, so type checkers must not see it
        p: Any
        std: Any
        keep_prob: float
        save: Save
        activation: str | None
        bits: int
        mask_shape: MaskShape | None
        channels_last: bool
        time_axis: int
        samples: int | None
        block_size: int
        gate_first: bool
        remember: int | None
        step: int
        training: bool
        _given_keep_prob: bool
        _options: dict[str, Any]
        _calls: _Calls

        @property
        def rng(self) -> Generator | Stream | None: ...
        @rng.setter
        def rng(self, rng: RngLike) -> None: ...

    else:

        def __setattr__(self, name: str, value: Any) -> None:
            put, (row, settings, options) = object.__setattr__, self._kind
            if name not in settings:
                if type(self).__module__ != __name__:  # a user's subclass may have other attributes
                    put(self, name, value)
                    return
                known = f"it has {', '.join(settings)}{hint(name, settings, ARGUMENTS)}"
                raise AttributeError(f"{type(self).__name__} has no attribute {name!r} that can be set; {known}")
            value = settings[name](value)
            if name in (row.strength, "keep_prob"):
                put(self, "_given_keep_prob", name == "keep_prob")
                name = row.strength
            put(self, name, value)
            if name in options:
                put(self, "_options", self._options | {name: value})
            elif name == "remember":
                put(self, "_calls", _Calls(value))
            elif name == "rng":
                self._calls.drawn = 0  # backward must not warn about calls before this change

        @property
        def keep_prob(self) -> float:
            """1 - p; with a Schedule, the value for the current `step`."""
            if self.strength() != "p":
                raise AttributeError(f"{type(self).__name__} has no keep_prob: {self.strength()} is not a probability")
            return _other_probability(self._strength_now())

    @property
    def options(self) -> Mapping[str, Any]:
        """The options and their values, as a read-only mapping."""
        return MappingProxyType(self._options)

    def _strength_now(self) -> float:
        strength = getattr(self, self.strength())
        return strength(self.step) if isinstance(strength, Schedule) else strength

    def __call__(self, *arrays: Array, **named: Array | None) -> Array:
        """Return y for x, and remember the call for `backward`.

        A layer takes the array arguments of its variant's function, for example ``layer(x, residual, bias=bias)``.
        """
        row, count = self._kind.variant, len(arrays)
        if count != len(row.inputs) or named:
            unknown, missing = named.keys() - {*row.inputs[count:], *row.rows}, {*row.inputs[count : row.least]}
            if count > len(row.inputs) or unknown or missing - named.keys():
                raise self._refused(arrays, named)
        p, training, rng = getattr(self, row.strength), self.training, self.rng
        if isinstance(p, Schedule):
            p = p(self.step)
        y, backprop = self.function.prepare(
            *arrays, **{row.strength: p}, training=training, rng=rng, **self._options, **named
        ).vjp(save=self.save)
        calls = self._calls
        calls.backprops.append(backprop)
        calls.draws = draws = training and current() is DEFAULT and not isinstance(rng, Stream)
        calls.drawn += draws
        return y

    def _refused(self, arrays: tuple[Any, ...], named: Mapping[str, Any]) -> TypeError:
        """The error for missing arrays, for too many, or for an unknown name."""
        row, known = self._kind.variant, {*self._kind.variant.inputs, *self._kind.variant.rows}
        unknown = [name for name in named if name not in known]
        count = len(arrays) + len(named)
        got = f"{unknown[0]!r} was" if unknown else "1 was" if count == 1 else f"{count} were"
        takes, optional = " and ".join(row.inputs[: row.least]), row.inputs[row.least :]
        takes += f", and optionally {' and '.join(optional)}" if optional else ""
        takes += f", and optionally {' and '.join(row.rows)} by name" if row.rows else ""
        return TypeError(f"{type(self).__name__} takes {takes}, but {got} given")

    def backward(self, dy: Array) -> Array:
        """Return the gradient dx for dy, with the mask of the last remembered call.

        If `remember` is not 1, each call of `backward` removes that call, so the next one uses the call before it. A
        layer that is called with several arrays, or with a bias, returns their gradients as a named tuple.

        Raises
        ------
        RuntimeError
            If the layer has not been called, or if it remembers no further call.

        Warns
        -----
        RuntimeWarning
            Once, if the layer remembers one call only and was called in training several times before `backward`. The
            earlier calls then receive no gradient.
        """
        calls = self._calls
        if not calls.backprops:
            left = "" if self.remember == 1 else f"; with remember={self.remember}, backward has used all of them"
            raise RuntimeError(f"backward needs a call of the layer before it{left}")
        dx = calls.backprops[-1](dy)
        if calls.backprops.maxlen != 1:
            calls.backprops.pop()
        elif calls.drawn > calls.draws and not calls.warned:
            calls.warned = True
            warnings.warn(
                f"backward uses only the last call of this {type(self).__name__} and ignores "
                f"{calls.drawn - calls.draws} earlier call(s) in training; with remember=n it goes back through n "
                "calls, the last one first. Ignore this warning if the results of those calls need no gradient",
                RuntimeWarning,
                stacklevel=2,
            )
        calls.drawn = 0
        return dx

    def train(self, mode: bool = True) -> "Self":
        """Switch dropout on, or off if mode is False, and return the layer."""
        if isinstance(mode, str):
            raise ValueError(f"mode must be True or False, got {mode!r}; eval() switches dropout off, train() on")
        self.training = check_truth("mode", mode)
        return self

    def eval(self) -> "Self":
        """Switch dropout off, and return the layer."""
        return self.train(False)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the layer; JSON can represent it.

        Returns
        -------
        dict
            {"variant": str, "p": float or a Schedule's state, the options, "step": int, "training": bool, "rng":
            {"from": "default", "generator" or "stream", "seed": int, "call": int}}. For gaussian_noise the key is
            "std" instead of "p".
        """
        name, rng = self.strength(), check_rng(self.rng)
        strength = getattr(self, name)
        source = {"from": _source(self.rng)} | (rng.state_dict() if isinstance(rng, Generator) else rng.numbers())
        return {
            "variant": self.function.__name__,
            name: strength.state_dict() if isinstance(strength, Schedule) else strength,
            **{option: list(v) if isinstance(v, tuple) else v for option, v in self._options.items()},
            "step": self.step,
            "training": self.training,
            "rng": source,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` returned.

        If the layer shares its generator with other layers, their generator changes too. All layers without an rng
        share the default generator.

        Raises
        ------
        TypeError, ValueError
            If the state is not valid, or if it belongs to another variant, to other options or to another kind of rng.
            For example, the saved layer had its own generator, but this layer uses the default one. In this case
            nothing changes.
        """
        settings, strength, variant = self.settings(), self.strength(), self.function.__name__
        if isinstance(state, Mapping) and state.get("variant", variant) != variant:
            raise ValueError(f"the state belongs to a layer of {state['variant']!r}, but this layer is of {variant!r}")
        check_keys("layer", state, ("variant", strength, *self._options, "step", "training", "rng"))
        for name, value in self._options.items():
            saved = tuple(state[name]) if isinstance(state[name], list) else state[name]
            if saved != value or type(saved) is not type(value):
                raise ValueError(f"the state has {name}={saved!r}, but this layer has {name}={value!r}")
        p = state[strength]
        p = Schedule.from_state_dict(p) if isinstance(p, Mapping) else settings[strength](p)
        step, training = settings["step"](state["step"]), settings["training"](state["training"])
        check_keys("stream" if isinstance(self.rng, Stream) else "generator", state["rng"], ("from", "seed", "call"))
        source, numbers = state["rng"]["from"], {name: state["rng"][name] for name in ("seed", "call")}
        if source not in list(SOURCES):  # a list, because source may have no hash
            raise ValueError(f"'from' in a state's rng must be one of {', '.join(SOURCES)}, got {source!r}")
        if source != _source(self.rng):
            (words, needed), (own, _) = SOURCES[source], SOURCES[_source(self.rng)]
            raise ValueError(
                f"the state belongs to a layer that draws from {words}, but this one draws from {own}: set its rng to "
                f"{needed} first"
            )
        rng = check_rng(self.rng)
        if isinstance(rng, Generator):
            rng.load_state_dict(numbers)
        else:
            self.rng = Stream(**numbers)
        shown = self._given_keep_prob and not isinstance(p, Schedule)
        setattr(self, strength, p)
        object.__setattr__(self, "_given_keep_prob", shown)  # a layer created with keep_prob still shows it
        self.step, self.training = step, training

    def __deepcopy__(self, memo: dict[int, Any]) -> "Self":
        """Return a copy that draws other masks: its generator is spawned from the layer's, which uses one stream."""
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        rng = spawned(self.rng, memo)
        made.__setstate__(copy.deepcopy(self.__getstate__() | {"rng": None}, memo) | {"rng": rng})
        return made

    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes, also those of a subclass, without the remembered calls and their arrays."""
        return {name: value for name, value in vars(self).items() if name not in ("_calls", "_options")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        settings = self.settings()
        if type(self).__module__ == __name__:
            check_keys(f"{type(self).__name__} layer", state, (), optional=[*settings, "_given_keep_prob"])
        check_loaded(state.get("activation"))
        # Layers of older versions have no attribute save.
        self._begin({"save": "auto"} | {name: value for name, value in state.items() if name in settings})
        vars(self).update({name: value for name, value in state.items() if name not in settings})

    def __repr__(self) -> str:
        strength = getattr(self, self.strength())
        values = [
            f"{self.strength()}={strength!r}" if isinstance(strength, Schedule) else f"{self.strength()}={strength:g}"
        ]
        if self._given_keep_prob:
            values.append(f"keep_prob={self.keep_prob:g}")
        options, defaults = self._options, self.defaults()
        own = [name for name in options if name not in ("activation", "bits") and options[name] != defaults[name]]
        values += [f"{name}={options[name]!r}" for name in (*own, "activation", "bits")]
        values += [f"remember={self.remember}"] * (self.remember != 1)
        values += [f"save={self.save!r}"] * (self.save != "auto")
        return f"{type(self).__name__}({', '.join(values)})"


def _beginning(strength: str) -> Any:
    """Create `__init__` for layers with another name for p; they have no keep_prob."""

    def __init__(self: Any, *given: Any, **options: Any) -> None:
        name = type(self).__name__
        if "p" in options:
            raise TypeError(f"{name} has no option 'p'; its strength is {strength}")
        if strength in options:
            if given:
                raise TypeError(f"{name}.__init__() got multiple values for argument {strength!r}")
            given = (options.pop(strength),)
        Layer.__init__(self, *given, **options)

    own = inspect.signature(Layer.__init__)
    kept = [a.replace(name=strength if a.name == "p" else a.name) for a in own.parameters.values()]
    signature = own.replace(parameters=[a for a in kept if a.name != "keep_prob"])
    __init__.__signature__ = signature  # type: ignore[attr-defined]
    __init__.__qualname__ = "Layer.__init__"
    return __init__


def _layer_of(row: Variant) -> type[Layer]:
    """Create the layer class of a variant."""
    what = (row.function.__doc__ or "").partition("\n")[0].rstrip(".")
    more = f" Call the layer with {' and '.join(row.inputs)}." if len(row.inputs) > 1 else ""
    more += f" {' and '.join(row.inputs[row.least :])} may be absent." if row.least < len(row.inputs) else ""
    more += f" It also takes {' and '.join(row.rows)}, by name." if row.rows else ""
    more += f" The parameter {row.strength} replaces p." if row.strength != "p" else ""
    doc = f"""{what}.

    This is the layer of `gpudrop.{row.name}`, which describes the options. `Layer` describes the common parameters,
    attributes and methods.{more}

    Examples
    --------
    >>> import gpudrop
    >>> gpudrop.layers.{row.layer}(0.2)
    {row.layer}({row.strength}=0.2, activation={row.activation!r}, bits={row.bits})
    """
    body = {"__module__": __name__, "__doc__": doc, "variant": row}
    if row.strength != "p":
        body["__init__"] = _beginning(row.strength)
    return type(row.layer, (Layer,), body)


VARIANTS = {name: _layer_of(row) for name, row in FAMILY.items()}
"""Name of the variant -> layer class."""

globals().update((cls.__name__, cls) for cls in VARIANTS.values())

if TYPE_CHECKING:
    # Generated by python -m tests.declarations.
    class Dropout(Layer):
        """A layer that applies `gpudrop.dropout`. `Layer` describes the common parameters."""

    class Dropout1d(Layer):
        """A layer that applies `gpudrop.dropout1d`. `Layer` describes the common parameters."""

    class Dropout2d(Layer):
        """A layer that applies `gpudrop.dropout2d`. `Layer` describes the common parameters."""

    class Dropout3d(Layer):
        """A layer that applies `gpudrop.dropout3d`. `Layer` describes the common parameters."""

    class DropPath(Layer):
        """A layer that applies `gpudrop.drop_path`. `Layer` describes the common parameters."""

    class LockedDropout(Layer):
        """A layer that applies `gpudrop.locked_dropout`. `Layer` describes the common parameters."""

    class EmbeddingDropout(Layer):
        """A layer that applies `gpudrop.embedding_dropout`. `Layer` describes the common parameters."""

    class TokenDropout(Layer):
        """A layer that applies `gpudrop.token_dropout`. `Layer` describes the common parameters."""

    class ConsistentDropout(Layer):
        """A layer that applies `gpudrop.consistent_dropout`. `Layer` describes the common parameters."""

    class DropConnect(Layer):
        """A layer that applies `gpudrop.drop_connect`. `Layer` describes the common parameters."""

    class DropBlock1d(Layer):
        """A layer that applies `gpudrop.dropblock1d`. `Layer` describes the common parameters."""

    class DropBlock2d(Layer):
        """A layer that applies `gpudrop.dropblock2d`. `Layer` describes the common parameters."""

    class AlphaDropout(Layer):
        """A layer that applies `gpudrop.alpha_dropout`. `Layer` describes the common parameters."""

    class FeatureAlphaDropout(Layer):
        """A layer that applies `gpudrop.feature_alpha_dropout`. `Layer` describes the common parameters."""

    class GaussianDropout(Layer):
        """A layer that applies `gpudrop.gaussian_dropout`. `Layer` describes the common parameters."""

    class UniformDropout(Layer):
        """A layer that applies `gpudrop.uniform_dropout`. `Layer` describes the common parameters."""

    class GaussianNoise(Layer):
        """A layer that applies `gpudrop.gaussian_noise`. `Layer` describes the common parameters."""

        def __init__(
            self,
            std: float | Schedule | None = None,
            *,
            rng: RngLike = None,
            remember: int | None = 1,
            save: Save = "auto",
            **options: Unpack[LayerOptions],
        ) -> None: ...

    class Zoneout(Layer):
        """A layer that applies `gpudrop.zoneout`. `Layer` describes the common parameters."""

        # It returns the gradients of several arrays, unlike the other layers.
        def backward(self, dy: Array) -> PreviousGradients[Array]: ...  # type: ignore[override]

    class DropoutAdd(Layer):
        """A layer that applies `gpudrop.dropout_add`. `Layer` describes the common parameters."""

        # It returns the gradients of several arrays, unlike the other layers.
        def backward(self, dy: Array) -> ResidualGradients[Array]: ...  # type: ignore[override]

    class DropoutGLU(Layer):
        """A layer that applies `gpudrop.dropout_glu`. `Layer` describes the common parameters."""

        # It returns the gradients of several arrays, unlike the other layers.
        def backward(self, dy: Array) -> GateGradients[Array]: ...  # type: ignore[override]

    # End of what is generated.
