"""Monte-Carlo dropout: how sure a network is, from the spread of what it gives under many masks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gpudrop import arrays
from gpudrop.checks import check_uint64
from gpudrop.context import Changes, current, rng_of
from gpudrop.generator import Generator, RngLike, spawned_seeds


class MonteCarlo(NamedTuple):
    """What `mc_samples` returns.

    Attributes
    ----------
    mean, variance : array
        Over the samples, of the shape and kind that fn returns.
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
    """Call fn n times under different masks: the mean and the variance of what it returns.

    Source: Gal and Ghahramani, "Dropout as a Bayesian approximation: representing model uncertainty in deep
    learning", ICML 2016, equations 6 and 7 (without the noise of observations, 1 / tau).

    Parameters
    ----------
    fn : function
        fn(x) -> array, whose first axis goes with x's. Its dropouts must be in training; whatever their generator
        is, NumPy's too, they draw from one that belongs to the call. A `Stream` still repeats its mask, and so does an
        int or a SeedSequence that fn gives to a function.
    x : array
        Its first axis counts the samples of the batch.
    n : int
        How many times fn is called on each; at least 1.
    rng : Generator, Stream, int, NumPy's Generator, BitGenerator or SeedSequence, optional
        Derives a generator for each of the n calls: a Generator through `spawn`, using up one of its streams; a
        Stream as a Generator at that stream, so that the same Stream gives the same result, and so does the same int.
        None is the default generator. The notes of `Generator` have the whole rule.
    batch_size : int, optional
        Call fn on so many samples at a time.
    first : int
        The number of x's first sample in the whole batch. The mask of a sample depends on its number, the call
        of fn and the stream: parts of a batch give what they give in the whole of it, and so does a batch that
        has grown, or n.

    Returns
    -------
    MonteCarlo
        (mean, variance), of fn's own kind of array, in its dtype but float32 at least (PyTorch's tensors: in their
        own); the variance is the mean of the squared deviations.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or fn's results can't be added up, as Numba's device arrays can't.

    Notes
    -----
    An array in fn is taken to have samples on its first axis (`locked_dropout`: on the first but for time). One that
    has none, or has them folded into another axis, gets other masks in parts than in the whole, unless it says so:
    `drop_connect` and `embedding_dropout` for weights and tables, a mask_shape that begins with 1 for what samples
    share. In a mask_shape the samples' own axis is None, not a number. DropBlock's normalisation is of the part that
    it sees. Threads that fn starts don't know of any of this, unless they run in a copy of its context
    (`contextvars.copy_context().run`). With PyTorch's parameters in fn, wrap the call in `torch.no_grad()`.

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
    n, first, source = check_uint64("n", n), check_uint64("first", first) + current().first, rng_of(rng, current())
    if not callable(fn):
        raise TypeError(f"fn must be a function of x, got {type(fn).__name__}")
    if n == 0:
        raise ValueError("n must be at least 1, got 0")
    if not getattr(x, "shape", ()):
        raise ValueError("x must have a first axis, that of samples")
    size = max(1, len(x)) if batch_size is None else check_uint64("batch_size", batch_size)
    if size == 0:
        raise ValueError("batch_size must be at least 1, got 0")
    seeds = spawned_seeds(source, n)
    starts = range(0, max(1, len(x)), size)
    parts = [_moments(fn, x[start : start + size], seeds, first + start) for start in starts]
    if len(parts) == 1:
        return parts[0]
    if any(mean.shape[:1] != x[start : start + size].shape[:1] for start, (mean, _) in zip(starts, parts, strict=True)):
        raise ValueError("fn must return an array whose first axis goes with x's, for parts of x to be put together")
    return MonteCarlo(*(_concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _moments(fn: Callable[[Any], Any], x: Any, seeds: list[int], first: int) -> MonteCarlo:
    """Mean and variance over the seeds, in one pass, after Welford, Technometrics 4 (1962)."""
    mean = variance = None
    for count, seed in enumerate(seeds, 1):
        with Changes(rng=Generator(seed), first=first):
            y = fn(x)
        with np.errstate(invalid="ignore", over="ignore"):  # infinite results show in the moments
            try:
                y = y * np.float32(1)  # 16-bit numbers would lose the digits that are summed
                y.shape  # noqa: B018  (a number or a list has none)
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
