"""The types of the public functions: mypy checks code that calls them as a user does."""

import inspect
import os
import re

import pytest

from gpudrop import layers
from gpudrop.variants import FAMILY
from tests import ROOT, declarations

api = pytest.importorskip("mypy.api", reason="mypy is not installed")

ARGUMENTS = [
    "--no-error-summary",
    "--follow-imports=silent",
    "--show-error-codes",
    f"--cache-dir={ROOT}/.mypy_cache/user",
]
VARIANTS = [name for name in FAMILY if name != "dropout"]

BEGIN = """
from typing_extensions import assert_type
import numpy as np
from numpy.typing import NDArray
import gpudrop
from gpudrop import Generator, MonteCarlo, Stream, layers, schedules
x = np.zeros((2, 3), np.float32)
Array = np.ndarray[tuple[int, int], np.dtype[np.float32]]
"""

RIGHT = """
assert_type(gpudrop.dropout(x), Array)
assert_type(gpudrop.dropout(x, 1, mask_shape=(None, 1), activation="relu", rng=Stream(0, 0), bits=8, out=x), Array)
y, backprop = gpudrop.dropout_vjp(x, 0.5, training=False, rng=Generator(0), backend="cpu")
assert_type(y, Array)
assert_type(backprop(np.ones_like(x), out=y), Array)
assert_type(gpudrop.dropout2d(x, 0.2, channels_last=True), Array)
assert_type(gpudrop.dropout2d.vjp(x, 0.2)[1](x), Array)
assert_type(gpudrop.gaussian_noise(x, std=0.1), Array)
new, back = gpudrop.zoneout.vjp(x, x, p=0.5)
assert_type(new, Array)
assert_type(back(x).dx, Array)
assert_type(back(x).dprevious, Array)
assert_type(gpudrop.dropout_add(x, x, 0.5, mask_shape=(None, 1)), Array)
assert_type(gpudrop.dropout_add.vjp(x, x, save="bits")[1](x).dresidual, Array)
assert_type(gpudrop.dropout_add(x, x, bias=np.zeros(3), gain=np.ones(3)), Array)
assert_type(gpudrop.dropout_vjp(x, bias=np.zeros(3))[1](x).dx, Array)
assert_type(gpudrop.dropout_glu(x, x, 0.1, gate_first=False), Array)
assert_type(gpudrop.dropout_glu.vjp(x, p=0.1)[1](x).dgate, Array)
assert_type(layers.DropoutAdd(0.1)(x, x, bias=x), Array)
assert_type(layers.DropoutAdd(0.1).backward(x).dresidual, Array)
assert_type(gpudrop.keep_mask((2, 3), 0.5), NDArray[np.bool_])
assert_type(gpudrop.quantize(0.1).threshold, int)
layer = gpudrop.Dropout(keep_prob=0.8, activation="relu", mask_shape=[None, 1]).train()
assert_type(layer, gpudrop.Dropout)
assert_type(layer.eval()(x), Array)
assert_type(layer.backward(x), Array)
layers.DropBlock2d(schedules.linear(0, 0.1, steps=10), block_size=5, rng=Generator(1)).step = 3
assert_type(layers.Zoneout(0.1).backward(x).dprevious, Array)
assert_type(layers.GaussianNoise(std=0.1, activation="relu").backward(x), Array)
assert_type(gpudrop.mc_samples(lambda x: gpudrop.dropout(x), x, 3, batch_size=2), MonteCarlo)
assert_type(gpudrop.drop_path_rates(0.1, 3), list[float])
assert_type(gpudrop.manual_seed(0).spawn(2), list[Generator])
assert_type(Generator(0).next(), Stream)
assert_type(gpudrop.dropout(x, 0.5, shard=gpudrop.Shard((4, None), (2, 0))), Array)
assert_type(gpudrop.keep_mask((2, 3), 0.5, shard=gpudrop.Shard((4, 3), (2, 0))), NDArray[np.bool_])
with gpudrop.no_dropout():
    gpudrop.warmup(["relu"], dtypes=["float32"])
def cube(x: float) -> float:
    return x * x * x
gpudrop.register_activation("cube", cube, cube, replace=True)
gpudrop.unregister_activation("cube")
several = layers.Zoneout(keep_prob=0.9, remember=None, bits=8)
several.p, several.activation, several.rng, several.remember, several.training = 0.5, "relu", Stream(0, 0), 2, False
several.rng = np.random.default_rng(0)
assert_type(several.rng, Generator | Stream | None)
gpudrop.mc_samples(gpudrop.dropout, x, 3, np.int64(5))
gpudrop.keep_mask(3, 0.5, np.random.SeedSequence(1))
gpudrop.drop_path(x, 0.1, rng=np.random.PCG64(0))
layers.GaussianNoise(0.1, rng=7)
assert_type(several.keep_prob, float)
"""

