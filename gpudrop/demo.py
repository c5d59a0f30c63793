"""A demonstration of dropout: a network overfits a few of scikit-learn's digits, without dropout and with it.

The network is a multi-layer perceptron. Its forward and backward passes are written out by hand, so that they show all
effects of dropout. There is one `gpudrop.Dropout` in front of each weight matrix.
"""

import contextlib
import functools
import importlib
import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpudrop import backends
from gpudrop.checks import check_writable
from gpudrop.context import no_dropout
from gpudrop.generator import Generator
from gpudrop.layers import Dropout

WIDTHS = (64, 512, 256, 10)
KEEP_PROBS = (0.9, 0.6, 0.5)
"""Of the input and the hidden layers. The lowest is for the output of the largest weight matrix, 512 x 256."""

TRAIN_SIZE = 200  # of 1797 digits: so few that the network overfits
RATE, MOMENTUM = 0.05, 0.9
DESCENT_STEPS, DESCENT_RATE = 300, 0.1  # without momentum, which can raise the cost

COLUMNS = ("final cost", "train %", "test %", "gap", "weight norm")
COLOURS = ("#D55E00", "#0072B2")  # without and with dropout; colour-blind people can distinguish them


class MLP:
    """A multi-layer perceptron: dropout, then a weight matrix and a bias, layer after layer.

    Parameters
    ----------
    widths : sequence of int
        The sizes of the input, the hidden layers and the output.
    keep_probs : sequence of float
        The keep probabilities of the input and the hidden layers.
    seed : int
        Determines the initial weights (He's) and the masks.
    xp : module
        numpy or cupy.
    dtype : dtype

    Attributes
    ----------
    weights, biases, dropouts : list
    """

    def __init__(self, widths=WIDTHS, keep_probs=KEEP_PROBS, seed=0, xp=np, dtype=np.float32):
        rng = np.random.default_rng((seed, 0))  # on the CPU, for equal weights on every backend
        shapes = list(itertools.pairwise(widths))
        self.weights = [xp.asarray(rng.normal(0, np.sqrt(2 / m), (m, n)).astype(dtype)) for m, n in shapes]
        self.biases = [xp.zeros(n, dtype) for n in widths[1:]]
        # A hidden layer's activation is fused with the dropout that follows it. Each layer has its own generator.
        activations = [None] + ["relu"] * (len(shapes) - 1)
        settings = zip(keep_probs, activations, Generator(seed).spawn(len(shapes)), strict=True)
        self.dropouts = [Dropout(keep_prob=keep_prob, activation=name, rng=rng) for keep_prob, name, rng in settings]

    @property
    def parameters(self):
        """All weights, then all biases."""
        return self.weights + self.biases

    def train(self, mode=True):
        """Switch dropout on, or off if mode is False; returns the network."""
        for layer in self.dropouts:
            layer.train(mode)
        return self

    def eval(self):
        """Switch dropout off; returns the network."""
        return self.train(False)

    def forward(self, x):
        """The scores (logits) of the classes, one row for each row of x."""
        self._inputs = []
        for weight, bias, layer in zip(self.weights, self.biases, self.dropouts, strict=True):
            x = layer(x)
            self._inputs.append(x)
            x = x @ weight + bias
        return x

    def backward(self, dscores):
        """The gradients of the parameters from the gradient of the scores, with the masks of the last forward pass."""
        dx = dscores
        dweights: list[Any] = []
        dbiases: list[Any] = []
        for weight, layer, inputs in zip(self.weights[::-1], self.dropouts[::-1], self._inputs[::-1], strict=True):
            dweights.insert(0, inputs.T @ dx)
            dbiases.insert(0, dx.sum(axis=0))
            dx = layer.backward(dx @ weight.T)
        return dweights + dbiases


def softmax_cross_entropy(scores, targets):
    """The mean cross-entropy of softmax(scores) against one-hot targets, and its gradient.

    Parameters
    ----------
    scores, targets : array of shape (examples, classes)

    Returns
    -------
    cost : 0-dimensional array
    dscores : array
        d cost / d scores.
    """
    shifted = scores - scores.max(axis=1, keepdims=True)  # so that exp can't overflow
    exps = np.exp(shifted)  # for CuPy arrays, NumPy's functions call CuPy
    total = exps.sum(axis=1, keepdims=True)
    cost = -(targets * (shifted - np.log(total))).sum() / len(scores)
    return cost, (exps / total - targets) / len(scores)


