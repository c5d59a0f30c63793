"""The family: one row for each variant of dropout, from which layers, PyTorch's face, warm-up and tests derive.

A variant is a function here that returns a `Variation`, under a decorator that enters its row into `FAMILY` and makes
the public function of it. A structured variant is a mask_shape, the others are a noise; what all of them take and share
with `dropout` is in `variant` alone.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast

from gpudrop import arrays
from gpudrop.checks import check_integer, check_p, check_truth, check_uint64
from gpudrop.context import Context
from gpudrop.dropout import dropout
from gpudrop.formulas import noises
from gpudrop.formulas.noises import DROPOUT, PLAIN, Noise
from gpudrop.generator import RngLike
from gpudrop.hints import unexpected
from gpudrop.masks import Blocks, Shard, check_mask_shape
from gpudrop.plan import prepare
from gpudrop.signatures import AnyArray, MaskShape

if TYPE_CHECKING:
    from gpudrop import signatures


class Option(NamedTuple):
    """What a variant takes besides p and what all variants take.

    Attributes
    ----------
    check : function
        Its value in Python's own types, or an error that names it.
    reshapes : bool
        Whether it gives the result another shape than x has. PyTorch's functions and modules leave such options out.
    """

    check: Callable[[Any], Any]
    reshapes: bool = False


def _check_block_size(block_size: Any) -> int:
    size = check_integer("block_size", block_size)
    if size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    return size


OPTIONS = {
    "mask_shape": Option(lambda shape: None if shape is None else check_mask_shape(shape)),
    "channels_last": Option(functools.partial(check_truth, "channels_last")),
    "time_axis": Option(functools.partial(check_integer, "time_axis")),
    "samples": Option(lambda samples: None if samples is None else check_uint64("samples", samples), reshapes=True),
    "block_size": Option(_check_block_size),
}
"""The options of all variants, by name."""

COMMON = frozenset(inspect.signature(dropout).parameters) - OPTIONS.keys()
"""The names of what every variant takes."""


class Variant(NamedTuple):
    """One row of the family.

    Attributes
    ----------
    layer : str
        The name of its class in `gpudrop.layers` and in `gpudrop.torch`.
    function : function
        The public one. Its attribute `vjp` is the function that returns (y, backprop) instead, and `prepare` the one
        that returns the checked call, a `plan.Prepared`.
    noise : Noise
    prediction : Noise
        What is done when not in training, and where everything is switched off.
    whole : bool
        Whether the mask depends on the whole array, so that no part of it can be drawn alone.
    torchs : str, optional
        The class of torch.nn that does the same; the function of torch.nn.functional has this variant's name.
    ndim : int
        How many dimensions an array has that it takes, for warm-up and tests to make one.
    name : str
    inputs : tuple of str
        The arrays that it is called with.
    strength : str
        What it calls its p.
    default : float
        Of its p.
    bits : int
        Random bits per element by default.
    options : dict
        Its own options and their defaults: `OPTIONS` has the checks.
    """

    layer: str
    function: Any
    noise: Noise
    prediction: Noise
    whole: bool
    torchs: str | None
    ndim: int
    # What the function's signature says, read once: that takes longer than a small call.
    name: str
    inputs: tuple[str, ...]
    strength: str
    default: float
    bits: int
    options: Mapping[str, Any]

    @property
    def by_sign(self) -> bool:
        """Whether y tells by its sign what was dropped, so that the gradient of relu needs no x.

        A mask of the whole array has a scale that is counted, and y doesn't tell it.
        """
        return self.noise.zeroes and not self.whole


def row_of(
    layer: str,
    function: Any,
    noise: Noise = DROPOUT,
    prediction: Noise = PLAIN,
    whole: bool = False,
    torchs: str | None = None,
    ndim: int = 4,
) -> Variant:
    """A row of the family; what isn't given is as for `dropout`."""
    parameters = inspect.signature(function).parameters
    *inputs, strength = (a.name for a in parameters.values() if a.kind is a.POSITIONAL_OR_KEYWORD)
    own = {a.name: a.default for a in parameters.values() if a.kind is a.KEYWORD_ONLY and a.name not in COMMON}
    read = function.__name__, tuple(inputs), strength, parameters[strength].default, parameters["bits"].default, own
    return Variant(layer, function, noise, prediction, whole, torchs, ndim, *read)


