"""dropout, dropout_vjp and keep_mask: everything is checked, then allocated, then dispatched once."""

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from gpudrop import backends
from gpudrop.activations import find_activation
from gpudrop.fusion import STORAGE, Draw, Fusion
from gpudrop.generator import check_rng, take
from gpudrop.random_bits import check_bits, check_p, check_uint64, quantize

DTYPES = tuple(dtype for dtype in STORAGE if dtype != "bool")

_switched_off = ContextVar("gpudrop_switched_off", default=False)


@contextmanager
def no_dropout():
    """Switch every dropout off within a block, as if training were False.

    For gradient checks, and for looking at the cost. It holds for the current thread (and its asyncio
    task) alone; blocks may be nested.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> with gpudrop.no_dropout():
    ...     gpudrop.dropout(np.float32([1, 2, 3]), 0.9)
    array([1., 2., 3.], dtype=float32)
    """
    token = _switched_off.set(True)
    try:
        yield
    finally:
        _switched_off.reset(token)


def dropout(x, p=0.5, *, activation=None, training=True, rng=None, bits=16, out=None, backend=None):
    """Apply an activation, drop each element with probability p, and scale the rest.

    Inverted dropout: y = keep ? activation(x) * scale : 0, where scale = 1 / (1 - p), so that the
    expected value of y is activation(x) and nothing needs to be done at prediction time. Source:
    Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, "Dropout: a simple way to prevent neural
    networks from overfitting", JMLR 15 (2014), section 10.

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64, any shape, any strides
        A NumPy array, a CuPy array, a Numba device array, or anything with DLPack or
        __cuda_array_interface__. NumPy's bfloat16 is that of ml_dtypes, on device arrays too.
    p : float
        The probability of dropping an element, from 0 to 1; honoured to within 2**-(bits + 1).
    activation : str, optional
        The name of an activation to apply first; None applies none.
    training : bool
        False applies the activation alone, as p=0 does.
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
        y, of x's kind, shape, dtype and memory order. For an array of another library it is made by its
        namespace's from_dlpack, or is a CuPy array where it has none. On a device it is computed on the
        current CuPy stream or the array's Numba stream, without synchronisation.

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
    return _prepare(x, p, activation, training, rng, bits, out, backend).forward()


def dropout_vjp(x, p=0.5, *, activation=None, training=True, rng=None, bits=16, out=None, backend=None):
    """`dropout`, and the function that takes a gradient back through it.

    Nothing of the mask is stored: the backward pass draws it again. It keeps x (not a copy of it), or y
    alone where that decides (relu), or neither (no activation), so don't overwrite the one it keeps.

    Parameters
    ----------
    x, p, activation, training, rng, bits, out, backend
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
    prepared = _prepare(x, p, activation, training, rng, bits, out, backend, backward=True)
    return prepared.forward(), prepared.backprop()


def keep_mask(shape, p, rng=None, *, bits=16, start=0, like=None, backend=None):
    """The mask that `dropout` would use, as booleans: True where an element is kept.

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
    start, rng = check_uint64("start", start), check_rng(rng)
    plan = _plan(None, check_p(p), find_activation(None), check_bits(bits))
    operand = backends.adopt("like", np.empty(0) if like is None else like)
    module = backends.choose(operand.kind, backend)
    mask = backends.empty_mask(shape, operand)
    if start + mask.size > 2**64:
        raise ValueError(f"start must leave room for the mask below 2**64, got {start}")
    backends.launch(module, operand, plan.forward, mask, mask, mask, plan.draw(rng, start))
    return operand.give_back(mask)


class _Plan(NamedTuple):
    """All of a call but its arrays and its stream."""

    forward: Fusion
    backward: Fusion | None
    limit: int
    scale: float

    def draw(self, rng, start=0):
        """The numbers of one call; the generator moves on if anything is drawn."""
        return Draw(*take(rng), start, self.limit, self.scale) if self.forward.bits else Draw()


# A cache, because training makes the same few calls again and again; p may come from a schedule.
@lru_cache(maxsize=1024)
def _plan(dtype, p, activation, bits):
    """The plan for an array of a dtype, or for a mask without one."""
    quantized = quantize(p, bits)
    if not quantized.threshold:
        bits = 0
    if dtype is None:
        forward, backward = Fusion("mask", activation, bits, "bool"), None
    elif dtype.name not in DTYPES or not dtype.isnative:
        raise TypeError(f"x must have one of the dtypes {', '.join(DTYPES)}, got {dtype}")
    else:
        forward = Fusion("forward", activation, bits, dtype.name)
        backward = Fusion("backward", activation, 0 if activation.slope_of == "output" else bits, dtype.name)
    return _Plan(forward, backward, quantized.threshold - 1, quantized.scale)


@dataclass(slots=True)
class _Prepared:
    """A checked and allocated call: all that is left to do is to launch."""

    x: backends.Operand
    target: Any  # where to write
    out: Any  # the user's own array for that, or None
    module: Any
    plan: _Plan
    draw: Draw

    def forward(self):
        x = self.x.array
        backends.launch(self.module, self.x, self.plan.forward, x, x, self.target, self.draw)
        return self.x.give_back(self.target) if self.out is None else self.out

    def backprop(self):
        """The function that takes a gradient back. It keeps one array at most, so it must not keep self."""
        module, fusion, draw, likeness = self.module, self.plan.backward, self.draw, self.x.likeness()
        activation = fusion.activation
        saved = {"input": self.x.array, "output": self.target, None: None}[activation.slope_of]

        def backprop(dy, *, out=None):
            """dx for dy = d cost / d y; see `dropout_vjp`."""
            operand = backends.adopt("dy", dy)
            _check_like("dy", operand, likeness)
            target = _target("out", out, operand, "dy")
            if saved is not None and backends.overlap(target, saved):
                kept = {"input": "x", "output": "y"}[activation.slope_of]
                raise ValueError(f"out must not overlap {kept}, which the backward pass of {activation.name!r} needs")
            slope_of = operand.array if saved is None else saved
            backends.launch(module, operand, fusion, operand.array, slope_of, target, draw)
            return operand.give_back(target) if out is None else out

        return backprop


def _prepare(x, p, activation, training, rng, bits, out, backend, backward=False):
    operand = backends.adopt("x", x)
    p, bits, activation, rng = check_p(p), check_bits(bits), find_activation(activation), check_rng(rng)
    plan = _plan(operand.array.dtype, p if training and not _switched_off.get() else 0.0, activation, bits)
    module = backends.choose(operand.kind, backend)
    target = _target("out", out, operand, "x")
    if backward and activation.slope_of == "input" and out is not None and backends.overlap(target, operand.array):
        raise ValueError(f"out must not overlap x, which the backward pass of {activation.name!r} needs")
    return _Prepared(operand, target, out, module, plan, plan.draw(rng))


def _target(name, out, operand, source):
    """Where to write: a new array, or the user's, checked to be like the operand and apart from it."""
    if out is None:
        return backends.empty_like(operand)
    target = backends.adopt(name, out)
    _check_like(name, target, operand.likeness())
    if not backends.is_writable(target.array):
        raise ValueError(f"{name} must be writable, got a read-only array")
    if backends.overlap(target.array, operand.array) and not backends.same_memory(target.array, operand.array):
        raise ValueError(f"{name} must be {source} itself or share no memory with it, got an overlapping view")
    return target.array


def _check_like(name, operand, likeness):
    if operand.likeness() != likeness:
        wanted, got = backends.describe(*likeness), backends.describe(*operand.likeness())
        raise ValueError(f"{name} must be {wanted}, got {got}")
