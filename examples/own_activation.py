"""An activation of your own, compiled into the same kernels as the built-in ones.

    python examples/own_activation.py

1. `register_activation` takes two plain functions: squareplus, (x + sqrt(x*x + 4)) / 2, and its slope.
2. Nothing checks that the slope is the derivative of the value, so the program compares it with finite differences.
3. A layer applies the activation and dropout in one pass, forward and backward, and a network learns with it.
"""

from math import sqrt

import numpy as np

import gpudrop

STEPS = 300


def squareplus(x):
    return (x + sqrt(x * x + 4)) / 2


def squareplus_slope(x):
    return (1 + x / sqrt(x * x + 4)) / 2


gpudrop.register_activation("squareplus", squareplus, squareplus_slope)


def slope_error(activation, step=1e-6):
    """The largest distance between an activation's slope and central differences of its value."""
    x = np.linspace(-5, 5, 1001)
    _, backprop = gpudrop.dropout_vjp(x, 0, activation=activation)  # p = 0: nothing is dropped
    above = gpudrop.dropout(x + step, 0, activation=activation)
    below = gpudrop.dropout(x - step, 0, activation=activation)
    return float(np.abs(backprop(np.ones_like(x)) - (above - below) / (2 * step)).max())


def fused_is_separate():
    """Whether one fused pass returns the same as the activation followed by dropout, in float64."""
    x, stream = np.linspace(-5, 5, 1001), gpudrop.Stream(0, 0)
    fused = gpudrop.dropout(x, 0.2, activation="squareplus", rng=stream)
    separate = gpudrop.dropout((x + np.sqrt(x * x + 4)) / 2, 0.2, rng=stream)
    return bool(np.allclose(fused, separate, rtol=1e-14, atol=0))


def train():
    """Learn |x| with a hidden layer of squareplus and dropout; returns the costs, without dropout."""
    rng = np.random.default_rng(1)
    x = np.linspace(-2, 2, 64)[:, None]
    target = np.abs(x)
    w1, b1, w2 = rng.standard_normal((1, 64)) * 3, rng.standard_normal(64) * 3, rng.standard_normal((64, 1)) / 64
    layer = gpudrop.Dropout(0.05, activation="squareplus", rng=gpudrop.Generator(2))
    costs = []
    for _ in range(STEPS):
        with gpudrop.no_dropout():
            costs.append(float(np.mean((layer(x @ w1 + b1) @ w2 - target) ** 2)) / 2)
        hidden = layer(x @ w1 + b1)
        error = (hidden @ w2 - target) / len(x)
        dz = layer.backward(error @ w2.T)
        w2 -= 0.005 * hidden.T @ error
        w1 -= 0.1 * x.T @ dz
        b1 -= 0.1 * dz.sum(axis=0)
    return costs


def main():
    """Check the slope, compare one pass with two, train, print the results and return them."""
    error, same, costs = slope_error("squareplus"), fused_is_separate(), train()
    print(f"the slope differs from finite differences by {error:.0e} at most")
    print(f"one fused pass has the results of two separate ones: {same}")
    print(f"the cost falls from {costs[0]:.3f} to {costs[-1]:.3f}")
    return error, same, costs


if __name__ == "__main__":
    main()
