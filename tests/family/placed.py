"""Arrays of any strides at any address, in buffers that reveal writes outside the array."""

from dataclasses import dataclass

import numpy as np

from gpudrop.variants import FAMILY

GUARD = 3  # the elements before and after an array, which must not change
EXTREMES = [np.inf, -np.inf, np.nan, 0.0, -0.0, 6e4, -6e4, 6e-8, -6e-8]

_rng = np.random.default_rng(0)
NORMAL = _rng.normal(0, 2, 1 << 16)
EXTREME = np.where(_rng.random(NORMAL.size) < 0.2, _rng.choice(EXTREMES, NORMAL.size), NORMAL)

# The smallest and the largest number of dimensions.
DIMENSIONS = {
    "dropout1d": (2, 3),
    "dropout2d": (3, 4),
    "dropout3d": (4, 5),
    "drop_path": (1, 5),
    "locked_dropout": (2, 5),
    "embedding_dropout": (2, 2),
    "token_dropout": (1, 5),
    "consistent_dropout": (1, 5),
    "drop_connect": (0, 4),
    "dropblock1d": (1, 5),
    "dropblock2d": (2, 5),
    "feature_alpha_dropout": (2, 5),
}
DIMENSIONS |= dict.fromkeys(("dropout", "alpha_dropout", "gaussian_dropout", "uniform_dropout"), (0, 5))
DIMENSIONS |= dict.fromkeys(("gaussian_noise", "zoneout", "dropout_add", "dropout_glu"), (0, 5))


def dimensions(variant):
    """The smallest and the largest number of dimensions with which a variant is tested."""
    return DIMENSIONS.get(variant, (FAMILY[variant].ndim,) * 2)


@dataclass
class Placed:
    """An array at an offset in a buffer of bytes, with a copy of the buffer."""

    array: np.ndarray
    offset: int
    buffer: np.ndarray

    def __post_init__(self):
        self.before = self.buffer.copy()

    def again(self, buffer):
        """The same elements in another buffer."""
        return np.ndarray(self.array.shape, self.array.dtype, buffer, self.offset, self.array.strides)

    def untouched(self):
        """Whether all bytes of the buffer are unchanged."""
        return np.array_equal(self.buffer, self.before)

    def untouched_beside(self):
        """Whether all bytes outside the array are unchanged."""
        now = self.buffer.copy()
        self.again(now)[...] = self.again(self.before)
        return np.array_equal(now, self.before)


def place(shape, dtype, choose, writable=False, extremes=False):
    """An array of a shape: permuted, reversed, with gaps, misaligned or, if it is read-only, overlapping itself.

    choose: returns one item of a list.
    """
    dtype = np.dtype(dtype)
    strides, sizes = [0] * len(shape), [min(n, 4096) for n in shape]  # an array with a longer axis has no elements
    if writable or choose([False, True]):
        step, axes = 1, list(range(len(shape)))
        while axes:
            axis = axes.pop(choose([-1, *range(len(axes))]))
            step *= choose([1, 1, 2, 3])
            strides[axis] = step * choose([1, 1, -1])
            step *= max(1, sizes[axis])
        writable = True
    else:  # windows and broadcasts, whose elements overlap
        strides = [choose(range(-7, 8)) for _ in shape]
    ends = [(n - 1) * stride if n else 0 for n, stride in zip(sizes, strides, strict=True)]
    before, after = -sum(end for end in ends if end < 0), sum(end for end in ends if end > 0)
    count = GUARD + before + 1 + after + GUARD
    values = np.resize((EXTREME if extremes else NORMAL)[choose(range(1000)) :], count)
    astray = choose([0, 0, 0, 1, dtype.itemsize // 2])
    buffer = np.full(count * dtype.itemsize + astray, 0xA5, np.uint8)
    np.ndarray(count, dtype, buffer, astray)[...] = values.astype(dtype)
    offset = astray + (GUARD + before) * dtype.itemsize
    array = np.ndarray(shape, dtype, buffer, offset, [stride * dtype.itemsize for stride in strides])
    array.flags.writeable = writable
    return Placed(array, offset, buffer)


def pair(shape, dtype, choose, extremes=False):
    """Two arrays whose elements alternate in one buffer. They share no memory."""
    both = place((*shape, 2), dtype, choose, True, extremes)
    step = both.array.strides[-1]
    return tuple(Placed(both.array[..., k], both.offset + k * step, both.buffer) for k in (0, 1))
