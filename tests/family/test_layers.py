"""Every variant has a layer, which is trained, evaluated, differentiated, printed, saved and restored."""

import copy
import pickle
import warnings
import weakref
from contextlib import nullcontext

import numpy as np
import pytest

import gpudrop
from gpudrop import Generator, Stream, layers, schedules
from gpudrop.formulas import noises
from gpudrop.variants import FAMILY
from tests.family.layer_calls import CLASSES, arrays


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def test_every_row_of_the_family_is_a_function_and_a_layer():
    for name, row in FAMILY.items():
        assert getattr(gpudrop, name) is row.function and name in gpudrop.__all__
        assert getattr(layers, row.layer).variant is row and layers.VARIANTS[name] is getattr(layers, row.layer)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_layer_equals_its_function(cls):
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
    np.testing.assert_array_equal(layer(*inputs), off)  # equal at each prediction
    assert layer.train() is layer and layer.training
    np.testing.assert_array_equal(layer(*inputs), cls.function(*inputs, 0.4, rng=Stream(4, 1), activation="gelu"))


@pytest.mark.parametrize("cls", CLASSES)
def test_an_unpickled_layer_continues_with_the_same_masks(cls):
    layer = cls(0.4, rng=Generator(4))
    inputs = arrays(layer)
    for _ in range(2):  # the second time after a call, after which the layer holds a function and arrays
        twin = pickle.loads(pickle.dumps(layer))
        with pytest.raises(RuntimeError, match="backward needs a call"):
            twin.backward(inputs[0])
        np.testing.assert_array_equal(twin(*inputs), layer(*inputs))


@pytest.mark.parametrize("shape", ["Invalid", (0.5, 1), (-1, 4), (2, "a"), 3])
def test_invalid_mask_shapes_are_refused_at_construction(shape):
    with pytest.raises((TypeError, ValueError), match="mask_shape must") as refused:
        layers.Dropout(0.5, mask_shape=shape)
    with pytest.raises(type(refused.value)) as again:
        gpudrop.dropout(np.ones((2, 4), np.float32), 0.5, mask_shape=shape)
    assert str(again.value) == str(refused.value)
    assert layers.Dropout(0.5, mask_shape=[20, 1, np.int64(10), None]).mask_shape == (20, 1, 10, None)


def test_a_deep_copy_draws_other_masks():
    x, layer = np.ones(200, np.float32), layers.Dropout(0.5, rng=Generator(4), activation="relu", bits=8)
    layer.step = 3
    layer(x)
    copies = [copy.deepcopy(layer) for _ in range(3)]
    with pytest.raises(RuntimeError, match="backward needs a call"):
        copies[0].backward(x)
    assert [repr(twin) for twin in copies] == [repr(layer)] * 3 and copies[1].step == 3
    assert layer.rng.state_dict() == {"seed": 4, "call": 4}  # each copy has consumed one call
    want = [Generator(4) for _ in copies]
    for k, rng in enumerate(want):
        rng.load_state_dict({"seed": 4, "call": 1 + k})
        assert copies[k].rng.state_dict() == rng.spawn(1)[0].state_dict()
    assert len({twin(x).tobytes() for twin in (layer, *copies)}) == 4
    first, second = copy.deepcopy([layers.Dropout(rng=layer.rng), layers.DropPath(rng=layer.rng)])
    assert first.rng is second.rng and first.rng is not layer.rng  # copies share what the originals shared
    fixed = layers.Dropout(rng=Stream(4, 7))
    assert copy.deepcopy(fixed).rng == fixed.rng


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_share_the_default_generator(clone):
    gpudrop.manual_seed(8)
    layer = layers.Dropout(0.5)
    twin, x = clone(layer), np.ones(100)
    np.testing.assert_array_equal(layer(x), gpudrop.dropout(x, 0.5, rng=Stream(8, 0)))
    np.testing.assert_array_equal(twin(x), gpudrop.dropout(x, 0.5, rng=Stream(8, 1)))
    assert twin.state_dict()["rng"] == {"from": "default", "seed": 8, "call": 2}


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
        {"training": "yes"},
        {"rng": good["rng"] | {"from": "nowhere"}},
        {"rng": good["rng"] | {"from": []}},
        {"x": 1},
    ):
        with pytest.raises((TypeError, ValueError)):
            layer.load_state_dict(good | {"p": 0.5, "step": 5, "training": False} | change)
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
        (layers.Dropout(keep_prob=0.8), "Dropout(p=0.2, keep_prob=0.8, activation=None, bits=16)"),
        (layers.Zoneout(0.1, remember=None), "Zoneout(p=0.1, activation=None, bits=16, remember=None)"),
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
            "DropPath has no option 'block_size'; it has p, keep_prob, activation, bits, rng, remember",
            lambda: layers.DropPath(block_size=3),
        ),
        (TypeError, "GaussianNoise has no option 'keep_prob'", lambda: layers.GaussianNoise(keep_prob=0.3)),
        (TypeError, "GaussianNoise has no option 'p'; its strength is std", lambda: layers.GaussianNoise(p=0.3)),
        (TypeError, "GaussianNoise.*multiple values for argument 'std'", lambda: layers.GaussianNoise(0.3, std=0.3)),
        (ValueError, "p must be below 1", lambda: layers.GaussianDropout(1)),
        (ValueError, "std must be finite and not negative", lambda: layers.GaussianNoise(-1)),
        (ValueError, "p must be between 0 and 1, got 2", lambda: layers.AlphaDropout(2)),
        (ValueError, "unknown activation 'gelo'", lambda: layers.DropPath(activation="gelo")),
        (ValueError, "bits must be one of 8, 16, 32, got 12", lambda: layers.DropPath(bits=12)),
        (RuntimeError, "backward needs a call", lambda: layers.Zoneout().backward(np.ones(3))),
        (ValueError, "p and keep_prob can't both be set", lambda: layers.DropPath(0.1, keep_prob=0.9)),
    ],
)
def test_errors(error, message, call):
    with pytest.raises(error, match=message):
        call()