def train(network, x, y, *, steps, rate, momentum=0.0, watch=None):
    """Gradient descent on a whole training set.

    Parameters
    ----------
    network : MLP
    x, y : array
        The training set; y is one-hot.
    steps : int
    rate, momentum : float
    watch : function, optional
        Called after each step with the number of completed steps.

    Returns
    -------
    list of float
        The cost before each step, with the step's masks.
    """
    costs, velocities = [], [0 * parameter for parameter in network.parameters]
    for step in range(steps):
        cost, dscores = softmax_cross_entropy(network.forward(x), y)
        costs.append(float(cost))
        gradients = network.backward(dscores)
        for parameter, velocity, gradient in zip(network.parameters, velocities, gradients, strict=True):
            velocity *= momentum
            velocity -= rate * gradient
            parameter += velocity
        if watch:
            watch(step + 1)
    return costs


@dataclass(frozen=True)
class Result:
    """The results of the demo.

    Attributes
    ----------
    device : str
    descent, masked_descent : list of float
        The costs before the first step of gradient descent and after each step, with dropout off and with masks.
    predictions : dict of {str: bool}
        Statements about predictions, and whether each is true.
    curves : array
        Its axes are (without, with dropout), seeds, recorded steps, and (step, training cost, training %, test %).
        All are measured with dropout off.
    norms : array
        The final norms of the weights. Its axes are (without, with dropout) and seeds.
    picture : Path
    seconds : float
    """

    device: str
    descent: list
    masked_descent: list
    predictions: dict
    curves: np.ndarray
    norms: np.ndarray
    picture: Path
    seconds: float

    @property
    def figures(self):
        """The final values. The axes of the array are (without, with dropout), seeds, and COLUMNS."""
        _, cost, accuracy, test_accuracy = np.moveaxis(self.curves[:, :, -1], -1, 0)
        return np.stack([cost, accuracy, test_accuracy, accuracy - test_accuracy, self.norms], axis=-1)

    @property
    def wins(self):
        """The number of seeds for which dropout has the better test accuracy."""
        without, with_dropout = self.figures[:, :, COLUMNS.index("test %")]
        return int((with_dropout > without).sum())


def count_rises(costs):
    """The number of steps at which the cost did not fall. A cost of nan did not fall."""
    return int((~(np.diff(costs) < 0)).sum())


def run(picture=Path("gpudrop-demo.png"), seeds=8, console=None, *, steps=200):
    """Train with and without dropout, print the results, and draw them.

    Parameters
    ----------
    picture : path
        The PNG file to write.
    seeds : int
        Number of trainings each way. A seed determines the initial weights, the training set and the masks.
    console : rich.console.Console, optional
        Where to print.
    steps : int
        Number of steps per training.

    Returns
    -------
    Result

    Raises
    ------
    ModuleNotFoundError
        If scikit-learn or matplotlib is missing.
    OSError
        If the picture can't be written; FileNotFoundError if its folder doesn't exist.
    ValueError
        If seeds or steps is less than 1.
    """
    if seeds < 1 or steps < 1:
        raise ValueError(f"seeds and steps must be at least 1, got {seeds} and {steps}")
    picture = Path(picture)
    check_writable("picture", picture)
    from rich.console import Console
    from rich.progress import Progress

    console, (xp, device), started = console or Console(), _device(), time.perf_counter()
    _require("matplotlib.figure")  # fail now rather than after the training
    # One thread is enough for such small matrices, and makes sums independent of the number of cores.
    one_thread = _require("threadpoolctl").threadpool_limits(1, "blas")
    with one_thread, Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("training", total=2 * (DESCENT_STEPS + seeds * steps))
        advance = functools.partial(progress.advance, task)
        descents = [_descend(xp, off, advance) for off in (True, False)]
        pairs = itertools.product((False, True), range(seeds))
        fits = [_fit(xp, seed, dropped, steps, advance) for dropped, seed in pairs]
        networks, *measured = zip(*fits, strict=True)
        predictions = _check_predictions(networks[-1], digits_of(xp, seeds - 1)[2])
    curves, norms = np.reshape(measured[0], (2, seeds, -1, 4)), np.reshape(measured[1], (2, seeds))
    without, with_dropout = descents
    took = time.perf_counter() - started
    result = Result(device, without, with_dropout, predictions, curves, norms, picture, took)
    _print(result, console)
    _draw(result)
    console.print(f"Picture: {picture}", soft_wrap=True)
    return result


