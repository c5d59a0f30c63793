"""Are the masks random? A battery of statistical tests, and known-bad masks that it must catch.

A check takes a generator (what draws masks: the package, or a mistake) and returns one p-value, Bonferroni-adjusted
for the tests within it. Each check may use ALPHA / len(CHECKS), so a perfect generator turns this file red for one
choice of seeds in ten thousand. Seeds are fixed: a red check is a defect, or a reason to compute a p-value by hand.
"""

from functools import lru_cache, partial
from itertools import pairwise
from math import sqrt

import numpy as np
import pytest
import reference
from scipy.stats import binomtest, chi2, chisquare, norm

import gpudrop

ALPHA = 1e-4
SEED = 20141115
N = 2**20
BITS = [8, 16, 32]
DYADIC = [0.25, 0.5]  # honoured exactly, whatever the bits


class Package:
    def keep_mask(self, shape, p, seed=SEED, call=0, bits=16):
        return gpudrop.keep_mask(shape, p, gpudrop.Stream(seed, call), bits=bits)

    def dropout(self, x, p, bits=16):
        return gpudrop.dropout(x, p, rng=gpudrop.Stream(SEED, 0), bits=bits)


def family(p_values):
    """One p-value for many tests, dependent or not: Bonferroni."""
    p_values = list(p_values)
    return min(1.0, len(p_values) * min(p_values))


def honoured(p, bits):
    return reference.quantize(p, bits)[2]


def two_sided(z):
    return 2 * norm.sf(abs(z))


def correlation(a, b, p):
    """z-test that two masks of known rate are uncorrelated; for one mask and itself at a lag it holds as well."""
    q = 1 - p
    covariance = np.count_nonzero(a & b) - q * (np.count_nonzero(a) + np.count_nonzero(b)) + a.size * q * q
    return two_sided(covariance / (q * (1 - q) * sqrt(a.size)))


def dispersion(counts, n, p):
    """Chi-square test, two-sided, that counts are independent draws from Binomial(n, 1 - p)."""
    statistic = np.sum((counts - n * (1 - p)) ** 2) / (n * p * (1 - p))
    return 2 * min(chi2.cdf(statistic, counts.size), chi2.sf(statistic, counts.size))


# The checks


def keep_rate(generator):
    """The number of kept elements is binomial: exact two-sided test."""
    return family(
        binomtest(np.count_nonzero(generator.keep_mask(N, p, bits=bits)), N, 1 - honoured(p, bits)).pvalue
        for p in (2**-16, 0.001, 0.1, 0.25, 0.3, 0.5, 0.9, 0.999)
        for bits in BITS
    )


def mean_and_variance(generator):
    """E[y] = x and Var[y] = x**2 p / (1 - p), for constant x and random x; z-tests given x."""
    p_values = []
    for x in (np.ones(4 * N, np.float32), np.random.default_rng(1).normal(1, 2, N).astype(np.float32)):
        for p, bits in ((0.1, 8), (0.3, 16), (0.9, 32)):
            error = generator.dropout(x, p, bits=bits).astype(np.float64) - x
            p, x2 = honoured(p, bits), x.astype(np.float64) ** 2
            odds = p / (1 - p)
            p_values += [
                two_sided(np.sum(error) / sqrt(np.sum(x2) * odds)),
                two_sided(np.sum(x * error) / sqrt(np.sum(x2**2) * odds)),
                # error**2 is x**2 if dropped, x**2 odds**2 if kept.
                two_sided(np.sum(error**2 - x2 * odds) / sqrt(np.sum(x2**2) * p * (1 - p) * (1 - odds**2) ** 2)),
            ]
    return family(p_values)


def field_bins(generator, size, edges, bits):
    """How many fields lie between neighbouring edges: masks of one stream are nested, so counts are differences."""
    kept = [np.count_nonzero(generator.keep_mask(size, p, bits=bits)) for p in edges]
    return -np.diff(kept)


def uniform_fields(generator):
    """Chi-square of the leading 8 bits, all 256 values."""
    edges = np.arange(257) / 256
    return family(chisquare(field_bins(generator, N, edges, bits)).pvalue for bits in BITS)


