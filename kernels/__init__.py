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
    advance(state, stream)
                        stream = state, then state[1] += 1, each of two unsigned 64-bit integers in a device's memory;
                        what runs on several CUDA streams at once gets different ones. Not on the host.

Arrays come in the backend's own kind, equal in shape and dtype, with whatever strides; what a fusion
doesn't read is passed as the array it does, and out may be a. Nothing is checked here, no user-facing
text lives here, and nothing synchronises. `gpudrop.backends` chooses among the modules.
"""

import functools

import numpy as np

WARP = 32


@functools.cache
def accesses(fusion):
    """How a CUDA kernel's chunks go to and from memory: (bytes of an access, accesses of a chunk, exchanged).

    Where a chunk takes several accesses, a warp's threads would reach only every second or fourth 16 bytes in each, and
    write half sectors. So the accesses of a warp's 32 chunks follow one another, and the threads exchange random words
    instead: of n accesses, thread t's number s belongs to chunk s * 32 / n + t // n, and is part t % n of it.
    Of what is given nothing is exchanged.
    """
    size = fusion.chunk * np.dtype(fusion.storage).itemsize
    parts = max(1, size // 16)
    return min(16, size), parts, parts in (2, 4) and fusion.bits > 0 and fusion.shares == 1 and not fusion.window


def thread_count(fusion, chunks, wave):
    """How many threads of a CUDA kernel share the chunks, where `wave` of them fill the device.

    A thread does several chunks, as what it does before its first takes time, as does the start of a block: at least 4,
    or 16 where it first divides for its place. Of one wave alone a part of the device would idle at the end.
    """
    return min(chunks, max(wave, chunks // (16 if fusion.given or fusion.window else 4)))


def numbers(fusion, size, draw, given):
    """The numbers that CUDA kernels take, in this order: for `size` elements, a Draw, and a Given or None.

    chunks, row, turns      a kernel does so many chunks, turns of them in each row of so many elements
    period, repeat, run     of the Given
    pitch, start            of the Draw
    seed, call              of the Draw, unless a kernel draws nothing or reads them from memory
    scale, shift, limit     of the Draw
    """
    seed, call, start, limit, scale, shift, row, pitch = draw
    chunk = fusion.chunk
    if not fusion.bits:
        start = 0  # that of what is given, drawn before
    if fusion.window:
        # Rows that begin at different places in a chunk take as many turns as the one that takes most.
        turns = -(-(row + (start % chunk if pitch % chunk == 0 else chunk - 1)) // chunk)
        chunks = size // row * turns
    else:
        row = size
        turns = chunks = -(-(size + start % chunk) // (WARP * chunk)) * WARP  # so that whole warps exchange words
    if fusion.stored or not fusion.bits:
        seed = call = 0
    _, period, repeat, run, _ = given or (None, 1, 1, 1, None)
    return chunks, row, turns, period, repeat, run, pitch, start, seed, call, scale, shift, limit
