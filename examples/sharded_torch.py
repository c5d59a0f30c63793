"""One network on 1, 2 or 4 processes: each draws its own part of one mask, which the seed determines.

    python examples/sharded_torch.py
    torchrun --standalone --nproc-per-node 4 examples/sharded_torch.py

1. Dropout of a sharded tensor (DTensor) is dropout of the whole tensor, to the bit, forward and backward.
2. A tensor-parallel network trains as it does on one process, except for rounding in its matrix products.

The processes communicate through gloo, on the CPU. The output does not depend on their number.
"""

import zlib

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import gpudrop.torch

STEPS = 40


def dropped(x, dy):
    """Dropout of x, and the gradient for dy. All processes set the same seed."""
    torch.manual_seed(0)
    x = x.clone().requires_grad_()
    y = gpudrop.torch.functional.dropout(x, 0.5, activation="relu")
    return y.detach(), torch.autograd.grad(y, x, dy)[0]


def sharded_dropout(mesh):
    """Whether the shards together equal the whole, for each axis, and a checksum of the whole."""
    # Integers, whose bits are the same on every processor. The 30 rows do not divide by 4: the last part is smaller.
    x, dy = torch.randint(-8, 9, (2, 30, 64), generator=torch.Generator().manual_seed(1)).float()
    whole, equal = dropped(x, dy), True
    for axis in range(2):
        parts = dropped(*(distribute_tensor(tensor, mesh, [Shard(axis)]) for tensor in (x, dy)))
        equal &= all(torch.equal(part.full_tensor(), of_whole) for part, of_whole in zip(parts, whole, strict=True))
    return equal, zlib.crc32(b"".join(part.full_tensor().numpy().tobytes() for part in parts))


class Network(nn.Module):
    """A multi-layer perceptron with gelu and dropout in one pass."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.up, self.down = nn.Linear(8, 64), nn.Linear(64, 1)
        self.hidden = gpudrop.torch.Dropout(0.2, activation="gelu")

    def forward(self, x):
        return self.down(self.hidden(self.up(x)))


def train(model):
    """Learn the product of two features; returns the cost before each step."""
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(4)
    costs = []
    for _ in range(STEPS):
        cost = (model(x) - x[:, :1] * x[:, 1:2]).square().mean()
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
        costs.append(cost.item())
    return costs


def main():
    """Compare sharded dropout with whole dropout, train, print the results in one process and return them."""
    if dist.is_torchelastic_launched():  # by torchrun
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    equal, checksum = sharded_dropout(mesh)
    alone = train(Network())
    # The hidden activations are sharded by columns, and so is their dropout.
    plan = {"up": ColwiseParallel(use_local_output=False), "down": RowwiseParallel()}
    parallel = train(parallelize_module(Network(), mesh, plan))
    distance = max(abs(a - b) for a, b in zip(alone, parallel, strict=True))
    if dist.get_rank() == 0:
        print(f"sharded dropout has the bits of the whole: {equal}, checksum {checksum:#010x}")
        print(f"tensor-parallel training: the cost falls from {parallel[0]:.3f} to {parallel[-1]:.3f}")
        print(f"its costs are those of one process within 1e-5: {distance < 1e-5}")
    dist.destroy_process_group()
    return equal, checksum, parallel, distance


if __name__ == "__main__":
    main()