def uniform_low_bits(generator):
    """Chi-square of bins of width 2**-16, at the bottom and in the middle; what lies outside is one bin each side."""
    p_values = []
    for first in (0, 2**15 - 32):
        edges = np.unique([0, *range(first, first + 65), 2**16]) / 2**16
        for bits in (16, 32):
            p_values.append(chisquare(field_bins(generator, 4 * N, edges, bits), 4 * N * np.diff(edges)).pvalue)
    return family(p_values)


def patterns(generator):
    """Chi-square of the 256 patterns of eight neighbours: their joint distribution is the product."""
    kept = np.bitwise_count(np.arange(256, dtype=np.uint8))
    return family(
        chisquare(
            np.bincount(np.packbits(generator.keep_mask(4 * N, p, bits=bits)), minlength=256),
            N // 2 * (1 - p) ** kept * p ** (8 - kept),
        ).pvalue
        for p in DYADIC
        for bits in BITS
    )


def positions(generator):
    """No lane, column, row or tile keeps more or less than its share, and they vary as binomials do."""
    p_values = []
    for p in DYADIC:
        for bits in BITS:
            mask = generator.keep_mask(N, p, bits=bits)
            for width in (16, 128, 1000, 4096):
                rows = mask[: N // width * width].reshape(-1, width)
                p_values.append(dispersion(rows.sum(axis=0), len(rows), p))
                if width > 16:  # a count of 16 is too far from normal
                    p_values.append(dispersion(rows.sum(axis=1), width, p))
    return family(p_values)


def neighbours(generator):
    masks = [(p, generator.keep_mask(4 * N, p, bits=bits)) for p in DYADIC for bits in BITS]
    lags = (*range(1, 65), 128, 256, 1000, 1024, 4096, 2**14, 2**16, 2**18, 2**20)
    return family(correlation(mask[:-lag], mask[lag:], p) for p, mask in masks for lag in lags)


def rows(generator):
    masks = [(p, generator.keep_mask((8192, width), p)) for p in DYADIC for width in (100, 128, 257)]
    strides = (1, 2, 4, 8, 16, 32, 64, 128, 1000, 4096)
    return family(correlation(mask[:-stride], mask[stride:], p) for p, mask in masks for stride in strides)


def calls(generator):
    """Each call against the next, at every shift within 64 elements, and at half of the mask."""
    p_values = []
    for call in (0, 1, 2, 2**32 - 1, 2**63):
        a, b = generator.keep_mask(N, 0.5, call=call), generator.keep_mask(N, 0.5, call=call + 1)
        for shift in (*range(65), N // 2):
            p_values += [correlation(a[shift:], b[: N - shift], 0.5), correlation(b[shift:], a[: N - shift], 0.5)]
    return family(p_values)


def seed_bits(generator):
    mask = generator.keep_mask(N, 0.5)
    return family(correlation(mask, generator.keep_mask(N, 0.5, seed=SEED ^ 1 << bit), 0.5) for bit in range(64))


def call_bits(generator):
    mask = generator.keep_mask(N, 0.5)
    return family(correlation(mask, generator.keep_mask(N, 0.5, call=1 << bit), 0.5) for bit in range(64))


def tiles(generator):
    """Every pair of tiles of 4096 elements: the largest correlation, and the sum of squares of all."""
    signs = np.where(generator.keep_mask((256, 4096), 0.5), np.float32(1), np.float32(-1))
    z = (signs @ signs.T)[np.triu_indices(256, 1)] / sqrt(4096)  # sums of 4096 signs are exact in float32
    total = np.sum(z.astype(np.float64) ** 2)
    return family([family(two_sided(z)), 2 * min(chi2.cdf(total, z.size), chi2.sf(total, z.size))])


CHECKS = [
    keep_rate,
    mean_and_variance,
    uniform_fields,
    uniform_low_bits,
    patterns,
    positions,
    neighbours,
    rows,
    calls,
    seed_bits,
    call_bits,
    tiles,
]


@pytest.mark.parametrize("check", CHECKS)
def test_masks_are_random(check):
    assert check(Package()) > ALPHA / len(CHECKS)


@pytest.mark.parametrize("bits", BITS)
def test_masks_of_one_stream_are_nested(bits):
    masks = [Package().keep_mask(N, p, bits=bits) for p in (0, 2**-20, 0.1, 0.1 + 2**-16, 0.5, 0.9, 1)]
    assert masks[0].all()
    assert not masks[-1].any()
    for smaller_p, larger_p in pairwise(masks):
        assert not np.any(larger_p & ~smaller_p)


# Known-bad generators


class Mistake(Package):
    """The contract, but for what a subclass overrides."""

    def __init__(self):
        self.fields = lru_cache(maxsize=2)(self.fields)  # checks compare the same fields with many thresholds

    def fields(self, size, seed, call, bits):
        return reference.fields(seed, call, 0, size, bits)

    def threshold(self, p, bits):
        return reference.quantize(p, bits)[0]

    def scale(self, p, bits):
        return reference.quantize(p, bits)[1]

    def keep_mask(self, shape, p, seed=SEED, call=0, bits=16):
        return self.fields(int(np.prod(shape)), seed, call, bits).reshape(shape) >= self.threshold(p, bits)

    def dropout(self, x, p, bits=16):
        return np.where(self.keep_mask(x.shape, p, bits=bits), x * np.float32(self.scale(p, bits)), 0)


class RowsRepeat(Mistake):
    """Tiles of 128 rows draw 32 rows and repeat them: a row forgotten in the counter (xformers)."""

    def keep_mask(self, shape, p, **stream):
        mask = super().keep_mask(shape, p, **stream)
        row = np.arange(len(mask))
        return mask[row - row % 128 + row % 32]


class CallsShift(Mistake):
    """Every call goes on 4 elements after the one before began, instead of after it ended."""

    def fields(self, size, seed, call, bits):
        return reference.fields(seed, 0, 4 * call, size, bits)


class CallsOverlap(Mistake):
    """Every call begins halfway through the one before."""

    def fields(self, size, seed, call, bits):
        return reference.fields(seed, 0, size // 2 * (call & 0xFFFF), size, bits)


class ThresholdOff(Mistake):
    """One part in 256 more is dropped, and the scale follows the p that was asked for."""

    def threshold(self, p, bits):
        return min(reference.quantize(p, bits)[0] + 2**bits // 256, 2**bits)


class ScaleOfP(Mistake):
    """The threshold is rounded to 8 bits and the scale is 1 / (1 - p) (FlashAttention)."""

    def scale(self, p, bits):
        return 1 / (1 - p)


class SeedTruncated(Mistake):
    def fields(self, size, seed, call, bits):
        return super().fields(size, seed & 0xFFFFFFFF, call, bits)


class CallTruncated(Mistake):
    def fields(self, size, seed, call, bits):
        return super().fields(size, seed, call & 0xFFFFFFFF, bits)


class TwoRounds(Mistake):
    def fields(self, size, seed, call, bits):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reference, "philox4x32", partial(reference.philox4x32, rounds=2))
            return super().fields(size, seed, call, bits)


class LanesShare(Mistake):
    """Two neighbours read the same field."""

    def fields(self, size, seed, call, bits):
        return np.repeat(super().fields(size // 2, seed, call, bits), 2)


class LowBitStuck(Mistake):
    def fields(self, size, seed, call, bits):
        return super().fields(size, seed, call, bits) | 1


class NarrowRange(Mistake):
    """Fields modulo 2**bits - 1, an old way to a uniform float: the largest value never occurs."""

    def fields(self, size, seed, call, bits):
        return super().fields(size, seed, call, bits) % (2**bits - 1)


@pytest.mark.parametrize(
    "mistake, check",
    [
        (RowsRepeat, rows),
        (RowsRepeat, tiles),
        (CallsShift, calls),
        (CallsOverlap, calls),
        (ThresholdOff, keep_rate),
        (ThresholdOff, mean_and_variance),
        (ScaleOfP, mean_and_variance),
        (SeedTruncated, seed_bits),
        (CallTruncated, call_bits),
        (TwoRounds, seed_bits),
        (LanesShare, neighbours),
        (LanesShare, patterns),
        (LanesShare, positions),
        (NarrowRange, uniform_fields),
        (LowBitStuck, uniform_low_bits),
    ],
)
def test_a_mistake_is_caught(mistake, check):
    assert check(mistake()) < 1e-12  # not by luck


@pytest.mark.parametrize("check", [rows, calls, tiles, mean_and_variance])
def test_the_contract_itself_is_not_caught(check):
    """What the mistakes are made from passes: it is the mistake that a check sees."""
    assert check(Mistake()) > ALPHA / len(CHECKS)
