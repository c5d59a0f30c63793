"""Sharded tensors: each rank draws its own part of the mask of the whole tensor, and nothing is exchanged for it.

All ranks must draw the same stream: seed torch's generator equally on all of them.
"""

import json

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard

from gpudrop.torch import operators
from gpudrop.variants import FAMILY


def _sharded(operator):
    """What the operator does with DTensors: the same with each rank's own part."""

    def rule(cls, function, types, args=(), kwargs=None):
        x, other, stream, variant, options, *call = args
        mesh = x.device_mesh
        # A gradient comes to where the forward pass was, if that kept something, and not the other way round.
        placements = tuple(map(_placement(variant), (x if other is None else other).placements))
        locals_ = [t if t is None else t.redistribute(mesh, placements).to_local() for t in (x, other)]
        if any(isinstance(placement, Shard) for placement in placements):
            options = json.dumps(json.loads(options) | {"shard": [list(x.shape), _begin(x.shape, mesh, placements)]})
        y = operator(*locals_, stream, variant, options, *call)
        return DTensor.from_local(y, mesh, placements, run_check=False, shape=x.shape, stride=x.stride())

    torch.library.register_torch_dispatch(operator, DTensor, rule)


def _begin(shape, mesh, placements):
    """Where this rank's part of a tensor begins: along an axis ranks have chunks as torch.chunk makes them."""
    left, begin = list(shape), [0] * len(shape)
    for mesh_axis, placement in enumerate(placements):
        if isinstance(placement, Shard):
            size = -(-left[placement.dim] // mesh.size(mesh_axis))
            first = min(left[placement.dim], size * mesh.get_local_rank(mesh_axis))
            left[placement.dim] = min(left[placement.dim] - first, size)
            begin[placement.dim] += first
    return begin


def _placement(variant):
    """How a tensor must lie: as it does, or on each rank as a whole where it is a part of no simple kind."""

    def placement(given):
        simple = type(given) is Shard and not FAMILY[variant].whole
        return given if simple else Replicate()

    return placement


for _operator in (operators.FORWARD, operators.BACKWARD):
    _sharded(_operator)
