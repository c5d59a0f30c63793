"""dropout, dropout_vjp and keep_mask: they check all arguments, allocate the result and launch one kernel."""

import inspect
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast, overload

import numpy as np

from gpudrop import arrays
from gpudrop.checks import check_bits, check_p, check_truth, check_uint64
from gpudrop.context import Context
from gpudrop.formulas.noises import DROPOUT, PLAIN
from gpudrop.generator import RngLike
from gpudrop.hints import unexpected
from gpudrop.masks import Shard
from gpudrop.plan import Call, Prepared, Variation, draw_mask, given_mask, prepare
from gpudrop.signatures import AnyArray, Array, Backprop, MaskShape, Save

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gpudrop.signatures import BackpropOfBias


def dropout(
    x: Array,
    p: float = 0.5,
    *,
    mask_shape: MaskShape | None = None,
    activation: str | None = None,
    training: bool = True,
    rng: RngLike = None,
    bits: int = 16,
    out: Array | None = None,
    backend: str | None = None,
    shard: Shard | None = None,
    keep: AnyArray | None = None,
    bias: AnyArray | None = None,
    **unknown: NoReturn,
) -> Array:
    """Apply an activation, drop each element with probability p, and scale the rest.

    This is inverted dropout: y = keep ? activation(x) * scale : 0, where scale = 1 / (1 - p). The expected value of y
    is activation(x), so no scaling is needed at prediction time.

    Source: Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, "Dropout: a simple way to prevent neural
    networks from overfitting", JMLR 15 (2014), section 10.

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64, any shape, any strides
        A NumPy array or scalar, a CuPy array, a Numba device array, or any array that supports DLPack or
        __cuda_array_interface__. The dtype bfloat16 is ml_dtypes.bfloat16, for device arrays too.
    p : float
        The probability of dropping an element, from 0 to 1. The probability used differs from p by at most
        2**-(bits + 1).
    mask_shape : tuple of int and None, optional
        The shape of the mask, which is broadcast against x. None in the tuple means the size of x along that axis.
        Elements that share an element of the mask are kept or dropped together. For example, (None, None, 1, 1) drops
        whole channels of (samples, channels, rows, columns). By default each element has its own mask element.
    activation : str, optional
        The name of the activation that is applied first. None applies no activation.
    training : bool
        If False, only the activation is applied, as with p=0. The integers 1 and 0 are accepted too.
    rng : Generator, Stream, int, NumPy's Generator, BitGenerator or SeedSequence, optional
        The source of the mask. A Generator uses its next stream, if a mask is drawn. A Stream always produces the same
        mask. An int n means ``Stream(n, 0)``. None uses the default generator (`manual_seed`). The notes of
        `Generator` describe every type.
    bits : {8, 16, 32}
        Random bits per element.
    out : array, optional
        The array that y is written to. It has the kind, shape and dtype of x. It may be x itself.
    backend : {"cpu", "cupy_elementwise", "numba_cuda"}, optional
        The backend to use. By default the kind of array selects it. All backends draw the same mask.
    shard : Shard, optional
        The position of x in a larger array, if x is a part of one. mask_shape then describes the whole array's mask.
    keep : array, optional
        A mask to apply instead of drawing one, for example from `keep_mask`: True or a bit of 1 where an element is
        kept. It has the kind of x. It is boolean and has the mask's shape, or it contains the packed bits of such a
        mask. The scale is that of p and bits. rng and shard must be None then, and no stream is used.
    bias : array, optional, shape (x.shape[-1],)
        The array that is added to x before the activation. It has the kind of x, and the dtype of x or that of the
        arithmetic.

    Returns
    -------
    array
        y, with the kind, shape, dtype and memory order of x. A NumPy scalar returns a scalar. A subclass of NumPy's
        array is wrapped by its own rules: np.matrix returns a matrix, and np.memmap a plain array. For an array of
        another library, y is created by from_dlpack of its array namespace. If that does not exist, y is a CuPy array.
        On a GPU, y is computed on the current CuPy stream or the array's Numba stream, without synchronisation.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid. In this case nothing has been written and no stream has been used.
    RuntimeError
        If the backend is not available on this machine.

    Notes
    -----
    Dropped elements are +0.0 for every x, including nan and inf. Arithmetic is float32, or float64 for float64, and
    the result is rounded once.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> x = np.arange(-2, 6, dtype=np.float32)
    >>> gpudrop.dropout(x, 0.5, activation="relu", rng=gpudrop.Stream(42, 0))
    array([0., 0., 0., 0., 0., 0., 8., 0.], dtype=float32)
    >>> gpudrop.dropout(x, 0.5, activation="relu", training=False)
    array([0., 0., 0., 1., 2., 3., 4., 5.], dtype=float32)
    >>> gpudrop.dropout(x, 0.5, keep=x > 2)
    array([ 0.,  0.,  0.,  0.,  0.,  6.,  8., 10.], dtype=float32)
    """
    if unknown:
        raise unexpected("dropout", unknown, inspect.signature(dropout).parameters)
    prepared = _prepared(x, p, mask_shape, activation, training, rng, bits, backend, shard, keep=keep, bias=bias)
    return prepared.forward(out)


