"""Shards and streams in memory: the features of the kernels that sharded tensors and captured graphs need."""

import itertools
import re

import numpy as np
import pytest

import gpudrop
from gpudrop import Stream
from gpudrop.context import Changes
from gpudrop.generator import StoredStream
from gpudrop.masks import Shard, rows
from tests.conftest import SIMULATED
from tests.sampling import few

STREAM = Stream(2**63 + 5, 2**40 + 3)
WHOLE = (3, 4, 5, 16) if SIMULATED else (5, 4, 6, 48)

# Where a shard begins and ends along each axis. Some sizes are multiples of the number of lanes, and some are not.
PARTS = {
    "samples": ((1, 3), (0, 4), (0, 5), (0, 16)),
    "rows": ((0, 3), (1, 3), (0, 5), (0, 16)),
    "columns": ((0, 3), (0, 4), (0, 5), (8, 16)),
    "uneven columns": ((0, 3), (0, 4), (0, 5), (3, 14)),
    "samples and columns": ((1, 3), (0, 4), (0, 5), (8, 16)),
    "rows and columns": ((0, 3), (1, 3), (0, 5), (5, 8)),
    "a block of all": ((1, 3), (2, 4), (1, 5), (1, 9)),
    "one element": ((2, 3), (1, 2), (4, 5), (7, 8)),
    "nothing": ((2, 2), (0, 4), (0, 5), (0, 16)),
}

CALLS = {
    "dropout": (gpudrop.dropout, {}),
    "32 bits": (gpudrop.dropout, {"bits": 32}),
    "8 bits": (gpudrop.dropout, {"bits": 8}),
    "relu": (gpudrop.dropout, {"activation": "relu"}),
    "gelu": (gpudrop.dropout, {"activation": "gelu"}),
    "channels": (gpudrop.dropout2d, {}),
    "samples": (gpudrop.drop_path, {}),
    "scattered": (gpudrop.dropout, {"mask_shape": (None, 1, None, 1)}),
    "deviates": (gpudrop.gaussian_dropout, {}),
    "alpha": (gpudrop.alpha_dropout, {}),
}


def whole(dtype=np.float32):
    return np.random.default_rng(0).normal(size=WHOLE).astype(dtype)


ROWS = list(itertools.product(CALLS, PARTS))
SOME = [row for row in ROWS if row[0] == "dropout" or row[1] == "a block of all"]


@pytest.mark.parametrize(("call", "name"), few(ROWS, *SOME))
def test_a_shard_gets_its_slice_of_the_mask(backend, poisoned, name, call):
    function, options = CALLS[call]
    part = tuple(slice(*ends) for ends in PARTS[name])
    x, dy = whole(), whole()[::-1].copy()
    y, backprop = function.vjp(backend.put(x), 0.4, rng=STREAM, **options)
    want, dx_want = backend.get(y)[part], backend.get(backprop(backend.put(dy)))[part]
    mine, mine_dy = (backend.put(np.ascontiguousarray(array[part])) for array in (x, dy))
    y, backprop = function.vjp(
        mine, 0.4, rng=STREAM, **options, shard=Shard(WHOLE, tuple(ends[0] for ends in PARTS[name]))
    )
    np.testing.assert_array_equal(backend.get(y), want)
    np.testing.assert_array_equal(backend.get(backprop(mine_dy)), dx_want)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_shards_of_strided_arrays(backend, poisoned, dtype):
    x = whole(dtype)
    want = backend.get(gpudrop.dropout(backend.put(x), 0.4, rng=STREAM))[:, :, :, 8:16]
    y = gpudrop.dropout(backend.put(x)[:, :, :, 8:16], 0.4, rng=STREAM, shard=Shard(WHOLE, (0, 0, 0, 8)))
    np.testing.assert_array_equal(backend.get(y), want)


@pytest.mark.parametrize("pitch", [37, 45])
def test_rows_that_begin_at_different_offsets_in_a_chunk(backend, poisoned, pitch):
    x = np.random.default_rng(0).normal(size=(5, pitch)).astype(np.float32)
    want = backend.get(gpudrop.dropout(backend.put(x), 0.4, rng=STREAM))
    for begin, end in ((0, 8), (0, 17), (3, 19), (8, 24)):
        shard = Shard(x.shape, (0, begin))
        y = gpudrop.dropout(backend.put(np.ascontiguousarray(x[:, begin:end])), 0.4, rng=STREAM, shard=shard)
        np.testing.assert_array_equal(backend.get(y), want[:, begin:end])


