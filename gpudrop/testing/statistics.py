"""Statistical checks of the masks: each check returns p-values, and one false-alarm rate applies to all of them.

The arguments of a check are a source of masks and the number of elements to draw. The source is the package on some
backend, or a faulty source that the check must detect. A check generates (case, p-values) for each of its cases. Small
p-values are evidence against the source.

`battery` runs all checks and adjusts all p-values together by Holm's method, which is valid for dependent tests too. A
perfect source fails with a probability of at most ALPHA. A deterministic check, such as equality, has a p-value of 1
or 0.

Source of the adjustment: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
Statistics 6 (1979).
"""

from itertools import combinations
from math import sqrt
from typing import NamedTuple

import ml_dtypes  # noqa: F401  (gives NumPy the name bfloat16)
import numpy as np
from scipy.stats import binomtest, chi2, chi2_contingency, chisquare, norm

import gpudrop
from gpudrop import generator

ALPHA = 1e-4  # the probability that a perfect source fails the battery
SEED = 20141115
BITS = (8, 16, 32)
DTYPES = ("float16", "bfloat16", "float32", "float64")
DYADIC = (0.25, 0.5)  # p that is exact for any number of bits
WARP, BLOCK = 32, 256  # threads; each thread computes the elements of one Philox call
TILES = (1024, 2**16)  # elements that a CPU thread computes at a time, and elements of the slice that it fetches


class Source:
    """The source that is checked: the package's masks and values on the CPU, as NumPy arrays."""

    def keep_mask(self, shape, p, seed=SEED, call=0, bits=16, start=0):
        return gpudrop.keep_mask(shape, p, gpudrop.Stream(seed, call), bits=bits, start=start)

    def dropout(self, x, p, call=0, bits=16):
        return gpudrop.dropout(x, p, rng=gpudrop.Stream(SEED, call), bits=bits)

    def spawn(self, n):
        """Return the seeds of generators for n layers."""
        return generator.spawned_seeds(gpudrop.Stream(SEED, 0), n)


def two_sided(z):
    return 2 * norm.sf(np.abs(z))


def correlation(a, b, p):
    """z-test that two masks of known rate are uncorrelated; it is valid for a mask and its shifted copy too."""
    q = 1 - p
    covariance = np.count_nonzero(a & b) - q * (np.count_nonzero(a) + np.count_nonzero(b)) + a.size * q * q
    return two_sided(covariance / (q * (1 - q) * sqrt(a.size)))


def dispersion(counts, n, p):
    """Two-sided chi-square test that counts are independent samples of Binomial(n, 1 - p)."""
    return spread(np.sum((counts - n * (1 - p)) ** 2) / (n * p * (1 - p)), counts.size)


def spread(statistic, degrees):
    """Two-sided p-value of a chi-square statistic: too little variation is as wrong as too much."""
    return 2 * min(chi2.cdf(statistic, degrees), chi2.sf(statistic, degrees))


def pattern_counts(mask):
    """Count each pattern of eight neighbours."""
    return np.bincount(np.packbits(mask), minlength=256)


