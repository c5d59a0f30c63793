"""dropout, dropout_vjp and keep_mask: everything is checked, then allocated, then dispatched once."""

import inspect
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn, overload

import numpy as np

from gpudrop import arrays
from gpudrop.checks import check_bits, check_p, check_uint64
from gpudrop.context import Context
from gpudrop.formulas.noises import DROPOUT, PLAIN
from gpudrop.generator import RngLike
from gpudrop.hints import unexpected
from gpudrop.masks import Shard
from gpudrop.plan import Prepared, draw_mask, prepare
from gpudrop.signatures import AnyArray, Array, Backprop, MaskShape

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
    **unknown: NoReturn,
) -> Array:
    """Apply an activation, drop each element with probability p, and scale the rest.

    Inverted dropout: y = keep ? activation(x) * scale : 0, where scale = 1 / (1 - p), so that the
    expected value of y is activation(x) and nothing needs to be done at prediction time. Source:
    Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, "Dropout: a simple way to prevent neural
    networks from overfitting", JMLR 15 (2014), section 10.

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64, any shape, any strides
        A NumPy array or scalar, a CuPy array, a Numba device array, or anything with DLPack or
        __cuda_array_interface__. NumPy's bfloat16 is that of ml_dtypes, on device arrays too.
    p : float
        The probability of dropping an element, from 0 to 1; honoured to within 2**-(bits + 1).
    mask_shape : tuple of int and None, optional
        The mask's own shape, which broadcasts against x's; None in it stands for x's own size. Elements that
        share an element of the mask are kept or dropped together: (None, None, 1, 1) drops whole channels of
        (samples, channels, rows, columns). Without it each element has its own.
    activation : str, optional
        The name of an activation to apply first; None applies none.
    training : bool
        False applies the activation alone, as p=0 does. 1 and 0 are taken for True and False.
    rng : Generator, Stream, int, NumPy's Generator, BitGenerator or SeedSequence, optional
        A Generator hands out its next stream if a mask is drawn; a Stream always gives the same mask, and an int n is
        ``Stream(n, 0)``; None is the default generator (`manual_seed`). The notes of `Generator` have the whole rule.
    bits : {8, 16, 32}
        Random bits per element.
    out : array, optional
        Where to write y: of x's kind, shape and dtype; x itself is allowed.
    backend : {"cpu", "cupy_elementwise", "numba_cuda"}, optional
        Which kernels to use; None chooses by the array. All give the same mask.
    shard : Shard, optional
        Which part of a larger array x is, if it is one; mask_shape is then the whole array's.

    Returns
    -------
    array
        y, of x's kind, shape, dtype and memory order. For a subclass of NumPy's arrays it is what that subclass makes
        of results (np.matrix: a matrix; np.memmap: a plain array), for a NumPy scalar a scalar. For an array of another
        library it is made by its namespace's from_dlpack, or is a CuPy array where it has none. On a device it is
        computed on the current CuPy stream or the array's Numba stream, without synchronisation.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; nothing has been written or drawn then.
    RuntimeError
        If the backend can't serve on this machine.

    Notes
    -----
    Dropped elements are +0.0 whatever x is, nan and inf included. Arithmetic is float32 (float64 for
    float64), rounded once.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> x = np.arange(-2, 6, dtype=np.float32)
    >>> gpudrop.dropout(x, 0.5, activation="relu", rng=gpudrop.Stream(42, 0))
    array([0., 0., 0., 0., 0., 0., 8., 0.], dtype=float32)
    >>> gpudrop.dropout(x, 0.5, activation="relu", training=False)
    array([0., 0., 0., 1., 2., 3., 4., 5.], dtype=float32)
    """
    if unknown:
        raise unexpected("dropout", unknown, inspect.signature(dropout).parameters)
    return _prepared(x, p, mask_shape, activation, training, rng, bits, backend, shard).forward(out)


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
    **unknown: NoReturn,
) -> tuple[Array, Backprop]:
    """`dropout`, and the function that takes a gradient back through it.

    Nothing of the mask is stored: the backward pass draws it again. It keeps x (not a copy of it), or y
    alone where that decides (relu), or neither (no activation). Do not change the one it keeps in place before the
    backward pass (``y += skip``), or the gradient is wrong: write ``y = y + skip``.

    Parameters
    ----------
    x, p, mask_shape, activation, training, rng, bits, out, backend, shard
        As for `dropout`; out may not overlap x if the backward pass needs x.

    Returns
    -------
    y : array
        As from `dropout`.
    backprop : function
        ``backprop(dy, *, out=None) -> dx``, where dx = keep ? dy * scale * slope(x) : 0. dy is of x's kind,
        shape and dtype, and so is dx; out may be dy itself. It may be called any number of times.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> x = np.arange(-2, 6, dtype=np.float32)
    >>> y, backprop = gpudrop.dropout_vjp(x, 0.5, activation="relu", rng=gpudrop.Stream(42, 0))
    >>> backprop(np.ones_like(x))
    array([0., 0., 0., 0., 0., 0., 2., 0.], dtype=float32)
    """
    if unknown:
        raise unexpected("dropout_vjp", unknown, inspect.signature(dropout_vjp).parameters)
    return _prepared(x, p, mask_shape, activation, training, rng, bits, backend, shard).vjp(out)


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
) -> Prepared:
    how = (p, DROPOUT, PLAIN, mask_shape, 0, None, None)  # not by a Variation, which takes time to make
    return prepare(arrays.as_operand("x", x), how, activation, training, rng, bits, backend, shard, context)


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
) -> "NDArray[np.bool_]": ...
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
    **unknown: NoReturn,
) -> Any:
    """The mask that `dropout` would use for the same elements, as booleans: True where an element is kept.

    Parameters
    ----------
    shape : int or tuple of int
    p : float
        The probability of dropping an element, from 0 to 1.
    rng : Generator, Stream, int, NumPy's Generator, BitGenerator or SeedSequence, optional
        As for `dropout`.
    bits : {8, 16, 32}
        Random bits per element.
    start : int
        The index in the whole array's mask, counted in C order, of the first element; 0 with a shard.
    like : array, optional
        An array whose kind (and device) the result has; NumPy's without it.
    backend : str, optional
        As for `dropout`.
    shard : Shard, optional
        Which part of a larger array's mask it is; shape is the part's own.

    Returns
    -------
    array of bool

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.

    Examples
    --------
    >>> import gpudrop
    >>> gpudrop.keep_mask((2, 8), 0.5, gpudrop.Stream(42, 0)).astype(int)
    array([[1, 1, 0, 0, 0, 0, 1, 0],
           [0, 1, 0, 0, 0, 1, 0, 0]])
    >>> gpudrop.keep_mask(4, 0.5, gpudrop.Stream(42, 0), start=12).astype(int)
    array([0, 1, 0, 0])
    """
    if unknown:
        raise unexpected("keep_mask", unknown, inspect.signature(keep_mask).parameters)
    start, shape, p, bits = check_uint64("start", start), _check_shape(shape), check_p(p), check_bits(bits)
    operand = arrays.as_operand("like", np.empty(0) if like is None else like)
    if shard is not None and start:
        raise ValueError("give start or shard, not both")
    return draw_mask(shape, p, rng, bits, start, operand, backend, shard)


def _check_shape(shape: Any) -> tuple[int, ...]:
    try:
        sizes = tuple(map(operator.index, shape if np.ndim(shape) else (shape,)))
    except (TypeError, ValueError):
        raise TypeError(f"shape must be an integer or a tuple of integers, got {shape!r}") from None
    if min(sizes, default=0) < 0:
        raise ValueError(f"shape must not be negative, got {shape}")
    return sizes


# As every variant has them. Type checkers, to which a function has no attributes, know dropout_vjp.
dropout.vjp, dropout.prepare = dropout_vjp, _prepared  # type: ignore[attr-defined]
_function: Any
for _function in (dropout, dropout_vjp, keep_mask):  # their unknown arguments are there to be refused
    _signature = inspect.signature(_function)
    _known = [a for a in _signature.parameters.values() if a.kind is not a.VAR_KEYWORD]
    _function.__signature__ = _signature.replace(parameters=_known)
