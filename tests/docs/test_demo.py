"""The demo: its hand-written passes, the three results that it shows, and the sentences that it prints."""

import dataclasses
import io
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from gpudrop import Stream, demo, no_dropout

WIDTHS, KEEP_PROBS = (5, 12, 9, 4), (0.9, 0.6, 0.5)


def run(picture, seeds):
    """The result of a short run, and its printed output."""
    console = Console(file=io.StringIO(), width=500)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "DESCENT_STEPS", 12)
        return demo.run(picture, seeds, console, steps=25), console.file.getvalue()


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    return run(tmp_path_factory.mktemp("demo") / "picture.png", 2)


def problem(dtype=np.float64, examples=8):
    rng = np.random.default_rng(1)
    targets = np.eye(WIDTHS[-1], dtype=dtype)[rng.integers(0, WIDTHS[-1], examples)]
    return rng.normal(size=(examples, WIDTHS[0])).astype(dtype), targets


@pytest.mark.parametrize("keep_probs", [(1, 1, 1), KEEP_PROBS], ids=["no masks", "masks"])
def test_gradients_agree_with_central_differences(keep_probs):
    network = demo.MLP(WIDTHS, keep_probs, seed=3, dtype=np.float64)
    for number, layer in enumerate(network.dropouts):
        layer.rng = Stream(5, number)  # the same mask in every pass
    x, y = problem()

    def cost():
        return float(demo.softmax_cross_entropy(network.forward(x), y)[0])

    gradients = network.backward(demo.softmax_cross_entropy(network.forward(x), y)[1])
    for parameter, gradient in zip(network.parameters, gradients, strict=True):
        expected = np.empty_like(parameter)
        for index in np.ndindex(parameter.shape):
            value = parameter[index]
            parameter[index] = value + 1e-6
            above = cost()
            parameter[index] = value - 1e-6
            expected[index] = (above - cost()) / 2e-6
            parameter[index] = value
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-8)


def test_softmax_cross_entropy_of_known_scores():
    cost, dscores = demo.softmax_cross_entropy(np.zeros((2, 4)), np.eye(4)[[0, 3]])
    assert cost == pytest.approx(np.log(4))
    np.testing.assert_allclose(dscores, [[-0.375, 0.125, 0.125, 0.125], [0.125, 0.125, 0.125, -0.375]])


def test_softmax_cross_entropy_does_not_overflow():
    cost, dscores = demo.softmax_cross_entropy(np.float32([[1000, 0], [0, -1000]]), np.eye(2, dtype=np.float32)[[1, 0]])
    assert cost == 500
    np.testing.assert_array_equal(dscores, [[0.5, -0.5], [0, 0]])


def test_cost_falls_at_every_step_without_masks_and_not_with_them():
    x, y = problem(np.float32)
    with no_dropout():
        costs = demo.train(demo.MLP(WIDTHS, KEEP_PROBS), x, y, steps=60, rate=0.1)
    assert demo.count_rises(costs) == 0
    assert costs[-1] < costs[0] / 2
    assert demo.count_rises(demo.train(demo.MLP(WIDTHS, KEEP_PROBS), x, y, steps=60, rate=0.1)) > 0


@pytest.mark.slow
def test_momentum_accelerates():
    x, y = problem(np.float32)
    plain, fast = (
        demo.train(demo.MLP(WIDTHS, (1, 1, 1)), x, y, steps=20, rate=0.02, momentum=momentum) for momentum in (0, 0.9)
    )
    assert plain[:1] == fast[:1]
    assert fast[-1] < plain[-1]


def test_count_rises():
    assert demo.count_rises([4, 3, 2]) == 0
    assert demo.count_rises([4, 3, 3, 2, 5]) == 2
    assert demo.count_rises([4, np.nan]) == 1


@pytest.mark.slow
def test_prediction_is_the_network_without_masks():
    network = demo.MLP()
    x = demo.digits_of(np, 0)[2][:50]
    plain = x
    for number, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        plain = (np.maximum(plain, 0) if number else plain) @ weight + bias
    assert not np.array_equal(network.forward(x), plain)
    with no_dropout():
        np.testing.assert_array_equal(network.forward(x), plain)
    for _ in range(2):
        np.testing.assert_array_equal(network.eval().forward(x), plain)
    first, second = (network.train().forward(x) for _ in range(2))
    assert not np.array_equal(first, second)


