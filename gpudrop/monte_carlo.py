"""Monte-Carlo dropout: the uncertainty of a prediction, from the spread of a network's outputs under many masks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gpudrop import arrays
from gpudrop.checks import check_count, check_uint64
from gpudrop.context import Changes, current, rng_of
from gpudrop.generator import Generator, RngLike, spawned_seeds


class MonteCarlo(NamedTuple):
    """The result of `mc_samples`.

    Attributes
    ----------
    mean, variance : array
        The mean and the variance over the calls of fn, with the shape and kind of fn's results.
    """

    mean: Any
    variance: Any


def mc_samples(
    fn: Callable[[Any], Any],
    x: Any,
    n: int,
    rng: RngLike = None,
    *,
    batch_size: int | None = None,
    first: int = 0,
) -> MonteCarlo:
    """Call fn n times under different masks, and return the mean and the variance of its results.

    Source: Gal and Ghahramani, "Dropout as a Bayesian approximation: representing model uncertainty in deep
    learning", ICML 2016, equations 6 and 7 (without the observation noise, 1 / tau).

    Parameters
    ----------
    fn : function
        fn(x) -> array with samples on its first axis, as in x. The dropouts in fn must be in training mode. They draw
        from a generator that `mc_samples` creates for the call, and their own generators, NumPy's too, are not used. A
        `Stream` still repeats its mask. An int or a SeedSequence that fn passes to a function does too.
    x : array
        The batch. Its first axis counts samples.
    n : int
        The number of calls of fn for each sample, at least 1.
    rng : Generator, Stream, int, NumPy's Generator, BitGenerator or SeedSequence, optional
        The source of one generator for each of the n calls. A Generator spawns them (`Generator.spawn`), which uses
        one of its streams. A Stream spawns them as a Generator at that stream would. The same Stream or int always
        returns the same result. None uses the default generator. The notes of `Generator` describe every type.
    batch_size : int, optional
        The number of samples per call of fn. By default it is the whole batch.
    first : int
        The index of the first sample of x in the whole batch. The mask of a sample depends on its index, on the number
        of the call and on the stream. A part of a batch therefore returns the same results as the whole batch. A
        larger batch or a larger n does not change the masks of earlier samples and calls.

    Returns
    -------
    MonteCarlo
        (mean, variance), arrays of the kind that fn returns. Their dtype is that of fn's result, but at least float32;
        PyTorch tensors keep their dtype. The variance is the mean of the squared deviations.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, or if fn's results do not support addition. Numba's device arrays do not.

    Notes
    -----
    Each array in fn must have samples on its first axis. For `locked_dropout` it is the first axis that is not time.
    For other arrays a part of a batch draws other masks than the whole batch, with these exceptions. `drop_connect`
    and `embedding_dropout` apply to weights and tables. A mask_shape that begins with 1 shares the mask between
    samples. In a mask_shape, the axis of samples must be None, not a number.

    The normalisation of DropBlock depends on the part that is passed to fn. Threads that fn starts must run in a copy
    of the context (`contextvars.copy_context().run`), or they use their own generators. If fn has PyTorch parameters,
    call `mc_samples` under `torch.no_grad()`.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> x = np.ones((3, 1000), np.float32)
    >>> def network(x):
    ...     return gpudrop.dropout(x, 0.5).mean(axis=1)
    >>> mean, variance = gpudrop.mc_samples(network, x, 200, gpudrop.Generator(0))
    >>> mean.round(1), bool((abs(variance - 0.001) < 0.0005).all())
    (array([1., 1., 1.], dtype=float32), True)
    >>> part = gpudrop.mc_samples(network, x[2:], 200, gpudrop.Generator(0), first=2)
    >>> bool(part.mean == mean[2])
    True
    """
    n, first, source = check_count("n", n), check_uint64("first", first) + current().first, rng_of(rng, current())
    if not callable(fn):
        raise TypeError(f"fn must be a function of x, got {type(fn).__name__}")
    if not getattr(x, "shape", ()):
        raise ValueError(f"x must be an array whose first axis counts samples, got {type(x).__name__} without axes")
    size = max(1, len(x)) if batch_size is None else check_count("batch_size", batch_size)
    seeds = spawned_seeds(source, n)
    starts = range(0, max(1, len(x)), size)
    parts = [_moments(fn, x[start : start + size], seeds, first + start) for start in starts]
    if len(parts) == 1:
        return parts[0]
    if any(mean.shape[:1] != x[start : start + size].shape[:1] for start, (mean, _) in zip(starts, parts, strict=True)):
        raise ValueError("with batch_size, fn must return an array whose first axis is as long as x itself")
    return MonteCarlo(*(_concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _moments(fn: Callable[[Any], Any], x: Any, seeds: list[int], first: int) -> MonteCarlo:
    """Return the mean and the variance over the seeds, in one pass by Welford's method, Technometrics 4 (1962)."""
    mean = variance = None
    for count, seed in enumerate(seeds, 1):
        with Changes(rng=Generator(seed), first=first):
            y = fn(x)
        with np.errstate(invalid="ignore", over="ignore"):  # no warning: infinite results make the moments infinite
            try:
                y = y * np.float32(1)  # to float32 at least: sums in 16 bits would be too inexact
                y.shape  # noqa: B018  (a number or a list has no shape)
            except (AttributeError, TypeError):
                raise TypeError(f"fn must return arrays that can be added up, got {type(y).__name__}") from None
            if mean is None:
                mean, variance = y, y * 0
            else:
                deviation = y - mean
                mean = mean + deviation / count
                variance = variance + (deviation * (y - mean) - variance) / count
    return MonteCarlo(mean, variance)


def _concatenate(parts: tuple[Any, ...]) -> Any:
    library = arrays.namespace(parts[0])
    return library.concat(parts) if hasattr(library, "concat") else library.concatenate(parts)
