"""The programs in examples/ run with correct results, and the tutorials quote their output."""

import importlib.util
import math
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import gpudrop
from gpudrop import backends
from gpudrop.formulas import activations
from tests import ROOT
from tests.conftest import SIMULATED

EXAMPLES, TUTORIALS = ROOT / "examples", ROOT / "docs" / "tutorials"
PAGES = {path.stem: path.read_text() for path in TUTORIALS.glob("*.md")}
QUOTED = re.compile(r"```sh\n[^`]*?examples/(\w+)\.py[^`]*```((?:(?!```).)*)```text\n(.*?)```", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]\d+)?(?!\w)")
INCLUDE = re.compile(r"```\{literalinclude\} \.\./\.\./examples/(\w+)\.py\n:language: python\n(.*?)```", re.DOTALL)


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_quoted(name, printed):
    """The tutorial quotes the printed words, and nearly the printed numbers: sums differ between processors."""
    (quoted,) = [text for page in PAGES.values() for of, _, text in QUOTED.findall(page) if of == name]
    assert NUMBER.sub("#", quoted) == NUMBER.sub("#", printed)
    for a, b in zip(NUMBER.findall(quoted), NUMBER.findall(printed), strict=True):
        assert math.isclose(float(a), float(b), rel_tol=0.1, abs_tol=0.02), (quoted, printed)


def requires(backend):
    module = backends.load(backend)
    if isinstance(module, str):
        pytest.skip(module)


def test_every_example_has_a_test():
    tests = {name.removeprefix("test_example_") for name in vars(sys.modules[__name__])}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tests


def test_every_example_has_a_page():
    assert {name for page in PAGES.values() for name, _ in INCLUDE.findall(page)} == {
        path.stem for path in EXAMPLES.glob("*.py")
    }
    _, toctree = PAGES["index"].split(":hidden:")
    assert sorted(toctree.strip(" `\n").split()) == sorted(PAGES.keys() - {"index"})
    assert all(f"]({name}.md)" in PAGES["index"] for name in PAGES.keys() - {"index"})


@pytest.mark.parametrize("page", PAGES)
def test_included_code_and_pictures_of_a_page_exist(page):
    for name, options in INCLUDE.findall(PAGES[page]):
        code = (EXAMPLES / f"{name}.py").read_text()
        for option, value in re.findall(r"^:([\w-]+): (.*)$", options, re.MULTILINE):
            assert option in ("pyobject", "start-at", "end-before")
            wanted = rf"^(def|class) {value}\b" if option == "pyobject" else re.escape(value)
            assert re.search(wanted, code, re.MULTILINE), (name, value)
    assert all((TUTORIALS / picture).exists() for picture in re.findall(r"\]\((\S+\.png)\)", PAGES[page]))


def test_example_three_layers(capsys, recwarn):
    example = loaded("three_layers")
    falls, errors, right, same = example.main()
    assert falls and same and right > 0.85
    assert len(errors) == 2 and max(errors) < 1e-7
    printed = capsys.readouterr().out
    assert "at every step: True" in printed and len(recwarn) == 0
    check_quoted("three_layers", printed)


def test_the_checks_of_the_example_can_fail():
    """The gradient check fails if masks change between calls, and if a gradient is wrong under fixed masks."""
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


def test_example_train_numpy(capsys):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    costs, found = loaded("train_numpy").main()
    assert costs[-1] < 0.2 and np.all(np.diff(costs) < 0)
    (learned, without), (learned_too, with_dropout) = found.values()
    assert learned > 0.99 and learned_too > 0.99
    assert with_dropout > without + 0.005 and with_dropout > 0.93
    check_quoted("train_numpy", capsys.readouterr().out)


def check_train_cupy(example):
    costs, (learned, right), same = example.main()
    assert np.mean(costs[-20:]) < 0.2 < 2 < costs[0]
    assert learned > 0.99 and right > 0.93 and same


@pytest.mark.gpu
def test_example_train_cupy():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    requires("cupy_elementwise")
    check_train_cupy(loaded("train_cupy"))


