"""A small transformer in PyTorch that learns to sort ten digits, with gpudrop by one line and with checkpoints.

    python examples/transformer_torch.py

1. `accelerate()` reroutes all dropouts of a model from torch's modules, including those of attention weights.
2. `convert(model)` changes the modules of one model instead, and fuses an activation with the dropout behind it.
3. A checkpointed layer computes its forward pass again in the backward pass. It draws the same masks then, so the
   losses have the same bits as without checkpoints.
"""

import contextlib

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import gpudrop.torch

DIGITS, LENGTH, WIDTH, STEPS = 10, 10, 64, 150


class Sorter(nn.Module):
    """An encoder that returns scores of shape (batch, LENGTH, DIGITS): which digit belongs at which position."""

    def __init__(self, checkpointed=False):
        super().__init__()
        self.checkpointed = checkpointed
        self.digits, self.positions = nn.Embedding(DIGITS, WIDTH), nn.Parameter(torch.randn(LENGTH, WIDTH) / 8)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, nhead=4, dim_feedforward=128, dropout=0.1, batch_first=True)
            for _ in range(2)
        )
        self.scores = nn.Linear(WIDTH, DIGITS)

    def forward(self, x):
        x = self.digits(x) + self.positions
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpointed else layer(x)
        return self.scores(x)


def train(model, context):
    """The loss before each step. The seeds determine the batches and the masks."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    batches = torch.Generator().manual_seed(1)
    torch.manual_seed(2)
    losses = []
    with context:
        for _ in range(STEPS):
            x = torch.randint(DIGITS, (64, LENGTH), generator=batches)
            loss = cross_entropy(model(x).flatten(0, 1), x.sort(dim=1).values.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@torch.no_grad()
def accuracy(model):
    """The share of the digits of new sequences that are put in the right positions."""
    x = torch.randint(DIGITS, (1000, LENGTH), generator=torch.Generator().manual_seed(3))
    return (model.eval()(x).argmax(dim=2) == x.sort(dim=1).values).float().mean().item()


def main():
    """Train in three ways, print the results and return them."""
    found = {}
    for name, context, converted, checkpointed in (
        ("accelerate()", gpudrop.torch.accelerate(), False, False),
        ("convert(model)", contextlib.nullcontext(), True, False),
        ("convert(model), checkpointed", contextlib.nullcontext(), True, True),
    ):
        torch.manual_seed(0)
        model = Sorter(checkpointed)
        if converted:
            gpudrop.torch.convert(model)
        losses = train(model, context)
        found[name] = losses, accuracy(model)
        print(f"{name}: the loss falls from {losses[0]:.2f} to {losses[-1]:.2f}, {found[name][1]:.1%} correct")
    _, (plain, _), (again, _) = found.values()
    print(f"with checkpoints the losses have the same bits: {plain == again}")
    return found


if __name__ == "__main__":
    main()