FAMILY = {"dropout": row_of("Dropout", dropout, torchs="Dropout")}
"""The variants by the names of their functions; the others enter below."""


class Variation(NamedTuple):
    """What a call of a variant does besides its row; the defaults are dropout itself.

    Attributes
    ----------
    p : float
        The strength of the noise, not yet checked.
    mask : tuple or Blocks, optional
        A mask_shape as `dropout` has it, or DropBlock's blocks; None draws for each element.
    batch_axis : int, optional
        The axis of x that counts samples, None if none does.
    other : array, optional
        The second array that the noise reads; of x's kind, shape and dtype.
    copies : int, optional
        How many times x is repeated along a new first axis.
    """

    p: float
    mask: MaskShape | Blocks | None = None
    batch_axis: int | None = 0
    other: Any = None
    copies: int | None = None


def variant(layer: str, *, noise: Noise = DROPOUT, prediction: Noise = PLAIN, bits: int = 16, **facts: Any) -> Any:
    """Enter a variant into the family, and make the public function of vary(x, p, ...) -> Variation.

    x is an array of a supported kind; the arguments are those of `Variant`, and bits is the default. The function takes
    vary's own parameters, and by name those of `dropout`: activation, training, rng, bits, out, backend and shard.
    """

    def enter(vary: Callable[..., Variation]) -> Any:
        row = row_of(layer, _public(vary, noise, prediction, bits), noise, prediction, **facts)
        FAMILY[row.name] = row
        return row.function

    return enter


def _public(vary: Callable[..., Variation], noise: Noise, prediction: Noise, bits: int) -> Any:
    """The public function of a variant.

    Its `prepare` takes a `context` besides, where that of the code that runs is not meant.
    """

    def prepared(
        x: Any,
        *args: Any,
        activation: str | None = None,
        training: bool = True,
        rng: RngLike = None,
        bits: int = bits,
        backend: str | None = None,
        shard: Shard | None = None,
        context: Context | None = None,
        **options: Any,
    ) -> Any:
        for name in options:
            if name not in names:
                raise unexpected(vary.__name__, options, forward.__signature__.parameters.keys() - {"out"})
        operand = arrays.as_operand("x", x)
        p, *rest = vary(operand.array, *args, **options)
        how = (p, noise, prediction, *rest)
        return prepare(operand, how, activation, training, rng, bits, backend, shard, context)

    like_vary: Callable[[Any], Any] = functools.wraps(vary)

    @like_vary
    def forward(*args: Any, out: AnyArray | None = None, **options: Any) -> Any:
        return prepared(*args, **options).forward(out)

    @like_vary
    def vjp(*args: Any, out: AnyArray | None = None, **options: Any) -> Any:
        return prepared(*args, **options).vjp(out)

    own, common = inspect.signature(vary), inspect.signature(dropout).parameters.values()
    names = frozenset(own.parameters)
    named = [a for a in common if a.kind is a.KEYWORD_ONLY and a.name != "mask_shape"]
    own_way: dict[str, Any] = {"bits": {"default": bits}, "out": {"annotation": AnyArray | None}}
    named = [a.replace(**own_way.get(a.name, {})) for a in named]
    forward.__signature__ = vjp.__signature__ = inspect.Signature([*own.parameters.values(), *named])
    forward.__annotations__ = vjp.__annotations__ = {}  # vary's own are not theirs: the signature has them
    prepared.__name__ = prepared.__qualname__ = vary.__name__  # which errors about missing arguments show
    vjp.__name__, vjp.__qualname__ = f"{vary.__name__}.vjp", f"{vary.__qualname__}.vjp"
    vjp.__doc__ = f"What `{vary.__name__}` returns, and the function that takes a gradient back: see `dropout_vjp`."
    forward.vjp, forward.prepare = vjp, prepared
    return forward


if TYPE_CHECKING:
    V = TypeVar("V", covariant=True)

    class _Declares(Protocol[V]):
        """`variant` to type checkers, by the options of what it decorates."""

        def __call__(
            self,
            layer: str,
            *,
            noise: Noise = ...,
            prediction: Noise = ...,
            bits: int = ...,
            whole: bool = ...,
            torchs: str | None = ...,
            ndim: int = ...,
        ) -> Callable[[Callable[..., Variation]], V]: ...


