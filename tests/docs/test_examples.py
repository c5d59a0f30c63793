"""The programs in examples/ run, and do what they say."""

import importlib.util
import sys

import numpy as np

import gpudrop
from tests import ROOT

EXAMPLES = ROOT / "examples"


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_has_its_test():
    tests = {name.removeprefix("test_example_") for name in vars(sys.modules[__name__])}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tests


def test_example_three_layers(capsys, recwarn):
    example = loaded("three_layers")
    falls, errors, right, same = example.main()
    assert falls and same and right > 0.85
    assert len(errors) == 2 and max(errors) < 1e-7
    assert "at every step: True" in capsys.readouterr().out and len(recwarn) == 0


def test_the_checks_of_the_example_can_fail():
    """Masks that change from call to call are no function's, and a wrong gradient is seen under fixed ones."""
    example = loaded("three_layers")
    x, labels = example.moons(20, seed=0)
    parameters, dropouts = example.initial_parameters(), example.dropout_layers()
    assert example.gradient_error(parameters, dropouts, x, labels) > 1e-2
    broken = example.dropout_layers()

    class Wrong(gpudrop.Dropout):
        def backward(self, dy):
            return super().backward(dy) * np.float64(1.01)

    broken[0] = Wrong(keep_prob=0.9, activation="relu", rng=gpudrop.Generator(0))
    assert example.gradient_error_under_fixed_masks(parameters, broken, x, labels) > 1e-3
