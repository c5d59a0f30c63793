"""Whether a contender computes what its case says. It is asked before it is timed, and not timed if it does not.

The reference is the one of the tests, which is independent of the package. It looks at windows at both ends of
the arrays and within; that nothing is nan, and how many elements are kept, is looked at over all of them.
"""

import numpy as np

from gpudrop.testing import reference

WINDOW = 1 << 16  # elements of a window
OURS = {"float64": 1e-12, "float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}  # relative: rounded once
PEERS = {"float64": 1e-9, "float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}  # rounded on the way as well
SIGMAS = 6  # a right mask of a window's elements is refused twice in 1e9 times, one of 100 once in a million


class Wrong(Exception):
    """A contender computes something else; the message says what."""


def dropout(case, x, dy, results):
    """Dropout with whatever mask: what is kept is activation(x) / (1 - p), the rest 0, and dx goes with y."""
    _whole(case, x, results)
    for window in _windows(case.size):
        part = [result[window].astype(np.float64) for result in results]
        value, slope = _exact(case, x[window])
        # Where both are 0 anyway nobody can tell what was dropped.
        known = (value != 0) if len(part) == 1 else (value != 0) | (slope * dy[window].astype(np.float64) != 0)
        keep = np.any([p != 0 for p in part], axis=0)
        _values(case, window, part, keep, value, slope, dy, 1 / (1 - case.p), PEERS)
        _count(case, keep[known].sum(), known.sum())


def our_dropout(case, x, dy, results, seed, start=0):
    """Dropout with the contract's mask of the first call, to the bit; the first element has the number `start`."""
    _whole(case, x, results)
    for window in _windows(case.size):
        keep = reference.keep_mask(window.stop - window.start, case.p, seed, 0, start=start + window.start)
        part = [result[window].astype(np.float64) for result in results]
        value, slope = _exact(case, x[window])
        _values(case, window, part, keep, value, slope, dy, reference.quantize(case.p, 16)[1], OURS)


def copy(case, x, dy, results):
    """y = 2 * x, plus dy for two inputs, and in the other direction 2 * dy plus what is saved, which is y."""
    if x.itemsize == 2:
        x, dy = x.view(np.uint16), dy.view(np.uint16)
    _shapes(case, x, results)
    wanted = [2 * x + (dy if case.two_inputs else 0), 2 * dy + (results[0] if case.reads_saved else 0)]
    for got, want in zip(results, wanted, strict=False):
        if not np.allclose(got, want):
            raise Wrong("it is no copy")


def _windows(size):
    starts = [part * max(0, size - WINDOW) // 3 for part in range(4)]
    return [slice(start, min(start + WINDOW, size)) for start in dict.fromkeys(starts)]


def _shapes(case, x, results):
    if len(results) != 1 + case.backward:
        raise Wrong(f"{len(results)} arrays came back")
    for result in results:
        if (result.shape, result.dtype) != (x.shape, x.dtype):
            raise Wrong(f"a {result.dtype} of shape {result.shape} came back")


def _whole(case, x, results):
    """What is checked over all elements: no nan, and as many that are not 0 as there should be."""
    _shapes(case, x, results)
    for result in results:
        if not np.isfinite(result).all():
            raise Wrong("it is not finite")
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