# For each setting: a valid value other than the default, and invalid values with the beginning of their errors.
SETTINGS = {
    "p": (0.25, {1.5: "p must be between 0 and 1, got 1.5", "0.5": "p must be a number between 0 and 1, got '0.5'"}),
    "std": (0.25, {-1: "std must be finite and not negative", None: "std must be a number"}),
    "keep_prob": (0.25, {2: "keep_prob must be between 0 and 1, got 2", None: "keep_prob must be a number"}),
    "activation": ("gelu", {"gelo": "unknown activation 'gelo'; known: .*; did you mean 'gelu'"}),
    "bits": (32, {12: "bits must be one of 8, 16, 32, got 12"}),
    "mask_shape": ((None, 1), {3: "mask_shape must be a tuple", (-1,): "mask_shape must not be negative"}),
    "channels_last": (
        True,
        {"no": "channels_last must be True or False, got 'no'", 2: "channels_last must be True or"},
    ),
    "time_axis": (1, {0.5: "time_axis must be an integer, got 0.5"}),
    "samples": (2, {-1: "samples must be between 0 and", "2": "samples must be an integer"}),
    "gate_first": (False, {"yes": "gate_first must be True or False, got 'yes'"}),
    "block_size": (2, {0: "block_size must be at least 1, got 0", 2.5: "block_size must be an integer"}),
    "rng": (
        Stream(5, 6),
        {5.0: "rng must be a gpudrop.Generator, .*, or None, got 5.0"},
    ),
    "remember": (2, {2**64: "remember must be", 0: "remember must be at least 1, or None for all calls, got 0"}),
    "save": ("output", {"all": "save must be one of auto, output, bits, got 'all'"}),
    "step": (7, {-1: "step must be between 0 and", 1.5: "step must be an integer, got 1.5"}),
    "training": (
        False,
        {"eval": "training must be True or False, got 'eval'", 2: "training must be True or False, got"},
    ),
}


@pytest.mark.parametrize("cls", CLASSES)
def test_every_setting_can_be_read_and_set_and_takes_effect(cls):
    """Setting an attribute has the same effect as passing the argument. An error changes nothing."""
    for name in cls.settings():
        value, wrong = SETTINGS[name]
        layer = cls(rng=Stream(1, 2))
        before = repr(layer), layer.state_dict()
        for bad, message in wrong.items():
            with pytest.raises((TypeError, ValueError), match=f"^{message}"):
                setattr(layer, name, bad)
        assert (repr(layer), layer.state_dict()) == before
        setattr(layer, name, value)
        assert getattr(layer, name) == value
        made = {name: value} if name in ("step", "training") else {}
        other = cls(**{"rng": Stream(1, 2)} | ({} if made else {name: value}))
        for attribute in made:
            setattr(other, attribute, value)
        if cls is layers.Dropout or name not in ("activation", "bits"):  # avoids compiling kernels for every class
            np.testing.assert_array_equal(layer(*arrays(layer)), other(*arrays(layer)))
        assert repr(layer) == repr(other) and layer.state_dict() == other.state_dict()


