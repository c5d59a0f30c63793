"""Layers for hand-written training loops: a class for each row of the family, all of them alike."""

import copy
import functools
import inspect
import sys
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from gpudrop.checks import check_integer, check_keys, check_p, check_truth, check_uint64
from gpudrop.context import DEFAULT, current
from gpudrop.formulas.activations import check_activation, check_loaded
from gpudrop.formulas.noises import Noise
from gpudrop.generator import Generator, RngLike, Stream, check_rng, kept_rng, spawned
from gpudrop.hints import ARGUMENTS, hint
from gpudrop.schedules import Schedule
from gpudrop.signatures import Array, MaskShape
from gpudrop.variants import FAMILY, OPTIONS, Variant, row_of

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from gpudrop.signatures import LayerOptions

SOURCES = {
    "default": ("the default generator", "None"),
    "generator": ("a generator of its own", "a gpudrop.Generator"),
    "stream": ("a Stream, which repeats its mask", "a gpudrop.Stream"),
}
"""What a layer may draw from: its name in a state, the same in words, and what the layer's rng is."""


def _check_remember(remember: Any) -> int | None:
    if remember is None:
        return None
    calls = check_integer("remember", remember)
    if not 1 <= calls <= sys.maxsize:
        raise ValueError(f"remember must be at least 1, or None for all calls, got {remember!r}")
    return calls


def _other_probability(p: float) -> float:
    return round(1 - p, 15)  # so that 0.8 reads as p=0.2


def _source(rng: Generator | Stream | None) -> str:
    """What a layer with this rng draws from, as `SOURCES` names it."""
    return "default" if rng is None else "generator" if isinstance(rng, Generator) else "stream"


class _Calls:
    """The calls that a layer's `backward` can go back through."""

    __slots__ = ("backprops", "drawn", "draws", "warned")

    def __init__(self, remember: int | None) -> None:
        self.backprops: deque[Any] = deque(maxlen=remember)
        self.drawn = 0  # calls in training since the last backward pass
        self.draws = False  # whether the last call is one of these
        self.warned = False


class _Kind(NamedTuple):
    """What all layers of a class have in common: see `Layer.settings`."""

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
    settings["step"] = functools.partial(check_uint64, "step")
    settings["training"] = functools.partial(check_truth, "training")
    return _Kind(row, settings, frozenset(options))