plain = cast("_Declares[signatures.Plain]", variant)
of_channels = cast("_Declares[signatures.Channels]", variant)
of_times = cast("_Declares[signatures.Times]", variant)
of_weights = cast("_Declares[signatures.Weights]", variant)
of_maps = cast("_Declares[signatures.Maps]", variant)
of_deviates = cast("_Declares[signatures.Deviates]", variant)
of_two = cast("_Declares[signatures.OfTwo]", variant)


# Structured masks


def _channels(x: AnyArray, p: float, spatial: int, channels_last: bool) -> Variation:
    """A mask over samples, if there are any, and channels."""
    channels_last = OPTIONS["channels_last"].check(channels_last)
    batched = x.ndim == spatial + 2
    if not batched and x.ndim != spatial + 1:
        order = "spatial, channels" if channels_last else "channels, spatial"
        raise ValueError(
            f"x must have {spatial + 2} dimensions (samples, {order}), or {spatial + 1} without samples, got {x.ndim}"
        )
    space = (1,) * spatial
    mask = (None,) * batched + ((*space, None) if channels_last else (None, *space))
    return Variation(p, mask=mask, batch_axis=0 if batched else None)


@of_channels("Dropout1d", torchs="Dropout1d", ndim=3)
def dropout1d(x: AnyArray, p: float = 0.5, *, channels_last: bool = False) -> Variation:
    """Drop whole channels of sequences.

    Source: Tompson, Goroshin, Jain, LeCun and Bregler, "Efficient object localization using convolutional
    networks", CVPR 2015 (SpatialDropout): neighbours in a feature map are too alike to be dropped one by one.

    Parameters
    ----------
    x : array, shape (samples, channels, length) or (channels, length)
    p : float
        The probability of dropping a channel, from 0 to 1.
    channels_last : bool
        Whether x is (samples, length, channels) or (length, channels).
    activation, training, rng, bits, out, backend, shard
        As for `dropout`, and so are the returned array and the errors.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> gpudrop.dropout1d(np.ones((1, 3, 4), np.float32), 0.5, rng=gpudrop.Stream(0, 0))
    array([[[2., 2., 2., 2.],
            [0., 0., 0., 0.],
            [2., 2., 2., 2.]]], dtype=float32)
    """
    return _channels(x, p, 1, channels_last)


@of_channels("Dropout2d", torchs="Dropout2d")
def dropout2d(x: AnyArray, p: float = 0.5, *, channels_last: bool = False) -> Variation:
    """Drop whole channels of images.

    Source and parameters: see `dropout1d`; x is (samples, channels, rows, columns), or with channels_last
    (samples, rows, columns, channels), or the same without samples.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> y = gpudrop.dropout2d(np.ones((2, 4, 5, 5), np.float32), 0.5, rng=gpudrop.Stream(0, 0))
    >>> y[:, :, 0, 0]  # the other pixels of a channel are alike
    array([[2., 0., 2., 2.],
           [2., 2., 2., 2.]], dtype=float32)
    """
    return _channels(x, p, 2, channels_last)


@of_channels("Dropout3d", torchs="Dropout3d", ndim=5)
def dropout3d(x: AnyArray, p: float = 0.5, *, channels_last: bool = False) -> Variation:
    """Drop whole channels of volumes.

    Source and parameters: see `dropout1d`; x is (samples, channels, depth, rows, columns), or with
    channels_last (samples, depth, rows, columns, channels), or the same without samples.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> y = gpudrop.dropout3d(np.ones((1, 2, 3, 4, 5), np.float32), 0.5, rng=gpudrop.Stream(0, 0))
    >>> y.sum(axis=(2, 3, 4))
    array([[120.,   0.]], dtype=float32)
    """
    return _channels(x, p, 3, channels_last)


@plain("DropPath")
def drop_path(x: AnyArray, p: float = 0.5) -> Variation:
    """Drop whole samples of a residual branch: stochastic depth.

    Source: Huang, Sun, Liu, Sedra and Weinberger, "Deep networks with stochastic depth", ECCV 2016; here
    inverted, so that prediction scales nothing. `drop_path_rates` gives the usual p of each layer.

    Parameters
    ----------
    x : array, shape (samples, ...)
    p : float
        The probability of dropping a sample, from 0 to 1.
    activation, training, rng, bits, out, backend, shard
        As for `dropout`, and so are the returned array and the errors.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> gpudrop.drop_path(np.ones((4, 3), np.float32), 0.5, rng=gpudrop.Stream(0, 0))
    array([[2., 2., 2.],
           [0., 0., 0.],
           [2., 2., 2.],
           [2., 2., 2.]], dtype=float32)
    """
    _check_ndim(x, 1, "samples first")
    return Variation(p, mask=(None, *(1,) * (x.ndim - 1)))