def test_settings_are_stored_as_pythons_own_types():
    layer = layers.LockedDropout(rng=Generator(0))
    layer.p, layer.step, layer.time_axis, layer.bits = np.float32(0.5), np.int64(3), np.uint8(1), np.array(8)
    layer.training = np.False_
    kinds = [type(value) for value in (layer.p, layer.step, layer.time_axis, layer.bits, layer.training)]
    assert kinds == [float, int, int, int, bool]


def test_p_and_keep_prob_are_one_number():
    layer = layers.Dropout(keep_prob=0.8)
    assert (layer.p, layer.keep_prob) == (0.2, 0.8)
    layer.p = 0.1
    assert layer.keep_prob == 0.9 and repr(layer) == "Dropout(p=0.1, activation=None, bits=16)"
    layer.keep_prob = 0.3
    assert layer.p == 0.7 and "p=0.7, keep_prob=0.3" in repr(layer)
    assert repr(pickle.loads(pickle.dumps(layer))) == repr(copy.deepcopy(layer)) == repr(layer)
    restored = layers.Dropout(keep_prob=0.5)
    restored.load_state_dict(layer.state_dict())
    assert repr(restored) == repr(layer)
    for p in (0.1 + 2**-50, schedules.linear(0, 0.5, 10)):
        restored.load_state_dict(layers.Dropout(p).state_dict())
        assert restored.p == pickle.loads(pickle.dumps(restored)).p == copy.deepcopy(restored).p == p
    layer.p, layer.step = schedules.linear(0, 0.5, 10), 5
    assert layer.keep_prob == 0.75
    for name in ("p", "keep_prob"):
        with pytest.raises(AttributeError, match=name):
            getattr(layers.GaussianNoise(0.3), name)


@pytest.mark.parametrize("cls", [layers.Dropout, layers.GaussianNoise])
def test_unknown_attributes_can_not_be_set(cls):
    layer = cls()
    with pytest.raises(TypeError):
        layer.options["bits"] = 8
    assert dict(layer.options) == {name: getattr(layer, name) for name in cls.defaults()}
    for name, near in (("keep_prop", "keep_prob"), ("activatoin", "activation"), ("nonsense", None), ("seed", "rng")):
        near = None if near == "keep_prob" and cls is layers.GaussianNoise else near
        with pytest.raises(
            AttributeError, match=f"^{cls.__name__} has no attribute '{name}' that can be set; it has "
        ) as told:
            setattr(layer, name, 1)
        assert str(told.value).endswith(f"; did you mean '{near}'?" if near else "training")
        with pytest.raises(AttributeError, match=name):
            getattr(layer, name)
    with pytest.raises(AttributeError, match="no attribute 'block_size'"):
        layer.block_size = 3


class Named(layers.Dropout):
    """A user's own layer."""

    def __init__(self, name):
        super().__init__(0.25, rng=Generator(3))
        self.name, self._scale = name, 2.0

    def __call__(self, x):
        return super().__call__(x) * self._scale


def test_a_subclass_may_have_attributes_of_its_own():
    layer = Named("first")
    twin, x = pickle.loads(pickle.dumps(layer)), np.ones(100)
    assert layer.name == twin.name == copy.deepcopy(layer).name == "first"
    layer.rng.load_state_dict(twin.rng.state_dict())
    np.testing.assert_array_equal(twin(x), layer(x))
    with pytest.raises(ValueError, match="p must be"):
        layer.p = 3


class Base(layers.Layer):
    """A base class that is not a variant."""


class Annealed(Base):
    """A layer that computes p and training itself."""

    function = staticmethod(gpudrop.dropout)
    epoch = 0
    training = property(lambda self: True, lambda self, value: None)
    p = property(lambda self: 1.0 if self.epoch else 0.0, lambda self, value: None)


