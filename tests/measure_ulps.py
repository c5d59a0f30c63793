"""Write gpudrop/testing/ulps.json, the table of allowed errors: python -m tests.measure_ulps

An entry is the largest error of the CPU kernels and of CuPy's kernels built by g++, rounded up. For float32 and
float64, 2 ulps are added for the mathematical functions of CUDA. The CUDA Math API reference, in its section Numerical
Compliance, documents errors up to 2 ulps for those that formulas use.
"""

import json
import math
from pathlib import Path

import numpy as np

import gpudrop
from gpudrop import backends
from gpudrop.formulas.activations import ACTIVATIONS
from gpudrop.kernels import cpu, cupy_elementwise
from gpudrop.testing import reference, ulps
from tests.backends import cupy_on_host

# These values contain a difference (1 + erf), or an exponential of a large rounded number. So below 1 only their
# absolute error is bounded. The slopes of all activations are sums of terms near 1.
ABSOLUTE_BELOW_1 = ("gelu", "gelu_tanh", "quick_gelu")


def measured(name, dtype):
    """The largest errors of the value and the slope, in ulps."""
    x = ulps.samples(dtype)
    y, backprop = gpudrop.dropout_vjp(x, 0, activation=name)
    results = zip(("value", "slope"), (y, backprop(np.ones_like(x))), reference.ACTIVATIONS[name], strict=True)
    return {
        role: float(ulps.error(got, exact(x.astype(np.float64)), floor(name, role))[np.isfinite(x)].max())
        for role, got, exact in results
    }


# One variant for each noise that adds or multiplies terms. Its errors are in ulps of max(1, |x|).
NOISES = {
    "alpha": "alpha_dropout",
    "gaussian": "gaussian_dropout",
    "additive": "gaussian_noise",
    "uniform": "uniform_dropout",
}


def measured_noise(name, dtype):
    """The largest errors of a noise's value and gradient, in ulps."""
    x = (3 * np.random.default_rng(0).standard_normal(100_000)).astype(dtype)
    worst = {"value": 0.0, "slope": 0.0}
    for p in (0.1, 0.5, 0.8):
        y, backprop = getattr(gpudrop, NOISES[name]).vjp(x, p, rng=gpudrop.Stream(1, 2))
        want, want_backprop = reference.FAMILY[NOISES[name]](x, p, 1, 2)
        pairs = {"value": (y, want), "slope": (backprop(x), want_backprop(x))}
        for role, (got, exact) in pairs.items():
            error = ulps.error(got, exact, np.maximum(1, np.abs(x.astype(np.float64)))).max()
            worst[role] = max(worst[role], float(error))
    return worst


def floor(name, role):
    return 1.0 if role == "slope" or name in ABSOLUTE_BELOW_1 else 0.0


def main():
    cupy_on_host.replace_launches(setattr)
    table = {}
    for name in (*ACTIVATIONS, *NOISES):
        noise = name in NOISES
        table[name] = {role: {"floor": 1.0 if noise else floor(name, role)} for role in ("value", "slope")}
        for dtype in ulps.FINFO:
            for module in (cpu, cupy_elementwise):
                backends.BACKENDS = {module.__name__.rpartition(".")[2]: "numpy"}
                backends.load = lambda name, module=module: module
                for role, worst in (measured_noise if noise else measured)(name, dtype).items():
                    allowed = max(1, math.ceil(worst)) + (2 if dtype in ("float32", "float64") else 0)
                    table[name][role][dtype] = max(allowed, table[name][role].get(dtype, 0))
    path = Path(gpudrop.__file__).parent / "testing/ulps.json"
    rows = ",\n".join(f'  "{name}": {json.dumps(row)}' for name, row in table.items())
    path.write_text(f"{{\n{rows}\n}}\n")


if __name__ == "__main__":
    main()
