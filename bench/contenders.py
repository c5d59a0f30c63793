"""The contenders on the CPU: those of `gpudrop bench`, and those that only the repository has."""

import functools
import os
from dataclasses import replace

import numpy as np

from bench import ceilings
from gpudrop.testing.benchmark import checks
from gpudrop.testing.benchmark.contenders import CONTENDERS as SHARED
from gpudrop.testing.benchmark.contenders import (
    OURS,
    OURS_READY,
    PLAIN,
    PLAIN_READY,
    SEED,
    Absent,
    Contender,
    ceiling,
    from_torch,
    only,
    ours,
    pytorch,
    torch_dropout,
)

CACHED = 1 << 26  # bytes; a smaller copy may stay in the last-level cache


def of(case):
    """The contenders of a case. The cases of `bench.family` have their own contenders."""
    found = [CONTENDERS[name] for name in SECTIONS[case.section]]
    if case.section == "memory":  # a triad moves as many bytes as a backward pass that reads an array
        found[0] = replace(found[0], prepare=CONTENDERS[SAVES_ARRAY].prepare)
    return found


def streaming(case, x, dy):
    if case.bytes < CACHED:
        raise Absent("the arrays may fit in a cache")
    return ceiling(case, x, dy, kernel=ceilings.streaming)


def compiled_dropout(torch, case):
    torch._dynamo.reset()
    # Without fullgraph, torch.compile may fall back to uncompiled code without a message.
    return torch.compile(torch_dropout(torch, case), dynamic=False, fullgraph=True)


def numpy_blocked(case, x, dy):
    """The fastest NumPy code that we know: raw 16-bit fields, in blocks that fit in the L2 cache."""
    only(case, ("relu", "identity"), ("float32", "float64"))
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
        raise Absent("JAX computes in float32 unless jax_enable_x64 is set for the whole process")
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


STREAMING_READY, SAVES_ARRAY, SAVES_BITS = "streaming copy out=", "array saved out=", "bits saved out="
CONTENDERS = {
    contender.name: contender
    for contender in (
        *(SHARED[name] for name in (OURS, OURS_READY, PLAIN, PLAIN_READY)),
        Contender(STREAMING_READY, streaming, checks.copy),
        SHARED["PyTorch"],
        Contender("torch.compile", functools.partial(pytorch, made=compiled_dropout), to_numpy=from_torch),
        Contender("JAX threefry", functools.partial(jax_jitted, keys="threefry2x32")),
        Contender("JAX rbg", functools.partial(jax_jitted, keys="rbg")),
        SHARED["NumPy course"],
        SHARED["NumPy tuned"],
        Contender("NumPy blocked", numpy_blocked),
        *(
            replace(SHARED[OURS_READY], name=name, prepare=functools.partial(ours, ready=True, save=save))
            for name, save in ((SAVES_ARRAY, "output"), (SAVES_BITS, "bits"))
        ),
    )
}
BASE = (OURS, OURS_READY, PLAIN, PLAIN_READY, STREAMING_READY, "PyTorch")
SECTIONS = {
    "sizes": tuple(name for name in CONTENDERS if name not in (SAVES_ARRAY, SAVES_BITS)),
    "kinds": BASE,
    "one thread": (*BASE, "NumPy course", "NumPy tuned", "NumPy blocked"),
    "memory": (OURS_READY, PLAIN_READY, STREAMING_READY),
    "in the cache": (OURS_READY, PLAIN_READY),
    "layouts": (OURS_READY,),
    "saved for backward": (OURS_READY, SAVES_ARRAY, SAVES_BITS),
}
"""The contenders of each section."""
