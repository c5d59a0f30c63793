"""The random numbers of a stream inside your own Numba kernels.

The functions work in ``@numba.njit`` functions on the CPU, in ``@cuda.jit`` kernels, in Numba's CUDA simulator and in
plain Python. They have no state: every result is a function of a seed, a call and an index. So a kernel's mask equals
that of `gpudrop.keep_mask`, on every processor and for any number of threads. `Stream.arguments` returns the numbers to
pass to a kernel.

One call of `draw` covers 128 / bits neighbouring elements, so the fastest kernels draw once for a chunk of elements:

>>> import gpudrop, numba, numpy as np
>>> from gpudrop import device
>>> @numba.njit
... def dropout(x, y, seed, call, threshold, scale):
...     for chunk in range((x.size + 7) // 8):
...         words = device.draw(seed, call, chunk)
...         for lane in range(8):
...             i = 8 * chunk + lane
...             if i < x.size:
...                 y[i] = x[i] * scale if device.keep(words, lane, threshold, 16) else 0.0
>>> x, stream = np.ones(1000), gpudrop.Stream(7, 3)
>>> y = np.empty_like(x)
>>> dropout(x, y, *stream.arguments(p=0.1, bits=16))
>>> bool(((y != 0) == gpudrop.keep_mask(1000, 0.1, stream)).all())
True

`keep_at` finds the chunk of an element by itself. It is simpler, and draws for each element.

The results for given arguments are part of the interface, like the bits of a mask: they do not change within a major
version. Values of `normal` may differ between processors in the last digits, and masks never do.

Integers are converted to unsigned ones, and arguments are not checked. The bits must be those of `Stream.arguments`.
Numba inlines the functions, so a kernel must call them by their names: they cannot be arguments of a kernel, and
``*args`` does not work in their calls.
"""

from typing import Any

import numpy as np

from gpudrop.device.cuda import cuda_source, include_dir
from gpudrop.device.functions import DeviceFunction, formula
from gpudrop.formulas import philox

__all__ = [
    "cuda_source", "draw", "include_dir", "keep", "keep_at", "normal", "normal64", "uniform", "uniform64",
]  # fmt: skip

_draw, _reaches, _reaches_at = formula(philox.draw), formula(philox.reaches), formula(philox.reaches_at)
_uniform, _uniform64 = formula(philox.uniform), formula(philox.uniform, np.float64)
_normal, _normal64 = formula(philox.normal), formula(philox.normal, np.float64)