class Stochastic(Base):
    """A layer that names its row of the family."""

    variant = FAMILY["gaussian_noise"]


class Milder(layers.GaussianDropout):
    """A layer that uses another noise's checks."""

    noise = noises.UNIFORM
    variant = "a name of the user's own"


def test_a_subclass_of_layer_names_its_variant():
    assert (Annealed.variant.name, Annealed.strength(), Annealed.noise) == ("dropout", "p", noises.DROPOUT)
    assert Stochastic.function is gpudrop.gaussian_noise and Stochastic.strength() == "std"
    assert (
        Stochastic.noise is noises.ADDITIVE and repr(Stochastic(0.3)) == "Stochastic(std=0.3, activation=None, bits=32)"
    )
    assert repr(Milder(0.3, bits=16)) == "Milder(p=0.3, activation=None, bits=16)"  # GAUSSIAN does not allow 16 bits
    assert not hasattr(Base, "_kind") and Named.variant is FAMILY["dropout"]
    assert set(layers.VARIANTS.values()).isdisjoint((Base, Annealed, Stochastic, Milder, Named))


def test_properties_of_a_subclass_override_settings():
    layer, x = Annealed(0.5, rng=Generator(0)), np.ones(9)
    for layer.epoch in (0, 1):
        np.testing.assert_array_equal(layer.eval()(x), [1 - layer.epoch] * 9)


@pytest.mark.parametrize("mode", [True, False, 1, 0, np.True_, np.bool_(0), np.array(True), 1.0, np.uint8(0)])
def test_modes_are_truth_values(mode):
    layer, x = layers.Dropout(0.5, rng=Stream(0, 0)), np.ones(50, np.float32)
    assert layer.train(mode).training is bool(mode)
    np.testing.assert_array_equal(layer(x), gpudrop.dropout(x, rng=Stream(0, 0), training=mode))
    np.testing.assert_array_equal(layer(x), gpudrop.dropout(x, rng=Stream(0, 0), training=bool(mode)))


@pytest.mark.parametrize(
    "mode", ["eval", "train", "", "True", None, 2, -1, 0.5, np.nan, [], np.ones(2), np.array([True])]
)
def test_other_values_are_refused_as_modes(mode):
    layer = layers.Dropout(0.5)
    for refused in (layer.train, lambda mode: gpudrop.dropout(np.ones(3), training=mode)):
        with pytest.raises(ValueError, match=r"^(mode|training) must be True or False, got "):
            refused(mode)
    assert layer.training is True


@pytest.mark.parametrize("remember", [3, 5, None])
@pytest.mark.parametrize("cls", [layers.Dropout, layers.Zoneout])
def test_backward_goes_through_remembered_calls_in_reverse_order(cls, remember, recwarn):
    layer = cls(0.5, activation="gelu", rng=Generator(4), remember=remember)
    for _ in range(2):
        want = []
        for k in range(3):
            inputs = [array + k for array in arrays(layer)]
            stream = Stream(**layer.rng.state_dict())
            want.append((layer(*inputs), cls.function.vjp(*inputs, 0.5, activation="gelu", rng=stream)))
        for y, (again, backprop) in reversed(want):
            np.testing.assert_array_equal(y, again)
            for got, gradient in zip(as_tuple(layer.backward(y)), as_tuple(backprop(y)), strict=True):
                np.testing.assert_array_equal(got, gradient)
        with pytest.raises(RuntimeError, match=f"with remember={remember}, backward has used all of them"):
            layer.backward(y)
    assert len(recwarn) == 0


def test_a_layer_remembers_at_most_as_many_calls_as_set():
    x, layer = np.ones(9), layers.Dropout(0.5, rng=Generator(0), remember=2)
    for _ in range(5):
        layer(x)
    with pytest.raises(ValueError, match="dy must be"):
        layer.backward(x[:3])  # removes no call
    second, first = layer.backward(x), layer.backward(x)
    np.testing.assert_array_equal(second, gpudrop.dropout(x, rng=Stream(0, 4)))
    np.testing.assert_array_equal(first, gpudrop.dropout(x, rng=Stream(0, 3)))
    layer(x)
    layer.remember = 1  # removes all calls
    with pytest.raises(RuntimeError, match="backward needs a call"):
        layer.backward(x)
    layer(x)
    for _ in range(2):  # may be repeated
        np.testing.assert_array_equal(layer.backward(x), gpudrop.dropout(x, rng=Stream(0, 6)))


