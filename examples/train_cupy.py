"""The network of train_numpy.py with CuPy arrays, and dropout as a function: `dropout_vjp` instead of layers.

    python examples/train_cupy.py

It needs CuPy and a CUDA GPU. All arrays stay on the GPU, and the masks are the ones that a CPU draws from this seed.
"""

import sys

import numpy as np
from sklearn.datasets import load_digits

import gpudrop

try:
    import cupy as cp
except ImportError:
    sys.exit("train_cupy.py needs CuPy: pip install 'gpudrop[cuda13]', or cuda12")

HIDDEN, TRAINING_DIGITS, STEPS = 256, 200, 200
P_INPUT, P_HIDDEN = 0.1, 0.5  # the probabilities of dropping


def digits():
    """x and one-hot labels of the training digits, and those of all other digits, on the GPU."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x = cp.asarray((images[order] / 16).astype(np.float32))
    y = cp.asarray(np.eye(10, dtype=np.float32)[labels[order]])
    return (x[:TRAINING_DIGITS], y[:TRAINING_DIGITS]), (x[TRAINING_DIGITS:], y[TRAINING_DIGITS:])


def initial_parameters(seed=1):
    """[w1, b1, w2, b2], drawn by NumPy, so that they are the same on all devices."""
    rng = np.random.default_rng(seed)
    w1 = rng.standard_normal((64, HIDDEN)) * np.sqrt(2 / 64)
    w2 = rng.standard_normal((HIDDEN, 10)) * np.sqrt(2 / HIDDEN)
    return [cp.asarray(array.astype(np.float32)) for array in (w1, np.zeros(HIDDEN), w2, np.zeros(10))]


def cost_and_gradients(parameters, x, y, rng):
    """The cross-entropy, and its derivatives in the order of the parameters. rng hands out a stream to each call."""
    w1, b1, w2, b2 = parameters
    x = gpudrop.dropout(x, P_INPUT, rng=rng)
    hidden, backprop = gpudrop.dropout_vjp(x @ w1 + b1, P_HIDDEN, activation="relu", rng=rng)
    scores = hidden @ w2 + b2
    shifted = scores - scores.max(axis=1, keepdims=True)
    log_probabilities = shifted - cp.log(cp.exp(shifted).sum(axis=1, keepdims=True))
    dscores = (cp.exp(log_probabilities) - y) / len(y)
    dz = backprop(dscores @ w2.T)  # the same mask, drawn again
    cost = -(y * log_probabilities).sum() / len(y)
    return float(cost), [x.T @ dz, dz.sum(axis=0), hidden.T @ dscores, dscores.sum(axis=0)]


def train(parameters, x, y, rng, rate=0.05, momentum=0.9):
    """Change the parameters by gradient descent; returns the cost before each step."""
    costs, velocities = [], [cp.zeros_like(parameter) for parameter in parameters]
    for _ in range(STEPS):
        cost, gradients = cost_and_gradients(parameters, x, y, rng)
        costs.append(cost)
        for parameter, velocity, gradient in zip(parameters, velocities, gradients, strict=True):
            velocity *= momentum
            velocity -= rate * gradient
            parameter += velocity
    return costs


def accuracy(parameters, x, y):
    """The share of digits that the network classifies correctly."""
    w1, b1, w2, b2 = parameters
    scores = cp.maximum(x @ w1 + b1, 0) @ w2 + b2
    return float((scores.argmax(axis=1) == y.argmax(axis=1)).mean())


def main():
    """Train with dropout, compare a mask with the CPU's, print the results and return them."""
    if not cp.cuda.is_available():
        sys.exit("train_cupy.py needs a CUDA GPU, and CuPy found none")
    training, test = digits()
    parameters = initial_parameters()
    costs = train(parameters, *training, gpudrop.Generator(2))
    right = [accuracy(parameters, *part) for part in (training, test)]
    print(f"the cost falls from {costs[0]:.2f} to about {np.mean(costs[-20:]):.2f}")
    print(f"{right[0]:.1%} of the training digits, {right[1]:.1%} of the others")

    stream = gpudrop.Stream(2, 0)  # the generator's first stream
    on_gpu = gpudrop.keep_mask((TRAINING_DIGITS, 64), P_INPUT, stream, like=training[0])
    same = np.array_equal(cp.asnumpy(on_gpu), gpudrop.keep_mask((TRAINING_DIGITS, 64), P_INPUT, stream))
    print(f"the first mask is the CPU's: {same}")
    return costs, right, same


if __name__ == "__main__":
    main()
