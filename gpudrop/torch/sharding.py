"""Sharded tensors (DTensor): each rank draws its own part of the whole tensor's mask, without communication.

All ranks must draw the same stream: seed torch's generator with the same number on all of them.
"""

import json

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard

from gpudrop.torch import operators
from gpudrop.variants import FAMILY


def _sharded(operator):
    """Register the rule of an operator for DTensors: apply it to the local part of each rank."""

    def rule(cls, function, types, args=(), kwargs=None):
        x, other, stream, variant, options, *call = args
        mesh = x.device_mesh
        # If the forward pass saved an array, the gradient is redistributed to its placements, not the other way round.
        placements = tuple(map(_placement(variant), (x if other is None else other).placements))
        locals_ = [t if t is None else t.redistribute(mesh, placements).to_local() for t in (x, other)]
        if any(isinstance(placement, Shard) for placement in placements):
            options = json.dumps(json.loads(options) | {"shard": [list(x.shape), _begin(x.shape, mesh, placements)]})
        y = operator(*locals_, stream, variant, options, *call)
        y, *bits = y if operator is operators.RECORDED else (y,)
        y = DTensor.from_local(y, mesh, placements, run_check=False, shape=x.shape, stride=x.stride())
        if not bits:
            return y
        # Each rank keeps the bits of its part. They have as many dimensions as x, for the same placements.
        local = bits[0].reshape(*(1,) * (x.dim() - 1), -1)
        return y, DTensor.from_local(local, mesh, placements, run_check=False)

    torch.library.register_torch_dispatch(operator, DTensor, rule)


def _begin(shape, mesh, placements):
    """Return the index of the first element of this rank's part; parts along an axis are those of torch.chunk."""
    left, begin = list(shape), [0] * len(shape)
    for mesh_axis, placement in enumerate(placements):
        if isinstance(placement, Shard):
            size = -(-left[placement.dim] // mesh.size(mesh_axis))
            first = min(left[placement.dim], size * mesh.get_local_rank(mesh_axis))
            left[placement.dim] = min(left[placement.dim] - first, size)
            begin[placement.dim] += first
    return begin


def _placement(variant):
    """Return a function placement -> required placement: a plain Shard is kept, anything else is replicated.

    A variant whose mask depends on the whole tensor is always replicated.
    """

    def placement(given):
        simple = type(given) is Shard and not FAMILY[variant].whole
        return given if simple else Replicate()

    return placement


for _operator in (operators.FORWARD, operators.RECORDED, operators.BACKWARD):
    _sharded(_operator)


def _composed(operator, function):
    """Register the rule of an operator that is computed from those above and torch's own."""

    def rule(cls, operator, types, args=(), kwargs=None):
        return function(*args)

    torch.library.register_torch_dispatch(operator, DTensor, rule)


_composed(operators.FUSED, operators.composed)
_composed(operators.GRADIENTS, operators.composed_gradients)
