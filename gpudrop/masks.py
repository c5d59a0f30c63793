"""The geometry of masks that elements share, and of DropBlock's blocks.

A structured mask is the same dense mask over a smaller shape that broadcasts against the array: it is drawn
once, by the same mapping, and applied by broadcasting.
"""

import itertools
import math
import operator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple


@dataclass(frozen=True)
class Shard:
    """Which part of a larger array an array is: its mask is then that part of the whole array's mask.

    It is not torch.distributed's placement of that name, which says along which axis a tensor is cut.

    Parameters
    ----------
    shape : tuple of int and None
        The whole array's shape; None for an axis that is not cut, so that x's own size is the whole's.
    start : tuple of int
        The index in the whole array of x's first element.

    Raises
    ------
    TypeError, ValueError
        If these are not tuples of integers of one length, or an integer is negative.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> x, stream = np.ones((4, 8), np.float32), gpudrop.Stream(0, 0)
    >>> right = gpudrop.dropout(x[:, 4:].copy(), 0.5, rng=stream, shard=gpudrop.Shard((None, 8), (0, 4)))
    >>> bool((right == gpudrop.dropout(x, 0.5, rng=stream)[:, 4:]).all())
    True
    """

    shape: tuple
    start: tuple

    def __post_init__(self):
        shape, start = check_shape("shape", self.shape), check_shape("start", self.start)
        if len(shape) != len(start) or None in start:
            raise ValueError(f"start must be an integer for each axis of shape, got {self.start!r} for {self.shape!r}")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "start", start)


@lru_cache(maxsize=1024)
def resolved(shard, shape):
    """The shard of an array of this shape, with the sizes that None stands for; a ValueError if it can't be one."""
    if len(shard.shape) != len(shape):
        raise ValueError(f"shard must have as many axes as x, which has {len(shape)}, got {shard}")
    whole = tuple(own if n is None else n for n, own in zip(shard.shape, shape, strict=True))
    if any(begin + own > n for begin, own, n in zip(shard.start, shape, whole, strict=True)):
        raise ValueError(f"shard must have room for x, of shape {shape}, from its start on, got {shard}")
    if math.prod(whole) > 2**64:
        raise ValueError(f"shard must be of an array of at most 2**64 elements, got {shard}")
    return Shard(whole, shard.start)


@lru_cache(maxsize=1024)
def rows(shape, shard):
    """How the elements of a shard lie in the mask of the whole: (row, pitch, starts), as `kernels.spec.Draw` has them.

    Kernels take rows that begin equally far apart. Where a shard is cut along more axes than that, it is several such
    windows of equal size, one after the other, each with a start of its own.
    """
    whole, begin = shard.shape, shard.start
    cut = max((axis for axis in range(len(shape)) if shape[axis] != whole[axis]), default=0)
    row, pitch = math.prod(shape[cut:]), math.prod(whole[cut:])
    first = cut
    while first > 0 and shape[first - 1] == whole[first - 1]:
        first -= 1
    first = max(0, first - 1)  # the slowest axis of a window may be cut: its steps are equal nevertheless
    steps = [math.prod(whole[axis + 1 :]) for axis in range(len(whole))]
    origin = sum(map(operator.mul, begin, steps))
    indices = itertools.product(*(range(n) for n in shape[:first]))
    return row, pitch, tuple(origin + sum(map(operator.mul, index, steps)) for index in indices)


class BroadcastMask(NamedTuple):
    """A mask that broadcasts against an array.

    Attributes
    ----------
    drawn : int
        Elements of the mask's own shape, all of which are drawn.
    per_sample : int
        Those of one sample (see `broadcast_mask`); 0 where samples share all of them.
    spreads : tuple of (size, period, repeat, run)
        Copies on the way: `kernels.spec.Mask` describes two axes that are shared, each with one that is not
        before it. With more of them, leading shared axes are written out first.
    period, repeat, run : int
        What `kernels.spec.Mask` says of the last copy.
    row, pitch, starts
        What `rows` says of the mask's own shape.
    shapes : list of tuple of int
        Those of the buffers that it is drawn into, one for the mask and one for each of the spreads.
    """

    drawn: int
    per_sample: int
    spreads: tuple
    period: int
    repeat: int
    run: int
    row: int
    pitch: int
    starts: tuple

    @property
    def counted(self):
        return False

    @property
    def shapes(self):
        return [(self.drawn,), *((spread[0],) for spread in self.spreads)]

    @property
    def window(self):
        """Whether what is drawn at a time lies in several rows."""
        return self.row * len(self.starts) < self.drawn