def shapes(size):
    """Return shapes of nearly the same number of elements, in one to three dimensions."""
    return (size,), (size // 64, 64), (size // 333, 9, 37)


# The checks


def keep_rate(source, size):
    """The number of kept elements is binomial: exact two-sided test."""
    call = 0
    for p in (2**-16, 0.001, 0.1, 0.25, 0.3, 0.5, 0.9, 0.999):
        for bits in BITS:
            rate = 1 - gpudrop.quantize(p, bits).effective_p
            for dtype in (None, *DTYPES):
                shape, call = shapes(size)[call % 3], call + 1  # each case has its own stream
                if dtype is None:
                    kept = source.keep_mask(shape, p, call=call, bits=bits)
                else:
                    kept = source.dropout(np.ones(shape, dtype), p, call=call, bits=bits)
                case = {"p": p, "bits": bits, "dtype": dtype, "shape": shape}
                yield case, binomtest(np.count_nonzero(kept), kept.size, rate).pvalue


def mean_and_variance(source, size):
    """E[y] = x and Var[y] = x**2 p / (1 - p), for constant x and random x; z-tests given x."""
    normal = np.random.default_rng(1).normal(1, 2, size)
    for dtype in DTYPES:
        # In 16-bit dtypes only scales that are powers of two: otherwise the test would detect the rounding of y.
        rates = ((0.1, 8), (0.3, 16), (0.9, 32)) if dtype in ("float32", "float64") else ((0.5, 8), (0.75, 16))
        for call, (p, bits) in enumerate(rates):
            odds = (honoured := gpudrop.quantize(p, bits).effective_p) / (1 - honoured)
            fourth = honoured * (1 - honoured) * (1 - odds**2) ** 2
            for x in (np.ones(size, dtype), normal.astype(dtype)):
                error = source.dropout(x, p, call=call, bits=bits).astype(np.float64)
                x = x.astype(np.float64)
                error -= x
                x2 = x * x
                sum2, sum4 = (
                    np.sum(x2),
                    x2 @ x2,
                )  # dot products, because temporary arrays take longer than sums
                z = [np.sum(error) / sqrt(sum2 * odds), x @ error / sqrt(sum4 * odds)]
                if fourth:  # error**2 is x**2 if dropped and x**2 odds**2 if kept; at p = 1/2 both are equal
                    z.append((error @ error - sum2 * odds) / sqrt(sum4 * fourth))
                yield {"p": p, "bits": bits, "dtype": dtype}, two_sided(z)


def field_bins(source, size, edges, bits):
    """Count the fields between neighbouring edges, as differences, because the masks of one stream are nested."""
    kept = [np.count_nonzero(source.keep_mask(size, p, bits=bits)) for p in edges]
    return -np.diff(kept)


def uniform_fields(source, size):
    """Chi-square of the leading 8 bits, all 256 values."""
    edges = np.arange(257) / 256
    for bits in BITS:
        yield {"bits": bits}, chisquare(field_bins(source, size, edges, bits)).pvalue


def uniform_low_bits(source, size):
    """Chi-square of bins of width 2**-16, at the bottom and in the middle, and of one outer bin on each side."""
    for first in (0, 2**15 - 32):
        edges = np.unique([0, *range(first, first + 65), 2**16]) / 2**16
        for bits in (16, 32):
            counts = field_bins(source, size, edges, bits)
            yield {"first": first, "bits": bits}, chisquare(counts, size * np.diff(edges)).pvalue


def patterns(source, size):
    """Chi-square of the 256 patterns of eight neighbours, which are independent."""
    kept = np.bitwise_count(np.arange(256, dtype=np.uint8))
    for p in DYADIC:
        expected = size // 8 * (1 - p) ** kept * p ** (8 - kept)
        for bits in BITS if expected.min() >= 5 else ():
            counts = pattern_counts(source.keep_mask(size // 8 * 8, p, bits=bits))
            yield {"p": p, "bits": bits}, chisquare(counts, expected).pvalue


def runs(source, size):
    """Test of the number of runs of equal neighbours along rows and columns, given the number of kept elements.

    Source: Wald and Wolfowitz, "On a test whether two samples are from the same population", Annals of Mathematical
    Statistics 11 (1940).
    """
    for p in (0.1, 0.5):
        for bits in BITS:
            mask = source.keep_mask((size // 64, 64), p, bits=bits)
            for order, flat in (("rows", mask.ravel()), ("columns", mask.T.ravel())):
                n, ones = flat.size, int(np.count_nonzero(flat))
                both = 2 * ones * (n - ones)
                mean, variance = both / n + 1, both * (both - n) / (n * n * (n - 1.0))
                found = 1 + np.count_nonzero(flat[1:] != flat[:-1])
                yield {"p": p, "bits": bits, "order": order}, two_sided((found - mean) / sqrt(variance))


def positions(source, size):
    """Dispersion test: the kept elements per lane, column, row and tile are binomial."""
    for p in DYADIC:
        for bits in BITS:
            mask = source.keep_mask(size, p, bits=bits)
            for width in (16, 128, 1000, 4096):
                rows = mask[: size // width * width].reshape(-1, width)
                found = [dispersion(rows.sum(axis=0), len(rows), p)]
                if width > 16:  # with 16 elements the binomial is too far from normal
                    found.append(dispersion(rows.sum(axis=1), width, p))
                yield {"p": p, "bits": bits, "width": width}, found


def autocorrelation(source, size):
    """No correlation at lags of 1 to 64 elements, a chunk, a warp, a block of threads or a tile of a CPU thread."""
    for p in DYADIC:
        for bits in BITS:
            mask, chunk = source.keep_mask(size, p, bits=bits), 128 // bits
            strides = {chunk, WARP * chunk, BLOCK * chunk, *TILES, 1000, size // 4, size // 2}
            for lag in (*range(1, 65), *sorted(stride for stride in strides if 64 < stride < size)):
                yield {"p": p, "bits": bits, "lag": lag}, correlation(mask[:-lag], mask[lag:], p)


def rows(source, size):
    """No correlation between elements in different rows or columns."""
    for p in DYADIC:
        for width in (100, 128, 257):
            mask = source.keep_mask((size // width, width), p)
            for stride in (1, 2, 4, 8, 16, 32, 64, 128, 1000, 4096):
                if stride < len(mask):
                    yield {"p": p, "width": width, "rows": stride}, correlation(mask[:-stride], mask[stride:], p)
                if stride < width:
                    found = correlation(mask[:, :-stride], mask[:, stride:], p)
                    yield {"p": p, "width": width, "columns": stride}, found


def tiles(source, size):
    """No correlation between any two tiles of 4096 elements: each pair, and the sum of squares over all pairs."""
    signs = np.where(source.keep_mask((min(256, size // 4096), 4096), 0.5), np.float32(1), np.float32(-1))
    z = (signs @ signs.T)[np.triu_indices(len(signs), 1)] / sqrt(4096)  # sums of 4096 signs are exact in float32
    yield {}, [*two_sided(z), spread(np.sum(z.astype(np.float64) ** 2), z.size)]


def calls(source, size):
    """No correlation between consecutive calls, at shifts of up to 64 elements and of half the mask."""
    for call in (0, 1, 2, 2**32 - 1, 2**63):
        a, b = source.keep_mask(size, 0.5, call=call), source.keep_mask(size, 0.5, call=call + 1)
        for shift in (*range(65), size // 2):
            found = [correlation(a[shift:], b[: size - shift], 0.5), correlation(b[shift:], a[: size - shift], 0.5)]
            yield {"call": call, "shift": shift}, found


def small_calls(source, size):
    """No correlation between any two indices of short consecutive calls, which a small overlap would cause."""
    for bits in BITS:
        masks = np.array([source.keep_mask(64, 0.5, call=call, bits=bits) for call in range(max(100, size // 64))])
        signs = np.where(masks, 1.0, -1.0)
        yield {"bits": bits}, two_sided(signs[:-1].T @ signs[1:] / sqrt(len(signs) - 1)).ravel()


def seed_bits(source, size):
    """No correlation between seeds that differ in one bit."""
    mask = source.keep_mask(size, 0.5)
    for bit in range(64):
        yield {"bit": bit}, correlation(mask, source.keep_mask(size, 0.5, seed=SEED ^ 1 << bit), 0.5)


def call_bits(source, size):
    """No correlation between calls that differ in one bit."""
    mask = source.keep_mask(size, 0.5)
    for bit in range(64):
        yield {"bit": bit}, correlation(mask, source.keep_mask(size, 0.5, call=1 << bit), 0.5)


def place_bits(source, size):
    """No correlation between parts of a mask whose indices differ in one bit."""
    mask = source.keep_mask(size, 0.5)
    for bit in range(64):
        if 1 << bit >= size:
            yield {"bit": bit}, correlation(mask, source.keep_mask(size, 0.5, start=1 << bit), 0.5)


def layers(source, size):
    """No correlation between any two layers whose generators were spawned from one generator."""
    masks = [source.keep_mask(size, 0.5, seed=seed) for seed in source.spawn(12)]
    for (i, a), (j, b) in combinations(enumerate(masks), 2):
        yield {"layers": (i, j)}, correlation(a, b, 0.5)


def launch_shapes(source, size):
    """Compare a mask drawn by one call with a mask drawn warp by warp, in the order of a grid of blocks.

    For the same stream the masks are equal. For two streams they are two samples of one distribution.
    """
    p = 0.25
    for bits in BITS:
        piece = WARP * 128 // bits
        starts = [start for first in range(4) for start in range(first * piece, size, 4 * piece)]

        def by_warps(call, bits=bits, piece=piece, starts=starts):
            mask = np.empty(size, bool)
            for start in starts:
                part = mask[start : start + piece]
                part[...] = source.keep_mask(part.size, p, call=call, bits=bits, start=start)
            return mask

        whole = source.keep_mask(size, p, bits=bits)
        yield {"bits": bits, "compared": "bits"}, float(np.array_equal(by_warps(0), whole))
        counts = np.array([pattern_counts(whole), pattern_counts(by_warps(1))])
        yield {"bits": bits, "compared": "samples"}, chi2_contingency(counts[:, counts.sum(axis=0) > 0]).pvalue


def selection(source, size):
    """Dropped elements are +0.0 for every input, and kept elements are the input times the scale."""
    for dtype in DTYPES:
        x = np.resize(np.array([np.inf, -np.inf, np.nan, -0.0, 0.0, -1.5, 3.0], dtype), min(size, 4096))
        y, kept = source.dropout(x, 0.5).astype(np.float64), source.keep_mask(x.size, 0.5)
        zero = np.all(y[~kept] == 0) and not np.any(np.signbit(y[~kept]))
        itself = np.array_equal(y[kept], 2 * x[kept].astype(np.float64), equal_nan=True)
        yield {"dtype": dtype}, float(zero and itself)


CHECKS = {
    check.__name__: (check, least)
    for check, least in (
        (keep_rate, 0),
        (mean_and_variance, 1000),
        (uniform_fields, 2**12),
        (uniform_low_bits, 2**19),  # the smallest size with 5 expected elements in each bin
        (patterns, 2**14),
        (runs, 1000),
        (positions, 2**16),
        (autocorrelation, 1000),
        (rows, 1000),
        (tiles, 2**17),
        (calls, 1000),
        (small_calls, 1000),
        (seed_bits, 1000),
        (call_bits, 1000),
        (place_bits, 1000),
        (layers, 1000),
        (launch_shapes, 1000),
        (selection, 0),
    )
}
"""Name -> (check, smallest number of elements for which its approximations are valid)."""


class Finding(NamedTuple):
    """One p-value of a check's case."""

    check: str
    case: dict
    p_value: float


def findings(name, source, size):
    """Run one check and return a list of Finding."""
    check, _ = CHECKS[name]
    return [
        Finding(name, case, float(p_value))
        for case, found in check(source, size)
        for p_value in np.atleast_1d(np.asarray(found, np.float64))
    ]


def holm(p_values):
    """Return p-values adjusted by Holm's method: rejecting those <= a has a family-wise error rate of at most a."""
    p_values = np.asarray(p_values, np.float64)
    order, n = np.argsort(p_values), p_values.size
    adjusted = np.empty(n)
    adjusted[order] = np.minimum(1, np.maximum.accumulate((n - np.arange(n)) * p_values[order]))
    return adjusted


def worst(found):
    """Return the smallest p-value of the findings, adjusted for their number."""
    return float(holm([one.p_value for one in found]).min(initial=1))


def battery(source, size):
    """Run all checks that are valid for this size, and return the findings and their jointly adjusted p-values."""
    found = [one for name, (_, least) in CHECKS.items() if size >= least for one in findings(name, source, size)]
    return found, holm([one.p_value for one in found])
