"""Cases and contenders of the family: each variant, and PyTorch's function for it or the code that people write.

Every contender is checked over all elements before it is timed. gpudrop's results are compared with the reference, and
its masks must have the same bits. PyTorch's results must have the properties that define the variant, under any mask.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

import gpudrop
from gpudrop.testing import reference
from gpudrop.testing.benchmark.cases import Case
from gpudrop.testing.benchmark.checks import OURS as TOLERANCE
from gpudrop.testing.benchmark.checks import SIGMAS, Wrong
from gpudrop.testing.benchmark.contenders import CONTENDERS as SHARED
from gpudrop.testing.benchmark.contenders import (
    OURS,
    OURS_READY,
    PLAIN,
    PLAIN_READY,
    SEED,
    Contender,
    from_torch,
    to_torch,
    torch_for,
)
from gpudrop.variants import FAMILY

SIZE = 2**24  # elements


@dataclass(frozen=True)
class Row:
    """A variant: the shape of its input without the first axis, and its computation in PyTorch.

    peer(torch, x, p, other) -> y is that computation, where other is the second input. kind selects the check. For kind
    "mask", mask has 1 for each axis along which the mask is broadcast, and None for each other axis.
    """

    rest: tuple
    peer: Callable
    kind: str = "mask"
    mask: tuple | None = None


def timm_drop_path(torch, x, p, previous):
    mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - p)
    return x * mask.div_(1 - p)


def multiplied_by_mask(*shape):
    """Multiply by a mask, as AWD-LSTM does; None in the shape means the size of x."""

    def peer(torch, x, p, previous):
        own = [n if m is None else m for n, m in zip(x.shape, shape, strict=True)]
        return x * x.new_empty(own).bernoulli_(1 - p).div_(1 - p)

    return peer


def timm_dropblock(torch, x, p, previous, block=7):
    """timm's formula since 1.0.20: seeds at every position, even where the border cuts off the block.

    By default timm draws one mask for all channels of a sample. Here each channel has its own (couple_channels=False),
    as in gpudrop, so that both sides draw the same number of random numbers.
    """
    sizes = x.shape[2:]
    gamma = p * math.prod(sizes) / block ** len(sizes) / math.prod(n - block + 1 for n in sizes)
    seeds = torch.empty_like(x).bernoulli_(gamma)
    pool = torch.nn.functional.max_pool1d if len(sizes) == 1 else torch.nn.functional.max_pool2d
    mask = 1 - pool(seeds, block, stride=1, padding=block // 2)
    return x * mask * (mask.numel() / mask.sum().add(1e-7))


def half_width(p):
    return math.sqrt(3 * p / (1 - p))


ROWS = {
    "dropout1d": Row((256, 1024), lambda t, x, p, _: t.nn.functional.dropout1d(x, p), mask=(None, None, 1)),
    "dropout2d": Row((256, 32, 32), lambda t, x, p, _: t.nn.functional.dropout2d(x, p), mask=(None, None, 1, 1)),
    "dropout3d": Row((32, 16, 32, 32), lambda t, x, p, _: t.nn.functional.dropout3d(x, p), mask=(None, None, 1, 1, 1)),
    "drop_path": Row((256, 16, 16), timm_drop_path, mask=(None, 1, 1, 1)),
    "locked_dropout": Row((128, 1024), multiplied_by_mask(1, None, None), mask=(1, None, None)),
    "embedding_dropout": Row((512,), multiplied_by_mask(None, 1), mask=(None, 1)),
    "token_dropout": Row((128, 512), multiplied_by_mask(None, None, 1), mask=(None, None, 1)),
    "consistent_dropout": Row((2**16,), multiplied_by_mask(1, None), mask=(1, None)),
    "drop_connect": Row((4096,), lambda t, x, p, _: t.nn.functional.dropout(x, p), mask=(None, None)),
    "dropblock1d": Row((256, 1024), timm_dropblock, "blocks"),
    "dropblock2d": Row((256, 32, 32), timm_dropblock, "blocks"),
    "alpha_dropout": Row((4096,), lambda t, x, p, _: t.nn.functional.alpha_dropout(x, p, training=True), "alpha"),
    "feature_alpha_dropout": Row(
        (256, 32, 32), lambda t, x, p, _: t.nn.functional.feature_alpha_dropout(x, p, training=True), "alpha"
    ),
    "gaussian_dropout": Row((4096,), lambda t, x, p, _: x * (1 + math.sqrt(p / (1 - p)) * t.randn_like(x)), "factor"),
    "uniform_dropout": Row(
        (4096,), lambda t, x, p, _: x * t.empty_like(x).uniform_(1 - half_width(p), 1 + half_width(p)), "factor"
    ),
    "gaussian_noise": Row((4096,), lambda t, x, p, _: x + p * t.randn_like(x), "term"),
    "dropout_add": Row((4096,), lambda t, x, p, residual: residual + t.nn.functional.dropout(x, p), "sum"),
    "dropout_glu": Row(
        (4096,), lambda t, x, p, value: t.nn.functional.dropout(t.nn.functional.silu(x) * value, p), "product"
    ),
    "zoneout": Row((4096,), lambda t, x, p, previous: t.where(t.rand_like(x) < p, previous, x), "choice"),
}


def family_cases(threads, quick):
    """The cases of a run: every variant, once forward only, and once forward and backward."""
    size = SIZE // 16 if quick else SIZE
    return [
        Case("family", "identity", size=size, backward=backward, threads=threads, variant=name)
        for name in ROWS
        for backward in (False, True)
    ]


def _shaped(case, *arrays):
    rest = ROWS[case.variant].rest
    return [array.reshape(-1, *rest) for array in arrays]


def second_input(x):
    """The second input. It differs from dy, because a backward pass may read both."""
    return x[::-1].copy()


def ours(case, x, dy, ready=False):
    variant = getattr(gpudrop, case.variant)
    x, dy = _shaped(case, x, dy)
    y, dx = (np.zeros_like(x), np.zeros_like(dy)) if ready else (None, None)
    inputs = (x, second_input(x)) if case.two_inputs else (x,)
    options = {"rng": gpudrop.Generator(SEED), "out": y}

    def forward():
        return (variant(*inputs, case.p, **options),)

    def both():
        result, backprop = variant.vjp(*inputs, case.p, **options)
        gradients = backprop(dy, out=dx)
        return (result, *_present(gradients)) if case.two_inputs else (result, gradients)

    return both if case.backward else forward


def _present(gradients):
    return tuple(gradient for gradient in gradients if gradient is not None)


def pytorch(case, x, dy):
    torch, row = torch_for(case), ROWS[case.variant]
    x, dy = (to_torch(torch, array) for array in _shaped(case, x, dy))
    previous = x.flip(0) if case.two_inputs else None
    if not case.backward:
        return lambda: (row.peer(torch, x, case.p, previous),)
    inputs = [x.requires_grad_()] + ([previous.requires_grad_()] if case.two_inputs else [])

    def both():
        for array in inputs:
            array.grad = None
        y = row.peer(torch, x, case.p, previous)
        y.backward(dy)
        return (y.detach(), *(array.grad for array in inputs))

    return both


# Checks of the results


def check_ours(case, x, dy, results):
    """Compare with the reference's values within rounding, and so with its mask bit for bit."""
    x, dy = _shaped(case, x, dy)
    _count(case, results)
    if case.two_inputs:
        options = {"seed": SEED, "call": 0, "activation": FAMILY[case.variant].activation or "identity"}
        y, backprop = getattr(reference, case.variant)(x, second_input(x), case.p, **options)
    else:
        y, backprop = reference.FAMILY[case.variant](x, case.p, SEED, 0)
    gradients = () if not case.backward else _present(backprop(dy)) if case.two_inputs else (backprop(dy),)
    _equal(results, (y, *gradients), TOLERANCE[case.dtype])


