"""Saved states and pickles: another process can read them, and states of a newer version are refused."""

import copy
import json
import pickle
import re

import numpy as np
import pytest

import gpudrop
from gpudrop import Generator, Stream, layers, schedules
from tests.family.layer_calls import CLASSES, arrays
from tests.processes import run

ELSEWHERE = """
import json, pickle, sys
import gpudrop
from gpudrop import layers
results = []
for kind, saved, inputs in pickle.load(open(sys.argv[1], "rb")):
    if kind == "json":
        name, state, p = json.loads(saved)
        layer = getattr(layers, name)(p, rng=gpudrop.Generator(0), activation="gelu")
        layer.load_state_dict(state)
    else:
        layer = pickle.loads(saved)
    results.append((layer(*inputs), layer.state_dict(), repr(layer)))
pickle.dump(results, open(sys.argv[2], "wb"))
"""


def test_layers_continue_in_another_process(tmp_path):
    """Pickled or restored from a state in JSON, with and without a schedule, layers continue at the next mask."""
    saved, want = [], []
    for cls in CLASSES:
        for p in (0.4, schedules.linear(0.1, 0.5, 10)):
            layer = cls(p, rng=Generator(2**64 - 1, False), activation="gelu")
            inputs = arrays(layer)
            layer.step = 7
            layer(*inputs)
            for kind in ("pickle", "json"):
                state = json.dumps([cls.__name__, layer.state_dict(), 0.2])
                saved.append((kind, state if kind == "json" else pickle.dumps(layer), inputs))
                want.append((layer, inputs))
    (tmp_path / "saved").write_bytes(pickle.dumps(saved))
    run(ELSEWHERE, tmp_path / "saved", tmp_path / "results")
    results = pickle.loads((tmp_path / "results").read_bytes())
    for (y, state, text), (layer, inputs) in zip(results, want, strict=True):
        layer.rng.load_state_dict({"seed": 2**64 - 1, "call": 1})
        np.testing.assert_array_equal(y, layer(*inputs))
        assert state == layer.state_dict() and text == repr(layer)


def test_generators_continue_in_another_process(tmp_path):
    rng = Generator(2**64 - 1)
    rng.load_state_dict({"seed": 2**64 - 1, "call": 2**63 + 5})
    saved = [pickle.dumps(rng), pickle.dumps(copy.deepcopy(rng)), pickle.dumps(rng.next())]
    (tmp_path / "saved").write_bytes(pickle.dumps(saved))
    code = """
import json, pickle, sys
rng, twin, stream = map(pickle.loads, pickle.load(open(sys.argv[1], "rb")))
print(json.dumps([rng.next() == twin.next() == stream, rng.state_dict()]))
"""
    assert json.loads(run(code, tmp_path / "saved").stdout) == [True, rng.state_dict()]


GOOD = {"seed": 3, "call": 4}
NEWER = [
    ("generator", Generator(1), {**GOOD, "rounds": 7}),
    ("layer", layers.DropPath(0.25, rng=Generator(1)), {"rounds": 7}),
    ("layer", layers.Dropout(0.25, rng=Stream(1, 1)), {"rounds": 7}),
    ("generator", layers.Zoneout(rng=Generator(1)), {"rng": {"from": "generator", **GOOD, "rounds": 7}}),
    ("stream", layers.Dropout(rng=Stream(1, 1)), {"rng": {"from": "stream", **GOOD, "rounds": 7}}),
    (
        "schedule",
        layers.Dropout2d(rng=Generator(1)),
        {"p": {"first": 0, "last": 1, "steps": 5, "curve": "linear", "rounds": 7}},
    ),
]


