"""Errors in units in the last place (ulps), and the table of allowed errors."""

import json
from importlib import resources

import ml_dtypes
import numpy as np

FINFO = {name: ml_dtypes.finfo(name) for name in ("float16", "bfloat16", "float32", "float64")}


def allowed(name, role, dtype):
    """Return (ulps, floor) for an activation's value or slope, from the table that applies to every backend."""
    row = json.loads(resources.files("gpudrop.testing").joinpath("ulps.json").read_text())[name][role]
    return row[dtype], row["floor"]


def row_of(noise):
    """Return the name of the table's row for a noise; a noise that only selects and scales uses the row identity."""
    return "identity" if noise.zeroes else noise.name


def error(got, exact, floor=0.0):
    """Return |got - exact| in ulps of got's dtype at max(|exact|, floor), elementwise.

    Values below 2**33 times the smallest normal number of the arithmetic are compared by their absolute error. There
    exp(-x) in x / (1 + exp(-x)) overflows, with |x| up to 2**7 (2**10 in float64), and the result is 0.
    """
    finfo = FINFO[got.dtype.name]
    arithmetic = FINFO["float64" if got.dtype == np.float64 else "float32"]
    size = np.maximum(np.abs(exact), np.maximum(floor, float(arithmetic.tiny) * 2.0**33))
    exponent = np.maximum(np.frexp(size)[1] - 1, finfo.minexp)
    unit = np.ldexp(1.0, np.asarray(exponent - finfo.nmant))
    with np.errstate(over="ignore", invalid="ignore"):
        rounded_same = exact.astype(got.dtype) == got  # values out of range are rounded to inf
        return np.where(rounded_same, 0.0, np.abs(got.astype(np.float64) - exact) / unit)


def seen(x, backend):
    """Return x in float64 with a backend's flushing: code compiled by CuPy treats subnormal float32 numbers as 0."""
    exact = x.astype(np.float64)
    if backend == "cupy_elementwise" and x.dtype != np.float64:
        exact[np.abs(exact) < float(FINFO["float32"].tiny)] *= 0.0
    return exact


def samples(dtype, size=200_000):
    """Return every value of a 16-bit dtype, or for other dtypes a wide and a dense sample with every float16."""
    halves = np.arange(2**16, dtype=np.uint16)
    if dtype in ("float16", "bfloat16"):
        return halves.view(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16)
    normal = 3 * np.random.default_rng(0).standard_normal(size)
    wide = np.geomspace(1e-38, 1e38, size // 10)
    return np.concatenate([np.linspace(-100, 100, size), normal, wide, -wide, halves.view(np.float16)]).astype(dtype)
