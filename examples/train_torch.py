"""A PyTorch network on scikit-learn's digits, with torch's dropout and with gpudrop's in its two forms.

    python examples/train_torch.py

1. `gpudrop.torch.Dropout(p, activation="relu")` is a module for nn.Sequential: relu and dropout in one pass.
2. `accelerate()` leaves the model as it is, and reroutes the dropout of torch's own modules to gpudrop's kernels.
3. Both draw the same masks from torch's seed, so both trainings have the same costs, to the bit.
"""

import contextlib

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import gpudrop.torch

HIDDEN, TRAINING_DIGITS, STEPS, P = 256, 200, 100, 0.5


def digits():
    """Images and labels of the training digits, and those of all other digits."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x, y = torch.from_numpy(images[order] / 16).float(), torch.from_numpy(labels[order])
    return (x[:TRAINING_DIGITS], y[:TRAINING_DIGITS]), (x[TRAINING_DIGITS:], y[TRAINING_DIGITS:])


def fused():
    """The network with gpudrop's module, which applies the activation as well."""
    dropout = gpudrop.torch.Dropout(P, activation="relu")
    return nn.Sequential(nn.Linear(64, HIDDEN), dropout, nn.Linear(HIDDEN, 10))


def plain():
    """The same network from torch's own modules."""
    return nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Dropout(P), nn.Linear(HIDDEN, 10))


def train(make, context, x, y):
    """A trained network, and the cost before each step. The seed determines the weights and the masks."""
    torch.manual_seed(0)
    network = make()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    costs = []
    with context:
        for _ in range(STEPS):
            cost = cross_entropy(network(x), y)
            optimizer.zero_grad()
            cost.backward()
            optimizer.step()
            costs.append(cost.item())
    return network.eval(), costs


@torch.no_grad()
def accuracy(network, x, y):
    """The share of digits that the network classifies correctly."""
    return (network(x).argmax(dim=1) == y).float().mean().item()


def main():
    """Train three times, print the results and return them."""
    training, test = digits()
    found = {}
    for name, make, context in (
        ("torch's nn.Dropout", plain, contextlib.nullcontext()),
        ("gpudrop.torch.Dropout", fused, contextlib.nullcontext()),
        ("nn.Dropout in accelerate()", plain, gpudrop.torch.accelerate()),
    ):
        network, costs = train(make, context, *training)
        found[name] = costs, accuracy(network, *test)
        print(f"{name}: the cost falls from {costs[0]:.2f} to {costs[-1]:.2f}, {found[name][1]:.1%} of new digits")
    _, (own, _), (rerouted, _) = found.values()
    print(f"gpudrop's module and accelerate() have the same costs, to the bit: {own == rerouted}")
    return found


if __name__ == "__main__":
    main()