def test_training_and_test_digits_are_disjoint():
    x, y, x_test, y_test = demo.digits_of(np, 4)
    assert len(x) == len(y) == demo.TRAIN_SIZE
    assert len(x_test) == len(y_test) == 1797 - demo.TRAIN_SIZE
    assert not {row.tobytes() for row in x} & {row.tobytes() for row in x_test}
    assert not np.array_equal(x, demo.digits_of(np, 5)[0])


def test_run_returns_finite_figures_and_writes_a_picture(ran):
    result, _ = ran
    assert result.curves.shape == (2, 2, 4, 4)
    np.testing.assert_array_equal(result.curves[0, 0, :, 0], [0, 10, 20, 25])
    assert np.isfinite(result.figures).all()
    assert result.figures.shape == (2, 2, len(demo.COLUMNS))
    np.testing.assert_array_equal(result.curves[0, :, 0], result.curves[1, :, 0])  # the same initial values
    assert (result.curves[0, :, -1] != result.curves[1, :, -1])[:, 1:].any()
    assert (result.curves[:, :, -1, 1] < result.curves[:, :, 0, 1] / 2).all()
    assert (result.curves[:, :, -1, 2:] > 70).all()
    assert result.picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert result.picture.stat().st_size > 20_000


def test_run_passes_its_own_checks(ran):
    result, printed = ran
    assert len(result.descent) == 13
    assert demo.count_rises(result.descent) == 0
    assert "the cost fell at each of the 12 steps" in printed
    assert all(result.predictions.values())
    assert "NO" not in printed


@pytest.mark.slow
def test_run_is_reproducible(ran, tmp_path):
    again, _ = run(tmp_path / "again.png", 1)
    np.testing.assert_array_equal(again.curves[:, :1], ran[0].curves[:, :1])
    np.testing.assert_array_equal(again.norms[:, :1], ran[0].norms[:, :1])


def test_sentences_match_the_numbers(ran):
    result, _ = ran
    without, with_dropout = np.zeros((2, 1, 4)), np.zeros((2, 1, 4))
    without[:, 0], with_dropout[:, 0] = (200, 0.1, 100, 90), (200, 0.2, 98, 92.5)
    better = dataclasses.replace(
        result, curves=np.stack([without, with_dropout]), norms=np.array([[40, 42], [39, 40]]), descent=[2, 1, 0.5]
    )
    worse = dataclasses.replace(better, curves=better.curves[::-1], norms=better.norms[::-1], descent=[2, 1, 1.5])
    assert demo.conclusion(better) == (
        "Dropout raised test accuracy: 90.0 % without, 92.5 % with, better on 2 of 2 seeds. It narrowed the gap "
        "between training and test accuracy: 10.0 points without, 5.5 with. It shrank the weights: norm 41.0 "
        "without, 39.5 with."
    )
    assert demo.conclusion(worse) == (
        "Dropout did not raise test accuracy: 92.5 % without, 90.0 % with, better on 0 of 2 seeds. It did not narrow "
        "the gap between training and test accuracy: 5.5 points without, 10.0 with. It did not shrink the weights: "
        "norm 39.5 without, 41.0 with."
    )
    assert "the cost fell at each of the 2 steps" in demo.descent_finding(better)
    assert "the cost did not fall at 1 of the 2 steps" in demo.descent_finding(worse)


@pytest.mark.parametrize("module", ["sklearn.datasets", "matplotlib.figure"])
def test_a_missing_library_is_named(monkeypatch, tmp_path, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{module}.*pip install 'gpudrop\[demo\]'"):
        demo.run(tmp_path / "picture.png", seeds=1, console=Console(file=io.StringIO()), steps=1)


def test_wrong_arguments_raise(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        demo.run(tmp_path / "picture.png", seeds=0)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        demo.run(tmp_path / "nowhere" / "picture.png", seeds=1)


def test_importing_the_demo_imports_no_optional_library():
    code = "import sys, gpudrop.demo; sys.exit(str([m for m in ('sklearn', 'matplotlib', 'rich') if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"
