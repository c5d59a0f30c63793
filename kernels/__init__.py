"""Kernels: how a fused operation is computed on one kind of processor.

A backend is a module here, listed in `gpudrop.backends.BACKENDS`, with these names:

    unavailable()       None, or the reason why it can't serve on this machine, as a sentence
    devices()           the names of the devices it computes on
    launch(fusion, a, b, out, draw, given)
                        out[i] = fusion.element(drawn(i), draw.scale, draw.shift, a[i], b[i]) for every element
                        in logical (C) order. drawn(i) is of the mask's element number start + i, or in a window
                        start + i // row * pitch + i % row: field > draw.limit, the field, or a normal deviate, as
                        fusion.acting says; or, in a fusion that has `given`, what `fusion.Given` finds for element i.
    grow(seeds, mask, block)
                        DropBlock: mask[k, i, j] is false where one of the seeds that are false has (i, j) in its
                        block, the rows and columns from the seed's own on. Returns how many are true, as
                        `fusion.Given` has it. seeds and mask are three-dimensional, contiguous and boolean.

Arrays come in the backend's own kind, equal in shape and dtype, with whatever strides; what a fusion
doesn't read is passed as the array it does, and out may be a. Nothing is checked here, no user-facing
text lives here, and nothing synchronises. `gpudrop.backends` chooses among the modules.
"""

import numpy as np


def arguments(fusion, a, b, out, draw, given, contiguous):
    """What the CUDA kernels take: views of a, b, what is given and out in their storage types; numbers, typed.

    Contiguous arrays are viewed flat. There is one view per array: CuPy may copy an input that overlaps the
    output without being it. Where nothing is given, a stands in. The numbers are chunks, row, turns, pitch, start,
    seed, call, limit, scale, shift, period, repeat, run: a kernel does so many chunks, turns of them in each row.
    """

    def view(array):
        array = array.view(fusion.storage)
        return array.reshape(-1) if contiguous else array

    views = {id(array): view(array) for array in (a, b, out)}
    row = draw.row if fusion.window else out.size
    # Rows that begin at different places in a chunk take as many turns as the one that takes most.
    alike = not fusion.window or draw.pitch % fusion.chunk == 0
    turns = -(-(row + (draw.start % fusion.chunk if alike else fusion.chunk - 1)) // fusion.chunk)
    stream = (draw.seed, draw.call) if fusion.bits else (0, 0)  # others have no use for it
    numbers = (
        *map(np.int64, (out.size // row * turns, row, turns)),
        np.uint64(draw.pitch),
        np.uint64(draw.start),
        *((draw.seed, np.uint64(0)) if fusion.stored else map(np.uint64, stream)),
        np.uint32(draw.limit),
        getattr(np, fusion.real)(draw.scale),
        getattr(np, fusion.real)(draw.shift),
    )
    drawn = kept = views[id(a)]
    if given is not None:
        drawn = given.array.view(np.uint8) if fusion.keeps else given.array
        kept = drawn if given.kept is None else given.kept
        numbers += (np.int64(given.period), np.int64(given.repeat), np.int64(given.run))
    else:
        numbers += (np.int64(1),) * 3
    return views[id(a)], views[id(b)], drawn, kept, views[id(out)], numbers
