"""The cost of a start: the import, and the first call of a kernel, with an empty and with a filled cache on disk."""

import os
import statistics
import subprocess
import sys
import tempfile

IMPORT = "import time, numpy, numba; t = time.perf_counter(); import gpudrop; print(time.perf_counter() - t)"
CALL = """
import sys, time, numpy as np, gpudrop
x = np.ones(1000, np.float32)
t = time.perf_counter()
y, backprop = gpudrop.dropout_vjp(x, 0.1, activation=sys.argv[1])
backprop(x)
print(time.perf_counter() - t)
"""


def measure(rounds=3):
    """Medians in seconds over fresh processes: {what: seconds}."""
    samples = {"import gpudrop, beyond numpy and numba": [_run(IMPORT, {}) for _ in range(rounds)]}
    for activation in ("relu", "gelu"):
        first, second = [], []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                first.append(_run(CALL, {"NUMBA_CACHE_DIR": folder}, activation))
                second.append(_run(CALL, {"NUMBA_CACHE_DIR": folder}, activation))
        samples[f"first {activation}, forward and backward, compiled"] = first
        samples[f"first {activation}, forward and backward, from the cache"] = second
    return {what: statistics.median(seconds) for what, seconds in samples.items()}


def _run(code, environment, *arguments):
    command = [sys.executable, "-c", code, *arguments]
    return float(subprocess.run(command, env=os.environ | environment, capture_output=True, check=True).stdout)