def _require(module):
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the demo can't run ({error}): install its packages with pip install 'gpudrop[demo]'"
        ) from error


def _device():
    """CuPy and the GPU's name if CuPy is available, otherwise NumPy."""
    if isinstance(backends.load("cupy_elementwise"), str):
        return np, "NumPy on the CPU"
    import cupy

    return cupy, f"CuPy on {cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)['name'].decode()}"


def digits_of(xp, seed):
    """x, y, x_test, y_test: the training digits of a seed, and all others as the test set; y is one-hot."""
    images, labels = _require("sklearn.datasets").load_digits(return_X_y=True)
    order = np.random.default_rng((seed, 1)).permutation(len(images))
    x, y = xp.asarray(images[order].astype(np.float32) / 16), xp.asarray(np.eye(10, dtype=np.float32)[labels[order]])
    return x[:TRAIN_SIZE], y[:TRAIN_SIZE], x[TRAIN_SIZE:], y[TRAIN_SIZE:]


def _descend(xp, off, advance):
    """The costs of plain gradient descent on the same network, with dropout off or with masks."""
    network, (x, y, *_) = MLP(xp=xp), digits_of(xp, 0)
    with no_dropout() if off else contextlib.nullcontext():
        costs = train(network, x, y, steps=DESCENT_STEPS, rate=DESCENT_RATE, watch=lambda step: advance())
        return [*costs, float(softmax_cross_entropy(network.forward(x), y)[0])]


def _fit(xp, seed, dropped, steps, advance):
    """A network trained with or without dropout, its curves, and the norm of its weights."""
    network, (x, y, x_test, y_test) = MLP(seed=seed, xp=xp).train(dropped), digits_of(xp, seed)
    curves = []

    def watch(step):
        if step % 10 == 0 or step == steps:
            curves.append((step, *_measure(network, x, y), _measure(network, x_test, y_test)[1]))
        advance()

    watch(0)
    train(network, x, y, steps=steps, rate=RATE, momentum=MOMENTUM, watch=watch)
    return network, curves, sum(float((weight * weight).sum()) for weight in network.weights) ** 0.5


def _measure(network, x, y):
    """Cost, and accuracy in percent, with dropout off."""
    with no_dropout():
        scores = network.forward(x)
    hits = scores.argmax(axis=1) == y.argmax(axis=1)
    return float(softmax_cross_entropy(scores, y)[0]), 100 * float(hits.mean())


def _check_predictions(network, x):
    predicted = network.eval().forward(x)
    again = network.forward(x)
    with no_dropout():
        without_masks = network.train().forward(x)
    return {
        "two predictions are equal, bit for bit": _same_bits(predicted, again),
        "a prediction equals the network without masks, bit for bit": _same_bits(predicted, without_masks),
        "masks do change the output of the network in training": not _same_bits(predicted, network.forward(x)),
    }


def _same_bits(a, b):
    return bool((a.view(np.uint32) == b.view(np.uint32)).all())


def descent_finding(result):
    costs, rises, steps = result.descent, count_rises(result.descent), len(result.descent) - 1
    return (
        f"dropout off: the cost {'did not fall' if rises else 'fell'} at {rises or 'each'} of the {steps} steps "
        f"of gradient descent, from {costs[0]:.2f} to {costs[-1]:.2g} "
        f"(with masks it did not at {count_rises(result.masked_descent)} of them)"
    )


def conclusion(result):
    """A sentence about the means, whether or not dropout was better."""
    (_, _, test, gap, norm), (_, _, test_with, gap_with, norm_with) = result.figures.mean(axis=1)
    return (
        f"Dropout {'raised' if test_with > test else 'did not raise'} test accuracy: {test:.1f} % without, "
        f"{test_with:.1f} % with, better on {result.wins} of {result.norms.shape[1]} seeds. "
        f"It {'narrowed' if gap_with < gap else 'did not narrow'} the gap between training and test accuracy: "
        f"{gap:.1f} points without, {gap_with:.1f} with. It {'shrank' if norm_with < norm else 'did not shrink'} "
        f"the weights: norm {norm:.1f} without, {norm_with:.1f} with."
    )


def _setting(result):
    widths, keep_probs = "-".join(map(str, WIDTHS)), ", ".join(map(str, KEEP_PROBS))
    return f"Network {widths}, keep_prob {keep_probs}; {TRAIN_SIZE} training digits; {result.norms.shape[1]} seeds"


