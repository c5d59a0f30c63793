"""Valid calls of every layer and of its function, which tests then modify."""

import numpy as np

from gpudrop import layers
from tests.family.shapes import SHAPES

CLASSES = list(layers.VARIANTS.values())


def arrays(layer):
    rng, row = np.random.default_rng(0), layer.variant
    return [rng.normal(size=SHAPES[row.name]).astype(np.float32) for _ in row.inputs]


def call(cls, function=None, **changes):
    """Call a layer's variant, or a function with the same signature, with valid arguments except for some changes."""
    inputs = cls.variant.inputs
    own = {**dict(zip(inputs, arrays_of(cls), strict=True)), "p": 0.4} | changes
    positional = [own.pop(name) for name in inputs]
    return (function or cls.function)(*positional, own.pop("p"), **own)


def gradients_of(result):
    """The gradients that backprop returned, as a list. Those of absent arguments are None, and are left out."""
    return [part for part in (result if isinstance(result, tuple) else (result,)) if part is not None]


def arrays_of(cls):
    return arrays(cls())
