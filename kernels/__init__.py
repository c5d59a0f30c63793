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
