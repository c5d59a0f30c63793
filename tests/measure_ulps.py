"""Write gpudrop/ulps.json, the table of errors allowed: python tests/measure_ulps.py

An entry is the largest error found on the host and in CuPy's kernels built by g++, rounded up, and for
float32 and float64 2 more for the mathematical functions of CUDA: its documented errors, in the Numerical
Compliance section of the CUDA Math API reference, are up to 2 ulps for those that formulas use.
"""

import json
import math
from pathlib import Path

import cupy_text
import numpy as np
import reference
import ulps

import gpudrop
from gpudrop import backends
from gpudrop.activations import ACTIVATIONS
from gpudrop.kernels import cpu, cupy_elementwise

# The value of these goes through a difference (1 + erf) or an exponential of a large rounded number, so
# that below 1 only its absolute error is bounded; slopes are sums of terms near 1, all of them.
ABSOLUTE_BELOW_1 = ("gelu", "gelu_tanh", "quick_gelu")


def measured(name, dtype):
    """The largest error of value and slope, in ulps."""
    x = ulps.samples(dtype)
    y, backprop = gpudrop.dropout_vjp(x, 0, activation=name)
    results = zip(("value", "slope"), (y, backprop(np.ones_like(x))), reference.ACTIVATIONS[name], strict=True)
    return {
        role: float(ulps.error(got, exact(x.astype(np.float64)), floor(name, role))[np.isfinite(x)].max())
        for role, got, exact in results
    }


def floor(name, role):
    return 1.0 if role == "slope" or name in ABSOLUTE_BELOW_1 else 0.0


def main():
    cupy_elementwise.kernel = cupy_text.kernel
    table = {}
    for name in ACTIVATIONS:
        table[name] = {role: {"floor": floor(name, role)} for role in ("value", "slope")}
        for dtype in ulps.FINFO:
            for module in (cpu, cupy_elementwise):
                backends.BACKENDS = {module.__name__.rpartition(".")[2]: "numpy"}
                backends.load = lambda name, module=module: module
                for role, worst in measured(name, dtype).items():
                    allowed = max(1, math.ceil(worst)) + (2 if dtype in ("float32", "float64") else 0)
                    table[name][role][dtype] = max(allowed, table[name][role].get(dtype, 0))
    path = Path(gpudrop.__file__).parent / "ulps.json"
    rows = ",\n".join(f'  "{name}": {json.dumps(row)}' for name, row in table.items())
    path.write_text(f"{{\n{rows}\n}}\n")


if __name__ == "__main__":
    main()
