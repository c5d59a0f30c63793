"""A right call of every layer and of its function, for tests to change."""

import numpy as np

from gpudrop import layers
from tests.family.shapes import SHAPES

CLASSES = list(layers.VARIANTS.values())


def arrays(layer):
    rng, row = np.random.default_rng(0), layer.variant
    return [rng.normal(size=SHAPES[row.name]).astype(np.float32) for _ in row.inputs]


def call(cls, function=None, **changes):
    """A call of a layer's variant, or of a function like it, with all right but for some changes."""
    inputs = cls.variant.inputs
    own = {**dict(zip(inputs, arrays_of(cls), strict=True)), "p": 0.4} | changes
    positional = [own.pop(name) for name in inputs]
    return (function or cls.function)(*positional, own.pop("p"), **own)


def arrays_of(cls):
    return arrays(cls())
