"""dropout, dropout_vjp and keep_mask: everything is checked, then allocated, then dispatched once."""

import inspect
import math
import operator
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, overload

import numpy as np

from gpudrop import backends
from gpudrop.activations import Activation, find_activation
from gpudrop.context import DEFAULT, Context, current, rng_of
from gpudrop.fusion import REAL, STORAGE, Draw, Fusion
from gpudrop.generator import Generator, Stream, take
from gpudrop.hints import unexpected
from gpudrop.masks import Blocks, Shared, check_mask_shape, rows, shared
from gpudrop.noises import DRAWN, DROPOUT, DROPPED, PLAIN, Noise, Numbers
from gpudrop.random_bits import check_bits, check_p, check_truth, check_uint64
from gpudrop.signatures import AnyArray, Array, Backprop, MaskShape

if TYPE_CHECKING:
    from numpy.typing import NDArray

DTYPES = tuple(dtype for dtype in STORAGE if dtype != "bool")


def dropout(
    x: Array,
    p: float = 0.5,
    *,
    mask_shape: MaskShape | None = None,
    activation: str | None = None,
    training: bool = True,
    rng: Generator | Stream | None = None,
    bits: int = 16,
    out: Array | None = None,
    backend: str | None = None,
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
    rng : Generator or Stream, optional
        A Generator hands out its next stream if a mask is drawn; a Stream always gives the same mask;
        None is the default generator (`manual_seed`).
    bits : {8, 16, 32}
        Random bits per element.
    out : array, optional
        Where to write y: of x's kind, shape and dtype; x itself is allowed.
    backend : {"cpu", "cupy_elementwise", "numba_cuda"}, optional
        Which kernels to use; None chooses by the array. All give the same mask.

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
    return _prepared(x, p, mask_shape, activation, training, rng, bits, out, backend).forward()


def dropout_vjp(
    x: Array,
    p: float = 0.5,
    *,
    mask_shape: MaskShape | None = None,
    activation: str | None = None,
    training: bool = True,
    rng: Generator | Stream | None = None,
    bits: int = 16,
    out: Array | None = None,
    backend: str | None = None,
    **unknown: NoReturn,
) -> tuple[Array, Backprop]:
    """`dropout`, and the function that takes a gradient back through it.

    Nothing of the mask is stored: the backward pass draws it again. It keeps x (not a copy of it), or y
    alone where that decides (relu), or neither (no activation). Do not change the one it keeps in place before the
    backward pass (``y += skip``), or the gradient is wrong: write ``y = y + skip``.

    Parameters
    ----------
    x, p, mask_shape, activation, training, rng, bits, out, backend
        As for `dropout`; out may not overlap x if the backward pass needs x.

    Returns
    -------
    y : array
        As from `dropout`.
    backprop : function
        backprop(dy, *, out=None) -> dx, where dx = keep ? dy * scale * slope(x) : 0. dy is of x's kind,
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
    return _prepared(x, p, mask_shape, activation, training, rng, bits, out, backend).vjp()


def _prepared(
    x: Any,
    p: float,
    mask_shape: MaskShape | None = None,
    activation: str | None = None,
    training: bool = True,
    rng: Generator | Stream | None = None,
    bits: int = 16,
    out: Any = None,
    backend: str | None = None,
) -> "Prepared":
    how = (p, DROPOUT, PLAIN, mask_shape, 0, None, None)  # a Variation, but for the time that it takes to make one
    return prepare(backends.adopt("x", x), how, activation, training, rng, bits, out, backend)


@overload
def keep_mask(
    shape: int | Sequence[int],
    p: float,
    rng: Generator | Stream | None = None,
    *,
    bits: int = 16,
    start: int = 0,
    like: None = None,
    backend: str | None = None,
) -> "NDArray[np.bool_]": ...
@overload
def keep_mask(
    shape: int | Sequence[int],
    p: float,
    rng: Generator | Stream | None = None,
    *,
    bits: int = 16,
    start: int = 0,
    like: AnyArray,
    backend: str | None = None,
) -> Any: ...
def keep_mask(
    shape: int | Sequence[int],
    p: float,
    rng: Generator | Stream | None = None,
    *,
    bits: int = 16,
    start: int = 0,
    like: AnyArray | None = None,
    backend: str | None = None,
    **unknown: NoReturn,
) -> Any:
    """The mask that `dropout` would use in the same place, as booleans: True where an element is kept.

    Parameters
    ----------
    shape : int or tuple of int
    p : float
        The probability of dropping an element, from 0 to 1.
    rng : Generator or Stream, optional
        As for `dropout`.
    bits : {8, 16, 32}
        Random bits per element.
    start : int
        The global index of the mask's first element: the mask of a shard is a slice of the whole one's.
    like : array, optional
        An array whose kind (and device) the result has; NumPy's without it.
    backend : str, optional
        As for `dropout`.

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
    start, context = check_uint64("start", start), current()
    rng = rng_of(rng, context)
    shape, p, bits = _check_shape(shape), check_p(p), check_bits(bits)
    operand = backends.adopt("like", np.empty(0) if like is None else like)
    module = backends.choose(operand.kind, backend)
    mask = backends.empty(shape, np.bool_, operand)
    if context.first and mask.ndim and mask.size:
        start += context.first * (mask.size // mask.shape[0])
    if start + mask.size > 2**64:
        raise ValueError(f"start must leave room for the mask below 2**64, got {start}")
    numbers = DROPOUT.numbers(p, bits) if context.on else None
    bits, stored = (bits, rng.stored) if numbers else (0, False)
    fusion = Fusion("mask", find_activation(None), bits, "bool", DRAWN["keep"], stored=stored)
    draw = Draw()
    if numbers:
        draw = Draw(
            *take(rng, module, operand._replace(array=mask)), start, numbers.limit, numbers.scale, numbers.shift
        )
    backends.launch(module, operand, fusion, mask, mask, mask, draw)
    return operand.give_back(mask)


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


class Variation(NamedTuple):
    """What sets one kind of dropout apart from another; the defaults are dropout itself.

    Attributes
    ----------
    p : float
        The strength of the noise, not yet checked.
    noise : Noise
    prediction : Noise
        What is done when not in training, and where everything is switched off.
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
    noise: Noise = DROPOUT
    prediction: Noise = PLAIN
    mask: MaskShape | Blocks | None = None
    batch_axis: int | None = 0
    other: Any = None
    copies: int | None = None


class _Plan(NamedTuple):
    """All of a call but its arrays and its stream."""

    forward: Fusion
    backward: Fusion
    second: Fusion | None  # backward to the second array
    mask: Fusion | None  # what is drawn before the others run
    numbers: Numbers
    draws: bool

    def draw(self, rng: Generator | Stream, place: tuple[int, ...], module: Any, operand: Any, target: Any) -> Draw:
        """The numbers of one call; the generator moves on if anything is drawn."""
        limit, scale, shift = self.numbers
        if not self.draws:
            return Draw(0, 0, 0, limit, scale, shift)
        if rng.stored:  # it moves on where the kernel runs
            operand = backends.leading(operand, target)
        (seed, call), (start, row, pitch) = take(rng, module, operand), place
        return Draw(seed, call, start, limit, scale, shift, row, pitch)


# A cache, because training makes the same few calls again and again; p may come from a schedule.
@lru_cache(maxsize=1024)
def _plan(
    dtype: Any,
    noise: Noise,
    p: float,
    activation: Activation,
    bits: int,
    given: bool,
    counted: bool,
    window: bool,
    stored: bool,
) -> _Plan:
    if dtype.name not in DTYPES or not dtype.isnative:
        advice = "; x.astype(np.float32) has one" if dtype.kind in "biuf" else ""
        raise TypeError(f"x must have one of the dtypes {', '.join(DTYPES)}, got {dtype}{advice}")
    p, bits = noise.check(p), noise.check_bits(bits)
    numbers, two_inputs = noise.numbers(p, bits), noise.two_inputs  # before noise may become another
    if numbers is None:
        noise, numbers = PLAIN, Numbers()
    real = getattr(np, REAL[dtype.name])
    with np.errstate(over="ignore"):
        numbers = numbers._replace(scale=float(real(numbers.scale)), shift=float(real(numbers.shift)))
    draws = noise.drawn is not None
    given, counted = given and draws, counted and draws
    inline = bits if draws and not given else 0

    drawn_here = {"window": window, "stored": stored} if inline else {}

    def fusion(direction: str, noise: Noise, activation: Activation) -> Fusion:
        described = Fusion(direction, activation, inline, dtype.name, noise, given, counted, **drawn_here)
        if described.acting.drawn is None or (direction == "backward" and described.saves_output):
            return Fusion(direction, activation, 0, dtype.name, noise)
        return described

    forward, identity = fusion("forward", noise, activation), find_activation(None)
    mask = None
    if given:
        drawn = DRAWN[noise.drawn]
        mask = Fusion("mask", identity, bits, forward.drawn_dtype, drawn, window=window, stored=stored)
    second = fusion("backward", noise.second or DROPPED, identity) if two_inputs else None
    return _Plan(forward, fusion("backward", noise, activation), second, mask, numbers, draws)


class Prepared(NamedTuple):
    """A checked and allocated call: all that is left to do is to draw and to launch."""

    x: backends.Operand
    other: Any  # the second array, or x's own
    target: Any  # where to write
    out: Any  # the user's own array for that, or None
    module: Any
    plan: _Plan
    mask: Shared | Blocks | None
    rooms: list[Any] | None  # for the mask
    rng: Generator | Stream
    place: tuple[int, ...]  # where it is drawn: start, row and pitch of a Draw

    def forward(self) -> Any:
        x, other, target, out, module, plan, mask, rooms, rng, place = self
        _launch(x, other, target, module, plan, mask, rooms, plan.draw(rng, place, module, x, target))
        return x.give_back(target) if out is None else out

    def vjp(self) -> tuple[Any, Any]:
        """What `forward` returns, and the function that takes a gradient back."""
        activation, x = self.plan.backward.activation, self.x.array
        needs_x = activation.slope_of is not None and not self.plan.backward.saves_output
        if needs_x and self.out is not None and backends.overlap(self.target, x):
            raise ValueError(f"out must not overlap x, which the backward pass of {activation.name!r} needs")
        draw = self.plan.draw(self.rng, self.place, self.module, self.x, self.target)
        _launch(self.x, self.other, self.target, self.module, self.plan, self.mask, self.rooms, draw)
        y = self.x.give_back(self.target) if self.out is None else self.out
        return y, self._backprop(draw, x if needs_x else None if activation.slope_of is None else self.target)

    def backward(self, saved: Any, second: bool = False) -> None:
        """The gradient alone, for a call that was prepared with dy in the place of x.

        saved: what the activation's slope is a function of, or None; second: whether it is the second array's.
        """
        fusion = self.plan.second if second else self.plan.backward
        draw = self.plan.draw(self.rng, self.place, self.module, self.x, self.target)
        _go_back(self.module, fusion, self.plan.mask, self.mask, self.x, saved, self.target, draw, self.rooms)

    def _backprop(self, draw: Draw, saved: Any) -> Any:
        """The function that takes a gradient back. It keeps one array at most, so it must not keep self."""
        module, plan, mask, likeness = self.module, self.plan, self.mask, self.x.likeness()

        def backprop(dy: Any, *, out: Any = None) -> Any:
            """dx for dy = d cost / d y; see `dropout_vjp`."""
            operand = backends.adopt("dy", dy)
            _check_like("dy", operand, likeness)
            target = _target("out", out, operand, "dy")
            if out is not None and saved is not None and backends.overlap(target, saved):
                kept = "y" if plan.backward.saves_output else "x"
                name = plan.backward.activation.name
                raise ValueError(f"out must not overlap {kept}, which the backward pass of {name!r} needs")
            dprevious = None
            if plan.second is not None:  # first, for out may be dy
                dprevious = backends.empty_like(operand)
                _go_back(module, plan.second, plan.mask, mask, operand, None, dprevious, draw)
            _go_back(module, plan.backward, plan.mask, mask, operand, saved, target, draw)
            dx = operand.give_back(target) if out is None else out
            return dx if dprevious is None else (dx, operand.give_back(dprevious))

        return backprop


def _launch(
    x: backends.Operand, other: Any, target: Any, module: Any, plan: _Plan, mask: Any, rooms: Any, draw: Draw
) -> None:
    given = None if rooms is None else mask.make(module, backends.leading(x, target), rooms, plan.mask, draw)
    backends.launch(module, x, plan.forward, x.array, other, target, draw, given)


def _go_back(
    module: Any,
    fusion: Any,
    drawing: Any,
    mask: Any,
    dy: backends.Operand,
    saved: Any,
    target: Any,
    draw: Draw,
    rooms: Any = None,
) -> None:
    """Run a backward fusion on the operand dy; what it needs of a mask is drawn before, by the fusion `drawing`.

    rooms: for the mask, where they are allocated already.
    """
    given = None
    if fusion.given:
        leading = backends.leading(dy, target)
        given = mask.make(module, leading, rooms or mask.allocate(leading, drawing.dtype), drawing, draw)
    backends.launch(module, dy, fusion, dy.array, dy.array if saved is None else saved, target, draw, given)


def prepare(
    operand: backends.Operand,
    how: Any,
    activation: Any,
    training: bool,
    rng: Generator | Stream | None,
    bits: int,
    out: Any,
    backend: str | None,
) -> Prepared:
    """Check a call and allocate for it. operand: x; how: the Variation."""
    strength, noise, prediction, mask, axis, other, copies = how
    context = current()
    if training is not True and training is not False:
        training = check_truth("training", training)
    acts = training and context.on
    # Numbers of the usual types are checked where a plan is made of them, once.
    p = strength if acts and type(strength) is float else noise.check(strength)
    bits = bits if type(bits) is int else check_bits(bits)
    noise = noise if acts else prediction
    if copies is not None:
        operand = backends.repeated(operand, copies)
    x, kind, _ = operand
    activation, rng = find_activation(activation), rng_of(rng, context)
    counted, window, place = False, False, (0, x.size, 0)
    if mask is not None or context is not DEFAULT:
        mask, place = _placed(x, mask, axis, context)
        counted, window = (False, place[1] < x.size) if mask is None else (mask.counted, mask.window)
    plan = _plan(x.dtype, noise, p, activation, bits, mask is not None, counted, window, rng.stored)
    module = backends.choose(kind, backend)
    second = x
    if noise.two_inputs:
        second = backends.adopt("previous", other)
        _check_like("previous", second, operand.likeness())
        second = second.array
    if copies is not None and out is None:
        target = backends.empty(x.shape, x.dtype, operand)  # like x it would have the samples innermost
    else:
        target = _target("out", out, operand, "x")
    if noise.two_inputs and out is not None:
        _check_apart("out", target, second, "previous")
    rooms = None if plan.mask is None else mask.allocate(backends.leading(operand, target), plan.mask.dtype)
    return Prepared(operand, second, target, out, module, plan, mask, rooms, rng, place)


def _placed(x: Any, mask: Any, axis: int | None, context: Context) -> tuple[Any, tuple[int, int, int]]:
    """The mask as a Shared, as Blocks or None, and where it is drawn: start, row and pitch of a Draw."""
    part = context.part
    shape = tuple(x.shape) if part is None else part.whole
    if isinstance(mask, Blocks):
        if part is not None:
            raise ValueError("blocks can't be dropped in a part of an array alone, for their scale is the whole one's")
    elif mask is not None or part is not None:
        mask = shared(tuple(x.shape), (None,) * len(shape) if mask is None else check_mask_shape(mask), axis, part)
    start, row, pitch = 0, x.size, 0
    if part is not None and mask is None and x.size:
        row, pitch, (start,) = rows(tuple(x.shape), part)
    if context.first and axis is not None and x.ndim and x.size:
        start += context.first * (math.prod(shape) // shape[axis] if mask is None else mask.per_sample)
        if start + (math.prod(shape) if mask is None else mask.drawn) > 2**64:
            raise ValueError(f"first must leave room for the mask below 2**64, got {context.first}")
    return mask, (start, row, pitch)


def _target(name: str, out: Any, operand: backends.Operand, source: str) -> Any:
    """Where to write: a new array, or the user's, checked to be like the operand and apart from it.

    An Operand is not the user's: it was made to be so.
    """
    if out is None:
        return backends.empty_like(operand)
    if type(out) is backends.Operand:
        return out.array
    target = backends.adopt(name, out)
    _check_like(name, target, operand.likeness())
    if not backends.is_writable(target.array):
        raise ValueError(f"{name} must be writable, got a read-only array")
    if backends.overlaps_itself(target.array):
        raise ValueError(f"{name} must not overlap itself, got an array whose elements share memory")
    _check_apart(name, target.array, operand.array, source)
    return target.array


def _check_apart(name: str, target: Any, array: Any, source: str) -> None:
    if backends.overlap(target, array) and not backends.same_memory(target, array):
        raise ValueError(f"{name} must be {source} itself or share no memory with it, got an overlapping view")


def _check_like(name: str, operand: backends.Operand, likeness: Any) -> None:
    if operand.likeness() != likeness:
        wanted, got = backends.describe(*likeness), backends.describe(*operand.likeness())
        cast = likeness[1] != operand.array.dtype and likeness[2] == operand.array.shape and name != "out"
        advice = f"; {name}.astype({likeness[1].name!r}) has that dtype" if cast else ""
        raise ValueError(f"{name} must be {wanted}, got {got}{advice}")
