"""The contenders on a GPU. Each contender prepares a case once, and is then called with different arrays.

    prepare(case, xp)       returns vjp, or raises Absent with a reason if the case is not supported
    adapt(x, dy, y, dx)     returns the contender's own arrays on the same memory
    vjp(x, dy, y, dx)       receives those, and returns the result and backprop, which returns the gradient

y and dx are buffers for the result and the gradient. Contenders that can write to existing arrays use them; others
allocate new arrays. xp is the namespace of the arrays: CuPy, or in the tests NumPy.
"""

import functools
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

import gpudrop
from gpudrop.testing.benchmark import checks
from gpudrop.testing.benchmark.checks import Wrong
from gpudrop.testing.benchmark.contenders import SEED, Absent, Contender, from_torch, torch_dropout, torch_for


def any_mask(case, x, dy, results, start):
    checks.dropout(case, x, dy, results)


def our_mask(case, x, dy, results, start):
    checks.our_dropout(case, x, dy, results, SEED, start)


def same(case, x, dy, results, start):
    if not all(np.array_equal(got, want) for got, want in zip(results, (x, dy), strict=True)):
        raise Wrong("the result is not a copy")


def to_numpy(array):
    """Copy an array of any contender to the CPU."""
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "copy_to_host"):
        return array.copy_to_host()
    return array.get() if hasattr(array, "get") else from_torch(array.detach().cpu())


@dataclass(frozen=True)
class GpuContender(Contender):
    """A contender on a GPU; the module's docstring describes its functions.

    Attributes
    ----------
    name : str
    prepare, adapt : callable
    check : callable
        check(case, x, dy, (y, dx), start) checks a part of the arrays on the CPU. The part begins at element `start`.
    to_numpy : callable
    graph : {"cupy", "torch"}, optional
        The library whose current stream runs the work, so that a CUDA graph can be captured. None if it can't.
    writes : bool
        Whether the contender writes to the buffers y and dx.
    moves : callable
        Returns the bytes of a case that must move.
    """

    check: Callable = any_mask
    to_numpy: Callable = to_numpy
    adapt: Callable = lambda *arrays: arrays
    graph: str | None = None
    writes: bool = False
    moves: Callable = lambda case: case.bytes


def ours(case, xp):
    options = {"activation": case.activation, "bits": case.bits, "rng": gpudrop.Stream(SEED, 0)}

    def vjp(x, dy, y, dx):
        result, backprop = gpudrop.dropout_vjp(x, case.p, out=y, **options)
        return result, lambda: backprop(dy, out=dx)

    return vjp


def copy(case, xp):
    def vjp(x, dy, y, dx):
        def backprop():
            xp.copyto(dx, dy)
            return dx

        xp.copyto(y, x)
        return y, backprop

    return vjp


def copied(case):
    """Return the bytes of a copy, which reads one array and writes one array in each pass."""
    return replace(case, activation="identity").bytes


def pytorch(case, xp, made=torch_dropout):
    torch = torch_on(case, xp)
    dropout = made(torch, case)

    def vjp(x, dy, y, dx):
        y = dropout(x)
        return y, lambda: torch.autograd.grad(y, x, dy, retain_graph=True)[0]

    return vjp


def torch_on(case, xp):
    """Return PyTorch if it supports the arrays of a namespace."""
    torch = torch_for(case)
    if xp.__name__ == "cupy" and not torch.cuda.is_available():
        raise Absent("this PyTorch finds no CUDA GPU")
    return torch


def to_tensors(*arrays):
    import torch
    from torch.utils.dlpack import from_dlpack

    return [from_dlpack(array.view(np.uint8)).view(getattr(torch, array.dtype.name)) for array in arrays]


def to_variables(x, dy, y, dx):
    x, dy = to_tensors(x, dy)
    return x.requires_grad_(), dy, None, None


def plain(case, xp):
    """Dropout in usual CuPy code."""
    special = importlib.import_module("cupyx.scipy.special" if xp.__name__ == "cupy" else "scipy.special")
    value, slope = (functools.partial(function, xp, special.erf) for function in FORMULAS[case.activation])
    keep_prob, rng = 1 - case.p, xp.random.RandomState(SEED)  # cupy.random's functions call a global RandomState

    def vjp(x, dy, y, dx):
        def backprop():
            return xp.where(keep, dy * slope(x) / keep_prob, 0).astype(x.dtype, copy=False)

        keep = rng.random_sample(x.shape, dtype=xp.float32) < keep_prob
        return xp.where(keep, value(x) / keep_prob, 0).astype(x.dtype, copy=False), backprop

    return vjp


def _cdf(erf, x):
    return 0.5 * (1 + erf(x * math.sqrt(0.5)))


def _sigmoid(xp, x):
    return 1 / (1 + xp.exp(-x))


FORMULAS = {
    "identity": (lambda xp, erf, x: x, lambda xp, erf, x: 1),
    "relu": (lambda xp, erf, x: xp.maximum(x, 0), lambda xp, erf, x: x > 0),
    "gelu": (
        lambda xp, erf, x: x * _cdf(erf, x),
        lambda xp, erf, x: _cdf(erf, x) + x * xp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi),
    ),
    "silu": (
        lambda xp, erf, x: x * _sigmoid(xp, x),
        lambda xp, erf, x: _sigmoid(xp, x) * (1 + x * (1 - _sigmoid(xp, x))),
    ),
}
"""Activation -> (value, derivative), functions of the namespace, erf and x."""

CUPY, COPY, EAGER, PLAIN = "gpudrop, CuPy", "copy", "PyTorch", "cupy.random"
CONTENDERS = {
    contender.name: contender
    for contender in (
        GpuContender(COPY, copy, same, graph="cupy", writes=True, moves=copied),
        GpuContender(CUPY, ours, our_mask, graph="cupy", writes=True),
        GpuContender(EAGER, pytorch, adapt=to_variables, graph="torch"),
        # No graph: cuRAND's generator and allocations from CuPy's pool are not reliable in a captured graph.
        GpuContender(PLAIN, plain),
    )
}
"""The contenders of `gpudrop bench` on a GPU."""