@DeviceFunction
def draw(seed: Any, call: Any, chunk: Any) -> Any:
    """Draw the 128 random bits of a chunk, with one call of Philox4x32-10.

    Parameters
    ----------
    seed, call : int
        The stream, from 0 to 2**64 - 1.
    chunk : int
        The number of the chunk, from 0 to 2**64 - 1. Chunk c holds the elements from c * lanes to c * lanes + lanes - 1
        of a mask, with lanes = 128 // bits.

    Returns
    -------
    tuple of four uint32
        The words, the least significant first.

    Examples
    --------
    >>> from gpudrop import device
    >>> [hex(word) for word in device.draw(0, 0, 0)]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    return _draw(np.uint64(seed), np.uint64(call), np.uint64(chunk))


@DeviceFunction
def keep(words: Any, lane: Any, threshold: Any, bits: Any) -> Any:
    """Return whether an element of a chunk is kept.

    Parameters
    ----------
    words : tuple of four uint32
        The result of `draw`.
    lane : int
        The element's number in its chunk, from 0 to 128 // bits - 1.
    threshold : int
        From 0, which keeps all elements, to 2**bits, which keeps none.
    bits : {8, 16, 32}
        Random bits per element. A constant makes the kernel faster.

    Returns
    -------
    bool
        Whether the element's field of random bits is at least the threshold.

    Examples
    --------
    >>> from gpudrop import device
    >>> words = device.draw(0, 0, 0)
    >>> [bool(device.keep(words, lane, 2**15, 16)) for lane in range(4)]
    [True, False, True, True]
    """
    return _reaches(words, np.uint32(lane), np.uint32(bits), np.uint64(threshold))


@DeviceFunction
def keep_at(seed: Any, call: Any, element: Any, threshold: Any, bits: Any) -> Any:
    """Return whether an element of a mask is kept: `draw` and `keep` in one.

    Parameters
    ----------
    seed, call : int
        The stream, from 0 to 2**64 - 1.
    element : int
        The element's index in C order, from 0 to 2**64 - 1.
    threshold, bits : int
        As for `keep`.

    Returns
    -------
    bool
        The element of the mask.

    Examples
    --------
    >>> import gpudrop
    >>> from gpudrop import device
    >>> seed, call, threshold, scale = gpudrop.Stream(7, 3).arguments(p=0.1, bits=16)
    >>> bool(device.keep_at(seed, call, 41, threshold, 16)) == gpudrop.keep_mask(42, 0.1, gpudrop.Stream(7, 3))[41]
    np.True_
    """
    return _reaches_at(np.uint64(seed), np.uint64(call), np.uint64(element), np.uint32(bits), np.uint64(threshold))


@DeviceFunction
def uniform(words: Any, lane: Any, bits: Any) -> Any:
    """Return a uniform number in the unit interval, in float32: (field + 1/2) / 2**bits.

    Parameters
    ----------
    words : tuple of four uint32
        The result of `draw`.
    lane : int
        The field's number, from 0 to 128 // bits - 1.
    bits : {8, 16, 32}
        Random bits per number.

    Returns
    -------
    float32
        Between 0 and 1. It is never 0. With 32 bits, rounding returns 1.0 for one field in 2**25.

    Examples
    --------
    >>> from gpudrop import device
    >>> float(device.uniform((0, 0, 0, 2**31), 3, 32)), float(device.uniform((0, 0, 0, 2**31), 0, 8))
    (0.5, 0.001953125)
    """
    return _uniform(words, np.uint32(lane), np.uint32(bits))


@DeviceFunction
def uniform64(words: Any, lane: Any, bits: Any) -> Any:
    """Return the number of `uniform` in float64, which is exact and between 0 and 1.

    Parameters
    ----------
    words, lane, bits
        As for `uniform`.

    Returns
    -------
    float64
        (field + 1/2) / 2**bits.

    Examples
    --------
    >>> from gpudrop import device
    >>> float(device.uniform64((2**32 - 1, 0, 0, 0), 0, 32)) == 1 - 2.0**-33
    True
    """
    return _uniform64(words, np.uint32(lane), np.uint32(bits))


@DeviceFunction
def normal(words: Any, lane: Any) -> Any:
    """Return a normal deviate with mean 0 and variance 1 in float32, by the method of Box and Muller.

    Parameters
    ----------
    words : tuple of four uint32
        The result of `draw`.
    lane : {0, 1, 2, 3}
        The deviate's number. Lanes 0 and 1, and 2 and 3, share a radius and an angle, and are independent.

    Returns
    -------
    float32
        The deviates of `gpudrop.gaussian_noise`, up to rounding.

    Examples
    --------
    >>> from gpudrop import device
    >>> round(float(device.normal(device.draw(0, 0, 0), 0)), 3)
    0.991
    """
    return _normal(words, np.uint32(lane))


@DeviceFunction
def normal64(words: Any, lane: Any) -> Any:
    """Return the deviate of `normal` in float64.

    Parameters
    ----------
    words, lane
        As for `normal`.

    Returns
    -------
    float64
        The deviate.

    Examples
    --------
    >>> from gpudrop import device
    >>> round(float(device.normal64(device.draw(0, 0, 0), 1)), 6)
    -0.924663
    """
    return _normal64(words, np.uint32(lane))
