"""Layers: every variant has one, and each trains, evaluates, goes back, is shown, saved and restored."""

import copy
import pickle

import numpy as np
import pytest

import gpudrop
from gpudrop import Generator, Stream, layers, schedules
from tests.family.layer_calls import CLASSES, SHAPES, arrays


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def test_every_variant_has_a_layer():
    functions = {value for value in vars(gpudrop).values() if hasattr(value, "vjp")}
    assert {cls.function for cls in CLASSES} == functions
    assert set(SHAPES) == {cls.__name__ for cls in layers.Layer.__subclasses__()}


@pytest.mark.parametrize("cls", CLASSES)
def test_a_layer_is_its_function(cls):
    layer = cls(0.4, rng=Generator(4), activation="gelu")
    inputs = arrays(layer)
    y = layer(*inputs)
    want, backprop = cls.function.vjp(*inputs, 0.4, rng=Stream(4, 0), activation="gelu")
    np.testing.assert_array_equal(y, want)
    for got, gradient in zip(as_tuple(layer.backward(y)), as_tuple(backprop(y)), strict=True):
        np.testing.assert_array_equal(got, gradient)
    assert layer.eval() is layer and not layer.training
    off = cls.function(*inputs, 0.4, activation="gelu", training=False)
    np.testing.assert_array_equal(layer(*inputs), off)
    np.testing.assert_array_equal(layer(*inputs), off)  # the same at each prediction
    assert layer.train() is layer and layer.training
    np.testing.assert_array_equal(layer(*inputs), cls.function(*inputs, 0.4, rng=Stream(4, 1), activation="gelu"))


@pytest.mark.parametrize("cls", CLASSES)
def test_a_pickled_layer_goes_on_alike(cls):
    layer = cls(0.4, rng=Generator(4))
    inputs = arrays(layer)
    for _ in range(2):  # the second time after a call, which holds a function and arrays
        twin = pickle.loads(pickle.dumps(layer))
        with pytest.raises(RuntimeError, match="backward needs a call"):
            twin.backward(inputs[0])
        np.testing.assert_array_equal(twin(*inputs), layer(*inputs))


@pytest.mark.parametrize("shape", ["Invalid", (0.5, 1), (-1, 4), (2, "a"), 3])
def test_a_mask_shape_that_can_never_be_one_is_refused_at_once(shape):
    with pytest.raises((TypeError, ValueError), match="mask_shape must") as refused:
        layers.Dropout(0.5, mask_shape=shape)
    with pytest.raises(type(refused.value)) as again:
        gpudrop.dropout(np.ones((2, 4), np.float32), 0.5, mask_shape=shape)
    assert str(again.value) == str(refused.value)
    assert layers.Dropout(0.5, mask_shape=[20, 1, np.int64(10), None]).options["mask_shape"] == (20, 1, 10, None)


def test_a_deep_copy_draws_other_masks():
    x, layer = np.ones(200, np.float32), layers.Dropout(0.5, rng=Generator(4), activation="relu", bits=8)
    layer.step = 3
    layer(x)
    copies = [copy.deepcopy(layer) for _ in range(3)]
    with pytest.raises(RuntimeError, match="backward needs a call"):
        copies[0].backward(x)
    assert [repr(twin) for twin in copies] == [repr(layer)] * 3 and copies[1].step == 3
    assert layer.rng.state_dict() == {"seed": 4, "call": 4}  # each copy has used up one
    want = [Generator(4) for _ in copies]
    for k, rng in enumerate(want):
        rng.load_state_dict({"seed": 4, "call": 1 + k})
        assert copies[k].rng.state_dict() == rng.spawn(1)[0].state_dict()
    assert len({twin(x).tobytes() for twin in (layer, *copies)}) == 4
    first, second = copy.deepcopy([layers.Dropout(rng=layer.rng), layers.DropPath(rng=layer.rng)])
    assert first.rng is second.rng and first.rng is not layer.rng  # what was shared is shared among the copies
    fixed = layers.Dropout(rng=Stream(4, 7))
    assert copy.deepcopy(fixed).rng == fixed.rng


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_share_the_default_generator(clone):
    gpudrop.manual_seed(8)
    layer = layers.Dropout(0.5)
    twin, x = clone(layer), np.ones(100)
    np.testing.assert_array_equal(layer(x), gpudrop.dropout(x, 0.5, rng=Stream(8, 0)))
    np.testing.assert_array_equal(twin(x), gpudrop.dropout(x, 0.5, rng=Stream(8, 1)))
    assert twin.state_dict()["rng"] == {"seed": 8, "call": 2}


