"""A right call of every layer and of its function, for tests to change."""

import numpy as np

from gpudrop import layers

# Each layer's class and an array for it; the function is the class's own.
SHAPES = {
    "Dropout": (4, 6),
    "Dropout1d": (3, 4, 5),
    "Dropout2d": (3, 4, 5, 2),
    "Dropout3d": (3, 4, 2, 2, 2),
    "DropPath": (9, 3),
    "LockedDropout": (4, 3, 5),
    "EmbeddingDropout": (9, 4),
    "TokenDropout": (3, 5, 4),
    "ConsistentDropout": (3, 9),
    "DropConnect": (5, 6),
    "DropBlock1d": (2, 3, 15),
    "DropBlock2d": (2, 3, 9, 9),
    "AlphaDropout": (5, 6),
    "FeatureAlphaDropout": (3, 4, 5),
    "GaussianDropout": (5, 6),
    "UniformDropout": (5, 6),
    "GaussianNoise": (5, 6),
    "Zoneout": (5, 6),
}
CLASSES = [getattr(layers, name) for name in SHAPES]


def arrays(layer):
    rng = np.random.default_rng(0)
    shape, count = SHAPES[type(layer).__name__], 1 + isinstance(layer, layers.Zoneout)
    return [rng.normal(size=shape).astype(np.float32) for _ in range(count)]


def call(cls, function=None, **changes):
    """A call of a layer's variant, or of a function like it, with all right but for some changes."""
    x, *previous = arrays_of(cls)
    own = {"x": x, "p": 0.4} | ({"previous": previous[0]} if previous else {}) | changes
    positional = [own.pop(name) for name in ("x", "previous") if name in own]
    return (function or cls.function)(*positional, own.pop("p"), **own)


def arrays_of(cls):
    return arrays(cls())
