"""Arrays that are not contiguous are computed in tiles, on all threads and without a copy of a whole array.

A tile is a rectangle along two axes: the last one, along which consecutive elements of the mask lie, and the one along
which the memory of an array lies, as in Fortran order. Its kernel copies blocks to buffers where it must. If such
rectangles are small, a tile is a range of the elements in logical order, which NumPy copies to a buffer and back.
"""

import itertools
import math

import numpy as np

from gpudrop.kernels import threads
from gpudrop.kernels.cpu.map import BLOCK, BLOCK_COLUMNS, BLOCK_ROWS
from gpudrop.kernels.cpu.memory import LINE

SIZE = 1 << 19  # the most elements of a tile
LEAST = 4096  # the least elements of a rectangle: the call for a smaller one takes longer than NumPy's copies


class Tiling:
    """The tiles of arrays of one shape and dtype, with any strides.

    Parameters
    ----------
    inputs, outputs : tuples of NumPy arrays
    start, row, pitch : int
        The positions in the mask: see `spec.Draw`. row is None for whole arrays, and a number for a window.

    Attributes
    ----------
    rows : bool
        Whether the tiles are rectangles.
    """

    def __init__(self, inputs, outputs, start, row, pitch):
        self._count, self._arrays = len(inputs), _merged([*inputs, *outputs], row)
        self._start, self._row, self._pitch = start, row, pitch
        self._shape = shape = self._arrays[0].shape
        self._apart = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]  # of neighbours, in logical order
        self._edges, self._along, self._block, self._across = _tile(self._arrays, self._arrays[self._count])
        self.rows = self._along is not None

    def compute(self, run, run_rows, drawn):
        """Compute all tiles, on all threads.

        run(inputs, outputs, lo, hi, start, row, pitch) : function
            Computes elements of one-dimensional contiguous arrays.
        run_rows(inputs, outputs, memory, height, width, across, start, pitch) : function
            Computes two-dimensional arrays: see `map.run_rows`.
        drawn : dtype
            The dtype of random values.
        """
        steps = (range(0, n, edge) for n, edge in zip(self._shape, self._edges, strict=True))
        corners, unit = list(itertools.product(*steps)), math.prod(self._edges)
        height, width = self._block

        def part(lo, hi):
            # Memory for a block of each array, whose results replace inputs, and for a block of the mask.
            most = max(self._count, len(self._arrays) - self._count)
            memory = np.empty(most * height * width, self._arrays[0].dtype)
            memory = memory, np.empty(height * (width + LINE) * self._across, drawn)
            for corner in corners[-(-lo // unit) : -(-hi // unit)]:
                index = tuple(slice(first, first + edge) for first, edge in zip(corner, self._edges, strict=True))
                tiles = [array[index] for array in self._arrays]
                first = sum(map(int.__mul__, corner, self._apart))
                if self._row:
                    first = first // self._row * self._pitch + first % self._row
                if self.rows:
                    self._compute_rows(run_rows, tiles, memory, self._start + first)
                else:
                    self._compute_range(run, tiles, self._start + first)

        threads.share_out(part, len(corners) * unit)

    def _compute_rows(self, run_rows, tiles, memory, start):
        tiles = [tile.reshape(tile.shape[self._along], -1) for tile in tiles]
        tiles = tuple([tile.T for tile in tiles] if self._across else tiles)
        pitch, row = self._apart[self._along], self._row
        if row and pitch >= row:
            pitch = pitch // row * self._pitch
        run_rows(tiles[: self._count], tiles[self._count :], memory, *self._block, self._across, start, pitch)

    def _compute_range(self, run, tiles, start):
        size, row, inputs, outputs = tiles[0].size, self._row, tiles[: self._count], tiles[self._count :]
        sources = tuple([np.require(tile, requirements="CA").reshape(-1) for tile in inputs])
        targets = tuple([t.reshape(-1) if t.flags.carray else np.empty(size, t.dtype) for t in outputs])
        run(sources, targets, 0, size, start, row if row and row < size else size, self._pitch)
        for tile, target in zip(outputs, targets, strict=True):
            if not tile.flags.carray:
                tile[...] = target.reshape(tile.shape)


def _merged(arrays, row):
    """The arrays with as few axes as possible, but two. No axis has both whole rows of a window and parts of them."""
    shape = [n for n in arrays[0].shape if n != 1] or [1]
    arrays = [array.reshape(shape) for array in arrays]
    merged = shape[-1:]
    for axis in range(len(shape) - 2, -1, -1):
        one = all(a.strides[axis] == shape[axis + 1] * a.strides[axis + 1] for a in arrays)
        if one and math.prod(shape[axis + 1 :]) != row:
            merged[0] *= shape[axis]
        else:
            merged.insert(0, shape[axis])
    merged = [1] * (2 - len(merged)) + merged
    return [array.reshape(merged) for array in arrays]


def _tile(arrays, result):
    """A tile: the lengths of its edges, the axis of its rows, the shape of a block, and whether the mask lies across.

    A range has no axis and an empty block.
    """
    shape, last = arrays[0].shape, arrays[0].ndim - 1
    units = [axis for a in arrays for axis in range(last) if a.strides[axis] == a.itemsize and shape[axis] > 1]
    along = max(units, key=shape.__getitem__, default=last - 1)
    edges = [1] * (last + 1)
    if shape[along] * shape[last] >= LEAST and all(array.flags.aligned for array in arrays):
        across = bool(units) and result.strides[along] == result.itemsize
        block = (
            (BLOCK_ROWS, BLOCK_COLUMNS) if across else (BLOCK_COLUMNS, BLOCK_ROWS // 2) if units else (1, BLOCK - LINE)
        )
        edges[last] = min(shape[last], BLOCK_ROWS if units else SIZE)
        edges[along] = min(shape[along], SIZE // edges[last])
        return edges, along, block, across
    for axis in range(last, -1, -1):
        edges[axis] = min(shape[axis], max(1, SIZE // math.prod(edges)))
        if edges[axis] < shape[axis]:
            break
    return edges, None, (0, 0), False
