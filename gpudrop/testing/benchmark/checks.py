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
    for window in windows(case.size):
        part = [result[window].astype(np.float64) for result in results]
        exact = _exact(case, x, dy, window)
        known = np.any([e != 0 for e in exact.values()], axis=0)  # elsewhere the results don't show the mask
        keep = np.any([p != 0 for p in part], axis=0)
        _values(case, window, part, keep, exact, 1 / (1 - case.p), PEERS)
        count(case, keep[known].sum(), known.sum())


def our_dropout(case, x, dy, results, seed, start=0):
    """Check dropout with exactly the contract's mask of the first call; `start` is the index of the first element."""
    _whole(case, x, results)
    x, dy, *results = (array.reshape(-1) for array in (x, dy, *results))  # in logical order, whatever the layout
    for window in windows(case.size):
        size = window.stop - window.start
        keep = reference.keep_mask(size, case.p, seed, 0, case.bits, start + window.start)
        part = [result[window].astype(np.float64) for result in results]
        exact = _exact(case, x, dy, window)
        _values(case, window, part, keep, exact, reference.quantize(case.p, case.bits)[1], OURS)


def copy(case, x, dy, results):
    """Check a copy: y = 2 * x, plus dy with two inputs; dx = 2 * dy, plus y if the case reads a saved array.

    If the case is a product, the second gradient is 2 * dy + x.
    """
    if x.itemsize == 2:
        x, dy = x.view(np.uint16), dy.view(np.uint16)
    _shapes(case, x, results)
    for got, want in zip(results, _copies(case, x, dy), strict=True):
        if not np.array_equal(got, want):  # doubling does not round, and a sum rounds once
            raise Wrong("the result is not a copy")


def _copies(case, x, dy):
    y = 2 * x + dy if case.two_inputs else 2 * x
    if case.forward:
        yield y
    if case.backward:
        yield 2 * dy + y if case.reads_saved else 2 * dy
    if case.backward and case.is_product:
        yield 2 * dy + x


def windows(size, length=WINDOW):
    """Windows at both ends of `size` elements and inside, as slices."""
    starts = [part * max(0, size - length) // 3 for part in range(4)]
    return [slice(start, min(start + length, size)) for start in dict.fromkeys(starts)]


def _shapes(case, x, results):
    if len(results) != case.forward + case.backward * (1 + case.is_product):
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
    # A gradient is 0 where the value is, and where dy is, which is too rare to matter.
    count(case, np.count_nonzero(results[0]), np.count_nonzero(x > 0 if case.activation == "relu" else x))


def count(case, kept, n):
    """Check how many of n elements are kept."""
    p = case.p
    quantised = n * 2.0 ** -(case.bits + 1)
    if abs(kept - n * (1 - p)) > SIGMAS * np.sqrt(n * p * (1 - p)) + quantised:
        raise Wrong(f"{kept / n:.4f} of the elements are kept, not {1 - p:.4f}")


def _exact(case, x, dy, window):
    """Return the results of the case's passes by name, before dropout. dy is read in a backward pass only."""
    value, slope = reference.ACTIVATIONS[case.activation]
    x, exact = x[window].astype(np.float64), {}
    if case.forward:
        exact["y"] = value(x)
    if case.backward:
        exact["dx"] = slope(x) * dy[window].astype(np.float64)
    return exact


def _values(case, window, part, keep, exact, scale, tolerances):
    tolerance = tolerances[case.dtype]
    for got, (name, whole) in zip(part, exact.items(), strict=True):
        want = np.where(keep, whole * scale, 0)
        far = ~np.isclose(got, want, rtol=tolerance, atol=tolerance)
        if far.any():
            i = int(np.argmax(far))
            raise Wrong(f"{name}[{window.start + i}] is {got[i]:.6g}, not {want[i]:.6g}")