@overload
def dropout_vjp(
    x: Array,
    p: float = 0.5,
    *,
    mask_shape: MaskShape | None = None,
    activation: str | None = None,
    training: bool = True,
    rng: RngLike = None,
    bits: int = 16,
    out: Array | None = None,
    backend: str | None = None,
    shard: Shard | None = None,
    keep: AnyArray | None = None,
    bias: None = None,
    save: Save = "auto",
) -> tuple[Array, Backprop]: ...
@overload
def dropout_vjp(
    x: Array,
    p: float = 0.5,
    *,
    mask_shape: MaskShape | None = None,
    activation: str | None = None,
    training: bool = True,
    rng: RngLike = None,
    bits: int = 16,
    out: Array | None = None,
    backend: str | None = None,
    shard: Shard | None = None,
    keep: AnyArray | None = None,
    bias: AnyArray,
    save: Save = "auto",
) -> "tuple[Array, BackpropOfBias]": ...
def dropout_vjp(
    x: Array,
    p: float = 0.5,
    *,
    mask_shape: MaskShape | None = None,
    activation: str | None = None,
    training: bool = True,
    rng: RngLike = None,
    bits: int = 16,
    out: Array | None = None,
    backend: str | None = None,
    shard: Shard | None = None,
    keep: AnyArray | None = None,
    bias: AnyArray | None = None,
    save: Save = "auto",
    **unknown: NoReturn,
) -> Any:
    """Apply `dropout`, and return the result and a function that computes the gradient.

    The mask is not stored: the backward pass draws it again. The function keeps a reference to x, not a copy. Without
    an activation it keeps nothing, and for relu y instead of x. Do not change that array in place before the backward
    pass, or the gradient is wrong. For example, write ``y = y + skip`` instead of ``y += skip``. For relu and
    leaky_relu the function can keep one bit per element instead: see `save`.

    Parameters
    ----------
    x, p, mask_shape, activation, training, rng, bits, out, backend, shard, keep, bias
        As for `dropout`. If the backward pass needs x, out must not overlap x. Do not change keep and bias before the
        backward pass.
    save : {"auto", "output", "bits"}
        What is kept for the backward pass. "bits" keeps one bit per element, for relu and leaky_relu only: whether the
        slope is 1, and for relu also whether the element is kept. Then x and y may be changed before the backward
        pass. "output" keeps an array, as described above. "auto" chooses the faster of the two: "bits" on the CPU for
        C-contiguous arrays of 1 MiB or more, and otherwise "output". The gradient is the same.

    Returns
    -------
    y : array
        As from `dropout`.
    backprop : function
        ``backprop(dy, *, out=None) -> dx``, where dx = keep ? dy * scale * slope(x) : 0 and slope is the derivative of
        the activation. dy and dx have the kind, shape and dtype of x. out may be dy itself. The function may be called
        any number of times. With a bias it returns a named tuple of dx and dbias. dbias is the sum of dx over all axes
        except the last. dx is not rounded before it is added, and dbias has the dtype of bias. Equal calls have equal
        sums. With a shard, dbias is the sum over the shard.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> x = np.arange(-2, 6, dtype=np.float32)
    >>> y, backprop = gpudrop.dropout_vjp(x, 0.5, activation="relu", rng=gpudrop.Stream(42, 0))
    >>> backprop(np.ones_like(x))
    array([0., 0., 0., 0., 0., 0., 2., 0.], dtype=float32)
    >>> y, backprop = gpudrop.dropout_vjp(x, 0.5, activation="relu", rng=gpudrop.Stream(42, 0), save="bits")
    >>> y += x
    >>> backprop(np.ones_like(x))
    array([0., 0., 0., 0., 0., 0., 2., 0.], dtype=float32)
    """
    if unknown:
        raise unexpected("dropout_vjp", unknown, inspect.signature(dropout_vjp).parameters)
    prepared = _prepared(x, p, mask_shape, activation, training, rng, bits, backend, shard, keep=keep, bias=bias)
    return prepared.vjp(out, save)


def _prepared(
    x: Any,
    p: float,
    mask_shape: MaskShape | None = None,
    activation: str | None = None,
    training: bool = True,
    rng: RngLike = None,
    bits: int = 16,
    backend: str | None = None,
    shard: Shard | None = None,
    context: Context | None = None,
    keep: AnyArray | None = None,
    bias: AnyArray | None = None,
) -> Prepared:
    operand, mask = arrays.as_operand("x", x), cast("Any", mask_shape)
    if keep is not None:
        for name, value in (("rng", rng), ("shard", shard)):
            if value is not None:
                raise ValueError(f"keep and {name} can't both be set: pass only one of them")
        mask = given_mask(operand, keep, mask_shape)
    names = () if bias is None else ("x", "bias")
    return prepare(
        operand,
        Call(Variation(p, mask, bias=bias), DROPOUT, PLAIN, names),
        activation,
        training,
        rng,
        bits,
        backend,
        shard,
        context,
    )


