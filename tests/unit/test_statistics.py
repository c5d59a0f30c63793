"""gpudrop passes the battery of `gpudrop.testing.statistics`, and each known-bad generator fails a named check.

Seeds are fixed. A failing check is a defect, or a reason to compute a p-value by hand.
"""

from functools import lru_cache, partial
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import kstest

from gpudrop.testing import reference, statistics
from gpudrop.testing.statistics import ALPHA, BITS, SEED, Source
from tests.sampling import few

N = 2**20
LUCK = 1e-12  # too small to occur by chance


@pytest.mark.parametrize("size", few([2**12, 2**14, N], 2**14))
def test_masks_are_random(size):
    found, adjusted = statistics.battery(Source(), size)
    assert [one for one, p_value in zip(found, adjusted, strict=True) if p_value < ALPHA] == []
    enough = {name for name, (_, least) in statistics.CHECKS.items() if size >= least}
    assert {one.check for one in found} == enough
    assert enough == set(statistics.CHECKS) or size < N


def test_holm_matches_values_computed_by_hand():
    # Computed by hand: 4 * 0.01, 3 * 0.02, 2 * 0.03 raised to the value before it, and 0.5.
    assert statistics.holm([0.5, 0.01, 0.03, 0.02]).tolist() == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert statistics.holm([]).tolist() == []
    assert statistics.holm([0.9, 0.8]).tolist() == [1, 1]


def test_false_alarms_are_as_rare_as_stated():
    """Runs 10,000 batteries of 100 dependent p-values, at a rate that this many can show."""
    z = np.random.default_rng(5).standard_normal((10_000, 101))
    p_values = statistics.two_sided((z[:, :1] + z[:, 1:]) / np.sqrt(2))
    alarms = sum(statistics.holm(row).min() < 0.05 for row in p_values)
    assert 50 < alarms <= 0.05 * 10_000


