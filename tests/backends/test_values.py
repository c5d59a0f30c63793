"""Values and slopes are within the table of ulps on every backend, for every 16-bit float."""

import itertools

import numpy as np
import pytest

import gpudrop
from gpudrop import Stream
from gpudrop.formulas import compiled
from gpudrop.formulas.activations import ACTIVATIONS
from gpudrop.kernels import device_math
from gpudrop.testing import reference, ulps
from tests.conftest import SIMULATED
from tests.sampling import few

NAMES = [name for name in reference.ACTIVATIONS if name in ACTIVATIONS]
DTYPES = ["float64", "bfloat16", "float32", "float16"]  # in this order the covering sample tests the CPU in float32


def test_the_table_is_complete():
    assert len(NAMES) == 15
    for name in NAMES:
        for role in ("value", "slope"):
            for dtype in ulps.FINFO:
                assert ulps.allowed(name, role, dtype)[0] >= 1


def check(name, role, got, exact, scale=1):
    limit, floor = ulps.allowed(name, role, got.dtype.name)
    error = ulps.error(got, scale * exact, scale * floor)
    assert error.max() <= limit, f"{name} {role}: {error.max():.2f} ulps, {limit} are allowed"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_value_and_slope(pytestconfig, backend, name, dtype):
    """At p = 0.5 the scale is 2 and changes no rounding, so each kept element shows the error of its formula."""
    x = ulps.samples(dtype, 50_000)
    if backend.name == "cupy_text" and not pytestconfig.getoption("--full"):  # emulated warps are slow
        x = x[::40]
    if SIMULATED:  # kernels run in plain Python: use a sample that covers all magnitudes
        x = x[:: x.size // 60]
    x = x[np.isfinite(x.astype(np.float64))]
    y, dx = backend.both(x, np.ones_like(x), 0.5, activation=name, rng=Stream(1, 2))
    kept = reference.keep_mask(x.shape, 0.5, 1, 2)
    exact = ulps.seen(x, backend.name)[kept]
    value, slope = reference.ACTIVATIONS[name]
    check(name, "value", y[kept], value(exact), scale=2)
    check(name, "slope", dx[kept], slope(exact), scale=2)
    assert (y[~kept] == 0).all() and (dx[~kept] == 0).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("formula", device_math.FORMULAS)
def test_formulas_of_gpus_tolerate_the_errors_of_their_instructions(formula):
    """For every 16-bit float. NVIDIA documents a relative error of 2**-22 of exp2, and of 2**-23 of the reciprocal."""
    roles = (("value", "slope"), ACTIVATIONS.values())
    ((name, role),) = [(row.name, role) for role, row in itertools.product(*roles) if getattr(row, role) is formula]
    for dtype in ("float16", "bfloat16"):
        x = ulps.samples(dtype)
        x = x[np.isfinite(x.astype(np.float64))]
        exact = reference.ACTIVATIONS[name][role == "slope"](x.astype(np.float64))
        for of_exp2, of_reciprocal in itertools.product((-(2.0**-22), 0, 2.0**-22), (-(2.0**-23), 0, 2.0**-23)):
            result = on_gpu(formula, of_exp2, of_reciprocal)(x.astype(np.float32))
            assert np.isfinite(result).all()
            check(name, role, result.astype(x.dtype), exact)


def on_gpu(formula, of_exp2, of_reciprocal):
    """The formula that replaces one on GPUs, for NumPy arrays, with instructions that have these relative errors."""

    def single(exact):  # subnormal numbers are flushed
        return np.where(np.abs(exact) < np.finfo(np.float32).tiny, 0, exact).astype(np.float32)

    def divide(a, b):
        b = b.astype(np.float64)
        return a * single(np.where(b == 1, 1, (1 + of_reciprocal) / b))

    own = {device_math.exp2: lambda x: single(np.exp2(x.astype(np.float64)) * (1 + of_exp2))}
    functions = {"divide": divide, "fabs": np.abs}
    return compiled(device_math.FORMULAS[formula], np.float32, functions, lambda function: function, own)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", NAMES)
def test_large_numbers_overflow_to_at_most_inf_and_nan_stays_nan(backend, name):
    x = np.array([1e5, 1e10, 1e19, 1e20, 1e38, -1e5, -1e10, -1e19, -1e20, -1e38, np.nan] * 9, np.float32)
    y, dx = backend.both(x, np.ones_like(x), 0.5, activation=name, rng=Stream(1, 2))
    kept = reference.keep_mask(x.shape, 0.5, 1, 2)
    assert np.isnan(y[kept & np.isnan(x)]).all()
    kept &= np.isfinite(x)
    value, slope = reference.ACTIVATIONS[name]
    check(name, "value", y[kept], value(x[kept].astype(np.float64)), scale=2)
    check(name, "slope", dx[kept], slope(x[kept].astype(np.float64)), scale=2)


@pytest.mark.parametrize("name", few(NAMES, "silu"))
def test_backward_is_the_slope_of_forward(backend, name):
    """Compares with central differences of the whole operation in float64, including mask and scale."""
    h = 1e-6
    x = np.random.default_rng(3).uniform(-4, 4, 100)
    x = x[np.min(np.abs(x[:, None] - [0, 3, -3]), axis=1) > 0.01]  # away from the kinks
    options = {"activation": name, "rng": Stream(5, 6)}
    _, dx = backend.both(x, np.full_like(x, 0.7), 0.3, **options)
    difference = (backend.forward(x + h, 0.3, **options) - backend.forward(x - h, 0.3, **options)) / (2 * h)
    np.testing.assert_allclose(dx, 0.7 * difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_ties_round_to_even(backend, dtype):
    """At p = 0.5 zoneout predicts the mean of two neighbours, which is exact in float32."""
    bits = np.arange(0x0400, 0x7B00, 1001 if SIMULATED else 7).astype(np.uint16)
    x, following = bits.view(dtype), (bits + np.uint16(1)).view(dtype)
    y = backend.get(gpudrop.zoneout(backend.put(x), backend.put(following), 0.5, training=False))
    np.testing.assert_array_equal(y.view(np.uint16), bits + bits % 2)
