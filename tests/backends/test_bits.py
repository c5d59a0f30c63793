"""One bit per element: saved for the backward pass of relu and leaky_relu, packed masks, and masks that are given."""

import ml_dtypes
import numpy as np
import pytest

import gpudrop
from gpudrop import Shard, Stream
from gpudrop.formulas.activations import ACTIVATIONS
from gpudrop.kernels import cpu
from gpudrop.testing import reference, selftest
from gpudrop.variants import FAMILY
from tests.conftest import SIMULATED
from tests.family.layer_calls import gradients_of
from tests.sampling import few

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
HAVING = [name for name, row in ACTIVATIONS.items() if row.slopes is not None]
STREAM = Stream(2**63 + 5, 2**40 + 3)
SIZES = (0, 1, 8, 33, 255, 256, 513) if SIMULATED else (*selftest.SIZES, 511, 512, 513, 1024, 4095, 70_001)


def numbers(shape, dtype, seed=0):
    """Normal deviates and every special value."""
    x = np.random.default_rng(seed).normal(size=shape)
    flat = x.reshape(-1)
    for value in (0.0, -0.0, np.nan, np.inf, -np.inf):
        flat[np.random.default_rng(seed + 1).integers(0, max(1, x.size), x.size // 40)] = value
    return x.astype(dtype)


def both_ways(backend, function, x, *others, dy, **options):
    """(y and the gradients with save="output", the same with "bits"). Between the passes y is overwritten."""
    results = []
    for save in ("output", "bits"):
        y, backprop = function.vjp(x, *others, save=save, **options)
        first = backend.get(y).copy()
        if save == "bits" and isinstance(y, np.ndarray):
            y[...] = -1
        results.append([first, *map(backend.get, gradients_of(backprop(dy)))])
    return results


def assert_same_bits(one, other):
    for a, b in zip(one, other, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        bits = f"u{a.itemsize}"
        np.testing.assert_array_equal(np.ascontiguousarray(a).view(bits), np.ascontiguousarray(b).view(bits))


@pytest.mark.parametrize("activation", HAVING)
@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("dtype", few(DTYPES, *DTYPES))
@pytest.mark.parametrize("p", [0, 0.3, 1])
def test_the_gradient_from_bits_is_the_gradient_from_arrays(backend, poisoned, activation, bits, dtype, p):
    for size in SIZES:
        x, dy = numbers(size, dtype), numbers(size, dtype, 2)
        options = {"activation": activation, "bits": bits, "rng": STREAM, "p": p}
        results = both_ways(backend, gpudrop.dropout, backend.put(x), dy=backend.put(dy), **options)
        assert_same_bits(*results)


@pytest.mark.parametrize("dtype", DTYPES)
def test_relu_equals_the_reference(backend, poisoned, dtype):
    x, dy = numbers(1000, dtype), np.ones(1000, dtype)
    y, backprop = gpudrop.dropout_vjp(backend.put(x), 0.5, activation="relu", rng=STREAM, save="bits")
    kept = reference.keep_mask(1000, 0.5, STREAM.seed, STREAM.call)
    np.testing.assert_array_equal(backend.get(y), np.where(kept & ~(x <= 0), x * dtype(2), dtype(0)))
    np.testing.assert_array_equal(backend.get(backprop(backend.put(dy))), np.where(kept & ~(x <= 0), 2, 0))


@pytest.mark.parametrize("activation", HAVING)
@pytest.mark.parametrize("dtype", few(DTYPES, np.float32, np.float16))
@pytest.mark.parametrize("shape", [(7, 36), (64, 16), (9, 5, 24)])
@pytest.mark.parametrize("begin", [0, 1, 4, 16])
def test_shards_that_begin_anywhere_in_a_byte(backend, poisoned, activation, dtype, shape, begin):
    shard = Shard((*shape[:-1], 64), (*(0,) * (len(shape) - 1), begin))
    x, dy = numbers(shape, dtype), numbers(shape, dtype, 2)
    options = {"activation": activation, "rng": STREAM, "p": 0.4, "shard": shard}
    assert_same_bits(*both_ways(backend, gpudrop.dropout, backend.put(x), dy=backend.put(dy), **options))
    rows = {"shard": Shard((shape[0] + 3, *shape[1:]), (begin % 4, *(0,) * (len(shape) - 1)))}
    assert_same_bits(*both_ways(backend, gpudrop.dropout, backend.put(x), dy=backend.put(dy), **options | rows))


LAYOUTS = {
    "offset": lambda a: a.reshape(-1)[1:],
    "every other column": lambda a: a[:, ::2],
    "every other row": lambda a: a[::2],
    "columns": lambda a: a[:, 3:20],
}


@pytest.mark.parametrize("activation", HAVING)
@pytest.mark.parametrize("dtype", few(DTYPES, np.float32, np.float16))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_of_any_layout(backend, poisoned, activation, dtype, layout):
    x, dy = (backend.put(numbers((48, 40), dtype, seed)) for seed in (0, 2))
    options = {"activation": activation, "rng": STREAM, "p": 0.4}
    x, dy = LAYOUTS[layout](x), LAYOUTS[layout](dy)
    assert_same_bits(*both_ways(backend, gpudrop.dropout, x, dy=dy, **options))


@pytest.mark.parametrize("name", [name for name in FAMILY if name != "dropout_glu"])  # it reads the gate anyway
@pytest.mark.parametrize("activation", HAVING)
@pytest.mark.parametrize("training", [True, False])
def test_every_variant(backend, poisoned, name, activation, training):
    row = FAMILY[name]
    x, dy, *others = (
        backend.put(numbers((2, 3, 8, 8, 8)[: row.ndim], np.float32, k)) for k in range(len(row.inputs) + 1)
    )
    options = {"activation": activation, "rng": STREAM, row.strength: 0.4, "training": training}
    output, bits = both_ways(backend, row.function, x, *others, dy=dy, **options)
    if row.noise.zeroes:
        assert_same_bits(output, bits)
    for a, b in zip(output, bits, strict=True):  # sums of two products may be rounded differently
        np.testing.assert_allclose(a, b, rtol=3e-7, atol=1e-7)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_packed_masks(backend, poisoned, bits):
    for size in SIZES:
        mask = backend.mask(size, 0.4, STREAM, bits=bits)
        packed = backend.mask(size, 0.4, STREAM, bits=bits, packed=True)
        assert packed.dtype == np.uint8
        np.testing.assert_array_equal(packed, np.packbits(mask, axis=None, bitorder="little"))
    for start in (1, 8, 2**32 - 3, 2**40 + 7):
        mask = backend.mask((5, 10), 0.4, STREAM, bits=bits, start=start)
        packed = backend.mask((5, 10), 0.4, STREAM, bits=bits, start=start, packed=True)
        np.testing.assert_array_equal(packed, np.packbits(mask, axis=None, bitorder="little"))


def test_the_packed_mask_of_a_shard(backend, poisoned):
    shard = Shard((6, 20), (1, 7))
    packed = backend.mask((4, 9), 0.4, STREAM, shard=shard, packed=True)
    whole = reference.keep_mask((6, 20), 0.4, STREAM.seed, STREAM.call)
    np.testing.assert_array_equal(packed, np.packbits(whole[1:5, 7:16], bitorder="little"))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "silu"])
@pytest.mark.parametrize("dtype", few(DTYPES, np.float32, np.float16))
def test_a_given_mask(backend, poisoned, packed, activation, dtype):
    for shape in ((), (0,), (13,), (3, 50), (2, 5, 41)):
        x, dy = backend.put(numbers(shape, dtype)), backend.put(numbers(shape, dtype, 2))
        keep = backend.put(reference.keep_mask(shape, 0.4, STREAM.seed, STREAM.call))
        keep = backend.put(np.packbits(backend.get(keep), axis=None, bitorder="little")) if packed else keep
        options = {"p": 0.4, "activation": activation}
        drawn = gpudrop.dropout_vjp(x, rng=STREAM, **options)
        given = gpudrop.dropout_vjp(x, keep=keep, **options)
        results = [[backend.get(y), backend.get(backprop(dy))] for y, backprop in (drawn, given)]
        assert_same_bits(*results)
        assert_same_bits(results[0][:1], [backend.get(gpudrop.dropout(x, keep=keep, **options))])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mask_shape", [(None, 1), (1, None), (None,), (None, 1, None, 1, None)])
def test_a_given_mask_is_broadcast(backend, poisoned, packed, mask_shape):
    shape = (2, 3, 4, 5, 6) if len(mask_shape) == 5 else (6, 36)
    own = tuple(n if m is None else m for m, n in zip(mask_shape, shape[-len(mask_shape) :], strict=True))
    keep = reference.keep_mask(own, 0.4, STREAM.seed, STREAM.call)
    keep = np.packbits(keep, axis=None, bitorder="little") if packed else keep
    x = backend.put(numbers(shape, np.float32))
    drawn = gpudrop.dropout(x, 0.4, mask_shape=mask_shape, rng=STREAM)
    given = gpudrop.dropout(x, 0.4, mask_shape=mask_shape, keep=backend.put(keep))
    assert_same_bits([backend.get(drawn)], [backend.get(given)])


def test_a_given_mask_is_applied_with_the_scale_of_p():
    x, keep = np.ones(4, np.float32), np.array([True, False, True, True])
    for p in (0, 0.25, 0.1):
        scale = gpudrop.quantize(p, 8).scale
        want = np.float32(scale) * keep
        np.testing.assert_array_equal(gpudrop.dropout(x, p, keep=keep, bits=8), want.astype(np.float32))
    np.testing.assert_array_equal(gpudrop.dropout(x, 0.5, keep=keep, training=False), x)
    with gpudrop.no_dropout():
        np.testing.assert_array_equal(gpudrop.dropout(x, 0.5, keep=keep), x)


def test_a_given_mask_uses_no_stream():
    generator = gpudrop.manual_seed(7)
    before = generator.state_dict()
    gpudrop.dropout(np.ones(4, np.float32), keep=np.ones(4, bool))
    gpudrop.dropout(np.ones(0, np.float32), keep=np.ones(0, bool))
    assert generator.state_dict() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": np.ones(3, bool)}, r"keep must be a NumPy array of dtype bool and shape \(4,\), or its packed bits"),
        ({"keep": np.ones((4, 1), bool)}, "got a NumPy array of dtype bool and shape"),
        ({"keep": np.ones(2, np.uint8)}, "got a NumPy array of dtype uint8"),
        ({"keep": np.ones(4, np.float32)}, "got a NumPy array of dtype float32"),
        ({"keep": np.ones(4, bool), "rng": 1}, "keep and rng can't both be set"),
        ({"keep": np.ones(4, bool), "shard": Shard((4,), (0,))}, "keep and shard can't both be set"),
    ],
)
def test_a_wrong_given_mask_is_an_error(options, message):
    for function in (gpudrop.dropout, gpudrop.dropout_vjp):
        with pytest.raises(ValueError, match=message):
            function(np.ones(4, np.float32), 0.5, **options)