def test_rows_of_shards():
    assert rows((4, 6), Shard((4, 6), (0, 0))) == (24, 24, (0,))
    assert rows((2, 6), Shard((4, 6), (2, 0))) == (12, 24, (12,))
    assert rows((4, 3), Shard((4, 6), (0, 3))) == (3, 6, (3,))
    assert rows((2, 5, 3), Shard((4, 5, 6), (2, 0, 3))) == (3, 6, (63,))  # the slowest axis may be split too
    assert rows((2, 2, 3), Shard((2, 4, 6), (0, 1, 3))) == (3, 6, (9, 33))
    assert rows((), Shard((), ())) == (1, 1, (0,))


def test_a_shard_of_several_thread_slices():
    x = np.ones((3000, 2000), np.float32)
    want = gpudrop.dropout(x, 0.5, activation="gelu", rng=STREAM)[:, 600:1631]
    y = gpudrop.dropout(
        np.ascontiguousarray(x[:, 600:1631]), 0.5, activation="gelu", rng=STREAM, shard=Shard(x.shape, (0, 600))
    )
    np.testing.assert_array_equal(y, want)


def test_arguments_are_checked_against_the_whole_array():
    x, shard = np.ones((4, 3), np.float32), Shard((4, 6), (0, 3))
    with pytest.raises(ValueError, match=r"must broadcast against x, of shape \(4, 6\), got \(4, 3\)"):
        gpudrop.dropout(x, 0.5, mask_shape=(4, 3), shard=shard)
    for function in (gpudrop.dropblock1d, gpudrop.dropblock2d, gpudrop.dropblock2d.vjp):
        with pytest.raises(ValueError, match=r"^dropblock does not support shards: its normalisation needs"):
            function(x, 0.5, shard=shard)


WRONG = {
    "shard must have as many axes as x, which has 2, got Shard": Shard((4, 6, 1), (0, 0, 0)),
    "shard must contain an array of shape (4, 3) from its start on, got Shard": Shard((4, 6), (0, 4)),
    "shard must be of an array of at most 2**64 elements": Shard((2**40, 2**40), (0, 0)),
    "shard must be a gpudrop.Shard or None, got tuple": ((4, 6), (0, 3)),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_shard_that_does_not_fit_x_is_refused_and_draws_nothing(message):
    rng, x = gpudrop.Generator(3), np.ones((4, 3), np.float32)
    calls = [lambda shard: gpudrop.keep_mask((4, 3), 0.5, rng, shard=shard)]
    calls += [lambda shard, f=f: f(x, 0.5, rng=rng, shard=shard) for f in (gpudrop.dropout, gpudrop.drop_path.vjp)]
    for call in calls:
        with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}"):
            call(WRONG[message])
    with pytest.raises(TypeError, match=r"shard must be a gpudrop.Shard"):  # also for an empty mask
        gpudrop.keep_mask((0, 3), 0.5, rng, shard=((4, 6), (0, 3)))
    with pytest.raises(ValueError, match="start and shard can't both be set"):
        gpudrop.keep_mask((4, 3), 0.5, rng, start=3, shard=Shard((4, 6), (0, 3)))
    assert rng.state_dict()["call"] == 0


def test_invalid_shards_are_refused():
    for shape, start in (
        ((4, 6), (0,)),
        ((4,), (None,)),
        ((-1,), (0,)),
        ((4,), (-1,)),
        ((4.0,), (0,)),
        (4, 0),
        ("4", "0"),
    ):
        with pytest.raises((TypeError, ValueError), match=r"^(shape|start) must "):
            Shard(shape, start)
    assert Shard([np.int64(4), None], [np.int8(1), 0]) == Shard((4, None), (1, 0))


