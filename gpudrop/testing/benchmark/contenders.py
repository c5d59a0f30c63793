"""The contenders of a benchmark. Each contender prepares a case and returns the function that is timed.

`prepare(case, x, dy)` returns a function without arguments. That function returns (y,), (y, dx) with the backward pass,
or (dx,) without the forward pass, which only gpudrop and the copies support. Some variants have more gradients than dx.
If a contender does not support the case, it raises Absent with the reason. `checks.py` checks the results.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import gpudrop
from gpudrop.testing.benchmark import ceilings, checks
from gpudrop.testing.benchmark.cases import DTYPES, LAYOUTS

SEED = 42


class Absent(Exception):
    """A contender does not support a case; the message is the reason."""


@dataclass(frozen=True)
class Contender:
    """An implementation that is measured; the module's docstring describes it."""

    name: str
    prepare: Callable
    check: Callable = checks.dropout
    to_numpy: Callable = np.asarray


def passes(case, forward, vjp):
    """Return the function of a case that is timed. If only the backward pass is, the forward pass has run once already.

    forward() returns (y,). vjp() returns y and backprop, and backprop() returns a tuple of the gradients.
    """
    if not case.backward:
        return forward

    def both():
        y, backprop = vjp()
        return y, *backprop()

    if case.forward:
        return both
    _, backprop = vjp()
    return backprop


def ours(case, x, dy, ready=False, save="auto"):
    y = np.zeros(x.shape, x.dtype, LAYOUTS[case.layout][1]) if ready else None
    dx = np.zeros_like(dy) if ready else None
    options = {"activation": case.activation, "bits": case.bits, "rng": gpudrop.Generator(SEED), "out": y}

    def forward():
        return (gpudrop.dropout(x, case.p, **options),)

    def vjp():
        result, backprop = gpudrop.dropout_vjp(x, case.p, save=save, **options)
        return result, lambda: (backprop(dy, out=dx),)

    return passes(case, forward, vjp)


def ceiling(case, x, dy, kernel=ceilings.plain, ready=True):
    # 16-bit floats are copied as integers: the number of bytes is the same.
    x, dy = (array.view(np.uint16) if array.itemsize == 2 else array for array in (x, dy))
    ready_y, ready_dx = (np.zeros_like(x), np.zeros_like(dy)) if ready else (None, None)
    ready_second = np.zeros_like(dy) if ready and case.is_product else None
    s = x.dtype.type(2)

    def forward():
        y = ready_y if ready else np.empty_like(x)
        kernel(x, dy if case.two_inputs else x, s, y)
        return (y,)

    def vjp():
        (y,) = forward()

        def backprop():
            dx = ready_dx if ready else np.empty_like(dy)
            if case.is_product:
                second = ready_second if ready else np.empty_like(dy)
                ceilings.plain_pair(dy, y, x, s, dx, second)
                return dx, second
            kernel(dy, y if case.reads_saved else dy, s, dx)
            return (dx,)

        return y, backprop

    return passes(case, forward, vjp)


def numpy_course(case, x, dy):
    """Dropout in NumPy, as in courses."""
    keep = 1 - case.p
    only(case, ("relu", "identity"), ("float32", "float64"))
    rand = np.random.RandomState(SEED).rand  # np.random.rand is this method of NumPy's global generator

    def relu(x):
        return np.maximum(x, 0) if case.activation == "relu" else x

    def forward():
        return ((rand(*x.shape) < keep) * relu(x) / keep,)

    def both():
        a = relu(x)
        mask = rand(*x.shape) < keep
        y = a * mask / keep
        dx = dy * mask / keep
        return y, dx * (x > 0) if case.activation == "relu" else dx

    return both if case.backward else forward


def numpy_tuned(case, x, dy):
    """Dropout in NumPy, tuned: a fast generator in single precision, and few passes."""
    only(case, ("relu", "identity"), ("float32", "float64"))
    rng, scale, zero = np.random.Generator(np.random.SFC64(SEED)), x.dtype.type(1 / (1 - case.p)), x.dtype.type(0)
    uniform, p = np.empty(x.shape, np.float32), np.float32(case.p)

    def forward():
        y = np.maximum(x, zero) if case.activation == "relu" else x.copy()
        y *= scale
        keep = rng.random(dtype=np.float32, out=uniform) >= p
        return np.where(keep, y, zero), keep

    def both():
        y, keep = forward()
        return y, np.where(np.greater(y, zero, out=keep) if case.activation == "relu" else keep, dy * scale, zero)

    return both if case.backward else lambda: forward()[:1]


def only(case, activations, dtypes):
    if case.activation not in activations or case.dtype not in dtypes:
        raise Absent(f"written for {' and '.join(activations)} in {' and '.join(dtypes)}")


def torch_for(case):
    try:
        import torch
    except ImportError:
        raise Absent("PyTorch is not installed") from None
    torch.set_num_threads(case.threads)
    return torch


TORCH = {
    "identity": lambda F, x: x,
    "relu": lambda F, x: F.relu(x),
    "gelu": lambda F, x: F.gelu(x),
    "gelu_tanh": lambda F, x: F.gelu(x, approximate="tanh"),
    "silu": lambda F, x: F.silu(x),
    "tanh": lambda F, x: F.tanh(x),
    "sigmoid": lambda F, x: F.sigmoid(x),
}


def torch_dropout(torch, case):
    """Return a function that computes y from x, in usual PyTorch code."""
    activation, functional = TORCH[case.activation], torch.nn.functional
    return lambda x: functional.dropout(activation(functional, x), case.p)


def pytorch(case, x, dy, made=torch_dropout):
    torch = torch_for(case)
    dropout = made(torch, case)
    x, dy = (to_torch(torch, array) for array in (x, dy))
    if not case.backward:
        return lambda: (dropout(x),)
    x.requires_grad_()

    def both():
        x.grad = None
        y = dropout(x)
        y.backward(dy)
        return y.detach(), x.grad

    return both


def to_torch(torch, array):
    if array.dtype == DTYPES["bfloat16"]:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def from_torch(tensor):
    if str(tensor.dtype) == "torch.bfloat16":
        import torch

        return tensor.view(torch.int16).numpy().view(DTYPES["bfloat16"])
    return tensor.numpy()


OURS, OURS_READY = "gpudrop", "gpudrop out="
PLAIN, PLAIN_READY = "copy", "copy out="
CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender(PLAIN, functools.partial(ceiling, ready=False), checks.copy),
        Contender(PLAIN_READY, ceiling, checks.copy),
        Contender(OURS, ours, functools.partial(checks.our_dropout, seed=SEED)),
        Contender(OURS_READY, functools.partial(ours, ready=True), functools.partial(checks.our_dropout, seed=SEED)),
        Contender("PyTorch", pytorch, to_numpy=from_torch),
        Contender("NumPy course", numpy_course),
        Contender("NumPy tuned", numpy_tuned),
    )
}
"""The contenders of `gpudrop bench` on the CPU. With out= they write to existing arrays, otherwise to new ones."""
