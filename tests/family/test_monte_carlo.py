"""Monte-Carlo dropout: moments over masks that belong to samples, however the samples are divided into batches."""

import ml_dtypes
import numpy as np
import pytest

import gpudrop
from gpudrop import Generator, Stream, layers
from gpudrop.testing import reference
from gpudrop.variants import FAMILY
from tests.family.shapes import ALONE, SHAPES

RNG = np.random.default_rng(0)
X = RNG.normal(size=(10, 6)).astype(np.float32)
MAPS = RNG.normal(size=(10, 3, 5, 4)).astype(np.float32)


def ten_samples(shape):
    return RNG.normal(size=(10, *shape[1:])).astype(np.float32)


# Networks whose masks belong to samples, and their inputs. In most of them the first axis is the samples.
NETWORKS = {
    name: (lambda x, function=FAMILY[name].function: function(x, 0.4), ten_samples(SHAPES[name]))
    for name in ALONE
    if not FAMILY[name].whole
}
NETWORKS |= {
    "dropout": (lambda x: gpudrop.dropout(x, 0.4, activation="gelu"), X),
    "two dropouts": (lambda x: gpudrop.dropout(gpudrop.dropout(x, 0.2) * 2, 0.4, bits=8), X),
    "channels last": (lambda x: gpudrop.dropout2d(x, 0.4, channels_last=True), MAPS),
    "locked_dropout": (lambda x: gpudrop.locked_dropout(x, 0.4, time_axis=1), MAPS),
    "time first": (lambda x: gpudrop.locked_dropout(x.swapaxes(0, 1), 0.4).swapaxes(0, 1), MAPS),
    "mask_shape": (lambda x: gpudrop.dropout(x, 0.4, mask_shape=(None, 1, None, 1)), MAPS),
    "shared by all samples": (lambda x: gpudrop.dropout(x, 0.4, mask_shape=(1, None, 1, 1)), MAPS),
    "zoneout": (lambda x: gpudrop.zoneout(x, x + 1, 0.4), X),
    "dropout_add": (lambda x: gpudrop.dropout_add(x, x + 1, 0.4), X),
    "tokens": (lambda x: np.where(gpudrop.keep_mask(x.shape, 0.4), x, np.float32(-1)), X),
    "no samples": (lambda x: x * gpudrop.dropout(np.array(1, np.float32), 0.4), X),
    "embedding_dropout": (lambda x: x @ gpudrop.embedding_dropout(np.ones((6, 2), np.float32), 0.4), X),
    "drop_connect": (lambda x: x @ gpudrop.drop_connect(np.ones((6, 2), np.float32), 0.4), X),
    "weights of each sample": (
        lambda x: (x[:, None] @ gpudrop.drop_connect(np.ones((6, 2), np.float32), 0.4, samples=len(x)))[:, 0],
        X,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_sample_is_the_same_in_any_batch(name):
    fn, x = NETWORKS[name]
    whole = gpudrop.mc_samples(fn, x, 5, Generator(7))
    assert whole.mean.shape == fn(x).shape and whole.mean.dtype == np.float32
    assert (whole.variance > 0).any()
    results = [gpudrop.mc_samples(fn, x, 5, Generator(7), batch_size=size) for size in (1, 3, 4, 10, 99)]
    parts = [gpudrop.mc_samples(fn, x[a:b], 5, Generator(7), first=a) for a, b in ((0, 1), (1, 6), (6, 10))]
    results.append([np.concatenate(arrays) for arrays in zip(*parts, strict=True)])
    for mean, variance in results:
        # Matrix products with fewer rows add up in another order.
        np.testing.assert_allclose(mean, whole.mean, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(variance, whole.variance, rtol=1e-5, atol=1e-6)


def test_dropblocks_seeds_belong_to_samples():
    """Its normalisation depends on the whole batch, so only the masks are compared."""

    def fn(x):
        return (gpudrop.dropblock2d(x, 0.4, block_size=3) != 0).astype(np.float32)

    for x in (MAPS, MAPS[:, 0]):
        whole = gpudrop.mc_samples(fn, x, 5, Generator(7))
        np.testing.assert_array_equal(gpudrop.mc_samples(fn, x, 5, Generator(7), batch_size=3).mean, whole.mean)
        assert len(np.unique(whole.mean.reshape(10, -1), axis=0)) == 10


def test_mean_and_variance_equal_those_over_the_calls():
    calls = []

    def fn(x):
        calls.append(gpudrop.dropout(x, 0.4))
        return calls[-1]

    mean, variance = gpudrop.mc_samples(fn, X, 20, Generator(3))
    assert len(calls) == 20
    np.testing.assert_allclose(mean, np.mean(calls, axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variance, np.var(calls, axis=0), rtol=1e-4, atol=1e-6)
    seeds = [child.state_dict()["seed"] for child in Generator(3).spawn(20)]
    for y, seed in zip(calls, seeds, strict=True):
        np.testing.assert_allclose(y, reference.dropout(X, 0.4, seed=seed), rtol=1e-6)


def test_moments_match_dropouts():
    x = np.ones((2, 500), np.float32)
    mean, variance = gpudrop.mc_samples(lambda x: gpudrop.dropout(x, 0.25), x, 400, Generator(0))
    assert abs(mean.mean() - 1) < 5 * np.sqrt(1 / 3 / 400 / 1000)
    assert variance.mean() == pytest.approx(1 / 3, rel=0.02)


def test_more_calls_or_samples_leave_earlier_results_unchanged():
    def collected(x, n):
        calls = []
        gpudrop.mc_samples(lambda x: calls.append(gpudrop.dropout(x, 0.4)) or calls[-1], x, n, Generator(3))
        return calls

    for few, many in zip(collected(X[:4], 3), collected(X, 6), strict=False):
        np.testing.assert_array_equal(few, many[:4])


def test_layers_draw_from_the_samples_generators_and_keep_their_own():
    layer = layers.Dropout(0.4, rng=Generator(99))
    mean, _ = gpudrop.mc_samples(layer, X, 5, Generator(3))
    want, _ = gpudrop.mc_samples(lambda x: gpudrop.dropout(x, 0.4), X, 5, Generator(3))
    np.testing.assert_array_equal(mean, want)
    assert layer.rng.state_dict()["call"] == 0
    mean, variance = gpudrop.mc_samples(layer.eval(), X, 5, Generator(3))
    np.testing.assert_array_equal(mean, X)
    np.testing.assert_array_equal(variance, 0)


def test_rng_arguments():
    def fn(x):
        return gpudrop.dropout(x, 0.4)

    rng = Generator(3)
    first, second = gpudrop.mc_samples(fn, X, 4, rng), gpudrop.mc_samples(fn, X, 4, rng)
    assert rng.state_dict()["call"] == 2 and not np.array_equal(first.mean, second.mean)
    np.testing.assert_array_equal(gpudrop.mc_samples(fn, X, 4, Stream(3, 1)).mean, second.mean)
    gpudrop.manual_seed(3)
    np.testing.assert_array_equal(gpudrop.mc_samples(fn, X, 4).mean, first.mean)
    _, variance = gpudrop.mc_samples(lambda x: gpudrop.dropout(x, 0.4, rng=Stream(1, 1)), X, 4)
    np.testing.assert_array_equal(variance, 0)  # a Stream repeats its mask


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_moments_of_many_calls_in_low_precision(dtype):
    x = np.full((3, 400), 30, dtype)
    mean, variance = gpudrop.mc_samples(lambda x: gpudrop.dropout(x, 0.5), x, 2000, Generator(0))
    assert mean.dtype == variance.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert mean.mean() == pytest.approx(30, rel=0.005) and variance.mean() == pytest.approx(900, rel=0.005)


def test_nested_calls():
    """The inner call's generators and samples derive from the outer call's."""

    def outer(x):
        return gpudrop.mc_samples(lambda x: gpudrop.dropout(x, 0.4), x, 3).mean

    whole = gpudrop.mc_samples(outer, X, 4, Generator(1))
    parts = gpudrop.mc_samples(outer, X, 4, Generator(1), batch_size=3)
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-6)
    assert (whole.variance > 0).any()


def test_keep_mask_equals_dropouts_mask():
    def fn(x):
        kept = gpudrop.keep_mask(x.shape, 0.4, Stream(1, 2))
        np.testing.assert_array_equal(gpudrop.dropout(x, 0.4, rng=Stream(1, 2)) != 0, kept)
        return x

    gpudrop.mc_samples(fn, X, 2, Generator(1), batch_size=3)
    with gpudrop.no_dropout():
        assert gpudrop.keep_mask(100, 0.9).all()


def test_an_error_in_fn_restores_the_context():
    def fn(x):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        gpudrop.mc_samples(fn, X, 3, Generator(0), first=5)
    np.testing.assert_array_equal(gpudrop.dropout(X, 0.5, rng=Generator(1)), gpudrop.dropout(X, 0.5, rng=Stream(1, 0)))


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "n must be at least 1, got 0", {"n": 0}),
        (ValueError, "batch_size must be at least 1, got 0", {"n": 2, "batch_size": 0}),
        (TypeError, "n must be an integer, got 1.5", {"n": 1.5}),
        (ValueError, "first must be between 0", {"n": 2, "first": -1}),
        (TypeError, "rng must be a gpudrop.Generator", {"n": 2, "rng": "3"}),
        (ValueError, "first must be so small that the mask ends below", {"n": 2, "first": 2**63}),
    ],
)
def test_errors(error, message, options):
    with pytest.raises(error, match=message):
        gpudrop.mc_samples(lambda x: gpudrop.dropout(x, 0.4), X, **options)


