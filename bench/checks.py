"""Whether a contender computes what its case says. It is asked before it is timed, and not timed if it does not.

The reference is the one of the tests, which is independent of the package. It looks at both ends of the
arrays; how many elements are kept is counted over all of them.
"""

import numpy as np

from tests import reference

WINDOW = 1 << 16  # elements looked at, at either end
RTOL = {"float64": 1e-9, "float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}  # of peers that round on the way
SIGMAS = 6  # a right mask is refused once in 5e8 runs


class Wrong(Exception):
    pass


def dropout(case, x, dy, results):
    """Dropout with whatever mask: what is kept is activation(x) / (1 - p), the rest 0, and dx goes with y."""
    _shapes(case, x, results)
    for window in _windows(case.size):
        part = [result[window].astype(np.float64) for result in results]
        value, slope = _exact(case, x[window])
        # Where both are 0 anyway nobody can tell what was dropped.
        known = (value != 0) if len(part) == 1 else (value != 0) | (slope * dy[window].astype(np.float64) != 0)
        keep = np.any([p != 0 for p in part], axis=0)
        _values(case, window, part, keep, value, slope, dy, 1 / (1 - case.p))
        n, p = int(known.sum()), case.p
        if abs(keep[known].sum() - n * (1 - p)) > SIGMAS * np.sqrt(n * p * (1 - p)) + n * 2.0**-17:
            raise Wrong(f"{keep[known].mean():.4f} of the elements are kept, not {1 - p:.4f}")


def our_dropout(case, x, dy, results, seed):
    """Dropout with the contract's mask of the first call, to the bit."""
    _shapes(case, x, results)
    for window in _windows(case.size):
        start, stop, _ = window.indices(case.size)
        keep = reference.keep_mask(stop - start, case.p, seed, 0, start=start)
        part = [result[window].astype(np.float64) for result in results]
        value, slope = _exact(case, x[window])
        _values(case, window, part, keep, value, slope, dy, reference.quantize(case.p, 16)[1])


def copy(case, x, dy, results):
    """y = 2 * x, and in the other direction 2 * dy plus what is saved, which is y."""
    _shapes(case, x, results)
    if x.itemsize == 2:
        x, dy = x.view(np.uint16), dy.view(np.uint16)
    for window in _windows(case.size):
        wanted = [2 * x[window], 2 * dy[window] + (results[0][window] if case.reads_saved else 0)]
        for got, want in zip(results, wanted, strict=False):
            if not np.allclose(got[window], want):
                raise Wrong("it is no copy")


def _windows(size):
    return [slice(0, min(size, WINDOW)), slice(max(0, size - WINDOW), size)]


def _shapes(case, x, results):
    if len(results) != 1 + case.backward:
        raise Wrong(f"{len(results)} arrays came back")
    for result in results:
        if result.shape != x.shape or (result.dtype != x.dtype and x.itemsize > 2):
            raise Wrong(f"a {result.dtype} of shape {result.shape} came back")


def _exact(case, x):
    value, slope = reference.ACTIVATIONS[case.activation]
    x = x.astype(np.float64)
    return value(x), slope(x)


def _values(case, window, part, keep, value, slope, dy, scale):
    wanted = [np.where(keep, value * scale, 0)]
    if case.backward:
        wanted.append(np.where(keep, dy[window].astype(np.float64) * scale * slope, 0))
    tolerance = RTOL[case.dtype]
    for name, got, want in zip(("y", "dx")[: len(part)], part, wanted, strict=True):
        far = ~np.isclose(got, want, rtol=tolerance, atol=tolerance)
        if far.any():
            i = int(np.argmax(far))
            raise Wrong(f"{name}[{window.start + i}] is {got[i]:.6g}, not {want[i]:.6g}")
