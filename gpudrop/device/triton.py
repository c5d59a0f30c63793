"""The mask of a stream in your own Triton kernels. Triton itself is needed: ``pip install triton``.

Triton's own library has Philox4x32-10, so only the counter, the fields and the comparison are written here.

Triton needs Python's integers: pass ``map(int, ...)`` of those that ``Stream.arguments`` returns. An integer that is 1,
which Triton compiles as a constant, is supported, and so is one from 2**63 on, which has another type.

Examples
--------
A kernel, in a file of its own, that draws for each element:

.. code-block:: python

    @triton.jit
    def dropout(x_ptr, y_ptr, n, seed, call, threshold, scale, BLOCK: tl.constexpr):
        offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = offsets < n
        x = tl.load(x_ptr + offsets, mask=inside)
        kept = device.keep(seed, call, offsets, threshold, 16)
        tl.store(y_ptr + offsets, tl.where(kept, x * scale, 0.0), mask=inside)
"""

import triton
import triton.language as tl

__all__ = ["draw", "keep", "keep_chunks"]


@triton.jit
def draw(seed, call, chunk):
    """Draw the 128 random bits of each chunk.

    Parameters
    ----------
    seed, call : int
        The stream, from 0 to 2**64 - 1.
    chunk : block of integers
        Numbers of chunks, which hold 128 // bits elements each.

    Returns
    -------
    tuple of four blocks of uint32
        The words, the least significant first.
    """
    chunk, call = tl.cast(chunk, tl.uint64), tl.cast(call, tl.uint64)
    low, high = tl.cast(chunk & 0xFFFFFFFF, tl.uint32), tl.cast(chunk >> 32, tl.uint32)
    nothing = tl.zeros_like(low)
    call_low, call_high = tl.cast(call & 0xFFFFFFFF, tl.uint32), tl.cast(call >> 32, tl.uint32)
    return tl.philox(seed, low, high, nothing + call_low, nothing + call_high)


@triton.jit
def keep(seed, call, offsets, threshold, bits: tl.constexpr):
    """Return which elements are kept. Each element draws: `keep_chunks` draws once for a chunk.

    Parameters
    ----------
    seed, call : int
        The stream, from 0 to 2**64 - 1.
    offsets : block of integers
        Indices of elements in C order. Use 64-bit integers if they exceed 2**31.
    threshold : int
        From 0 to 2**bits: see `gpudrop.quantize`.
    bits : {8, 16, 32}
        Random bits per element.

    Returns
    -------
    block of bool
        Whether each element is kept, as in `gpudrop.keep_mask`.
    """
    tl.static_assert(bits == 8 or bits == 16 or bits == 32, "bits must be 8, 16 or 32")
    lanes: tl.constexpr = 128 // bits
    offsets = tl.cast(offsets, tl.uint64)
    w0, w1, w2, w3 = draw(seed, call, offsets // lanes)
    position = tl.cast(offsets % lanes, tl.uint32) * bits
    word = tl.where(position < 64, tl.where(position < 32, w0, w1), tl.where(position < 96, w2, w3))
    return tl.cast((word >> (position % 32)) & (0xFFFFFFFF >> (32 - bits)), tl.uint64) >= tl.cast(threshold, tl.uint64)


@triton.jit
def keep_chunks(seed, call, chunks, threshold, bits: tl.constexpr):
    """Return which elements of whole chunks are kept, with one draw for each chunk.

    Parameters
    ----------
    seed, call, threshold, bits
        As for `keep`.
    chunks : block of integers of one dimension
        Numbers of chunks: ``first + tl.arange(0, BLOCK // (128 // bits))`` for BLOCK consecutive elements.

    Returns
    -------
    block of bool
        128 // bits elements for each chunk, in one dimension: element i belongs to chunk number i // (128 // bits).
    """
    tl.static_assert(bits == 8 or bits == 16 or bits == 32, "bits must be 8, 16 or 32")
    w0, w1, w2, w3 = draw(seed, call, chunks)
    fields = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # the words of a chunk in their order
    if bits <= 16:
        fields = tl.join(fields & 0xFFFF, fields >> 16)
    if bits == 8:
        fields = tl.join(fields & 0xFF, fields >> 8)
    kept = tl.cast(fields, tl.uint64) >= tl.cast(threshold, tl.uint64)
    return tl.reshape(kept, (chunks.shape[0] * (128 // bits),))
