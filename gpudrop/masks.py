"""The geometry of masks that elements share, of shards, and of DropBlock's blocks.

A structured mask is a dense mask over a smaller shape that broadcasts against the array. It is drawn once, by the same
mapping as every mask, and is applied by broadcasting.
"""

import itertools
import math
import operator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Shard:
    """The position of an array in a larger one. The array gets the corresponding part of the larger array's mask.

    It is not torch.distributed's Shard, a placement that says along which axis a tensor is cut.

    Parameters
    ----------
    shape : tuple of int and None
        The shape of the whole array. None for an axis that is not cut, where the whole array has x's size.
    start : tuple of int
        The index of x's first element in the whole array.

    Raises
    ------
    TypeError, ValueError
        If these are not tuples of integers of equal length, or an integer is negative.

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
            raise ValueError(
                f"start must have an integer for each axis of shape, got {self.start!r} for {self.shape!r}"
            )
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "start", start)


@lru_cache(maxsize=1024)
def resolved(shard, shape):
    """The shard of an array of this shape, with sizes instead of None; a ValueError if the array does not fit."""
    if len(shard.shape) != len(shape):
        raise ValueError(f"shard must have as many axes as x, which has {len(shape)}, got {shard}")
    whole = tuple(own if n is None else n for n, own in zip(shard.shape, shape, strict=True))
    if any(begin + own > n for begin, own, n in zip(shard.start, shape, whole, strict=True)):
        raise ValueError(f"shard must contain an array of shape {shape} from its start on, got {shard}")
    if math.prod(whole) > 2**64:
        raise ValueError(f"shard must be of an array of at most 2**64 elements, got {shard}")
    return Shard(whole, shard.start)


@lru_cache(maxsize=1024)
def rows(shape, shard):
    """The positions of a shard's elements in the whole mask: (row, pitch, starts), as in `kernels.spec.Draw`.

    Kernels take rows at equal distances. A shard that is cut along more axes consists of several such windows of equal
    size, one after the other. Each window has its own start.
    """
    whole, begin = shard.shape, shard.start
    cut = max((axis for axis in range(len(shape)) if shape[axis] != whole[axis]), default=0)
    row, pitch = math.prod(shape[cut:]), math.prod(whole[cut:])
    first = cut
    while first > 0 and shape[first - 1] == whole[first - 1]:
        first -= 1
    first = max(0, first - 1)  # the slowest axis of a window may be cut: its rows still begin at equal distances
    steps = [math.prod(whole[axis + 1 :]) for axis in range(len(whole))]
    origin = sum(map(operator.mul, begin, steps))
    indices = itertools.product(*(range(n) for n in shape[:first]))
    return row, pitch, tuple(origin + sum(map(operator.mul, index, steps)) for index in indices)


class BroadcastMask(NamedTuple):
    """A mask that broadcasts against an array.

    Attributes
    ----------
    drawn : int
        Number of elements of the mask's own shape. All of them are drawn.
    per_sample : int
        Number of these elements per sample (see `broadcast_mask`); 0 if samples share all of them.
    spreads : tuple of (size, period, repeat, run)
        Intermediate copies. `kernels.spec.Mask` describes at most two shared axes, each preceded by an axis that is
        not shared. If there are more shared axes, copies expand the leading ones first.
    period, repeat, run : int
        The fields of the `kernels.spec.Mask` of the last copy.
    row, pitch, starts
        The result of `rows` for the mask's own shape.
    shapes : list of tuple of int
        The shapes of the buffers: one for the drawn mask and one for each of the spreads.
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
        """Whether a launch draws several rows."""
        return self.row * len(self.starts) < self.drawn


class GivenMask(NamedTuple):
    """A mask that the caller has drawn before.

    Attributes
    ----------
    geometry : BroadcastMask
    array : array
        One-dimensional: a bool per element of the mask's own shape, or its bits as numpy.packbits returns them.
    packed : bool
    """

    geometry: BroadcastMask
    array: Any
    packed: bool

    @property
    def counted(self):
        return False

    @property
    def window(self):
        return False

    @property
    def shapes(self):
        """The shapes of the buffers: one for the unpacked mask, and one for each of the spreads."""
        return self.geometry.shapes[not self.packed :]


