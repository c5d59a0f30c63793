"""Every backend draws the contract's mask bit for bit, forward and backward, for every layout of an array."""

import itertools

import ml_dtypes
import numpy as np
import pytest

import gpudrop
import gpudrop.formulas.activations
from gpudrop import Stream, arrays
from gpudrop.testing import reference, selftest
from tests.conftest import SIMULATED
from tests.sampling import few

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
WIDTHS = list(itertools.product([8, 16, 32], DTYPES))
# With float64 and 8 bits, and only then, two chunks of a CUDA kernel share the words of one Philox call.
SOME_WIDTHS = [row for row in WIDTHS if row[0] == 16 or row[1] is np.float32 or row == (8, np.float64)]
STREAM = Stream(2**63 + 5, 2**40 + 3)


def expected(shape, p, stream=STREAM, bits=16, start=0):
    return reference.keep_mask(shape, p, stream.seed, stream.call, bits=bits, start=start)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_mask_of_every_size(backend, poisoned, bits):
    for size in selftest.SIZES:
        np.testing.assert_array_equal(backend.mask(size, 0.4, STREAM, bits=bits), expected(size, 0.4, bits=bits))


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("start", [1, 3, 15, 16, 2**32 - 3, 2**32 * 8 - 5, 2**40 + 7, 2**64 - 50])
def test_mask_at_every_position(backend, poisoned, start, bits):
    mask = backend.mask((5, 10), 0.4, STREAM, bits=bits, start=start)
    np.testing.assert_array_equal(mask, expected((5, 10), 0.4, bits=bits, start=start))


@pytest.mark.parametrize("p", [0, 1, 2**-18, 1 - 2**-18, 2**-16, 1 - 2**-16, 0.5])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_mask_at_extreme_probabilities(backend, poisoned, p, bits):
    mask = backend.mask(300, p, STREAM, bits=bits)
    np.testing.assert_array_equal(mask, expected(300, p, bits=bits))
    if p in (0, 1):
        assert mask.all() == (p == 0) and mask.any() == (p == 0)


@pytest.mark.parametrize("stream", [Stream(0, 0), Stream(2**32, 2**32), Stream(2**64 - 1, 2**64 - 1)])
def test_every_half_of_seed_and_call_counts(backend, stream):
    np.testing.assert_array_equal(backend.mask(200, 0.5, stream), expected(200, 0.5, stream))


def known_answers():
    """(stream, chunk, words) of each published answer whose counter is a chunk of some array."""
    for rounds, (c0, c1, c2, c3), (k0, k1), words in reference.known_answers():
        if rounds == 10 and c1 < 2**30:
            yield Stream(k0 | k1 << 32, c2 | c3 << 32), c0 | c1 << 32, words


@pytest.mark.parametrize(("stream", "chunk", "words"), list(known_answers())[::3])
def test_known_answers(backend, stream, chunk, words):
    """A field equal to the threshold is kept, and the next threshold drops it. So the mask shows all 32 bits."""
    for lane, word in enumerate(words):
        for above in (0, 1):
            mask = backend.mask(4, (word + above) / 2**32, stream, bits=32, start=4 * chunk)
            assert mask[lane] == (not above)


@pytest.mark.parametrize(("bits", "dtype"), few(WIDTHS, *SOME_WIDTHS))
def test_identity_forward_and_backward(backend, poisoned, bits, dtype):
    """Covers every size. At p = 0.5 powers of two are scaled exactly, so the expected values are exact too."""
    for size in selftest.SIZES:
        x = (2.0 ** (np.arange(size) % 7)).astype(dtype)
        dy = (-x).astype(dtype)
        y, dx = backend.both(x, dy, 0.5, rng=STREAM, bits=bits)
        mask = expected(size, 0.5, bits=bits)
        assert y.dtype == dx.dtype == x.dtype
        np.testing.assert_array_equal(y, np.where(mask, x * dtype(2), dtype(0)))
        np.testing.assert_array_equal(dx, np.where(mask, dy * dtype(2), dtype(0)))


@pytest.mark.parametrize("dtype", few(DTYPES, np.float32, np.float16))
def test_relu_backward_needs_only_the_output(backend, poisoned, dtype):
    x = np.array([-1, 2, 0, 4, -8, 16, 1, 2] * 9, dtype)
    mask = expected(x.shape, 0.5)
    y, dx = backend.both(x, np.ones_like(x), 0.5, activation="relu", rng=STREAM)
    np.testing.assert_array_equal(y, np.where(mask & (x > 0), x * dtype(2), dtype(0)))
    np.testing.assert_array_equal(dx, np.where(mask & (x > 0), dtype(2), dtype(0)))


LAYOUTS = {name: look for name, look in selftest.LAYOUTS.items() if name not in selftest.HOST_LAYOUTS} | {
    "no dimensions": lambda a: a[0, 0:1].reshape(()),
    "three dimensions, permuted": lambda a: a.reshape(3, 4, 9).transpose((2, 0, 1)),
    "three dimensions, sliced": lambda a: a.reshape(3, 4, 9)[:, ::2, 1:],
    "transposed": lambda a: a.T,
}


