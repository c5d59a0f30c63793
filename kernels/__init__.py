"""Kernels: how a fused operation is computed on one kind of processor.

A backend is a module here, listed in `gpudrop.backends.BACKENDS`, with these names:

    unavailable()       None, or the reason why it can't serve on this machine, as a sentence
    devices()           the names of the devices it computes on
    on_device(number)   the context in which that one of them is the current device
    launch(kernel, inputs, outputs, draw)
                        outputs[:][i] = kernel.formula(drawn(i), draw.scale, draw.shift, *inputs[:][i]) for every
                        element in logical (C) order; see `spec`. drawn(i) is of the mask's element number start + i,
                        or in a window start + i // row * pitch + i % row: field > draw.limit, the field, or a normal
                        deviate, as kernel.drawn says; or what the `spec.Mask`, which is the last input then, has for
                        element i; or True where nothing is drawn.
    put(array)          a NumPy array's copy in the current device's memory, of a dtype of as many bytes; not on the
                        host
    grow(seeds, mask, block)
                        DropBlock: mask[k, i, j] is false where one of the seeds that are false has (i, j) in its
                        block, the rows and columns from the seed's own on. Returns how many are true, as
                        `spec.Mask` has it. seeds and mask are three-dimensional, contiguous and boolean.
    advance(state, stream)
                        stream = state, then state[1] += 1, each of two unsigned 64-bit integers in a device's memory;
                        what runs on several CUDA streams at once gets different ones. Not on the host.

Arrays come in the backend's own kind, equal in shape and dtype, with whatever strides; the first output may be an
input. Nothing is checked here, no user-facing text lives here, and nothing synchronises. `gpudrop.backends` chooses
among the modules.
"""
