"""Defining properties of each variant in large samples: whole channels are dropped, moments kept, noises distributed.

A check takes a sample and returns one p-value, Bonferroni-adjusted for the tests within it. Each check may use ALPHA /
TESTS, so correct kernels fail this file for one choice of seeds in ten thousand. The seeds are fixed.
"""

from functools import partial
from math import sqrt

import numpy as np
import pytest
from scipy import stats

import gpudrop
from gpudrop import Stream
from gpudrop.testing import reference
from gpudrop.testing.statistics import ALPHA, correlation, holm, two_sided

pytestmark = pytest.mark.slow
N = 2**20
TESTS = 40  # at least the number of checks below
STREAM = Stream(20181206, 5)


def family(p_values):
    """One p-value for many tests, which may be dependent."""
    return holm(list(p_values)).min()


def holds(p_value):
    assert p_value > ALPHA / TESTS


# Normal deviates: a check takes a function deviates(call) that returns N of them


def deviates(call=0, dtype=np.float32):
    return gpudrop.gaussian_noise(np.zeros(N, dtype), 1, rng=Stream(STREAM.seed, call))


def moments(deviates):
    """The first six moments, each relative to its own standard error."""
    x, known = deviates().astype(np.float64), [0, 1, 0, 3, 0, 15]
    variances = [1, 2, 15, 96, 945, 10170]  # E[x**2k] - E[x**k]**2
    z = [(np.mean(x**k) - m) / sqrt(v / N) for k, (m, v) in enumerate(zip(known, variances, strict=True), 1)]
    return family(map(two_sided, z))


def law(deviates):
    return stats.kstest(deviates().astype(np.float64), "norm").pvalue


def bins(deviates):
    """Chi-square over narrow, equally likely bins, and binomial tests of the tails beyond 3, 4 and 4.5."""
    x = deviates()
    counts, _ = np.histogram(stats.norm.cdf(x.astype(np.float64)), 1024, (0, 1))
    tails = [stats.binomtest(int((abs(x) > t).sum()), N, 2 * stats.norm.sf(t)).pvalue for t in (3, 4, 4.5)]
    return family([stats.chisquare(counts).pvalue, *tails])


def neighbours(deviates):
    """Deviates and their squares are uncorrelated at lags 1 to 64, and deviates with the next call."""
    x, later = (deviates(call).astype(np.float64) for call in (0, 1))
    p_values = [two_sided(np.mean(x * later) * sqrt(N))]
    for values in (x, (x * x - 1) / sqrt(2)):
        p_values += [two_sided(np.sum(values[lag:] * values[:-lag]) / sqrt(N - lag)) for lag in range(1, 65)]
    return family(p_values)


def pairs(deviates):
    """The two deviates of a pair have a uniform angle and an exponential radius, independent of each other."""
    x, y = deviates().astype(np.float64).reshape(-1, 2).T
    angle, radius = np.arctan2(y, x) / (2 * np.pi) % 1, np.exp(-(x * x + y * y) / 2)
    counts, *_ = np.histogram2d(angle, radius, 64, ((0, 1), (0, 1)))
    return family([stats.kstest(angle, "uniform").pvalue, stats.chisquare(counts.ravel()).pvalue])


CHECKS = [moments, law, bins, neighbours, pairs]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_deviates_are_normal(check, dtype):
    holds(check(partial(deviates, dtype=dtype)))