# Wrong calls, and a part of mypy's message for each.
WRONG = {
    'gpudrop.dropout(x, "0.5")': 'incompatible type "str"; expected "float"',
    "gpudrop.dropout(x, rng=0.5)": 'incompatible type "float"; expected "gpudrop.generator.Generator | Stream | int | ',
    "gpudrop.dropout(x, out=1)": 'incompatible type "int"; expected "ndarray',
    "gpudrop.dropout([1.0])": "[type-var]",
    "gpudrop.dropout(x, activation=print)": 'expected "str | None"',
    "gpudrop.dropout(x, mask_shape=(None, 1.5))": 'expected "Sequence[int | None] | None"',
    "gpudrop.dropout(x, bits=16.0)": 'incompatible type "float"; expected "int"',
    "gpudrop.dropout(x, chanels_last=True)": '"chanels_last" to "dropout" has incompatible type',
    "gpudrop.dropout(x, 0.5, None)": "[call-arg]",
    "gpudrop.dropout_vjp(x)[1](3)": "[type-var]",
    'gpudrop.drop_path(x, "0.5")': 'expected "float"',
    "gpudrop.drop_path(x, out=1)": 'expected "AnyArray | None"',
    "gpudrop.drop_path.vjp(x, rng='3')": 'expected "gpudrop.generator.Generator | Stream | int | ',
    "gpudrop.zoneout(x)": "[call-arg]",
    'gpudrop.Dropout("0.5")': 'expected "float | Schedule | None"',
    "gpudrop.Dropout(0.5, activatoin='relu')": "[call-arg]",
    "layers.DropBlock2d(0.5, block_size='7')": 'expected "int"',
    "gpudrop.Dropout(0.5, remember='all')": 'expected "int | None"',
    "gpudrop.Dropout(0.5).keep_prop = 0.5": "[attr-defined]",
    "gpudrop.Dropout(0.5, rng=0.5)": 'incompatible type "float"',
    "gpudrop.Dropout(0.5).rng = '7'": "[assignment]",
    "gpudrop.register_activation('cube', cube, cube, replace='yes')": 'expected "bool"',
    "layers.LockedDropout(0.5)([1.0])": "[type-var]",
    "layers.GaussianNoise(p=0.1)": 'Unexpected keyword argument "p"',
    "layers.GaussianNoise(keep_prob=0.1)": 'Unexpected keyword argument "keep_prob"',
    "layers.Dropout4d(0.5)": "[attr-defined]",
    "gpudrop.keep_mask('2', 0.5)": 'expected "int | Sequence[int]"',
    "Stream(0)": "[call-arg]",
    "Generator('0')": 'expected "int | None"',
    "schedules.linear(0, '1', 10)": 'expected "float"',
    "gpudrop.mc_samples(3, x, 2)": "[arg-type]",
    "gpudrop.drop_path(x, shard=((4, 3), (0, 0)))": 'expected "Shard | None"',
    "gpudrop.quantize('0.1')": 'expected "float"',
}


def defaults(function, but=()):
    parameters = inspect.signature(function).parameters.values()
    return {a.name: a.default for a in parameters if a.kind is a.KEYWORD_ONLY and a.name not in but}


def call(name, options, *arguments):
    return f"{name}({', '.join([*arguments, *(f'{option}={value!r}' for option, value in options.items())])})"


def checked(tmp_path, code):
    """mypy's messages for a file, by the text of the line."""
    file = tmp_path / "user.py"
    file.write_text(code)
    found, failure, _ = api.run([*ARGUMENTS, str(file)])
    assert not failure, failure
    lines, messages = code.splitlines(), {}
    for number, message in re.findall(r"user\.py:(\d+): error: (.*)", found):
        messages.setdefault(lines[int(number) - 1], []).append(message)
    return messages


@pytest.fixture(autouse=True)
def from_the_repository(monkeypatch):
    monkeypatch.setenv("MYPYPATH", os.fspath(ROOT))


