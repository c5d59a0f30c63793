"""Layers for hand-written training loops: a class for each variant, all of them alike."""

import copy
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from gpudrop import noises, variants
from gpudrop.activations import find_activation
from gpudrop.dropout import dropout
from gpudrop.generator import Generator, Stream, check_rng, spawned
from gpudrop.masks import check_mask_shape
from gpudrop.random_bits import check_bits, check_p, check_uint64
from gpudrop.schedules import Schedule
from gpudrop.signatures import Array
from gpudrop.states import check_keys

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from gpudrop.signatures import LayerOptions


class Layer:
    """A variant as a layer: call it forward, then `backward`.

    A subclass says with `function` which variant it is, and with `check` what its p may be; its options are the
    function's own.

    Parameters
    ----------
    p : float or Schedule
        As for the variant; its default if keep_prob isn't given either. A Schedule is asked for p at `step`.
    keep_prob : float, optional
        1 - p, for those who think in it; give one of the two.
    rng : Generator or Stream, optional
        As for `gpudrop.dropout`.
    **options
        The variant's own, and activation and bits as for `gpudrop.dropout`.

    Attributes
    ----------
    training : bool
        Whether elements are dropped; set by `train` and `eval`.
    step : int
        The training step that a Schedule is asked for: set it in the loop.
    """

    function: ClassVar[Any] = None
    check: ClassVar[Any] = staticmethod(check_p)

    def __init__(
        self,
        p: float | Schedule | None = None,
        *,
        keep_prob: float | None = None,
        rng: Generator | Stream | None = None,
        **options: "Unpack[LayerOptions]",
    ) -> None:
        defaults = self.defaults()
        for name in options:
            if name not in defaults:
                raise TypeError(f"{type(self).__name__} has no option {name!r}; it has {', '.join(defaults)}")
        if p is not None and keep_prob is not None:
            raise ValueError("give p or keep_prob, not both")
        if keep_prob is not None:
            if self.strength() != "p":
                raise TypeError(
                    f"{type(self).__name__} has no option 'keep_prob', for {self.strength()} is no probability"
                )
            p = round(1 - check_p(keep_prob, "keep_prob"), 15)  # so that 0.8 reads as p=0.2
        if p is None:
            p = self.default()
        self.p = p if isinstance(p, Schedule) else self.check(p)
        self.options: dict[str, Any] = {**defaults, **options}
        find_activation(self.options["activation"])
        if self.options.get("mask_shape") is not None:
            self.options["mask_shape"] = check_mask_shape(self.options["mask_shape"])
        self.options["bits"] = check_bits(self.options["bits"])
        check_rng(rng)
        self.rng = rng  # None stays None: the default generator, which a copy of the layer shares
        self.training, self.step = True, 0
        self._backprop = None

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The options and their defaults, in order."""
        parameters = inspect.signature(cls.function).parameters.values()
        others = ("training", "rng", "out", "backend")
        return {a.name: a.default for a in parameters if a.kind is a.KEYWORD_ONLY and a.name not in others}

    @classmethod
    def default(cls) -> float:
        """The variant's p without being given one."""
        return inspect.signature(cls.function).parameters[cls.strength()].default

    @classmethod
    def strength(cls) -> str:
        """What the variant calls its p."""
        return [a.name for a in inspect.signature(cls.function).parameters.values() if a.kind is not a.KEYWORD_ONLY][-1]

    def __call__(self, *arrays: Array) -> Array:
        """y, from x (and for zoneout the previous state); remembered for `backward`."""
        p = self.p(self.step) if isinstance(self.p, Schedule) else self.p
        y, self._backprop = self.function.vjp(*arrays, p, training=self.training, rng=self.rng, **self.options)
        return y

    def backward(self, dy: Array) -> Array:
        """dx for dy, through the mask of the last call.

        Raises
        ------
        RuntimeError
            If the layer hasn't been called.
        """
        if self._backprop is None:
            raise RuntimeError("backward needs a call of the layer before it")
        return self._backprop(dy)

    def train(self, mode: bool = True) -> "Self":
        """Drop elements from now on (or not, if mode is False); returns the layer."""
        self.training = bool(mode)
        return self

    def eval(self) -> "Self":
        """Drop nothing from now on; returns the layer."""
        return self.train(False)

    def state_dict(self) -> dict[str, Any]:
        """{"p": float or a Schedule's state, "step": int, "rng": {"seed": int, "call": int}}."""
        rng = check_rng(self.rng)
        random = rng.state_dict() if isinstance(rng, Generator) else {"seed": rng.seed, "call": rng.call}
        return {"p": self.p.state_dict() if isinstance(self.p, Schedule) else self.p, "step": self.step, "rng": random}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` returned; nothing changes if it isn't one.

        A generator that other layers share, as the default one is, goes on from there for them too.
        """
        check_keys("layer", state, ("p", "step", "rng"))
        p, step = state["p"], check_uint64("step", state["step"])
        p = Schedule.from_state_dict(p) if isinstance(p, Mapping) else self.check(p)
        rng = check_rng(self.rng)
        if isinstance(rng, Generator):
            rng.load_state_dict(state["rng"])
        else:
            check_keys("stream", state["rng"], ("seed", "call"))
            self.rng = Stream(**state["rng"])
        self.p, self.step = p, step

    def __deepcopy__(self, memo: dict[int, Any]) -> "Self":
        """A copy that draws other masks: its generator is spawned from the layer's, and uses up one of its streams."""
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        rng = spawned(self.rng, memo)
        made.__setstate__(copy.deepcopy(self.__getstate__() | {"rng": None}, memo) | {"rng": rng})
        return made

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_backprop": None}  # a call is not saved, and its arrays with it

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        check_keys(f"{type(self).__name__} layer", state["options"], (), optional=self.defaults())
        vars(self).update(state)

    def __repr__(self) -> str:
        p = repr(self.p) if isinstance(self.p, Schedule) else f"{self.p:g}"
        options, defaults = self.options, self.defaults()
        own = [name for name in options if name not in ("activation", "bits") and options[name] != defaults[name]]
        shown = [*own, "activation", "bits"]
        values = [f"{self.strength()}={p}", *(f"{name}={options[name]!r}" for name in shown)]
        return f"{type(self).__name__}({', '.join(values)})"


class Dropout(Layer):
    """An activation and dropout as one layer; see `gpudrop.dropout` and, for what all layers have, `Layer`.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> layer = gpudrop.Dropout(keep_prob=0.75, activation="relu", rng=gpudrop.Generator(1))
    >>> layer
    Dropout(p=0.25, activation='relu', bits=16)
    >>> x = np.float32([[-3, 3, 6, 9]])
    >>> layer(x)
    array([[ 0.,  4.,  0., 12.]], dtype=float32)
    >>> layer.backward(np.ones_like(x))
    array([[0.       , 1.3333334, 0.       , 1.3333334]], dtype=float32)
    >>> layer.eval()(x)
    array([[0., 3., 6., 9.]], dtype=float32)
    """

    function = staticmethod(dropout)


class Dropout1d(Layer):
    """Drop whole channels of sequences; see `gpudrop.dropout1d` and `Layer`.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> layer = gpudrop.layers.Dropout1d(0.5, rng=gpudrop.Stream(0, 0))
    >>> layer(np.ones((1, 3, 2), np.float32))[0]
    array([[2., 2.],
           [0., 0.],
           [2., 2.]], dtype=float32)
    """

    function = staticmethod(variants.dropout1d)


class Dropout2d(Layer):
    """Drop whole channels of images; see `gpudrop.dropout2d` and `Layer`.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> gpudrop.layers.Dropout2d(0.2, channels_last=True)
    Dropout2d(p=0.2, channels_last=True, activation=None, bits=16)
    """

    function = staticmethod(variants.dropout2d)


class Dropout3d(Layer):
    """Drop whole channels of volumes; see `gpudrop.dropout3d` and `Layer`.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> gpudrop.layers.Dropout3d(0.2)(np.ones((1, 2, 3, 4, 5))).shape
    (1, 2, 3, 4, 5)
    """

    function = staticmethod(variants.dropout3d)


class DropPath(Layer):
    """Drop whole samples of a residual branch; see `gpudrop.drop_path` and `Layer`.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> [gpudrop.layers.DropPath(p) for p in gpudrop.drop_path_rates(0.1, 2)]
    [DropPath(p=0, activation=None, bits=16), DropPath(p=0.1, activation=None, bits=16)]
    """

    function = staticmethod(variants.drop_path)


class LockedDropout(Layer):
    """Drop the same features at every step in time; see `gpudrop.locked_dropout` and `Layer`.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> layer = gpudrop.layers.LockedDropout(0.5, time_axis=1, rng=gpudrop.Stream(0, 1))
    >>> layer(np.ones((1, 2, 6), np.float32))[0]
    array([[0., 2., 0., 2., 2., 0.],
           [0., 2., 0., 2., 2., 0.]], dtype=float32)
    """

    function = staticmethod(variants.locked_dropout)


class EmbeddingDropout(Layer):
    """Drop whole rows of an embedding table; see `gpudrop.embedding_dropout` and `Layer`.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> layer = gpudrop.layers.EmbeddingDropout(0.5, rng=gpudrop.Stream(0, 0))
    >>> layer(np.ones((3, 2)))  # the table; look the words up in what comes back
    array([[2., 2.],
           [0., 0.],
           [2., 2.]])
    """

    function = staticmethod(variants.embedding_dropout)


class TokenDropout(Layer):
    """Drop whole tokens of a sequence; see `gpudrop.token_dropout` and `Layer`.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> gpudrop.layers.TokenDropout(0.5, rng=gpudrop.Stream(0, 0))(np.ones((1, 3, 2)))[0]
    array([[2., 2.],
           [0., 0.],
           [2., 2.]])
    """

    function = staticmethod(variants.token_dropout)


class ConsistentDropout(Layer):
    """Drop the same elements of every sample; see `gpudrop.consistent_dropout` and `Layer`.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> gpudrop.layers.ConsistentDropout(0.5, rng=gpudrop.Stream(0, 1))(np.ones((2, 6)))
    array([[0., 2., 0., 2., 2., 0.],
           [0., 2., 0., 2., 2., 0.]])
    """

    function = staticmethod(variants.consistent_dropout)


class DropConnect(Layer):
    """Drop weights; see `gpudrop.drop_connect` and `Layer`.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> x, weights = np.ones((1, 2)), np.ones((2, 3))
    >>> layer = gpudrop.layers.DropConnect(0.5, rng=gpudrop.Stream(0, 1))
    >>> x @ layer(weights)
    array([[2., 4., 0.]])
    >>> layer.backward(x.T @ np.ones((1, 3)))  # the gradient of the weights
    array([[0., 2., 0.],
           [2., 2., 0.]])
    """

    function = staticmethod(variants.drop_connect)


class DropBlock1d(Layer):
    """Drop blocks of neighbours in sequences; see `gpudrop.dropblock1d` and `Layer`.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> gpudrop.layers.DropBlock1d(0.1, block_size=5)(np.ones((2, 3, 20))).shape
    (2, 3, 20)
    """

    function = staticmethod(variants.dropblock1d)


class DropBlock2d(Layer):
    """Drop square blocks of neighbours in feature maps; see `gpudrop.dropblock2d` and `Layer`.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> gpudrop.layers.DropBlock2d(gpudrop.schedules.linear(0, 0.1, 5000), block_size=5)
    DropBlock2d(p=Schedule(first=0.0, last=0.1, steps=5000, curve='linear'), block_size=5, activation=None, bits=32)
    """

    function = staticmethod(variants.dropblock2d)


class AlphaDropout(Layer):
    """Dropout that keeps mean 0 and variance 1; see `gpudrop.alpha_dropout` and `Layer`.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> gpudrop.layers.AlphaDropout(0.5, activation="selu", rng=gpudrop.Stream(0, 1))(np.zeros(4)).round(3)
    array([-0.779,  0.779, -0.779,  0.779])
    """

    function = staticmethod(variants.alpha_dropout)


class FeatureAlphaDropout(Layer):
    """Alpha dropout of whole channels; see `gpudrop.feature_alpha_dropout` and `Layer`.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> gpudrop.layers.FeatureAlphaDropout(0.5)(np.zeros((2, 3, 4, 4))).shape
    (2, 3, 4, 4)
    """

    function = staticmethod(variants.feature_alpha_dropout)


class GaussianDropout(Layer):
    """Multiply by normal noise of mean 1; see `gpudrop.gaussian_dropout` and `Layer`.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> gpudrop.layers.GaussianDropout(0.5, rng=gpudrop.Stream(0, 0))(np.ones(3)).round(3)
    array([1.991, 0.075, 0.382])
    """

    function = staticmethod(variants.gaussian_dropout)
    check = staticmethod(noises.GAUSSIAN.check)


class UniformDropout(Layer):
    """Multiply by uniform noise of mean 1; see `gpudrop.uniform_dropout` and `Layer`.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> gpudrop.layers.UniformDropout(0.5, rng=gpudrop.Stream(0, 0))(np.ones(3)).round(3)
    array([2.419, 0.65 , 1.941])
    """

    function = staticmethod(variants.uniform_dropout)
    check = staticmethod(noises.UNIFORM.check)


class GaussianNoise(Layer):
    """Add normal noise in training; see `gpudrop.gaussian_noise` and `Layer`, where std stands in the place of p.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> layer = gpudrop.layers.GaussianNoise(0.1, rng=gpudrop.Stream(0, 0))
    >>> layer(np.zeros(4)).round(3)
    array([ 0.099, -0.092, -0.062, -0.048])
    """

    function = staticmethod(variants.gaussian_noise)
    check = staticmethod(noises.ADDITIVE.check)

    def __init__(
        self,
        std: float | Schedule | None = None,
        *,
        rng: Generator | Stream | None = None,
        **options: "Unpack[LayerOptions]",
    ) -> None:
        if "p" in options:
            raise TypeError("GaussianNoise has no option 'p'; how strong it is, std says")
        super().__init__(std, rng=rng, **options)


class Zoneout(Layer):
    """Keep a unit's previous state; see `gpudrop.zoneout` and `Layer`. It is called with x and the previous state.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> layer = gpudrop.layers.Zoneout(0.5, rng=gpudrop.Stream(0, 1))
    >>> layer(np.full(6, 3.0), np.full(6, 1.0))
    array([1., 3., 1., 3., 3., 1.])
    >>> dx, dprevious = layer.backward(np.ones(6))
    >>> dprevious
    array([1., 0., 1., 0., 0., 1.])
    """

    function = staticmethod(variants.zoneout)

    if TYPE_CHECKING:

        def backward(  # type: ignore[override]  # its two gradients are why it is no other layer's stand-in
            self, dy: Array
        ) -> tuple[Array, Array]: ...