@pytest.mark.parametrize("name", [None, *sorted(ACTIVATIONS.keys() - {*HAVING})])
def test_other_activations_refuse_to_save_bits(name):
    generator = gpudrop.Generator(1)
    with pytest.raises(ValueError, match=f"save='bits' needs .*leaky_relu, relu.*got {name or 'identity'!r}"):
        gpudrop.dropout_vjp(np.ones(4, np.float32), 0.5, activation=name, rng=generator, save="bits")
    assert generator.state_dict()["call"] == 0


def test_unknown_ways_of_saving_are_an_error():
    with pytest.raises(ValueError, match="save must be one of auto, output, bits, got 'all'"):
        gpudrop.dropout_vjp(np.ones(4, np.float32), save="all")
    with pytest.raises(ValueError, match="save must be one of"):
        gpudrop.Dropout(save="all")


@pytest.mark.parametrize("name", HAVING)
def test_the_table_has_all_values_of_a_slope(name):
    row = ACTIVATIONS[name]
    numbers = [float(x) for x in (*np.linspace(-20, 20, 1001), np.nan, np.inf, -np.inf)]
    values = map(row.value, numbers) if row.slope_of == "output" else numbers
    assert {row.slope(value) for value in values} == {*row.slopes}


def test_auto_saves_what_is_faster():
    for size, by_bits in ((1 << 18, True), ((1 << 18) - 1, False)):
        x = np.ones((1, size), np.float32)
        assert cpu.saves_bits(x) == by_bits
        y, backprop = gpudrop.dropout_vjp(x, 0.5, activation="relu", rng=STREAM)
        y[...] = 0
        assert backprop(x).any() == by_bits
    assert not cpu.saves_bits(np.ones((1 << 10, 1 << 10), np.float32).T)


@pytest.mark.parametrize("activation", HAVING)
def test_layers(activation):
    x = numbers((30, 40), np.float32)
    results = []
    for save in ("output", "bits"):
        layer = gpudrop.Dropout(0.4, activation=activation, rng=STREAM, save=save)
        assert layer.save == save and f"save={save!r}" in repr(layer)
        y = layer(x)
        results.append([y.copy(), layer.backward(x)])
    assert_same_bits(*results)


def test_layers_of_older_versions_can_be_loaded():
    layer = gpudrop.Dropout(0.4, activation="relu")
    state = layer.__getstate__()
    del state["save"]
    other = gpudrop.Dropout.__new__(gpudrop.Dropout)
    other.__setstate__(state)
    assert other.save == "auto" and other.p == 0.4