def test_right_calls_have_the_types_they_should_and_wrong_ones_are_reported(tmp_path):
    """A variant or a layer accepts every option in its signature, and no other."""
    right, wrong = BEGIN + RIGHT, dict(WRONG)
    own = {name: defaults(FAMILY[name].function) for name in VARIANTS}
    common = set.intersection(*map(set, own.values()))
    for name, options in own.items():
        arrays = ("x",) * len(FAMILY[name].inputs)
        for function in (f"gpudrop.{name}", f"gpudrop.{name}.vjp"):
            right += call(function, options, *arrays) + "\n"
            for other in {option for options in own.values() for option in options} - options.keys():
                wrong[call(function, {other: 1}, *arrays)] = f'Unexpected keyword argument "{other}"'
    for layer in layers.VARIANTS.values():
        right += call(f"layers.{layer.__name__}", layer.defaults(), "0.5") + "\n"
    assert common == {"activation", "training", "rng", "bits", "out", "backend", "shard"}
    assert any("block_size" in key for key in wrong)
    messages = checked(tmp_path, right + "\n".join(wrong))
    assert {line: said for line, said in messages.items() if line not in wrong} == {}
    for line, part in wrong.items():
        assert part in " ".join(messages.get(line, ["nothing"])), (line, messages.get(line))


TORCH = """
from typing_extensions import assert_type
import torch
import gpudrop.torch
from gpudrop import Stream, schedules
from gpudrop.torch import functional
x = torch.ones(4, 3)
assert_type(functional.dropout2d(x, 0.5, True, generator=torch.Generator(), rng=Stream(0, 0)), torch.Tensor)
assert_type(gpudrop.torch.scaled_dot_product_attention(x, x, x, dropout_p=0.1), torch.Tensor)
assert_type(gpudrop.torch.convert(torch.nn.Linear(1, 1)), torch.nn.Module)
assert_type(gpudrop.torch.revert(torch.nn.Linear(1, 1)), torch.nn.Module)
drop: torch.nn.Dropout = gpudrop.torch.Dropout(schedules.constant(0.1), activation="gelu")
assert_type(functional.zoneout(x, x, 0.5, activation="relu", save="bits"), torch.Tensor)
gpudrop.torch.DropPath(0.1, activation="relu", save="bits").save = "auto"
path: gpudrop.torch.DropPath = gpudrop.torch.DropPath(0.1)
gpudrop.torch.WeightDrop(torch.nn.LSTM(1, 1), ["weight_hh_l0"], 0.5)
with gpudrop.torch.accelerate():
    pass
@gpudrop.torch.accelerate()
def loss(x: torch.Tensor) -> float:
    return 0.0
assert_type(loss(x), float)
gpudrop.torch.accelerate(True, attention=False)
"""

WRONG_IN_TORCH = {
    "functional.drop_path(3)": 'expected "Tensor"',
    "functional.drop_path(x, save='bit')": "expected \"Literal['auto', 'output', 'bits']\"",
    "gpudrop.torch.DropPath(0.1, save=1)": "expected \"Literal['auto', 'output', 'bits']\"",
    "functional.drop_path(x, chanels_last=True)": "[call-arg]",
    "functional.dropout4d(x)": "[attr-defined]",
    "functional.zoneout(x)": "[call-arg]",
    "gpudrop.torch.Zoneout(0.1).forward(x)": "[call-arg]",
    "gpudrop.torch.DropPath('0.1')": 'expected "float | Schedule | None"',
    "gpudrop.torch.DropPath(0.1, activatoin='relu')": "[call-arg]",
    "with gpudrop.torch.accelerate(True): pass": '"None" has no attribute',
}


@pytest.mark.slow
def test_the_functions_and_modules_of_torch_have_types(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from gpudrop.torch import functional

    right = TORCH
    for name, row in FAMILY.items():
        arrays = ("x",) * len(row.inputs)
        right += f"assert_type({call(f'functional.{name}', functional.own_options(name), *arrays)}, torch.Tensor)\n"
        right += call(f"gpudrop.torch.{row.layer}", functional.own_options(name)) + "\n"
    messages = checked(tmp_path, right + "\n".join(WRONG_IN_TORCH))
    assert {line: said for line, said in messages.items() if line not in WRONG_IN_TORCH} == {}
    for line, part in WRONG_IN_TORCH.items():
        assert part in " ".join(messages.get(line, ["nothing"])), (line, messages.get(line))


@pytest.mark.parametrize(("path", "text"), declarations.texts().items(), ids=lambda value: getattr(value, "name", ""))
def test_declarations_for_type_checkers_match_the_family(path, text):
    assert path.read_text() == text, "python -m tests.declarations --write"


def test_assembled_signatures_have_types_for_all_parameters():
    for name in VARIANTS:
        parameters = inspect.signature(FAMILY[name].function).parameters
        assert all(a.annotation is not a.empty for a in parameters.values()), name
