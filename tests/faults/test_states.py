"""Saved states and pickles: read in another process, refused from a newer version."""

import copy
import json
import pickle
import re
from importlib.metadata import version

import numpy as np
import pytest

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
        layer = getattr(layers, name)(p, rng=gpudrop.Generator(0))
        layer.load_state_dict(state)
    else:
        layer = pickle.loads(saved)
    results.append((layer(*inputs), layer.state_dict(), repr(layer)))
pickle.dump(results, open(sys.argv[2], "wb"))
"""


def test_layers_go_on_in_another_process(tmp_path):
    """Pickled, or from a state in JSON, with a schedule and without, at the next mask."""
    saved, want = [], []
    for cls in CLASSES:
        for p in (0.4, schedules.linear(0.1, 0.5, 10)):
            layer = cls(p, rng=Generator(2**64 - 1, False), activation="gelu")
            inputs = arrays(layer)
            layer.step = 7
            layer(*inputs)
            for kind in ("pickle", "json"):
                if kind == "json":
                    layer = cls(p, rng=layer.rng)  # with options as there
                    layer.step = 7
                    how = json.dumps([cls.__name__, layer.state_dict(), 0.2])
                else:
                    how = pickle.dumps(layer)
                saved.append((kind, how, inputs))
                want.append((layer, inputs))
    (tmp_path / "saved").write_bytes(pickle.dumps(saved))
    run(ELSEWHERE, tmp_path / "saved", tmp_path / "results")
    results = pickle.loads((tmp_path / "results").read_bytes())
    for (y, state, text), (layer, inputs) in zip(results, want, strict=True):
        layer.rng.load_state_dict({"seed": 2**64 - 1, "call": 1})
        np.testing.assert_array_equal(y, layer(*inputs))
        assert state == layer.state_dict() and text == repr(layer)


def test_generators_go_on_in_another_process(tmp_path):
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
    ("layer", layers.DropPath(0.25, rng=Generator(1)), {"p": 0.1, "step": 1, "rng": GOOD, "rounds": 7}),
    ("layer", layers.Dropout(0.25, rng=Stream(1, 1)), {"p": 0.1, "step": 1, "rng": GOOD, "rounds": 7}),
    ("generator", layers.Zoneout(rng=Generator(1)), {"p": 0.1, "step": 1, "rng": {**GOOD, "rounds": 7}}),
    ("stream", layers.Dropout(rng=Stream(1, 1)), {"p": 0.1, "step": 1, "rng": {**GOOD, "rounds": 7}}),
    (
        "schedule",
        layers.Dropout2d(rng=Generator(1)),
        {"p": {"first": 0, "last": 1, "steps": 5, "curve": "linear", "rounds": 7}, "step": 1, "rng": GOOD},
    ),
]


@pytest.mark.parametrize(("of", "loader", "state"), NEWER)
def test_a_newer_versions_state_is_refused_by_name_and_changes_nothing(of, loader, state):
    before = copy.deepcopy(loader.state_dict())
    words = f"the state of a {of} has 'rounds', which gpudrop {version('gpudrop')} doesn't know; it may be of a newer v"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        loader.load_state_dict(state)
    assert loader.state_dict() == before


@pytest.mark.parametrize(
    ("of", "saved", "change"),
    [
        ("generator", Generator(1), lambda state: {**state, "rounds": 7}),
        ("schedule", schedules.linear(0, 1, 5), lambda state: {**state, "rounds": 7}),
        ("Dropout layer", layers.Dropout(), lambda state: {**state, "options": {**state["options"], "rounds": 7}}),
    ],
)
def test_what_a_newer_version_pickled_is_refused_by_name(monkeypatch, of, saved, change):
    cls, state = type(saved), getattr(saved, "__getstate__", lambda: vars(saved))()
    assert pickle.loads(pickle.dumps(saved)) is not saved
    monkeypatch.setattr(cls, "__getstate__", lambda self: change(state), raising=False)
    data = pickle.dumps(saved)
    with pytest.raises(ValueError, match=f"the state of a {of} has 'rounds', which gpudrop "):
        pickle.loads(data)


@pytest.mark.parametrize("state", [None, [], "seed", 3, {"seed": 3}, {"call": 3}, {}, {3: 4, "seed": 1, "call": 0}])
def test_what_is_no_state_is_refused_and_changes_nothing(state):
    rng, layer = Generator(1), layers.Dropout(0.5, rng=Generator(2))
    before = layer.state_dict()
    for load in (rng.load_state_dict, rng.__setstate__, layer.load_state_dict):
        with pytest.raises((TypeError, ValueError), match=r"^the state of a (generator|layer) (must be|has)"):
            load(state)
    with pytest.raises((TypeError, ValueError), match=r"^the state of a generator (must be|has)"):
        layer.load_state_dict({**before, "rng": state})
    assert rng.state_dict() == {"seed": 1, "call": 0} and layer.state_dict() == before