@pytest.mark.parametrize("dtype", few(DTYPES, np.float32, np.float16))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_mask_belongs_to_the_logical_index(backend, poisoned, layout, dtype):
    base = np.arange(1, 109).reshape(6, 18).astype(dtype)
    if layout == "Fortran order":
        base = np.asfortranarray(base)
    no_views = ("transposed", "no dimensions", "three dimensions, permuted")
    if layout in no_views and backend.name == "numba_cuda" and not SIMULATED:
        pytest.skip("Numba's device arrays have no such views")
    x, device_x = LAYOUTS[layout](base), LAYOUTS[layout](backend.put(base))
    mask = expected(x.shape, 0.5)
    device_y, backprop = gpudrop.dropout_vjp(device_x, 0.5, activation="leaky_relu", rng=STREAM)
    y, dx = backend.get(device_y), backend.get(backprop(device_y))
    np.testing.assert_array_equal(y, np.where(mask, x * dtype(2), dtype(0)))
    np.testing.assert_array_equal(dx, np.where(mask, x * dtype(4), dtype(0)))
    model = np.lib.stride_tricks.as_strided(np.empty(0, dtype), device_x.shape, device_x.strides)
    assert tuple(device_y.strides) == np.empty_like(model).strides


@pytest.mark.parametrize("reverse", [slice(None, None, -1), slice(None, None, -3)])
def test_negative_and_zero_strides_on_the_cpu(reverse):
    x = np.arange(1, 50, dtype=np.float32)[reverse]
    np.testing.assert_array_equal(gpudrop.dropout(x, 0.5, rng=STREAM), np.where(expected(x.shape, 0.5), 2 * x, 0))
    row = np.broadcast_to(np.float32(3), (7, 9))
    np.testing.assert_array_equal(gpudrop.dropout(row, 0.5, rng=STREAM), np.where(expected((7, 9), 0.5), 6, 0))


def test_out_and_in_place(backend):
    x = np.arange(1, 41, dtype=np.float32)
    want = np.where(expected(x.shape, 0.5), 2 * x, 0)
    device_x, out = backend.put(x.copy()), backend.put(np.full_like(x, np.nan))
    assert gpudrop.dropout(device_x, 0.5, rng=STREAM, out=out) is out
    np.testing.assert_array_equal(backend.get(out), want)
    np.testing.assert_array_equal(backend.get(device_x), x)
    y, backprop = gpudrop.dropout_vjp(device_x, 0.5, activation="relu", rng=STREAM, out=device_x)
    assert y is device_x
    np.testing.assert_array_equal(backend.get(device_x), want)
    dy = backend.put(np.ones_like(x))
    assert backprop(dy, out=dy) is dy
    np.testing.assert_array_equal(backend.get(dy), np.where(want > 0, 2, 0))


def test_strided_out(backend):
    x = np.arange(1, 41, dtype=np.float32)
    base = backend.put(np.full((40, 3), -1, np.float32))
    gpudrop.dropout(backend.put(x), 0.5, rng=STREAM, out=base[:, 1])
    got = backend.get(base)
    np.testing.assert_array_equal(got[:, 1], np.where(expected(x.shape, 0.5), 2 * x, 0))
    assert (got[:, ::2] == -1).all()


def test_an_out_whose_elements_share_memory_is_refused(backend):
    """Only NumPy makes such arrays read-only."""
    row = backend.put(np.full(5, -1, np.float32))
    rows = arrays.repeated(arrays.as_operand("row", row), 3).array
    with pytest.raises(ValueError, match=r"out must (be writable|not overlap itself), got an? "):
        gpudrop.dropout(backend.put(np.ones((3, 5), np.float32)), 0.5, rng=STREAM, out=rows)
    np.testing.assert_array_equal(backend.get(row), np.full(5, -1))
    turned = backend.put(np.zeros((5, 3), np.float32)).T
    assert gpudrop.dropout(backend.put(np.ones((3, 5), np.float32)), 0.5, rng=STREAM, out=turned) is turned


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropped_elements_are_positive_zero_and_kept_special_values_are_exact(backend, dtype):
    special = np.array([np.inf, -np.inf, np.nan, -0.0, 0.0, -1.0, np.finfo(np.float16).smallest_subnormal] * 20, dtype)
    mask = expected(special.shape, 0.5)
    y, dx = backend.both(special, special, 0.5, rng=STREAM)
    for got in (y, dx):
        kept = (special[mask] * dtype(2)).astype(np.float64)
        np.testing.assert_array_equal(got[mask].astype(np.float64), kept)
        dropped = got[~mask].astype(np.float64)
        assert (dropped == 0).all() and not np.signbit(dropped).any()


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_without_dropout_only_the_activation_is_left(backend, activation):
    x = np.linspace(-3, 3, 50, dtype=np.float32)
    off = backend.forward(x, 0.5, activation=activation, training=False)
    np.testing.assert_array_equal(off, backend.forward(x, 0, activation=activation))
    with gpudrop.no_dropout():
        y, dx = backend.both(x, np.ones_like(x), 0.5, activation=activation)
    np.testing.assert_array_equal(off, y)
    value, slope = reference.ACTIVATIONS[activation or "identity"]
    np.testing.assert_allclose(y, value(x.astype(np.float64)), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(dx, slope(x.astype(np.float64)), rtol=1e-6, atol=1e-6)


def test_a_registered_activation(backend):
    from tests.unit.own_activation import cube, cube_slope

    if "cube" not in gpudrop.formulas.activations.ACTIVATIONS:
        gpudrop.register_activation("cube", cube, cube_slope)
    x = np.arange(-20, 20, dtype=np.float32)
    y, dx = backend.both(x, np.ones_like(x), 0.5, activation="cube", rng=STREAM)
    mask = expected(x.shape, 0.5)
    np.testing.assert_array_equal(y, np.where(mask, 2 * np.where(x > 0, x**3 + 1, 0.25 * x), 0))
    np.testing.assert_array_equal(dx, np.where(mask, 2 * np.where(x > 0, 3 * x**2, 0.25), 0))