@pytest.mark.parametrize("name", PARTS)
def test_the_mask_of_a_shard_is_a_slice_of_the_whole_mask(backend, poisoned, name):
    shape, start = (tuple(b - a for a, b in PARTS[name]), tuple(a for a, _ in PARTS[name]))
    want = gpudrop.keep_mask(WHOLE, 0.4, STREAM)[tuple(slice(*ends) for ends in PARTS[name])]
    np.testing.assert_array_equal(backend.mask(shape, 0.4, STREAM, shard=Shard(WHOLE, start)), want)


@pytest.mark.parametrize("first", [0, 2])
def test_keep_mask_and_dropout_agree_on_a_shard_with_any_first_sample(first):
    x, shard = np.ones((2, 3)), Shard((2, 6), (0, 3))
    with Changes(first=first):
        mask, y = gpudrop.keep_mask((2, 3), 0.5, STREAM, shard=shard), gpudrop.dropout(x, 0.5, rng=STREAM, shard=shard)
    np.testing.assert_array_equal(mask, y != 0)
    np.testing.assert_array_equal(mask, gpudrop.keep_mask((first + 2, 6), 0.5, STREAM)[first:, 3:])


def test_an_axis_that_is_not_split_needs_no_size():
    x = whole()
    want = gpudrop.dropout(x, 0.4, rng=STREAM)[:, 1:3]
    y = gpudrop.dropout(x[:, 1:3].copy(), 0.4, rng=STREAM, shard=Shard((None, WHOLE[1], None, None), (0, 1, 0, 0)))
    np.testing.assert_array_equal(y, want)


def test_shards_of_weights_with_one_mask_per_sample():
    weights = np.ones((6, 8), np.float32)
    want = gpudrop.drop_connect(weights, 0.5, samples=3, rng=STREAM)
    y = gpudrop.drop_connect(weights[:, 2:5].copy(), 0.5, samples=3, rng=STREAM, shard=Shard((6, 8), (0, 2)))
    np.testing.assert_array_equal(y, want[:, :, 2:5])


@pytest.mark.parametrize("call", few(CALLS, "gelu"))
def test_a_stream_in_memory_is_read_when_a_kernel_runs(backend, poisoned, call):
    if backend.name == "cpu":
        pytest.skip("the CPU kernels take streams as numbers")
    (function, options), x = CALLS[call], backend.put(whole())
    streams = [STREAM, Stream(7, 2**64 - 1)]
    memory = backend.put(np.array([STREAM.seed, STREAM.call], np.uint64))
    y, backprop = function.vjp(x, 0.4, rng=StoredStream(memory), **options)
    for k, stream in enumerate(streams):
        if k:
            memory[0], memory[1] = stream.seed, stream.call
            y = function(x, 0.4, rng=StoredStream(memory), **options)
        want, want_backprop = function.vjp(x, 0.4, rng=stream, **options)
        np.testing.assert_array_equal(backend.get(y), backend.get(want))
        dx = backprop(x)  # draws again, from the numbers now in memory
        if not (k and call == "relu"):  # relu's gradient needs y, which was kept
            np.testing.assert_array_equal(backend.get(dx), backend.get(want_backprop(x)))


@pytest.mark.parametrize("first", [0, 1, 3])
@pytest.mark.parametrize("name", ["dropout", "drop_path", "dropout2d", "dropblock2d", "gaussian_dropout"])
def test_later_samples_get_their_slice_of_the_mask(backend, poisoned, name, first):
    """The first element of an array need not be the first element of a chunk."""
    variant = getattr(gpudrop, name)
    options = {"block_size": 2} if name == "dropblock2d" else {}
    x = np.random.default_rng(1).standard_normal((first + 2, 5, 3, 3)).astype(np.float32)
    whole, whole_backprop = variant.vjp(x, 0.4, rng=STREAM, **options)
    with Changes(first=first):
        y, backprop = variant.vjp(backend.put(x[first:]), 0.4, rng=STREAM, **options)
    dx = backprop(backend.put(x[first:]))
    for got, want in ((backend.get(y), whole), (backend.get(dx), whole_backprop(x))):
        np.testing.assert_array_equal(got == 0, want[first:] == 0)
        if name != "dropblock2d":  # its scale depends on the whole array
            np.testing.assert_allclose(got, want[first:], rtol=1e-5)
