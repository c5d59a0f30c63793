"""The family: every variant equals its reference on every backend, and has the right gradient."""

import itertools

import ml_dtypes
import numpy as np
import pytest

import gpudrop
from gpudrop import Stream
from gpudrop.testing import reference, ulps
from gpudrop.variants import FAMILY
from tests.conftest import SIMULATED
from tests.family.layer_calls import gradients_of
from tests.family.shapes import ALONE, SHAPES
from tests.sampling import few

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
STREAM = Stream(2**63 + 5, 2**40 + 3)
SEED = {"seed": STREAM.seed, "call": STREAM.call}

# Shapes and options of each variant. Its reference in reference.FAMILY has the same name.
CASES = {name: [(SHAPES[name], {})] for name in ALONE} | {
    "dropout1d": [((3, 5, 7), {}), ((5, 7), {}), ((3, 7, 5), {"channels_last": True})],
    "dropout2d": [((2, 5, 3, 4), {}), ((5, 3, 4), {}), ((2, 3, 4, 5), {"channels_last": True})],
    "dropout3d": [((2, 5, 3, 2, 2), {}), ((5, 3, 2, 2), {}), ((2, 3, 2, 2, 5), {"channels_last": True})],
    "drop_path": [((17, 3, 5), {}), ((23,), {})],
    "locked_dropout": [((4, 3, 7), {}), ((3, 4, 7), {"time_axis": 1}), ((3, 7, 4), {"time_axis": -1})],
    "embedding_dropout": [((19, 6), {})],
    "token_dropout": [((3, 7, 5), {}), ((3, 2, 4, 5), {})],
    "consistent_dropout": [((5, 3, 7), {})],
    "drop_connect": [((7, 9), {}), ((5, 7), {"samples": 4})],
    "dropblock1d": [((2, 3, 19), {"block_size": 4}), ((2, 3, 3), {})],
    "dropblock2d": [((2, 3, 9, 8), {"block_size": 3}), ((2, 5, 6), {"block_size": 4}), ((2, 3, 5, 3), {})],
    "alpha_dropout": [((5, 27), {})],
    "feature_alpha_dropout": [((3, 7, 2, 3), {}), ((11, 5), {})],
    "gaussian_dropout": [((7, 19), {}), ((1,), {})],
    "uniform_dropout": [((7, 19), {})],
    "gaussian_noise": [((7, 19), {})],
}
NAMED = [(name, *case) for name, cases in CASES.items() for case in cases]


def test_every_variant_has_a_reference_and_a_case():
    assert set(CASES) == set(reference.FAMILY) == set(ALONE)


def sample(shape, seed=0):
    return np.random.default_rng(seed).normal(0, 2, shape)


def close(got, want, z, noise, role="value"):
    """Check equality within the ulps allowed for the noise, relative to the largest term. Zeros are exact."""
    limit = ulps.allowed(noise, role, got.dtype.name)[0]
    error = ulps.error(got, want, np.maximum(1, np.abs(z)))
    assert got.shape == want.shape
    assert error.max(initial=0) <= limit, f"{error.max():.2f} ulps, {limit} are allowed"


@pytest.mark.parametrize("dtype", few(DTYPES, np.float32))
@pytest.mark.parametrize(("name", "shape", "options"), NAMED)
def test_variant_equals_its_reference(backend, poisoned, name, shape, options, dtype):
    x = sample(shape).astype(dtype)
    want, want_backprop = reference.FAMILY[name](x, 0.4, **SEED, **options)
    dy = sample(want.shape, 1).astype(dtype)
    y, backprop = getattr(gpudrop, name).vjp(backend.put(x), 0.4, rng=STREAM, **options)
    y, dx = backend.get(y), backend.get(backprop(backend.put(dy)))
    noise = ulps.row_of(FAMILY[name].noise)
    assert y.dtype == dx.dtype == x.dtype
    close(y, want, np.broadcast_to(x.astype(np.float64), want.shape), noise)
    close(dx, want_backprop(dy), dy.astype(np.float64), noise, "slope")
    if noise == "identity":
        np.testing.assert_array_equal(y == 0, want == 0)