@pytest.mark.parametrize("result", [object(), [1.0], (X, X), None])
def test_results_that_cannot_be_added_up(result):
    with pytest.raises(TypeError, match=f"fn must return arrays that can be added up, got {type(result).__name__}"):
        gpudrop.mc_samples(lambda x: result, X, 2)


def test_results_without_a_sample_axis():
    assert gpudrop.mc_samples(lambda x: gpudrop.dropout(x, 0.4).sum(), X, 2).mean.shape == ()
    with pytest.raises(ValueError, match="fn must return an array whose first axis is as long as x itself"):
        gpudrop.mc_samples(lambda x: x.sum(), X, 2, batch_size=3)
    with pytest.raises(ValueError, match="x must be an array whose first axis counts samples"):
        gpudrop.mc_samples(lambda x: x, np.array(1.0), 2)


def test_torch_tensors():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    mean, variance = gpudrop.mc_samples(
        lambda x: gpudrop.dropout(x, 0.4), torch.from_numpy(X), 4, Stream(3, 1), batch_size=3
    )
    want = gpudrop.mc_samples(lambda x: gpudrop.dropout(x, 0.4), X, 4, Stream(3, 1))
    np.testing.assert_allclose(mean.numpy(), want.mean, rtol=1e-6)
    np.testing.assert_allclose(variance.numpy(), want.variance, rtol=1e-5, atol=1e-6)