def drop_path_rates(p: float, depth: int) -> list[float]:
    """The p of each of `depth` layers, rising linearly from 0 to p.

    Source: Huang et al. (see `drop_path`), section 3, the linear decay of survival, in timm's form: the first
    layer is never dropped.

    Parameters
    ----------
    p : float
        The last layer's probability of dropping, from 0 to 1.
    depth : int
        How many layers there are.

    Returns
    -------
    list of float

    Examples
    --------
    >>> import gpudrop
    >>> gpudrop.drop_path_rates(0.5, 3)
    [0.0, 0.25, 0.5]
    """
    p, depth = check_p(p), check_uint64("depth", depth)
    return [p * (layer / max(1, depth - 1)) for layer in range(depth)]


@of_times("LockedDropout")
def locked_dropout(x: AnyArray, p: float = 0.5, *, time_axis: int = 0) -> Variation:
    """Drop the same features at every step in time: locked, or variational, dropout.

    Source: Gal and Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks",
    NeurIPS 2016; the name is of Merity, Keskar and Socher's AWD-LSTM (ICLR 2018).

    Parameters
    ----------
    x : array, shape (time, samples, features) or, with time_axis=1, (samples, time, features)
    p : float
        The probability of dropping a feature of a sample, from 0 to 1.
    time_axis : int
        The axis that shares the mask.
    activation, training, rng, bits, out, backend, shard
        As for `dropout`, and so are the returned array and the errors.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> gpudrop.locked_dropout(np.ones((3, 1, 6), np.float32), 0.5, rng=gpudrop.Stream(0, 1))[:, 0]
    array([[0., 2., 0., 2., 2., 0.],
           [0., 2., 0., 2., 2., 0.],
           [0., 2., 0., 2., 2., 0.]], dtype=float32)
    """
    _check_ndim(x, 2, "time and samples")
    axis = OPTIONS["time_axis"].check(time_axis)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"time_axis must be an axis of x, which has {x.ndim} dimensions, got {time_axis}")
    axis %= x.ndim
    return Variation(p, mask=tuple(1 if i == axis else None for i in range(x.ndim)), batch_axis=int(axis == 0))


@plain("EmbeddingDropout")
def embedding_dropout(x: AnyArray, p: float = 0.5) -> Variation:
    """Drop whole rows of an embedding table, that is, words wherever they occur.

    Source: Gal and Ghahramani (see `locked_dropout`), section 4; Merity et al.'s AWD-LSTM.

    Parameters
    ----------
    x : array, shape (words, features)
        The table, before rows are looked up in it.
    p : float
        The probability of dropping a word, from 0 to 1.
    activation, training, rng, bits, out, backend, shard
        As for `dropout`, and so are the returned array and the errors.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> table = gpudrop.embedding_dropout(np.ones((4, 2), np.float32), 0.5, rng=gpudrop.Stream(0, 0))
    >>> table[[1, 0, 1]]
    array([[0., 0.],
           [2., 2.],
           [0., 0.]], dtype=float32)
    """
    _check_ndim(x, 1, "words first")
    return Variation(p, mask=(None, *(1,) * (x.ndim - 1)), batch_axis=None)


@plain("TokenDropout")
def token_dropout(x: AnyArray, p: float = 0.5) -> Variation:
    """Drop whole tokens of a sequence: word dropout on what the words were embedded as.

    Source: Iyyer, Manjunatha, Boyd-Graber and Daumé, "Deep unordered composition rivals syntactic methods for
    text classification", ACL 2015; here inverted. Integer tokens are replaced with `keep_mask`:
    `np.where(gpudrop.keep_mask(tokens.shape, p, rng), tokens, unknown)`.

    Parameters
    ----------
    x : array, shape (samples, tokens, features)
        Or any other shape whose last axis is features.
    p : float
        The probability of dropping a token, from 0 to 1.
    activation, training, rng, bits, out, backend, shard
        As for `dropout`, and so are the returned array and the errors.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> gpudrop.token_dropout(np.ones((1, 4, 3), np.float32), 0.5, rng=gpudrop.Stream(0, 0))
    array([[[2., 2., 2.],
            [0., 0., 0.],
            [2., 2., 2.],
            [2., 2., 2.]]], dtype=float32)
    """
    _check_ndim(x, 1, "features last")
    return Variation(p, mask=(*(None,) * (x.ndim - 1), 1), batch_axis=0 if x.ndim > 1 else None)


