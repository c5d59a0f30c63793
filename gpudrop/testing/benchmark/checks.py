"""Checks of a contender's results, which run before the contender is timed. A failed check excludes it.

The reference is that of the tests, which is independent of the package. Values are compared in windows at both ends
and inside the arrays. All elements are checked for nan, and the number of kept elements is checked over all of them.
"""

import numpy as np

from gpudrop.testing import reference

WINDOW = 1 << 16  # elements of a window
OURS = {"float64": 1e-12, "float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}  # relative tolerances: rounded once
PEERS = {"float64": 1e-9, "float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}  # intermediate results are rounded too
SIGMAS = 6  # rejects a right mask of a window twice in 1e9 times, and a right mask of 100 elements once in a million


class Wrong(Exception):
    """The results of a contender are wrong; the message says how."""


def dropout(case, x, dy, results):
    """Check dropout with any mask: kept elements are activation(x) / (1 - p), others 0, and dx has the same mask."""
    _whole(case, x, results)
    for window in _windows(case.size):
        part = [result[window].astype(np.float64) for result in results]
        value, slope = _exact(case, x[window])
        # Where the value and the gradient are 0 in any case, the mask is unknown.
        known = (value != 0) if len(part) == 1 else (value != 0) | (slope * dy[window].astype(np.float64) != 0)
        keep = np.any([p != 0 for p in part], axis=0)
        _values(case, window, part, keep, value, slope, dy, 1 / (1 - case.p), PEERS)
        _count(case, keep[known].sum(), known.sum())


def our_dropout(case, x, dy, results, seed, start=0):
    """Check dropout with exactly the contract's mask of the first call; `start` is the index of the first element."""
    _whole(case, x, results)
    for window in _windows(case.size):
        keep = reference.keep_mask(window.stop - window.start, case.p, seed, 0, start=start + window.start)
        part = [result[window].astype(np.float64) for result in results]
        value, slope = _exact(case, x[window])
        _values(case, window, part, keep, value, slope, dy, reference.quantize(case.p, 16)[1], OURS)


def copy(case, x, dy, results):
    """Check a copy: y = 2 * x, plus dy with two inputs; dx = 2 * dy, plus y if the case reads a saved array."""
    if x.itemsize == 2:
        x, dy = x.view(np.uint16), dy.view(np.uint16)
    _shapes(case, x, results)
    wanted = [2 * x + (dy if case.two_inputs else 0), 2 * dy + (results[0] if case.reads_saved else 0)]
    for got, want in zip(results, wanted, strict=False):
        if not np.allclose(got, want):
            raise Wrong("the result is not a copy")


def _windows(size):
    starts = [part * max(0, size - WINDOW) // 3 for part in range(4)]
    return [slice(start, min(start + WINDOW, size)) for start in dict.fromkeys(starts)]


def _shapes(case, x, results):
    if len(results) != 1 + case.backward:
        raise Wrong(f"it returned {len(results)} arrays")
    for result in results:
        if (result.shape, result.dtype) != (x.shape, x.dtype):
            raise Wrong(f"it returned an array of {result.dtype} and shape {result.shape}")


def _whole(case, x, results):
    """Check all elements: they are finite, and the number of nonzero elements is plausible."""
    _shapes(case, x, results)
    for result in results:
        if not np.isfinite(result).all():
            raise Wrong("the result is not finite")
    _count(case, np.count_nonzero(results[0]), np.count_nonzero(x > 0 if case.activation == "relu" else x))


def _count(case, kept, n):
    p = case.p
    if abs(kept - n * (1 - p)) > SIGMAS * np.sqrt(n * p * (1 - p)) + n * 2.0**-17:  # p is quantised
        raise Wrong(f"{kept / n:.4f} of the elements are kept, not {1 - p:.4f}")


def _exact(case, x):
    value, slope = reference.ACTIVATIONS[case.activation]
    x = x.astype(np.float64)
    return value(x), slope(x)


def _values(case, window, part, keep, value, slope, dy, scale, tolerances):
    wanted = [np.where(keep, value * scale, 0)]
    if case.backward:
        wanted.append(np.where(keep, dy[window].astype(np.float64) * scale * slope, 0))
    tolerance = tolerances[case.dtype]
    for name, got, want in zip(("y", "dx")[: len(part)], part, wanted, strict=True):
        far = ~np.isclose(got, want, rtol=tolerance, atol=tolerance)
        if far.any():
            i = int(np.argmax(far))
            raise Wrong(f"{name}[{window.start + i}] is {got[i]:.6g}, not {want[i]:.6g}")
