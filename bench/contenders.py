"""Who is measured. Each contender prepares a case and returns the function that is timed.

`prepare(case, x, dy)` returns a function without arguments that returns (y,), or (y, dx) with the backward
pass; or raises Absent with the reason why it takes no part. `checks.py` looks at what the function returns.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import gpudrop
from bench import ceilings, checks
from bench.cases import DTYPES

SEED = 42
CACHED = 1 << 26  # bytes: a copy of less may stay in a last-level cache


class Absent(Exception):
    pass


@dataclass(frozen=True)
class Contender:
    name: str
    prepare: Callable
    check: Callable = checks.dropout
    to_numpy: Callable = np.asarray


def of(case):
    """The contenders of a case, but for those of `bench.family`."""
    return [CONTENDERS[name] for name in SECTIONS[case.section]]


def ours(case, x, dy, ready=False):
    y, dx = (np.zeros_like(x), np.zeros_like(dy)) if ready else (None, None)
    options = {"activation": case.activation, "rng": gpudrop.Generator(SEED), "out": y}

    def forward():
        return (gpudrop.dropout(x, case.p, **options),)

    def both():
        result, backprop = gpudrop.dropout_vjp(x, case.p, **options)
        return result, backprop(dy, out=dx)

    return both if case.backward else forward


def ceiling(case, x, dy, kernel, ready=True):
    if kernel is ceilings.streaming and case.bytes < CACHED:
        raise Absent("the arrays may lie in a cache")
    # The same bytes: 16-bit floats as integers.
    x, dy = (array.view(np.uint16) if array.itemsize == 2 else array for array in (x, dy))
    ready_y, ready_dx = (np.zeros_like(x), np.zeros_like(dy)) if ready else (None, None)
    s = x.dtype.type(2)

    def forward():
        y = ready_y if ready else np.empty_like(x)
        kernel(x, dy if case.two_inputs else x, s, y)
        return (y,)

    def both():
        (y,) = forward()
        dx = ready_dx if ready else np.empty_like(dy)
        kernel(dy, y if case.reads_saved else dy, s, dx)
        return y, dx

    return both if case.backward else forward


def numpy_course(case, x, dy):
    """As courses write it."""
    keep = 1 - case.p
    _only(case, ("relu", "identity"), ("float32", "float64"))

    def relu(x):
        return np.maximum(x, 0) if case.activation == "relu" else x

    def forward():
        return ((np.random.rand(*x.shape) < keep) * relu(x) / keep,)  # noqa: NPY002

    def both():
        a = relu(x)
        mask = np.random.rand(*x.shape) < keep  # noqa: NPY002
        y = a * mask / keep
        dx = dy * mask / keep
        return y, dx * (x > 0) if case.activation == "relu" else dx

    return both if case.backward else forward


def numpy_tuned(case, x, dy):
    """A quick generator in single precision, few passes."""
    _only(case, ("relu", "identity"), ("float32", "float64"))
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


def numpy_blocked(case, x, dy):
    """The fastest that is known here: raw 16-bit fields, block by block in the second-level cache."""
    _only(case, ("relu", "identity"), ("float32", "float64"))
    bits, scale, zero = np.random.SFC64(SEED), x.dtype.type(1 / (1 - case.p)), x.dtype.type(0)
    threshold, block = np.uint16(round(case.p * 2**16)), 1 << 14
    blocks = [slice(start, min(start + block, x.size)) for start in range(0, x.size, block)]

    def call():
        y, dx = np.empty_like(x), np.empty_like(dy) if case.backward else None
        for part in blocks:
            t, n = y[part], part.stop - part.start
            keep = bits.random_raw(-(-n // 4)).view(np.uint16)[:n] >= threshold
            np.multiply(x[part], scale, out=t)
            if case.activation == "relu":
                np.maximum(t, zero, out=t)
            t *= keep
            if case.backward:
                if case.activation == "relu":
                    np.greater(t, zero, out=keep)
                np.multiply(dy[part], scale, out=dx[part])
                dx[part] *= keep
        return (y, dx) if case.backward else (y,)

    return call


def _only(case, activations, dtypes):
    if case.activation not in activations or case.dtype not in dtypes:
        raise Absent(f"written for {' and '.join(activations)} in {' and '.join(dtypes)}")


def torch_for(case):
    try:
        import torch
    except ImportError:
        raise Absent("PyTorch is not installed") from None
    torch.manual_seed(SEED)
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


def torch_dropout(torch, case, compiled):
    """y as a function of x, as PyTorch's users write it."""
    activation, functional = TORCH[case.activation], torch.nn.functional

    def dropout(x):
        return functional.dropout(activation(functional, x), case.p)

    if not compiled:
        return dropout
    torch._dynamo.reset()
    return torch.compile(dropout, dynamic=False, fullgraph=True)  # or it may give up, and run as it is, in silence