def _print(result, console):
    from rich import box
    from rich.table import Table

    console.print(f"{_setting(result)}; {result.device}, {result.seconds:.0f} s")
    for finding, held in {descent_finding(result): not count_rises(result.descent), **result.predictions}.items():
        console.print("[green]yes[/]" if held else "[red]NO[/] ", finding)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption="mean ± standard deviation over the seeds")
    for column in ("dropout", *COLUMNS):
        table.add_column(column, justify="right", no_wrap=True)
    without, with_dropout = result.figures
    for name, rows in ("without", without), ("with", with_dropout), ("change", with_dropout - without):
        columns = zip(rows.T, (4, 1, 1, 1, 2), strict=True)
        spread = {"ddof": min(1, len(rows) - 1)}
        table.add_row(name, *(f"{c.mean():.{digits}f} ± {c.std(**spread):.{digits}f}" for c, digits in columns))
    console.print(table)
    console.print(conclusion(result))


def _draw(result):
    figure = _require("matplotlib.figure").Figure(figsize=(15, 5.6), layout="constrained")
    figure.suptitle(f"{_setting(result)}: thin lines are seeds, bold lines are means", fontsize=11, color="0.4")
    cost_axes, accuracy_axes, gap_axes = figure.subplots(1, 3, width_ratios=(1.2, 1.2, 1))
    (cost, _, test, gap, _), (cost_with, _, test_with, gap_with, _) = result.figures.mean(axis=1)
    _draw_curves(cost_axes, result.curves, 1)
    cost_axes.set(yscale="log", ylabel="training cost (dropout off while measuring)")
    _set_title(cost_axes, "Training cost ends", "higher", cost_with > cost, f"{cost:.2g} without, {cost_with:.2g} with")
    _draw_curves(accuracy_axes, result.curves, 3)
    finals = result.figures[:, :, 2]
    accuracy_axes.set(ylabel="test accuracy, %", ylim=(finals.min() - 6, finals.max() + 1))  # the start is far below
    numbers = f"{test:.1f} % without, {test_with:.1f} % with, better on {result.wins} of {finals.shape[1]} seeds"
    _set_title(accuracy_axes, "Test accuracy is", "higher", test_with > test, numbers)
    _draw_gaps(gap_axes, *result.figures[:, :, 3])
    numbers = f"{gap:.1f} points without, {gap_with:.1f} with"
    _set_title(gap_axes, "The gap is", "narrower", gap_with < gap, numbers)
    figure.savefig(result.picture, dpi=130, format="png")


def _set_title(axes, subject, comparative, holds, numbers):
    title = f"{subject} {comparative if holds else f'no {comparative}'} with dropout\n{numbers}"
    axes.set_title(title, fontsize=13, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, axis="y")


def _draw_curves(axes, curves, column):
    for side, colour, label in zip(curves, COLOURS, ("without dropout", "with dropout"), strict=True):
        steps, values = side[0, :, 0], side[:, :, column]
        axes.plot(steps, values.T, color=colour, linewidth=0.7, alpha=0.4)
        axes.plot(steps, values.mean(axis=0), color=colour, linewidth=2.8, label=label)
    axes.set_xlabel("step")
    axes.legend(frameon=False, fontsize=11, loc="lower right" if column == 3 else "upper right")


def _draw_gaps(axes, without, with_dropout):
    """A line per seed from one side to the other, and the means beside them."""
    axes.plot((0, 1), (without, with_dropout), color="0.75", linewidth=1.2, zorder=1)
    axes.plot((-0.12, 1.12), (without.mean(), with_dropout.mean()), color="0.2", linewidth=2.8, zorder=1)
    sides = (0, -1, "right", without, COLOURS[0]), (1, 1, "left", with_dropout, COLOURS[1])
    for position, outwards, align, gaps, colour in sides:
        mean = gaps.mean()
        axes.scatter([position] * len(gaps), gaps, s=45, color=colour, alpha=0.7, edgecolor="white", zorder=2)
        axes.plot(position + 0.12 * outwards, mean, marker="D", markersize=10, color=colour)
        axes.text(
            position + 0.2 * outwards, mean, f"mean\n{mean:.1f}", ha=align, va="center", color=colour, fontsize=11
        )
    axes.set(xticks=(0, 1), xticklabels=("without dropout", "with dropout"), xlim=(-0.5, 1.5))
    axes.set_ylabel("training minus test accuracy, points")