def check_peer(case, x, dy, results):
    x, dy = _shaped(case, x, dy)
    _count(case, results)
    y, gradients = results[0], results[1:]
    KINDS[ROWS[case.variant].kind](case, x.astype(np.float64), dy.astype(np.float64), y, gradients)


def _count(case, results):
    wanted = 1 + case.backward * (1 + case.two_inputs)
    if len(results) != wanted:
        raise Wrong(f"returned {len(results)} arrays")
    if not all(np.isfinite(result).all() for result in results):
        raise Wrong("a result is not finite")


def _equal(got, want, tolerance=1e-5):
    for name, a, b in zip(("y", "dx", "the second gradient"), got, want, strict=False):
        far = ~np.isclose(a, b, rtol=tolerance, atol=4 * tolerance)
        if far.any():
            index = tuple(map(int, np.argwhere(far)[0]))
            raise Wrong(f"{name}{list(index)} is {a[index]:.6g}, not {b[index]:.6g}")


def _rate(kept, p):
    n = kept.size
    if abs(kept.sum() - n * (1 - p)) > SIGMAS * math.sqrt(n * p * (1 - p)) + n * 2.0**-17:
        raise Wrong(f"{kept.mean():.4f} of the elements are kept, not {1 - p:.4f}")


def _nonzero(y, gradients):
    """The kept elements. x is 0 at some elements, but dy is rarely 0 at the same ones."""
    return np.any([array != 0 for array in (y, *gradients)], axis=0)


def _mask(case, x, dy, y, gradients):
    shared = tuple(i for i, m in enumerate(ROWS[case.variant].mask) if m == 1)
    kept = _nonzero(y, gradients).any(axis=shared, keepdims=True)
    _rate(kept, case.p)
    scale = 1 / (1 - case.p)
    _equal((y, *gradients), [np.where(kept, array * scale, 0) for array in (x, dy)])