@plain("ConsistentDropout")
def consistent_dropout(x: AnyArray, p: float = 0.5) -> Variation:
    """Drop the same elements of every sample, as if one thinned network saw the whole batch.

    One draw of a Monte-Carlo sample of the network in Gal and Ghahramani, "Dropout as a Bayesian
    approximation", ICML 2016: all the inputs go through the same weights.

    Parameters
    ----------
    x : array, shape (samples, ...)
    p : float
        The probability of dropping an element, from 0 to 1.
    activation, training, rng, bits, out, backend, shard
        As for `dropout`, and so are the returned array and the errors.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> gpudrop.consistent_dropout(np.ones((2, 6), np.float32), 0.5, rng=gpudrop.Stream(0, 1))
    array([[0., 2., 0., 2., 2., 0.],
           [0., 2., 0., 2., 2., 0.]], dtype=float32)
    """
    _check_ndim(x, 1, "samples first")
    return Variation(p, mask=(1, *(None,) * (x.ndim - 1)), batch_axis=None)


@of_weights("DropConnect")
def drop_connect(x: AnyArray, p: float = 0.5, *, samples: int | None = None) -> Variation:
    """Drop weights instead of activations: DropConnect, and the weight drop of AWD-LSTM.

    Source: Wan, Zeiler, Zhang, LeCun and Fergus, "Regularization of neural networks using DropConnect", ICML
    2013, here inverted; Merity et al.'s AWD-LSTM does it to the recurrent weights of an LSTM.

    Parameters
    ----------
    x : array
        The weights.
    p : float
        The probability of dropping a weight, from 0 to 1.
    samples : int, optional
        How many samples get a mask each. Without it there is one mask for all of them.
    activation, training, rng, bits, out, backend, shard
        As for `dropout`, and so are the errors; out has the result's shape.

    Returns
    -------
    array, shape (..., as x) or (samples, ..., as x)
        With samples, backprop takes and gives arrays of this shape: each sample's weights have a gradient of
        their own, and that of x is their sum over the first axis.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> weights = np.ones((2, 3), np.float32)
    >>> gpudrop.drop_connect(weights, 0.5, rng=gpudrop.Stream(0, 1))
    array([[0., 2., 0.],
           [2., 2., 0.]], dtype=float32)
    >>> gpudrop.drop_connect(weights, 0.5, samples=10, rng=gpudrop.Stream(0, 1)).shape
    (10, 2, 3)
    """
    copies = OPTIONS["samples"].check(samples)
    return Variation(p, batch_axis=None if copies is None else 0, copies=copies)


# Blocks


def _blocks(x: AnyArray, p: float, spatial: int, block_size: int) -> Variation:
    """DropBlock's mask, and the probability of a seed: equation 1 of the paper."""
    _check_ndim(x, spatial, "feature maps")
    block_size = OPTIONS["block_size"].check(block_size)
    if 0 in x.shape:
        return Variation(check_p(p))
    leading, sizes = x.shape[: x.ndim - spatial], x.shape[x.ndim - spatial :]
    rows = (1,) * (2 - spatial)  # a sequence is a map of one row
    blocks = tuple(min(block_size, n) for n in sizes)
    mask = Blocks(math.prod(leading), rows + sizes, rows + blocks, leading[0] if leading else 1)
    gamma = check_p(p) * math.prod(sizes) / (math.prod(blocks) * math.prod(mask.fitting))
    return Variation(gamma, mask=mask, batch_axis=0 if leading else None)


@of_maps("DropBlock1d", bits=32, whole=True, ndim=3)
def dropblock1d(x: AnyArray, p: float = 0.1, *, block_size: int = 7) -> Variation:
    """Drop blocks of neighbours in sequences: DropBlock in one dimension.

    Source and parameters: see `dropblock2d`; x is (samples, channels, length), or any other shape whose last
    axis is a feature map.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> y = gpudrop.dropblock1d(np.ones((1, 1, 9), np.float32), 0.4, block_size=3, rng=gpudrop.Stream(0, 3))
    >>> y[0, 0]
    array([1.5, 0. , 0. , 0. , 1.5, 1.5, 1.5, 1.5, 1.5], dtype=float32)
    """
    return _blocks(x, p, 1, block_size)