def test_train_cupy_on_numpy_arrays():
    """The same program with NumPy instead of CuPy."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    pytest.importorskip("cupy", reason="CuPy is not installed")
    example = loaded("train_cupy")
    cuda = SimpleNamespace(is_available=lambda: True)
    example.cp = SimpleNamespace(**vars(np) | {"asnumpy": np.asarray, "cuda": cuda})
    check_train_cupy(example)


def check_feed_forward(example, *library):
    error, same, costs = example.main(*library)
    assert error < 1e-5 and same
    assert costs[-1] < 0.5 * costs[0]


def test_example_feed_forward(capsys):
    check_feed_forward(loaded("feed_forward"))
    check_quoted("feed_forward", capsys.readouterr().out)


@pytest.mark.gpu
def test_feed_forward_in_cupy():
    requires("cupy_elementwise")
    import cupy

    check_feed_forward(loaded("feed_forward"), cupy)


@pytest.mark.simulator if SIMULATED else pytest.mark.gpu
def test_example_train_numba(capsys):
    requires("numba_cuda")
    costs, same = loaded("train_numba").main()
    assert np.mean(costs[-5:]) < np.mean(costs[:5]) / 3 and same
    check_quoted("train_numba", capsys.readouterr().out)


@pytest.mark.gpu
def test_example_cuda_graph():
    requires("cupy_elementwise")
    found, state = loaded("cuda_graph").main()
    assert len(found) == 5 and state == {"seed": 0, "call": 6}
    assert all(same and abs(kept - 0.5) < 0.01 for kept, same in found)
    assert len({kept for kept, _ in found}) > 1


@pytest.mark.parametrize("name", ["train_cupy", "train_numba", "cuda_graph"])
def test_the_error_without_a_gpu_is_one_line(name):
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_ENABLE_CUDASIM"}
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment | {"CUDA_VISIBLE_DEVICES": "-1"})
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"{name}\.py needs .*\n", done.stderr)


def test_example_train_torch(capsys):
    for package in ("torch", "sklearn"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    torchs, fused, rerouted = loaded("train_torch").main().values()
    assert fused == rerouted  # the costs, to the bit, and the accuracy
    assert torchs[0] != fused[0]  # other masks
    assert all(costs[-1] < 0.1 and right > 0.92 for costs, right in (torchs, fused))
    check_quoted("train_torch", capsys.readouterr().out)


@pytest.mark.slow
def test_example_transformer_torch(capsys):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    rerouted, converted, checkpointed = loaded("transformer_torch").main().values()
    assert converted[0] == checkpointed[0] and len(converted[0]) == 150
    assert all(losses[-1] < 0.5 and right > 0.9 for losses, right in (rerouted, converted))
    check_quoted("transformer_torch", capsys.readouterr().out)


def test_example_monte_carlo(capsys, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    errors, deviations, distance = loaded("monte_carlo").main(tmp_path / "picture.png")
    assert np.mean(errors[-100:]) < 0.1
    assert min(deviations["in the gap"], deviations["outside"]) > 1.5 * deviations["near the data"] > 0
    assert distance < 1e-12
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    check_quoted("monte_carlo", capsys.readouterr().out)


def sharded(*launcher):
    """The output of sharded_torch.py. Python is called with these arguments before the file name."""
    command = [sys.executable, *launcher, str(EXAMPLES / "sharded_torch.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="torchrun")
def test_example_sharded_torch():
    """A single process, and 2 and 4 processes of torchrun, print the same."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    alone = sharded()
    check_quoted("sharded_torch", alone)
    for processes in (2, 4):
        printed = sharded("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
        assert printed == alone, processes
    assert alone.count("True") == 2


def test_example_own_activation(capsys, monkeypatch):
    monkeypatch.setattr(activations, "ACTIVATIONS", dict(activations.ACTIVATIONS))
    example = loaded("own_activation")
    error, same, costs = example.main()
    assert error < 1e-8 and same
    assert costs[-1] < costs[0] / 100
    check_quoted("own_activation", capsys.readouterr().out)
    gpudrop.register_activation("wrong", example.squareplus, example.squareplus)
    assert example.slope_error("wrong") > 0.1