def _of_all_seeds(size, p, block=7):
    """The probability that each position is kept if every position may be a seed, as in timm's formula."""
    gamma = p * math.prod(size) / block ** len(size) / math.prod(n - block + 1 for n in size)
    covering = np.ones((), int)
    for n in size:
        i = np.arange(n)
        covering = np.multiply.outer(covering, np.minimum(i + block // 2, n - 1) - np.maximum(i - block // 2, 0) + 1)
    return (1 - gamma) ** covering


def _blocks(case, x, dy, y, gradients):
    kept, size = _nonzero(y, gradients), x.shape[2:]
    keep = float(np.mean(_of_all_seeds(size, case.p)))
    if abs(kept.mean() - keep) > 0.01:
        raise Wrong(f"{kept.mean():.4f} of the elements are kept, not {keep:.4f}")
    axes = tuple(range(2, x.ndim))
    some = kept[:2]
    windows = np.lib.stride_tricks.sliding_window_view(~some, (7,) * len(size), axes)
    if windows.all(axis=tuple(range(x.ndim, windows.ndim))).any() != (~some).any():
        raise Wrong("the dropped elements do not form blocks")
    scale = kept.size / kept.sum()
    _equal((y, *gradients), [np.where(kept, array * scale, 0) for array in (x, dy)])


def _alpha(case, x, dy, y, gradients):
    p, low = case.p, -reference.SELU * reference.ALPHA
    a = ((1 - p) * (1 + p * low**2)) ** -0.5
    b = -a * p * low
    kept = np.isclose(y, a * x + b, rtol=1e-5, atol=1e-6)
    if gradients:
        kept = np.where(dy != 0, gradients[0] != 0, kept)
    if x.ndim == 4:  # whole channels
        kept = kept.mean(axis=(2, 3), keepdims=True) > 0.5
    _rate(kept, p)
    _equal((y, *gradients), [a * np.where(kept, x, low) + b, np.where(kept, a * dy, 0)])


def _sum(case, x, dy, y, gradients):
    residual = second_input(x)
    kept = y != residual.astype(y.dtype)
    kept = np.where(dy != 0, gradients[0] != 0, kept) if gradients else kept
    _rate(kept, case.p)
    scale = 1 / (1 - case.p)
    _equal((y, *gradients), [residual + np.where(kept, x * scale, 0), np.where(kept, dy * scale, 0), dy])


def _product(case, x, dy, y, gradients):
    (value, slope), factor = reference.ACTIVATIONS["silu"], second_input(x)
    kept, scale = _nonzero(y, gradients), 1 / (1 - case.p)
    _rate(kept, case.p)
    wanted = value(x) * factor, dy * factor * slope(x), dy * value(x)
    _equal((y, *gradients), [np.where(kept, array * scale, 0) for array in wanted])


def _law(case, values, law):
    if stats.kstest(values.ravel()[: 2**17], law.cdf).pvalue < 1e-9:
        raise Wrong("the noise has the wrong distribution")
    if abs(values.mean() - law.mean()) > SIGMAS * law.std() / math.sqrt(values.size):
        raise Wrong("the noise has the wrong mean")


def _factor(case, x, dy, y, gradients):
    p = case.p
    far = np.abs(x) > 0.01  # near 0 the quotient is inaccurate
    factor = np.divide(y, x, where=far, out=np.ones_like(x))
    variance, h = p / (1 - p), half_width(p)
    gaussian = case.variant == "gaussian_dropout"
    _law(case, factor[far], stats.norm(1, math.sqrt(variance)) if gaussian else stats.uniform(1 - h, 2 * h))
    if gradients:
        _equal((np.where(far, y, 0), np.where(far, gradients[0], 0)), [np.where(far, factor * v, 0) for v in (x, dy)])


def _term(case, x, dy, y, gradients):
    _law(case, y - x, stats.norm(0, case.p))
    if gradients:
        _equal(gradients, (dy,))


def _choice(case, x, dy, y, gradients):
    kept = np.where(dy != 0, gradients[0] != 0, y == x) if gradients else y == x
    _rate(kept, case.p)
    _equal((y, *gradients), (np.where(kept, x, second_input(x)), np.where(kept, dy, 0), np.where(kept, 0, dy)))


KINDS = {"mask": _mask, "blocks": _blocks, "alpha": _alpha, "factor": _factor, "term": _term}
KINDS |= {"choice": _choice, "sum": _sum, "product": _product}

CONTENDERS = (
    Contender(OURS, ours, check_ours),
    Contender(OURS_READY, functools.partial(ours, ready=True), check_ours),
    SHARED[PLAIN],
    SHARED[PLAIN_READY],
    Contender("PyTorch", pytorch, check_peer, from_torch),
)