@overload
def keep_mask(
    shape: int | Sequence[int],
    p: float,
    rng: RngLike = None,
    *,
    bits: int = 16,
    start: int = 0,
    like: None = None,
    backend: str | None = None,
    shard: Shard | None = None,
    packed: Literal[False] = False,
) -> "NDArray[np.bool_]": ...
@overload
def keep_mask(
    shape: int | Sequence[int],
    p: float,
    rng: RngLike = None,
    *,
    bits: int = 16,
    start: int = 0,
    like: None = None,
    backend: str | None = None,
    shard: Shard | None = None,
    packed: Literal[True],
) -> "NDArray[np.uint8]": ...
@overload
def keep_mask(
    shape: int | Sequence[int],
    p: float,
    rng: RngLike = None,
    *,
    bits: int = 16,
    start: int = 0,
    like: AnyArray,
    backend: str | None = None,
    shard: Shard | None = None,
    packed: bool = False,
) -> Any: ...
def keep_mask(
    shape: int | Sequence[int],
    p: float,
    rng: RngLike = None,
    *,
    bits: int = 16,
    start: int = 0,
    like: AnyArray | None = None,
    backend: str | None = None,
    shard: Shard | None = None,
    packed: bool = False,
    **unknown: NoReturn,
) -> Any:
    """Return the mask that `dropout` uses: a boolean array that is True where an element is kept.

    Parameters
    ----------
    shape : int or tuple of int
        The shape of the mask.
    p : float
        The probability of dropping an element, from 0 to 1.
    rng : Generator, Stream, int, NumPy's Generator, BitGenerator or SeedSequence, optional
        As for `dropout`.
    bits : {8, 16, 32}
        Random bits per element.
    start : int
        The C-order index of the first element in the mask of the whole array. It must be 0 if a shard is passed.
    like : array, optional
        The result has the kind and the device of this array. By default it is a NumPy array.
    backend : str, optional
        As for `dropout`.
    shard : Shard, optional
        The position of the result in the mask of a larger array. shape is then the shape of this part.
    packed : bool
        If True, the result is the mask as bits, an eighth of the memory: a one-dimensional array of uint8, equal to
        ``numpy.packbits(mask, axis=None, bitorder="little")``. `dropout` accepts it as keep.

    Returns
    -------
    array of bool, or of uint8

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

    Examples
    --------
    >>> import gpudrop
    >>> gpudrop.keep_mask((2, 8), 0.5, gpudrop.Stream(42, 0)).astype(int)
    array([[1, 1, 0, 0, 0, 0, 1, 0],
           [0, 1, 0, 0, 0, 1, 0, 0]])
    >>> gpudrop.keep_mask(4, 0.5, gpudrop.Stream(42, 0), start=12).astype(int)
    array([0, 1, 0, 0])
    >>> gpudrop.keep_mask((2, 8), 0.5, gpudrop.Stream(42, 0), packed=True)
    array([67, 34], dtype=uint8)
    """
    if unknown:
        raise unexpected("keep_mask", unknown, inspect.signature(keep_mask).parameters)
    start, shape, p, bits = check_uint64("start", start), _check_shape(shape), check_p(p), check_bits(bits)
    operand = arrays.as_operand("like", np.empty(0) if like is None else like)
    if shard is not None and start:
        raise ValueError("start and shard can't both be set: pass only one of them")
    return draw_mask(shape, p, rng, bits, start, operand, backend, shard, check_truth("packed", packed))


def _check_shape(shape: Any) -> tuple[int, ...]:
    try:
        sizes = tuple(map(operator.index, shape if np.ndim(shape) else (shape,)))
    except (TypeError, ValueError):
        raise TypeError(f"shape must be an integer or a tuple of integers, got {shape!r}") from None
    if min(sizes, default=0) < 0:
        raise ValueError(f"shape must not be negative, got {shape}")
    return sizes


# Every variant has these two attributes. Type checkers know no attributes of functions; for them there is dropout_vjp.
dropout.vjp, dropout.prepare = dropout_vjp, _prepared  # type: ignore[attr-defined]
_function: Any
for _function in (dropout, dropout_vjp, keep_mask):  # **unknown exists for its error message alone: hide it
    _signature = inspect.signature(_function)
    _known = [a for a in _signature.parameters.values() if a.kind is not a.VAR_KEYWORD]
    _function.__signature__ = _signature.replace(parameters=_known)