ACTIVATED = ["dropout2d", "dropblock2d", "alpha_dropout", "gaussian_dropout", "uniform_dropout", "gaussian_noise"]
ACTIVATED = list(itertools.product(ACTIVATED, ["relu", "gelu"]))
# relu's gradient is computed from y, except where y doesn't determine the scale.
SOME = [("dropblock2d", "relu"), *(row for row in ACTIVATED if row[1] == "gelu")]


@pytest.mark.parametrize(("name", "activation"), few(ACTIVATED, *SOME))
def test_activation_comes_before_the_noise(backend, poisoned, name, activation):
    x, dy = sample((2, 3, 5, 6)).astype(np.float32), sample((2, 3, 5, 6), 1).astype(np.float32)
    want, want_backprop = reference.FAMILY[name](x, 0.4, **SEED, activation=activation)
    y, backprop = getattr(gpudrop, name).vjp(backend.put(x), 0.4, activation=activation, rng=STREAM)
    dx = backprop(backend.put(dy))
    np.testing.assert_allclose(backend.get(y), want, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(backend.get(dx), want_backprop(dy), rtol=1e-5, atol=2e-6)


def tolerance_of(dtype, activation):
    """Some ulps of the result, and the error of the activation near 0 by the table of ulps."""
    name = np.dtype(dtype).name
    (allowed, floor), nmant = ulps.allowed(activation, "value", name), ulps.FINFO[name].nmant
    return {"rtol": 2.0 ** -(nmant - 4), "atol": max(1e-6, allowed * floor * 2.0**-nmant)}


ZONEOUTS = list(itertools.product(DTYPES, [None, "relu", "gelu"]))


@pytest.mark.parametrize("p", [0, 1e-6, 0.3, 1])
@pytest.mark.parametrize(("dtype", "activation"), few(ZONEOUTS, (np.float32, "gelu")))
def test_zoneout(backend, poisoned, dtype, activation, p):
    x, previous, dy = (sample((5, 9), seed).astype(dtype) for seed in range(3))
    name = activation or "identity"
    tolerance = tolerance_of(dtype, activation or "identity")
    for training, exact in ((True, reference.zoneout), (False, reference.zoneout_expected)):
        stream = SEED if training else {}
        want, want_backprop = exact(x, previous, p, **stream, activation=name)
        options = {"activation": activation, "rng": STREAM, "training": training}
        y, backprop = gpudrop.zoneout.vjp(backend.put(x), backend.put(previous), p, **options)
        np.testing.assert_allclose(backend.get(y).astype(np.float64), want, **tolerance)
        for got, gradient in zip(backprop(backend.put(dy)), want_backprop(dy), strict=True):
            np.testing.assert_allclose(backend.get(got).astype(np.float64), gradient, **tolerance)
    if p == 1:
        np.testing.assert_array_equal(
            backend.get(gpudrop.zoneout(backend.put(x), backend.put(previous), 1, rng=STREAM)), previous
        )


@pytest.mark.parametrize("p", [0, 1e-6, 0.3, 1])
@pytest.mark.parametrize("mask_shape", [None, (None, 1), (9,)])
@pytest.mark.parametrize(("dtype", "activation"), few(ZONEOUTS, (np.float32, "gelu"), (np.float32, "relu")))
def test_dropout_add(backend, poisoned, dtype, activation, p, mask_shape):
    x, residual, dy = (sample((5, 9), seed).astype(dtype) for seed in range(3))
    tolerance = tolerance_of(dtype, activation or "identity")
    for training in (True, False):
        want, want_backprop = reference.dropout_add(
            x, residual, p if training else 0, mask_shape, **SEED, activation=activation or "identity"
        )
        options = {"activation": activation, "rng": STREAM, "training": training, "mask_shape": mask_shape}
        y, backprop = gpudrop.dropout_add.vjp(backend.put(x), backend.put(residual), p, **options)
        np.testing.assert_allclose(backend.get(y).astype(np.float64), want, **tolerance)
        gradients = backprop(backend.put(dy))
        assert gradients._fields == ("dx", "dresidual", "dbias", "dgain")
        for got, gradient in zip(gradients[:2], want_backprop(dy)[:2], strict=True):
            np.testing.assert_allclose(backend.get(got).astype(np.float64), gradient, **tolerance)


def test_a_residual_is_exact_where_an_element_is_dropped(backend, poisoned):
    """So an infinite branch has no effect there, and the sign of a zero remains."""
    x = np.tile(np.float32([np.inf, np.nan, -np.inf, 3]), 50)
    residual = np.tile(np.float32([-0.0, 0.0, np.inf, np.nan, 7]), 40)
    y = backend.get(gpudrop.dropout_add(backend.put(x), backend.put(residual), 0.5, rng=STREAM))
    dropped = ~reference.keep_mask(x.shape, 0.5, STREAM.seed, STREAM.call)
    np.testing.assert_array_equal(y[dropped], residual[dropped])
    np.testing.assert_array_equal(np.signbit(y[dropped]), np.signbit(residual[dropped]))


def test_the_gradient_of_a_residual_is_dy_itself_unless_out_overwrites_it(backend):
    x, residual, dy = (backend.put(sample((5, 9), seed).astype(np.float32)) for seed in range(3))
    _, backprop = gpudrop.dropout_add.vjp(x, residual, 0.3, rng=STREAM)
    dx, dresidual, *_ = backprop(dy)
    assert dresidual is dy
    before, want = backend.get(dy).copy(), backend.get(dx)
    in_place, dresidual, *_ = backprop(dy, out=dy)
    assert in_place is dy and dresidual is not dy
    np.testing.assert_array_equal(backend.get(dy), want)
    np.testing.assert_array_equal(backend.get(dresidual), before)


def test_dropout_add_in_place():
    x, residual = (sample(5000, seed).astype(np.float32) for seed in range(2))
    want = gpudrop.dropout_add(x, residual, 0.3, rng=STREAM)
    for target, arrays in ((a := x.copy(), (a, residual)), (b := residual.copy(), (x, b))):
        assert gpudrop.dropout_add(*arrays, 0.3, rng=STREAM, out=target) is target
        np.testing.assert_array_equal(target, want)


def test_zoneout_in_place():
    x, previous, dy = (sample(5000, seed).astype(np.float32) for seed in range(3))
    want, want_backprop = reference.zoneout(x, previous, 0.3, **SEED)
    want_dx, want_dprevious = want_backprop(dy)
    for target in (x.copy(), previous.copy()):
        mine = target if np.array_equal(target, x) else x
        other = target if mine is x else previous
        y, backprop = gpudrop.zoneout.vjp(mine, other, 0.3, rng=STREAM, out=target)
        assert y is target
        np.testing.assert_array_equal(y, want)
    held = dy.copy()
    dx, dprevious = backprop(held, out=held)
    assert dx is held
    np.testing.assert_array_equal(dx, want_dx)
    np.testing.assert_array_equal(dprevious, want_dprevious)


# mask_shape


@pytest.mark.parametrize("mask_shape", list(itertools.product((None, 1), repeat=5)))
def test_every_pattern_of_broadcast_axes(backend, poisoned, mask_shape):
    """Covers up to five alternations of broadcast and own axes, with sizes that end within chunks and blocks."""
    shape = (2, 3, 3, 2, 5) if SIMULATED else (3, 2, 7, 5, 11)
    x = (2.0 ** (np.arange(np.prod(shape)) % 7)).reshape(shape).astype(np.float32)
    want, want_backprop = reference.structured(x, 0.5, mask_shape, **SEED)
    y, backprop = gpudrop.dropout_vjp(backend.put(x), 0.5, mask_shape=mask_shape, rng=STREAM)
    np.testing.assert_array_equal(backend.get(y), want)
    np.testing.assert_array_equal(backend.get(backprop(backend.put(-x))), want_backprop(-x))


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize(
    ("shape", "mask_shape"), [((4, 6), (4, 1)), ((4, 6), (6,)), ((4, 6), ()), ((4, 1, 6), (4, 1, 1)), ((3, 0), (3, 1))]
)
def test_mask_shapes_follow_numpys_broadcasting(backend, shape, mask_shape, bits):
    x = np.ones(shape, np.float32)
    want, _ = reference.structured(x, 0.4, mask_shape, **SEED, bits=bits)
    y = backend.get(gpudrop.dropout(backend.put(x), 0.4, mask_shape=mask_shape, rng=STREAM, bits=bits))
    np.testing.assert_array_equal(y != 0, want != 0)


@pytest.mark.parametrize("number", [2, 4, 7, 8, 15, 16, 17, 40])
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_runs_and_periods_of_any_length(backend, poisoned, dtype, number):
    """Mask values change at none, one or several boundaries within a chunk of a CUDA kernel, of 4 or of 16 elements."""
    for shape, mask_shape in (((5, number), (None, 1)), ((5, number), (1, None)), ((3, 4, number), (1, None, 1))):
        x = (2.0 ** (np.arange(np.prod(shape)) % 7)).reshape(shape).astype(dtype)
        want, _ = reference.structured(x, 0.5, mask_shape, **SEED)
        y = gpudrop.dropout(backend.put(x), 0.5, mask_shape=mask_shape, rng=STREAM)
        np.testing.assert_array_equal(backend.get(y), want.astype(dtype))


@pytest.mark.parametrize("dtype", few(DTYPES, np.float32, np.float16))
def test_structured_masks_of_strided_arrays(backend, poisoned, dtype):
    base = (2.0 ** (np.arange(6 * 8 * 10) % 7)).reshape(6, 8, 10).astype(dtype)
    x, device_x = base[:, ::2], backend.put(base)[:, ::2]
    want, want_backprop = reference.structured(x, 0.5, (None, None, 1), **SEED)
    y, backprop = gpudrop.dropout_vjp(device_x, 0.5, mask_shape=(None, None, 1), rng=STREAM)
    np.testing.assert_array_equal(backend.get(y), want.astype(dtype))
    np.testing.assert_array_equal(backend.get(backprop(device_x)), want_backprop(x).astype(dtype))
    device = backend.put(np.ascontiguousarray(x))
    assert gpudrop.dropout(device, 0.5, mask_shape=(None, None, 1), rng=STREAM, out=device) is device
    np.testing.assert_array_equal(backend.get(device), want.astype(dtype))


@pytest.mark.parametrize("shape", [(1000, 257), (3, 1_000_003), (70_001, 31)])
@pytest.mark.parametrize("mask_shape", [(None, 1), (1, None)])
def test_structured_masks_on_many_threads(shape, mask_shape):
    x = np.ones(shape, np.float32)
    y = gpudrop.dropout(x, 0.5, mask_shape=mask_shape, rng=STREAM)
    own = tuple(n if m is None else 1 for n, m in zip(shape, mask_shape, strict=True))
    np.testing.assert_array_equal(y, np.broadcast_to(2 * reference.keep_mask(own, 0.5, **SEED), shape))


def test_dropped_elements_are_zero_even_if_not_finite(backend):
    x = np.full((8, 16), np.nan, np.float32)
    x[:, ::2] = np.inf
    kept = reference.keep_mask((8, 1), 0.5, **SEED)[:, 0]
    y = backend.get(gpudrop.drop_path(backend.put(x), 0.5, rng=STREAM))
    assert (y[~kept] == 0).all() and not np.signbit(y[~kept]).any()
    np.testing.assert_array_equal(y[kept], x[kept])
    for name in ("alpha_dropout", "zoneout"):
        previous = [backend.put(np.ones_like(x))] * (len(FAMILY[name].inputs) - 1)
        y = backend.get(getattr(gpudrop, name)(backend.put(x), *previous, 0.5, rng=STREAM))
        assert (np.isfinite(y) == ~reference.keep_mask(x.shape, 0.5, **SEED)).all()


def test_each_sample_of_a_weight_has_its_own_mask():
    """Sample k of drop_connect uses the k-th part of one mask, as if the weights had been copied."""
    weights = np.ones((6, 7), np.float32)
    y = gpudrop.drop_connect(weights, 0.5, samples=5, rng=STREAM)
    np.testing.assert_array_equal(y, gpudrop.dropout(np.ones((5, 6, 7), np.float32), 0.5, rng=STREAM))
    assert y.flags.c_contiguous and y.flags.writeable
    weights = np.ones((60, 70), np.float32)  # too large to be copied first
    y = gpudrop.drop_connect(weights, 0.5, samples=5, rng=STREAM)
    np.testing.assert_array_equal(y, gpudrop.dropout(np.ones((5, 60, 70), np.float32), 0.5, rng=STREAM))
    x = np.broadcast_to(np.float32(3), (3, 4, 2000))
    np.testing.assert_array_equal(gpudrop.dropout(x, 0.5, rng=STREAM), 6 * reference.keep_mask(x.shape, 0.5, **SEED))


# Gradients


@pytest.mark.parametrize("name", FAMILY)
def test_the_gradient_of_a_broadcast_array_equals_that_of_its_copy(name):
    """As the derivative of a sum is. It is too large to be copied first, and zoneout has two results."""
    shape = (*SHAPES[name][:-1], 2000)
    arrays = [sample(shape, seed).astype(np.float32) for seed, _ in enumerate(FAMILY[name].inputs)]
    _, backprop = getattr(gpudrop, name).vjp(*arrays, 0.3, rng=STREAM)
    dy = np.broadcast_to(np.float32(3), shape)
    for got, want in zip(gradients_of(backprop(dy)), gradients_of(backprop(dy.copy())), strict=True):
        np.testing.assert_array_equal(got, want)


DIFFERENTIATED = [row for row in NAMED if "samples" not in row[2]]
THREE = [DIFFERENTIATED[k] for k in (3, 21, 24)]  # dropout2d, dropblock2d and alpha_dropout


@pytest.mark.parametrize("activation", few([None, "relu", "silu"], "silu"))
@pytest.mark.parametrize(("name", "shape", "options"), few(DIFFERENTIATED, *THREE))
def test_gradient_equals_central_differences(backend, name, shape, options, activation):
    h = 1e-6
    x, dy = sample(shape), sample(shape, 1)
    x[np.abs(x) < 0.01] = 0.5  # avoids relu's kink
    variant, keywords = getattr(gpudrop, name), {"rng": STREAM, "activation": activation, **options}
    _, backprop = variant.vjp(backend.put(x), 0.3, **keywords)
    above, below = (backend.get(variant(backend.put(x + d), 0.3, **keywords)) for d in (h, -h))
    # Every element of y depends only on its own element of x.
    np.testing.assert_allclose(
        backend.get(backprop(backend.put(dy))), dy * (above - below) / (2 * h), rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("function", [gpudrop.zoneout, gpudrop.dropout_add, gpudrop.dropout_glu])
@pytest.mark.parametrize("activation", few([None, "relu", "silu"], "silu"))
def test_gradients_of_two_arrays_equal_central_differences(backend, activation, function):
    h = 1e-6
    x, previous, dy = (sample((5, 8), seed) for seed in range(3))
    x[np.abs(x) < 0.01] = 0.5

    def y(x, previous):
        return backend.get(function(backend.put(x), backend.put(previous), 0.3, **keywords))

    keywords = {"rng": STREAM, "activation": activation}
    _, backprop = function.vjp(backend.put(x), backend.put(previous), 0.3, **keywords)
    gradients = map(backend.get, gradients_of(backprop(backend.put(dy))))
    differences = y(x + h, previous) - y(x - h, previous), y(x, previous + h) - y(x, previous - h)
    for gradient, difference in zip(gradients, differences, strict=True):
        np.testing.assert_allclose(gradient, dy * difference / (2 * h), rtol=1e-6, atol=1e-8)


# Off, and nearly off


@pytest.mark.parametrize("name", CASES)
def test_without_dropout_only_the_activation_is_applied_and_nothing_drawn(backend, name):
    shape, options = CASES[name][0]
    x, rng = sample(shape).astype(np.float32), gpudrop.Generator(3)
    variant = getattr(gpudrop, name)
    results = [variant(backend.put(x), 0.5, activation="relu", training=False, rng=rng, **options)]
    results.append(variant(backend.put(x), 0, activation="relu", rng=rng, **options))
    with gpudrop.no_dropout():
        results.append(variant(backend.put(x), 0.5, activation="relu", rng=rng, **options))
    for y in results:
        np.testing.assert_array_equal(backend.get(y), np.maximum(x, 0))
    assert rng.state_dict()["call"] == 0
    variant(backend.put(x), 0.5, rng=rng, **options)
    assert rng.state_dict()["call"] == 1


def test_everything_dropped(backend):
    x = sample((2, 3, 6, 6)).astype(np.float32)
    for name in ("dropout2d", "drop_path", "alpha_dropout", "feature_alpha_dropout"):
        y, backprop = getattr(gpudrop, name).vjp(backend.put(x), 1, rng=STREAM)
        np.testing.assert_array_equal(backend.get(y), 0)
        np.testing.assert_array_equal(backend.get(backprop(backend.put(x))), 0)
    y, backprop = gpudrop.dropblock2d.vjp(backend.put(x), 1, block_size=6, rng=STREAM)
    np.testing.assert_array_equal(backend.get(y), 0)
    np.testing.assert_array_equal(backend.get(backprop(backend.put(x))), 0)


def test_repeating_a_stream_repeats_the_mask():
    x = sample((4, 5, 6, 7)).astype(np.float32)
    for name in ("dropout2d", "dropblock2d", "gaussian_dropout", "alpha_dropout"):
        variant, rng = getattr(gpudrop, name), gpudrop.Generator(1)
        first, second = variant(x, 0.5, rng=rng), variant(x, 0.5, rng=rng)
        np.testing.assert_array_equal(first, variant(x, 0.5, rng=Stream(1, 0)))
        assert not np.array_equal(first, second)


# Errors


X = np.ones((2, 3, 4, 5), np.float32)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (
            ValueError,
            r"mask_shape must broadcast against x, of shape \(2, 3, 4, 5\), got \(2, 2, 1, 1\)",
            lambda: gpudrop.dropout(X, mask_shape=(2, 2, 1, 1)),
        ),
        (ValueError, "mask_shape must broadcast", lambda: gpudrop.dropout(X, mask_shape=(1,) * 5)),
        (TypeError, "mask_shape must be a tuple of integers and None, got 3", lambda: gpudrop.dropout(X, mask_shape=3)),
        (
            TypeError,
            r"mask_shape must be a tuple of integers and None, got \(1.0,\)",
            lambda: gpudrop.dropout(X, mask_shape=(1.0,)),
        ),
        (
            ValueError,
            r"x must have 4 dimensions \(samples, channels, spatial\), or 3 without samples, got 2",
            lambda: gpudrop.dropout2d(X[0, 0]),
        ),
        (ValueError, "x must have at least 1 dimension ", lambda: gpudrop.drop_path(np.array(1, np.float32))),
        (ValueError, "time_axis must be an axis of x", lambda: gpudrop.locked_dropout(X, time_axis=4)),
        (ValueError, "block_size must be at least 1, got 0", lambda: gpudrop.dropblock2d(X, block_size=0)),
        (ValueError, "p must be between 0 and 1, got 1.5", lambda: gpudrop.dropblock2d(X, 1.5)),
        (ValueError, "p must be below 1, got 1", lambda: gpudrop.gaussian_dropout(X, 1)),
        (ValueError, "p must be below 1, got 1", lambda: gpudrop.uniform_dropout(X, 1, training=False)),
        (ValueError, "std must be finite and not negative, got -1", lambda: gpudrop.gaussian_noise(X, -1)),
        (TypeError, "std must be a number, got 'a'", lambda: gpudrop.gaussian_noise(X, "a")),
        (ValueError, "bits must be 32, because a normal deviate", lambda: gpudrop.gaussian_noise(X, bits=16)),
        (
            ValueError,
            r"previous must be a NumPy array of dtype float32 and shape \(2, 3, 4, 5\), got .* \(3, 4, 5\)",
            lambda: gpudrop.zoneout(X, X[0]),
        ),
        (
            ValueError,
            "out must be previous itself or share no memory with it, got an overlapping view",
            lambda: gpudrop.zoneout(X[0, 0, 0], (big := np.ones(6, np.float32))[1:], out=big[:5]),
        ),
        (TypeError, "x must be a NumPy, CuPy or Numba array", lambda: gpudrop.drop_path([1.0])),
        (TypeError, "unexpected keyword argument 'block'", lambda: gpudrop.dropblock2d(X, block=3)),
        (
            ValueError,
            r"out must be .* shape \(4, 2, 3\)",
            lambda: gpudrop.drop_connect(X[0, 0, :2, :3], samples=4, out=X),
        ),
        (
            TypeError,
            r"mask_shape must be .*, got \(\[1\], None\)",
            lambda: gpudrop.dropout(X[0, 0], mask_shape=([1], None)),
        ),
        (TypeError, "block_size must be an integer, got 2.5", lambda: gpudrop.dropblock2d(X, block_size=2.5)),
        (TypeError, "time_axis must be an integer, got 1.5", lambda: gpudrop.locked_dropout(X, time_axis=1.5)),
        (TypeError, r"dropout2d\(\) missing 1 required positional argument: 'x'", lambda: gpudrop.dropout2d()),
        (ValueError, "depth must be between 0", lambda: gpudrop.drop_path_rates(0.1, -1)),
    ],
)
def test_errors_name_the_argument_and_draw_nothing(error, message, call):
    before, state = X.copy(), gpudrop.manual_seed(0).state_dict()
    with pytest.raises(error, match=message):
        call()
    np.testing.assert_array_equal(X, before)
    assert gpudrop.generator.check_rng(None).state_dict() == state


