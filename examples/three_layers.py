"""A network of three layers, written by hand as courses do it: samples in columns, dropout with a keep_prob per layer.

    python examples/three_layers.py

1. Without dropout, the cost of gradient descent falls at every step.
2. The gradient agrees with finite differences, without dropout and under fixed masks.
3. Training with dropout, saved in the middle as JSON and resumed, ends with the same bits as in one go.
"""

import json
from itertools import pairwise

import numpy as np

import gpudrop

SIZES = (2, 40, 20, 1)
KEEP_PROBS = (0.9, 0.8)  # of the two hidden layers
STEPS, RATE = 1000, 0.1


def moons(samples, seed):
    """Two half circles that interlock: x of shape (2, samples), and labels of shape (1, samples)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (1, samples))
    angle = np.pi * rng.random((1, samples)) + np.pi * labels
    x = np.concatenate([np.cos(angle) + labels, np.sin(angle) + 0.5 * labels])
    return x + 0.25 * rng.standard_normal(x.shape), labels.astype(float)


def initial_parameters(seed=1):
    """A list of [weights, biases], one pair for each layer."""
    rng = np.random.default_rng(seed)
    return [[rng.standard_normal((n, m)) * np.sqrt(2 / m), np.zeros((n, 1))] for m, n in pairwise(SIZES)]


def dropout_layers(seed=2):
    """Relu and dropout of each hidden layer, with generators that share nothing."""
    generators = gpudrop.Generator(seed).spawn(len(KEEP_PROBS))
    return [
        gpudrop.Dropout(keep_prob=keep_prob, activation="relu", rng=rng)
        for keep_prob, rng in zip(KEEP_PROBS, generators, strict=True)
    ]


def forward(parameters, dropouts, x):
    """The input of each layer, followed by the logits."""
    values = [x]
    for (w, b), dropout in zip(parameters, dropouts, strict=False):
        values.append(dropout(w @ values[-1] + b))
    w, b = parameters[-1]
    return [*values, w @ values[-1] + b]


def cost(logits, labels):
    """The cross-entropy."""
    return float(np.mean(np.logaddexp(0, logits) - labels * logits))


def gradients(parameters, dropouts, values, labels):
    """The derivatives of the cost, in the structure of `parameters`."""
    *inputs, logits = values
    dz = (1 / (1 + np.exp(-logits)) - labels) / labels.size
    found = []
    for layer in reversed(range(len(parameters))):
        found.append([dz @ inputs[layer].T, dz.sum(axis=1, keepdims=True)])
        if layer > 0:
            dz = dropouts[layer - 1].backward(parameters[layer][0].T @ dz)  # the same masks, drawn again
    return found[::-1]


def train(parameters, dropouts, x, labels, steps):
    """Change the parameters by gradient descent; returns the cost before each step, with dropout."""
    costs = []
    for _ in range(steps):
        values = forward(parameters, dropouts, x)
        costs.append(cost(values[-1], labels))
        for pair, found in zip(parameters, gradients(parameters, dropouts, values, labels), strict=True):
            for parameter, gradient in zip(pair, found, strict=True):
                parameter -= RATE * gradient
    return costs


def accuracy(parameters, dropouts, x, labels):
    """The share of samples that the network classifies correctly, without dropout."""
    with gpudrop.no_dropout():
        return float(np.mean((forward(parameters, dropouts, x)[-1] > 0) == labels))


def gradient_error(parameters, dropouts, x, labels, step=1e-6):
    """The distance between the gradient and finite differences, relative to their lengths.

    The masks must be the same at every call.
    """
    found = gradients(parameters, dropouts, forward(parameters, dropouts, x), labels)
    exact, approximate = [], []
    for pair, pair_gradients in zip(parameters, found, strict=True):
        for parameter, gradient in zip(pair, pair_gradients, strict=True):
            exact.extend(gradient.ravel())
            for index in np.ndindex(parameter.shape):
                old = parameter[index]
                parameter[index] = old + step
                above = cost(forward(parameters, dropouts, x)[-1], labels)
                parameter[index] = old - step
                below = cost(forward(parameters, dropouts, x)[-1], labels)
                parameter[index] = old
                approximate.append((above - below) / (2 * step))
    distance = np.linalg.norm(np.subtract(exact, approximate))
    return float(distance / (np.linalg.norm(exact) + np.linalg.norm(approximate)))


def gradient_error_under_fixed_masks(parameters, dropouts, x, labels):
    """The same with dropout. Each layer draws from a Stream, so its mask repeats, and then gets back its generator."""
    generators = [dropout.rng for dropout in dropouts]
    for call, dropout in enumerate(dropouts):
        dropout.rng = gpudrop.Stream(0, call)
    error = gradient_error(parameters, dropouts, x, labels)
    for dropout, generator in zip(dropouts, generators, strict=True):
        dropout.rng = generator
    return error


def saved(parameters, dropouts):
    """The training's state as text. JSON keeps every bit of a float64."""
    arrays = [[array.tolist() for array in pair] for pair in parameters]
    return json.dumps({"parameters": arrays, "dropouts": [dropout.state_dict() for dropout in dropouts]})


def resumed(text):
    """The parameters and the layers of a saved state."""
    state, dropouts = json.loads(text), dropout_layers()
    for dropout, of_layer in zip(dropouts, state["dropouts"], strict=True):
        dropout.load_state_dict(of_layer)
    return [[np.array(array) for array in pair] for pair in state["parameters"]], dropouts


def main():
    """Do the three things above, print the results and return them."""
    x, labels = moons(200, seed=0)
    new_x, new_labels = moons(2000, seed=3)

    parameters, dropouts = initial_parameters(), dropout_layers()
    with gpudrop.no_dropout():
        costs = train(parameters, dropouts, x, labels, STEPS)
    falls = bool(np.all(np.diff(costs) < 0))
    print(f"without dropout the cost falls from {costs[0]:.3f} to {costs[-1]:.3f}, at every step: {falls}")
    print(f"of new samples {accuracy(parameters, dropouts, new_x, new_labels):.1%} are classified correctly")

    parameters = initial_parameters()
    few = x[:, :20], labels[:, :20]
    with gpudrop.no_dropout():
        errors = [gradient_error(parameters, dropouts, *few)]
    errors.append(gradient_error_under_fixed_masks(parameters, dropouts, *few))
    print(f"the gradient differs from finite differences by {errors[0]:.1e}, under fixed masks by {errors[1]:.1e}")

    parameters, dropouts = initial_parameters(), dropout_layers()
    costs = train(parameters, dropouts, x, labels, STEPS // 2)
    text = saved(parameters, dropouts)
    costs += train(parameters, dropouts, x, labels, STEPS // 2)
    again, dropouts_again = resumed(text)
    train(again, dropouts_again, x, labels, STEPS // 2)
    same = saved(again, dropouts_again) == saved(parameters, dropouts)
    right = accuracy(parameters, dropouts, new_x, new_labels)
    print(f"with dropout the cost falls from {costs[0]:.3f} to about {np.mean(costs[-20:]):.3f}")
    print(f"of new samples {right:.1%} are classified correctly")
    print(f"resumed in the middle, training ends with the same bits: {same}")
    return falls, errors, right, same


if __name__ == "__main__":
    main()
