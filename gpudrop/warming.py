"""Compiling kernels before they are needed."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from gpudrop import backends
from gpudrop.dropout import keep_mask
from gpudrop.formulas.activations import ACTIVATIONS, find_activation
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
    rows: Sequence[str] = (),
    backend: str = "cpu",
    progress: Callable[[list[Any]], Iterable[Any]] = list,
) -> None:
    """Compile the kernels of a variant for contiguous arrays: forward and backward, with and without dropping.

    Kernels of the CPU and of CuPy are cached on disk, and later processes load them. Numba's CUDA kernels are compiled
    for this process only.

    Parameters
    ----------
    activations : sequence of str, optional
        The activations to compile; by default, all of the table.
    dtypes : sequence of str
    bits : {8, 16, 32}, optional
        Random bits per element; by default, those of the variant.
    variant : str
        "dropout" or the name of another variant, for example "dropout2d".
    rows : sequence of str
        The optional array arguments of the calls: "bias", "gain". By default, the calls have none. These arrays and a
        residual have the dtype of x. Kernels for other dtypes and for a packed gate are compiled at the first call.
    backend : {"cpu", "cupy_elementwise", "numba_cuda"}
    progress : callable, optional
        Takes the list of the kernels to compile and yields its items, as a progress bar does.

    Raises
    ------
    ValueError, TypeError
        If a name, a dtype or bits is unknown. Kernels that come before it are compiled.
    RuntimeError
        If the backend is not available on this machine.

    Examples
    --------
    >>> import gpudrop
    >>> gpudrop.warmup(["relu"], dtypes=["float32"])
    """
    import ml_dtypes  # noqa: F401  (registers the name bfloat16 with NumPy)

    if variant not in NAMES:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(sorted(NAMES))}{hint(variant, NAMES, {})}")
    for argument, names in (("activations", activations), ("dtypes", dtypes), ("rows", rows)):
        if isinstance(names, str):
            raise TypeError(f"{argument} must be a list of names, got {names!r}; pass [{names!r}]")
    table = [find_activation(name) for name in (ACTIVATIONS if activations is None else activations)]
    kind, function = FAMILY[variant], FAMILY[variant].function
    for name in rows:
        if name not in kind.rows:
            raise ValueError(f"unknown row {name!r} of {variant}; known: {', '.join(kind.rows) or 'none'}")
    options: dict[str, Any] = {"rng": Stream(0, 0), "backend": backend} | ({} if bits is None else {"bits": bits})
    for p in (0.5, 0):
        keep_mask(1, p, like=backends.of(backend, np.zeros(1, np.float32)), packed=True, **options)
    # Prediction may need another kernel than p = 0: zoneout's prediction mixes two arrays.
    ways = ((0.5, True), (0, True), (0.5, False))
    for row, dtype, (p, training) in progress([(row, dtype, way) for row in table for dtype in dtypes for way in ways]):
        x = backends.of(backend, np.zeros((8,) * kind.ndim, dtype))
        arrays = dict.fromkeys(kind.inputs[1:], x) | {name: backends.of(backend, np.zeros(8, dtype)) for name in rows}
        for save in ("output", *["bits"] * (row.slopes is not None and not arrays.keys() & {"gain", "value"})):
            y, backprop = function.vjp(
                x, **{kind.strength: p}, activation=row, training=training, save=save, **arrays, **options
            )
            backprop(y)
