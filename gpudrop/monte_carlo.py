"""Monte-Carlo dropout: how sure a network is, from the spread of what it gives under many masks."""

from typing import Any, NamedTuple

from gpudrop import backends
from gpudrop.dropout import within
from gpudrop.generator import Generator, Stream, check_rng
from gpudrop.random_bits import check_uint64


class MonteCarlo(NamedTuple):
    """What `mc_samples` returns.

    Attributes
    ----------
    mean, variance : array
        Over the samples, of the shape and kind that fn returns.
    """

    mean: Any
    variance: Any


def mc_samples(fn, x, n, rng=None, *, batch_size=None, first=0):
    """Call fn n times under different masks: the mean and the variance of what it returns.

    Source: Gal and Ghahramani, "Dropout as a Bayesian approximation: representing model uncertainty in deep
    learning", ICML 2016, equations 6 and 7 (without the noise of observations, 1 / tau).

    Parameters
    ----------
    fn : function
        fn(x) -> array. Its dropouts must be in training; whatever their generator is, they draw from one that
        belongs to the sample (a `Stream` still repeats its mask). Samples of the result go with those of x.
    x : array
        Its first axis counts the samples of the batch.
    n : int
        How many times fn is called on each; at least 1.
    rng : Generator or Stream, optional
        Derives a generator for each of the n calls: a Generator through `spawn`, using up one of its streams; a
        Stream as a Generator at that stream, so that the same Stream gives the same result. None is the default
        generator.
    batch_size : int, optional
        Call fn on so many samples at a time. It changes no mask.
    first : int
        The number of x's first sample in the whole batch. The mask of a sample depends on its number, the call
        of fn and the stream: parts of a batch give what they give in the whole of it, and so does a batch that
        has grown, or n.

    Returns
    -------
    MonteCarlo
        (mean, variance), of fn's own kind of array, in the dtype of its results; the variance is the mean of the
        squared deviations.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or fn's results can't be added up, as Numba's device arrays can't.

    Notes
    -----
    For a mask to depend on the number of a sample, samples must be on the array's first axis (`locked_dropout`:
    the first but for time). DropBlock's normalisation alone is of the part that it sees.

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
    n, first, rng = check_uint64("n", n), check_uint64("first", first), check_rng(rng)
    size = len(x) if batch_size is None else check_uint64("batch_size", batch_size)
    if n == 0 or (size == 0 and batch_size is not None):
        raise ValueError(f"{'n' if n == 0 else 'batch_size'} must be at least 1, got 0")
    if isinstance(rng, Stream):
        parent = Generator(rng.seed)
        parent.load_state_dict({"seed": rng.seed, "call": rng.call})
        rng = parent
    seeds = [child.state_dict()["seed"] for child in rng.spawn(n)]
    parts = [
        _moments(fn, x[start : start + size], seeds, first + start) for start in range(0, max(1, len(x)), max(1, size))
    ]
    if len(parts) == 1:
        return parts[0]
    return MonteCarlo(*(_concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _moments(fn, x, seeds, first):
    """Mean and variance over the seeds, in one pass: Welford, Technometrics 4 (1962)."""
    mean = squares = None
    for count, seed in enumerate(seeds, 1):
        with within(rng=Generator(seed), first=first):
            y = fn(x)
        if mean is None:
            try:
                mean, squares = y * 1, y * 0
            except TypeError:
                raise TypeError(f"fn must return arrays that can be added up, got {type(y).__name__}") from None
        else:
            deviation = y - mean
            mean = mean + deviation / count
            squares = squares + deviation * (y - mean)
    return MonteCarlo(mean, squares / len(seeds))


def _concatenate(arrays):
    library = backends.namespace(arrays[0])
    return library.concat(arrays) if hasattr(library, "concat") else library.concatenate(arrays)