def test_p_values_of_correlations_are_uniform():
    """The masks are from NumPy's generator, with known rates. Their p-values are neither too small nor too large."""
    rng = np.random.default_rng(6)
    for p in (0.1, 0.5):
        found = [statistics.correlation(*(rng.random((2, 2000)) >= p), p) for _ in range(1000)]
        assert kstest(found, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("bits", BITS)
def test_masks_of_one_stream_are_nested(bits):
    masks = [Source().keep_mask(N, p, bits=bits) for p in (0, 2**-20, 0.1, 0.1 + 2**-16, 0.5, 0.9, 1)]
    assert masks[0].all()
    assert not masks[-1].any()
    for smaller_p, larger_p in pairwise(masks):
        assert not np.any(larger_p & ~smaller_p)


# Known-bad generators


class Mistake(Source):
    """Follows the contract, except in the methods that a subclass overrides."""

    def __init__(self):
        self.fields = lru_cache(maxsize=2)(self.fields)  # checks compare the same fields with many thresholds

    def fields(self, size, seed, call, bits, start):
        return reference.fields(seed, call, start, size, bits)

    def threshold(self, p, bits):
        return reference.quantize(p, bits)[0]

    def scale(self, p, bits):
        return reference.quantize(p, bits)[1]

    def keep_mask(self, shape, p, seed=SEED, call=0, bits=16, start=0):
        fields = self.fields(int(np.prod(shape)), seed, call, bits, start)
        return fields.reshape(shape) >= self.threshold(p, bits)

    def dropout(self, x, p, call=0, bits=16):
        scaled = x.astype(np.float64) * self.scale(p, bits)
        return self.drop(scaled, self.keep_mask(x.shape, p, call=call, bits=bits)).astype(x.dtype)

    def drop(self, scaled, mask):
        return np.where(mask, scaled, 0)


class RowsRepeat(Mistake):
    """Tiles of 128 rows draw 32 rows and repeat them, because the counter omits the row (xformers)."""

    def keep_mask(self, shape, p, **stream):
        mask = super().keep_mask(shape, p, **stream)
        row = np.arange(len(mask))
        return mask[row - row % 128 + row % 32]


class SeedOf16Bits(Mistake):
    def fields(self, size, seed, call, bits, start):
        return super().fields(size, seed & 0xFFFF, call, bits, start)


class SeedLowWord(Mistake):
    def fields(self, size, seed, call, bits, start):
        return super().fields(size, seed & 0xFFFFFFFF, call, bits, start)


class CallLowWord(Mistake):
    def fields(self, size, seed, call, bits, start):
        return super().fields(size, seed, call & 0xFFFFFFFF, bits, start)


class ChunkLowWord(Mistake):
    def fields(self, size, seed, call, bits, start):
        return super().fields(size, seed, call, bits, start % (2**32 * (128 // bits)))


class CallsOverlapByFour(Mistake):
    """The first four elements of a call are the last four of the call before."""

    def fields(self, size, seed, call, bits, start):
        return super().fields(size, seed, 0, bits, (start + (size - 4) * call) % 2**63)


class CallsShiftByFour(Mistake):
    """Every call begins four elements after the beginning of the call before, instead of after its end."""

    def fields(self, size, seed, call, bits, start):
        return super().fields(size, seed, 0, bits, (start + 4 * call) % 2**63)


class CallsOverlapByHalf(Mistake):
    """Every call begins halfway through the call before."""

    def fields(self, size, seed, call, bits, start):
        return super().fields(size, seed, 0, bits, start + size // 2 * (call & 0xFFFF))


class ThresholdOff(Mistake):
    """An additional part of 1/256 is dropped, but the scale follows the requested p."""

    def threshold(self, p, bits):
        return min(reference.quantize(p, bits)[0] + 2**bits // 256, 2**bits)

    def scale(self, p, bits):
        return 1 / (1 - p)


class ScaleOfP(Mistake):
    """The threshold is rounded to 8 bits, but the scale is 1 / (1 - p) (FlashAttention)."""

    def scale(self, p, bits):
        return 1 / (1 - p)


class FewRounds(Mistake):
    rounds = 4

    def fields(self, size, seed, call, bits, start):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reference, "philox4x32", partial(reference.philox4x32, rounds=self.rounds))
            return super().fields(size, seed, call, bits, start)


class TwoRounds(FewRounds):
    rounds = 2


class SixRounds(FewRounds):
    rounds = 6


class Multiplies(Mistake):
    """Computes x * mask, which turns a dropped infinity into nan."""

    def drop(self, scaled, mask):
        with np.errstate(invalid="ignore"):
            return scaled * mask


class LayersShare(Mistake):
    """The seed of a spawned generator is its own number modulo eleven."""

    def spawn(self, n):
        return [SEED + i % 11 for i in range(n)]


class PiecesBeginAnew(Mistake):
    """A launch counts from its own first element, so drawing in pieces differs from drawing at once."""

    def fields(self, size, seed, call, bits, start):
        return super().fields(size, seed, call, bits, 0)


class LanesShare(Mistake):
    """Two neighbours read the same field."""

    def fields(self, size, seed, call, bits, start):
        return np.repeat(super().fields(size - size // 2, seed, call, bits, start), 2)[:size]


class Alternates(Mistake):
    """An element is kept more often after a dropped one, because pairs are antithetic."""

    def fields(self, size, seed, call, bits, start):
        drawn = super().fields(size, seed, call, bits, start).copy()
        drawn[1::2] = ~drawn[: size - size % 2 : 2][: drawn[1::2].size]
        return drawn


class LowBitStuck(Mistake):
    def fields(self, size, seed, call, bits, start):
        return super().fields(size, seed, call, bits, start) | 1


class NarrowRange(Mistake):
    """Fields are taken modulo 2**bits - 1, an old way to make a uniform float. The largest value never occurs."""

    def fields(self, size, seed, call, bits, start):
        return super().fields(size, seed, call, bits, start) % (2**bits - 1)


CAUGHT = [
    (RowsRepeat, "rows"),
    (RowsRepeat, "tiles"),
    (SeedOf16Bits, "seed_bits"),
    (SeedLowWord, "seed_bits"),
    (CallLowWord, "call_bits"),
    (ChunkLowWord, "place_bits"),
    (CallsOverlapByFour, "small_calls"),
    (CallsShiftByFour, "calls"),
    (CallsShiftByFour, "small_calls"),
    (CallsOverlapByHalf, "calls"),
    (ThresholdOff, "keep_rate"),
    (ThresholdOff, "mean_and_variance"),
    (ScaleOfP, "mean_and_variance"),
    (FewRounds, "autocorrelation"),
    (TwoRounds, "seed_bits"),
    (SixRounds, "place_bits"),
    (Multiplies, "selection"),
    (LayersShare, "layers"),
    (PiecesBeginAnew, "launch_shapes"),
    (LanesShare, "autocorrelation"),
    (LanesShare, "patterns"),
    (LanesShare, "positions"),
    (Alternates, "runs"),
    (NarrowRange, "uniform_fields"),
    (LowBitStuck, "uniform_low_bits"),
]


SOON = ("rows", "seed_bits", "selection", "layers")
"""The checks that take a second or less."""


@pytest.mark.parametrize(
    ("mistake", "check"),
    few(CAUGHT, *(row for row in CAUGHT if row[1] in SOON)),
    ids=[f"{mistake.__name__}-{check}" for mistake, check in CAUGHT],
)
def test_each_mistake_is_detected(mistake, check):
    size = 4 * N if mistake is ScaleOfP else N  # to show an error of 0.2% in the scale
    assert statistics.worst(statistics.findings(check, mistake(), size)) < LUCK


def test_each_check_has_a_mistake_to_detect():
    assert {check for _, check in CAUGHT} == set(statistics.CHECKS)


@pytest.mark.slow
def test_the_contract_itself_passes():
    """The correct base class of all mistakes passes, so a check that fails has detected the mistake."""
    _, adjusted = statistics.battery(Mistake(), 2**17)
    assert adjusted.min() > ALPHA
