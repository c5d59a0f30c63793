"""Errors in units in the last place, compared with counts made by hand."""

import ml_dtypes
import numpy as np
import pytest

from gpudrop.testing import ulps


@pytest.mark.parametrize("dtype", ulps.FINFO)
@pytest.mark.parametrize("size", [1.0, 1.5, 8.0, -0.25])
def test_each_step_to_the_next_number_is_one_ulp(dtype, size):
    exact = np.array([size], dtype)
    got, unit = exact.view(f"u{exact.itemsize}"), 2.0 ** (np.floor(np.log2(abs(size))) - ulps.FINFO[dtype].nmant)
    for steps in (0, 1, 2, 7):
        moved = (got + np.asarray(steps, got.dtype)).view(exact.dtype)
        assert ulps.error(moved, exact.astype(np.float64)) == steps
        assert abs(moved.astype(np.float64) - size) == steps * unit


def test_correctly_rounded_values_have_no_error():
    exact = np.array([0.1, 1e5, 1e-3, np.inf, np.nan])
    assert ulps.error(exact[:3].astype(ml_dtypes.bfloat16), exact[:3]).tolist() == [0, 0, 0]
    assert ulps.error(np.array([np.inf], np.float16), np.array([1e5])) == 0  # 1e5 rounds to inf in float16


def test_below_a_floor_errors_are_counted_in_ulps_of_the_floor():
    got, exact = np.array([2.0**-23], np.float32), np.array([0.0])
    assert ulps.error(got, exact, floor=1.0) == 1
    assert ulps.error(got, exact, floor=0.5) == 2
