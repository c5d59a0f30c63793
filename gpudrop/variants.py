"""The dropout variants: one table, from which layers, PyTorch modules, warm-up and tests are derived.

A variant is a function that returns a `Variation`. Its decorator adds a row to `FAMILY` and creates the public
function. A structured variant sets a mask_shape; the others set a noise. The function `variant` alone handles the
arguments that all variants share with `dropout`.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast

from gpudrop import arrays
from gpudrop.checks import check_count, check_integer, check_p, check_truth, check_uint64
from gpudrop.context import Context
from gpudrop.dropout import dropout, dropout_vjp
from gpudrop.formulas import noises
from gpudrop.formulas.noises import DROPOUT, PLAIN, Noise
from gpudrop.generator import RngLike
from gpudrop.hints import unexpected
from gpudrop.masks import Blocks, Shard, check_mask_shape
from gpudrop.plan import Call, Variation, prepare
from gpudrop.signatures import AnyArray, MaskShape, Save

if TYPE_CHECKING:
    from gpudrop import signatures


class Option(NamedTuple):
    """An option that only some variants have.

    Attributes
    ----------
    check : function
        Converts a value to Python's own types, or raises an error that names the option.
    reshapes : bool
        Whether the option changes the shape of the result. PyTorch's functions and modules omit such options.
    """

    check: Callable[[Any], Any]
    reshapes: bool = False


OPTIONS = {
    "mask_shape": Option(lambda shape: None if shape is None else check_mask_shape(shape)),
    "channels_last": Option(functools.partial(check_truth, "channels_last")),
    "time_axis": Option(functools.partial(check_integer, "time_axis")),
    "samples": Option(lambda samples: None if samples is None else check_uint64("samples", samples), reshapes=True),
    "gate_first": Option(functools.partial(check_truth, "gate_first")),
    "block_size": Option(functools.partial(check_count, "block_size")),
}
"""Name -> Option, for the options of all variants."""

OF_DROPOUT_ALONE = frozenset({"keep"})
"""The names of the arguments of `dropout` that no other variant, no layer and no module has."""

ROWS = ("bias", "gain")
"""The names of the optional array arguments, which have an element for each element of x's last axis."""

COMMON = frozenset(inspect.signature(dropout).parameters) - OPTIONS.keys() - OF_DROPOUT_ALONE - {*ROWS}
"""The names of the arguments that every variant accepts."""


class Variant(NamedTuple):
    """One row of the table of variants.

    Attributes
    ----------
    layer : str
        The name of the variant's class in `gpudrop.layers` and in `gpudrop.torch`.
    function : function
        The public function. Its attribute `vjp` is the function that returns (y, backprop). Its attribute `prepare`
        is the function that returns the checked call, a `plan.Prepared`.
    noise : Noise
        The operation in training.
    prediction : Noise
        The operation at prediction time, and wherever dropout is switched off.
    whole : bool
        Whether the mask depends on the whole array, so that a part of it can't be drawn by itself.
    torchs : str, optional
        The equivalent class of torch.nn. The equivalent function of torch.nn.functional has the variant's name.
    ndim : int
        The number of dimensions of a valid input; warm-up and tests create one.
    name : str
        The name of the function.
    inputs : tuple of str
        The names of the array arguments.
    least : int
        The number of these that have no default.
    rows : tuple of str
        Those of `ROWS` that the function has.
    strength : str
        The name of the argument p: "std" for gaussian_noise.
    default : float
        The default of p.
    bits : int
        The default number of random bits per element.
    activation : str or None
        The default activation.
    options : dict
        The variant's own options and their defaults. `OPTIONS` has the checks.
    """

    layer: str
    function: Any
    noise: Noise
    prediction: Noise
    whole: bool
    torchs: str | None
    ndim: int
    # Read once from the function's signature: reading a signature takes longer than a small call.
    name: str
    inputs: tuple[str, ...]
    least: int
    rows: tuple[str, ...]
    strength: str
    default: float
    bits: int
    activation: str | None
    options: Mapping[str, Any]

    @property
    def by_sign(self) -> bool:
        """Whether the sign of y shows which elements were dropped, so that the gradient of relu does not need x.

        False for DropBlock: the scale is counted over the whole mask and can't be read from y. False for a gate too: y
        has the sign of its product with a value.
        """
        return self.noise.zeroes and not self.whole and not self.is_product

    @property
    def is_product(self) -> bool:
        """Whether y is a product of two arrays: the second one is a factor, and not an input of the noise."""
        return len(self.inputs) > 1 and self.noise.second_input is None


