"""Kernels: how each kind of processor computes a fused operation.

A backend is a module of this package that `gpudrop.backends.BACKENDS` lists. It has these names:

    unavailable()       None if the backend can be used on this machine, otherwise the reason as a sentence
    devices()           the names of the devices that it computes on
    on_device(number)   a context manager that makes one of them the current device
    launch(kernel, inputs, outputs, draw)
                        Compute outputs[:][i] = kernel.formula(drawn(i), draw.scale, draw.shift, *inputs[:][i])
                        for every element i in logical (C) order; see `spec`. Operands of bits have a bit for each
                        element: see `spec.Slot`. The random value drawn(i) depends on kernel.source:

                        Draws: it is drawn for element start + i of the mask; in a window, for element
                        start + i // row * pitch + i % row. kernel.drawn selects its kind: field > draw.limit, the
                        field, or a normal deviate.
                        Reads: it is the value for element i in the `spec.Mask`, which is then the last input.
                        None: it is True.
    ROWS                The number of rows that a partial sum adds up: see `spec.Slot`.
    saves_bits(array)   Whether a backward pass that reads bits instead of an array like this is faster, the forward
                        pass that writes them included.
    put(array)          Copy a NumPy array to the current device's memory, in a dtype of the same item size. GPU only.
    grow(seeds, mask, block)
                        DropBlock: set mask to false in the block of each seed that is false, and to true elsewhere.
                        The block of seed (k, i, j) is in map k and begins at row i and column j. Return how many
                        elements of mask are true, as `spec.Mask.kept`. seeds and mask are three-dimensional,
                        contiguous and boolean.
    advance(state, stream)
                        Copy state to stream, then add 1 to state[1]. Each is two unsigned 64-bit integers in GPU
                        memory. Launches on several CUDA streams at once get different values. GPU only.

All operands are of the backend's own kind. Full operands are equal in shape and may have any strides. The first output
may be an input. Kernels check no arguments, contain no user-facing text and never synchronise.
`gpudrop.backends` chooses the module.
"""