def words(call):
    chunks = np.arange(N // 4, dtype=np.uint64)
    return np.stack(reference.words(STREAM.seed, call, chunks), axis=-1).reshape(-1, 2).astype(np.float64)


def box_muller(u, v, second=np.sin):
    radius = np.sqrt(-2 * np.log(u))
    return np.stack([radius * np.cos(2 * np.pi * v), radius * second(2 * np.pi * v)], axis=-1).ravel()


def from_words(change, **options):
    def wrong(call=0):
        first, second = words(call).T
        return box_muller(*change((first + 0.5) / 2**32, second / 2**32), **options)

    return wrong


MISTAKES = [
    ("cosine twice", from_words(lambda u, v: (u, v), second=np.cos), neighbours),
    ("half a turn", from_words(lambda u, v: (u, v / 2)), law),
    ("half a turn more often", from_words(lambda u, v: (u, v**1.1)), pairs),
    ("one word for both", from_words(lambda u, v: (u, u)), pairs),
    ("ten bits for the radius", from_words(lambda u, v: (np.ceil(u * 2**10) / 2**10, v)), bins),
    ("log without its factor", lambda call=0: from_words(lambda u, v: (u, v))(call) / sqrt(2), moments),
    ("calls overlap", lambda call=0: from_words(lambda u, v: (u, v))(0), neighbours),
    ("a sum of twelve uniforms", lambda call=0: np.random.default_rng(call).random((12, N)).sum(axis=0) - 6, moments),
]


@pytest.mark.parametrize(("wrong", "check"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_each_mistake_is_detected(wrong, check):
    assert check(wrong) < 1e-12  # not by chance


def test_deviates_without_a_mistake_pass():
    for check in CHECKS:
        holds(check(from_words(lambda u, v: (u, v))))


# Noises


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_multiplicative_noise_has_dropouts_mean_and_variance(p):
    variance = p / (1 - p)
    laws = {
        "gaussian_dropout": stats.norm(1, sqrt(variance)),
        "uniform_dropout": stats.uniform(1 - sqrt(3 * variance), 2 * sqrt(3 * variance)),
    }
    for name, law in laws.items():
        factor = getattr(gpudrop, name)(np.ones(N), p, rng=STREAM, bits=32)
        fourth = law.moment(4) - 4 * law.moment(3) + 6 * law.moment(2) - 3  # about the mean, which is 1
        p_values = [
            stats.kstest(factor, law.cdf).pvalue,
            two_sided((factor.mean() - 1) / sqrt(variance / N)),
            two_sided((np.mean((factor - 1) ** 2) - variance) / sqrt((fourth - variance**2) / N)),
        ]
        holds(family(p_values))
    factor = gpudrop.dropout(np.ones(N), p, rng=STREAM)
    assert factor.mean() == pytest.approx(1, abs=6 * sqrt(variance / N))
    assert factor.var() == pytest.approx(variance, rel=0.02)


@pytest.mark.parametrize("p", [0.05, 0.3, 0.7])
def test_alpha_dropout_keeps_mean_and_variance(p):
    x = np.random.default_rng(1).standard_normal((64, N // 64))
    for name in ("alpha_dropout", "feature_alpha_dropout"):
        y = getattr(gpudrop, name)(x if name == "alpha_dropout" else x.reshape(64, -1, 4), p, rng=STREAM)
        # All four elements of a channel count as one.
        values = y.reshape(-1, 1) if name == "alpha_dropout" else y.reshape(-1, 4)
        means, squares = values.mean(axis=1), (values**2).mean(axis=1)
        p_values = [
            two_sided(means.mean() / (means.std() / sqrt(means.size))),
            two_sided((squares.mean() - 1) / (squares.std() / sqrt(squares.size))),
        ]
        holds(family(p_values))


def test_zoneout_takes_the_previous_state_with_probability_p():
    new, old = np.ones(N), np.zeros(N)
    for p in (0.1, 0.5):
        kept = gpudrop.zoneout(new, old, p, rng=STREAM)
        rate = 1 - gpudrop.quantize(p).effective_p
        holds(stats.binomtest(int(kept.sum()), N, rate).pvalue)


# Structured masks


@pytest.mark.parametrize(
    ("name", "shape", "axes"),
    [
        ("dropout1d", (64, 512, 4), 2),
        ("dropout2d", (64, 512, 2, 2), (2, 3)),
        ("dropout3d", (64, 512, 2, 1, 2), (2, 3, 4)),
        ("drop_path", (2**15, 4), 1),
        ("locked_dropout", (4, 64, 512), 0),
        ("embedding_dropout", (2**15, 4), 1),
        ("token_dropout", (64, 512, 4), 2),
        ("consistent_dropout", (4, 2**15), 0),
    ],
)
def test_elements_with_a_common_mask_are_all_kept_or_all_zero(name, shape, axes):
    p = 0.25
    y = getattr(gpudrop, name)(np.ones(shape), p, rng=STREAM)
    least, most = y.min(axis=axes), y.max(axis=axes)
    np.testing.assert_array_equal(least, most)
    kept = most != 0
    np.testing.assert_array_equal(most[kept], 1 / (1 - p))
    flat = kept.ravel()
    assert flat.size == 2**15
    p_values = [stats.binomtest(int(flat.sum()), flat.size, 1 - p).pvalue]
    p_values += [correlation(flat[lag:], flat[:-lag], p) for lag in (1, 2, 7, 8, 16, 512)]
    holds(family(p_values))


@pytest.mark.parametrize("p", [0.05, 0.3])
@pytest.mark.parametrize(("name", "size", "block_size"), [("dropblock2d", (9, 11), 4), ("dropblock1d", (20,), 5)])
def test_dropblock_keeps_each_position_with_its_own_probability(name, size, block_size, p):
    maps = 40_000
    y = getattr(gpudrop, name)(np.ones((maps // 100, 100, *size)), p, block_size=block_size, rng=STREAM)
    kept = (y != 0).reshape(maps, *size)
    want = reference.dropblock_keep_probability(size, p, block_size)
    counts = kept.sum(axis=0).ravel()
    holds(family(stats.binomtest(int(k), maps, q).pvalue for k, q in zip(counts, want.ravel(), strict=True)))
    # The paper's p ignores overlaps of blocks, so more than 1 - p is kept. The normalisation takes this into account.
    assert 1 - p < kept.mean() < 1 - p + p * p
    assert y.mean() == pytest.approx(1, abs=1e-12)


def test_dropblock_drops_whole_blocks():
    y = gpudrop.dropblock2d(np.ones((50, 20, 12, 15)), 0.3, block_size=4, rng=STREAM).reshape(-1, 12, 15)
    dropped = y == 0
    assert 0.1 < dropped.mean() < 0.3
    windows = np.lib.stride_tricks.sliding_window_view(dropped, (4, 4), (1, 2)).all(axis=(3, 4))
    covered = np.zeros_like(dropped)
    for i in range(4):
        for j in range(4):
            covered[:, i : i + windows.shape[1], j : j + windows.shape[2]] |= windows
    np.testing.assert_array_equal(covered, dropped)