def check_mask_shape(mask_shape):
    return check_shape("mask_shape", mask_shape)


def check_shape(name, shape):
    """A shape as a tuple of Python's integers and None, or a TypeError; a ValueError if one is negative."""
    try:
        sizes = tuple(None if n is None else operator.index(n) for n in shape)
    except TypeError:
        raise TypeError(f"{name} must be a tuple of integers and None, got {shape!r}") from None
    if any(n is not None and n < 0 for n in sizes):
        raise ValueError(f"{name} must not be negative, got {shape!r}")
    return sizes


@lru_cache(maxsize=1024)
def broadcast_mask(shape, mask_shape, batch_axis, shard=None):
    """The BroadcastMask of a checked mask_shape against an array's shape; None where nothing is shared.

    batch_axis: the axis that counts samples, None if none does; no axis before it may have a mask of its own. shard:
    which part this array is of the one that mask_shape is for; what kernels can't draw in one window is shared too.

    Raises
    ------
    ValueError
        If mask_shape doesn't broadcast against the array's.
    """
    whole, begin = (shape, (0,) * len(shape)) if shard is None else (shard.shape, shard.start)
    leading = len(whole) - len(mask_shape)
    if leading < 0 or any(n not in (None, 1, axis) for n, axis in zip(mask_shape, whole[leading:], strict=True)):
        raise ValueError(f"mask_shape must broadcast against x, of shape {whole}, got {mask_shape}")
    sizes = (1,) * leading + mask_shape
    # An axis of one element is its own only where None says so, which matters to samples alone.
    own = [n is None or n == axis != 1 for n, axis in zip(sizes, whole, strict=True)]
    size = math.prod(n for n, mine in zip(shape, own, strict=True) if mine)
    if math.prod(shape) == 0:
        return None
    window = rows(_of(own, shape), Shard(_of(own, whole), _of(own, begin, 0)))
    if all(own) and len(window[2]) == 1:
        return None
    samples = batch_axis is not None and own[batch_axis]
    per_sample = math.prod(_of(own, whole)) // whole[batch_axis] if samples else 0
    return BroadcastMask(size, per_sample, *_geometry(size, shape, own), *window)


def _of(own, numbers, otherwise=1):
    """An array's numbers, axis by axis, as they are for its mask."""
    return tuple(n if mine else otherwise for n, mine in zip(numbers, own, strict=True))


def _geometry(size, shape, own):
    """The spreads and the (period, repeat, run) of a mask of so many elements."""
    # Axes from the right, neighbours alike in being shared or not as one: shared, own, shared, own, ...
    groups = [1]
    for n, mine in zip(reversed(shape), reversed(own), strict=True):
        if n == 1:
            continue
        if mine == (len(groups) % 2 == 0):
            groups[-1] *= n
        else:
            groups.append(n)
    spreads = []
    while len(groups) > 4:
        outer = groups.pop() if len(groups) % 2 == 0 else 1
        copies = groups.pop()
        spreads.append((size * copies, size // outer, copies, 1))
        groups[-1] *= outer * copies
        size *= copies
    run, period, repeat, _ = groups + [1] * (4 - len(groups))
    return tuple(spreads), period, repeat, run


class Blocks(NamedTuple):
    """DropBlock's mask: seeds are drawn over the positions where a whole block fits, and each drops its block.

    Attributes
    ----------
    maps : int
        How many feature maps there are, each with seeds of its own.
    size : tuple of (int, int)
        Rows and columns of a feature map.
    block : tuple of (int, int)
        Rows and columns of a block, at most those of the map.
    samples : int
        How many samples the maps belong to.
    """

    maps: int
    size: tuple
    block: tuple
    samples: int

    @property
    def counted(self):
        return True

    @property
    def window(self):
        return False

    @property
    def fitting(self):
        """Rows and columns of the positions where a block fits."""
        return tuple(n - b + 1 for n, b in zip(self.size, self.block, strict=True))

    @property
    def per_sample(self):
        """How many of the seeds are a sample's."""
        return self.drawn // self.samples

    @property
    def drawn(self):
        """How many seeds are drawn."""
        return self.maps * math.prod(self.fitting)

    @property
    def shapes(self):
        """Those of the buffers for the seeds and for the mask that grows from them."""
        return [(self.maps, *self.fitting), (self.maps, *self.size)]