def check_mask_shape(mask_shape):
    return check_shape("mask_shape", mask_shape)


def check_shape(name, shape):
    """A shape as a tuple of Python's integers and None, or a TypeError; a ValueError if an integer is negative."""
    try:
        sizes = tuple(None if n is None else operator.index(n) for n in shape)
    except TypeError:
        raise TypeError(f"{name} must be a tuple of integers and None, got {shape!r}") from None
    if any(n is not None and n < 0 for n in sizes):
        raise ValueError(f"{name} must not be negative, got {shape!r}")
    return sizes


@lru_cache(maxsize=1024)
def broadcast_mask(shape, mask_shape, batch_axis, shard=None, given=False):
    """The BroadcastMask of a checked mask_shape against an array's shape; None if no elements share a mask element.

    batch_axis: the axis that counts samples, or None; no axis before it may have a mask of its own. shard: the position
    of this array in the one that mask_shape describes. The result is also a BroadcastMask if kernels cannot draw the
    shard's mask in one window, or if the mask is given.

    Raises
    ------
    ValueError
        If mask_shape does not broadcast against the array's shape.
    """
    whole, begin = (shape, (0,) * len(shape)) if shard is None else (shard.shape, shard.start)
    leading = len(whole) - len(mask_shape)
    if leading < 0 or any(n not in (None, 1, axis) for n, axis in zip(mask_shape, whole[leading:], strict=True)):
        raise ValueError(f"mask_shape must broadcast against x, of shape {whole}, got {mask_shape}")
    sizes = (1,) * leading + mask_shape
    # An axis of size 1 has its own mask only if mask_shape is None there. This matters only for samples.
    own = [n is None or n == axis != 1 for n, axis in zip(sizes, whole, strict=True)]
    size = math.prod(n for n, mine in zip(shape, own, strict=True) if mine)
    if math.prod(shape) == 0:
        return BroadcastMask(size, 0, (), 1, 1, 1, 0, 0, ()) if given else None
    window = rows(_of(own, shape), Shard(_of(own, whole), _of(own, begin, 0)))
    if all(own) and len(window[2]) == 1 and not given:
        return None
    samples = batch_axis is not None and own[batch_axis]
    per_sample = math.prod(_of(own, whole)) // whole[batch_axis] if samples else 0
    return BroadcastMask(size, per_sample, *_geometry(size, shape, own), *window)


def _of(own, numbers, otherwise=1):
    """The numbers of an array's axes, with `otherwise` for axes along which the mask is shared."""
    return tuple(n if mine else otherwise for n, mine in zip(numbers, own, strict=True))


def _geometry(size, shape, own):
    """The spreads and the (period, repeat, run) of a mask of `size` elements."""
    # From the right, neighbouring axes that are all shared, or all not, form one group: shared, own, shared, own, ...
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
    """DropBlock's mask. Seeds are drawn at all positions where a whole block fits. A dropped seed drops its block.

    Attributes
    ----------
    maps : int
        Number of feature maps. Each has its own seeds.
    size : tuple of (int, int)
        Rows and columns of a feature map.
    block : tuple of (int, int)
        Rows and columns of a block, at most those of a feature map.
    samples : int
        Number of samples that the maps belong to.
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
        """The number of rows and of columns at which a block fits."""
        return tuple(n - b + 1 for n, b in zip(self.size, self.block, strict=True))

    @property
    def per_sample(self):
        """Number of seeds per sample."""
        return self.drawn // self.samples

    @property
    def drawn(self):
        """Number of seeds."""
        return self.maps * math.prod(self.fitting)

    @property
    def shapes(self):
        """The shapes of the buffers for the seeds and for the mask that grows from them."""
        return [(self.maps, *self.fitting), (self.maps, *self.size)]