@of_maps("DropBlock2d", bits=32, whole=True)
def dropblock2d(x: AnyArray, p: float = 0.1, *, block_size: int = 7) -> Variation:
    """Drop square blocks of neighbours in feature maps: DropBlock.

    Source: Ghiasi, Lin and Le, "DropBlock: a regularization method for convolutional networks", NeurIPS 2018.
    Seeds are drawn with probability gamma = p / block_size**2 * size**2 / (size - block_size + 1)**2 over the
    positions where a block fits (its first corner; the paper names its centre), each drops its block, and what
    is left is multiplied by how many elements there are for one that is kept. Blocks may overlap, so more
    than 1 - p is kept; a block larger than the map is cut to the map.

    Parameters
    ----------
    x : array, shape (samples, channels, rows, columns)
        Or any other shape whose last two axes are a feature map.
    p : float
        About the probability of dropping an element, from 0 to 1.
    block_size : int
        The side of a block, in elements.
    activation, training, rng, out, backend, shard
        As for `dropout`, and so are the returned array and the errors.
    bits : {32, 8, 16}
        Random bits per seed; gamma is small, so the default is 32.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> x = np.ones((1, 1, 6, 6), np.float32)
    >>> y = gpudrop.dropblock2d(x, 0.3, block_size=3, rng=gpudrop.Stream(0, 2))
    >>> (y[0, 0] > 0).astype(int)
    array([[0, 0, 0, 1, 1, 1],
           [0, 0, 0, 1, 1, 1],
           [0, 0, 0, 1, 1, 1],
           [1, 1, 1, 1, 1, 1],
           [1, 1, 1, 1, 1, 1],
           [1, 1, 1, 1, 1, 1]])
    >>> round(float(y.mean()), 6)  # the normalisation
    1.0
    """
    return _blocks(x, p, 2, block_size)


# Noises


@plain("AlphaDropout", noise=noises.ALPHA, torchs="AlphaDropout")
def alpha_dropout(x: AnyArray, p: float = 0.5) -> Variation:
    """Dropout that keeps mean 0 and variance 1, for networks of SELUs.

    Source: Klambauer, Unterthiner, Mayr and Hochreiter, "Self-normalizing neural networks", NeurIPS 2017:
    dropped elements become alpha' = -1.758, what SELU tends to at -infinity, and an affine map restores the
    moments: y = a * (keep ? activation(x) : alpha') + b with a = ((1 - p) * (1 + p * alpha'**2))**-0.5 and
    b = -a * p * alpha'. As in PyTorch, p = 1 gives 0.

    Parameters
    ----------
    x : array
    p : float
        The probability of dropping an element, from 0 to 1.
    activation, training, rng, bits, out, backend, shard
        As for `dropout`, and so are the returned array and the errors.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> x = np.random.default_rng(0).standard_normal(100_000)
    >>> y = gpudrop.alpha_dropout(x, 0.3, rng=gpudrop.Stream(0, 0))
    >>> bool(abs(y.mean()) < 0.01 and abs(y.var() - 1) < 0.01)
    True
    """
    return Variation(p)


@plain("FeatureAlphaDropout", noise=noises.ALPHA, torchs="FeatureAlphaDropout")
def feature_alpha_dropout(x: AnyArray, p: float = 0.5) -> Variation:
    """Alpha dropout of whole channels.

    Source and parameters: see `alpha_dropout`; x is (samples, channels, ...).

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> y = gpudrop.feature_alpha_dropout(np.zeros((1, 4, 2), np.float32), 0.5, rng=gpudrop.Stream(0, 0))
    >>> y[0].round(3)
    array([[ 0.779,  0.779],
           [-0.779, -0.779],
           [ 0.779,  0.779],
           [ 0.779,  0.779]], dtype=float32)
    """
    _check_ndim(x, 2, "samples and channels")
    return Variation(p, mask=(None, None, *(1,) * (x.ndim - 2)))


