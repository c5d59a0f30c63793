"""A network of two layers on scikit-learn's digits: forward and backward pass by hand, in NumPy.

    python examples/train_numpy.py

1. In `no_dropout()`, the cost of gradient descent falls at every step.
2. With momentum, the network memorises its 200 training digits. Dropout makes it better on the other 1597.
"""

import numpy as np
from sklearn.datasets import load_digits

import gpudrop

HIDDEN, TRAINING_DIGITS, STEPS = 256, 200, 200
KEEP_INPUT, KEEP_HIDDEN = 0.9, 0.5


def digits():
    """x and one-hot labels of the training digits, and those of all other digits."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x, y = (images[order] / 16).astype(np.float32), np.eye(10, dtype=np.float32)[labels[order]]
    return (x[:TRAINING_DIGITS], y[:TRAINING_DIGITS]), (x[TRAINING_DIGITS:], y[TRAINING_DIGITS:])


def initial_parameters(seed=1):
    """[w1, b1, w2, b2]."""
    rng = np.random.default_rng(seed)
    w1 = rng.standard_normal((64, HIDDEN)) * np.sqrt(2 / 64)
    w2 = rng.standard_normal((HIDDEN, 10)) * np.sqrt(2 / HIDDEN)
    return [array.astype(np.float32) for array in (w1, np.zeros(HIDDEN), w2, np.zeros(10))]


def dropout_layers(seed=2):
    """Dropout of the input, and relu with dropout of the hidden layer, each with a generator of its own."""
    of_input, of_hidden = gpudrop.Generator(seed).spawn(2)
    return (
        gpudrop.Dropout(keep_prob=KEEP_INPUT, rng=of_input),
        gpudrop.Dropout(keep_prob=KEEP_HIDDEN, activation="relu", rng=of_hidden),
    )


def forward(parameters, dropouts, x):
    """The inputs of both matrix products, and the scores of the ten classes."""
    w1, b1, w2, b2 = parameters
    x = dropouts[0](x)
    hidden = dropouts[1](x @ w1 + b1)  # relu, mask and scale in one pass
    return x, hidden, hidden @ w2 + b2


def cost_and_gradients(parameters, dropouts, x, y):
    """The cross-entropy, and its derivatives in the order of the parameters."""
    x, hidden, scores = forward(parameters, dropouts, x)
    shifted = scores - scores.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    dscores = (np.exp(log_probabilities) - y) / len(y)
    dz = dropouts[1].backward(dscores @ parameters[2].T)  # the same mask, drawn again
    gradients = [x.T @ dz, dz.sum(axis=0), hidden.T @ dscores, dscores.sum(axis=0)]
    return float(-(y * log_probabilities).sum() / len(y)), gradients


def train(parameters, dropouts, x, y, rate, momentum):
    """Change the parameters by gradient descent; returns the cost before each step."""
    costs, velocities = [], [np.zeros_like(parameter) for parameter in parameters]
    for _ in range(STEPS):
        cost, gradients = cost_and_gradients(parameters, dropouts, x, y)
        costs.append(cost)
        for parameter, velocity, gradient in zip(parameters, velocities, gradients, strict=True):
            velocity *= momentum
            velocity -= rate * gradient
            parameter += velocity
    return costs


def accuracy(parameters, dropouts, x, y):
    """The share of digits that the network classifies correctly, without dropout."""
    with gpudrop.no_dropout():
        return float(np.mean(forward(parameters, dropouts, x)[2].argmax(axis=1) == y.argmax(axis=1)))


def main():
    """Train three times, print the results and return them."""
    training, test = digits()

    parameters, dropouts = initial_parameters(), dropout_layers()
    with gpudrop.no_dropout():
        costs = train(parameters, dropouts, *training, rate=0.1, momentum=0)
    print(f"without dropout, gradient descent: the cost falls from {costs[0]:.2f} to {costs[-1]:.2f}")
    print(f"it falls at every step: {bool(np.all(np.diff(costs) < 0))}")

    found = {}
    for name in ("without dropout", "with dropout"):
        parameters, dropouts = initial_parameters(), dropout_layers()
        for layer in dropouts:
            layer.train(name == "with dropout")
        train(parameters, dropouts, *training, rate=0.05, momentum=0.9)
        found[name] = [accuracy(parameters, dropouts, *part) for part in (training, test)]
        print(f"{name}, momentum: {found[name][0]:.1%} of the training digits, {found[name][1]:.1%} of the others")
    return costs, found


if __name__ == "__main__":
    main()