@pytest.mark.parametrize("rng", [lambda: Generator(4), lambda: Stream(4, 7)])
@pytest.mark.parametrize("cls", CLASSES)
def test_state_is_saved_and_restored(cls, rng):
    layer = cls(schedules.linear(0, 0.5, 10), rng=rng())
    inputs = arrays(layer)
    layer.step = 6
    layer(*inputs)
    state = pickle.loads(pickle.dumps(layer.state_dict()))
    other = cls(0.1, rng=Generator(0) if isinstance(layer.rng, Generator) else Stream(0, 0))
    other.load_state_dict(state)
    assert other.state_dict() == state == layer.state_dict()
    np.testing.assert_array_equal(other(*inputs), layer(*inputs))
    assert repr(other) == repr(layer)


def test_a_bad_state_changes_nothing():
    layer = layers.DropPath(0.25, rng=Generator(3))
    good = layer.state_dict()
    for change in (
        {"p": 2},
        {"step": -1},
        {"rng": {"seed": 1}},
        {"p": {"first": 0, "last": 1, "curve": "?"}},
        {"x": 1},
    ):
        with pytest.raises((TypeError, ValueError)):
            layer.load_state_dict(good | change)
        assert layer.state_dict() == good


def test_a_schedule_follows_the_step():
    layer = layers.Dropout2d(schedules.late(1, 5), rng=Generator(0))
    x = np.ones((2, 3, 4, 4), np.float32)
    for step in range(10):
        layer.step = step
        np.testing.assert_array_equal(layer(x), x if step < 5 else 0)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (layers.Dropout(keep_prob=0.8), "Dropout(p=0.2, activation=None, bits=16)"),
        (layers.Dropout(mask_shape=(None, 1)), "Dropout(p=0.5, mask_shape=(None, 1), activation=None, bits=16)"),
        (layers.DropBlock2d(activation="relu", bits=16), "DropBlock2d(p=0.1, activation='relu', bits=16)"),
        (layers.DropBlock2d(block_size=3), "DropBlock2d(p=0.1, block_size=3, activation=None, bits=32)"),
        (layers.GaussianNoise(0.3), "GaussianNoise(std=0.3, activation=None, bits=32)"),
        (layers.Zoneout(), "Zoneout(p=0.5, activation=None, bits=16)"),
        (
            layers.DropPath(schedules.constant(0.5)),
            "DropPath(p=Schedule(first=0.5, last=0.5, steps=1, curve='linear'), activation=None, bits=16)",
        ),
    ],
)
def test_repr(layer, text):
    assert repr(layer) == text


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (
            TypeError,
            "DropPath has no option 'block_size'; it has activation, bits",
            lambda: layers.DropPath(block_size=3),
        ),
        (TypeError, "GaussianNoise has no option 'keep_prob'", lambda: layers.GaussianNoise(keep_prob=0.3)),
        (TypeError, "GaussianNoise has no option 'p'", lambda: layers.GaussianNoise(p=0.3)),
        (ValueError, "p must be below 1", lambda: layers.GaussianDropout(1)),
        (ValueError, "std must be finite and not negative", lambda: layers.GaussianNoise(-1)),
        (ValueError, "p must be between 0 and 1, got 2", lambda: layers.AlphaDropout(2)),
        (ValueError, "unknown activation 'gelo'", lambda: layers.DropPath(activation="gelo")),
        (ValueError, "bits must be one of 8, 16, 32, got 12", lambda: layers.DropPath(bits=12)),
        (RuntimeError, "backward needs a call", lambda: layers.Zoneout().backward(np.ones(3))),
        (ValueError, "give p or keep_prob, not both", lambda: layers.DropPath(0.1, keep_prob=0.9)),
    ],
)
def test_errors(error, message, call):
    with pytest.raises(error, match=message):
        call()