@pytest.mark.parametrize("within_a_block", [False, True])
def test_calls_without_dropout_are_remembered_too(within_a_block):
    """Checks of the gradient over several time steps need this."""
    x, layer = np.linspace(-2, 2, 9), layers.Dropout(0.5, activation="gelu", remember=None)
    layer.train(within_a_block)
    with gpudrop.no_dropout() if within_a_block else nullcontext():
        for k in range(3):
            layer(x + k)
    got = [layer.backward(x) for _ in range(3)]
    np.testing.assert_array_equal(got, [gpudrop.dropout_vjp(x + k, 0, activation="gelu")[1](x) for k in (2, 1, 0)])


def test_calls_without_a_backward_pass_are_not_kept():
    x, layer = np.ones(1 << 16), layers.Dropout(0.5, activation="gelu")
    alive = []
    for _ in range(3):
        copied = x.copy()
        alive.append(weakref.ref(copied))
        layer(copied)
        del copied
    assert [ref() is None for ref in alive] == [True, True, False]


LEFT_OUT = {
    "another call": lambda layer, x: (layer(x), layer(x)),
    "a look at the cost after it": lambda layer, x: (layer(x), off(layer, x)),
    "evaluation after it": lambda layer, x: (layer(x), layer.eval()(x), layer.train()),
    "samples after it": lambda layer, x: (layer(x), gpudrop.mc_samples(layer, x, 3)),
}


def off(layer, x):
    with gpudrop.no_dropout():
        return layer(x)


@pytest.mark.parametrize("calls", LEFT_OUT.values(), ids=LEFT_OUT)
def test_a_backward_pass_that_skips_a_training_call_warns_once(calls):
    x, layer = np.ones(9), layers.Dropout(0.5, rng=Generator(0))
    calls(layer, x)
    message = "backward uses only the last call of this Dropout and ignores 1 earlier call"
    with pytest.warns(RuntimeWarning, match=message) as told:
        layer.backward(x)
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calls(layer, x)
        layer.backward(x)


def test_evaluating_the_cost_between_training_steps_does_not_warn():
    x, layer = np.ones(9), layers.Dropout(0.5, rng=Generator(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            layer(x)
            layer.backward(x), layer.backward(x)
            layer.eval()(x), layer(x)
            layer.train()
            off(layer, x), off(layer, x)
            gpudrop.mc_samples(layer, x, 3)
        generator, layer.rng = layer.rng, Stream(0, 0)  # as a check of the gradient does
        layer(x)
        layer.backward(x)
        layer(x), layer(x)
        layer.rng = generator
        layer(x)
        layer.backward(x)


def test_setting_rng_to_a_stream_repeats_a_call():
    x, layer = np.ones(99), layers.Dropout(0.5, rng=Generator(0))
    generator, layer.rng = layer.rng, Stream(0, 0)
    first, again = layer(x), layer(x)
    layer.rng = generator
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(layer(x), first)
    assert (layer(x) != first).any()


@pytest.mark.parametrize("cls", CLASSES)
def test_a_call_with_the_wrong_number_of_arrays_names_the_layer(cls):
    inputs, row = arrays(cls()), cls.variant
    names = " and ".join(row.inputs[: row.least])
    names += f", and optionally {' and '.join(row.inputs[row.least :])}" if row.least < len(row.inputs) else ""
    names += f", and optionally {' and '.join(row.rows)} by name" if row.rows else ""
    for wrong in ([], inputs * 3):
        with pytest.raises(TypeError, match=f"^{cls.__name__} takes {names}, but {len(wrong)} were given"):
            cls()(*wrong)


@pytest.mark.parametrize("cls", CLASSES)
def test_arrays_may_be_passed_by_name(cls):
    inputs, names = arrays(cls()), cls.variant.inputs
    stream = gpudrop.Stream(0, 0)
    want = cls(rng=stream)(*inputs)
    for k in range(len(names)):
        named = dict(zip(names[k:], inputs[k:], strict=False))
        np.testing.assert_array_equal(cls(rng=stream)(*inputs[:k], **named), want)
    with pytest.raises(TypeError, match=f"^{cls.__name__} takes .* but 'other' was given"):
        cls()(*inputs, other=inputs[0])
