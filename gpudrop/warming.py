"""Compiling kernels before they are needed."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from gpudrop import backends
from gpudrop.dropout import keep_mask
from gpudrop.formulas.activations import ACTIVATIONS, find_activation, of_input
from gpudrop.generator import Stream
from gpudrop.hints import hint
from gpudrop.variants import FAMILY

NAMES = tuple(FAMILY)
"""The variants, by name."""


def warmup(
    activations: Sequence[str] | None = None,
    *,
    dtypes: Sequence[str] = ("float32",),
    bits: int | None = None,
    variant: str = "dropout",
    backend: str = "cpu",
    progress: Callable[[list[Any]], Iterable[Any]] = list,
) -> None:
    """Compile the kernels of a variant, forward and backward, with dropping and without, for contiguous arrays.

    The host's and CuPy's stay on disk, so that no later process waits for them; Numba's CUDA kernels serve the process.

    Parameters
    ----------
    activations : sequence of str, optional
        Without it, all of the table.
    dtypes : sequence of str
    bits : {8, 16, 32}, optional
        As many as the variant has by default without it.
    variant : str
        "dropout" or the name of another, "dropout2d", say.
    backend : {"cpu", "cupy_elementwise", "numba_cuda"}
    progress : callable, optional
        Gets the sequence of what is compiled and gives its items, as a progress bar does.

    Raises
    ------
    ValueError, TypeError
        If a name, a dtype or bits is unknown; what comes before it is compiled.
    RuntimeError
        If the backend can't serve on this machine.

    Examples
    --------
    >>> import gpudrop
    >>> gpudrop.warmup(["relu"], dtypes=["float32"])
    """
    import ml_dtypes  # noqa: F401  (gives NumPy the name bfloat16)

    if variant not in NAMES:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(sorted(NAMES))}{hint(variant, NAMES, {})}")
    rows = [find_activation(name) for name in (ACTIVATIONS if activations is None else activations)]
    kind, function = FAMILY[variant], FAMILY[variant].function
    options: dict[str, Any] = {"rng": Stream(0, 0), "backend": backend} | ({} if bits is None else {"bits": bits})
    for p in (0.5, 0):
        keep_mask(1, p, like=backends.of(backend, np.zeros(1, np.float32)), **options)
    # Prediction is another kernel than p = 0 where it mixes, as zoneout's does.
    ways = ((0.5, True), (0, True), (0.5, False))
    for row, dtype, (p, training) in progress([(row, dtype, way) for row in rows for dtype in dtypes for way in ways]):
        x = backends.of(backend, np.zeros((8,) * kind.ndim, dtype))
        others = (x,) * (len(kind.inputs) - 1)
        # The backward pass that goes by x is for converted PyTorch models.
        by_input = [of_input(row)] if p and training and row.slope_of == "output" else []
        for activation in (row, *by_input):
            y, backprop = function.vjp(x, *others, p, activation=activation, training=training, **options)
            backprop(y)