def row_of(
    layer: str,
    function: Any,
    noise: Noise = DROPOUT,
    prediction: Noise = PLAIN,
    whole: bool = False,
    torchs: str | None = None,
    ndim: int = 4,
) -> Variant:
    """Return a row of the table; the defaults are those of `dropout`."""
    parameters = inspect.signature(function).parameters
    inputs, rows, strength = _arguments_of(parameters)
    others = COMMON | OF_DROPOUT_ALONE | {*ROWS}
    own = {a.name: a.default for a in parameters.values() if a.kind is a.KEYWORD_ONLY and a.name not in others}
    activation = parameters["activation"].default if "activation" in parameters else None  # absent in a user's function
    defaults = parameters[strength].default, parameters["bits"].default, activation
    least = sum(parameters[name].default is inspect.Parameter.empty for name in inputs)
    read = function.__name__, inputs, least, rows, strength, *defaults, own
    return Variant(layer, function, noise, prediction, whole, torchs, ndim, *read)


def _arguments_of(parameters: Mapping[str, inspect.Parameter]) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Return the names of the array arguments, those of the rows, and the name of the strength."""
    *inputs, strength = (a.name for a in parameters.values() if a.kind is a.POSITIONAL_OR_KEYWORD)
    return tuple(inputs), tuple(name for name in ROWS if name in parameters), strength


FAMILY = {"dropout": row_of("Dropout", dropout, torchs="Dropout")}
"""Name of the function -> Variant. The decorators below add the other variants."""


def variant(
    layer: str,
    *,
    noise: Noise = DROPOUT,
    prediction: Noise = PLAIN,
    bits: int = 16,
    activation: str | None = None,
    **facts: Any,
) -> Any:
    """Return a decorator that adds a variant to the table and creates its public function.

    The decorated function is vary(x, p, ...) -> Variation, where x is an array of a supported kind. The arguments are
    the attributes of `Variant`; bits and activation are the defaults of the public function. It accepts the parameters
    of vary, and as keywords those of `dropout`: activation, training, rng, bits, out, backend and shard.
    """

    def enter(vary: Callable[..., Variation]) -> Any:
        row = row_of(layer, _public(vary, noise, prediction, bits, activation), noise, prediction, **facts)
        FAMILY[row.name] = row
        return row.function

    return enter


def _public(
    vary: Callable[..., Variation], noise: Noise, prediction: Noise, bits: int, default_activation: str | None
) -> Any:
    """Create the public function of a variant.

    Its `prepare` accepts a `context` too, which replaces the context of the running code. The function itself does not.
    """
    own, common = inspect.signature(vary), inspect.signature(dropout_vjp).parameters
    names = frozenset(own.parameters)
    inputs, rows, _ = _arguments_of(own.parameters)
    first, of_several = inputs[0], inputs + rows if len(inputs + rows) > 1 else ()

    def checked(
        context: Context | None,
        args: tuple[Any, ...],
        /,
        activation: str | None = default_activation,
        training: bool = True,
        rng: RngLike = None,
        bits: int = bits,
        backend: str | None = None,
        shard: Shard | None = None,
        **options: Any,
    ) -> Any:
        for name in options:
            if name not in names:
                raise unexpected(vary.__name__, options, forward.__signature__.parameters.keys() - {"out"})
        if not args and first in options:
            args = (options.pop(first),)
        operand: Any = arrays.as_operand(first, args[0]) if args else None
        array = (operand.array,) if args else ()  # without x, vary raises Python's error
        given = vary(*array, *args[1:], **options)
        call = Call(given, noise, prediction, of_several)
        return prepare(operand, call, activation, training, rng, bits, backend, shard, context)

    def prepared(*args: Any, context: Context | None = None, **options: Any) -> Any:
        return checked(context, args, **options)

    like_vary: Callable[[Any], Any] = functools.wraps(vary)

    @like_vary
    def forward(*args: Any, out: AnyArray | None = None, **options: Any) -> Any:
        return checked(None, args, **options).forward(out)

    @like_vary
    def vjp(*args: Any, out: AnyArray | None = None, save: Save = "auto", **options: Any) -> Any:
        return checked(None, args, **options).vjp(out, save)

    named = [a for a in common.values() if a.name in COMMON and a.kind is a.KEYWORD_ONLY]
    own_way: dict[str, Any] = {"bits": {"default": bits}, "out": {"annotation": AnyArray | None}}
    own_way["activation"] = {"default": default_activation}
    named = [a.replace(**own_way.get(a.name, {})) for a in named]
    forward.__signature__ = inspect.Signature([*own.parameters.values(), *named])
    vjp.__signature__ = inspect.Signature([*own.parameters.values(), *named, common["save"]])
    forward.__annotations__ = vjp.__annotations__ = {}  # functools.wraps copied those of vary; the signature has more
    prepared.__name__ = prepared.__qualname__ = vary.__name__  # shown by errors about missing arguments
    vjp.__name__, vjp.__qualname__ = f"{vary.__name__}.vjp", f"{vary.__qualname__}.vjp"
    vjp.__doc__ = f"Return the result of `{vary.__name__}` and a function for its gradient: see `dropout_vjp`."
    forward.vjp, forward.prepare = vjp, prepared
    return forward


if TYPE_CHECKING:
    V = TypeVar("V", covariant=True)

    class _Declares(Protocol[V]):
        """The type of `variant`, for type checkers; V is the type of the public function."""

        def __call__(
            self,
            layer: str,
            *,
            noise: Noise = ...,
            prediction: Noise = ...,
            bits: int = ...,
            activation: str | None = ...,
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
of_residual = cast("_Declares[signatures.OfResidual]", variant)
of_gate = cast("_Declares[signatures.OfGate]", variant)


# Structured masks


def _channels(x: AnyArray, p: float, spatial: int, channels_last: bool) -> Variation:
    """Return a mask over channels, and over samples if x has an axis of samples."""
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

    Neighbours in a feature map are strongly correlated, so dropping single elements has little effect.

    Source: Tompson, Goroshin, Jain, LeCun and Bregler, "Efficient object localization using convolutional
    networks", CVPR 2015 (SpatialDropout).

    Parameters
    ----------
    x : array, shape (samples, channels, length) or (channels, length)
    p : float
        The probability of dropping a channel, from 0 to 1.
    channels_last : bool
        If True, the shape of x is (samples, length, channels) or (length, channels).
    activation, training, rng, bits, out, backend, shard
        As for `dropout`. The returned array and the errors are those of `dropout` too.

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

    Source and parameters: see `dropout1d`. The shape of x is (samples, channels, rows, columns). With channels_last it
    is (samples, rows, columns, channels). The axis of samples may be missing.

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

    Source and parameters: see `dropout1d`. The shape of x is (samples, channels, depth, rows, columns). With
    channels_last it is (samples, depth, rows, columns, channels). The axis of samples may be missing.

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

    Source: Huang, Sun, Liu, Sedra and Weinberger, "Deep networks with stochastic depth", ECCV 2016. This is the
    inverted form, which needs no scaling at prediction time. `drop_path_rates` returns the usual p of each layer.

    Parameters
    ----------
    x : array, shape (samples, ...)
    p : float
        The probability of dropping a sample, from 0 to 1.
    activation, training, rng, bits, out, backend, shard
        As for `dropout`. The returned array and the errors are those of `dropout` too.

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
    """Return p for each of `depth` layers, rising linearly from 0 to p.

    Source: Huang et al. (see `drop_path`), section 3, linear decay of the survival probability. As in timm, the first
    layer is never dropped.

    Parameters
    ----------
    p : float
        The drop probability of the last layer, from 0 to 1.
    depth : int
        The number of layers.

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
    """Drop the same features at every time step: locked or variational dropout.

    Source: Gal and Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks",
    NeurIPS 2016. The name comes from Merity, Keskar and Socher's AWD-LSTM (ICLR 2018).

    Parameters
    ----------
    x : array, shape (time, samples, features) or, with time_axis=1, (samples, time, features)
    p : float
        The probability of dropping a feature of a sample, from 0 to 1.
    time_axis : int
        The axis of time. All its positions share one mask.
    activation, training, rng, bits, out, backend, shard
        As for `dropout`. The returned array and the errors are those of `dropout` too.

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
    """Drop whole rows of an embedding table, so that a dropped word is dropped wherever it occurs.

    Source: Gal and Ghahramani (see `locked_dropout`), section 4; Merity et al.'s AWD-LSTM.

    Parameters
    ----------
    x : array, shape (words, features)
        The embedding table, before the lookup.
    p : float
        The probability of dropping a word, from 0 to 1.
    activation, training, rng, bits, out, backend, shard
        As for `dropout`. The returned array and the errors are those of `dropout` too.

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
    """Drop whole tokens of an embedded sequence: word dropout.

    Source: Iyyer, Manjunatha, Boyd-Graber and Daumé, "Deep unordered composition rivals syntactic methods for
    text classification", ACL 2015. This is the inverted form. For integer tokens use `keep_mask`:
    `np.where(gpudrop.keep_mask(tokens.shape, p, rng), tokens, unknown)`.

    Parameters
    ----------
    x : array, shape (samples, tokens, features)
        Any other shape whose last axis counts features is accepted too.
    p : float
        The probability of dropping a token, from 0 to 1.
    activation, training, rng, bits, out, backend, shard
        As for `dropout`. The returned array and the errors are those of `dropout` too.

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
    """Drop the same elements of every sample: one mask for the whole batch.

    All samples then pass through the same thinned network. That network is one Monte-Carlo sample in the sense of Gal
    and Ghahramani, "Dropout as a Bayesian approximation", ICML 2016.

    Parameters
    ----------
    x : array, shape (samples, ...)
    p : float
        The probability of dropping an element, from 0 to 1.
    activation, training, rng, bits, out, backend, shard
        As for `dropout`. The returned array and the errors are those of `dropout` too.

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
    2013. This is the inverted form. Merity et al.'s AWD-LSTM applies it to the recurrent weights of an LSTM.

    Parameters
    ----------
    x : array
        The weights.
    p : float
        The probability of dropping a weight, from 0 to 1.
    samples : int, optional
        The number of samples, each with a mask of its own. By default there is one mask for all samples.
    activation, training, rng, bits, out, backend, shard
        As for `dropout`. out has the shape of the result. The errors are those of `dropout` too.

    Returns
    -------
    array, shape (..., as x) or (samples, ..., as x)
        With samples, backprop accepts and returns arrays of this shape too, one gradient per sample. The gradient with
        respect to x is their sum over the first axis.

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
    """Return the mask of DropBlock, and the probability of a seed by equation 1 of the paper."""
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

    Source and parameters: see `dropblock2d`. The shape of x is (samples, channels, length), or any other shape whose
    last axis is a feature map.

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

    Each position where a block fits is a seed with probability
    gamma = p / block_size**2 * size**2 / (size - block_size + 1)**2. A seed drops the block whose first corner it is;
    in the paper it is the centre. The elements that are kept are multiplied by (number of elements) / (number kept).
    Blocks may overlap, so more than 1 - p of the elements are kept. A block larger than the map is cut to the map.

    Parameters
    ----------
    x : array, shape (samples, channels, rows, columns)
        Any other shape whose last two axes are a feature map is accepted too.
    p : float
        The approximate probability of dropping an element, from 0 to 1.
    block_size : int
        The side length of a block, in elements.
    activation, training, rng, out, backend, shard
        As for `dropout`. The returned array and the errors are those of `dropout` too.
    bits : {32, 8, 16}
        Random bits per seed. The default is 32 because gamma is small.

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
    """Apply dropout that keeps mean 0 and variance 1, for networks with SELU.

    Source: Klambauer, Unterthiner, Mayr and Hochreiter, "Self-normalizing neural networks", NeurIPS 2017.

    Dropped elements are set to alpha' = -1.758, the limit of SELU at -infinity. An affine map then restores the mean
    and the variance: y = a * (keep ? activation(x) : alpha') + b with a = ((1 - p) * (1 + p * alpha'**2))**-0.5 and
    b = -a * p * alpha'. As in PyTorch, the result is 0 for p = 1.

    Parameters
    ----------
    x : array
    p : float
        The probability of dropping an element, from 0 to 1.
    activation, training, rng, bits, out, backend, shard
        As for `dropout`. The returned array and the errors are those of `dropout` too.

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
    """Apply alpha dropout to whole channels.

    Source and parameters: see `alpha_dropout`. The shape of x is (samples, channels, ...).

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
    """Multiply by normal noise with the mean and the variance of dropout, 1 and p / (1 - p).

    Source: Srivastava et al. (see `dropout`), section 10. Box and Muller's method turns each pair of 32-bit words of
    the stream into two normal deviates; see the page on the mask in the documentation.

    Parameters
    ----------
    x : array
    p : float
        From 0 to less than 1. The noise has the mean and the variance of dropout with this p.
    activation, training, rng, out, backend, shard
        As for `dropout`. The returned array and the errors are those of `dropout` too. A normal deviate takes 32 bits.

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
    """Multiply by uniform noise with the mean and the variance of dropout, 1 and p / (1 - p).

    The noise lies between 1 - h and 1 + h with h = sqrt(3 * p / (1 - p)). `dropout` is the same with Bernoulli noise,
    and `gaussian_dropout` the same with normal noise.

    Source: after Shen, Tian, Liu, Xu and Tao, "Continuous dropout", IEEE Transactions on Neural Networks and Learning
    Systems 29 (2018).

    Parameters
    ----------
    x : array
    p : float
        From 0 to less than 1. The noise has the mean and the variance of dropout with this p.
    activation, training, rng, bits, out, backend, shard
        As for `dropout`. The returned array and the errors are those of `dropout` too.

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
    """Add normal noise: y = activation(x) + std * deviate. The gradient is dy * slope(x).

    Source: Bishop, "Training with noise is equivalent to Tikhonov regularization", Neural Computation 7 (1995).

    Parameters
    ----------
    x : array
    std : float
        The standard deviation of the noise, at least 0, in units of x.
    activation, training, rng, out, backend, shard
        As for `dropout`. The returned array and the errors are those of `dropout` too. A normal deviate takes 32 bits.

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

    In training, y = keep ? activation(x) : previous. At prediction time y is the expected value,
    (1 - p) * activation(x) + p * previous.

    Source: Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations", ICLR 2017.

    Parameters
    ----------
    x : array
        The new state.
    previous : array
        The previous state. It has the kind, shape and dtype of x.
    p : float
        The probability of keeping the previous state, from 0 to 1.
    activation, training, rng, bits, out, backend, shard
        As for `dropout`. The returned array and the errors are those of `dropout` too. backprop returns the gradients
        with respect to x and to previous. Its out receives the first, or is a tuple of two arrays.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> new, old = np.full(6, 3.0), np.full(6, 1.0)
    >>> y, backprop = gpudrop.zoneout.vjp(new, old, 0.5, rng=gpudrop.Stream(0, 1))
    >>> y
    array([1., 3., 1., 3., 3., 1.])
    >>> backprop(np.ones(6))
    Gradients(dx=array([0., 1., 0., 1., 1., 0.]), dprevious=array([1., 0., 1., 0., 0., 1.]))
    >>> gpudrop.zoneout(new, old, 0.5, training=False)
    array([2., 2., 2., 2., 2., 2.])
    """
    return Variation(p, other=previous)