def test_errors_do_not_depend_on_earlier_calls():
    """1, 1.0 and True are equal as keys of a cache."""
    gpudrop.dropout(X[0, 0], mask_shape=(np.int64(1), None))
    with pytest.raises(TypeError, match="mask_shape must be a tuple"):
        gpudrop.dropout(X[0, 0], mask_shape=(1.0, None))


def test_drop_path_rates_end_at_p():
    for p in (0.1, 0.2, 0.3, 0.7, 1):
        for depth in range(1, 50):
            rates = gpudrop.drop_path_rates(p, depth)
            assert len(rates) == depth and rates[0] == 0 and max(rates) == rates[-1] == (p if depth > 1 else 0)
    assert gpudrop.drop_path_rates(0.1, 0) == []


def test_expected_zoneout_of_an_infinite_state():
    infinite, one = np.full(9, np.inf, np.float32), np.ones(9, np.float32)
    np.testing.assert_array_equal(gpudrop.zoneout(infinite, one, 1, training=False), one)
    np.testing.assert_array_equal(gpudrop.zoneout(one, infinite, 0, training=False), one)


@pytest.mark.parametrize("period", [1, 2, 3, 5, 7, 63, 64, 65, 1023, 1024, 1025])
@pytest.mark.parametrize("repeat", [1, 2, 3, 100])
def test_masks_that_repeat_with_any_period(period, repeat):
    """Blocks and slices begin at any offset within a period."""
    x = np.ones((5, repeat, period), np.float32)
    want, _ = reference.structured(x, 0.5, (None, 1, None), **SEED)
    np.testing.assert_array_equal(gpudrop.dropout(x, 0.5, mask_shape=(None, 1, None), rng=STREAM), want)


def test_a_failed_allocation_of_the_mask_leaves_the_generator_unchanged(monkeypatch):
    rng = gpudrop.Generator(1)

    def out_of_memory(*args):
        raise MemoryError

    monkeypatch.setattr(gpudrop.arrays, "empty", out_of_memory)
    for name in ("drop_path", "dropblock2d"):
        with pytest.raises(MemoryError):
            getattr(gpudrop, name)(X, rng=rng)
    assert rng.next() == Stream(1, 0)


def test_a_new_p_compiles_nothing():
    from gpudrop.kernels import cpu

    x = np.ones((4, 3), np.float32)
    for name in ("dropout", "drop_path", "alpha_dropout", "gaussian_dropout", "dropblock2d"):
        variant = getattr(gpudrop, name)
        variant.vjp(x, 0.5)[1](x)
        before = cpu.entry.cache_info().misses
        for p in np.linspace(0.01, 0.9, 20):
            variant.vjp(x, p)[1](x)
        assert cpu.entry.cache_info().misses == before