@pytest.mark.parametrize(("of", "loader", "state"), NEWER)
def test_a_state_of_a_newer_version_is_refused_and_changes_nothing(of, loader, state):
    before = copy.deepcopy(loader.state_dict())
    state = before | state
    words = (
        f"the state of a {of} has 'rounds', which gpudrop {gpudrop.__version__} doesn't know; it may be from a newer v"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        loader.load_state_dict(state)
    assert loader.state_dict() == before


@pytest.mark.parametrize(
    ("of", "saved", "change"),
    [
        ("generator", Generator(1), lambda state: {**state, "rounds": 7}),
        ("schedule", schedules.linear(0, 1, 5), lambda state: {**state, "rounds": 7}),
        ("Dropout layer", layers.Dropout(), lambda state: {**state, "rounds": 7}),
    ],
)
def test_a_pickle_of_a_newer_version_is_refused(monkeypatch, of, saved, change):
    cls, state = type(saved), getattr(saved, "__getstate__", lambda: vars(saved))()
    assert pickle.loads(pickle.dumps(saved)) is not saved
    monkeypatch.setattr(cls, "__getstate__", lambda self: change(state), raising=False)
    data = pickle.dumps(saved)
    with pytest.raises(ValueError, match=f"the state of a {of} has 'rounds', which gpudrop "):
        pickle.loads(data)


@pytest.mark.parametrize("state", [None, [], "seed", 3, {"seed": 3}, {"call": 3}, {}, {3: 4, "seed": 1, "call": 0}])
def test_an_invalid_state_is_refused_and_changes_nothing(state):
    rng, layer = Generator(1), layers.Dropout(0.5, rng=Generator(2))
    before = layer.state_dict()
    for load in (rng.load_state_dict, rng.__setstate__, layer.load_state_dict):
        with pytest.raises((TypeError, ValueError), match=r"^the state of a (generator|layer) (must (be|have)|has)"):
            load(state)
    with pytest.raises((TypeError, ValueError), match=r"^the state of a generator (must (be|have)|has)"):
        layer.load_state_dict({**before, "rng": state})
    assert rng.state_dict() == {"seed": 1, "call": 0} and layer.state_dict() == before


PLAIN = (int, float, str, bool, type(None))


def plain(state):
    """Whether a state contains only what JSON can represent, in exactly Python's own types."""
    if type(state) is dict:
        return all(type(key) is str and plain(value) for key, value in state.items())
    return all(map(plain, state)) if type(state) is list else type(state) in PLAIN


NUMPYS = {"time_axis": np.int8(0), "block_size": np.int16(3), "channels_last": np.True_}
NUMPYS["mask_shape"] = [None, np.int8(1)]


@pytest.mark.parametrize("cls", CLASSES)
def test_a_state_contains_only_json_types(cls):
    """This holds for any types that the layer's arguments have, and that a training loop has set."""
    options = {name: value for name, value in NUMPYS.items() if name in cls.defaults()}
    for p in (np.float32(0.3), np.array(0.25), 0, schedules.linear(np.float16(0), np.float32(0.5), np.int8(10))):
        layer = cls(p, rng=Generator(np.uint64(7)), bits=np.int64(32), activation="relu", **options)
        for layer.step in np.arange(3):
            layer.train(np.bool_(layer.step % 2))
        state = layer.state_dict()
        assert plain(state) and json.loads(json.dumps(state)) == state
        twin = cls(0.1, rng=Generator(0), bits=32, activation="relu", **options)
        twin.load_state_dict(json.loads(json.dumps(state)))
        assert twin.state_dict() == state and not twin.training and twin.step == 2


def test_a_state_of_another_layer_is_refused_and_changes_nothing():
    """Everything that changes results is checked, except p, which is restored."""
    layer = layers.LockedDropout(0.5, rng=Generator(3), activation="relu", time_axis=0)
    others = {
        "the state belongs to a layer of 'dropout', but this layer is of 'locked_dropout'": layers.Dropout(
            rng=Generator(1)
        ),
        "the state has activation='gelu', but this layer has activation='relu'": {"activation": "gelu"},
        "the state has activation=None, but this layer has activation='relu'": {"activation": None},
        "the state has bits=8, but this layer has bits=16": {"bits": 8},
        "the state has time_axis=1, but this layer has time_axis=0": {"time_axis": 1},
        "the state belongs to a layer that draws from the default generator, but this one draws from its own": {
            "rng": None
        },
        "the state belongs to a layer that draws from a Stream, which repeats its mask, but this": {
            "rng": Stream(1, 1)
        },
    }
    before = layer.state_dict()
    for message, other in others.items():
        if isinstance(other, dict):
            other = layers.LockedDropout(**{"rng": Generator(1), "activation": "relu"} | other)
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            layer.load_state_dict(json.loads(json.dumps(other.state_dict())))
        assert layer.state_dict() == before
    with pytest.raises(ValueError, match="time_axis=False, but this layer has time_axis=0"):
        layer.load_state_dict(before | {"time_axis": False})


def test_a_state_with_its_own_generator_is_never_restored_into_the_default_one():
    """Otherwise the last restored state would decide the masks of all layers."""
    saved = [layers.Dropout(0.5, rng=Generator(seed)).state_dict() for seed in (1, 2)]
    default = gpudrop.manual_seed(5)
    for state in saved:
        with pytest.raises(ValueError, match="draws from its own generator, but this one draws from the def"):
            layers.Dropout(0.5).load_state_dict(state)
    assert default.state_dict() == {"seed": 5, "call": 0}
    restored = [layers.Dropout(0.5, rng=Generator()) for _ in saved]
    for layer, state in zip(restored, saved, strict=True):
        layer.load_state_dict(state)
    assert [layer.rng.state_dict()["seed"] for layer in restored] == [1, 2]


def test_a_layer_that_draws_from_the_default_generator_restores_it():
    gpudrop.manual_seed(5)
    layer, x = layers.Dropout(0.5), np.ones(99)
    state = json.dumps(layer.state_dict())
    want = layer(x)
    gpudrop.manual_seed(6)
    other = layers.Dropout(0.25)
    other.load_state_dict(json.loads(state))
    np.testing.assert_array_equal(other(x), want)