def _check_ndim(x: AnyArray, least: int, what: str) -> None:
    if x.ndim < least:
        raise ValueError(f"x must have at least {least} dimension{'s' * (least > 1)} ({what}), got {x.ndim}")


# Neighbours of dropout in the same pass


@of_residual("DropoutAdd", noise=noises.ADD, prediction=noises.SUM)
def dropout_add(
    x: AnyArray,
    residual: AnyArray,
    p: float = 0.5,
    *,
    bias: AnyArray | None = None,
    gain: AnyArray | None = None,
    mask_shape: MaskShape | None = None,
) -> Variation:
    """Add a bias, apply an activation and dropout, scale each column, and add a residual, in one pass.

    In training, y = keep ? residual + gain * scale * activation(x + bias) : residual. At prediction time and with
    p = 0, y = residual + gain * activation(x + bias). Without bias, x is used as it is. Without gain, the gain is 1.
    Dropout and an addition move 20 bytes per float32 element, and this function 12. Where an element is dropped, y is
    exactly the residual, even if the gain is infinite.

    Source: Vaswani et al., "Attention is all you need", NeurIPS 2017, section 5.4: dropout of the output of each
    sub-layer, before it is added to the sub-layer's input. The gain is LayerScale of Touvron, Cord, Sablayrolles,
    Synnaeve and Jégou, "Going deeper with image transformers", ICCV 2021.

    Parameters
    ----------
    x : array of any shape
        The branch: the output of a sub-layer.
    residual : array
        The input of the sub-layer. It has the kind and shape of x, and the dtype of x or a wider one.
    p : float
        The probability of dropping an element of the branch, from 0 to 1.
    bias, gain : array, optional, shape (x.shape[-1],)
        A value for each element of the last axis. They have the dtype of x or that of the arithmetic: float32, or
        float64 if an array is float64.
    mask_shape : tuple of int and None, optional
        As for `dropout`. With (None, 1, 1), for example, whole samples of the branch are dropped: stochastic depth.
    activation, training, rng, bits, out, backend, shard
        As for `dropout`. out may be x or residual. With vjp, out must not overlap the arrays that the backward pass
        needs. With a gain, or an activation whose slope needs x, they are x and the rows.

    Returns
    -------
    array
        y, with the dtype of residual. Everything else is as for `dropout`, the errors too. vjp returns y and a function
        of dy that returns the gradients as a named tuple: dx, dresidual, dbias and dgain. Each has the dtype of its
        array. The last two are None for absent arguments. dresidual is dy itself, or a copy if out overlaps dy. dbias
        and dgain are sums over all axes except the last, of numbers that are not rounded yet. Equal calls have equal
        sums. With a shard they are sums over the shard.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> branch, residual = np.ones(5, np.float32), np.arange(5, dtype=np.float32)
    >>> y, backprop = gpudrop.dropout_add.vjp(branch, residual, 0.5, rng=gpudrop.Stream(0, 1))
    >>> y
    array([0., 3., 2., 5., 6.], dtype=float32)
    >>> backprop(np.ones(5, np.float32)).dx
    array([0., 2., 0., 2., 2.], dtype=float32)
    >>> x, bias = np.ones((4, 2), np.float32), np.float32([1, -1])
    >>> y, backprop = gpudrop.dropout_add.vjp(x, x, 0.5, bias=bias, activation="relu", rng=gpudrop.Stream(0, 1))
    >>> y
    array([[1., 1.],
           [1., 1.],
           [5., 1.],
           [1., 1.]], dtype=float32)
    >>> backprop(np.ones_like(y)).dbias
    array([2., 0.], dtype=float32)
    """
    factor = None if gain is None else ("gain", gain)
    return Variation(p, mask=mask_shape, other=residual, bias=bias, factor=factor)