def pytorch(case, x, dy, compiled=False):
    torch = torch_for(case)
    dropout = torch_dropout(torch, case, compiled)
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


JAX = {
    "identity": lambda nn, x: x,
    "relu": lambda nn, x: nn.relu(x),
    "gelu": lambda nn, x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda nn, x: nn.gelu(x),
    "silu": lambda nn, x: nn.silu(x),
    "tanh": lambda nn, x: nn.tanh(x),
    "sigmoid": lambda nn, x: nn.sigmoid(x),
}


def jax_jitted(case, x, dy, keys):
    try:
        import jax
    except ImportError:
        raise Absent("JAX is not installed") from None
    jnp = jax.numpy
    if case.dtype == "float64":
        raise Absent("JAX computes in float32 unless told otherwise for the whole process")
    if case.threads != os.cpu_count():
        raise Absent("XLA's threads can't be limited within a process")
    activation = functools.partial(JAX[case.activation], jax.nn)
    x, dy, key = jnp.asarray(x), jnp.asarray(dy), jax.random.key(SEED, impl=keys)
    scale = 1 / (1 - case.p)

    def dropout(x, key):
        return jnp.where(jax.random.bernoulli(key, 1 - case.p, x.shape), activation(x) * scale, 0).astype(x.dtype)

    def vjp(x, dy, key):
        y, backprop = jax.vjp(lambda x: dropout(x, key), x)
        return y, *backprop(dy)

    forward, both = jax.jit(dropout), jax.jit(vjp)
    if case.backward:
        return lambda: jax.block_until_ready(both(x, dy, key))
    return lambda: (jax.block_until_ready(forward(x, key)),)


OURS, OURS_READY = "gpudrop", "gpudrop out="
PLAIN, PLAIN_READY, STREAMING_READY = "copy", "copy out=", "streaming copy out="
CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender(OURS, ours, functools.partial(checks.our_dropout, seed=SEED)),
        Contender(OURS_READY, functools.partial(ours, ready=True), functools.partial(checks.our_dropout, seed=SEED)),
        Contender(PLAIN, functools.partial(ceiling, kernel=ceilings.plain, ready=False), checks.copy),
        Contender(PLAIN_READY, functools.partial(ceiling, kernel=ceilings.plain), checks.copy),
        Contender(STREAMING_READY, functools.partial(ceiling, kernel=ceilings.streaming), checks.copy),
        Contender("PyTorch", pytorch, to_numpy=from_torch),
        Contender("torch.compile", functools.partial(pytorch, compiled=True), to_numpy=from_torch),
        Contender("JAX threefry", functools.partial(jax_jitted, keys="threefry2x32")),
        Contender("JAX rbg", functools.partial(jax_jitted, keys="rbg")),
        Contender("NumPy course", numpy_course),
        Contender("NumPy tuned", numpy_tuned),
        Contender("NumPy blocked", numpy_blocked),
    )
}
BASE = (OURS, OURS_READY, PLAIN, PLAIN_READY, STREAMING_READY, "PyTorch")
SECTIONS = {
    "sizes": tuple(CONTENDERS),
    "kinds": BASE,
    "one thread": (*BASE, "NumPy course", "NumPy tuned", "NumPy blocked"),
}
"""Who takes part in which section. With out= results go to arrays that are there, else to new ones."""
