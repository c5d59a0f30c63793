"""Kernels: how a fused operation is computed on one kind of processor.

A backend is a module here, listed in `gpudrop.backends.BACKENDS`, with three names:

    unavailable()       None, or the reason why it can't serve on this machine, as a sentence
    devices()           the names of the devices it computes on
    launch(fusion, a, b, out, draw)
                        out[i] = fusion.element(keep(i), draw.scale, a[i], b[i]) for every element in
                        logical (C) order, where keep(i) is field(start + i) > draw.limit

Arrays come in the backend's own kind, equal in shape and dtype, with whatever strides; what a fusion
doesn't read is passed as the array it does, and out may be a. Nothing is checked here, no user-facing
text lives here, and nothing synchronises. `gpudrop.backends` chooses among the modules.
"""

import numpy as np


def arguments(fusion, a, b, out, draw, contiguous):
    """What the CUDA kernels take: views of a, b and out in the storage type, and the numbers, typed.

    Contiguous arrays are viewed flat. There is one view per array: CuPy may copy an input that overlaps the
    output without being it.
    """

    def view(array):
        array = array.view(fusion.storage)
        return array.reshape(-1) if contiguous else array

    views = {id(array): view(array) for array in (a, b, out)}
    numbers = (
        np.int64(out.size),
        np.uint64(draw.start),
        np.uint64(draw.seed),
        np.uint64(draw.call),
        np.uint32(draw.limit),
        getattr(np, fusion.real)(draw.scale),
    )
    return views[id(a)], views[id(b)], views[id(out)], numbers