@of_gate("DropoutGLU", activation="silu")
def dropout_glu(gate: AnyArray, value: AnyArray | None = None, p: float = 0.5, *, gate_first: bool = True) -> Variation:
    """Multiply an activated gate and a value, and apply dropout, in one pass: gated linear units.

    y = keep ? scale * activation(gate) * value : 0. The default activation, silu, makes it SwiGLU.

    Source: Shazeer, "GLU variants improve transformer", 2020 (arXiv:2002.05202), equation 5. Dauphin, Fan, Auli and
    Grangier, "Language modeling with gated convolutional networks", ICML 2017, has the sigmoid.

    Parameters
    ----------
    gate : array, shape (..., n), or (..., 2 * n) if there is no value
        Without value, gate contains both: its halves along the last axis.
    value : array, optional, shape (..., n)
        It has the kind, shape and dtype of gate.
    p : float
        The probability of dropping an element of the product, from 0 to 1.
    gate_first : bool
        Whether the first half is the gate, if there is no value. With False, the order is that of
        torch.nn.functional.glu, whose activation is "sigmoid".
    activation, training, rng, bits, out, backend, shard
        As for `dropout`. The default activation is "silu". The shard and the mask are those of y. out may be gate or
        value, but not with vjp, whose backward pass needs both.

    Returns
    -------
    array, shape (..., n)
        Everything else is as for `dropout`, the errors too. vjp returns y and a function of dy that returns the
        gradients as a named tuple: dgate and dvalue. dvalue is None if there is no value, and dgate then has the shape
        of gate. One kernel computes both. Its out may be a tuple of two arrays, for dgate and dvalue.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> gate, value = np.float32([1, 2, 3, 4]), np.float32([1, -1, 1, -1])
    >>> y, backprop = gpudrop.dropout_glu.vjp(gate, value, 0.5, activation="relu", rng=gpudrop.Stream(0, 1))
    >>> y
    array([ 0., -4.,  0., -8.], dtype=float32)
    >>> backprop(np.ones(4, np.float32))
    Gradients(dgate=array([ 0., -2.,  0., -2.], dtype=float32), dvalue=array([0., 4., 0., 8.], dtype=float32))
    >>> packed = np.concatenate([gate, value])
    >>> gpudrop.dropout_glu(packed, p=0.5, activation="relu", rng=gpudrop.Stream(0, 1))
    array([ 0., -4.,  0., -8.], dtype=float32)
    """
    gate_first = OPTIONS["gate_first"].check(gate_first)
    if isinstance(value, float):
        raise TypeError(
            f"value must be a NumPy, CuPy or Numba array, got {value}; to pass p without value, write p={value}"
        )
    if value is None:
        return Variation(p, packed=gate_first)
    return Variation(p, factor=("value", value))
