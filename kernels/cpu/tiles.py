"""Arrays that are not contiguous are computed in tiles, on all threads and without a copy of a whole array.

A tile is a rectangle. Consecutive elements of the mask lie along the array's last axis. The other axis of the
rectangle is the one along which the memory of an array lies, or else the axis before the last one. The kernel
`map.run_rows` computes a tile row by row. A row lies along the last axis, or across it if the memory of the result
does, as in Fortran order:

    C order, every other column, ...        Fortran order
    row 0   m    m+1  m+2  ...              row 0   m    m+p  m+2p ...      m: index in the mask
    row 1   m+p  ...                        row 1   m+1  ...                p: elements of the mask's rows

If such rectangles are small, a tile is a range of the elements in logical order. NumPy copies it to a buffer and back.
"""

import itertools
import math

import numpy as np

from gpudrop.kernels import threads
from gpudrop.kernels.cpu.map import BLOCK, BLOCK_COLUMNS, BLOCK_ROWS
from gpudrop.kernels.cpu.memory import LINE

SIZE = 1 << 19  # the most elements of a tile
LEAST = 4096  # the least elements of a rectangle: the call for a smaller one takes longer than NumPy's copies
SHORTEST = 16  # the least elements per row of a rectangle: with fewer, each row takes longer than NumPy's copies
SMALL = 1 << 15  # arrays of fewer elements are one range, because they and NumPy's copies fit in the L2 cache


def compute(run, rows, drawn, inputs, outputs, start, row, pitch):
    """Compute arrays of one shape and dtype, with any strides.

    run(inputs, outputs, lo, hi, start, row, pitch) : function
        Computes elements of one-dimensional contiguous arrays.
    rows() : function
        Returns a function of (inputs, outputs, memory, height, width, across, start, pitch), which computes
        two-dimensional arrays: see `map.run_rows`. It is called here, so that only one thread compiles.
    drawn : dtype
        The dtype of random values.
    start, row, pitch : int
        The positions in the mask: see `spec.Draw`. row is None for whole arrays, and a number for a window.
    """
    if outputs[0].size < SMALL:
        _compute_range(run, inputs, outputs, start, row, pitch)
        return
    count, arrays = len(inputs), _merged([*inputs, *outputs], row)
    shape = arrays[0].shape
    apart = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]  # of neighbours, in logical order
    edges, along, block, across = _tile(arrays, arrays[count])

    def position(corner):
        first = sum(map(int.__mul__, corner, apart))
        return start + (first // row * pitch + first % row if row else first)

    def compute_rows(corner, tiles, buffers):
        tiles = [tile.reshape(tile.shape[along], -1) for tile in tiles]
        tiles = tuple([tile.T for tile in tiles] if across else tiles)
        step = apart[along] // row * pitch if row and apart[along] >= row else apart[along]
        run_rows(tiles[:count], tiles[count:], buffers, *block, across, position(corner), step)

    def compute_range(corner, tiles, buffers):
        _compute_range(run, tiles[:count], tiles[count:], position(corner), row, pitch)

    run_rows = None if along is None else rows()
    corners = list(itertools.product(*(range(0, n, edge) for n, edge in zip(shape, edges, strict=True))))
    compute_tile, unit = compute_range if along is None else compute_rows, math.prod(edges)

    def part(lo, hi):
        # A block of each array, whose results replace inputs, and a block of the mask.
        size = math.prod(block)
        buffers = (
            np.empty(max(count, len(outputs)) * size, arrays[0].dtype),
            np.empty(block[0] * (block[1] + LINE) * across, drawn),
        )
        for corner in corners[-(-lo // unit) : -(-hi // unit)]:
            index = tuple(slice(first, first + edge) for first, edge in zip(corner, edges, strict=True))
            compute_tile(corner, [array[index] for array in arrays], buffers)

    threads.share_out(part, len(corners) * unit)


def _compute_range(run, inputs, outputs, start, row, pitch):
    """Compute arrays through contiguous copies. start is the position of the first element."""
    size = outputs[0].size
    flat = [np.require(array, requirements="CA").reshape(-1) for array in inputs]
    results = [out.reshape(-1) if out.flags.carray else np.empty(size, out.dtype) for out in outputs]
    run(tuple(flat), tuple(results), 0, size, start, row if row and row < size else size, pitch)
    for out, result in zip(outputs, results, strict=True):
        if not out.flags.carray:
            out[...] = result.reshape(out.shape)


def _merged(arrays, row):
    """The arrays with as few axes as possible, but two. No axis has both whole rows of a window and parts of them."""
    # A window of one column keeps its axis of size 1: consecutive elements of the array are `pitch` apart in the mask.
    shape = [n for n in arrays[0].shape if n != 1] + [1] * (row == 1) or [1]
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
    short = min(shape[along], shape[last]) if units else shape[last]
    large = short >= SHORTEST and shape[along] * shape[last] >= LEAST
    if large and all(array.flags.aligned for array in arrays):
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