class Layer:
    """A variant as a layer: call it forward, then `backward`.

    A subclass names its `variant`, a row of `gpudrop.variants.FAMILY`; or, for a function of your own, `function` and
    `noise`, which says what p and bits may be. Its options are the function's own.

    Parameters
    ----------
    p : float or Schedule
        As for the variant; its default if keep_prob isn't given either. A Schedule is asked for p at `step`.
    keep_prob : float, optional
        1 - p, for those who think in it; give one of the two.
    rng : Generator, Stream, int, NumPy's Generator, BitGenerator or SeedSequence, optional
        As for `gpudrop.dropout`, except that a seed makes a Generator, which is then the attribute's value: an int n
        makes ``Generator(n)``, and NumPy's Generator draws one seed. The notes of `gpudrop.Generator` have the whole
        rule.
    remember : int, optional
        How many calls `backward` can go back through, the last one first: as many as there are between two backward
        passes, as over the steps of a sequence; None remembers all. With 1, the default, it goes through the last call
        and may do so again.
    **options
        The variant's own, and activation and bits as for `gpudrop.dropout`.

    Attributes
    ----------
    training : bool
        Whether elements are dropped; set by `train` and `eval`.
    step : int
        The training step that a Schedule is asked for: set it in the loop.

    Notes
    -----
    All parameters are attributes that can be read and set: they are checked, and the next call goes by them. There are
    no others, but those that a subclass of your own sets.

    What `backward` needs is not copied: for relu it is the array that the call returned, for other activations the one
    that it was given. If that is changed in place in between (``h += skip``), the gradient is wrong; write
    ``h = h + skip``. With ``remember=None`` these arrays are kept until `backward` has gone through their call; setting
    `remember` forgets all calls.

    To repeat a call under the same mask, as a check of the gradient by finite differences does, give the layer a Stream
    for that time: ``generator, layer.rng = layer.rng, gpudrop.Stream(0, 0)``, and afterwards ``layer.rng = generator``.
    To repeat several calls that have a mask each, set ``layer.rng = gpudrop.Generator(0)`` before the first of them.

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
        **options: "Unpack[LayerOptions]",
    ) -> None:
        if not hasattr(self, "_kind"):
            raise TypeError(f"{type(self).__name__} is no layer by itself: a subclass of it names its variant")
        defaults = self.defaults()
        for name in options:
            if name not in defaults:
                known = [setting for setting in self.settings() if setting not in ("step", "training")]
                near = hint(name, known, ARGUMENTS)
                raise TypeError(f"{type(self).__name__} has no option {name!r}; it has {', '.join(known)}{near}")
        if p is not None and keep_prob is not None:
            raise ValueError("give p or keep_prob, not both")
        if keep_prob is not None and self.strength() != "p":
            raise TypeError(f"{type(self).__name__} has no option 'keep_prob': {self.strength()} is not a probability")
        strength = {"keep_prob": keep_prob} if keep_prob is not None else {self.strength(): p}
        if p is None and keep_prob is None:
            strength = {self.strength(): self.default()}
        others = {"remember": remember, "training": True, "step": 0}
        # rng is last: it may draw a seed from NumPy's generator, which nothing may refuse afterwards.
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
        """What can be set, by name, and the check of each, which returns what is stored."""
        return cls._kind.settings

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The options and their defaults, in order."""
        row = cls._kind.variant
        return {**row.options, "activation": None, "bits": row.bits}

    @classmethod
    def default(cls) -> float:
        """The variant's p without being given one."""
        return cls._kind.variant.default

    @classmethod
    def strength(cls) -> str:
        """What the variant calls its p."""
        return cls._kind.variant.strength

    if TYPE_CHECKING:  # to type checkers __setattr__ would be a reason to allow any attribute
        p: Any
        std: Any
        keep_prob: float
        activation: str | None
        bits: int
        mask_shape: MaskShape | None
        channels_last: bool
        time_axis: int
        samples: int | None
        block_size: int
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
                if type(self).__module__ != __name__:  # a class of the user's, with attributes of its own
                    put(self, name, value)
                    return
                known = f"it has {', '.join(settings)}{hint(name, settings, ARGUMENTS)}"
                raise AttributeError(f"{type(self).__name__} has no attribute {name!r} to be set; {known}")
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
                self._calls.drawn = 0  # calls before had another purpose

        @property
        def keep_prob(self) -> float:
            """1 - p; with a Schedule, at `step`."""
            if self.strength() != "p":
                raise AttributeError(f"{type(self).__name__} has no keep_prob: {self.strength()} is not a probability")
            return _other_probability(self._strength_now())

    @property
    def options(self) -> Mapping[str, Any]:
        """The options and their values, to be read."""
        return MappingProxyType(self._options)

    def _strength_now(self) -> float:
        strength = getattr(self, self.strength())
        return strength(self.step) if isinstance(strength, Schedule) else strength

    def __call__(self, *arrays: Array) -> Array:
        """y, from x (and for zoneout the previous state); remembered for `backward`."""
        row = self._kind.variant
        if len(arrays) != len(row.inputs):
            names = " and ".join(row.inputs)
            given = "1 was" if len(arrays) == 1 else f"{len(arrays)} were"
            raise TypeError(f"{type(self).__name__} takes {names}, but {given} given")
        p, training, rng = getattr(self, row.strength), self.training, self.rng
        if isinstance(p, Schedule):
            p = p(self.step)
        y, backprop = self.function.prepare(*arrays, p, training=training, rng=rng, **self._options).vjp()
        calls = self._calls
        calls.backprops.append(backprop)
        calls.draws = draws = training and current() is DEFAULT and not isinstance(rng, Stream)
        calls.drawn += draws
        return y

    def backward(self, dy: Array) -> Array:
        """dx for dy, through the mask of the last call, or of the last one that it hasn't gone through with `remember`.

        A layer that is called with two arrays returns the gradients of both.

        Raises
        ------
        RuntimeError
            If the layer hasn't been called, or there is no such call left.

        Warns
        -----
        RuntimeWarning
            Once, if calls in training are left out: the layer remembers one call, and was called again after them.
        """
        calls = self._calls
        if not calls.backprops:
            left = "" if self.remember == 1 else f"; there is none left, with remember={self.remember}"
            raise RuntimeError(f"backward needs a call of the layer before it{left}")
        dx = calls.backprops[-1](dy)
        if calls.backprops.maxlen != 1:
            calls.backprops.pop()
        elif calls.drawn > calls.draws and not calls.warned:
            calls.warned = True
            warnings.warn(
                f"backward goes through the last call of this {type(self).__name__}, and leaves out "
                f"{calls.drawn - calls.draws} in training before it; with remember=n it goes back through n calls, the "
                "last one first. All is well if you only looked at what those calls returned",
                RuntimeWarning,
                stacklevel=2,
            )
        calls.drawn = 0
        return dx

    def train(self, mode: bool = True) -> "Self":
        """Drop elements from now on (or not, if mode is False); returns the layer."""
        if isinstance(mode, str):
            raise ValueError(f"mode must be True or False, got {mode!r}; eval() switches dropout off, train() on")
        self.training = check_truth("mode", mode)
        return self

    def eval(self) -> "Self":
        """Drop nothing from now on; returns the layer."""
        return self.train(False)

    def state_dict(self) -> dict[str, Any]:
        """The state, of Python's own numbers, strings, bools, None, lists and dicts, as JSON has them.

        Returns
        -------
        dict
            {"variant": str, "p": float or a Schedule's state, the options, "step": int, "training": bool, "rng":
            {"from": "default", "generator" or "stream", "seed": int, "call": int}}; for gaussian_noise std in the place
            of p.
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
        """Go on from a state that `state_dict` returned; nothing changes if it isn't one.

        A generator that other layers share, as the default one is, goes on from there for them too.

        Raises
        ------
        TypeError, ValueError
            If it isn't a state, or is that of another variant, of other options, or of a layer that draws from
            something else: from a generator of its own, say, where this one draws from the default one.
        """
        settings, strength, variant = self.settings(), self.strength(), self.function.__name__
        if isinstance(state, Mapping) and state.get("variant", variant) != variant:
            raise ValueError(f"the state is of {state['variant']!r}, and this layer is {variant!r}")
        check_keys("layer", state, ("variant", strength, *self._options, "step", "training", "rng"))
        for name, value in self._options.items():
            saved = tuple(state[name]) if isinstance(state[name], list) else state[name]
            if saved != value or type(saved) is not type(value):
                raise ValueError(f"the state is of a layer with {name}={saved!r}, and this one has {name}={value!r}")
        p = state[strength]
        p = Schedule.from_state_dict(p) if isinstance(p, Mapping) else settings[strength](p)
        step, training = settings["step"](state["step"]), settings["training"](state["training"])
        check_keys("stream" if isinstance(self.rng, Stream) else "generator", state["rng"], ("from", "seed", "call"))
        source, numbers = state["rng"]["from"], {name: state["rng"][name] for name in ("seed", "call")}
        if source not in list(SOURCES):  # a list, say, is not hashable
            raise ValueError(f"a state's rng must be from {', '.join(SOURCES)}, got {source!r}")
        if source != _source(self.rng):
            (words, needed), (own, _) = SOURCES[source], SOURCES[_source(self.rng)]
            raise ValueError(
                f"the state is of a layer that draws from {words}, and this one draws from {own}: set its rng to "
                f"{needed} first"
            )
        rng = check_rng(self.rng)
        if isinstance(rng, Generator):
            rng.load_state_dict(numbers)
        else:
            self.rng = Stream(**numbers)
        shown = self._given_keep_prob and not isinstance(p, Schedule)
        setattr(self, strength, p)
        object.__setattr__(self, "_given_keep_prob", shown)  # a layer that was made with keep_prob goes on showing it
        self.step, self.training = step, training

    def __deepcopy__(self, memo: dict[int, Any]) -> "Self":
        """A copy that draws other masks: its generator is spawned from the layer's, and uses up one of its streams."""
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        rng = spawned(self.rng, memo)
        made.__setstate__(copy.deepcopy(self.__getstate__() | {"rng": None}, memo) | {"rng": rng})
        return made

    def __getstate__(self) -> dict[str, Any]:
        """What was set, also by a subclass; not the calls, and with them their arrays."""
        return {name: value for name, value in vars(self).items() if name not in ("_calls", "_options")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        settings = self.settings()
        if type(self).__module__ == __name__:
            check_keys(f"{type(self).__name__} layer", state, (), optional=[*settings, "_given_keep_prob"])
        check_loaded(state.get("activation"))
        self._begin({name: value for name, value in state.items() if name in settings})
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
        return f"{type(self).__name__}({', '.join(values)})"


def _beginning(strength: str) -> Any:
    """`__init__` of layers that call their p something else: it has no keep_prob either."""

    def __init__(self: Any, *given: Any, **options: Any) -> None:
        name = type(self).__name__
        if "p" in options:
            raise TypeError(f"{name} has no option 'p'; how strong it is, {strength} says")
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
    """The class of a variant."""
    what = (row.function.__doc__ or "").partition("\n")[0].rstrip(".")
    more = f" It is called with {' and '.join(row.inputs)}." if len(row.inputs) > 1 else ""
    more += f" Its p is called {row.strength}." if row.strength != "p" else ""
    doc = f"""{what}; see `gpudrop.{row.name}` and `Layer`.{more}

    Examples
    --------
    >>> import gpudrop
    >>> gpudrop.layers.{row.layer}(0.2)
    {row.layer}({row.strength}=0.2, activation=None, bits={row.bits})
    """
    body = {"__module__": __name__, "__doc__": doc, "variant": row}
    if row.strength != "p":
        body["__init__"] = _beginning(row.strength)
    return type(row.layer, (Layer,), body)


VARIANTS = {name: _layer_of(row) for name, row in FAMILY.items()}
"""The layer of each variant, by the variant's name."""

globals().update((cls.__name__, cls) for cls in VARIANTS.values())

if TYPE_CHECKING:
    # Generated by python -m tests.declarations.
    class Dropout(Layer):
        """`gpudrop.dropout` as a layer: see there, and `Layer`."""

    class Dropout1d(Layer):
        """`gpudrop.dropout1d` as a layer: see there, and `Layer`."""

    class Dropout2d(Layer):
        """`gpudrop.dropout2d` as a layer: see there, and `Layer`."""

    class Dropout3d(Layer):
        """`gpudrop.dropout3d` as a layer: see there, and `Layer`."""

    class DropPath(Layer):
        """`gpudrop.drop_path` as a layer: see there, and `Layer`."""

    class LockedDropout(Layer):
        """`gpudrop.locked_dropout` as a layer: see there, and `Layer`."""

    class EmbeddingDropout(Layer):
        """`gpudrop.embedding_dropout` as a layer: see there, and `Layer`."""

    class TokenDropout(Layer):
        """`gpudrop.token_dropout` as a layer: see there, and `Layer`."""

    class ConsistentDropout(Layer):
        """`gpudrop.consistent_dropout` as a layer: see there, and `Layer`."""

    class DropConnect(Layer):
        """`gpudrop.drop_connect` as a layer: see there, and `Layer`."""

    class DropBlock1d(Layer):
        """`gpudrop.dropblock1d` as a layer: see there, and `Layer`."""

    class DropBlock2d(Layer):
        """`gpudrop.dropblock2d` as a layer: see there, and `Layer`."""

    class AlphaDropout(Layer):
        """`gpudrop.alpha_dropout` as a layer: see there, and `Layer`."""

    class FeatureAlphaDropout(Layer):
        """`gpudrop.feature_alpha_dropout` as a layer: see there, and `Layer`."""

    class GaussianDropout(Layer):
        """`gpudrop.gaussian_dropout` as a layer: see there, and `Layer`."""

    class UniformDropout(Layer):
        """`gpudrop.uniform_dropout` as a layer: see there, and `Layer`."""

    class GaussianNoise(Layer):
        """`gpudrop.gaussian_noise` as a layer: see there, and `Layer`."""

        def __init__(
            self,
            std: float | Schedule | None = None,
            *,
            rng: RngLike = None,
            remember: int | None = 1,
            **options: Unpack[LayerOptions],
        ) -> None: ...

    class Zoneout(Layer):
        """`gpudrop.zoneout` as a layer: see there, and `Layer`."""

        # It gives several gradients, so that it can't stand in for other layers.
        def backward(self, dy: Array) -> tuple[Array, Array]: ...  # type: ignore[override]

    # End of what is generated.
