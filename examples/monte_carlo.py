"""Monte-Carlo dropout: a network says how uncertain its predictions are, and draws a picture of it.

    python examples/monte_carlo.py [PICTURE]

The data are points of a curve with a gap. A network of two hidden layers learns them in NumPy. `mc_samples` then
predicts under 200 masks: their mean is the prediction, and their standard deviation is the uncertainty.

1. The uncertainty is larger in the gap and outside the data than where the data are.
2. A part of the inputs gets the same masks as in the whole: its means differ only by rounding in matrix products.

PICTURE, by default monte_carlo.png, shows the training points, the mean and two standard deviations.
"""

import sys
from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure

import gpudrop

SIZES, P, STEPS, RATE = (1, 100, 100, 1), 0.1, 1500, 0.02
SAMPLES = 200


def curve(x):
    return np.sin(3 * x) + 0.5 * x


def data(seed=0):
    """Training points with noise: x between -2 and -0.5, and between 0.7 and 2."""
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.uniform(-2, -0.5, (40, 1)), rng.uniform(0.7, 2, (40, 1))])
    return x, curve(x) + 0.1 * rng.standard_normal(x.shape)


class Network:
    """Matrices and biases, with relu and dropout between them."""

    def __init__(self, seed=1):
        rng = np.random.default_rng(seed)
        shapes = list(pairwise(SIZES))
        self.weights = [rng.standard_normal(shape) * np.sqrt(2 / shape[0]) for shape in shapes]
        self.biases = [rng.uniform(-1, 1, n) for _, n in shapes]
        generators = gpudrop.Generator(seed).spawn(len(shapes) - 1)
        self.dropouts = [gpudrop.Dropout(P, activation="relu", rng=rng) for rng in generators]

    def __call__(self, x):
        self.inputs = [x]
        for weight, bias, dropout in zip(self.weights, self.biases, self.dropouts, strict=False):
            self.inputs.append(dropout(self.inputs[-1] @ weight + bias))
        return self.inputs[-1] @ self.weights[-1] + self.biases[-1]

    def gradients(self, dy):
        """The derivatives of the weights and of the biases. dy is the derivative of the last result."""
        found = [(self.inputs[-1].T @ dy, dy.sum(axis=0))]
        for weight, dropout, x in zip(self.weights[:0:-1], self.dropouts[::-1], self.inputs[-2::-1], strict=True):
            dy = dropout.backward(dy @ weight.T)
            found.append((x.T @ dy, dy.sum(axis=0)))
        return zip(*found[::-1], strict=True)


def train(network, x, target):
    """Gradient descent with momentum; returns the mean squared error before each step, with dropout."""
    parameters, errors = network.weights + network.biases, []
    velocities = [np.zeros_like(parameter) for parameter in parameters]
    for _ in range(STEPS):
        error = network(x) - target
        errors.append(float(np.mean(error**2)))
        weights, biases = network.gradients(error / len(x))
        for parameter, velocity, gradient in zip(parameters, velocities, weights + biases, strict=True):
            velocity *= 0.9
            velocity -= RATE * gradient
            parameter += velocity
    return errors


def draw(file, points, x, mean, deviation):
    """Write the picture."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    below, above = mean - 2 * deviation, mean + 2 * deviation
    axes.fill_between(x[:, 0], below[:, 0], above[:, 0], color="#0072B2", alpha=0.25, lw=0, label="± 2 std. dev.")
    axes.plot(x, mean, color="#0072B2", label="predictive mean")
    axes.plot(x, curve(x), color="gray", ls="--", lw=1, label="curve without noise")
    axes.plot(*points, "k.", ms=4, label="training points")
    axes.set(xlabel="x", ylabel="y", xlim=(x[0, 0], x[-1, 0]), ylim=(-3, 3.5))
    axes.legend(fontsize="small", frameon=False, ncols=2)
    figure.savefig(file, dpi=100)


def main(picture="monte_carlo.png"):
    """Train, predict, print the results, draw them and return them."""
    network, points = Network(), data()
    errors = train(network, *points)
    print(f"the mean squared error falls from {errors[0]:.2f} to {np.mean(errors[-100:]):.2f}")

    x = np.linspace(-3.5, 3.5, 141)[:, None]
    mean, variance = gpudrop.mc_samples(network, x, SAMPLES, gpudrop.Stream(0, 0))
    deviation = np.sqrt(variance)
    regions = {
        "near the data": ((x > -2) & (x < -0.5)) | ((x > 0.7) & (x < 2)),
        "in the gap": (x > -0.3) & (x < 0.5),
        "outside": abs(x) > 2.5,
    }
    found = {name: float(deviation[where].mean()) for name, where in regions.items()}
    print("mean standard deviation: " + ", ".join(f"{value:.2f} {name}" for name, value in found.items()))

    part = gpudrop.mc_samples(network, x[100:], SAMPLES, gpudrop.Stream(0, 0), first=100)
    distance = float(np.abs(part.mean - mean[100:]).max())
    print(f"the means of a part of the inputs are the same within 1e-12: {distance < 1e-12}")
    draw(picture, points, x, mean, deviation)
    return errors, found, distance


if __name__ == "__main__":
    main(*sys.argv[1:2])