@plain("GaussianDropout", noise=noises.GAUSSIAN, bits=32)
def gaussian_dropout(x: AnyArray, p: float = 0.5) -> Variation:
    """Multiply by normal noise of dropout's own mean and variance, 1 and p / (1 - p).

    Source: Srivastava et al. (see `dropout`), section 10. The normal deviates are drawn by Box and Muller's
    method from the words of the mask, two of each pair; see the page on the mask in the documentation.

    Parameters
    ----------
    x : array
    p : float
        From 0 to less than 1: the p of the dropout that has this variance.
    activation, training, rng, out, backend, shard
        As for `dropout`, and so are the returned array and the errors. A deviate takes 32 bits.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> y = gpudrop.gaussian_dropout(np.ones(100_000), 0.2, rng=gpudrop.Stream(0, 0))
    >>> bool(abs(y.mean() - 1) < 0.01 and abs(y.var() - 0.25) < 0.01)
    True
    """
    return Variation(p)


@plain("UniformDropout", noise=noises.UNIFORM)
def uniform_dropout(x: AnyArray, p: float = 0.5) -> Variation:
    """Multiply by uniform noise of dropout's own mean and variance, 1 and p / (1 - p).

    The noise lies between 1 - h and 1 + h with h = sqrt(3 * p / (1 - p)). After Shen, Tian, Liu, Xu and Tao,
    "Continuous dropout", IEEE Transactions on Neural Networks and Learning Systems 29 (2018). With Bernoulli
    noise of this mean and variance it is `dropout`, and with normal noise `gaussian_dropout`.

    Parameters
    ----------
    x : array
    p : float
        From 0 to less than 1: the p of the dropout that has this variance.
    activation, training, rng, bits, out, backend, shard
        As for `dropout`, and so are the returned array and the errors.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> y = gpudrop.uniform_dropout(np.ones(100_000), 0.2, rng=gpudrop.Stream(0, 0))
    >>> bool(abs(y.mean() - 1) < 0.01 and abs(y.var() - 0.25) < 0.01)
    True
    """
    return Variation(p)


@of_deviates("GaussianNoise", noise=noises.ADDITIVE, bits=32)
def gaussian_noise(x: AnyArray, std: float = 1.0) -> Variation:
    """Add normal noise: y = activation(x) + std * deviate, with a gradient of dy * slope(x).

    Source: Bishop, "Training with noise is equivalent to Tikhonov regularization", Neural Computation 7 (1995).

    Parameters
    ----------
    x : array
    std : float
        The standard deviation of the noise, at least 0, in units of x.
    activation, training, rng, out, backend, shard
        As for `dropout`, and so are the returned array and the errors. A deviate takes 32 bits.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> gpudrop.gaussian_noise(np.zeros(4), 0.1, rng=gpudrop.Stream(0, 0)).round(3)
    array([ 0.099, -0.092, -0.062, -0.048])
    """
    return Variation(std)


@of_two("Zoneout", noise=noises.ZONEOUT, prediction=noises.EXPECTED_ZONEOUT)
def zoneout(x: AnyArray, previous: AnyArray, p: float = 0.5) -> Variation:
    """Keep a unit's previous state instead of dropping it, for recurrent networks.

    Source: Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations", ICLR 2017:
    y = keep ? activation(x) : previous in training, and for prediction the expected value of that,
    (1 - p) * activation(x) + p * previous.

    Parameters
    ----------
    x : array
        The new state.
    previous : array
        The previous state, of x's kind, shape and dtype.
    p : float
        The probability of keeping the previous state, from 0 to 1.
    activation, training, rng, bits, out, backend, shard
        As for `dropout`, and so are the returned array and the errors. backprop returns the gradients of x
        and of previous, and its out is for the first.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> new, old = np.full(6, 3.0), np.full(6, 1.0)
    >>> y, backprop = gpudrop.zoneout.vjp(new, old, 0.5, rng=gpudrop.Stream(0, 1))
    >>> y
    array([1., 3., 1., 3., 3., 1.])
    >>> backprop(np.ones(6))
    (array([0., 1., 0., 1., 1., 0.]), array([1., 0., 1., 0., 0., 1.]))
    >>> gpudrop.zoneout(new, old, 0.5, training=False)
    array([2., 2., 2., 2., 2., 2.])
    """
    return Variation(p, other=previous)


def _check_ndim(x: AnyArray, least: int, what: str) -> None:
    if x.ndim < least:
        raise ValueError(f"x must have at least {least} dimension{'s' * (least > 1)} ({what}), got {x.ndim}")
